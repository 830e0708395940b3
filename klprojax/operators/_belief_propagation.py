"""Belief propagation: normalised sum-product and max-product on any factor graph (section 3.1).

By Proposition 3.1 this is the Dykstra-type hybrid of KL projections, iterate by iterate (compare
`DykstraHybrid`), and on a tree one upward-downward sweep is `t_proj`.
"""

import math
from collections import Counter
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._adjoint import AbstractAdjoint
from .._sharding import on_any_mesh
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from .._variables import on_this_cpu, put
from ..graphs import FactorGraph
from ._batch_engine import BatchSweep
from ._bethe import bethe_log_partition
from ._binary_engine import BinaryFlooding
from ._chain_engine import ChainScan, chains
from ._eager_flooding import EagerFlooding, is_small
from ._engines import AbstractEngine, LinearFlooding, LogFlooding
from ._forest import tree_plan
from ._messages import (
    Messages,
    Semiring,
    batched,
    factor_log_beliefs,
    log_beliefs,
    log_mass,
    totals,
    uniform_messages,
)
from ._odds_engine import OddsFlooding
from ._schedules import AbstractSchedule, Flooding, Residual, TreeSweep
from ._solver import AbstractIterativeSolver, check_object, known_solution, verdict
from ._tree_engine import LevelSweep

# The first calls of a small problem run in numpy; whoever calls more often has it compiled.
_EAGER_CALLS = 5
_eager_calls: Counter[Any] = Counter()


class BPState(eqx.Module):
    """What the next step needs: the factor-to-variable messages and the last residual.

    Attributes:
        messages: per cardinality, log-messages ``[edges, states]``, gauge logsumexp = 0.
        residual: largest change of a message in the last step, see `BeliefPropagation`.
    """

    messages: Messages
    residual: Float[Array, ""]


