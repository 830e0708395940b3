"""Sums of a whole level: batched matrix products, and log-sums where those lose small terms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

# Both functions compute ``log sum_k exp(log_weights[n, j, k] + log_values[n, k, b])``, with
# ``[nodes, out, in]`` and ``[nodes, in, batch]``, of values whose largest of every (node, row) is
# 0 (or all are -inf): `finite_max` taken out.


@jax.custom_jvp
def log_matmul(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """The sums as an ordinary matrix product of numbers in [0, 1].

    Right where the weights of every sum are within `weight_range` of its largest, whatever the
    values: the term of the largest value is then a normal number, and all that is lost below the
    normal numbers is less than its rounding. Elsewhere small sums may count as zero; see
    `loses` and `log_sums`.

    Differentiation:
        The derivative with respect to the log-weights, in reverse, is the expected flow: two
        matrix products and no exponential or logarithm. To any order, forward and reverse.
    """
    return _product(log_weights, log_values)[0]


@log_matmul.defjvp
def _log_matmul_jvp(primals, tangents):
    out, weights, values, total = _product(*primals)
    return out, _moved(weights, values, total, *tangents)


@jax.custom_jvp
def log_sums(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """The same for any weights, term by term: all at once would take as much memory as there are.

    Differentiation:
        As `log_matmul`.
    """

    def add(carry, term):
        top, total = carry
        new = term[0] + term[1]
        above = jnp.maximum(top, new)
        shift = jnp.where(jnp.isneginf(above), jnp.zeros_like(above), above)
        return (above, total * jnp.exp(top - shift) + jnp.exp(new - shift)), None

    shape = (*log_weights.shape[:2], log_values.shape[2])
    zero = jnp.zeros(shape, log_values.dtype)
    (top, total), _ = lax.scan(add, (zero - jnp.inf, zero), _terms(log_weights, log_values))
    return jnp.log(total) + jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)


@log_sums.defjvp
def _log_sums_jvp(primals, tangents):
    out = log_sums(*primals)
    shift = jnp.where(jnp.isneginf(out), jnp.zeros_like(out), out)

    @partial(jax.checkpoint, prevent_cse=False)  # the shares of all terms are not kept
    def add(moved, term):
        weight, value, d_weight, d_value = term
        return moved + jnp.exp(weight + value - shift) * (d_weight + d_value), None

    moved, _ = lax.scan(add, jnp.zeros_like(out), _terms(*primals, *tangents))
    return out, moved


def loses(
    log_weights: Float[Array, "nodes out in"],
    log_values: Float[Array, "nodes in batch"],
    out: Float[Array, "nodes out batch"],
) -> Bool[Array, ""]:
    """Whether a result of `log_matmul` is ``-inf`` though one of its terms is possible."""
    tables = lax.stop_gradient((log_weights, log_values))
    terms = _matmul(*(jnp.logical_not(jnp.isneginf(t)).astype(out.dtype) for t in tables))
    return any_of(jnp.logical_and(jnp.isneginf(lax.stop_gradient(out)), terms > 0))


def finite_max(table: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The largest along an axis, kept with size 1; 0 where all are ``-inf``.

    As a shift it cancels out of the exact value, so no derivative passes through it.
    """
    top = jnp.max(lax.stop_gradient(table), axis=axis, keepdims=True)
    return jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)


def weight_range(terms: int, dtype: jnp.dtype) -> float:
    """How far below its largest a weight of a sum of so many terms may be, nats (negative)."""
    return math.log(_least(terms, dtype))


@custom_vmap
def any_of(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether any flag is set, of all elements of a map: a branch on it stays a branch."""
    return jnp.any(flags)


@any_of.def_vmap
def _any_of_mapped(size, mapped, flags):
    del size, mapped
    return any_of(flags), False


def _least(terms: int, dtype: jnp.dtype) -> float:
    # Each term loses less than the smallest normal number, so all lose less than half a unit in
    # the last place of this; and reciprocals summed over millions of rows stay finite.
    info = jnp.finfo(dtype)
    return float(info.tiny) * terms * 2 / float(info.eps)


def _product(log_weights: Array, log_values: Array) -> tuple[Array, Array, Array, Array]:
    values = jnp.exp(log_values)
    weight_shift = finite_max(log_weights, 2)
    weights = jnp.exp(log_weights - weight_shift)
    total = _matmul(weights, values)
    zero = total < _least(values.shape[1], total.dtype)
    total = jnp.where(zero, jnp.ones_like(total), total)
    out = jnp.where(zero, -jnp.inf, jnp.log(total) + weight_shift)
    return out, weights, values, jnp.where(zero, jnp.zeros_like(total), total)


def _moved(weights, values, total, d_weights, d_values) -> Array:
    # Linear in the tangents, so its transpose is the backward pass: r = g / total, then
    # weights * (r values^T) and values * (weights^T r).
    moved = _matmul(weights * d_weights, values) + _matmul(weights, values * d_values)
    return _reciprocal(total) * moved


@jax.custom_jvp
def _reciprocal(total: Array) -> Array:
    """``1 / total``, 0 where it is 0; no derivative squares it, which would overflow."""
    zero = total == 0
    return jnp.where(zero, jnp.zeros_like(total), 1 / jnp.where(zero, 1.0, total))


@_reciprocal.defjvp
def _reciprocal_jvp(primals, tangents):
    own = _reciprocal(*primals)
    return own, -own * (own * tangents[0])


def _terms(*tables: Array) -> tuple[Array, ...]:
    """Tables term by term: of weights ``[in, nodes, out, 1]``, of values ``[in, nodes, 1, batch]``.

    Those of weights are at even places.
    """
    return tuple(
        table.transpose(1, 0, 2)[:, :, None] if k % 2 else table.transpose(2, 0, 1)[..., None]
        for k, table in enumerate(tables)
    )


def _matmul(a: Array, b: Array) -> Array:
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
