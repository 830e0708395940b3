"""Sums of a whole level: batched matrix products, and log-sums where those lose small terms."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..._batching import any_of

# All functions compute ``log sum_k exp(log_weights[n, j, k] + log_values[n, k, b])``, with
# ``[nodes, out, in]`` and ``[nodes, in, batch]``, of values whose largest of every (node, row) is
# 0 (or all are -inf): `finite_max` taken out. Their derivatives with respect to the log-weights,
# in reverse, are the expected flows. To any order, forward and reverse.


@jax.custom_jvp
def log_matmul(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """The sums as an ordinary matrix product of numbers in [0, 1].

    Right where the weights of every sum are within `weight_range` of its largest, whatever the
    values: the term of the largest value is then a normal number, and all that is lost below the
    normal numbers is less than its rounding. Elsewhere small sums count as zero.

    Differentiation:
        Two matrix products and no exponential or logarithm.
    """
    return _product(log_weights, log_values)[0]


@log_matmul.defjvp
def _log_matmul_jvp(primals, tangents):
    out, *product = _product(*primals)
    return out, _moved(product, tangents)


def exact_log_matmul(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """The sums for any weights: a matrix product unless it loses a possible sum, then term by term.

    Differentiation:
        As the values: by matrix products, or by log-sums.
    """
    return _exact(log_weights, log_values)[0]


@jax.custom_jvp
def log_sums(
    log_weights: Float[Array, "nodes out in"], log_values: Float[Array, "nodes in batch"]
) -> Float[Array, "nodes out batch"]:
    """The sums term by term: right for any weights, slower by a factor that grows with the terms.

    Compiled in half the time of `exact_log_matmul`: for where checking is rarely needed.

    Differentiation:
        By log-sums.
    """
    shape = (*log_weights.shape[:2], log_values.shape[2])
    return _log_sums(log_weights, log_values, jnp.zeros(shape, log_values.dtype))


@log_sums.defjvp
def _log_sums_jvp(primals, tangents):
    out = log_sums(*primals)
    return out, _moved_by_terms((*primals, out), tangents)


@jax.custom_jvp
def _exact(log_weights: Array, log_values: Array) -> tuple[Array, Array]:
    """The sums, and 1 if the product loses some, else 0."""
    out = _product(log_weights, log_values)[0]
    tables = (log_weights, log_values)
    possible = _matmul(*(jnp.logical_not(jnp.isneginf(t)).astype(out.dtype) for t in tables))
    lost = any_of(jnp.logical_and(jnp.isneginf(out), possible > 0))
    return lax.cond(lost, _log_sums, lambda *found: found[2], *tables, out), lost.astype(out.dtype)


@_exact.defjvp
def _exact_jvp(primals, tangents):
    out, lost = _exact(*primals)

    # Only what the branches start from is kept for the backward pass, nothing of their own.
    @partial(jax.checkpoint, prevent_cse=False)
    def moved(lost, numbers, tangents):
        return lax.cond(
            lost > 0,
            _moved_by_terms,
            lambda numbers, tangents: _moved(_product(*numbers[:2])[1:], tangents),
            *(numbers, tangents),
        )

    return (out, lost), (moved(lost, (*primals, out), tangents), jnp.zeros_like(lost))


def finite_max(table: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The largest along an axis, kept with size 1; 0 where all are ``-inf``.

    As a shift it cancels out of the exact value, so no derivative passes through it.
    """
    top = jnp.max(lax.stop_gradient(table), axis=axis, keepdims=True)
    return jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)


class Shifted(NamedTuple):
    """Values as sums of three: with shifts, and what rounding took from these.

    Shifts are added up apart from the values, and what rounding takes from them too: a value that
    grows along a chain would be rounded to its own size at every step, the same way if the steps
    are alike.
    """

    rest: Array
    shift: Array
    rounded: Array

    def grown(self, rest: Array, more: Array) -> "Shifted":
        """Other values, with ``more`` added to the shifts."""
        after = self.shift + more
        part = after - self.shift
        lost = (self.shift - (after - part)) + (more - part)
        return Shifted(rest, after, self.rounded + lost)


def weight_range(terms: int, dtype: jnp.dtype) -> float:
    """How far below its largest a weight of a sum of so many terms may be, nats (negative)."""
    return math.log(_least(terms, dtype))


def _least(terms: int, dtype: jnp.dtype) -> float:
    # Each term loses less than the smallest normal number, so all lose less than half a unit in
    # the last place of this. The root: second derivatives divide by squares.
    info = jnp.finfo(dtype)
    return max(float(info.tiny) * terms * 2 / float(info.eps), float(info.tiny) ** 0.5)


def _product(log_weights: Array, log_values: Array) -> tuple[Array, Array, Array, Array]:
    """The sums, and weights, values and totals of the product; sums below `_least` are 0."""
    values = jnp.exp(log_values)
    weight_shift = finite_max(log_weights, 2)
    weights = jnp.exp(log_weights - weight_shift)
    total = _matmul(weights, values)
    zero = total < _least(values.shape[1], total.dtype)
    total = jnp.where(zero, jnp.ones_like(total), total)
    out = jnp.where(zero, -jnp.inf, jnp.log(total) + weight_shift)
    return out, weights, values, jnp.where(zero, jnp.zeros_like(total), total)


def _moved(product, tangents) -> Array:
    # Linear in the tangents, so its transpose is the backward pass: r = g / total, then
    # weights * (r values^T) and values * (weights^T r).
    weights, values, total = product
    moved = _matmul(weights * tangents[0], values) + _matmul(weights, values * tangents[1])
    zero = total == 0
    return jnp.where(zero, 0.0, 1 / jnp.where(zero, 1.0, total)) * moved


def _terms(*tables: Array) -> tuple[Array, ...]:
    """Tables term by term: of weights ``[in, nodes, out, 1]``, of values ``[in, nodes, 1, batch]``.

    Those of weights are at even places.
    """
    return tuple(
        table.transpose(1, 0, 2)[:, :, None] if k % 2 else table.transpose(2, 0, 1)[..., None]
        for k, table in enumerate(tables)
    )


def _log_sums(log_weights: Array, log_values: Array, out: Array) -> Array:
    # Not all terms at once: that would take as much memory as there are.
    def add(carry, term):
        top, total = carry
        term = term[0] + term[1]
        new = jnp.maximum(top, term)
        shift = jnp.where(jnp.isneginf(new), jnp.zeros_like(new), new)
        return (new, total * jnp.exp(top - shift) + jnp.exp(term - shift)), None

    start = jnp.full_like(out, -jnp.inf), jnp.zeros_like(out)
    (top, total), _ = lax.scan(add, start, _terms(log_weights, log_values))
    return jnp.log(total) + jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)


def _moved_by_terms(numbers, tangents) -> Array:
    log_weights, log_values, out = numbers
    shift = jnp.where(jnp.isneginf(out), jnp.zeros_like(out), out)

    @partial(jax.checkpoint, prevent_cse=False)  # the shares of all terms are not kept
    def add(moved, term):
        weight, value, d_weight, d_value = term
        return moved + jnp.exp(weight + value - shift) * (d_weight + d_value), None

    return lax.scan(add, jnp.zeros_like(out), _terms(log_weights, log_values, *tangents))[0]


def _matmul(a: Array, b: Array) -> Array:
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
