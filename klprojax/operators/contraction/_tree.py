"""Contraction trees: in which order a factor graph's tables are multiplied and summed.

A tree multiplies two tables at a time and sums a variable as soon as no other table has it; its
cost is the number of products. Candidates are greedy elimination orders and, where these are
costly, greedy pairings; the best are improved by optimal search in small subtrees.

Reference: Gray and Kourtis (2021), hyper-optimised contraction (cotengra).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .._elimination_order import Cluster, TooWide, greedy_order
from ._stored_trees import digest, keep_pairs, stored_pairs

# Trees that take fewer products are good enough: looking for better ones takes longer.
EASY = 2.0**20
# Beyond this many products greedy pairings with noise are tried too.
HARD = 2.0**24
# Improving takes about the time of so many products per table. It may take that of the first number
# in all (5 s), beyond it that of so many contractions.
IMPROVING, PATIENCE, WORTH = 2.0**18, 2.0**30, 48.0
# Where every order meets a table of more entries, no search would make it feasible.
HOPELESS = 50.0
# Entries of the largest table that a search does not bring down to what a machine holds.
BEYOND = 2.0**48
# Products a second, and the share of the predicted time that the search may take.
SPEED, SHARE = 2e8, 0.2

# Changes when the search does: trees kept on disk are those of one search.
_SEARCH = "combo-16 in subtrees of 8, random greedy"

_FIRST_LETTER = 0x10000  # a plane of Unicode without surrogates: a million variables

Pair = tuple[int, int]


class Tree(NamedTuple):
    """Which tables are multiplied, and what is left of each product.

    Attributes:
        scopes: variables of every table: those given, then one for every pair.
        pairs: tables multiplied, by number; a later pair may use the result of an earlier one.
        roots: the tables that remain; they have no variables, or kept ones only.
        products: multiplications in all.
        entries: of all results. largest: of the largest.
    """

    scopes: tuple[tuple[int, ...], ...]
    pairs: tuple[Pair, ...]
    roots: tuple[int, ...]
    products: float
    entries: float
    largest: float

    @property
    def unions(self) -> list[frozenset[int]]:
        """The variables of each pair, before some are summed."""
        return [frozenset(self.scopes[one] + self.scopes[two]) for one, two in self.pairs]


@lru_cache(maxsize=256)
def find_tree(
    cardinalities: tuple[int, ...],
    scopes: tuple[tuple[int, ...], ...],
    seed: int = 0,
    kept: frozenset[int] = frozenset(),
) -> Tree:
    """Search for a cheap tree; the same for the same arguments.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table. A variable of one table only is summed there beforehand,
            so every variable here is in two tables or more.
        seed: of the noise of the search for hard models.
        kept: variables that are not summed; no improvement of greedy orders is searched for then.

    Raises:
        TooWide: every elimination order meets a table of more than ``2**50`` entries.
    """
    if len(scopes) < 2:
        return _grow(cardinalities, scopes, [], kept)
    candidates, failures = [], []
    alike = len({cardinalities[v] for scope in scopes for v in scope}) == 1
    for criterion in ("fill", "weight") if alike else ("fill", "weighted-fill", "weight"):
        try:
            order = greedy_order(cardinalities, scopes, criterion, HOPELESS, kept=kept)
        except TooWide as wide:
            failures.append(wide)
            continue
        pairs = _by_buckets(cardinalities, scopes, order, kept)
        candidates.append(_grow(cardinalities, scopes, pairs, kept))
        if candidates[-1].products < EASY / 2**8:
            break
    if not candidates:
        raise min(failures, key=lambda wide: wide.log2_entries)
    best = min(candidates, key=_cost)
    if kept or best.products < EASY or best.largest > BEYOND:
        return best
    if IMPROVING * len(scopes) > max(PATIENCE, WORTH * best.products):
        return best
    return _improved(cardinalities, scopes, best, seed)


@lru_cache(maxsize=64)
def levelled_tree(
    cardinalities: tuple[int, ...], scopes: tuple[tuple[int, ...], ...], level_cost: float
) -> Tree:
    """The tree of `find_tree`, or one with more products and fewer levels if that costs less.

    A chain of n variables has trees of about ``log n`` levels.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table.
        level_cost: what a level costs, products.

    Raises:
        TooWide: see `find_tree`.
    """

    def cost(tree: Tree) -> float:
        level = [0] * (len(scopes) + len(tree.pairs))
        for n, (one, two) in enumerate(tree.pairs, len(scopes)):
            level[n] = 1 + max(level[one], level[two])
        return tree.products + level_cost * max(level, default=0)

    found = [find_tree(cardinalities, scopes)]
    if cost(found[0]) > 2 * found[0].products:
        for criterion in ("fill", "weight"):
            try:
                order = greedy_order(cardinalities, scopes, criterion, HOPELESS, parallel=True)
            except TooWide:
                continue
            pairs = _by_buckets(cardinalities, scopes, order, frozenset())
            found.append(_grow(cardinalities, scopes, pairs))
    return min(found, key=cost)


def _cost(tree: Tree) -> float:
    # Sums read and write memory; a result costs as much as a few products.
    return tree.products + 16 * tree.entries


def _improved(cards: Sequence[int], scopes: Sequence[Sequence[int]], best: Tree, seed: int) -> Tree:
    name = digest(_SEARCH, tuple(cards), tuple(map(tuple, scopes)), seed)
    kept = stored_pairs(name, len(scopes))
    if kept is not None:
        return min(best, _grow(cards, scopes, kept), key=_cost)
    # Imported here, as most models need neither.
    import cotengra
    import cotengrust

    # One letter per variable, as the compiled search wants.
    names = [tuple(chr(_FIRST_LETTER + v) for v in scope) for scope in scopes]
    sizes = {chr(_FIRST_LETTER + v): card for v, card in enumerate(cards)}

    def reconfigured(pairs: Sequence[Pair]) -> Tree:
        tree = cotengra.ContractionTree.from_path(
            names, (), sizes, ssa_path=_completed(len(scopes), pairs)
        )
        tree.subtree_reconfigure_(subtree_size=8, minimize="combo-16", seed=seed)
        return _grow(cards, scopes, tree.get_ssa_path())

    found = [best, reconfigured(best.pairs)]
    budget = min(map(_cost, found))
    if budget > HARD:
        trials = int(min(max(SHARE * budget / SPEED * 20, 8), 256, max(3e5 / len(scopes), 8)))
        path, _ = cotengrust.optimize_random_greedy_track_flops(
            names, (), sizes, ntrials=trials, seed=seed, use_ssa=True
        )
        greedy = _grow(cards, scopes, path)
        found += [greedy, reconfigured(greedy.pairs)]
    tree = min(found, key=_cost)
    keep_pairs(name, tree.pairs)
    return tree


def _completed(count: int, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, and those that join what they leave apart."""
    used = {k for pair in pairs for k in pair}
    left = [k for k in range(count + len(pairs)) if k not in used]
    out = list(pairs)
    while len(left) > 1:
        out.append((left.pop(0), left.pop(0)))
        left.append(count + len(out) - 1)
    return out