class BeliefPropagation(AbstractIterativeSolver):
    """Iterate normalised belief propagation until the messages settle.

    Named fused implementation of ``iterate(Dykstra(), (right(P), compose(right(P), left(Q))), q)``
    on the replicated lift of a factor graph: P the products over all copies, Q the face on which
    the copies of each variable agree, q the product of the factors; ``σ = log f_k - log m_{k→i}``,
    ``τ = -log m_{i→k}``. This holds for sum-product, the `Flooding` schedule, no damping and
    uniform first messages, whichever engine runs. Other schedules and damping are other iterations
    with the same fixed points; max-product has other fixed points.

    Sum-product computes approximate marginals, max-product approximate max-marginals: of each
    state, the probability of the best assignment that has it, normalised. Both are exact on trees.

    There, where every variable has a single best state, these states are the MAP assignment. With
    ties they need not belong together: of two bits that must differ, both states are best for both,
    and the first of each is an assignment of probability 0. A best assignment, ties or not, is what
    `query` finds for `MostProbable`.

    Args:
        semiring: ``"sum"`` or ``"max"``.
        schedule: `Flooding`, `Residual`, `Sequential` or `TreeSweep`.
        damping: in [0, 1): new messages are ``new^(1-d) old^d``.
        tolerance: stop when no message changes by this much in a step: no probability, and, 100
            times below the best, no log-probability relative to the largest range of a table (a
            probability of 1e-300 decides as soon as a table outweighs it). With 0 the loop runs
            all ``max_steps``, that counts as success, and the residual reported is the change
            that one more step would make.
        engine: ``"auto"`` takes the fastest engine that is right for the structure and the numbers:
            odds or log-odds on binary pairwise graphs, matrix products on exponentiated tables,
            both for flooding on finite tables, and the log domain for everything else. The numbers
            are looked at before compiling when they are concrete, else both routes are compiled.
            ``"log"`` takes the log domain; ``"fast"`` never falls back to it: numbers out of its
            range then end as `RESULTS.out_of_range` (use it to `vmap` over potentials).

    `init`, `step` and `terminate` drive the loop by hand.

    Raises:
        ValueError: damping outside [0, 1), negative tolerance, unknown semiring or engine, a
            schedule that is not a schedule object, or ``"fast"`` where there is no fast engine.

    Reference: section 2 ("Messages and normalized BP"), Proposition 3.1. Plain numpy version:
    tests/reference/bp_sweep.py.
    """

    semiring: Semiring = eqx.field(static=True, default="sum")
    schedule: AbstractSchedule = Flooding()
    damping: float = eqx.field(static=True, default=0.0)
    tolerance: float = eqx.field(static=True, default=1e-6)
    engine: Literal["auto", "log", "fast"] = eqx.field(static=True, default="auto")

    def __check_init__(self):
        if self.semiring not in ("sum", "max"):
            raise ValueError(f"semiring is {self.semiring!r}; use 'sum' or 'max'.")
        if self.engine not in ("auto", "log", "fast"):
            raise ValueError(f"engine is {self.engine!r}; use 'auto', 'log' or 'fast'.")
        check_object("schedule", self.schedule, AbstractSchedule, "Flooding(), TreeSweep()")
        if not 0.0 <= self.damping < 1.0:
            raise ValueError(f"damping is {self.damping}; it must be in [0, 1).")
        if self.damping and isinstance(self.schedule, TreeSweep) and self.schedule.parallel:
            raise ValueError(
                f"damping is {self.damping} with TreeSweep(parallel=True), which multiplies tables "
                "and has no messages to damp; it must be 0. Use TreeSweep()."
            )
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance is {self.tolerance}; it must be at least 0.")

    def init(self, graph: FactorGraph, log_potentials: FactorTables) -> BPState:
        """Uniform messages.

        Args:
            graph: the structure.
            log_potentials: factor tables in nats.
        """
        dtype = log_potentials[0].dtype if log_potentials else jnp.zeros(0).dtype
        return BPState(uniform_messages(graph, dtype), jnp.full((), jnp.inf, dtype))

    @on_any_mesh()
    def step(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        state: BPState,
        log_evidence: VariableTables | None = None,
    ) -> BPState:
        """One step of the schedule, in the log domain.

        Args:
            graph: the structure.
            log_potentials: factor tables in nats.
            state: messages of the step before.
            log_evidence: tables in nats, or None.
        """
        engine = self._log_engine(graph)
        inputs = engine.prepare(graph, batched(graph, log_potentials), log_evidence)
        old = engine.load(graph, state.messages)
        new = engine.step(inputs, old)
        return BPState(engine.store(graph, new), engine.change(inputs, new, old))

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
        if self._is_exact:
            max_steps = 1
        if self._is_for_numpy(graph, (log_potentials, log_evidence, init), max_steps):
            return self._eagerly(
                graph, log_potentials, log_evidence, init, max_steps, factor_beliefs
            )
        fast = None if self.engine == "log" else self._fast_engine(graph)
        if fast is None and self.engine == "fast":
            raise ValueError(
                "engine='fast' has no engine for this schedule, semiring or graph; use 'auto'."
            )
        engines: tuple[AbstractEngine, ...] = (self._log_engine(graph),)
        if fast is not None:
            if self.engine == "fast":
                engines = (fast,)
            else:
                engines = self._chosen(graph, log_potentials, log_evidence, init, (fast, *engines))
        return _solve(
            self,
            engines,
            graph,
            log_potentials,
            log_evidence,
            init,
            max_steps,
            adjoint,
            factor_beliefs,
        )

    def _is_for_numpy(self, graph: FactorGraph, numbers: Any, max_steps: int) -> bool:
        """Whether this is one of the first calls with known numbers, all of it small."""
        plain = self.engine == "auto" and isinstance(self.schedule, Flooding)
        if not (plain and is_small(graph, max_steps)):
            return False
        leaves = jax.tree.leaves((numbers, graph.wiring))
        if not all(map(on_this_cpu, leaves)):
            return False
        problem = (self, graph.signature, str(leaves[0].dtype), jax.tree.structure(numbers))
        _eager_calls[problem] += 1
        return _eager_calls[problem] <= _EAGER_CALLS

    def _eagerly(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        state: BPState | None,
        max_steps: int,
        factor_beliefs: bool,
    ) -> Solution:
        dtype = log_potentials[0].dtype if log_potentials else jnp.zeros(0).dtype
        tables = [
            np.asarray(table)[None] if table.ndim == len(group.shape) else np.asarray(table)
            for table, group in zip(log_potentials, graph.signature.groups, strict=True)
        ]
        if state is None:
            sizes = zip(graph.wiring.edges, graph.signature.cardinalities, strict=True)
            start = [np.full((len(e), card), -math.log(card), dtype) for e, card in sizes]
        else:
            start = [np.asarray(message) for message in state.messages]
        flooding = EagerFlooding(graph, tables, log_evidence, self.semiring, self.damping)
        found = flooding.run(start, self.tolerance, max_steps, factor_beliefs)
        met = self.tolerance == 0.0 or found.residual < self.tolerance
        met = met or not any(group.shape for group in graph.signature.groups)
        messages = tuple(put(message, dtype) for message in found.messages)
        return known_solution(
            dtype,
            found.log_beliefs,
            found.log_partition,
            found.factor_log_beliefs,
            met=met,
            residual=found.residual,
            steps=found.steps,
            diverged=self.tolerance > 0.0 and found.residual == math.inf,
            state=BPState(messages, put(found.residual, dtype)),
        )

    def _chosen(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        init: Any,
        engines: tuple[AbstractEngine, ...],
    ) -> tuple[AbstractEngine, ...]:
        """The first engine that suits the numbers; all where they are not known yet."""
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((log_potentials, log_evidence))):
            return engines
        choices = engines
        if init is None and self._takes_odds(graph):
            choices = (OddsFlooding(), *choices)
        safe = _are_safe(choices, graph, log_potentials, log_evidence)
        # Inside `jit`, what known numbers give is not known either.
        return engines if isinstance(safe, Tracer) else (choices[int(np.argmax(np.asarray(safe)))],)

    @property
    def _is_exact(self) -> bool:
        return isinstance(self.schedule, TreeSweep) and self.damping == 0.0

    def _log_engine(self, graph: FactorGraph) -> AbstractEngine:
        if isinstance(self.schedule, TreeSweep) and graph.num_factors:
            if self.schedule.parallel:
                return ChainScan(self.semiring, self.damping, chains(graph))
            return LevelSweep(self.semiring, self.damping, tree_plan(graph))
        batches = self.schedule.batches(graph)
        if batches is not None:
            return BatchSweep(self.semiring, self.damping, batches)
        threshold = self.schedule.threshold if isinstance(self.schedule, Residual) else None
        return LogFlooding(self.semiring, self.damping, threshold)

    def _takes_odds(self, graph: FactorGraph) -> bool:
        plain = self.semiring == "sum" and self.damping == 0.0
        return plain and isinstance(self.schedule, Flooding) and BinaryFlooding.suits(graph)

    def _fast_engine(self, graph: FactorGraph) -> AbstractEngine | None:
        if not isinstance(self.schedule, Flooding):
            return None
        if BinaryFlooding.suits(graph):
            return BinaryFlooding(self.semiring, self.damping)
        if self.semiring == "sum" and any(g.rule is None for g in graph.signature.groups):
            return LinearFlooding(self.semiring, self.damping)
        return None


