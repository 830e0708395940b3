"""The proximal step of the softmax cross-entropy."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_MAX_STEPS = 100


def cross_entropy_proximal(
    logits: Float[Array, "batch classes"],
    probs: Float[Array, "batch classes"],
    precision: Any = 1.0,
) -> Float[Array, "batch classes"]:
    """Minimise `ω/2 |x - logits|² + logsumexp(x) - probs·x` for every row.

    With c = logsumexp(x) and p = softmax(x) the minimiser obeys `x + p/ω = b`, `b = logits +
    probs/ω`, so every `p_k/ω` is the Wright omega function of `b_k - c - log ω`, and c is the root
    of `Σ p(c) = 1`: one number per row. The sum is convex and decreasing in c; Newton's method from
    `max b - 1/ω`, which lies below the root, rises to it and needs no line search. One Newton step
    in x, whose Hessian `ω + diag(p) - p pᵀ` is inverted by the Sherman-Morrison formula, takes the
    rest of the error and carries the derivative.

    Args:
        logits: where the rows are.
        probs: target distributions (linear space), rows that sum to 1.
        precision: ω > 0, a scalar or one for each row `[batch, 1]`.

    Returns:
        The minimisers. They exist and are unique.

    Differentiation: by the implicit function theorem, forward and reverse.

    Reference: Corless and Jeffrey, "The Wright ω function" (2002).
    """
    omega = jnp.broadcast_to(jnp.asarray(precision, logits.dtype), (logits.shape[0], 1))

    def newton_step(x: Any, logits: Any, probs: Any, omega: Any, at: Any) -> Any:
        gradient = omega * (x - logits) + jax.nn.softmax(x, axis=-1) - probs
        p = jax.nn.softmax(at, axis=-1)
        diagonal = omega + p
        scaled, q = gradient / diagonal, p / diagonal
        # 1 - p·q without cancellation: Σ p (1 - q), and 1 - q = ω/(ω + p).
        rest = jnp.sum(p * (omega / diagonal), axis=-1, keepdims=True)
        return -(scaled + q * jnp.sum(p * scaled, axis=-1, keepdims=True) / rest)

    found = lax.stop_gradient(_minimiser(*lax.stop_gradient((logits, probs, omega))))
    return found + newton_step(found, logits, probs, omega, found)


def _minimiser(logits: Any, probs: Any, omega: Any) -> Any:
    """The minimiser to about half the digits; see `cross_entropy_proximal`."""
    target = logits + probs / omega
    top = jnp.max(target, axis=-1, keepdims=True)
    shifted = target - top - jnp.log(omega)  # c, too, is counted from the top
    epsilon = jnp.finfo(logits.dtype).eps
    tolerance = jnp.sqrt(epsilon) / 16

    def body(state: Any) -> Any:
        level, _, count = state
        shares = _wright_omega(shifted - level)
        slope = jnp.sum(shares / (1 + shares), axis=-1, keepdims=True)
        step = (jnp.sum(shares, axis=-1, keepdims=True) - 1 / omega) / slope
        moving = jnp.max(jnp.abs(step) - tolerance - 4 * epsilon * jnp.abs(level)) > 0
        return level + step, moving, count + 1

    state = (-1 / omega, jnp.asarray(True), jnp.zeros((), jnp.int32))
    level = lax.while_loop(lambda s: s[1] & (s[2] < _MAX_STEPS), body, state)[0]
    return target - _wright_omega(shifted - level)


def _wright_omega(v: Any) -> Any:
    """The root w of `w + log w = v`, to half the digits of a double."""
    # In log w the equation is convex, and this start lies above its root.
    log_w = jnp.where(v > 1, jnp.log(jnp.maximum(v, 1)), v)
    for _ in range(4):
        w = jnp.exp(log_w)
        log_w = log_w - (w + log_w - v) / (1 + w)
    return jnp.exp(log_w)
