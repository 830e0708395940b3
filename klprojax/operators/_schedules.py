"""Schedules of belief propagation: which messages a step updates, and in what order.

`Flooding` updates all messages at once, `Residual` those that change most. `Sequential` and
`TreeSweep` go through *batches* of factors, later batches seeing the messages of earlier ones.
"""

import abc
from functools import lru_cache

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int

from ..graphs import FactorGraph

# Per group, which factors each batch updates, [batches, width], padded with the factor count.
Batches = tuple[Int[Array | np.ndarray, "_ _"], ...]


class AbstractSchedule(eqx.Module):
    """Contract: `batches(graph)` gives the order of updates, or None for all at once."""

    @abc.abstractmethod
    def batches(self, graph: FactorGraph) -> Batches | None:
        """Index arrays on the host; ValueError if the schedule does not suit the graph."""


class Flooding(AbstractSchedule):
    """Update every message from the previous step's messages: the paper's normalised BP."""

    def batches(self, graph: FactorGraph) -> None:
        """None: one batch, everything."""
        return


class Residual(AbstractSchedule):
    """Update only messages whose change is at least ``threshold`` times the largest change.

    The parallel form of residual belief propagation: it settles graphs on which flooding
    oscillates. Each step computes all candidate messages and keeps some.

    Reference: Elidan, McGraw, Koller (2006).
    """

    threshold: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"Residual threshold is {self.threshold}; it must be in (0, 1].")

    def batches(self, graph: FactorGraph) -> None:
        """None: the choice depends on the messages."""
        return


class Sequential(AbstractSchedule):
    """Go once through all factors a step, in colour classes that share no variable.

    Factors of one colour do not interact, so they update together; information crosses several
    factors in one step. Converges in fewer steps than flooding, and more often.
    """

    def batches(self, graph: FactorGraph) -> Batches | None:
        """Greedy colouring of the factors, in the order of groups; None without factors."""
        return _sequential_batches(graph) if graph.num_factors else None


class TreeSweep(AbstractSchedule):
    """One upward and one downward pass: exact after a single step on a tree or forest.

    Raises (when used):
        ValueError: the graph has a cycle.

    Reference: Proposition 3.1 (i).
    """

    def batches(self, graph: FactorGraph) -> Batches | None:
        """Levels from the leaves to the roots and back; None without factors."""
        return _tree_batches(graph) if graph.num_factors else None


@lru_cache(maxsize=32)
def _sequential_batches(graph: FactorGraph) -> Batches:
    used: list[set[int]] = [set() for _ in range(graph.num_variables)]
    colours = []
    for scope in graph.group_scopes:
        mine = np.zeros(len(scope), np.int64)
        for row, variables in enumerate(scope.tolist()):
            taken = set().union(*(used[v] for v in variables)) if variables else set()
            colour = next(k for k in range(len(taken) + 1) if k not in taken)
            mine[row] = colour
            for v in variables:
                used[v].add(colour)
        colours.append(mine)
    return pad_batches(colours)


@lru_cache(maxsize=32)
def _tree_batches(graph: FactorGraph) -> Batches:
    depth = _factor_depths(graph)
    top = max((int(d.max(initial=0)) for d in depth), default=0)
    up = pad_batches([top - d for d in depth])
    down = pad_batches(depth)
    return tuple(np.concatenate(pair) for pair in zip(up, down, strict=True))


def is_forest(graph: FactorGraph) -> bool:
    """Whether the factor graph has no cycle, so that `TreeSweep` is exact.

    Args:
        graph: the structure.

    Returns:
        A Python bool.
    """
    return _roots_and_cycle(graph)[1] is None


@lru_cache(maxsize=32)
def _roots_and_cycle(graph: FactorGraph) -> tuple[np.ndarray, int | None]:
    """Component root of each variable, and a variable on a cycle if there is one."""
    parent = np.arange(graph.num_variables)

    def find(v: int) -> int:
        while parent[v] != v:
            parent[v] = parent[parent[v]]
            v = int(parent[v])
        return v

    for scope in graph.group_scopes:
        for variables in scope.tolist():
            for v in variables[1:]:
                a, b = find(variables[0]), find(v)
                if a == b:
                    return parent, v
                parent[a] = b
    return np.array([find(v) for v in range(len(parent))], np.int64), None


def _factor_depths(graph: FactorGraph) -> list[np.ndarray]:
    """Distance of every factor from the middle of its tree, counted in factors."""
    roots, cycle = _roots_and_cycle(graph)
    if cycle is not None:
        raise ValueError(
            f"TreeSweep needs a graph without cycles, but variable {cycle} is on one. Use "
            "Elimination() for exact answers or another schedule for approximate ones."
        )
    scopes = graph.group_scopes
    at: list[list[tuple[int, int]]] = [[] for _ in range(graph.num_variables)]
    for g, scope in enumerate(scopes):
        for row, variables in enumerate(scope.tolist()):
            for v in variables:
                at[v].append((g, row))

    def walk(start: int) -> tuple[list[tuple[int, int, int]], dict[int, int]]:
        """Breadth-first: (group, row, depth) of each factor, and who led to each variable."""
        order, came_from, seen = [], {start: -1}, set()
        frontier, level = [start], 0
        while frontier:
            following = []
            for v in frontier:
                for factor in at[v]:
                    if factor in seen:
                        continue
                    seen.add(factor)
                    order.append((*factor, level))
                    for u in scopes[factor[0]][factor[1]].tolist():
                        if u not in came_from:
                            came_from[u] = v
                            following.append(u)
            frontier, level = following, level + 1
        return order, came_from

    depth = [np.zeros(len(scope), np.int64) for scope in scopes]
    for root in np.unique(roots).tolist():
        # The last variable reached is an end of a longest path; its middle halves the depth.
        _, reached = walk(root)
        end = next(reversed(reached))
        _, back = walk(end)
        path = [next(reversed(back))]
        while back[path[-1]] != -1:
            path.append(back[path[-1]])
        order, _ = walk(path[len(path) // 2])
        for g, row, level in order:
            depth[g][row] = level
    return depth


def pad_batches(levels: list[np.ndarray]) -> Batches:
    """Turn a level per factor, one array per group, into padded batches in order of level.

    A level wider than a group's width is cut into several batches, so one wide level does not pad
    all the others.
    """
    count = max((int(level.max(initial=-1)) + 1 for level in levels), default=0)
    members = [
        np.split(np.argsort(level, kind="stable"), np.cumsum(np.bincount(level, minlength=count)))[
            :count
        ]
        for level in levels
    ]
    widths = [_width([len(m) for m in group]) for group in members]
    rows: list[list[np.ndarray]] = [[] for _ in levels]
    for level in range(count):
        pieces = max(-(-len(group[level]) // w) for group, w in zip(members, widths, strict=True))
        for piece in range(pieces):
            for g, (group, w) in enumerate(zip(members, widths, strict=True)):
                chunk = group[level][piece * w : (piece + 1) * w]
                fill = np.full(w - len(chunk), len(levels[g]))
                rows[g].append(np.concatenate([chunk, fill]).astype(np.int32))
    return tuple(
        np.stack(r) if r else np.zeros((0, w), np.int32) for r, w in zip(rows, widths, strict=True)
    )


def _width(sizes: list[int]) -> int:
    # A batch costs its width plus about 64 columns' worth of fixed work.
    largest = max([1, *sizes])
    options = {1, largest} | {2**k for k in range(1, largest.bit_length())}
    return min(options, key=lambda w: sum(-(-n // w) for n in sizes) * (w + 64))
