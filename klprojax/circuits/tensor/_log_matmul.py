"""Sums of a whole level as batched matrix products of exp-normalised values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def log_matmul(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """Compute ``log sum_k exp(log_weights[n, j, k] + log_values[n, k, b])``.

    The largest value of every (node, row) is taken out first, so the sum is an ordinary matrix
    product of numbers in [0, 1]. A sum that falls more than 69 nats (float32; 690 in float64)
    below the largest value of its node counts as zero: below that its reciprocal, which the
    derivative needs, would leave the range of the format.

    Differentiation:
        The derivative with respect to the log-weights, in reverse, is the expected flow: two
        matrix products and no exponential or logarithm. To any order, forward and reverse.
    """
    return _forward(log_weights, log_values)[0]


@log_matmul.defjvp
def _log_matmul_jvp(primals, tangents):
    out, weights, values, inverse = _forward(*primals)
    d_weights, d_values = tangents
    # Linear in the tangents, so its transpose is the backward pass: r = inverse * g, then
    # weights * (r values^T) and values * (weights^T r).
    moved = _matmul(weights * d_weights, values) + _matmul(weights, values * d_values)
    return out, inverse * moved


def _forward(log_weights: Array, log_values: Array) -> tuple[Array, Array, Array, Array]:
    shift = _finite_max(log_values, 1)
    values = jnp.exp(log_values - shift)
    weight_shift = _finite_max(log_weights, 2)
    weights = jnp.exp(log_weights - weight_shift)
    total = _matmul(weights, values)
    # 2^24 above the smallest normal number: reciprocals summed over millions of rows stay finite.
    zero = total < jnp.finfo(total.dtype).tiny * 2**24
    total = jnp.where(zero, jnp.ones_like(total), total)
    out = jnp.where(zero, -jnp.inf, jnp.log(total) + (weight_shift + shift))
    inverse = jnp.where(zero, jnp.zeros_like(total), 1 / total)
    return out, weights, values, inverse


def _finite_max(table: Array, axis: int) -> Array:
    # The shift cancels out of the exact value, so no derivative need pass through it.
    top = jnp.max(jax.lax.stop_gradient(table), axis=axis, keepdims=True)
    return jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)


def _matmul(a: Array, b: Array) -> Array:
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
