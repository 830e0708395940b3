"""Exact marginals by pairwise contraction in numpy: no program is compiled.

One sweep up a contraction tree multiplies and sums all tables; the sweep down multiplies in the
other direction: its tables are the derivatives of the log-partition (as in section 4.2, here for
any factor graph). What does not depend on numbers is planned once per structure.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..graphs import FactorGraph
from ._contraction_tree import Tree, find_tree
from ._elimination_order import TooWide
from ._scaled_tables import PairStep, ScaledTable, Scope, from_logs, multiply, plan_step, sum_out


class Contracted(NamedTuple):
    """Log-partition, and logarithms of marginals by variable and by table."""

    log_partition: float
    variables: list[np.ndarray]
    tables: list[np.ndarray] | None


class BeyondMemory(Exception):
    """The tables do not fit: bytes needed, entries of the largest, products to form."""

    def __init__(self, needed: float, largest: float, products: float):
        super().__init__(needed)
        self.needed, self.largest, self.products = needed, largest, products


class _Leaf(NamedTuple):
    """The product of tables over a scope and over parts of it.

    Attributes:
        scope: the variables.
        members: the tables multiplied: number, order of axes, shape that broadcasts.
        gone: axes of the variables that no other leaf has.
    """

    scope: Scope
    members: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    gone: tuple[int, ...]


class _Visit(NamedTuple):
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


class _Program(NamedTuple):
    """All that does not depend on numbers; see `contract`.

    Attributes:
        leaves: tables to begin with.
        tree: in which order they are multiplied. up: its products.
        down: the tables whose derivatives are needed, from the roots down.
        free: variables without a table.
    """

    leaves: tuple[_Leaf, ...]
    tree: Tree
    up: tuple[PairStep, ...]
    down: tuple[_Visit, ...]
    free: tuple[int, ...]


@lru_cache(maxsize=128)
def _plan(
    cards: tuple[int, ...], scopes: tuple[Scope, ...], of_tables: bool, seed: int
) -> _Program:
    """Plan the contraction of tables over these scopes.

    Raises:
        TooWide: see `find_tree`.
    """
    members: dict[int, list[int]] = {}
    for k, h in enumerate(_hosts(len(cards), scopes)):
        members.setdefault(h, []).append(k)
    uses = [0] * len(cards)
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
        leaves.append(_Leaf(scopes[h], tuple(parts), gone))
    known = [tuple(v for v in leaf.scope if uses[v] > 1) for leaf in leaves]
    tree = find_tree(cards, tuple(tuple(sorted(scope)) for scope in known), seed)
    up = []
    for (one, two), scope in zip(tree.pairs, tree.scopes[len(leaves) :], strict=True):
        up.append(plan_step(known[one], known[two], frozenset(scope), cards))
        known.append(up[-1].scope)

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
        down.append(_Visit(node, tuple(reads), of_leaf, tuple(children)))
    free = tuple(v for v, count in enumerate(uses) if not count)
    return _Program(tuple(leaves), tree, tuple(up), tuple(down), free)


def contract_graph(
    graph: FactorGraph,
    log_potentials: Sequence[np.ndarray],
    log_evidence: Sequence[np.ndarray],
    factor_beliefs: bool,
    memory_limit: float,
) -> Contracted:
    """`contract` on a graph's tables as arrays by group and by cardinality.

    States that the evidence excludes are left out of all tables, and a variable with one state left
    out of all scopes.
    """
    every = (*log_potentials, *log_evidence)
    broken = any(np.isnan(table).any() or (table == np.inf).any() for table in every)
    scopes = [tuple(row) for rows in graph.group_scopes for row in rows.tolist()]
    tables: list[np.ndarray] = []
    for group, table in zip(graph.signature.groups, log_potentials, strict=True):
        shared = table.ndim == len(group.shape)
        tables += [table] * group.count if shared else [np.asarray(row) for row in table]
    known = graph.unpack_variables(log_evidence)
    cards = list(graph.cardinalities)
    kept = [np.flatnonzero(row > -np.inf) for row in known]
    # A variable without a possible state keeps one, whose -inf makes log Z -inf.
    kept = [ids if len(ids) else np.arange(1) for ids in kept]
    small = [len(ids) for ids in kept]
    cut = {v for v, (n, card) in enumerate(zip(small, cards, strict=True)) if n < card}
    for k, scope in enumerate(scopes):
        for axis, v in enumerate(scope):
            if v in cut:
                tables[k] = tables[k].take(kept[v], axis=axis)
    own = [tuple(v for v in scope if small[v] > 1) for scope in scopes]
    given = [t.reshape([n for n in t.shape if n > 1]) for t in tables]
    for v, row in enumerate(known):
        if row.any():
            own.append((v,) if small[v] > 1 else ())
            given.append(row[kept[v]].reshape([small[v]] if small[v] > 1 else []))
    if broken:
        found = _everywhere(np.nan, small, given)
    else:
        found = contract(small, own, given, of_tables=factor_beliefs, memory_limit=memory_limit)
    variables = []
    for v, table in enumerate(found.variables):
        full = np.full(cards[v], -np.inf)
        full[kept[v]] = table
        variables.append(full)
    by_class = [np.stack([variables[v] for v in ids]) for ids in graph.variables.members]
    by_group: list[np.ndarray] | None = None
    if found.tables is not None:
        by_group, at = [], 0
        for group in graph.signature.groups:
            full = np.full((group.count, *group.shape), -np.inf)
            for row in range(group.count):
                where = np.ix_(*(kept[v] for v in scopes[at]))
                full[(row, *where)] = found.tables[at].reshape([small[v] for v in scopes[at]])
                at += 1
            by_group.append(full)
    return Contracted(found.log_partition, by_class, by_group)


def contract(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    *,
    of_tables: bool = False,
    memory_limit: float = math.inf,
    seed: int = 0,
) -> Contracted:
    """All marginals of ``p(x) ∝ prod_k exp(log_tables[k])``.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table, ascending or not.
        log_tables: in nats, float64; ``-inf`` is a hard zero.
        of_tables: also the marginals over each table's scope.
        memory_limit: most bytes that tables may take.
        seed: of the search for a tree.

    Returns:
        Marginals as logarithms; -inf throughout if no joint state is possible.

    Raises:
        BeyondMemory: the best tree found needs more memory.
    """
    try:
        program = _plan(tuple(cardinalities), tuple(map(tuple, scopes)), of_tables, seed)
    except TooWide as wide:
        size = 2.0**wide.log2_entries
        raise BeyondMemory(8 * size, size, size) from None
    leaves = []
    for leaf in program.leaves:
        parts = [log_tables[k].transpose(axes).reshape(shape) for k, axes, shape in leaf.members]
        leaves.append(from_logs(np.asarray(sum(parts[1:], parts[0]))))
    tables = [sum_out(t, leaf.gone) for t, leaf in zip(leaves, program.leaves, strict=True)]
    tree = program.tree
    given = sum(table.array.size for table in (*leaves, *tables))
    needed = 8 * (given + tree.entries + 3 * tree.largest)
    if needed > memory_limit:
        raise BeyondMemory(needed, tree.largest, tree.products)
    for (one, two), step in zip(tree.pairs, program.up, strict=True):
        tables.append(multiply(step, tables[one], tables[two]))
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


def _hosts(count: int, scopes: Sequence[Scope]) -> list[int]:
    """For each table one whose scope holds its own: the two are multiplied beforehand."""
    having: list[list[int]] = [[] for _ in range(count)]
    host = list(range(len(scopes)))
    sets = [frozenset(scope) for scope in scopes]
    for k in sorted(range(len(scopes)), key=lambda k: (-len(scopes[k]), k)):
        if not scopes[k]:
            continue
        rarest = min(scopes[k], key=lambda v: len(having[v]))
        host[k] = next((h for h in having[rarest] if sets[k] <= sets[h]), k)
        if host[k] == k:
            for v in scopes[k]:
                having[v].append(k)
    return host
