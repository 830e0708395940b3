"""Learning curves, against updates, examples and time."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from ._axes import make_axes

History = Sequence[Mapping[str, Any]]
_NAMES = {"update": "updates", "examples": "examples", "seconds": "training time (s)"}


def learning_curves(
    histories: Mapping[str, History | Sequence[History]],
    ax: Any = None,
    *,
    metric: str = "validation_accuracy",
) -> Any:
    """Draw a measure of several runs against updates, examples and seconds of training.

    Args:
        histories: by label, the history of a run or a list of histories (of several seeds), which
            are drawn in one colour with their mean in front, in a band of one standard deviation
            on both sides.
        ax: axes to draw on: two, for updates and seconds, or three; a new figure if None, without
            examples if a history has none.
        metric: the entry of the history to draw.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: no history has that entry.
    """
    drawn: dict[str, list[list[Any]]] = {}
    for label, runs in histories.items():
        several: list[Any] = list(runs) if _nested(runs) else [runs]
        points = [[e for e in run if e.get(metric) is not None] for run in several]
        drawn[label] = [run for run in points if run]
    entries = [entry for runs in drawn.values() for run in runs for entry in run]
    counted = all("examples" in entry for entry in entries)
    three = counted if ax is None else hasattr(ax, "__len__") and len(ax) == 3
    names = [name for name in _NAMES if three or name != "examples"]
    axes = make_axes(ax, len(names), (4.5, 3.5))
    if not entries:
        raise ValueError(f"No history has the entry {metric!r}.")
    if three and not counted:
        raise ValueError("Some history has no entry 'examples'; give two axes.")
    for number, (label, runs) in enumerate(drawn.items()):
        color = f"C{number % 10}"
        for axis, key in zip(axes, names, strict=True):
            if not runs:
                continue
            x = [*map(fmean, _rows(runs, key))]
            values = _rows(runs, metric)
            means = [*map(fmean, values)]
            if len(runs) > 1:
                for run in runs:
                    axis.plot(_column(run, key), _column(run, metric), color=color, alpha=0.25)
                spreads = [*map(stdev, values)]
                low, high = (
                    [mean + sign * spread for mean, spread in zip(means, spreads, strict=True)]
                    for sign in (-1, 1)
                )
                axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axis.plot(x, means, color=color, label=label)
    for axis, key in zip(axes, names, strict=True):
        axis.set_xlabel(_NAMES[key])
        axis.set_ylabel(metric.replace("_", " "))
        axis.grid(alpha=0.3)
    axes[0].legend()
    return axes[0].figure


def _nested(runs: Any) -> bool:
    return len(runs) > 0 and not isinstance(runs[0], Mapping)


def _column(run: list[Any], key: str) -> list[float]:
    return [float(entry[key]) for entry in run]


def _rows(runs: list[list[Any]], key: str) -> list[tuple[float, ...]]:
    # Up to the shortest run: every point is of all of them.
    return list(zip(*(_column(run, key) for run in runs), strict=False))
