"""Exact marginals by pairwise contraction in numpy: no program is compiled.

Tables are kept with their largest entry at 1 and its logarithm apart, in linear space as long as
no entry can fall below the float range, else as logarithms. Which it is follows from a lower bound
on the positive entries, so that every entry keeps its digits, however improbable it is, and `-inf`
stays excluded. The downward sweep multiplies in the other direction: its tables are the
derivatives of the log-partition (as in section 4.2, here for any factor graph).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..graphs import FactorGraph
from ._contraction_tree import Tree, find_tree
from ._elimination_order import TooWide

# Logarithms of entries that linear space holds with all digits; products of two of them are
# normal numbers above the lower one.
LEAST, PRODUCT_LEAST = -300.0, -690.0
# A bound is replaced by the least entry itself when it is looser than this.
LOOSE = -150.0
# Entries worked on together, so that they stay in the cache.
BLOCK = 2**15

Scope = tuple[int, ...]


class ScaledTable(NamedTuple):
    """A table over variables, up to the factor ``exp(scale)``.

    Attributes:
        scope: variable of each axis.
        array: entries, the largest 1; or their logarithms, the largest 0.
        scale: logarithm of the largest entry; -inf if there is none above 0.
        low: at most the logarithm of the least positive entry.
        is_log: whether the entries are logarithms.
    """

    scope: Scope
    array: np.ndarray
    scale: float
    low: float
    is_log: bool

    def logs(self) -> np.ndarray:
        """Logarithms of the entries."""
        if self.is_log:
            return self.array
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.array))


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


def from_logs(scope: Scope, logs: np.ndarray) -> ScaledTable:
    """A table from logarithms."""
    top = float(np.max(logs, initial=-np.inf))
    if top == -np.inf:
        return ScaledTable(scope, np.zeros_like(logs), -np.inf, 0.0, False)
    logs = np.asarray(logs - top)
    low = float(np.min(logs, where=logs > -np.inf, initial=0.0))
    if low < LEAST:
        return ScaledTable(scope, logs, top, low, True)
    return ScaledTable(scope, np.asarray(np.exp(logs)), top, low, False)


def _from_entries(scope: Scope, array: np.ndarray, scale: float, low: float) -> ScaledTable:
    """A table from entries that are at least ``exp(low)`` where they are positive."""
    top = float(np.max(array, initial=0.0))
    if top == 0.0:
        return ScaledTable(scope, array, -np.inf, 0.0, False)
    array = np.asarray(array / top) if not array.ndim else np.divide(array, top, out=array)
    shift = math.log(top)
    low -= shift
    if low < LOOSE:
        low = float(np.log(np.min(array, where=array > 0, initial=1.0)))
    if low < LEAST:
        with np.errstate(divide="ignore"):
            return ScaledTable(scope, np.log(array), scale + shift, low, True)
    return ScaledTable(scope, array, scale + shift, low, False)


def multiply(one: ScaledTable, two: ScaledTable, kept: frozenset[int] | set[int]) -> ScaledTable:
    """The product of two tables, summed over what is not kept."""
    shared = set(one.scope) & set(two.scope)
    batch = [v for v in one.scope if v in shared and v in kept]
    rows = [v for v in one.scope if v not in shared]
    columns = [v for v in two.scope if v not in shared]
    gone = [v for v in one.scope if v in shared and v not in kept]
    scope = (*batch, *rows, *columns)
    scale = one.scale + two.scale
    sizes = {v: n for t in (one, two) for v, n in zip(t.scope, t.array.shape, strict=True)}
    shape = tuple(sizes[v] for v in scope)
    if scale == -np.inf:
        return ScaledTable(scope, np.zeros(shape), -np.inf, 0.0, False)
    in_logs = one.is_log or two.is_log or one.low + two.low < PRODUCT_LEAST
    count = [math.prod(sizes[v] for v in part) for part in (batch, rows, columns, gone)]
    a, b = (t.logs() if in_logs else t.array for t in (one, two))
    if in_logs:
        a = _arranged(a, one.scope, gone, rows, batch).reshape(count[3], count[1], 1, count[0])
        b = _arranged(b, two.scope, gone, columns, batch).reshape(count[3], 1, count[2], count[0])
        out = np.moveaxis(_sum_of_logs(a, b), 2, 0).reshape(shape)
        found = from_logs(scope, out)
        return found._replace(scale=found.scale + scale)
    if count[3] == 1:
        a = _arranged(a, one.scope, batch, rows, gone).reshape(count[0], count[1], 1)
        b = _arranged(b, two.scope, batch, columns, gone).reshape(count[0], 1, count[2])
        out = a * b
    elif count[0] <= 8 or count[1] * count[2] * count[3] >= 2**11:
        a = _arranged(a, one.scope, batch, rows, gone).reshape(count[0], count[1], count[3])
        b = _arranged(b, two.scope, batch, gone, columns).reshape(count[0], count[3], count[2])
        out = np.matmul(a, b)
    else:
        a = _arranged(a, one.scope, gone, rows, batch).reshape(count[3], count[1], 1, count[0])
        b = _arranged(b, two.scope, gone, columns, batch).reshape(count[3], 1, count[2], count[0])
        out, scope = _sum_of_products(a, b), (*rows, *columns, *batch)
        shape = tuple(sizes[v] for v in scope)
    return _from_entries(scope, out.reshape(shape), scale, one.low + two.low)


def _arranged(array: np.ndarray, scope: Scope, *parts: list[int]) -> np.ndarray:
    place = {v: axis for axis, v in enumerate(scope)}
    return array.transpose([place[v] for part in parts for v in part])


def _sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``sum_k a[k] b[k]`` of arrays ``[k, rows, columns, batch]``, in blocks of the batch."""
    rows, columns, batch = a.shape[1], b.shape[2], a.shape[3]
    out = np.empty((rows, columns, batch))
    width = max(BLOCK // (rows * columns), 1)
    for start in range(0, batch, width):
        part = slice(start, start + width)
        total = np.multiply(a[0, ..., part], b[0, ..., part], out=out[..., part])
        for k in range(1, len(a)):
            total += a[k, ..., part] * b[k, ..., part]
    return out


def _sum_of_logs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of logarithms: ``log sum_k exp(a[k] + b[k])``."""
    rows, columns, batch = a.shape[1], b.shape[2], a.shape[3]
    out = np.empty((rows, columns, batch))
    width = max(BLOCK // (rows * columns), 1)
    for start in range(0, batch, width):
        part = slice(start, start + width)
        top = a[0, ..., part] + b[0, ..., part]
        for k in range(1, len(a)):
            np.maximum(top, a[k, ..., part] + b[k, ..., part], out=top)
        shift = np.where(top == -np.inf, 0.0, top)
        total = np.zeros_like(top)
        for k in range(len(a)):
            total += np.exp(a[k, ..., part] + b[k, ..., part] - shift)
        with np.errstate(divide="ignore"):
            out[..., part] = np.log(total) + shift
    return out


def _summed(table: ScaledTable, kept: Sequence[int]) -> ScaledTable:
    """A table summed over the variables that are not kept."""
    axes = tuple(axis for axis, v in enumerate(table.scope) if v not in kept)
    scope = tuple(v for v in table.scope if v in kept)
    if not axes:
        return table
    if not table.is_log:
        total = np.asarray(table.array.sum(axis=axes))
        return _from_entries(scope, total, table.scale, table.low)
    top = np.max(table.array, axis=axes, keepdims=True)
    shift = np.where(top == -np.inf, 0.0, top)
    with np.errstate(divide="ignore"):
        logs = np.log(np.exp(table.array - shift).sum(axis=axes)) + shift.squeeze(axes)
    found = from_logs(scope, np.asarray(logs))
    return found._replace(scale=found.scale + table.scale)


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
    scopes = [tuple(row) for rows in graph.group_scopes for row in rows.tolist()]
    tables: list[np.ndarray] = []
    for group, table in zip(graph.signature.groups, log_potentials, strict=True):
        shared = table.ndim == len(group.shape)
        tables += [table] * group.count if shared else [np.asarray(row) for row in table]
    known = graph.unpack_variables(log_evidence)
    cards = list(graph.cardinalities)
    kept = [np.flatnonzero(row > -np.inf) for row in known]
    kept = [
        ids if len(ids) else np.arange(1) for ids in kept
    ]  # an excluded variable's log Z is -inf
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
    if any(np.isnan(table).any() or (table == np.inf).any() for table in given):
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
        Contracted as logarithms; -inf throughout if no joint state is possible.

    Raises:
        BeyondMemory: the best tree found needs more memory.
    """
    host = _hosts(len(cardinalities), scopes)
    members: dict[int, list[int]] = {}
    for k, h in enumerate(host):
        members.setdefault(h, []).append(k)
    leaves = [_joined(scopes[h], own, scopes, log_tables) for h, own in members.items()]
    uses = [0] * len(cardinalities)
    for leaf in leaves:
        for v in leaf.scope:
            uses[v] += 1
    private = [[v for v in leaf.scope if uses[v] == 1] for leaf in leaves]
    tables = [_summed(leaf, [v for v in leaf.scope if uses[v] > 1]) for leaf in leaves]
    reduced = tuple(tuple(sorted(table.scope)) for table in tables)
    try:
        tree = find_tree(tuple(cardinalities), reduced, seed)
    except TooWide as wide:
        size = 2.0**wide.log2_entries
        raise BeyondMemory(8 * size, size, size) from None
    given = sum(table.array.size for table in (*leaves, *tables))
    needed = 8 * (given + tree.entries + 3 * tree.largest)
    if needed > memory_limit:
        raise BeyondMemory(needed, tree.largest, tree.products)
    for one, two in tree.pairs:
        tables.append(multiply(tables[one], tables[two], frozenset(tree.scopes[len(tables)])))
    log_partition = math.fsum(tables[k].scale for k in tree.roots)
    log_partition += math.fsum(
        math.log(c) for c, n in zip(cardinalities, uses, strict=True) if not n
    )
    if log_partition == -math.inf:
        return _everywhere(-math.inf, cardinalities, log_tables)

    variables = [np.full(card, -math.log(card)) for card in cardinalities]
    found: list[np.ndarray] | None = [np.zeros(0)] * len(scopes) if of_tables else None
    read = _readers(tree, tables)
    wanted = {*read, *(n for n in range(len(leaves)) if of_tables or private[n])}
    for node, above in _derivatives(tree, tables, wanted):
        for v in read.get(node, ()):
            table = multiply(tables[node], above, {v})
            variables[v] = _normalised(table, (v,))
        if node >= len(leaves) or not (of_tables or private[node]):
            continue
        whole = multiply(leaves[node], above, frozenset(leaves[node].scope))
        for v in private[node]:
            variables[v] = _normalised(_summed(whole, (v,)), (v,))
        if found is not None:
            for k in list(members.values())[node]:
                found[k] = _normalised(_summed(whole, scopes[k]), scopes[k])
    return Contracted(log_partition, variables, found)


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


def _joined(
    scope: Scope, members: list[int], scopes: Sequence[Scope], log_tables: Sequence[np.ndarray]
) -> ScaledTable:
    """The product of tables over a scope and over parts of it."""
    total = None
    for k in members:
        table = log_tables[k]
        if scopes[k] != scope:
            place = [scope.index(v) for v in scopes[k]]
            table = table.transpose(np.argsort(place))
            shape = [1] * len(scope)
            for axis, n in zip(sorted(place), table.shape, strict=True):
                shape[axis] = n
            table = table.reshape(shape)
        total = table if total is None else total + table
    return from_logs(scope, np.asarray(total))


def _readers(tree: Tree, tables: Sequence[ScaledTable]) -> dict[int, list[int]]:
    """Where the marginal of each variable is read: the smaller of the last two tables it is in."""
    read: dict[int, list[int]] = {}
    first = len(tree.scopes) - len(tree.pairs)
    for number, pair in enumerate(tree.pairs, first):
        node = min(pair, key=lambda k: tables[k].array.size)
        for v in set(tree.scopes[node]) - set(tree.scopes[number]):
            read.setdefault(node, []).append(v)
    return read


def _derivatives(
    tree: Tree, tables: list[ScaledTable], wanted: set[int]
) -> Iterator[tuple[int, ScaledTable]]:
    """Derivatives of the product of all in each wanted table, from the roots down.

    Tables are let go of as soon as nothing needs them.
    """
    first = len(tree.scopes) - len(tree.pairs)
    parents = {k: n for n, pair in enumerate(tree.pairs, first) for k in pair}
    needed = set(wanted)
    for node in wanted:
        while node in parents and parents[node] not in needed:
            node = parents[node]
            needed.add(node)
    one = ScaledTable((), np.ones(()), 0.0, 0.0, False)
    above = dict.fromkeys(needed & set(tree.roots), one)
    for node in sorted(needed, reverse=True):
        own = above.pop(node)
        if node in wanted:
            yield node, own
        if node < first:
            continue
        pair = tree.pairs[node - first]
        for child, other in (pair, pair[::-1]):
            if child in needed:
                kept = frozenset(tree.scopes[child])
                above[child] = multiply(own, tables[other], kept)
        tables[node] = one


def _normalised(table: ScaledTable, scope: Scope) -> np.ndarray:
    """Log-probabilities over a scope, in its order."""
    logs = _arranged(table.logs(), table.scope, list(scope))
    return np.asarray(logs - np.log(np.exp(logs).sum()))  # the largest is 0
