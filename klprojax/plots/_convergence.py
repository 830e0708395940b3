"""Residuals and errors against iterations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._axes import make_axes


def convergence(
    curves: Mapping[str, Sequence[Any]],
    ax: Any = None,
    *,
    steps: Sequence[Any] | None = None,
    tolerance: float | None = None,
    ylabel: str = "residual",
) -> Any:
    """Draw residuals or errors of iterations, on a logarithmic axis.

    Args:
        curves: by label, one number per iteration. Zeros have no place on a logarithmic axis and
            are left out, as is what is not finite.
        ax: axes to draw on; a new figure if None.
        steps: the iterations that the numbers belong to; 1, 2, ... if None.
        tolerance: drawn as a dashed line.
        ylabel: what is drawn.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: no curve has a positive number, a curve is not one number per iteration, or
            `steps` have another length.
    """
    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for label, values in curves.items():
        numbers = np.asarray(values, float)
        if numbers.ndim != 1:
            raise ValueError(
                f"The curve {label!r} has shape {numbers.shape}; expected one number per iteration."
            )
        at = np.arange(1, len(numbers) + 1) if steps is None else np.asarray(steps)
        if len(at) != len(numbers):
            raise ValueError(
                f"The curve {label!r} has {len(numbers)} numbers for {len(at)} steps; expected one "
                "each."
            )
        shown = np.isfinite(numbers) & (numbers > 0)
        if shown.any():
            drawn[label] = at[shown], numbers[shown]
    if not drawn:
        raise ValueError("No curve has a positive, finite number to draw.")
    (axis,) = make_axes(ax, 1, (5.0, 3.5))
    for label, (at, numbers) in drawn.items():
        axis.plot(at, numbers, label=label, marker="." if len(numbers) < 30 else None)
    if tolerance is not None:
        axis.axhline(tolerance, color="0.4", linestyle="--", linewidth=1.0, label="tolerance")
    axis.set_yscale("log")
    axis.set_xlabel("iteration")
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return axis.figure
