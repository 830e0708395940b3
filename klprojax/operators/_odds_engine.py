"""Flooding on binary pairwise graphs without logarithms: one odds number per message.

With ``o`` the odds of the message that enters a factor ``exp(J)``, the message that leaves has the
odds ``(a + b o) / (1 + d o)``, where ``a = exp(J10 - J00)``, ``b = exp(J11 - J00)`` and
``d = exp(J01 - J00)`` (first index: the receiving variable). Messages multiply at a variable. A
step is then a handful of products and one division a message, cheaper than log-odds.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from ._binary_engine import BinaryFlooding, log_odds
from ._engines import AbstractEngine
from ._messages import Semiring


class OddsFlooding(AbstractEngine):
    """`BinaryFlooding` in linear space: sum-product without damping, numbers of moderate range.

    `is_safe` asks that no product of messages at a variable can leave the float type's range.
    """

    semiring: Semiring = eqx.field(static=True, default="sum")
    damping: float = eqx.field(static=True, default=0.0)

    @property
    def _logarithmic(self) -> BinaryFlooding:
        return BinaryFlooding(self.semiring, self.damping)

    def prepare(self, graph, tables, log_evidence):
        """The exponentials of what the log-odds engine reads."""
        p, q, b, field, reverse, constant, constant_sum, span = self._logarithmic.prepare(
            graph, tables, log_evidence
        )
        a, b, d = jnp.exp(b), jnp.exp(b + p), jnp.exp(q)
        return a, b, d, jnp.exp(field), reverse, constant, jnp.exp(constant_sum), span

    def load(self, graph, messages):
        """Odds by slot; those of unary factors as log-odds by edge and multiplied by variable."""
        slots, unary, unary_sum = self._logarithmic.load(graph, messages)
        return jnp.exp(slots), unary, jnp.exp(unary_sum)

    def store(self, graph, carry):
        """Log-messages by edge."""
        slots, unary, product = carry
        return self._logarithmic.store(graph, (jnp.log(slots), unary, product))

    def step(self, inputs, carry):
        """Update every message."""
        a, b, d, field, reverse, constant, constant_product, _ = inputs
        slots, _, unary_product = carry
        degree = slots.shape[0]
        # Products of all messages but one, without division.
        before, after = [field * unary_product], [jnp.ones_like(field)]
        for k in range(degree - 1):
            before.append(before[-1] * slots[k])
            after.append(after[-1] * slots[degree - 1 - k])
        cavity = jnp.concatenate([x * y for x, y in zip(before, reversed(after), strict=True)])
        # Written out before it is gathered: fused, each product would be computed once a read.
        odds = lax.optimization_barrier(cavity)[reverse]
        return (a + b * odds) / (1.0 + d * odds), constant, constant_product

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        logarithms = [(jnp.log(slots), *rest) for slots, *rest in (new, old)]
        return self._logarithmic.change(inputs, *logarithms)

    def sends_finite(self, graph):
        """See `AbstractEngine.sends_finite`."""
        del graph
        return True

    def is_safe(self, graph, tables, log_evidence):
        """Whether the largest possible log-odds stay in range, products of three of them too."""
        if not tables:
            return jnp.bool_(True)
        dtype = tables[0].dtype
        field = jnp.zeros(graph.signature.counts[0], dtype)
        if log_evidence is not None:
            field = jnp.abs(log_odds(log_evidence[0]))
        widest = jnp.zeros((), dtype)
        for group, table, blocks in zip(
            graph.signature.groups, tables, graph.edge_blocks, strict=True
        ):
            table = jnp.broadcast_to(table, (group.count, *group.shape))
            if len(blocks) == 1:
                rows = graph.wiring.edges[0][blocks[0][1] : blocks[0][1] + group.count]
                field = field.at[rows].add(jnp.abs(log_odds(table)))
            elif len(blocks) == 2:
                # |log a|, |log b|, |log d|: entries against the first.
                spans = jnp.abs(table - table[:, :1, :1])
                widest = jnp.maximum(widest, jnp.max(spans, initial=0.0))
        # A message is within twice the widest of 0: (a + b o) / (1 + d o) lies between a and b / d.
        degree = graph.wiring.slots.shape[0]
        reach = jnp.max(field, initial=0.0) + (2.0 * degree + 2.0) * widest
        return reach < 0.9 * math.log(float(jnp.finfo(dtype).max))