@eqx.filter_jit
def _are_safe(
    engines: tuple[AbstractEngine, ...],
    graph: FactorGraph,
    log_potentials: FactorTables,
    log_evidence: VariableTables | None,
) -> Bool[Array, " engines"]:
    tables = batched(graph, log_potentials)
    return jnp.stack([engine.is_safe(graph, tables, log_evidence) for engine in engines])


def _iterate(
    solver: BeliefPropagation,
    engine: AbstractEngine,
    graph: FactorGraph,
    tables: FactorTables,
    log_evidence: VariableTables | None,
    messages: Messages,
    max_steps: int,
    adjoint: AbstractAdjoint,
) -> tuple[Messages, Array | None, Array, Array, Array]:
    """Run the loop with one engine.

    Returns:
        Messages, log-partition if the engine has it, residual, steps, whether messages diverged.
    """
    inputs = engine.prepare(graph, tables, log_evidence)
    start = engine.load(graph, messages)
    infinity = jnp.full((), jnp.inf, messages[0].dtype if messages else None)

    def step(inputs, state):
        carry, residual = state
        after = engine.step(inputs, carry)
        if solver.tolerance == 0.0 or solver._is_exact:
            return (after, residual), jnp.bool_(False)
        # The residual steers the loop; no derivative passes through it.
        residual = jnp.where(engine.diverged(after), jnp.inf, engine.change(inputs, after, carry))
        residual = lax.stop_gradient(residual)
        # The engine's carry stays in its own form: only the residual decides.
        done, _ = solver.terminate(BPState((), residual))
        return (after, residual), done | ~jnp.isfinite(residual)

    (carry, residual), steps = adjoint.loop(step, inputs, (start, infinity), max_steps)
    if solver._is_exact:  # the next step would change nothing
        residual = jnp.where(engine.diverged(carry), residual, 0.0)
    diverged = jnp.isposinf(residual) & (steps > 0)
    if solver.tolerance == 0.0 and not solver._is_exact:
        residual = lax.stop_gradient(engine.change(inputs, engine.step(inputs, carry), carry))
        diverged = jnp.bool_(False)
    return engine.store(graph, carry), engine.log_partition(carry), residual, steps, diverged


