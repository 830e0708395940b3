"""Nearest points of the graphs of elementwise functions `{z = σ(s)}`.

Each function minimises `ω_s/2 (s* - s)² + ω_z/2 (σ(s*) - z)²`, elementwise on arrays of one shape,
and returns s*. A precision is a scalar or an array of that shape.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...lifting import project_activation
from ._quantise import level_values


def project_identity(
    s: Float[Array, "*units"],
    z: Float[Array, "*units"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Float[Array, "*units"]:
    """Project onto `{z = s}`: the weighted mean."""
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    return s + omega_z / (omega_s + omega_z) * (z - s)


def project_relu(
    s: Float[Array, "*units"],
    z: Float[Array, "*units"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Float[Array, "*units"]:
    """Project onto `{z = max(s, 0)}`: both pieces compared, the nearer point taken."""
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    zero = jnp.zeros_like(s)
    off = jnp.minimum(s, zero)
    on = jnp.maximum(project_identity(s, z, omega_s, omega_z), zero)
    cost_off = omega_s * (off - s) ** 2 + omega_z * z**2
    cost_on = omega_s * (on - s) ** 2 + omega_z * (on - z) ** 2
    # On a tie a live unit stays live and a dead one dead.
    nearer = jnp.where(s > 0, cost_on <= cost_off, cost_on < cost_off)
    return jnp.where(nearer, on, off)


def project_abs(
    s: Float[Array, "*units"],
    z: Float[Array, "*units"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Float[Array, "*units"]:
    """Project onto `{z = |s|}`: both pieces compared, the nearer point taken."""
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    zero = jnp.zeros_like(s)
    right = jnp.maximum(project_identity(s, z, omega_s, omega_z), zero)
    left = jnp.minimum(project_identity(s, -z, omega_s, omega_z), zero)
    cost_right = omega_s * (right - s) ** 2 + omega_z * (right - z) ** 2
    cost_left = omega_s * (left - s) ** 2 + omega_z * (left + z) ** 2
    nearer = jnp.where(s >= 0, cost_right <= cost_left, cost_right < cost_left)
    return jnp.where(nearer, right, left)


def project_quantise(
    s: Float[Array, "*units"],
    z: Float[Array, "*units"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
    *,
    levels: int = 2,
    scale: float = 1.0,
) -> Float[Array, "*units"]:
    """Project onto the closure of the graph of `quantise`: every step compared.

    A point on the edge of two steps belongs to both in the closure. So that `quantise` itself gives
    the level that was chosen, s* stays one part in `1/sqrt(eps)` of a step inside.
    """
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    points = level_values(levels, scale, s.dtype)
    step = 2 * scale / (levels - 1)
    margin = step * float(jnp.finfo(s.dtype).eps) ** 0.5
    infinite = jnp.asarray([jnp.inf], s.dtype)
    middles = (points[:-1] + points[1:]) / 2
    low = jnp.concatenate([-infinite, middles + margin])
    high = jnp.concatenate([middles - margin, infinite])
    shape = (1,) * s.ndim + (levels,)
    inside = jnp.clip(s[..., None], low.reshape(shape), high.reshape(shape))
    cost = omega_s[..., None] * (inside - s[..., None]) ** 2
    cost = cost + omega_z[..., None] * (points.reshape(shape) - z[..., None]) ** 2
    best = jnp.argmin(cost, axis=-1, keepdims=True)
    return jnp.take_along_axis(inside, best, axis=-1)[..., 0]


def project_elementwise(
    function: Callable[[Any], Any],
    s: Float[Array, "*units"],
    z: Float[Array, "*units"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Float[Array, "*units"]:
    """Project onto the graph of any twice differentiable elementwise function, by safe descent.

    The result is the local minimum that damped Newton steps reach from s.

    Reference: Corollary 3.4, activation layers; `klprojax.lifting.project_activation`.
    """
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    found = project_activation(
        lambda flat: function(flat.reshape(s.shape)).reshape(-1),
        s.reshape(-1),
        z.reshape(-1),
        input_precision=omega_s.reshape(-1),
        output_precision=omega_z.reshape(-1),
    )
    return found.u.reshape(s.shape)


def _precisions(s: Any, *values: Any) -> tuple[Any, ...]:
    return tuple(jnp.broadcast_to(jnp.asarray(value, s.dtype), s.shape) for value in values)
