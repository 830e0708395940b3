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

    Newton's method; the Hessian `ω + diag(p) - p pᵀ` is inverted by the Sherman-Morrison formula.
    The third derivative of logsumexp along v is at most `sqrt(2)|v|` times the second, so the step
    length `log(1 + d)/d`, `d = sqrt(2)|step|`, lowers the objective from every start, without a
    line search, and tends to 1.

    Args:
        logits: where the rows are.
        probs: target distributions (linear space), rows that sum to 1.
        precision: ω > 0, a scalar or one for each row `[batch, 1]`.

    Returns:
        The minimisers. They exist and are unique.

    Differentiation: by the implicit function theorem, forward and reverse.

    Reference: Sun and Tran-Dinh, "Generalized self-concordant functions" (2019), for the step.
    """
    omega = jnp.broadcast_to(jnp.asarray(precision, logits.dtype), (logits.shape[0], 1))
    epsilon = jnp.finfo(logits.dtype).eps
    tolerance = jnp.sqrt(epsilon) / 16

    def newton_step(x: Any, logits: Any, probs: Any, omega: Any, at: Any) -> Any:
        gradient = omega * (x - logits) + jax.nn.softmax(x, axis=-1) - probs
        p = jax.nn.softmax(at, axis=-1)
        diagonal = omega + p
        scaled, q = gradient / diagonal, p / diagonal
        # 1 - p·q without cancellation: Σ p (1 - q), and 1 - q = ω/(ω + p).
        rest = jnp.sum(p * (omega / diagonal), axis=-1, keepdims=True)
        return -(scaled + q * jnp.sum(p * scaled, axis=-1, keepdims=True) / rest)

    fixed = lax.stop_gradient((logits, probs, omega))

    def body(state: Any) -> Any:
        x, _, count = state
        step = newton_step(x, *fixed, x)
        length = jnp.sqrt(2 * jnp.sum(step**2, axis=-1, keepdims=True))
        safe = jnp.where(length > 0, length, jnp.ones_like(length))
        damping = jnp.where(length > 0, jnp.log1p(safe) / safe, jnp.ones_like(length))
        moving = jnp.max(jnp.abs(step) - tolerance * (1 + jnp.abs(x))) > 0
        return x + damping * step, moving, count + 1

    state = (fixed[0], jnp.asarray(True), jnp.zeros((), jnp.int32))
    found = lax.stop_gradient(lax.while_loop(lambda s: s[1] & (s[2] < _MAX_STEPS), body, state)[0])
    return found + newton_step(found, logits, probs, omega, found)
