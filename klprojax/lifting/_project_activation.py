"""Local projections onto the graph of an activation (Corollary 3.4); see `project_linear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._descent import descend
from ._python_values import no_python_values


class ActivationProjection(NamedTuple):
    """A point of `{a = σ(u)}` near given targets.

    Attributes:
        u: projected pre-activation.
        a: projected activity.
        slope_u: slope of the factor's log-message into u, `ω_u (u* - ū)`.
        slope_a: slope of the log-table of a, `ω_a (ā - a*)`.
    """

    u: Float[Array, " units"]
    a: Float[Array, " units"]
    slope_u: Float[Array, " units"]
    slope_a: Float[Array, " units"]


@no_python_values("the activation")
def project_activation(
    activation: Callable[[Any], Any],
    u: Float[Array, " units"],
    a: Float[Array, " units"],
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
    function `jax.nn.relu`
    is projected exactly, by comparing its two pieces.

    Args:
        activation: σ, elementwise on `[units]` and twice differentiable.
        u: target ū of the pre-activation.
        a: target ā of the activity.
        input_precision: ω_u > 0, a scalar.
        output_precision: ω_a > 0, a scalar.
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
        projected = _project_relu(u, a, omega_u, omega_a)
    else:

        def objective(x: Any) -> Any:
            return omega_u / 2 * (x - u) ** 2 + omega_a / 2 * (activation(x) - a) ** 2

        def jets(x: Any) -> tuple[Any, Any, Any]:
            one = jnp.ones_like(x)

            def first(x: Any) -> tuple[Any, Any]:
                return jax.jvp(activation, (x,), (one,))

            (value, slope), (_, bend) = jax.jvp(first, (x,), (one,))
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


def _project_relu(u: Any, a: Any, omega_u: Any, omega_a: Any) -> Any:
    off = jnp.minimum(u, jnp.zeros_like(u))
    on = jnp.maximum((omega_u * u + omega_a * a) / (omega_u + omega_a), jnp.zeros_like(u))
    cost_off = omega_u * (off - u) ** 2 + omega_a * a**2
    cost_on = omega_u * (on - u) ** 2 + omega_a * (on - a) ** 2
    return jnp.where(cost_on <= cost_off, on, off)
