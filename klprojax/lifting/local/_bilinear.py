"""The nearest point of the graph `{u = a·w}`: a unit whose weights, inputs and output are free."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..._batching import any_of

# Halley's method in a bracket triples its digits near the root; before that a bisection halves the
# bracket. Twice the bits of a double bounds the worst case.
_MAX_STEPS = 110


class BilinearPoint(NamedTuple):
    """A point of `{u = a·w}` near given targets.

    Attributes:
        a: projected inputs.
        w: projected weights.
        u: projected output.
        multiplier: t in (-1, 1), the slope of the constraint in units of `sqrt(ω_a ω_w)`.
        residual: what the projected point misses of `u = a·w`, absolute.
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
    numbers is formed, so a small misfit gives a small multiplier to full relative precision.
    Halley's method finds the root; steps that leave its bracket are replaced by bisection.

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
    # Cauchy-Schwarz in floating point: neither may turn negative by rounding.
    plus = jnp.maximum(half * (half * squares + product), 0)
    minus = jnp.maximum(half * (half * squares - product), 0)
    stiffness = jnp.broadcast_to(1 / jnp.asarray(ratio, product.dtype), product.shape)
    return _root(plus, minus, stiffness, misfit)


@jax.custom_jvp
def _root(plus: Any, minus: Any, stiffness: Any, misfit: Any) -> Any:
    """The root; see `bilinear_multiplier`.

    The quadratic through value, slope and curvature at 0 and three Halley steps are right for all
    but large multipliers. Only if some unit has not converged, all of them go on in brackets: on a
    CPU every array that a loop carries costs its own pass over the whole computation.
    """
    terms = (plus, minus, stiffness, misfit)
    slope, bend = 2 * (plus + minus) + stiffness, 6 * (plus - minus)
    t = 2 * misfit / (slope + jnp.sqrt(jnp.maximum(slope * slope + 2 * bend * misfit, 0)))
    # A loop, not three copies: compiling is a good part of a short run.
    t = lax.fori_loop(0, 2, lambda _, t: t - _halley(t, terms), t)
    step = _halley(t, terms)
    inside = jnp.abs(t) < 1  # false for NaN
    small = jnp.abs(step) <= _close(plus.dtype) * jnp.minimum(jnp.abs(t), 1 - jnp.abs(t))
    return lax.cond(
        any_of(~(inside & small)),
        lambda t, _: _bracketed_root(t, *terms),
        lambda t, step: t - step,
        t,
        step,
    )


def _bracketed_root(guess: Any, plus: Any, minus: Any, stiffness: Any, misfit: Any) -> Any:
    terms = (plus, minus, stiffness, misfit)
    epsilon, close = jnp.finfo(plus.dtype).eps, _close(plus.dtype)
    far = 1 - 2 * epsilon
    # Without the terms of one sign the root would be farther: they bound it.
    length = jnp.abs(misfit)
    side = jnp.where(misfit > 0, plus, minus)
    edge = jnp.where(side > 0, side, jnp.ones_like(side))
    bound = jnp.where(side > 0, 1 - lax.rsqrt(1 + length / edge), jnp.full_like(side, far))
    bound = jnp.minimum(bound, length / stiffness) * (1 + 16 * epsilon)
    bound = jnp.minimum(bound, far)
    low, high = jnp.where(misfit > 0, 0, -bound), jnp.where(misfit > 0, bound, 0)
    t = jnp.where((guess >= low) & (guess <= high), guess, (low + high) / 2)

    def body(state: Any) -> Any:
        low, high, t, quiet, count = state
        value, first, second = _derivatives(t, terms)
        low, high = jnp.where(value < 0, t, low), jnp.where(value < 0, high, t)
        new = t - _halley_step(value, first, second)
        new = jnp.where((new >= low) & (new <= high), new, (low + high) / 2)
        moving = jnp.abs(new - t) > close * jnp.minimum(jnp.abs(new), 1 - jnp.abs(new))
        return low, high, new, jnp.where(any_of(moving), 0, quiet + 1), count + 1

    # The step after the first small one leaves rounding.
    state = (low, high, t, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda s: (s[3] < 2) & (s[4] < _MAX_STEPS), body, state)[2]


def _close(dtype: Any) -> float:
    """Relative step after which one more Halley step, which cubes the error, leaves rounding."""
    return float(jnp.finfo(dtype).eps / 8) ** (1 / 3)


def _derivatives(t: Any, terms: Any) -> tuple[Any, Any, Any]:
    plus, minus, stiffness, misfit = terms
    c = 1 / (1 - t * t)
    up, down = (1 + t) * c, (1 - t) * c
    near, off = plus * up * up, minus * down * down
    value = t * (near * (2 - t) + off * (2 + t) + stiffness) - misfit
    first = 2 * (near * up + off * down) + stiffness
    return value, first, 6 * (near * up * up - off * down * down)


def _halley(t: Any, terms: Any) -> Any:
    return _halley_step(*_derivatives(t, terms))


def _halley_step(value: Any, first: Any, second: Any) -> Any:
    return 2 * value * first / (2 * first * first - value * second)


@_root.defjvp
def _root_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    t = _root(*primals)
    first = _derivatives(t, primals)[1]
    c = 1 / (1 - t * t)
    up, down = (1 + t) * c, (1 - t) * c
    plus, minus, stiffness, misfit = tangents
    moved = t * (up * up * (2 - t) * plus + down * down * (2 + t) * minus + stiffness) - misfit
    return t, -moved / first
