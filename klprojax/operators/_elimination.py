"""Variable elimination: T_Proj wherever the treewidth allows.

One upward sweep gives the log-partition, one downward sweep the marginals of all variables and
factors: the downward values are the derivatives of the upward one (as in section 4.2, here for any
factor graph). Two routes: `contract_graph` for numbers that are there, a compiled `sweep` for
traced ones.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from .._adjoint import AbstractAdjoint
from .._solution import Solution
from .._types import FactorTables, VariableTables
from .._variables import on_this_cpu
from ..graphs import FactorGraph
from ._elimination_plan import EliminationPlan, plan_elimination
from ._elimination_sweeps import Route, sweep
from ._messages import batched, dense
from ._solver import AbstractSolver, TooLargeError, known_solution, size_in_words, verdict
from .contraction import BeyondLimits, Contracted, contract_graph


class Elimination(AbstractSolver):
    """Compute the exact log-partition and all exact marginals by variable elimination.

    The marginals are those of `t_proj`, one step of ``Cyclic`` on the replicated lift.

    Tables are multiplied pairwise along a contraction tree. Cost and memory are exponential in the
    treewidth, independent of loops as such. The tree is searched once per graph structure, on the
    host, so the graph must be closed over, not passed through ``jit`` as an argument. Trees that
    took a search are kept in the folder ``$KLPROJAX_TREES``, by default in the user's cache; empty,
    it turns that off.

    Outside of ``jit``, ``vmap`` and ``grad``, with numbers on a CPU, this is done in numpy, in
    float64: nothing is compiled. Inside, and on accelerators, the small products are one compiled
    scan over their entries, and each of the few large ones is a step of its own.

    Args:
        memory_limit: bytes that all tables, or the program and its buffers, may take. Outside of
            ``jit``, where the tables take more, some variables are fixed and the results for all
            their joint states are summed.
        time_limit: predicted seconds beyond which nothing is begun, outside of ``jit``; from the
            number of products and a usual speed of this route, 2e8 a second.

    Raises (when used):
        TooLargeError: the predicted time exceeds ``time_limit``, or inside of ``jit`` the size
            ``memory_limit``; the message says by how much.

    Log-probabilities and their derivatives keep their digits far below the float range; `-inf` is
    an excluded state. Where marginals underflow, a second, slower sweep is made for that.

    Differentiation:
        Forward and reverse, to any order. Derivatives of the log-partition are the marginals,
        derivatives of the marginals one more sweep each way.

    Reference: section 3.1 (T_Proj on every graph), Theorem 4.1 (derivatives equal marginals). Plain
    numpy version: tests/reference/elimination.py.
    """

    memory_limit: int = eqx.field(static=True, default=4 * 2**30)
    time_limit: float = eqx.field(static=True, default=1200.0)

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
        """See `infer`; ``max_steps``, ``adjoint`` and ``init`` play no part."""
        rules = any(group.rule is not None for group in graph.signature.groups)
        concrete = all(map(on_this_cpu, (*log_potentials, *(log_evidence or ()))))
        if rules or (factor_beliefs and not concrete):
            # One table per factor: a shared table's gradient would sum over its factors, and a
            # rule's parameters are no table.
            log_potentials = tuple(
                jnp.broadcast_to(table, (group.count, *group.shape))
                for table, group in zip(
                    dense(graph, batched(graph, log_potentials)),
                    graph.signature.groups,
                    strict=True,
                )
            )
        if concrete:
            return self._eagerly(graph, log_potentials, log_evidence, factor_beliefs)
        if log_evidence is None:
            dtype = log_potentials[0].dtype if log_potentials else None
            log_evidence = graph.log_evidence(dtype=dtype)
        solve = partial(
            _solve, self.plan(graph, log_potentials), log_potentials, log_evidence, factor_beliefs
        )
        if not any(isinstance(x, Tracer) for x in (*log_potentials, *log_evidence)):
            # A look at the numbers saves compiling the sweep that is hardly ever needed.
            solution, lost = solve("linear")
            if not isinstance(lost, Tracer):
                return solve("log")[0] if lost else solution
        return solve("either")[0]

    def _eagerly(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        factor_beliefs: bool,
    ) -> Solution:
        dtype = next((t.dtype for t in (*log_potentials, *(log_evidence or ()))), None)
        dtype = jnp.zeros(0).dtype if dtype is None else dtype
        evidence: Sequence[Any] = [np.zeros(shape) for shape in graph.variables.shapes()]
        if log_evidence is not None:
            evidence = log_evidence
        found = self.contracted(graph, log_potentials, evidence, factor_beliefs)
        tables = found.tables if factor_beliefs else None
        return known_solution(dtype, found.variables, found.log_partition, tables, exact=True)

    def contracted(
        self,
        graph: FactorGraph,
        log_potentials: Sequence[Any],
        log_evidence: Sequence[Any],
        factor_beliefs: bool,
    ) -> Contracted:
        """Log-partition and log-marginals in numpy, float64.

        Args:
            graph: the structure.
            log_potentials: tables by group, nats; none of rules.
            log_evidence: tables by cardinality, nats.
            factor_beliefs: also the marginals over the factors' scopes.

        Raises:
            TooLargeError: see the class.
        """
        tables, evidence = (
            [np.asarray(table, np.float64) for table in part]
            for part in (log_potentials, log_evidence)
        )
        try:
            return contract_graph(
                graph, tables, evidence, factor_beliefs, self.memory_limit, self.time_limit
            )
        except BeyondLimits as error:
            limits = (
                f"The limits are time_limit = {_duration(self.time_limit)} and memory_limit = "
                f"{size_in_words(self.memory_limit)}."
            )
            raise too_large(error, limits) from None

    def plan(self, graph: FactorGraph, log_potentials: FactorTables) -> EliminationPlan:
        """The program and its size: ``plan.products``, ``plan.largest``.

        Args:
            graph: the structure.
            log_potentials: factor tables in nats.
        """
        shared = tuple(
            group.rule is None and table.ndim == len(group.shape)
            for table, group in zip(log_potentials, graph.signature.groups, strict=True)
        )
        itemsize = log_potentials[0].dtype.itemsize if log_potentials else 8
        return plan_elimination(graph, shared, itemsize, self.memory_limit)


def too_large(error: BeyondLimits, limits: str) -> TooLargeError:
    """What users are told."""
    largest = math.log2(max(error.largest, 1.0))
    return TooLargeError(
        f"Exact inference would take about {_duration(error.seconds)}, with tables of at least "
        f"{size_in_words(error.needed)}, the largest of 2^{largest:.1f} entries. "
        f"{limits} Raise the limit, condition on more evidence, or use BeliefPropagation()."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 7200:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.3g} h"


@eqx.filter_jit
def _solve(
    plan: EliminationPlan,
    log_potentials: FactorTables,
    log_evidence: VariableTables,
    factor_beliefs: bool,
    route: Route,
) -> tuple[Solution, Bool[Array, ""]]:
    tables = (*log_potentials, *log_evidence)
    dtype = tables[0].dtype if tables else jnp.zeros(0).dtype
    flat = jnp.concatenate([jnp.zeros(0, dtype), *(table.reshape(-1) for table in tables)])
    ends = np.cumsum([math.prod(table.shape) for table in tables])
    # Factors have entries far less probable than any state; asked for or not is a difference.
    first = 0 if factor_beliefs or not log_potentials else int(ends[len(log_potentials) - 1])
    found = sweep(plan, flat, first, route)
    log_marginals = [
        part.reshape(table.shape)
        for part, table in zip(jnp.split(found.log_marginals, ends)[:-1], tables, strict=True)
    ]
    beliefs = tuple(log_marginals[len(log_potentials) :])
    solution = Solution(
        log_beliefs=beliefs,
        log_partition=found.log_partition,
        factor_log_beliefs=tuple(log_marginals[: len(log_potentials)]) if factor_beliefs else None,
        result=verdict(beliefs, found.log_partition),
        residual=jnp.zeros_like(found.log_partition),
        steps=jnp.int32(0),
        converged=jnp.bool_(True),
        exact=True,
    )
    return solution, found.lost
