"""How one step of belief propagation is computed: engines chosen by structure and schedule.

An engine turns potentials into what its step reads (`prepare`), messages into the state its step
carries (`load`, `store`), and does the step. All compute the same iterates up to rounding.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._types import FactorTables, VariableTables
from ..geometry import log_normalize, safe_log
from ..graphs import FactorGraph, GroupSignature
from ._messages import (
    Messages,
    Semiring,
    by_class,
    by_group,
    cavities,
    change,
    damp,
    largest,
    log_mass,
    outgoing,
    plain_tables,
    reach,
    spans_of,
    totals,
)


class AbstractEngine(eqx.Module):
    """Contract of an engine.

    Attributes:
        semiring: ``"sum"`` or ``"max"``.
        damping: weight of the old message.
    """

    semiring: eqx.AbstractVar[Semiring]
    damping: eqx.AbstractVar[float]

    @abc.abstractmethod
    def prepare(
        self, graph: FactorGraph, tables: FactorTables, log_evidence: VariableTables | None
    ) -> Any:
        """All that `step` reads, as a pytree; done once, outside the loop."""

    @abc.abstractmethod
    def load(self, graph: FactorGraph, messages: Messages) -> Any:
        """The carry of the loop from log-messages."""

    @abc.abstractmethod
    def store(self, graph: FactorGraph, carry: Any) -> Messages:
        """Log-messages, gauge logsumexp = 0, from the carry."""

    @abc.abstractmethod
    def step(self, inputs: Any, carry: Any) -> Any:
        """One step of the schedule."""

    @abc.abstractmethod
    def change(self, inputs: Any, new: Any, old: Any) -> Float[Array, ""]:
        """Largest change of a message between two carries, see `_messages.change`."""

    def diverged(self, carry: Any) -> Bool[Array, ""]:
        """Whether messages have grown beyond all use.

        Messages of finite tables are bounded by the tables' range; zeros let them grow from step to
        step until they overflow, and would then look like exclusions.
        """
        del carry
        return jnp.bool_(False)

    def log_mass(
        self,
        group: GroupSignature,
        table: Float[Array, "..."],
        incoming: tuple[Array, ...],
        semiring: Semiring,
    ) -> Float[Array, " factors"]:
        """See `_messages.log_mass`."""
        return log_mass(group, table, incoming, semiring)

    def log_partition(self, carry: Any) -> Float[Array, ""] | None:
        """The log-partition (nats) where the step computes it; None leaves it to the Bethe form."""
        del carry
        return None

    def sends_finite(self, graph: FactorGraph) -> bool:
        """Whether no message is `-inf` where the numbers are safe and the start was finite."""
        del graph
        return False

    def is_safe(
        self, graph: FactorGraph, tables: FactorTables, log_evidence: VariableTables | None
    ) -> Bool[Array, ""]:
        """Whether this engine's numbers are right for these tables."""
        del graph, tables, log_evidence
        return jnp.bool_(True)


class LogFlooding(AbstractEngine):
    """Flooding in the log domain: any graph, any potentials, `-inf` included.

    With ``threshold`` only messages whose change reaches that fraction of the largest are updated.
    """

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)
    threshold: float | None = eqx.field(static=True, default=None)

    def prepare(self, graph, tables, log_evidence):
        """Graph, tables and evidence as they are, and the tables' reach."""
        return graph, tables, log_evidence, reach(graph, tables, log_evidence)

    def load(self, graph, messages):
        """The messages themselves."""
        return messages

    def store(self, graph, carry):
        """The messages themselves."""
        return carry

    def step(self, inputs, carry):
        """Update every message, or those that change most."""
        graph, tables, log_evidence, span = inputs
        proposed = _flood(graph, tables, log_evidence, carry, self._outgoing, finite=False)
        proposed = tuple(
            damp(new, old, self.damping) for new, old in zip(proposed, carry, strict=True)
        )
        if self.threshold is None or not proposed:
            return proposed
        changes = [change(new, old, span) for new, old in zip(proposed, carry, strict=True)]
        bar = self.threshold * lax.stop_gradient(largest(changes, proposed[0].dtype))
        return tuple(
            jnp.where((by >= bar)[:, None], new, old)
            for new, old, by in zip(proposed, carry, changes, strict=True)
        )

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        return message_change(new, old, inputs[-1])

    def diverged(self, carry):
        """See `AbstractEngine.diverged`."""
        return outgrown(carry)

    def _outgoing(self, group: GroupSignature, table: Array, incoming: tuple[Array, ...]):
        return outgoing(group, table, incoming, self.semiring)


