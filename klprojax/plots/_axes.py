"""Matplotlib, when it is there."""

from typing import Any


def make_axes(ax: Any, count: int, size: tuple[float, float]) -> list[Any]:
    """The axes given, or new ones side by side.

    Raises:
        ImportError: no matplotlib.
        ValueError: another number of axes.
    """
    try:
        # No global state, so that plotting never opens a window nor changes the backend.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Plots need matplotlib: pip install matplotlib.") from None
    if ax is None:
        figure = Figure(figsize=(size[0] * count, size[1]), layout="constrained")
        FigureCanvasAgg(figure)
        return [figure.add_subplot(1, count, n + 1) for n in range(count)]
    axes = list(ax) if hasattr(ax, "__len__") else [ax]
    if len(axes) != count:
        raise ValueError(f"ax must be {count} axes; got {len(axes)}.")
    return axes
