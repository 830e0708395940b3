"""T_Proj, the two-step KL projection operator of section 3.1: exact inference on every graph.

``T_Proj(q) = π→_𝒫(π←_𝒬(q))``: agree first (I-projection onto the diagonal face 𝒬 of the replicated
space), then factorise (right projection onto the products 𝒫). Applied to ``q_{-1} ∝ prod_k
f_k(x^(k))`` it gives the product, over all copies of all variables, of the exact marginals of
``p(x) ∝ prod_k f_k(x)``, whether the graph has loops or not.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from .._sharding import on_any_mesh
from .._solution import RESULTS
from .._types import FactorTables, VariableTables
from ..geometry import ConsensusFace, ProductFamily, i_projection, right_projection
from ..graphs import FactorGraph
from ..graphs._replication import ReplicatedLift
from ._belief_propagation import BeliefPropagation
from ._elimination import Elimination
from ._forest import is_forest
from ._infer import infer
from ._schedules import TreeSweep
from ._solver import check_problem


@on_any_mesh()
def t_proj(
    graph: FactorGraph,
    log_potentials: FactorTables,
    log_evidence: VariableTables | None = None,
    *,
    method: Literal["auto", "dense", "elimination", "tree"] = "auto",
) -> VariableTables:
    """Apply ``T_Proj = π→_𝒫 ∘ π←_𝒬`` to the replicated joint table of a factor graph.

    Named fused implementation of one step of ``Cyclic`` with ``compose(right(P), left(Q))`` on the
    replicated lift: P the products over all copies, Q the face on which the copies agree. Plain
    numpy version: tests/reference/elimination.py.

    ``T_Proj(q_{-1})`` is a product over the copies of the variables, and every copy of a variable
    has the same factor, its exact marginal. So one table per variable is the whole result, in
    factored form.

    Args:
        graph: the structure, with concrete wiring: close over it, do not pass it through ``jit``.
        log_potentials: factor tables in nats (see `FactorGraph.pack`); `-inf` is a hard zero.
        log_evidence: tables in nats (see `FactorGraph.log_evidence`); one more unary factor each.
        method: how to compute it; all give the same numbers.
            ``"dense"`` forms the replicated joint table and projects it twice: tiny graphs only.
            ``"elimination"`` is `Elimination`: exponential in the treewidth only.
            ``"tree"`` is one upward-downward sweep of belief propagation: forests only.
            ``"auto"`` is ``"tree"`` on a forest of traced tables, else ``"elimination"``.

    Returns:
        Log-probabilities of every variable, one array per cardinality
        (see `FactorGraph.unpack_variables`).

    Differentiation:
        ``jit``, ``vmap``, ``jvp``, ``grad`` and their compositions, whichever the method.

    Raises:
        ValueError: tables that do not fit the graph, an unknown method, ``"tree"`` on a graph with
            a cycle, ``"dense"`` or ``"elimination"`` on a graph too large for it.
        RuntimeError: no joint state is possible.

    Reference: section 3.1, definition of T_Proj; Proposition 3.1 (i).

    Example:
        >>> import numpy as np, klprojax
        >>> graph = klprojax.FactorGraph([2, 2], [(0,), (0, 1)])
        >>> tables = graph.pack([np.log([0.25, 0.75]), np.log([[0.9, 0.1], [0.2, 0.8]])])
        >>> out = klprojax.t_proj(graph, tables)
        >>> [np.exp(m).round(3).tolist() for m in graph.unpack_variables(out)]
        [[0.25, 0.75], [0.375, 0.625]]
    """
    if method not in ("auto", "dense", "elimination", "tree"):
        raise ValueError(f"method is {method!r}; use 'auto', 'dense', 'elimination' or 'tree'.")
    check_problem(graph, log_potentials, log_evidence)
    if method == "dense":
        return _dense(graph, log_potentials, log_evidence)
    arrays = (*log_potentials, *(log_evidence or ()))
    traced = any(isinstance(array, Tracer) for array in arrays)
    tree = method == "tree" or (method == "auto" and traced and is_forest(graph))
    solver = BeliefPropagation(schedule=TreeSweep()) if tree else Elimination()
    return infer(graph, log_potentials, solver, log_evidence=log_evidence).log_beliefs


@on_any_mesh()
def t_proj_dense(
    log_table: Float[Array, "*copies"], copies: Sequence[Sequence[int]], *, throw: bool = True
) -> Float[Array, "*copies"]:
    """Apply ``T_Proj`` to any lifted joint table.

    Args:
        log_table: the table `q` up to scale, one axis a copy; entries may be `-inf`.
        copies: per variable, the axes that are its copies. An axis in none is a single copy.
        throw: raise at run time if the table has no mass where all copies agree.

    Returns:
        Log-probabilities of the product distribution ``π→_𝒫(π←_𝒬(q))``, shaped like ``log_table``.

    Differentiation:
        Ordinary JAX operations: every transformation, to any order.

    Raises:
        ValueError: copies of one variable that differ in size, or an axis named twice.

    Reference: section 3.1, definition of T_Proj.

    Example:
        >>> import jax.numpy as jnp
        >>> b = jnp.log(jnp.array([0.2, 0.8]))
        >>> q = t_proj_dense(b[:, None] + b[None, :], [(0, 1)])  # two agreeing copies: b^2
        >>> [round(float(x), 4) for x in jnp.exp(q).sum(axis=1)]
        [0.0588, 0.9412]
    """
    face = ConsensusFace(tuple(tuple(axes) for axes in copies if len(axes)))
    agreed = i_projection(face, log_table, throw=throw).value
    return right_projection(ProductFamily(), agreed, throw=throw).value


def _dense(
    graph: FactorGraph, log_potentials: FactorTables, log_evidence: VariableTables | None
) -> VariableTables:
    lift = ReplicatedLift(graph, evidence=log_evidence is not None)
    joint = lift.log_table(log_potentials, log_evidence)
    agreed = i_projection(lift.consensus, joint, throw=False)
    value = RESULTS.contradiction.error_if(agreed.value, jnp.logical_not(agreed.converged))
    # The right projection in factored form; its product over all copies is not built.
    return lift.read_variables(ProductFamily().marginals(value))