@eqx.filter_jit
def _solve(
    solver: BeliefPropagation,
    engines: tuple[AbstractEngine, ...],
    graph: FactorGraph,
    log_potentials: FactorTables,
    log_evidence: VariableTables | None,
    state: BPState | None,
    max_steps: int,
    adjoint: AbstractAdjoint,
    factor_beliefs: bool,
) -> Solution:
    tables = batched(graph, log_potentials)
    finite = state is None and all(engine.sends_finite(graph) for engine in engines)
    if state is None:
        state = solver.init(graph, log_potentials)
    routes = [
        lambda tables, log_evidence, messages, engine=engine: _iterate(
            solver, engine, graph, tables, log_evidence, messages, max_steps, adjoint
        )
        for engine in engines
    ]
    safe = engines[0].is_safe(graph, tables, log_evidence)
    operands = (tables, log_evidence, state.messages)
    if len(routes) == 1:
        messages, log_partition, residual, steps, diverged = routes[0](*operands)
    else:
        messages, log_partition, residual, steps, diverged = lax.cond(safe, *routes, *operands)
    at_variables = totals(graph, messages, log_evidence, finite=finite)
    beliefs = log_beliefs(at_variables)
    _, end = solver.terminate(BPState(messages, residual))
    # Without a factor on a variable there is nothing that could change.
    if solver._is_exact or not any(g.shape for g in graph.signature.groups):
        end = RESULTS.successful
    if log_partition is None:
        log_partition = bethe_log_partition(
            graph,
            tables,
            messages,
            at_variables,
            solver.semiring,
            finite=finite,
            mass_of=engines[0].log_mass if len(engines) == 1 else log_mass,
        )
    result = verdict(beliefs, log_partition, end, residual)
    result = RESULTS.where(diverged, RESULTS.diverged, result)
    if solver.engine == "fast":
        result = RESULTS.where(safe, result, RESULTS.out_of_range)
    return Solution(
        log_beliefs=beliefs,
        log_partition=log_partition,
        factor_log_beliefs=factor_log_beliefs(graph, tables, messages, at_variables)
        if factor_beliefs
        else None,
        result=result,
        residual=residual,
        steps=steps,
        converged=jnp.asarray(end == RESULTS.successful),
        state=BPState(messages, residual),
        exact=solver._is_exact,
    )