class LinearFlooding(AbstractEngine):
    """Flooding with tables exponentiated once: products and sums in linear space, logs per message.

    Right when every table is finite and its range stays within the float type's, `is_safe`: a
    cavity message is scaled to maximum 1, so an outgoing sum is at least ``exp(-range)``, and what
    underflows is below its rounding. Sum-product only. A factor's update is then a batched
    matrix-vector product, not a log-sum-exp over its table.
    """

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)

    def prepare(self, graph, tables, log_evidence):
        """Exponentiate the tables, each scaled to maximum 1."""
        scaled = tuple(
            jnp.exp(_scale(table)) if group.rule is None else table
            for table, group in zip(tables, graph.signature.groups, strict=True)
        )
        return graph, scaled, log_evidence, reach(graph, tables, log_evidence, finite=True)

    def load(self, graph, messages):
        """The messages themselves."""
        return messages

    def store(self, graph, carry):
        """The messages themselves."""
        return carry

    def step(self, inputs, carry):
        """Update every message."""
        graph, tables, log_evidence, _ = inputs
        finite = self.sends_finite(graph)
        proposed = _flood(graph, tables, log_evidence, carry, self._outgoing, finite=finite)
        return tuple(damp(new, old, self.damping) for new, old in zip(proposed, carry, strict=True))

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        return message_change(new, old, inputs[-1])

    def sends_finite(self, graph):
        """All but messages of structured factors."""
        return all(group.rule is None for group in graph.signature.groups)

    def is_safe(self, graph, tables, log_evidence):
        """Whether the range of every factor's table leaves room for rounding above underflow."""
        tables = plain_tables(graph, tables)
        if not tables:
            return jnp.bool_(True)
        info = jnp.finfo(tables[0].dtype)
        room = math.log(float(info.eps)) - math.log(float(info.smallest_normal))
        # A table with -inf has an infinite or NaN span, which compares false.
        spans = [jnp.max(span, initial=0.0) for span in spans_of(tables)]
        return jnp.all(jnp.stack(spans) < room) if spans else jnp.bool_(True)

    def log_mass(self, group, table, incoming, semiring):
        """One contraction of the exponentiated table."""
        if group.rule is not None or not group.shape or semiring == "max":
            return log_mass(group, table, incoming, semiring)
        tops = [_top(message) for message in incoming]
        weights = [jnp.exp(m - top) for m, top in zip(incoming, tops, strict=True)]
        scaled = jnp.exp(_scale(table))
        last = _contract(scaled, weights, len(weights) - 1)
        scale = jnp.max(table.reshape(table.shape[0], -1), axis=1)
        mass = safe_log(jnp.sum(last * weights[-1], axis=1)) + lax.stop_gradient(scale)
        return mass + sum(top[:, 0] for top in tops)

    def _outgoing(self, group: GroupSignature, table: Array, incoming: tuple[Array, ...]):
        if group.rule is not None:
            return outgoing(group, table, incoming, self.semiring)
        weights = [jnp.exp(message - _top(message)) for message in incoming]
        return tuple(
            log_normalize(jnp.log(_contract(table, weights, skip)), axis=1)
            for skip in range(len(weights))
        )


def _contract(table: Array, weights: list[Array], skip: int) -> Array:
    """Sum a factor's table against the messages of all axes but one."""
    arity = len(weights)
    count = weights[0].shape[0]
    if arity == 1:
        return jnp.broadcast_to(table, (count, table.shape[1]))
    letters = "abcdefghijklmnopqrstuvwxy"[:arity]
    shared = table.shape[0] == 1 < count
    # Contracting from the last axis on keeps every intermediate smaller than the table.
    left = letters
    out = table[0] if shared else table
    lead = "" if shared else "z"
    for b in reversed(range(arity)):
        if b == skip:
            continue
        after = left.replace(letters[b], "")
        # HIGHEST: accelerators would otherwise round float32 to 10 bits.
        out = jnp.einsum(
            f"{lead}{left},z{letters[b]}->z{after}",
            out,
            weights[b],
            precision=lax.Precision.HIGHEST,
        )
        left, lead = after, "z"
    return out


def _flood(graph, tables, log_evidence, messages, update, *, finite: bool) -> Messages:
    at_variables = totals(graph, messages, log_evidence, finite=finite)
    incoming = by_group(graph, cavities(graph, messages, at_variables, finite=finite))
    proposed = tuple(
        update(group, table, axes)
        for group, table, axes in zip(graph.signature.groups, tables, incoming, strict=True)
    )
    dtype = messages[0].dtype if messages else jnp.zeros(0).dtype
    return by_class(graph, proposed, dtype)


def outgrown(messages: Messages) -> Bool[Array, ""]:
    """Whether a finite log-message is beyond the square root of the float type's range."""
    flags = []
    for message in messages:
        limit = float(jnp.finfo(message.dtype).max) ** 0.5
        flags.append(jnp.any((message < -limit) & ~jnp.isneginf(message)))
    return jnp.any(jnp.stack(flags)) if flags else jnp.bool_(False)


def message_change(new: Messages, old: Messages, span: Array) -> Float[Array, ""]:
    """Largest change over all messages."""
    dtype = new[0].dtype if new else jnp.zeros(0).dtype
    return largest([change(a, b, span) for a, b in zip(new, old, strict=True)], dtype)


def _scale(table: Array) -> Array:
    """Shift each factor's log-table to maximum 0; the scale cancels in every message."""
    axes = tuple(range(1, table.ndim))
    return table - lax.stop_gradient(jnp.max(table, axis=axes, keepdims=True)) if axes else table


def _top(message: Array) -> Array:
    top = lax.stop_gradient(jnp.max(message, axis=1, keepdims=True))
    # A variable without any possible state: its message stays zero throughout.
    return jnp.where(jnp.isneginf(top), 0.0, top)
