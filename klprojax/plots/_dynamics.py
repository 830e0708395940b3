"""What happens inside a network while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from ._axes import make_axes


def dynamics(
    history: Sequence[Mapping[str, Any]], ax: Any = None, *, names: Sequence[str] | None = None
) -> Any:
    """Draw norms by layer and the distance between iterates, against updates.

    One panel a vector of the step's stats, one line a layer: the first layer darkest, so vanishing
    signals show as lines that fan out. A last panel shows |w_t - w_{t-k}| / |w_t| for each window
    k that `fit` recorded: an iteration has stabilised over a window once its line stays low.

    Args:
        history: of one run.
        ax: axes to draw on, one a panel; a new figure if None.
        names: stats to draw, in this order; all vectors among them if None.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: the history has nothing to draw, or not what was asked for.
    """
    names = _vectors(history) if names is None else list(names)
    windows = list(next((e["window_distance"] for e in history if e.get("window_distance")), {}))
    if not names and not windows:
        raise ValueError("The history has no stats by layer and no window distances to draw.")
    axes = make_axes(ax, len(names) + bool(windows), (4.0, 3.5))
    for axis, name in zip(axes, names, strict=False):
        entries = [entry for entry in history if name in entry["stats"]]
        if not entries:
            raise ValueError(f"No entry of the history has the stat {name!r}.")
        rows = [_flat(entry["stats"][name]) for entry in entries]
        layers = len(rows[0])
        for layer in range(layers):
            shade = 0.9 * layer / max(layers - 1, 1)
            axis.plot(
                [entry["update"] for entry in entries],
                [row[layer] for row in rows],
                color=(shade * 0.9, 0.3 + shade * 0.5, 0.6),
                label=f"layer {layer + 1}",
            )
        axis.set_title(name.replace("_", " "))
        _finish(axis, rows)
    for window in windows:
        seen = [
            (entry["update"], entry["window_distance"][window])
            for entry in history
            if entry["window_distance"][window] is not None
        ]
        axes[-1].plot([u for u, _ in seen], [d for _, d in seen], label=f"k = {window}")
        axes[-1].set_title("relative distance of iterates")
        _finish(axes[-1], [[d for _, d in seen]])
    return axes[0].figure


def _flat(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for part in value for number in _flat(part)]
    return [float(value)]


def _vectors(history: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for entry in history:
        for name, value in entry["stats"].items():
            if name not in names and isinstance(value, list) and value:
                names.append(name)
    return names


def _finish(axis: Any, rows: list[list[float]]) -> None:
    # Norms span decades, but a logarithm has no place for a line of zeros.
    if any(value > 0 for row in rows for value in row):
        axis.set_yscale("log")
    axis.set_xlabel("updates")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
