"""How a tensor structure is evaluated: gathers for its products, scans for its chains."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ._structure import Node, TensorStructure

INPUTS, TABLES, POOL = -1, -2, -3

# Shorter chains are unrolled: they compile fast and XLA fuses across their levels.
SHORTEST_SCAN = 8

# A level whose children come from more combinations of sources first collects them in one array:
# the number of combinations may grow with the square of the depth.
MOST_GROUPS = 6


class Part(NamedTuple):
    """Children from one source, a level, `INPUTS`, `TABLES` or the product's `POOL`.

    ``rows`` are ``[nodes, children]``.
    """

    source: int
    rows: np.ndarray


Group = tuple[Part, ...]


class Product(NamedTuple):
    """Products of one level, group after group: a group has equally many children by source.

    ``nodes`` are the nodes in this order, counted over all levels. ``pool`` lists what the source
    `POOL` consists of: rows of other sources, one after the other.
    """

    groups: tuple[Group, ...]
    nodes: np.ndarray
    pool: tuple[tuple[int, np.ndarray], ...] = ()


class Step(NamedTuple):
    """Levels ``first`` to ``last``; a scan if there are several."""

    first: int
    last: int


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
        product = _product([nodes[n] for n in own], own, sources, rows, number in s.mixing)
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
    nodes: Sequence[Node],
    numbers: Sequence[int],
    sources: np.ndarray,
    rows: np.ndarray,
    mixed: bool = False,
) -> Product:
    groups = _groups(nodes, numbers, sources, rows)
    pool: tuple[tuple[int, np.ndarray], ...] = ()
    # The children of a mixture keep their order, which is that of its weights.
    if len(groups) > MOST_GROUPS or (mixed and max(map(len, groups)) > 1):
        flat = np.unique(np.concatenate(list(map(np.asarray, nodes))))
        flat = flat[np.lexsort((rows[flat], sources[flat]))]
        pool = tuple((int(k), rows[flat[sources[flat] == k]]) for k in np.unique(sources[flat]))
        place = np.zeros(len(rows), np.int64)
        place[flat] = np.arange(len(flat))
        groups = _groups(nodes, numbers, np.full(len(rows), POOL), place)
    made = tuple(
        tuple(
            Part(source, np.asarray([by_source[source] for _, by_source in own]))
            for source, _ in key
        )
        for key, own in groups.items()
    )
    order = [number for own in groups.values() for number, _ in own]
    return Product(made, np.asarray(order, np.int64), pool)


def _groups(
    nodes: Sequence[Node], numbers: Sequence[int], sources: np.ndarray, rows: np.ndarray
) -> dict[tuple, list[tuple[int, dict[int, list[int]]]]]:
    """Nodes by the number of their children from each source."""
    groups: dict[tuple, list[tuple[int, dict[int, list[int]]]]] = {}
    for number, children in zip(numbers, nodes, strict=True):
        by_source: dict[int, list[int]] = {}
        for child in children:
            by_source.setdefault(int(sources[child]), []).append(int(rows[child]))
        key = tuple(sorted((source, len(own)) for source, own in by_source.items()))
        groups.setdefault(key, []).append((number, by_source))
    return groups


def _steps(products: Sequence[Product], root: Product, mixing: Sequence[int]) -> tuple[Step, ...]:
    """Join levels that repeat one pattern: node i has node i of the level below, and inputs."""
    users: list[set[int]] = [set() for _ in products]
    for level, product in enumerate((*products, root)):
        for group in product.groups:
            for part in group:
                if part.source >= 0:
                    users[part.source].add(level)
        for source, _ in product.pool:
            if source >= 0:
                users[source].add(level)
    steps: list[Step] = []
    for level, product in enumerate(products):
        if not product.groups:
            continue
        joins = (
            steps
            and steps[-1].last == level - 1
            and level not in mixing
            and _continues(product, level)
            and users[level - 1] == {level}
            and len(product.nodes) == len(products[level - 1].nodes)
            # The first level of a scan may be of any kind: it only starts the carry.
            and (steps[-1].first == level - 1 or _inputs(product) == _inputs(products[level - 1]))
        )
        steps.append(Step(steps.pop().first if joins else level, level))
    out: list[Step] = []
    for step in steps:
        if step.last - step.first < SHORTEST_SCAN:
            out += [Step(level, level) for level in range(step.first, step.last + 1)]
        else:
            out.append(step)
    return tuple(out)


def _inputs(product: Product) -> int:
    return product.groups[0][0].rows.shape[1]


def _continues(product: Product, level: int) -> bool:
    if len(product.groups) != 1:
        return False
    parts = product.groups[0]
    if [part.source for part in parts] != [INPUTS, level - 1]:
        return False
    return np.array_equal(parts[1].rows, np.arange(len(parts[1].rows))[:, None])
