"""The entry point: one verb, every inference operator."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._adjoint import AbstractAdjoint, UnrolledAdjoint
from .._sharding import on_any_mesh
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from ..graphs import FactorGraph
from ._solver import AbstractSolver, check_object, check_problem


@on_any_mesh()
def infer(
    graph: FactorGraph,
    log_potentials: FactorTables,
    solver: AbstractSolver,
    *,
    log_evidence: VariableTables | None = None,
    max_steps: int = 200,
    adjoint: AbstractAdjoint | None = None,
    init: Any = None,
    factor_beliefs: bool = False,
    throw: bool = True,
) -> Solution:
    """Infer beliefs and log-partition of ``p(x) ∝ prod_f exp(log_potentials_f) exp(evidence)``.

    Args:
        graph: the structure. Closed over or passed through ``jit`` as an argument.
        log_potentials: factor tables in nats (see `FactorGraph.pack`); `-inf` is a hard zero.
        solver: `Elimination()` (exact), `BeliefPropagation()` or `DykstraHybrid()`.
        log_evidence: tables in nats (see `FactorGraph.log_evidence`); `-inf` excludes a state.
        max_steps: most iterations of an iterative solver.
        adjoint: how derivatives pass through the iteration (default `UnrolledAdjoint()`).
        init: the ``state`` of an earlier solution, as a warm start.
        factor_beliefs: also return the beliefs of the factors' scopes.
        throw: raise on any result but success; otherwise read ``solution.result``.

    Returns:
        A `Solution`. The potentials' dtype is kept throughout.

    Differentiation:
        ``jit``, ``vmap``, ``jvp``, ``grad`` and their compositions go through.

    Raises:
        ValueError: tables that do not fit the graph, a solver that does not suit it, or something
            else in the place of a graph, tables, a solver or an adjoint.
        RuntimeError: with ``throw``, no possible joint state, non-finite numbers, or no
            convergence within ``max_steps`` (see `RESULTS`).

    Example:
        >>> import numpy as np, klprojax
        >>> graph = klprojax.FactorGraph([2, 2], [(0,), (0, 1)])
        >>> tables = [np.log([0.25, 0.75]), np.log([[0.9, 0.1], [0.2, 0.8]])]
        >>> solution = klprojax.infer(graph, graph.pack(tables), klprojax.Elimination())
        >>> [m.round(3).tolist() for m in graph.unpack_variables(solution.marginals)]
        [[0.25, 0.75], [0.375, 0.625]]
    """
    check_problem(graph, log_potentials, log_evidence)
    check_object("solver", solver, AbstractSolver, "Elimination() or BeliefPropagation()")
    adjoint = UnrolledAdjoint() if adjoint is None else adjoint
    check_object("adjoint", adjoint, AbstractAdjoint, "UnrolledAdjoint() or ImplicitAdjoint()")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1.")
    solution = solver.solve(
        graph,
        log_potentials,
        log_evidence,
        max_steps=max_steps,
        adjoint=adjoint,
        init=init,
        factor_beliefs=factor_beliefs,
    )
    if throw and not _succeeded(solution):
        solution = solution.result.error_if(solution, solution.result != RESULTS.successful)
    return solution


def _succeeded(solution: Solution) -> bool:
    """Whether success can be seen now; a look at the number saves compiling a check for it."""
    (code,), (success,) = jax.tree.leaves(solution.result), jax.tree.leaves(RESULTS.successful)
    return not isinstance(code, Tracer) and bool(np.asarray(code) == np.asarray(success))
