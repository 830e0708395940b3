"""Belief propagation: normalised sum-product and max-product on any factor graph (section 3.1).

By Proposition 3.1 this is the Dykstra-type hybrid of KL projections, iterate by iterate (compare
`DykstraHybrid`), and on a tree one upward-downward sweep is `t_proj`.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._adjoint import AbstractAdjoint
from .._solution import Solution
from .._types import FactorTables, VariableTables
from ..graphs import FactorGraph
from ._bethe import bethe_log_partition
from ._messages import (
    Messages,
    Semiring,
    Total,
    batched,
    by_class,
    by_group,
    cavities,
    change,
    damp,
    factor_log_beliefs,
    largest,
    log_beliefs,
    outgoing,
    split,
    totals,
    uniform_messages,
)
from ._schedules import AbstractSchedule, Batches, Flooding, Residual, TreeSweep
from ._solver import AbstractSolver, verdict


class BPState(eqx.Module):
    """What the next step needs: the factor-to-variable messages and the last residual.

    Attributes:
        messages: per cardinality, log-messages ``[edges, states]``, gauge logsumexp = 0.
        residual: largest change of a message's probabilities in the last step.
    """

    messages: Messages
    residual: Float[Array, ""]


class BeliefPropagation(AbstractSolver):
    """Iterate normalised belief propagation until the messages settle.

    Sum-product computes approximate marginals (exact on trees), max-product approximate
    max-marginals, whose argmax is the MAP assignment on trees.

    Args:
        semiring: ``"sum"`` or ``"max"``.
        schedule: `Flooding`, `Residual`, `Sequential` or `TreeSweep`.
        damping: in [0, 1): new messages are ``new^(1-d) old^d``.
        tolerance: stop when no message's probabilities change by this much in a step. With 0 the
            loop runs all ``max_steps`` and that counts as success.

    `init`, `step` and `terminate` drive the loop by hand.

    Raises:
        ValueError: damping outside [0, 1), negative tolerance, unknown semiring.

    Reference: section 2 ("Messages and normalized BP"), Proposition 3.1.
    """

    semiring: Semiring = eqx.field(static=True, default="sum")
    schedule: AbstractSchedule = Flooding()
    damping: float = eqx.field(static=True, default=0.0)
    tolerance: float = eqx.field(static=True, default=1e-6)

    def __check_init__(self):
        if self.semiring not in ("sum", "max"):
            raise ValueError(f"semiring is {self.semiring!r}; use 'sum' or 'max'.")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping is {self.damping}; it must be in [0, 1).")
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance is {self.tolerance}; it must be at least 0.")

    def init(self, graph: FactorGraph, log_potentials: FactorTables) -> BPState:
        """Uniform messages."""
        dtype = log_potentials[0].dtype if log_potentials else jnp.zeros(0).dtype
        return BPState(uniform_messages(graph, dtype), jnp.full((), jnp.inf, dtype))

    def step(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        state: BPState,
        log_evidence: VariableTables | None = None,
        batches: Batches | None = None,
    ) -> BPState:
        """One step of the schedule; ``batches`` defaults to ``schedule.batches(graph)``."""
        if batches is None:
            batches = self.schedule.batches(graph)
        return self._step(graph, batched(graph, log_potentials), state, log_evidence, batches)

    def terminate(self, state: BPState) -> Bool[Array, ""]:
        """Whether the last step met the tolerance."""
        return state.residual < self.tolerance

    def solve(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        *,
        max_steps: int,
        adjoint: AbstractAdjoint,
        init: Any,
        factor_beliefs: bool,
    ) -> Solution:
        """See `infer`."""
        state = self.init(graph, log_potentials) if init is None else init
        sweep = isinstance(self.schedule, TreeSweep)
        return _solve(
            self,
            graph,
            log_potentials,
            log_evidence,
            self.schedule.batches(graph),
            state,
            1 if sweep else max_steps,
            adjoint,
            factor_beliefs,
        )

    def _step(self, graph, tables, state, log_evidence, batches) -> BPState:
        if batches is None:
            return self._flood(graph, tables, state, log_evidence)
        return self._sweep(graph, tables, state, log_evidence, batches)

    def _flood(self, graph, tables, state, log_evidence) -> BPState:
        at_variables = totals(graph, state.messages, log_evidence)
        incoming = by_group(graph, cavities(graph, state.messages, at_variables))
        proposed = by_class(
            graph,
            tuple(
                outgoing(group, table, axes, self.semiring)
                for group, table, axes in zip(graph.signature.groups, tables, incoming, strict=True)
            ),
            state.residual.dtype,
        )
        messages, changes = [], []
        for new, old in zip(proposed, state.messages, strict=True):
            messages.append(damp(new, old, self.damping))
            changes.append(change(messages[-1], old))
        residual = largest(changes, state.residual.dtype)
        if isinstance(self.schedule, Residual):
            bar = self.schedule.threshold * lax.stop_gradient(residual)
            messages = [
                jnp.where((by >= bar)[:, None], new, old)
                for new, old, by in zip(messages, state.messages, changes, strict=True)
            ]
        return BPState(tuple(messages), residual)

    def _sweep(self, graph, tables, state, log_evidence, batches) -> BPState:
        at_variables = totals(graph, state.messages, log_evidence)

        def one(carry, batch):
            messages, at, residual = carry
            messages, at, worst = _update_batch(self, graph, tables, messages, at, batch)
            return (messages, at, jnp.maximum(residual, worst)), None

        start = (state.messages, at_variables, jnp.zeros_like(state.residual))
        (messages, _, residual), _ = lax.scan(one, start, batches)
        return BPState(messages, residual)


def _update_batch(
    solver: BeliefPropagation,
    graph: FactorGraph,
    tables: FactorTables,
    messages: Messages,
    at_variables: tuple[Total, ...],
    batch: tuple[Array, ...],
) -> tuple[Messages, tuple[Total, ...], Array]:
    """Recompute all messages out of the factors of one batch and add them to the totals."""
    messages_after, after = list(messages), list(at_variables)
    changes = []
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
        proposed = outgoing(group, some, incoming, solver.semiring)
        for (c, start), row, was, new in zip(blocks, rows, old, proposed, strict=True):
            new = damp(new, was, solver.damping)
            changes.append(jnp.where(real, change(new, was), 0.0))
            edge = jnp.where(real, start + index, messages[c].shape[0])
            messages_after[c] = messages_after[c].at[edge].set(new, mode="drop")
            where = jnp.where(real, row, graph.signature.counts[c])
            plus, minus = split(new), split(was)
            after[c] = Total(
                after[c].finite.at[where].add(plus.finite - minus.finite, mode="drop"),
                after[c].zeros.at[where].add(plus.zeros - minus.zeros, mode="drop"),
            )
    dtype = at_variables[0].finite.dtype
    return tuple(messages_after), tuple(after), largest(changes, dtype)


@eqx.filter_jit
def _solve(
    solver: BeliefPropagation,
    graph: FactorGraph,
    log_potentials: FactorTables,
    log_evidence: VariableTables | None,
    batches: Batches | None,
    state: BPState,
    max_steps: int,
    adjoint: AbstractAdjoint,
    factor_beliefs: bool,
) -> Solution:
    tables = batched(graph, log_potentials)

    def step(inputs, state):
        graph, tables, log_evidence, batches = inputs
        state = solver._step(graph, tables, state, log_evidence, batches)
        return state, solver.terminate(state) | ~jnp.isfinite(state.residual)

    state, steps = adjoint.loop(step, (graph, tables, log_evidence, batches), state, max_steps)
    at_variables = totals(graph, state.messages, log_evidence)
    beliefs = log_beliefs(at_variables)
    sweep = isinstance(solver.schedule, TreeSweep)
    converged = (
        jnp.bool_(True)
        if sweep or solver.tolerance == 0.0
        else (solver.terminate(state) | jnp.bool_(not graph.signature.groups))
    )
    return Solution(
        log_beliefs=beliefs,
        log_partition=bethe_log_partition(
            graph, tables, state.messages, at_variables, solver.semiring
        ),
        factor_log_beliefs=factor_log_beliefs(graph, tables, state.messages, at_variables)
        if factor_beliefs
        else None,
        result=verdict(beliefs, converged),
        residual=jnp.zeros_like(state.residual) if sweep else state.residual,
        steps=steps,
        converged=converged,
        state=state,
        exact=sweep,
    )
