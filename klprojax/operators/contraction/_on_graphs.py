"""Contraction on factor graphs: without the states that their evidence excludes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...graphs import FactorGraph
from ._marginals import Contracted, contract
from ._scaled_tables import Scope


class Reduction(NamedTuple):
    """A smaller problem with the same answers.

    Variables keep their numbers. One with a single state is in no scope.

    Attributes:
        cardinalities: states left of each variable, at least 1.
        scopes: variables of each table.
        log_tables: nats; first those of the graph's factors, then the evidence.
        kept: which states each variable keeps.
        graph_scopes: the variables of the graph's factors, all of them.
        broken: whether a NaN or +inf was among the numbers.
    """

    cardinalities: list[int]
    scopes: list[Scope]
    log_tables: list[np.ndarray]
    kept: list[np.ndarray]
    graph_scopes: list[Scope]
    broken: bool

    def full_table(self, scope: Scope, log_table: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """A table over all states of its variables: -inf for those left out."""
        full = np.full(shape, -np.inf)
        sizes = [self.cardinalities[v] for v in scope]
        full[np.ix_(*(self.kept[v] for v in scope))] = log_table.reshape(sizes)
        return full

    def full_states(self, states: np.ndarray) -> np.ndarray:
        """States ``[..., variables]`` by their numbers in the graph; -1 stays."""
        out = np.full(states.shape, -1, np.int32)
        for v, ids in enumerate(self.kept):
            out[..., v] = np.where(states[..., v] < 0, -1, ids[states[..., v]])
        return out


def reduce_graph(
    graph: FactorGraph, log_potentials: Sequence[np.ndarray], log_evidence: Sequence[np.ndarray]
) -> Reduction:
    """Leave out excluded states and variables with one state.

    Args:
        graph: the structure, without rules.
        log_potentials: by group, nats; a table per factor, or one that all share.
        log_evidence: by cardinality, nats.
    """
    every = (*log_potentials, *log_evidence)
    broken = any(np.isnan(table).any() or (table == np.inf).any() for table in every)
    scopes = [tuple(row) for rows in graph.group_scopes for row in rows.tolist()]
    tables: list[np.ndarray] = []
    for group, table in zip(graph.signature.groups, log_potentials, strict=True):
        tables += [*np.broadcast_to(table, (group.count, *group.shape))]
    known = graph.unpack_variables(log_evidence)
    kept = [np.flatnonzero(row > -np.inf) for row in known]
    # A variable without a possible state keeps one, whose -inf makes log Z -inf.
    kept = [ids if len(ids) else np.arange(1) for ids in kept]
    small = [len(ids) for ids in kept]
    cut = {v for v, (n, row) in enumerate(zip(small, known, strict=True)) if n < len(row)}
    for k, scope in enumerate(scopes):
        for axis, v in enumerate(scope):
            if v in cut:
                tables[k] = tables[k].take(kept[v], axis=axis)
    own = [tuple(v for v in scope if small[v] > 1) for scope in scopes]
    given = [np.asarray(t).reshape([n for n in t.shape if n > 1]) for t in tables]
    for v, row in enumerate(known):
        if row.any():
            own.append((v,) if small[v] > 1 else ())
            given.append(row[kept[v]].reshape([small[v]] if small[v] > 1 else []))
    return Reduction(small, own, given, kept, scopes, broken)


def contract_graph(
    graph: FactorGraph,
    log_potentials: Sequence[np.ndarray],
    log_evidence: Sequence[np.ndarray],
    factor_beliefs: bool,
    memory_limit: float,
) -> Contracted:
    """`contract` on a graph's tables as arrays by group and by cardinality."""
    reduced = reduce_graph(graph, log_potentials, log_evidence)
    if reduced.broken:
        return Contracted(math.nan, _nan(graph.variables.shapes()), _nan(group_shapes(graph)))
    found = contract(
        reduced.cardinalities,
        reduced.scopes,
        reduced.log_tables,
        of_tables=factor_beliefs,
        memory_limit=memory_limit,
    )
    cards = graph.cardinalities
    full = [reduced.full_table((v,), table, (cards[v],)) for v, table in enumerate(found.variables)]
    by_class = [np.stack([full[v] for v in ids]) for ids in graph.variables.members]
    by_group: list[np.ndarray] | None = None
    if found.tables is not None:
        by_group, at = [], 0
        for group, out in zip(graph.signature.groups, group_shapes(graph), strict=True):
            rows = range(at, at + group.count)
            tables = [
                reduced.full_table(reduced.graph_scopes[k], found.tables[k], group.shape)
                for k in rows
            ]
            by_group.append(np.asarray(tables).reshape(out))
            at += group.count
    return Contracted(found.log_partition, by_class, by_group)


def group_shapes(graph: FactorGraph) -> list[tuple[int, ...]]:
    """Shapes of all tables of each group."""
    return [(group.count, *group.shape) for group in graph.signature.groups]


def _nan(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.full(shape, math.nan) for shape in shapes]
