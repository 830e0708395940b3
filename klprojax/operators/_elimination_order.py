"""Elimination orders: which variable to sum out next, decided on the host.

Greedy orders by min-fill, weighted min-fill and min-weight, and a parallel variant that first
removes whole independent sets of cheap variables, so that a chain of n variables takes log n
rounds instead of n.

Reference: Darwiche (2009), chapter 9; Kjaerulff (1990) for the weighted criteria.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Clusters up to this many entries are cheap enough to be taken out of the greedy order.
PARALLEL_ENTRIES = 2**10


class Cluster(NamedTuple):
    """A variable to sum out and its neighbours when that happens."""

    variable: int
    neighbours: tuple[int, ...]


class TooWide(Exception):
    """The order met a table beyond the limit; carries the log2 of its number of entries."""

    def __init__(self, log2_entries: float, variables: tuple[int, ...]):
        super().__init__(log2_entries)
        self.log2_entries = log2_entries
        self.variables = variables


class _Graph:
    """Neighbour sets that shrink as variables go, with the cost of each next move."""

    def __init__(self, cardinalities: Sequence[int], scopes: Iterable[Sequence[int]]):
        self.cards = cardinalities
        self.log2 = [math.log2(c) for c in cardinalities]
        self.adjacent: dict[int, set[int]] = {v: set() for v in range(len(cardinalities))}
        for scope in scopes:
            for v in scope:
                self.adjacent[v].update(scope)
        for v, around in self.adjacent.items():
            around.discard(v)

    def size(self, v: int) -> float:
        """log2 of the entries of the table that summing out v needs."""
        return self.log2[v] + sum(self.log2[u] for u in self.adjacent[v])

    def cost(self, v: int, criterion: str) -> tuple[float, float]:
        around = self.adjacent[v]
        size = self.size(v)
        if criterion == "weight":
            return (size, 0.0)
        if criterion == "fill":
            degree = len(around)
            present = sum(len(self.adjacent[u] & around) for u in around)
            return ((degree * (degree - 1) - present) / 2, size)
        fill = 0
        for u in around:
            missing = around - self.adjacent[u]
            missing.discard(u)
            fill += self.cards[u] * sum(self.cards[w] for w in missing)
        return (float(fill), size)

    def eliminate(self, v: int) -> tuple[Cluster, set[int]]:
        """Remove v, connect its neighbours; returns those whose cost may have changed."""
        around = self.adjacent.pop(v)
        touched = set(around)
        for u in around:
            mine = self.adjacent[u]
            fresh = around - mine
            fresh.discard(u)
            mine |= around
            mine.discard(u)
            mine.discard(v)
            for w in fresh:
                touched |= self.adjacent[w] & mine
        return Cluster(v, tuple(around)), touched


def greedy_order(
    cardinalities: Sequence[int],
    scopes: Iterable[Sequence[int]],
    criterion: str,
    limit_log2: float,
    parallel: bool = False,
    kept: frozenset[int] = frozenset(),
) -> list[Cluster]:
    """Order all variables greedily.

    Args:
        criterion: "fill", "weighted-fill" or "weight".
        limit_log2: give up at a table of more than ``2**limit_log2`` entries.
        parallel: first remove independent sets of variables with small clusters, in rounds.
        kept: variables left out of the order.

    Raises:
        TooWide: a table beyond the limit.
    """
    graph = _Graph(cardinalities, scopes)
    order: list[Cluster] = []
    if parallel:
        _remove_in_rounds(graph, criterion, order)
    current = {v: graph.cost(v, criterion) for v in graph.adjacent if v not in kept}
    heap = [(cost, v) for v, cost in current.items()]
    heapq.heapify(heap)
    while heap:
        cost, v = heapq.heappop(heap)
        if current.get(v) != cost:
            continue
        if graph.size(v) > limit_log2:
            raise TooWide(graph.size(v), (v, *sorted(graph.adjacent[v])))
        del current[v]
        cluster, touched = graph.eliminate(v)
        order.append(cluster)
        for u in touched:
            if u in current:
                cost = graph.cost(u, criterion)
                if cost != current[u]:
                    current[u] = cost
                    heapq.heappush(heap, (cost, u))
    return order


def _remove_in_rounds(graph: _Graph, criterion: str, order: list[Cluster]) -> None:
    limit = math.log2(PARALLEL_ENTRIES)
    candidates = set(graph.adjacent)
    while True:
        small = [v for v in candidates if graph.size(v) <= limit]
        if not small:
            return
        small.sort(key=lambda v: (graph.cost(v, criterion), v))
        blocked: set[int] = set()
        candidates = set()
        chosen = []
        for v in small:
            if v in blocked:
                candidates.add(v)
                continue
            chosen.append(v)
            blocked.add(v)
            blocked |= graph.adjacent[v]
        for v in chosen:
            cluster, touched = graph.eliminate(v)
            order.append(cluster)
            candidates |= touched
        candidates &= graph.adjacent.keys()
