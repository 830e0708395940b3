"""Sequential and tree schedules: batches of factors, each seeing the messages of earlier ones."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._types import FactorTables
from ..graphs import FactorGraph
from ._engines import AbstractEngine, message_change, outgrown
from ._messages import Messages, Semiring, Total, damp, outgoing, reach, split, totals
from ._schedules import Batches


class BatchSweep(AbstractEngine):
    """One step goes through all batches in order, in the log domain, `-inf` included."""

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)
    batches: Batches

    def prepare(self, graph, tables, log_evidence):
        """Graph, tables and evidence as they are, the batches, and the tables' reach."""
        return graph, tables, log_evidence, self.batches, reach(graph, tables, log_evidence)

    def load(self, graph, messages):
        """The messages themselves."""
        return messages

    def store(self, graph, carry):
        """The messages themselves."""
        return carry

    def step(self, inputs, carry):
        """Update the messages out of every factor, batch by batch."""
        graph, tables, log_evidence, batches, _ = inputs

        def one(state, batch):
            messages, at_variables = state
            return self._update(graph, tables, messages, at_variables, batch), None

        # Totals start afresh each step, so rounding of the running sums does not pile up.
        start = (carry, totals(graph, carry, log_evidence))
        (messages, _), _ = lax.scan(one, start, batches)
        return messages

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        return message_change(new, old, inputs[-1])

    def diverged(self, carry):
        """See `AbstractEngine.diverged`."""
        return outgrown(carry)

    def _update(
        self,
        graph: FactorGraph,
        tables: FactorTables,
        messages: Messages,
        at_variables: tuple[Total, ...],
        batch: tuple[Array, ...],
    ) -> tuple[Messages, tuple[Total, ...]]:
        """Recompute all messages out of one batch's factors and add them to the totals."""
        messages_after, after = list(messages), list(at_variables)
        for group, blocks, table, index in zip(
            graph.signature.groups, graph.edge_blocks, tables, batch, strict=True
        ):
            # Padding has index group.count: reads are clamped, writes are dropped.
            real = index < group.count
            read = jnp.minimum(index, group.count - 1)
            some = table if table.shape[0] == 1 else table[read]
            rows = [jnp.asarray(graph.wiring.edges[c])[start + read] for c, start in blocks]
            old = [messages[c][start + read] for c, start in blocks]
            incoming = tuple(
                at_variables[c].rows(row).without(split(was))
                for (c, _), row, was in zip(blocks, rows, old, strict=True)
            )
            proposed = outgoing(group, some, incoming, self.semiring)
            for (c, start), row, was, new in zip(blocks, rows, old, proposed, strict=True):
                new = damp(new, was, self.damping)
                edge = jnp.where(real, start + index, messages[c].shape[0])
                messages_after[c] = messages_after[c].at[edge].set(new, mode="drop")
                where = jnp.where(real, row, graph.signature.counts[c])
                plus, minus = split(new), split(was)
                after[c] = Total(
                    after[c].finite.at[where].add(plus.finite - minus.finite, mode="drop"),
                    after[c].zeros.at[where].add(plus.zeros - minus.zeros, mode="drop"),
                )
        return tuple(messages_after), tuple(after)