def _by_buckets(
    cards: Sequence[int],
    scopes: Sequence[Sequence[int]],
    order: Sequence[Cluster],
    kept_variables: frozenset[int],
) -> list[Pair]:
    """Pairs of an elimination order: the tables of the variable that goes, smallest union first."""
    live = {k: frozenset(scope) for k, scope in enumerate(scopes)}
    # A table -1 that is never multiplied keeps its variables.
    having = {v: {-1} if v in kept_variables else set[int]() for v in range(len(cards))}
    for k, scope in live.items():
        for v in scope:
            having[v].add(k)
    log2 = [math.log2(card) for card in cards]
    pairs: list[Pair] = []
    number = len(scopes)
    for cluster in order:
        bucket = sorted(having[cluster.variable])
        while len(bucket) > 1:
            one, two = _next_pair(bucket, live, log2)
            union = live[one] | live[two]
            for k in (one, two):
                for v in live[k]:
                    having[v].discard(k)
                bucket.remove(k)
                del live[k]
            kept = frozenset(v for v in union if having[v])
            live[number] = kept
            for v in kept:
                having[v].add(number)
            if bucket:
                bucket.append(number)
            pairs.append((one, two))
            number += 1
    return pairs


def _next_pair(bucket: list[int], live: dict[int, frozenset[int]], log2: list[float]) -> Pair:
    if len(bucket) == 2:
        return bucket[0], bucket[1]

    size = {k: sum(log2[v] for v in live[k]) for k in bucket}
    if len(bucket) > 12:  # all pairs would take too long
        bucket = sorted(bucket, key=lambda k: (size[k], k))[:6]
    choices = [(a, b) for n, a in enumerate(bucket) for b in bucket[n + 1 :]]

    joined = [sum(log2[v] for v in live[a] | live[b]) for a, b in choices]
    growth = [
        (2.0**union - 2.0 ** size[a] - 2.0 ** size[b], (a, b))
        for union, (a, b) in zip(joined, choices, strict=True)
    ]
    return min(growth)[1]


def _grow(
    cards: Sequence[int],
    scopes: Sequence[Sequence[int]],
    pairs: Sequence[Sequence[int]],
    kept: frozenset[int] = frozenset(),
) -> Tree:
    """Follow the pairs: what each result is over, and what all costs.

    Pairs of tables that share no variable are left to the end, where they are numbers.
    """
    left = [int(v in kept) for v in range(len(cards))]
    for scope in scopes:
        for v in scope:
            left[v] += 1
    all_scopes: list[tuple[int, ...]] = [tuple(scope) for scope in scopes]
    kept_pairs: list[Pair] = []
    number = list(range(len(scopes)))  # of each table of the path among those kept
    products = entries = largest = 0.0
    used = set()
    for pair in pairs:
        one, two = (number[k] for k in pair)
        if not all_scopes[one] or not all_scopes[two]:
            number.append(one if all_scopes[one] else two)
            continue
        a, b = all_scopes[one], all_scopes[two]
        inside = set(a)
        union = (*a, *(v for v in b if v not in inside))
        for v in a:
            left[v] -= 1
        for v in b:
            left[v] -= 1
        scope = tuple(v for v in union if left[v])
        for v in scope:
            left[v] += 1
        size = 1.0
        for v in union:
            size *= cards[v]
        result = 1.0
        for v in scope:
            result *= cards[v]
        products += size
        entries += result
        largest = max(largest, result)
        kept_pairs.append((one, two))
        used |= {one, two}
        number.append(len(all_scopes))
        all_scopes.append(scope)
    roots = tuple(k for k in range(len(all_scopes)) if k not in used)
    return Tree(tuple(all_scopes), tuple(kept_pairs), roots, products, entries, largest)
