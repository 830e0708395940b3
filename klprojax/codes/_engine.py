"""Flooding belief propagation on parity checks only: one log-odds number per message.

The same iterates as `BeliefPropagation` on a graph of hard `Parity` factors, for many words at
once. Words are the last axis, so every step is arithmetic on long rows and a gather moves whole
rows. ``log_odds`` always means ``log P(bit = 0) - log P(bit = 1)``.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..graphs import FactorGraph
from ..operators._messages import Semiring
from ..operators._structured import box_plus_others

# A check of this many bits can double a weight at each, which the fast update must have room for.
_MOST_FAST_BITS = 64
# Up to here the fast update is written out bit by bit; longer checks are scanned.
_MOST_UNROLLED_BITS = 8


def blocks(graph: FactorGraph) -> Iterator[tuple[int, int, int]]:
    """First edge, arity and number of the checks of each group."""
    for group, axes in zip(graph.signature.groups, graph.edge_blocks, strict=True):
        yield axes[0][1], len(group.shape), group.count


def sums_at_variables(
    graph: FactorGraph, terms: Float[Array, "edges words"]
) -> Float[Array, "variables words"]:
    """Add up what arrives at each variable."""
    (rows,), (incoming,) = graph.wiring.edges, graph.wiring.incoming
    (degree,), (count,) = graph.signature.degrees, graph.signature.counts
    if degree * count == len(terms) > 0:  # every variable in equally many checks: no padding
        parts = [terms.at[incoming[k]].get(mode="promise_in_bounds") for k in range(degree)]
        return sum(parts[1:], parts[0])
    if degree:
        parts = [terms.at[incoming[k]].get(mode="fill", fill_value=0) for k in range(degree)]
        return sum(parts[1:], parts[0])
    return jnp.zeros((count, terms.shape[1]), terms.dtype).at[rows].add(terms)


def at_edges(graph: FactorGraph, table: Array) -> Array:
    """Rows of a table over variables, one per edge."""
    return table.at[graph.wiring.edges[0]].get(mode="promise_in_bounds")


def satisfied(graph: FactorGraph, bits: Bool[Array, "variables words"]) -> Bool[Array, " words"]:
    """Whether every check has an even number of its bits on."""
    met = jnp.ones(bits.shape[1], bool)
    seen = at_edges(graph, bits.astype(jnp.uint8))
    for start, arity, count in blocks(graph):
        some = seen[start : start + arity * count].reshape(arity, count, -1)
        odd = jnp.sum(some, axis=0, dtype=jnp.uint8) & jnp.uint8(1)
        met &= jnp.max(odd, axis=0) == 0
    return met


def update(
    graph: FactorGraph,
    log_odds: Float[Array, "variables words"],
    totals: Float[Array, "variables words"],
    messages: Float[Array, "edges words"],
    frozen: Bool[Array, " words"],
    semiring: Semiring,
) -> Float[Array, "edges words"]:
    """Messages from the checks after one more step; ``frozen`` words may get anything.

    Args:
        log_odds: of the channel.
        totals: ``log_odds`` plus all messages; NaN where certain messages contradict.
        messages: from the checks to their bits.
    """

    def careful():
        cavity = _certain_cavities(graph, log_odds, messages)
        parts = []
        for start, arity, count in blocks(graph):
            some = cavity[start : start + arity * count].reshape(arity, count, -1)
            even = jnp.full(some.shape[1:], jnp.inf, some.dtype)
            parts.append(box_plus_others(some, even, semiring).reshape(arity * count, -1))
        return jnp.concatenate(parts)

    if semiring == "max" or any(arity > _MOST_FAST_BITS for _, arity, _ in blocks(graph)):
        return careful()
    cavity = at_edges(graph, totals) - messages
    parts = [
        _fast_check(cavity[start : start + arity * count].reshape(arity, count, -1)).reshape(
            arity * count, -1
        )
        for start, arity, count in blocks(graph)
    ]
    fast = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    # A result within this limit shows that no weight it depends on underflowed: those that did
    # are below its rounding. NaN, from certain bits, compares false.
    info = jnp.finfo(fast.dtype)
    limit = math.log(float(info.eps)) - math.log(float(info.smallest_normal))
    right = frozen | (jnp.max(jnp.abs(fast), axis=0) <= limit)
    return lax.cond(jnp.all(right), lambda: fast, careful)


def _certain_cavities(graph, log_odds, messages):
    """Messages to the checks where log-odds may be ±inf: certainties are counted, not added."""

    def split(table):
        certain = jnp.isinf(table)
        finite = jnp.where(certain, 0.0, table)
        counted = (
            jnp.where(certain & (table > 0), 1.0, 0.0),
            jnp.where(certain & (table < 0), 1.0, 0.0),
        )
        return [finite, *(part.astype(table.dtype) for part in counted)]

    finite, zeros, ones = (
        at_edges(graph, own + sums_at_variables(graph, terms)) - terms
        for own, terms in zip(split(log_odds), split(messages), strict=True)
    )
    # A bit that is certainly 0 and certainly 1 has no meaning: it says nothing.
    known = jnp.where(zeros > 0, jnp.where(ones > 0, 0.0, jnp.inf), -jnp.inf)
    return jnp.where((zeros > 0) | (ones > 0), known.astype(finite.dtype), finite)


def _fast_check(cavity: Float[Array, "arity checks words"]) -> Float[Array, "arity checks words"]:
    """All messages of checks in linear space: weights (even, odd) of the other bits' sums.

    Each bit's larger weight is 1. Sums and products of non-negative numbers only, so the smaller
    weight keeps its relative accuracy until it underflows.
    """
    weight = jnp.exp(-jnp.abs(cavity))
    zero = cavity >= 0
    one = jnp.ones_like(weight)
    bits = jnp.where(zero, one, weight), jnp.where(zero, weight, one)
    arity = len(cavity)
    if arity > _MOST_UNROLLED_BITS:
        start = (jnp.ones_like(cavity[0]), jnp.zeros_like(cavity[0]))

        def forward(before, bit):
            return _sum_weights(before, bit), before

        def backward(after, item):
            bit, before = item
            even, odd = _sum_weights(after, before)
            return _sum_weights(after, bit), jnp.log(even / odd)

        _, before = lax.scan(forward, start, bits)
        return lax.scan(backward, start, (bits, before), reverse=True)[1]
    each = [(bits[0][a], bits[1][a]) for a in range(arity)]
    if arity == 1:
        return jnp.full_like(cavity, jnp.inf)
    before = [each[0]]
    for bit in each[1:-1]:
        before.append(_sum_weights(before[-1], bit))
    out = [before[-1]]
    after = each[-1]
    for a in range(arity - 2, 0, -1):
        out.append(_sum_weights(before[a - 1], after))
        after = _sum_weights(after, each[a])
    out.append(after)
    return jnp.log(jnp.stack([even / odd for even, odd in reversed(out)]))


def _sum_weights(a, b):
    return a[0] * b[0] + a[1] * b[1], a[0] * b[1] + a[1] * b[0]
