"""Exact marginals by pairwise contraction in numpy: no program is compiled.

One sweep up a contraction tree multiplies and sums all tables; the sweep down multiplies in the
other direction: its tables are the derivatives of the log-partition (as in section 4.2, here for
any factor graph). What does not depend on numbers is planned once per structure.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._plan import Program, planned
from ._scaled_tables import ScaledTable, Scope, from_logs, multiply, sum_out


class Contracted(NamedTuple):
    """Log-partition, and logarithms of marginals by variable and by table."""

    log_partition: float
    variables: list[np.ndarray]
    tables: list[np.ndarray] | None


def contract(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    *,
    of_tables: bool = False,
    seed: int = 0,
    program: Program | None = None,
) -> Contracted:
    """All marginals of ``p(x) ∝ prod_k exp(log_tables[k])``.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table, ascending or not.
        log_tables: in nats, float64; ``-inf`` is a hard zero.
        of_tables: also the marginals over each table's scope.
        seed: of the search for a tree.
        program: what `planned` says for these arguments, if it is at hand.

    Returns:
        Marginals as logarithms; -inf throughout if no joint state is possible.

    Raises:
        BeyondLimits: no tree was found with tables that any machine holds.
    """
    program = program or planned(cardinalities, scopes, of_tables, seed)
    leaves, tables = sweep_up(program, log_tables)
    tree = program.tree
    log_partition = math.fsum(tables[k].scale + float(tables[k].logs()) for k in tree.roots)
    log_partition += math.fsum(math.log(cardinalities[v]) for v in program.free)
    if log_partition == -math.inf:
        return _everywhere(-math.inf, cardinalities, log_tables)

    variables = [np.full(card, -math.log(card)) for card in cardinalities]
    found: list[np.ndarray] | None = [np.zeros(0)] * len(scopes) if of_tables else None
    one = ScaledTable(np.ones(()), 0.0, 0.0, 0.0, False)
    above = dict.fromkeys(tree.roots, one)
    # From the roots down; tables are let go of as soon as nothing needs them.
    for node, reads, of_leaf, children in program.down:
        own = above.pop(node)
        for v, step in reads:
            variables[v] = _normalised(multiply(step, tables[node], own))
        if of_leaf is not None:
            whole, leaf = multiply(of_leaf, leaves[node], own), program.leaves[node]
            for v in (leaf.scope[axis] for axis in leaf.gone):
                variables[v] = _marginal(whole, of_leaf.scope, (v,))
            if found is not None:
                for k, *_ in leaf.members:
                    found[k] = _marginal(whole, of_leaf.scope, tuple(scopes[k]))
        for child, other, step in children:
            above[child] = multiply(step, own, tables[other])
        tables[node] = one
    return Contracted(log_partition, variables, found)


def sweep_up(
    program: Program, log_tables: Sequence[np.ndarray], memory_limit: float = math.inf
) -> tuple[list[ScaledTable], list[ScaledTable]]:
    """Multiply and sum from the leaves to the roots.

    Returns:
        The leaves before their private variables are summed, and all tables: leaves, then products.

    Raises:
        BeyondLimits: the tables need more memory.
    """
    leaves = [from_logs(log_table) for log_table in program.leaf_logs(log_tables)]
    tables = [sum_out(t, leaf.gone) for t, leaf in zip(leaves, program.leaves, strict=True)]
    program.check_memory(sum(table.array.size for table in (*leaves, *tables)), memory_limit)
    for (one, two), step in zip(program.tree.pairs, program.up, strict=True):
        tables.append(multiply(step, tables[one], tables[two]))
    return leaves, tables


def _marginal(table: ScaledTable, scope: Scope, kept: Scope) -> np.ndarray:
    """Log-probabilities of some of a table's variables, in their order."""
    own = sum_out(table, tuple(axis for axis, v in enumerate(scope) if v not in kept))
    left = [v for v in scope if v in kept]
    return _normalised(own).transpose([left.index(v) for v in kept])


def _normalised(table: ScaledTable) -> np.ndarray:
    """Log-probabilities."""
    if not table.is_log:
        return table._replace(array=np.asarray(table.array / table.array.sum())).logs()
    return np.asarray(table.array - np.log(np.exp(table.array).sum()))  # the largest is 0


def _everywhere(
    value: float, cardinalities: Sequence[int], log_tables: Sequence[np.ndarray]
) -> Contracted:
    """One number in place of all."""
    variables = [np.full(card, value) for card in cardinalities]
    return Contracted(value, variables, [np.full(t.shape, value) for t in log_tables])
