"""Forests: which graphs are, the level of each factor, and the program of a pass over the levels.

A tree hangs from a variable in its middle. Every factor but its *parent* variable has *children*,
and its level is the number of factors below it on a longest path to a leaf. Levels counted from the
leaves have the property that everything here rests on: a factor needs one of its own at the level
before, so no level is wider than the one before. Levels cut into a few *runs* of about equal width
are therefore scans with little padding, whatever the shape of the tree.
"""

from collections.abc import Iterator
from functools import lru_cache
from heapq import heappush, heapreplace
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from ..graphs import FactorGraph

# What a step of a scan costs besides its rows, and what compiling one more body costs, in rows.
STEP_ROWS, BODY_ROWS = 16, 20_000


class Forest(NamedTuple):
    """A forest's factors, per group.

    levels: level of each factor ``[factors]``; 0 where all children are leaves.
    parents: axis of each factor's parent ``[factors]``; 0 for factors on fewer than two variables,
    which pass nothing on and belong to no level.
    """

    levels: tuple[np.ndarray, ...]
    parents: tuple[np.ndarray, ...]


class Kind(NamedTuple):
    """Factors of one shape that are updated together.

    members: per group and parent axis, the group and its axes, parent first. Factors with a rule
    keep their axes; any of them may be the parent. widths: rows of each member. parents, children:
    per axis the first row of the messages towards the roots and towards the leaves, None without.
    """

    members: tuple[tuple[int, tuple[int, ...]], ...]
    widths: tuple[int, ...]
    parents: tuple[int | None, ...]
    children: tuple[int | None, ...]


class Slots(NamedTuple):
    """Where the messages of one direction go, per class.

    edges: edge of each row ``[levels, rows]``, padded with the number of edges. registers: register
    of the edge's variable ``[levels, rows]``, padded with the number of registers. sources: where
    each register's next content is, counted through the rows, then the registers, ``[levels,
    registers]``. more: the register that a row adds to after that, padded; None where nothing does.
    """

    edges: tuple[np.ndarray, ...]
    registers: tuple[np.ndarray, ...]
    sources: tuple[np.ndarray, ...]
    more: tuple[np.ndarray | None, ...]


class Run(eqx.Module):
    """Successive levels that one scan goes through.

    A variable that is the parent of one factor of the run and a child of another has a *register*,
    which holds its message from one to the other. Registers are used again, and there are never
    more than the first level has factors.

    Attributes:
        kinds: what a level computes.
        registers: number of registers, per class.
        straight: per class, whether rows hand every message on to the row of the same number, one
            level further, so that the messages of a level are the registers as they are.
        rows: per kind and member, the factors of each level ``[levels, rows]``, padded with 0.
        parents, children: slots towards the roots and towards the leaves.
    """

    kinds: tuple[Kind, ...] = eqx.field(static=True)
    registers: tuple[int, ...] = eqx.field(static=True)
    straight: tuple[bool, ...] = eqx.field(static=True)
    rows: tuple[tuple[np.ndarray, ...], ...]
    parents: Slots
    children: Slots


class SweepPlan(eqx.Module):
    """A sweep over a forest.

    Attributes:
        runs: from the leaves to the roots.
        roots: per class, whether a variable is the root of its tree ``[variables]``.
    """

    runs: tuple[Run, ...]
    roots: tuple[np.ndarray, ...]


def is_forest(graph: FactorGraph) -> bool:
    """Whether the factor graph has no cycle, so that `TreeSweep` is exact.

    Args:
        graph: the structure.

    Returns:
        A Python bool.
    """
    return isinstance(_peel(graph), Forest)


def forest(graph: FactorGraph) -> Forest:
    """Hang up the trees.

    Raises:
        ValueError: the graph has a cycle.
    """
    found = _peel(graph)
    if not isinstance(found, Forest):
        raise ValueError(
            f"TreeSweep needs a graph without cycles, but variable {found} is on one. Use "
            "Elimination() for exact answers or another schedule for approximate ones."
        )
    return found


