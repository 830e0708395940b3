"""What a contraction does, planned once per structure: nothing here depends on numbers."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .._elimination_order import TooWide
from ._scaled_tables import PairStep, Scope, plan_step
from ._tree import SPEED, Tree, find_tree

# The sweeps up and down take about this many times the products of the sweep up.
_BOTH_SWEEPS = 3.0


class BeyondLimits(Exception):
    """The tables do not fit: bytes needed, entries of the largest, predicted seconds."""

    def __init__(self, needed: float, largest: float, seconds: float):
        super().__init__(needed)
        self.needed, self.largest, self.seconds = needed, largest, seconds


class Leaf(NamedTuple):
    """The product of tables over a scope and over parts of it.

    Attributes:
        scope: the variables.
        members: the tables multiplied: number, order of axes, shape that broadcasts.
        gone: axes of the variables that no other leaf has.
    """

    scope: Scope
    members: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    gone: tuple[int, ...]


class Visit(NamedTuple):
    """What is done with the derivative of one table on the way down.

    Attributes:
        node: the table.
        reads: variables whose marginals are read here, each with its product.
        whole: the product that gives the marginal of a whole leaf, if it is wanted.
        children: the two tables it is a product of, as far as their derivatives are needed: each
            with the other and the product.
    """

    node: int
    reads: tuple[tuple[int, PairStep], ...]
    whole: PairStep | None
    children: tuple[tuple[int, int, PairStep], ...]


class Program(NamedTuple):
    """All that does not depend on numbers.

    Attributes:
        leaves: tables to begin with.
        tree: in which order they are multiplied.
        scopes: variables of every table's axes: leaves, then products.
        up: the products.
        down: the tables whose derivatives are needed, from the roots down.
        free: variables without a table.
    """

    leaves: tuple[Leaf, ...]
    tree: Tree
    scopes: tuple[Scope, ...]
    up: tuple[PairStep, ...]
    down: tuple[Visit, ...]
    free: tuple[int, ...]

    def leaf_logs(self, log_tables: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tables to begin with, in logarithms."""
        out = []
        for leaf in self.leaves:
            parts = [
                log_tables[k].transpose(axes).reshape(shape) for k, axes, shape in leaf.members
            ]
            out.append(np.asarray(sum(parts[1:], parts[0])))
        return out

    def summed(self, number: int) -> frozenset[int]:
        """The variables that go when two tables are multiplied, or are a leaf's own."""
        if number < len(self.leaves):
            return frozenset(self.leaves[number].scope) - frozenset(self.scopes[number])
        one, two = self.tree.pairs[number - len(self.leaves)]
        return frozenset(self.scopes[one] + self.scopes[two]) - frozenset(self.scopes[number])

    def needed_bytes(self, given: float) -> float:
        """Bytes of all tables, ``given`` entries to begin with."""
        return 8 * (given + self.tree.entries + 3 * self.tree.largest)

    @property
    def seconds(self) -> float:
        """Predicted time of both sweeps."""
        return _BOTH_SWEEPS * self.tree.products / SPEED

    def check_memory(self, given: float, memory_limit: float) -> None:
        """Raise `BeyondLimits` if products and given entries do not fit."""
        needed = self.needed_bytes(given)
        if needed > memory_limit:
            raise BeyondLimits(needed, self.tree.largest, self.seconds)


def planned(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    of_tables: bool = False,
    seed: int = 0,
    kept: Sequence[int] = (),
) -> Program:
    """`plan_contraction`, remembered.

    Raises:
        BeyondLimits: no tree was found with tables that any machine holds.
    """
    try:
        return plan_contraction(
            tuple(cardinalities), tuple(map(tuple, scopes)), of_tables, seed, frozenset(kept)
        )
    except TooWide as wide:
        size = 2.0**wide.log2_entries
        raise BeyondLimits(8 * size, size, _BOTH_SWEEPS * size / SPEED) from None


def with_all(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    variables: Iterable[int],
) -> tuple[list[Scope], list[np.ndarray]]:
    """Scopes and tables, and a table of zeros for each of the variables that is in none."""
    alone = sorted(set(variables).difference(*scopes))
    zeros = [np.zeros(cardinalities[v]) for v in alone]
    return [*scopes, *((v,) for v in alone)], [*log_tables, *zeros]


