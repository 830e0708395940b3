"""How differences are measured, and the plain numpy tables that they are measured against."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def by_precision(dtype: Any, double: float, single: float) -> float:
    """Choose the tolerance of a floating type."""
    return double if jnp.dtype(dtype) == jnp.dtype("float64") else single


def at_least(size: int, least: int) -> None:
    """Refuse a size too small for the example to show anything.

    Raises:
        ValueError: it is.
    """
    if size < least:
        raise ValueError(f"size is {size}; this check needs at least {least}")


def as_given(value: Any, dtype: Any) -> np.ndarray:
    """Numbers as the package gets them, rounded to its type."""
    return np.array(jnp.asarray(value, dtype), np.float64)


def largest_difference(got: Any, want: Any) -> float:
    """Return the largest difference of entries of two pytrees; not a number if an entry is not."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    if not pairs:
        raise ValueError("there is nothing to compare")
    gaps = []
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            raise ValueError(f"shapes {a.shape} and {b.shape} do not match")
        gaps.append(np.max(np.abs(a.astype(_wide(a)) - b.astype(_wide(b))), initial=0.0))
    # numpy's maximum, unlike Python's, does not lose a NaN.
    return float(np.max(gaps))


def relative_difference(got: Any, want: Any) -> float:
    """Return the largest difference of entries over the largest entry of `want`."""
    scale = max(float(np.max(np.abs(np.asarray(b)), initial=0.0)) for b in jax.tree.leaves(want))
    gap = largest_difference(got, want)
    return gap / scale if scale > 0 else gap


def in_window(residual: float, known: float, dtype: Any) -> float:
    """Return a residual that must not vanish, provided it is the one that the reading has.

    A reading that fails must fail as known: garbage fails, too.

    Args:
        residual: what was found.
        known: the same difference, computed in numpy.
        dtype: floating type of what was found.

    Raises:
        ValueError: they differ by more than rounding.
    """
    if not abs(residual - known) <= by_precision(dtype, 1e-10, 1e-4):
        raise ValueError(
            f"in this reading the difference must be {known:.6g}, but {residual:.6g} was found"
        )
    return residual


def observed_order(steps: np.ndarray, errors: np.ndarray) -> float:
    """Return the exponent p of the power law `error ~ step^p` that fits best."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def normalized(table: np.ndarray) -> np.ndarray:
    """Divide by the sum."""
    return table / table.sum()


def kl(p: Any, q: Any) -> float:
    """Return `sum p log(p / q)` of two probability tables, in float64, with `0 log 0 = 0`."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


def outer(factors: list[np.ndarray]) -> np.ndarray:
    """Return the product table of one vector an axis."""
    table = np.ones(())
    for factor in factors:
        table = table[..., None] * factor
    return table


def _wide(array: np.ndarray) -> Any:
    return np.complex128 if np.iscomplexobj(array) else np.float64