def meetings(graph: FactorGraph) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, variables first, then all factors: how many others each meets, and their xor.

    The xor of one neighbour is that neighbour, and of two it gives either for the other. Factors on
    fewer than two variables are left out.
    """
    n = graph.num_variables
    degree = np.zeros(n + graph.num_factors, np.int64)
    link = np.zeros_like(degree)
    start = n
    for scope in graph.group_scopes:
        count, arity = scope.shape
        nodes = np.arange(start, start + count)
        if arity > 1:
            degree[nodes] = arity
            link[nodes] = np.bitwise_xor.reduce(scope.astype(np.int64), axis=1)
            np.add.at(degree, scope, 1)
            np.bitwise_xor.at(link, scope, nodes[:, None])
        start += count
    return degree, link


@lru_cache(maxsize=32)
def _peel(graph: FactorGraph) -> Forest | int:
    """Take leaves away, the oldest first, until one node is left of each tree: its middle.

    Returns the forest, or a variable that is on a cycle.
    """
    n = graph.num_variables
    degrees, links = meetings(graph)
    height = [0] * len(degrees)
    queue = np.flatnonzero(degrees == 1).tolist()
    degree, link = degrees.tolist(), links.tolist()
    for node in queue:
        if degree[node]:
            parent = link[node]
            link[parent] ^= node
            degree[parent] -= 1
            height[parent] = height[node] + 1  # the last to arrive is the highest
            if degree[parent] == 1:
                queue.append(parent)
    left = np.asarray(degree)
    if (left > 1).any():
        return _on_cycle(graph, left > 1)
    parent, levels, parents, start = np.asarray(link), [], [], n
    for scope in graph.group_scopes:
        nodes = slice(start, start + len(scope))
        start += len(scope)
        # A factor in the middle hangs from its first variable.
        hangs = (scope == parent[nodes, None]) & (left[nodes] == 1)[:, None]
        parents.append(hangs.argmax(axis=1) if scope.shape[1] else np.zeros(len(scope), np.int64))
        levels.append(np.maximum(np.asarray(height[nodes], np.int64) - 1, 0) // 2)
    return Forest(tuple(levels), tuple(parents))


def _on_cycle(graph: FactorGraph, left: np.ndarray) -> int:
    """A variable on a cycle, given the nodes that are on cycles or between them."""
    ways: dict[int, list[int]] = {}
    start = graph.num_variables
    for scope in graph.group_scopes:
        for node, variables in enumerate(scope.tolist(), start):
            for v in variables:
                if left[node] and left[v]:
                    ways.setdefault(node, []).append(v)
                    ways.setdefault(v, []).append(node)
        start += len(scope)
    # Whoever never turns back meets a node again.
    seen: set[int] = set()
    before, node = -1, next(iter(ways))
    while node not in seen or node >= graph.num_variables:
        seen.add(node)
        before, node = node, next(way for way in ways[node] if way != before)
    return node


# -- the program --------------------------------------------------------------------------------


class _Member(NamedTuple):
    """Factors of one group, and one parent axis if they have no rule, by level.

    group, axes: as in `Kind`. rows: the factors. levels: theirs, ascending. scopes: their variables
    ``[factors, arity]``, in the order of ``axes``. towards: which of these is the parent.
    """

    group: int
    axes: tuple[int, ...]
    rows: np.ndarray
    levels: np.ndarray
    scopes: np.ndarray
    towards: np.ndarray


class _Registers(NamedTuple):
    """Per variable its register, -1 where it needs none, and its run; numbers per run and class."""

    of: np.ndarray
    run: np.ndarray
    numbers: list[tuple[int, ...]]


@lru_cache(maxsize=32)
def tree_plan(graph: FactorGraph) -> SweepPlan:
    """The plan of a sweep.

    Raises:
        ValueError: the graph has a cycle.
    """
    members = list(_members(graph, forest(graph)))
    root = np.ones(graph.num_variables, bool)
    for m in members:
        root[m.scopes[~m.towards]] = False
    roots = tuple(root[v] for v in graph.variables.members)
    if not members:
        return SweepPlan((), roots)
    depth = 1 + max(int(m.levels[-1]) for m in members)
    cuts = _cuts(np.array([np.bincount(m.levels, minlength=depth) for m in members]))
    registers = _registers(graph, members, cuts)
    runs = [_run(graph, members, registers, run, span) for run, span in enumerate(pairwise(cuts))]
    return SweepPlan(tuple(runs), roots)


def _members(graph: FactorGraph, hung: Forest) -> Iterator[_Member]:
    for g, (group, scope, level, parent) in enumerate(
        zip(graph.signature.groups, graph.group_scopes, hung.levels, hung.parents, strict=True)
    ):
        arity = len(group.shape)
        if arity < 2:
            continue
        for axis in [None] if group.rule is not None else np.unique(parent).tolist():
            rows = np.arange(group.count) if axis is None else np.flatnonzero(parent == axis)
            rows = rows[np.argsort(level[rows], kind="stable")]
            axes = sorted(range(arity), key=lambda a, axis=axis: a != axis)
            towards = np.asarray(axes) == parent[rows, None]
            yield _Member(g, tuple(axes), rows, level[rows], scope[rows][:, axes], towards)


def _cuts(counts: np.ndarray) -> list[int]:
    """Where runs begin and end: cheapest among the levels where the width passes a power of two.

    Runs between all of these pad at most twofold, and there are as many as the width has bits.
    """
    total = counts.sum(axis=0)
    narrower = np.flatnonzero(np.diff(np.frexp(total)[1])) + 1
    places = [0, *narrower.tolist(), len(total)]
    widest = np.maximum.reduceat(counts, places[:-1], axis=1)
    best: list[tuple[int, list[int]]] = [(0, [0])]
    for b in range(1, len(places)):
        options = []
        for a in range(b):
            width = widest[:, a:b].max(axis=1)
            bodies = np.count_nonzero(width)
            levels = places[b] - places[a]
            cost = levels * (int(width.sum()) + STEP_ROWS * bodies) + BODY_ROWS * (bodies + 4)
            options.append((best[a][0] + cost, [*best[a][1], places[b]]))
        best.append(min(options))
    return best[-1][1]


def _registers(graph: FactorGraph, members: list[_Member], cuts: list[int]) -> _Registers:
    """Give each variable that needs one the register that has been free the longest."""
    never, n = cuts[-1], graph.num_variables
    first, last = np.full(n, never), np.full(n, -1)
    for m in members:
        last[m.scopes[~m.towards]] = np.repeat(m.levels, len(m.axes) - 1)
    # Roots are in no run, -1: nobody waits for them.
    run = np.searchsorted(cuts, last, side="right") - 1
    begins = np.asarray(cuts)[run]
    for m in members:
        parent = m.scopes[m.towards]
        np.minimum.at(first, parent, np.where(m.levels >= begins[parent], m.levels, never))
    needed = np.flatnonzero(first < last)
    needed = needed[np.argsort(first[needed], kind="stable")]
    classes = np.searchsorted(graph.variables.classes, graph.variables.cardinalities)
    of = np.full(n, -1)
    heaps = [[[] for _ in graph.signature.counts] for _ in cuts[1:]]
    columns = needed, run[needed], classes[needed], first[needed], last[needed]
    for v, r, c, begin, end in zip(*(x.tolist() for x in columns), strict=True):
        heap = heaps[r][c]  # when each register is free again, and its number
        if heap and heap[0][0] <= begin:
            of[v] = heap[0][1]
            heapreplace(heap, (end, heap[0][1]))
        else:
            of[v] = len(heap)
            heappush(heap, (end, len(heap)))
    return _Registers(of, run, [tuple(map(len, row)) for row in heaps])


def _run(
    graph: FactorGraph,
    members: list[_Member],
    registers: _Registers,
    run: int,
    span: tuple[int, int],
) -> Run:
    """Lay out the rows of the levels ``span``."""
    depth = span[1] - span[0]
    kinds: dict[Any, list[tuple[_Member, np.ndarray]]] = {}
    for m in members:
        some = slice(*np.searchsorted(m.levels, span))
        level = m.levels[some] - span[0]
        if len(level):
            counts = np.bincount(level, minlength=depth)
            place = np.arange(len(level)) - (np.cumsum(counts) - counts)[level]
            table = np.full((depth, counts.max()), -1)
            table[level, place] = np.arange(some.start, some.stop)
            group = graph.signature.groups[m.group]
            key = m.group if group.rule else tuple(group.shape[a] for a in m.axes)
            kinds.setdefault(key, []).append((m, table))
    (up, parents, came), (down, children, goes) = (
        _slots(graph, list(kinds.values()), registers, run, towards) for towards in (True, False)
    )
    return Run(
        tuple(
            Kind(
                tuple((m.group, m.axes) for m, _ in entries),
                tuple(table.shape[1] for _, table in entries),
                to_parents,
                to_children,
            )
            for entries, to_parents, to_children in zip(kinds.values(), up, down, strict=True)
        ),
        registers.numbers[run],
        tuple(
            a.shape == b.shape and bool((a[:-1] == b[1:]).all())
            for a, b in zip(came, goes, strict=True)
        ),
        tuple(
            tuple(np.where(table < 0, 0, m.rows[table]).astype(np.int32) for m, table in entries)
            for entries in kinds.values()
        ),
        parents,
        children,
    )


def _slots(
    graph: FactorGraph,
    kinds: list[list[tuple[_Member, np.ndarray]]],
    registers: _Registers,
    run: int,
    towards: bool,
) -> tuple[list[tuple[int | None, ...]], Slots, list[np.ndarray]]:
    """Messages in one direction.

    Returns:
        Per kind and axis the first row, the rows, and per class which variable's register they use,
        -1 for none.
    """
    sizes = [len(rows) for rows in graph.wiring.edges]
    blocks = graph.edge_blocks
    edges: list[list[np.ndarray]] = [[] for _ in sizes]
    owners: list[list[np.ndarray]] = [[] for _ in sizes]
    width = [0] * len(sizes)
    places = []
    for entries in kinds:
        mine: list[int | None] = []
        for j in range(len(entries[0][0].axes)):
            real = [(table >= 0) & (m.towards[table, j] == towards) for m, table in entries]
            if not any(valid.any() for valid in real):
                mine.append(None)
                continue
            c = -1
            for (m, table), valid in zip(entries, real, strict=True):
                c, start = blocks[m.group][m.axes[j]]
                edges[c].append(np.where(valid, start + m.rows[table], sizes[c]))
                owners[c].append(np.where(valid, m.scopes[table, j], -1))
            mine.append(width[c])
            width[c] += sum(table.shape[1] for _, table in entries)
        places.append(tuple(mine))
    depth = kinds[0][0][1].shape[0]
    nothing = [np.zeros((depth, 0), np.int64)]
    users = []
    for own in owners:
        owner = np.concatenate(own or nothing, axis=1)
        held = (owner >= 0) & (registers.of[owner] >= 0) & (registers.run[owner] == run)
        users.append(np.where(held, owner, -1))
    columns = [
        _traffic(user, registers.of, count)
        for user, count in zip(users, registers.numbers[run], strict=True)
    ]
    flat = [np.concatenate(e or nothing, axis=1).astype(np.int32) for e in edges]
    slots = Slots(tuple(flat), *(tuple(column) for column in zip(*columns, strict=True)))
    return places, slots, users


def _traffic(
    user: np.ndarray, register_of: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """`Slots.registers`, `Slots.sources` and `Slots.more` of one class."""
    held = user >= 0
    register = np.where(held, register_of[user], count)
    levels, rows = np.nonzero(held)
    _, first = np.unique(user[held], return_index=True)
    sources = np.tile(np.arange(count) + user.shape[1], (len(user), 1))
    sources[levels[first], register[held][first]] = rows[first]
    more = register.copy()
    more[levels[first], rows[first]] = count
    return (
        register.astype(np.int32),
        sources.astype(np.int32),
        more.astype(np.int32) if len(first) < len(levels) else None,
    )
