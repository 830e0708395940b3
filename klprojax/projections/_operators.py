"""Projections as functions of a point: onto a set from the left, from the right, and composed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx

from ..geometry import AbstractConstraint, i_projection, right_projection

# From a point (a pytree of arrays in dual coordinates) to a point.
Projection = Callable[[Any], Any]


class _Left(eqx.Module):
    constraint: AbstractConstraint
    options: dict[str, Any]

    def __call__(self, point: Any) -> Any:
        return i_projection(self.constraint, point, throw=False, **self.options).value


class _Right(eqx.Module):
    constraint: AbstractConstraint
    options: dict[str, Any]

    def __call__(self, point: Any) -> Any:
        return right_projection(self.constraint, point, throw=False, **self.options).value


class _Composed(eqx.Module):
    projections: tuple[Projection, ...]

    def __call__(self, point: Any) -> Any:
        for projection in reversed(self.projections):
            point = projection(point)
        return point


def left(constraint: AbstractConstraint, **options: Any) -> Projection:
    """``π←_C``: the nearest point of the set from the left, ``argmin over r in C of KL(r || q)``.

    Args:
        constraint: the set.
        options: ``tolerance`` and ``max_steps`` of `geometry.i_projection`.

    Returns:
        A function from a log-table to the projected log-table.

    Reference: section 2, left projection.
    """
    return _Left(constraint, options)


def right(constraint: AbstractConstraint, **options: Any) -> Projection:
    """``π→_C``: the nearest point of the set from the right, ``argmin over p in C of KL(q || p)``.

    Args:
        constraint: the set.
        options: ``tolerance`` and ``max_steps`` of `geometry.right_projection`.

    Returns:
        A function from a log-table to the projected log-table.

    Reference: section 2, right projection.
    """
    return _Right(constraint, options)


def compose(*projections: Projection) -> Projection:
    """Apply the last one first, as in a formula: ``compose(right(P), left(Q))`` is ``π→_P ∘ π←_Q``.

    Args:
        projections: functions from points to points.

    Returns:
        Their composition, a function from points to points.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.geometry import ConsensusFace, ProductFamily
        >>> t_proj = compose(right(ProductFamily()), left(ConsensusFace()))
        >>> q = t_proj(jnp.log(jnp.array([[0.1, 0.2], [0.4, 0.3]])))
        >>> [[round(float(x), 4) for x in row] for row in jnp.exp(q)]
        [[0.0625, 0.1875], [0.1875, 0.5625]]

    Reference: section 3.1, definition of T_Proj.
    """
    return _Composed(projections)
