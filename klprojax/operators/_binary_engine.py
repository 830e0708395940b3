"""Flooding on binary pairwise graphs: one log-odds number per message.

With ``l`` the log-odds of the message that enters a factor ``exp(J)`` from the other variable, the
message that leaves is ``b + softplus(p + l) - softplus(q + l)``, where ``p = J11 - J10``,
``q = J01 - J00`` (first index: the receiving variable) and ``b = J10 - J00``.

Messages sit in slots ``[degree, variables]``, so the sum at a variable runs over the long axis
untouched, and each message needs a single gather: the cavity field at the other end.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..graphs import FactorGraph
from ._engines import AbstractEngine
from ._messages import Semiring, largest, reach, tail


class BinaryFlooding(AbstractEngine):
    """Flooding for graphs of binary variables with factors on one or two of them.

    Right for all finite tables of any size; evidence may be `-inf`.
    """

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)

    @staticmethod
    def suits(graph: FactorGraph) -> bool:
        """Whether the graph has the structure, and slots were laid out for it."""
        return graph.wiring.slots.shape[0] > 0

    def prepare(self, graph, tables, log_evidence):
        """Evidence and unary factors as fields; per slot, the three numbers of its factor."""
        wiring = graph.wiring
        dtype = tables[0].dtype
        field = jnp.zeros(graph.signature.counts[0], dtype)
        if log_evidence is not None:
            field = field + log_odds(log_evidence[0])
        unary, entries = [], []
        for group, table, blocks in zip(
            graph.signature.groups, tables, graph.edge_blocks, strict=True
        ):
            table = jnp.broadcast_to(table, (group.count, *group.shape))
            if len(blocks) == 1:
                unary.append(log_odds(table))
                entries.append(jnp.zeros((group.count, 4), dtype))
            elif len(blocks) == 2:
                entries += [table.reshape(-1, 4), jnp.swapaxes(table, 1, 2).reshape(-1, 4)]
        # Padding slots belong to a factor that says nothing.
        entries.append(jnp.zeros((1, 4), dtype))
        at_slots = jnp.concatenate(entries).T[:, wiring.slots]
        j00, j01, j10, j11 = lax.optimization_barrier(at_slots)
        p, q, b = j11 - j10, j01 - j00, j10 - j00
        constant = jnp.concatenate([*unary, jnp.zeros(0, dtype)])
        at_variables = self._at_variables(graph, constant)
        span = reach(graph, tables, log_evidence, finite=True)
        return p, q, b, field, wiring.reverse, constant, at_variables, span

    def load(self, graph, messages):
        """Log-odds by slot, those of unary factors by edge and summed by variable."""
        odds = log_odds(messages[0])
        slots = jnp.concatenate([odds, jnp.zeros(1, odds.dtype)])[graph.wiring.slots]
        unary = jnp.concatenate([odds[part] for part in _unary_edges(graph)] or [odds[:0]])
        return slots, unary, self._at_variables(graph, unary)

    def store(self, graph, carry):
        """Log-messages by edge."""
        slots, unary, _ = carry
        edges = jnp.zeros(graph.wiring.edges[0].shape[0] + 1, slots.dtype)
        odds = edges.at[graph.wiring.slots].set(slots)[:-1]
        at = 0
        for part in _unary_edges(graph):
            size = part.stop - part.start
            odds = odds.at[part].set(unary[at : at + size])
            at += size
        return (jnp.stack([-jax.nn.softplus(odds), -jax.nn.softplus(-odds)], axis=1),)

    def step(self, inputs, carry):
        """Update every message."""
        p, q, b, field, reverse, constant, constant_sum, _ = inputs
        slots, unary, unary_sum = carry
        degree = slots.shape[0]
        # Sums of all messages but one, without subtraction: exact, and `inf` stays harmless.
        before, after = [field + unary_sum], [jnp.zeros_like(field)]
        for d in range(degree - 1):
            before.append(before[-1] + slots[d])
            after.append(after[-1] + slots[degree - 1 - d])
        cavity = jnp.stack([x + y for x, y in zip(before, reversed(after), strict=True)])
        odds = cavity.reshape(-1)[reverse]
        new = b + _softplus_difference(self.semiring, p, q, odds)
        damp = (lambda x, old: x) if self.damping == 0.0 else self._damp
        return damp(new, slots), damp(constant, unary), damp(constant_sum, unary_sum)

    def _damp(self, new, old):
        return (1.0 - self.damping) * new + self.damping * old

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        span = inputs[-1]
        parts = []
        for a, b in zip(new[:2], old[:2], strict=True):
            parts.append(jnp.abs(jax.nn.sigmoid(a) - jax.nn.sigmoid(b)))
            for sign in (1.0, -1.0):
                parts.append(jnp.abs(tail(sign * a, span) - tail(sign * b, span)))
        return largest(parts, new[0].dtype)

    @staticmethod
    def _at_variables(graph, unary):
        total = jnp.zeros(graph.signature.counts[0], unary.dtype)
        at = 0
        for part in _unary_edges(graph):
            size = part.stop - part.start
            total = total.at[graph.wiring.edges[0][part]].add(unary[at : at + size])
            at += size
        return total

    def sends_finite(self, graph):
        """See `AbstractEngine.sends_finite`."""
        del graph
        return True

    def is_safe(self, graph, tables, log_evidence):
        """Whether all tables are finite."""
        del graph, log_evidence
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(table)) for table in tables]))


def _unary_edges(graph: FactorGraph) -> list[slice]:
    return [
        slice(blocks[0][1], blocks[0][1] + group.count)
        for group, blocks in zip(graph.signature.groups, graph.edge_blocks, strict=True)
        if len(blocks) == 1
    ]


def log_odds(log_table: Float[Array, "rows 2"]) -> Float[Array, " rows"]:
    """``log m(1) - log m(0)``; 0 when both are `-inf`, which the beliefs report."""
    neither = jnp.all(jnp.isneginf(log_table), axis=1)
    log_table = jnp.where(neither[:, None], 0.0, log_table)
    return log_table[:, 1] - log_table[:, 0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softplus_difference(semiring: Semiring, p: Array, q: Array, odds: Array) -> Array:
    """``softplus(p + l) - softplus(q + l)``, or of ``max(x, 0)``, right for ``l = ±inf``.

    For positive ``l`` it is ``p - q + softplus(-p - l) - softplus(-q - l)``, so both arguments are
    ``±p - |l|`` and never infinite of unlike sign.
    """
    positive = odds > 0
    size = jnp.abs(odds)
    x = jnp.where(positive, -p, p) - size
    y = jnp.where(positive, -q, q) - size
    head = jnp.where(positive, p - q, 0.0) + jnp.maximum(x, 0.0) - jnp.maximum(y, 0.0)
    if semiring == "max":
        return head
    return head + jnp.log((1.0 + jnp.exp(-jnp.abs(x))) / (1.0 + jnp.exp(-jnp.abs(y))))


@_softplus_difference.defjvp
def _softplus_difference_jvp(semiring, primals, tangents):
    p, q, odds = primals
    dp, dq, dodds = tangents
    gate = jax.nn.sigmoid if semiring == "sum" else _step
    with_p, with_q = gate(p + odds), gate(q + odds)
    value = _softplus_difference(semiring, p, q, odds)
    return value, with_p * dp - with_q * dq + (with_p - with_q) * dodds


def _step(x: Array) -> Array:
    return jnp.where(x > 0, 1.0, jnp.where(x < 0, 0.0, 0.5)).astype(x.dtype)
