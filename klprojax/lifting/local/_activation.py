"""Nearest points of the graphs of elementwise functions `{z = σ(s)}`.

Each function minimises `ω_s/2 (s* - s)² + ω_z/2 (σ(s*) - z)²`, elementwise on arrays of one shape.
A precision is a scalar or an array of that shape. All but `project_activation` return s* alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..._tracing import no_python_values
from ._descent import descend
from ._quantise import level_values

Units = Float[Array, "*units"]


def project_identity(
    s: Units, z: Units, input_precision: Any = 1.0, output_precision: Any = 1.0
) -> Units:
    """Project onto `{z = s}`: the weighted mean."""
    omega_s, omega_z = _precisions(s, input_precision, output_precision)
    return s + omega_z / (omega_s + omega_z) * (z - s)


def project_relu(
    s: Units, z: Units, input_precision: Any = 1.0, output_precision: Any = 1.0
) -> Units:
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
    s: Units, z: Units, input_precision: Any = 1.0, output_precision: Any = 1.0
) -> Units:
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
    s: Units,
    z: Units,
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
    *,
    levels: int = 2,
    scale: float = 1.0,
) -> Units:
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


class ActivationProjection(NamedTuple):
    """A point of `{a = σ(u)}` near given targets.

    Attributes:
        u: projected pre-activation.
        a: projected activity.
        slope_u: slope of the factor's log-message into u, `ω_u (u* - ū)`.
        slope_a: slope of the log-table of a, `ω_a (ā - a*)`.
    """

    u: Units
    a: Units
    slope_u: Units
    slope_a: Units


@no_python_values("the activation")
def project_activation(
    activation: Callable[[Any], Any],
    u: Units,
    a: Units,
    *,
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
    max_steps: int = 60,
) -> ActivationProjection:
    """Project onto the graph `G_σ` of an elementwise activation.

    Minimises `ω_u/2 |u* - ū|² + ω_a/2 |a* - ā|²` over `a* = σ(u*)`, unit by unit, by Newton's
    method from ū. Where σ bends away from the target the Gauss-Newton slope takes the place of the
    second derivative, and steps are halved until the objective falls, so the iterates never leave
    the interval `|u - ū| ≤ sqrt(ω_a/ω_u) |σ(ū) - ā|` in which every better point lies. The
    function `jax.nn.relu` is projected exactly, by `project_relu`.

    Args:
        activation: σ, elementwise and differentiable, twice for Newton's steps.
        u: target ū of the pre-activation.
        a: target ā of the activity.
        input_precision: ω_u > 0, a scalar or an array of the shape of u.
        output_precision: ω_a > 0, likewise.
        max_steps: largest number of Newton steps.

    Returns:
        The projected point and its readouts.

    Differentiation: first derivatives by the implicit function theorem at the solution.

    Reference: Corollary 3.4, activation layers.
    """
    precisions = (jnp.asarray(input_precision, u.dtype), jnp.asarray(output_precision, u.dtype))
    return _project(activation, u, a, precisions, max_steps)


@eqx.filter_jit
def _project(
    activation: Callable[[Any], Any], u: Any, a: Any, precisions: tuple[Any, Any], max_steps: int
) -> ActivationProjection:
    omega_u, omega_a = precisions
    if getattr(activation, "every_unit", activation) is jax.nn.relu:
        projected = project_relu(u, a, omega_u, omega_a)
    else:

        def objective(x: Any) -> Any:
            return omega_u / 2 * (x - u) ** 2 + omega_a / 2 * (activation(x) - a) ** 2

        def jets(x: Any) -> tuple[Any, Any, Any]:
            one = jnp.ones_like(x)

            def first(x: Any) -> tuple[Any, Any]:
                return jax.jvp(activation, (x,), (one,))

            try:
                (value, slope), (_, bend) = jax.jvp(first, (x,), (one,))
            except NotImplementedError:  # no second derivative: every step is Gauss-Newton's
                (value, slope), bend = first(x), jnp.zeros_like(x)
            return value, slope, bend

        def gradient(x: Any) -> Any:
            value, slope, _ = jets(x)
            return omega_u * (x - u) + omega_a * slope * (value - a)

        def curvature(x: Any) -> Any:
            value, slope, bend = jets(x)
            gauss_newton = omega_u + omega_a * slope**2
            full = gauss_newton + omega_a * bend * (value - a)
            return jnp.where(full > gauss_newton / 10, full, gauss_newton)

        found = lax.stop_gradient(
            descend(
                objective,
                gradient,
                lambda x, g: -g / curvature(x),
                lax.stop_gradient(u),
                max_steps,
            )
        )
        projected = found - gradient(found) / lax.stop_gradient(curvature(found))
    value = activation(projected)
    return ActivationProjection(projected, value, omega_u * (projected - u), omega_a * (a - value))


def project_elementwise(
    function: Callable[[Any], Any],
    s: Units,
    z: Units,
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Units:
    """Project onto the graph of any twice differentiable elementwise function.

    The result is the local minimum that damped Newton steps reach from s; see `project_activation`.
    """
    omegas = {"input_precision": input_precision, "output_precision": output_precision}
    return project_activation(function, s, z, **omegas).u


def _precisions(s: Any, *values: Any) -> tuple[Any, ...]:
    return tuple(jnp.broadcast_to(jnp.asarray(value, s.dtype), s.shape) for value in values)
