"""How a tensor structure is evaluated: gathers for its products, scans over its levels."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ._structure import Node, TensorStructure

INPUTS, TABLES, POOL = -1, -2, -3

# A level whose children come from more sources first collects them in one array: the number of
# sources may grow with the depth.
MOST_SOURCES = 4

# A scan over fewer levels is not worth the loop; unrolled, XLA fuses across them.
SHORTEST_SCAN = 3

# Levels of one scan are padded to the widest. What is compiled by itself costs time once, padding
# costs time in every pass: a level more to compile is as bad as so large a part of all nodes more.
PIECE = 0.06


class Part(NamedTuple):
    """Children from one source: a level, `INPUTS`, `TABLES` or the product's `POOL`.

    ``rows`` are ``[nodes, children]`` if every node has equally many; otherwise ``[edges]``, and
    ``parents`` are the edges' nodes, ascending.
    """

    source: int
    rows: np.ndarray
    parents: np.ndarray | None = None


class Product(NamedTuple):
    """Products of one level, or its mixtures.

    ``nodes`` are counted over all levels. ``pool`` lists what the source `POOL` consists of: rows
    of other sources, one after the other. A level of mixtures has one part for every number of
    children, and its nodes in that order.
    """

    parts: tuple[Part, ...]
    nodes: np.ndarray
    pool: tuple[tuple[int, np.ndarray], ...] = ()


class Edges(NamedTuple):
    """Children and parents ``[levels, edges]``; a parent past the last node is none."""

    rows: np.ndarray
    parents: np.ndarray


class Scan(NamedTuple):
    """Levels of one width, padded with nodes that nothing reads.

    ``nodes`` are ``[levels, width]``, ``inputs`` ``[levels, width, children]``. ``tables`` are
    children that are tables, None if there are none; ``below`` those in the level below, None if
    every node has its counterpart there. ``in_order``: the children below are the first of all, one
    after the other.
    """

    nodes: np.ndarray
    inputs: np.ndarray
    tables: Edges | None
    below: Edges | None
    in_order: bool


class Step(NamedTuple):
    """Levels ``first`` to ``last``: the first by itself, then a scan if there are several."""

    first: int
    last: int
    scan: Scan | None = None


class Plan(NamedTuple):
    """Everything the evaluation needs besides numbers.

    A sum node over a single input has one value per state of its variable: its values are read
    from a table as an input's are. These are the source `TABLES`: ``table_nodes`` are the sum
    nodes, ``table_inputs`` the inputs below them. All other sum nodes are in ``products``.
    """

    table_nodes: np.ndarray
    table_inputs: np.ndarray
    products: tuple[Product, ...]
    root: Product
    steps: tuple[Step, ...]


@lru_cache(maxsize=64)
def make_plan(s: TensorStructure) -> Plan:
    """Plan the evaluation of a structure."""
    sources = np.full(s.starts[-1], INPUTS)
    rows = np.arange(s.starts[-1])
    nodes = [node for level in s.levels for node in level]
    mixed = np.repeat(
        [level in s.mixing for level in range(len(s.levels))], [len(level) for level in s.levels]
    )
    tables = [
        n
        for n, node in enumerate(nodes)
        if len(node) == 1 and node[0] < s.num_inputs and not mixed[n]
    ]
    ids = np.asarray(tables, np.int64) + s.num_inputs
    sources[ids] = TABLES
    rows[ids] = np.arange(len(ids))
    products = []
    for number, first in enumerate(s.starts[:-1]):
        own = [n for n in range(first, s.starts[number + 1]) if sources[n] != TABLES]
        own = [n - s.num_inputs for n in own]
        make = _mixtures if number in s.mixing else _product
        product = make([nodes[n] for n in own], own, sources, rows)
        products.append(product)
        sources[product.nodes + s.num_inputs] = number
        rows[product.nodes + s.num_inputs] = np.arange(len(own))
    root = _product(s.roots, range(len(s.roots)), sources, rows)
    return Plan(
        np.asarray(tables, np.int64),
        np.asarray([nodes[n][0] for n in tables], np.int64),
        tuple(products),
        root,
        _steps(products, root, s.mixing),
    )


def _product(
    nodes: Sequence[Node], numbers: Sequence[int], sources: np.ndarray, rows: np.ndarray
) -> Product:
    counts = np.fromiter(map(len, nodes), np.int64, len(nodes))
    parents = np.repeat(np.arange(len(nodes)), counts)
    children = np.fromiter((child for node in nodes for child in node), np.int64, len(parents))
    pool: tuple[tuple[int, np.ndarray], ...] = ()
    origins, places = sources[children], rows[children]
    if len(np.unique(origins)) > MOST_SOURCES:
        pool, places = _pool(children, sources, rows)
        origins = np.full(len(children), POOL)
    parts = []
    for source in np.unique(origins):
        chosen = origins == source
        own, above = places[chosen], parents[chosen]
        each = np.bincount(above, minlength=len(nodes))
        if (each == each[0]).all():
            parts.append(Part(int(source), own.reshape(len(nodes), -1)))
        else:
            parts.append(Part(int(source), own, above.astype(np.int32)))
    parts.sort(key=lambda part: part.parents is not None)  # regular ones are where the sum starts
    return Product(tuple(parts), np.asarray(numbers, np.int64), pool)


def _mixtures(
    nodes: Sequence[Node], numbers: Sequence[int], sources: np.ndarray, rows: np.ndarray
) -> Product:
    by_count: dict[int, list[int]] = {}
    for position, node in enumerate(nodes):
        by_count.setdefault(len(node), []).append(position)
    # The children of a mixture keep their order, which is that of its weights.
    children = np.concatenate([np.asarray(node, np.int64) for node in nodes])
    pool, places = _pool(children, sources, rows)
    starts = np.cumsum([0, *map(len, nodes)])
    parts = tuple(
        Part(POOL, np.stack([places[starts[k] : starts[k + 1]] for k in own]))
        for own in by_count.values()
    )
    order = [numbers[k] for own in by_count.values() for k in own]
    return Product(parts, np.asarray(order, np.int64), pool)


def _pool(
    children: np.ndarray, sources: np.ndarray, rows: np.ndarray
) -> tuple[tuple[tuple[int, np.ndarray], ...], np.ndarray]:
    """What a pool of children consists of, and where each child is in it."""
    flat = np.unique(children)
    flat = flat[np.lexsort((rows[flat], sources[flat]))]
    place = np.zeros(len(rows), np.int64)
    place[flat] = np.arange(len(flat))
    found = np.unique(sources[flat])
    return tuple((int(k), rows[flat[sources[flat] == k]]) for k in found), place[children]


def _steps(products: Sequence[Product], root: Product, mixing: Sequence[int]) -> tuple[Step, ...]:
    """Join levels that read only inputs, tables and the level below, which nothing else reads."""
    users: list[set[int]] = [set() for _ in products]
    for level, product in enumerate((*products, root)):
        for source in (*(part.source for part in product.parts), *(k for k, _ in product.pool)):
            if source >= 0:
                users[source].add(level)
    sizes = np.asarray([len(product.nodes) for product in products], np.int64)
    runs: list[tuple[int, int]] = []
    for level in np.flatnonzero(sizes).tolist():
        first, last = runs[-1] if runs else (-1, -1)
        product = products[level]
        joins = (
            runs
            and last == level - 1
            and first not in mixing
            and level not in mixing
            and users[level - 1] == {level}
            and _continues(product, level)
            # The first level is evaluated by itself and may be of any kind.
            and (first == last or _inputs(product).shape[1] == _inputs(products[last]).shape[1])
        )
        if joins:
            runs[-1] = (first, level)
        else:
            runs.append((level, level))
    out: list[Step] = []
    for first, last in runs:
        for start, stop in _cut(sizes[first : last + 1], PIECE * sizes.sum()):
            start, stop = first + start, first + stop
            scan = _scan(products, start, stop) if stop > start else None
            out.append(Step(start, stop, scan))
    return tuple(out)


def _cut(sizes: np.ndarray, piece: float) -> list[tuple[int, int]]:
    """Cut a run of levels into single levels and scans: fewest pieces and least padding.

    Shortest path over the ends of the pieces, their first and last levels in the answer.
    """
    best, begins = np.zeros(len(sizes) + 1), np.zeros(len(sizes), np.int64)
    for end in range(len(sizes)):
        back = sizes[end::-1]
        padding = np.arange(1, end + 2) * np.maximum.accumulate(back) - np.cumsum(back)
        costs = best[end::-1] + padding + 3 * piece  # a level by itself, and the loop
        costs[:SHORTEST_SCAN] = np.inf
        costs[0] = best[end] + piece
        length = int(np.argmin(costs))
        best[end + 1], begins[end] = costs[length], end - length
    out, end = [], len(sizes) - 1
    while end >= 0:
        out.append((int(begins[end]), end))
        end = int(begins[end]) - 1
    return out[::-1]


def _continues(product: Product, level: int) -> bool:
    found = {part.source for part in product.parts}
    regular = all(part.parents is None for part in product.parts if part.source == INPUTS)
    return level - 1 in found and found <= {INPUTS, TABLES, level - 1} and regular


def _inputs(product: Product) -> np.ndarray:
    """The inputs among the children, ``[nodes, children]``."""
    for part in product.parts:
        if part.source == INPUTS:
            return part.rows
    return np.zeros((len(product.nodes), 0), np.int64)


def _scan(products: Sequence[Product], first: int, last: int) -> Scan:
    width = max(len(product.nodes) for product in products[first : last + 1])
    own = products[first + 1 : last + 1]

    def padded(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, np.repeat(rows[:1], width - len(rows), axis=0)])

    def edges(sources: Sequence[int]) -> Edges | None:
        found = []
        for product, source in zip(own, sources, strict=True):
            rows, parents = np.zeros(0, np.int64), np.zeros(0, np.int64)
            for part in product.parts:
                if part.source == source:
                    rows, parents = part.rows.reshape(-1), part.parents
                    if parents is None:
                        parents = np.repeat(np.arange(len(part.rows)), part.rows.shape[1])
            found.append((rows, parents))
        most = max(len(rows) for rows, _ in found)
        if not most:
            return None
        fill = np.arange(most) if most <= width else np.zeros(most, np.int64)
        return Edges(
            np.stack([np.r_[rows, fill[len(rows) :]] for rows, _ in found]).astype(np.int32),
            np.stack(
                [np.r_[above, np.full(most - len(above), width)] for _, above in found]
            ).astype(np.int32),
        )

    below = edges(range(first, last))
    assert below is not None  # every level reads the one below
    in_order = bool((below.rows == np.arange(below.rows.shape[1])).all())
    if in_order and np.array_equal(below.parents, np.tile(np.arange(width), (len(own), 1))):
        below = None
    return Scan(
        np.stack([padded(product.nodes) for product in own]),
        np.stack([padded(_inputs(product)) for product in own]),
        edges([TABLES] * len(own)),
        below,
        in_order,
    )
