"""Learning curves, against updates and against time."""

from collections.abc import Mapping, Sequence
from typing import Any

from ._axes import make_axes

History = Sequence[Mapping[str, Any]]


def learning_curves(
    histories: Mapping[str, History | Sequence[History]],
    ax: Any = None,
    *,
    metric: str = "validation_accuracy",
) -> Any:
    """Draw a measure of several runs against updates and against seconds of training.

    Args:
        histories: by label, the history of a run or a list of histories (of several seeds), which
            are drawn in one colour with their mean in front.
        ax: two axes to draw on; a new figure if None.
        metric: the entry of the history to draw.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: no history has that entry.
    """
    axes = make_axes(ax, 2, (4.5, 3.5))
    drawn = False
    for number, (label, runs) in enumerate(histories.items()):
        several: list[Any] = list(runs) if _nested(runs) else [runs]
        points = [[e for e in run if e.get(metric) is not None] for run in several]
        points = [run for run in points if run]
        if not points:
            continue
        drawn = True
        color = f"C{number % 10}"
        for axis, key in zip(axes, ("update", "seconds"), strict=True):
            if len(points) > 1:
                for run in points:
                    axis.plot(_column(run, key), _column(run, metric), color=color, alpha=0.25)
            axis.plot(_mean(points, key), _mean(points, metric), color=color, label=label)
    if not drawn:
        raise ValueError(f"No history has the entry {metric!r}.")
    for axis, name in zip(axes, ("updates", "training time (s)"), strict=True):
        axis.set_xlabel(name)
        axis.set_ylabel(metric.replace("_", " "))
        axis.grid(alpha=0.3)
    axes[0].legend()
    return axes[0].figure


def _nested(runs: Any) -> bool:
    return len(runs) > 0 and not isinstance(runs[0], Mapping)


def _column(run: list[Any], key: str) -> list[float]:
    return [float(entry[key]) for entry in run]


def _mean(runs: list[list[Any]], key: str) -> list[float]:
    # Up to the shortest run: every point is a mean over all of them.
    columns = zip(*(_column(run, key) for run in runs), strict=False)
    return [sum(values) / len(values) for values in columns]
