"""Slopes against central differences of the function itself, along random directions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._measure import largest_difference

_DIRECTIONS = 4
_DOUBLINGS = 8
# Differences that are not sure of two digits say nothing.
WORST_TOLERANCE = 1e-2


def variable_leaves(args: tuple[Any, ...], slopes: Any) -> tuple[list[Any], list[Any], Callable]:
    """Pick the variables among a function's arguments.

    Args:
        args: the arguments.
        slopes: shaped like them, None where an argument is no variable.

    Returns:
        The variables as arrays, their slopes, and a function that puts variables back between the
        other arguments.
    """
    leaves, treedef = jax.tree.flatten(args)
    # The slopes of what is no variable are None and would be lost in flattening.
    by_leaf = treedef.flatten_up_to(slopes)
    chosen = [k for k, slope in enumerate(by_leaf) if slope is not None]

    def rebuild(variables: Sequence[Any]) -> tuple[Any, ...]:
        flat = list(leaves)
        for k, value in zip(chosen, variables, strict=True):
            flat[k] = value
        return treedef.unflatten(flat)

    return [jnp.asarray(leaves[k]) for k in chosen], [by_leaf[k] for k in chosen], rebuild


def compare_with_differences(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    slopes: Any,
    *,
    seed: int = 0,
    scale: float = 1.0,
) -> tuple[float, float]:
    """Compare slopes with `scale` times central differences of a function.

    Directions are normal, in units of each variable's size. Along each, differences of steps t and
    2t are extrapolated for t on a geometric grid, and the t with the least doubt is kept: how far
    the differences, and the extrapolated ones, of neighbouring steps lie apart, and the rounding of
    the function's value over t. The largest doubt is the tolerance.

    Args:
        f: the function.
        args: its arguments.
        slopes: slopes at the arguments, shaped like them.
        seed: seed of the directions.
        scale: factor of the differences, `φ'/φ`.

    Returns:
        Largest difference and tolerance, both relative to the largest directional slope.
    """
    variables, variable_slopes, rebuild = variable_leaves(args, slopes)
    eps = max(float(jnp.finfo(v.dtype).eps) for v in variables)
    steps = eps ** (1 / 3) / 4 * 2.0 ** np.arange(_DOUBLINGS)
    count = sum(v.size for v in variables)
    rng = np.random.default_rng(seed)

    @jax.jit
    def at(variables: Any, direction: Any, t: Any) -> Any:
        moved = [v + t.astype(d.dtype) * d for v, d in zip(variables, direction, strict=True)]
        return f(*rebuild(moved))

    got, want, doubt = [], [], []
    for _ in range(_DIRECTIONS):
        direction = [_direction(rng, v) / count**0.5 for v in variables]
        above, below = (
            np.array([float(at(variables, direction, jnp.asarray(t))) for t in side])
            for side in (steps, -steps)
        )
        plain = (above - below) / (2 * steps)
        better = (4 * plain[:-1] - plain[1:]) / 3
        # Rounding in the last digits, for functions that add up some hundred terms.
        rounding = 30 * eps * np.max(np.abs((above, below))) / steps[:-2]
        doubts = np.abs(np.diff(plain))[:-1] / 3 + np.abs(np.diff(better)) + rounding
        best = int(np.argmin(doubts))
        pairs = zip(variable_slopes, direction, strict=True)
        got.append(sum(float(np.sum(np.real(np.asarray(s) * np.asarray(d)))) for s, d in pairs))
        want.append(scale * better[best])
        doubt.append(abs(scale) * doubts[best])
    largest = float(np.max(np.abs(want)))
    unit = largest if largest > 0 else 1.0
    gap = largest_difference(np.array(got), np.array(want)) / unit
    return gap, min(float(np.max(doubt)) / unit, WORST_TOLERANCE)


def _direction(rng: np.random.Generator, variable: Any) -> Any:
    array = np.asarray(variable)
    size = float(np.max(np.abs(array), initial=0.0))
    direction = rng.normal(size=array.shape)
    if np.iscomplexobj(array):
        direction = direction + 1j * rng.normal(size=array.shape)
    return jnp.asarray((size if size > 0 else 1.0) * direction, variable.dtype)
