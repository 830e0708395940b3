"""Local projections onto the graphs of one layer, with precisions (Corollary 3.4).

A Gaussian log-table `-(ω/2)|v - v̄|²` of fixed precision ω turns KL into weighted squared distance.
In the zero-temperature limit the I-projection onto a delta face `{u = ψ(a)}` is the weighted
Euclidean projection onto the graph of ψ, which is what the functions below compute.

Two dual-coordinate readouts come with every projection. The log-table of v has the slope
`ω (v̄ - v*)` at the projected point. At the output u that is the slope `s_u` that was put in; at an
input the factor's own message must balance the table, so the message has the slope `ω (v* - v̄)`.
With the output's target at `ū = u + s_u/ω_u` (a table with slope s_u at the forward value u) the
message slopes tend to the layer rules as the ratio of the output's to the inputs' precision goes to
0, with relative error of the order of that ratio.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._descent import descend


class LinearProjection(NamedTuple):
    """A point of `{u = W a + b}`, W and b fixed, nearest to given targets.

    Attributes:
        a: projected input.
        u: projected output.
        slope_a: slope of the factor's log-message into a, `ω_a (a* - ā)`.
        slope_u: slope of the log-table of u, `ω_u (ū - u*)`.
    """

    a: Float[Array, " inputs"]
    u: Float[Array, " outputs"]
    slope_a: Float[Array, " inputs"]
    slope_u: Float[Array, " outputs"]


class ParameterProjection(NamedTuple):
    """A point of `{u = W a + b}`, all of W, b, a and u free, near given targets.

    Attributes:
        weight: projected W.
        bias: projected b, or None.
        a: projected input.
        u: projected output.
        slope_weight: slope of the factor's log-message into W, `ω_w (W* - W̄)`.
        slope_bias: the same for b, or None.
        slope_a: the same for a, `ω_a (a* - ā)`.
        slope_u: slope of the log-table of u, `ω_u (ū - u*)`.
        residual: norm of the gradient of the reduced objective at a*, in units of slope_a.
    """

    weight: Float[Array, "outputs inputs"]
    bias: Float[Array, " outputs"] | None
    a: Float[Array, " inputs"]
    u: Float[Array, " outputs"]
    slope_weight: Float[Array, "outputs inputs"]
    slope_bias: Float[Array, " outputs"] | None
    slope_a: Float[Array, " inputs"]
    slope_u: Float[Array, " outputs"]
    residual: Float[Array, ""]


@jax.jit
def project_linear(
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None,
    a: Float[Array, " inputs"],
    u: Float[Array, " outputs"],
    *,
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> LinearProjection:
    """Project onto the graph `G_lin` of an affine map with fixed parameters.

    Minimises `ω_a/2 |a* - ā|² + ω_u/2 |u* - ū|²` over `u* = W a* + b`, by one Cholesky solve in the
    smaller of the two spaces.

    Args:
        weight: W.
        bias: b, or None.
        a: target ā of the input.
        u: target ū of the output.
        input_precision: ω_a > 0, a scalar.
        output_precision: ω_u > 0, a scalar.

    Returns:
        The projected point and its readouts.

    Reference: Corollary 3.4, linear layers.
    """
    omega_a = jnp.asarray(input_precision, a.dtype)
    omega_u = jnp.asarray(output_precision, a.dtype)
    misfit = u - _affine(weight, bias, a)
    # Stationarity: ω_a d = Wᵀ ω_u (misfit - W d) for the displacement d of the input.
    step = _solve_shifted_gram(weight, omega_a / omega_u, weight.T @ misfit)
    projected = a + step
    slope_u = omega_u * (misfit - weight @ step)
    return LinearProjection(projected, _affine(weight, bias, projected), omega_a * step, slope_u)


@partial(jax.jit, static_argnames="max_steps")
def project_linear_parameters(
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None,
    a: Float[Array, " inputs"],
    u: Float[Array, " outputs"],
    *,
    parameter_precision: Any = 1.0,
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
    max_steps: int = 60,
) -> ParameterProjection:
    """Project onto the graph `{u = W a + b}` with weights, bias, input and output all free.

    Minimises `ω_w/2 (|W* - W̄|² + |b* - b̄|²) + ω_a/2 |a* - ā|² + ω_u/2 |u* - ū|²`. For a given a*
    the rest is in closed form, `W* = W̄ + s a*ᵀ/ω_w` and `b* = b̄ + s/ω_w` with
    `s = (ū - W̄ a* - b̄) / c(a*)`, `c(a) = 1/ω_u + (|a|² + 1)/ω_w`. The reduced objective
    `ω_a/2 |a - ā|² + |ū - W̄ a - b̄|²/(2 c(a))` is minimised by Newton's method from ā: where its
    Hessian is not positive definite the Gauss-Newton matrix takes its place, and steps are halved
    until the objective falls. The set is not convex; the result is the local minimum reached by
    descent from ā.

    Args:
        weight: target W̄.
        bias: target b̄, or None for a layer without bias.
        a: target ā of the input.
        u: target ū of the output.
        parameter_precision: ω_w > 0, a scalar.
        input_precision: ω_a > 0, a scalar.
        output_precision: ω_u > 0, a scalar.
        max_steps: largest number of Newton steps.

    Returns:
        The projected point and its readouts.

    Differentiation: first derivatives by the implicit function theorem at the solution.

    Reference: Corollary 3.4, linear layers.
    """
    omega_w = jnp.asarray(parameter_precision, a.dtype)
    omega_a = jnp.asarray(input_precision, a.dtype)
    omega_u = jnp.asarray(output_precision, a.dtype)
    has_bias = 0.0 if bias is None else 1.0

    def at_point(x: Any) -> tuple[Any, Any]:
        spread = 1 / omega_u + (x @ x + has_bias) / omega_w
        return (u - _affine(weight, bias, x)) / spread, spread

    def objective(x: Any) -> Any:
        s, spread = at_point(x)
        return omega_a / 2 * jnp.sum((x - a) ** 2) + spread / 2 * jnp.sum(s**2)

    def gradient(x: Any) -> Any:
        s, _ = at_point(x)
        return omega_a * (x - a) - weight.T @ s - (s @ s) / omega_w * x

    def newton_matrix(x: Any) -> tuple[Any, Any, Any]:
        s, spread = at_point(x)
        # Hessian = shift I + Bᵀ B / c; without the negative part of the shift it is a Gauss-Newton
        # matrix, positive definite in any case.
        shift = omega_a - (s @ s) / omega_w
        bent = weight + 2 / omega_w * jnp.outer(s, x)
        return bent, jnp.where(shift > 0, shift, omega_a) * spread, spread

    def newton_step(matrix: tuple[Any, Any, Any], g: Any) -> Any:
        bent, shift, spread = matrix
        return -spread * _solve_shifted_gram(bent, shift, g)

    solution = lax.stop_gradient(
        descend(
            objective,
            gradient,
            lambda x, g: newton_step(newton_matrix(x), g),
            lax.stop_gradient(a),
            max_steps,
        )
    )
    # One more Newton step from a constant point carries the derivative of the solution.
    last = lax.stop_gradient(newton_matrix(solution))
    projected = solution + newton_step(last, gradient(solution))
    s, _ = at_point(projected)
    slope_weight = jnp.outer(s, projected)
    new_weight = weight + slope_weight / omega_w
    new_bias = None if bias is None else bias + s / omega_w
    return ParameterProjection(
        new_weight,
        new_bias,
        projected,
        _affine(new_weight, new_bias, projected),
        slope_weight,
        None if bias is None else s,
        omega_a * (projected - a),
        s,
        jnp.sqrt(jnp.sum(gradient(projected) ** 2)),
    )


def _affine(weight: Any, bias: Any, a: Any) -> Any:
    return weight @ a if bias is None else weight @ a + bias


def _solve_shifted_gram(matrix: Any, shift: Any, rhs: Any) -> Any:
    """Solve `(shift I + MᵀM) x = rhs` in the smaller of the two spaces."""
    rows, columns = matrix.shape
    if columns <= rows:
        gram = matrix.T @ matrix + shift * jnp.eye(columns, dtype=matrix.dtype)
        return jax.scipy.linalg.solve(gram, rhs, assume_a="pos")
    gram = matrix @ matrix.T + shift * jnp.eye(rows, dtype=matrix.dtype)
    inner = jax.scipy.linalg.solve(gram, matrix @ rhs, assume_a="pos")
    return (rhs - matrix.T @ inner) / shift
