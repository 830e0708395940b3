"""The nearest point of the graph `{u = a·w}`: a unit whose weights, inputs and output are free."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Newton's method in a bracket doubles its digits near the root; before that a bisection halves the
# bracket. Twice the bits of a double bounds the worst case.
_MAX_STEPS = 110


class BilinearPoint(NamedTuple):
    """A point of `{u = a·w}` near given targets.

    Attributes:
        a: projected inputs.
        w: projected weights.
        u: projected output.
        multiplier: t in (-1, 1), the slope of the constraint in units of `sqrt(ω_a ω_w)`.
        residual: what the projected point lacks to `u = a·w`, absolute.
    """

    a: Float[Array, " n"]
    w: Float[Array, " n"]
    u: Float[Array, ""]
    multiplier: Float[Array, ""]
    residual: Float[Array, ""]


def project_bilinear(
    a: Float[Array, " n"],
    w: Float[Array, " n"],
    z: Float[Array, ""],
    *,
    input_precision: Any = 1.0,
    weight_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> BilinearPoint:
    """Project onto the graph of a unit `u = a·w`, everything free.

    Minimises `ω_a/2 |a* - a|² + ω_w/2 |w* - w|² + ρ/2 (u* - z)²` over `u* = a*·w*`. In the scaled
    variables `â = sqrt(ω_a) a`, `ŵ = sqrt(ω_w) w` the stationary points are
    `â* = (â + t ŵ)/(1 - t²)`, `ŵ* = (ŵ + t â)/(1 - t²)`, and the global minimum is the one root of
    an increasing function of t in (-1, 1); see `bilinear_multiplier`.

    Args:
        a: inputs.
        w: weights.
        z: target of the output.
        input_precision: ω_a > 0.
        weight_precision: ω_w > 0.
        output_precision: ρ > 0.

    Returns:
        The nearest point, with the residual of the constraint as certificate. Where `â = -ŵ` (or
        `â = ŵ`) exactly, the minimiser need not be unique and need not be of the form above; the
        residual then says how far the returned point is from the graph.

    Differentiation: by the implicit function theorem at the root, forward and reverse.

    Reference: section 3.2, the delta face of a linear unit; theory of divide and concur (Elser).
    """
    omega_a = jnp.asarray(input_precision, a.dtype)
    omega_w = jnp.asarray(weight_precision, a.dtype)
    rho = jnp.asarray(output_precision, a.dtype)
    scale = jnp.sqrt(omega_a * omega_w)
    product = scale * jnp.dot(a, w)
    t = bilinear_multiplier(
        product,
        omega_a * jnp.dot(a, a) + omega_w * jnp.dot(w, w),
        scale * z - product,
        rho / (omega_a * omega_w),
    )
    c = 1 / (1 - t * t)
    new_a = c * (a + t * jnp.sqrt(omega_w / omega_a) * w)
    new_w = c * (w + t * jnp.sqrt(omega_a / omega_w) * a)
    u = z - t * scale / rho
    return BilinearPoint(new_a, new_w, u, t, jnp.abs(u - jnp.dot(new_a, new_w)))


def bilinear_multiplier(
    product: Float[Array, "*units"],
    squares: Float[Array, "*units"],
    misfit: Float[Array, "*units"],
    ratio: Float[Array, "..."],
) -> Float[Array, "*units"]:
    """Solve for the multiplier t of many bilinear projections at once.

    With `A = |a + w|²/4` and `D = |a - w|²/4` the constraint `a*·w* = z - t/r` reads

        A t(2 - t)/(1 - t)² + D t(2 + t)/(1 + t)² + t/r = z - a·w,

    whose left side increases from -∞ to ∞ on (-1, 1) and vanishes at 0. No difference of large
    numbers is formed, so a small misfit gives a small multiplier to full relative precision. Newton
    steps that leave the bracket are replaced by bisection.

    Args:
        product: a·w.
        squares: |a|² + |w|².
        misfit: `z - a·w`.
        ratio: r > 0, the precision of the output, in units in which inputs and weights have one;
            of the shape of the others or a scalar.

    Returns:
        t, within one float of the root, strictly inside (-1, 1).

    Differentiation: by the implicit function theorem, forward and reverse.
    """
    half = jnp.asarray(0.5, product.dtype)
    quarter = jnp.asarray(0.25, product.dtype)
    plus = quarter * squares + half * product
    minus = quarter * squares - half * product
    # Cauchy-Schwarz in floating point: neither may turn negative by rounding.
    plus, minus = jnp.maximum(plus, 0), jnp.maximum(minus, 0)
    stiffness = jnp.broadcast_to(1 / jnp.asarray(ratio, product.dtype), product.shape)

    def value_and_slope(t: Any, terms: Any) -> tuple[Any, Any]:
        plus, minus, stiffness, misfit = terms
        up, down = 1 / (1 - t), 1 / (1 + t)
        up_plus, down_minus = plus * up * up, minus * down * down
        value = t * (up_plus * (2 - t) + down_minus * (2 + t) + stiffness) - misfit
        return value, 2 * (up_plus * up + down_minus * down) + stiffness

    terms = lax.stop_gradient((plus, minus, stiffness, misfit))
    epsilon = jnp.finfo(product.dtype).eps
    # Dropping terms of one sign bounds the root: the bracket is short where the misfit is small.
    far = 1 - 2 * epsilon
    steps_to_root = jnp.abs(terms[3])
    near = jnp.where(terms[3] > 0, terms[0], terms[1])
    edge = jnp.where(near > 0, near, jnp.ones_like(near))
    by_plane = 1 - 1 / jnp.sqrt(1 + steps_to_root / edge)
    bound = jnp.where(near > 0, by_plane * (1 + 8 * epsilon), jnp.full_like(near, far))
    bound = jnp.minimum(jnp.minimum(bound, steps_to_root / terms[2] * (1 + 8 * epsilon)), far)
    low = jnp.where(terms[3] > 0, jnp.zeros_like(bound), -bound)
    high = jnp.where(terms[3] > 0, bound, jnp.zeros_like(bound))
    # The Newton step from 0 costs nothing and is right where the misfit is small.
    first = jnp.clip(terms[3] / (2 * (terms[0] + terms[1]) + terms[2]), low, high)
    # Newton doubles the digits: this error becomes one near eps in the last step below.
    close = jnp.sqrt(epsilon) / 16

    def body(state: Any) -> Any:
        low, high, t, _, count = state
        value, slope = value_and_slope(t, terms)
        low, high = jnp.where(value < 0, t, low), jnp.where(value < 0, high, t)
        newton = t - value / slope
        inside = (newton >= low) & (newton <= high)
        new = jnp.where(inside, newton, half * (low + high))
        moving = jnp.abs(new - t) > close * jnp.minimum(jnp.abs(new), 1 - jnp.abs(new))
        return low, high, new, jnp.any(moving), count + 1

    state = (low, high, first, jnp.asarray(True), jnp.zeros((), jnp.int32))
    t = lax.stop_gradient(lax.while_loop(lambda s: s[3] & (s[4] < _MAX_STEPS), body, state)[2])
    value, slope = value_and_slope(t, (plus, minus, stiffness, misfit))
    return jnp.clip(t - value / lax.stop_gradient(slope), -far, far)