@lru_cache(maxsize=128)
def plan_contraction(
    cards: tuple[int, ...],
    scopes: tuple[Scope, ...],
    of_tables: bool = False,
    seed: int = 0,
    kept: frozenset[int] = frozenset(),
) -> Program:
    """Plan the contraction of tables over these scopes.

    Args:
        cards: states of each variable.
        scopes: variables of each table.
        of_tables: whether the sweep down is for marginals over the tables' scopes too.
        seed: of the search for a tree.
        kept: variables that stay, so that roots are tables over them; there is no sweep down then.

    Raises:
        TooWide: see `find_tree`.
    """
    leaves, known = leaves_of(cards, scopes, kept)
    tree = find_tree(cards, tuple(tuple(sorted(scope)) for scope in known), seed, kept)
    up = []
    for (one, two), scope in zip(tree.pairs, tree.scopes[len(leaves) :], strict=True):
        up.append(plan_step(known[one], known[two], frozenset(scope), cards))
        known.append(up[-1].scope)
    free = tuple(sorted(set(range(len(cards))).difference(kept, *scopes)))
    if kept:
        return Program(tuple(leaves), tree, tuple(known), tuple(up), (), free)

    read: dict[int, list[int]] = {}
    for number, pair in enumerate(tree.pairs, len(leaves)):
        # Every variable's marginal is read in the smaller of the last two tables it is in.
        node = min(pair, key=lambda k: math.prod(cards[v] for v in known[k]))
        for v in set(known[node]) - set(known[number]):
            read.setdefault(node, []).append(v)
    whole = [n for n, leaf in enumerate(leaves) if of_tables or leaf.gone]
    parents = {k: n for n, pair in enumerate(tree.pairs, len(leaves)) for k in pair}
    needed = {*read, *whole}
    for node in tuple(needed):
        while node in parents and parents[node] not in needed:
            node = parents[node]
            needed.add(node)
    above: dict[int, Scope] = dict.fromkeys(needed & set(tree.roots), ())
    down = []
    for node in sorted(needed, reverse=True):
        own = above.pop(node)
        reads = [(v, plan_step(known[node], own, {v}, cards)) for v in sorted(read.get(node, ()))]
        of_leaf, children = None, []
        if node >= len(leaves):
            pair = tree.pairs[node - len(leaves)]
            for child, other in (pair, pair[::-1]):
                if child in needed:
                    step = plan_step(own, known[other], frozenset(known[child]), cards)
                    above[child] = step.scope
                    children.append((child, other, step))
        elif node in whole:
            scope = leaves[node].scope
            of_leaf = plan_step(scope, own, frozenset(scope), cards)
        down.append(Visit(node, tuple(reads), of_leaf, tuple(children)))
    return Program(tuple(leaves), tree, tuple(known), tuple(up), tuple(down), free)


def leaves_of(
    cards: Sequence[int], scopes: Sequence[Scope], kept: frozenset[int] = frozenset()
) -> tuple[list[Leaf], list[Scope]]:
    """Which tables are multiplied beforehand, and what each leaf is over without its own axes.

    Args:
        cards: states of each variable.
        scopes: variables of each table.
        kept: variables that are not summed.
    """
    members: dict[int, list[int]] = {}
    for k, h in enumerate(_hosts(cards, scopes)):
        members.setdefault(h, []).append(k)
    uses = [int(v in kept) for v in range(len(cards))]
    for h in members:
        for v in scopes[h]:
            uses[v] += 1
    leaves = []
    for h, own in members.items():
        parts = []
        for k in own:
            place = [scopes[h].index(v) for v in scopes[k]]
            shape = [cards[v] if v in scopes[k] else 1 for v in scopes[h]]
            parts.append((k, tuple(np.argsort(place).tolist()), tuple(shape)))
        gone = tuple(axis for axis, v in enumerate(scopes[h]) if uses[v] == 1)
        leaves.append(Leaf(scopes[h], tuple(parts), gone))
    return leaves, [tuple(v for v in leaf.scope if uses[v] > 1) for leaf in leaves]


def _hosts(cards: Sequence[int], scopes: Sequence[Scope]) -> list[int]:
    """For each table one whose scope holds its own: the two are multiplied beforehand.

    Of several, one with few tables already, then a small one.
    """
    having: list[list[int]] = [[] for _ in cards]
    host = list(range(len(scopes)))
    guests = [0] * len(scopes)
    sets = [frozenset(scope) for scope in scopes]
    sizes = [math.prod(cards[v] for v in scope) for scope in scopes]
    for k in sorted(range(len(scopes)), key=lambda k: (-len(scopes[k]), k)):
        if not scopes[k]:
            continue
        rarest = min(scopes[k], key=lambda v: len(having[v]))
        fitting = [h for h in having[rarest] if sets[k] <= sets[h]]
        if fitting:
            host[k] = min(fitting, key=lambda h: (guests[h], sizes[h], h))
            guests[host[k]] += 1
        else:
            for v in scopes[k]:
                having[v].append(k)
    return host
