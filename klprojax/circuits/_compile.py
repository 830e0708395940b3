"""From a discrete model to a circuit: tensor contraction with nodes in the place of numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..graphs import DiscreteModel
from ..graphs._model import check_model
from ..operators._elimination_order import TooWide
from ..operators.contraction import Tree, leaves_of, levelled_tree
from ._builder import CircuitModel
from ._circuit import Circuit
from ._leaves import Indicator
from ._structure import LEAF, PRODUCT, SUM, LeafGroup

_MOST_EDGES = 10_000_000
# What a level of a circuit costs in a sweep, edges.
_LEVEL_COST = 512


def compile_model(
    model: DiscreteModel, *, max_edges: int = _MOST_EDGES, dtype: Any = None
) -> CircuitModel:
    """Compile a discrete model into a circuit with the model's joint table as network polynomial.

    Tables are multiplied in pairs along the contraction tree of `klprojax.Elimination`. Summing a
    variable out of a product makes one sum node for each joint state of the variables left: over
    its states, the product of the indicator and of the nodes below, weighted by the factors.
    States of weight zero are left out, so weights are positive. The circuit is complete,
    decomposable and deterministic; its log-partition is the model's.

    Args:
        model: any discrete model, for example from `klprojax.read_model`.
        max_edges: limit on the size of the circuit.
        dtype: floating dtype of the weights.

    Returns:
        The circuit with its weights.

    Raises:
        ValueError: no `DiscreteModel`, a circuit beyond ``max_edges`` (the message says how
            large), or a model that gives every joint state weight zero.

    Example:
        >>> import klprojax
        >>> from klprojax.circuits import compile_model, log_partition
        >>> circuit, log_weights, _ = compile_model(klprojax.load_model("asia"))
        >>> abs(float(log_partition(circuit, log_weights))) < 1e-6
        True
    """
    check_model(model)
    cards = model.cardinalities
    nodes = _Nodes(cards, max_edges)
    constant = float(sum(t for s, t in zip(model.scopes, model.log_tables, strict=True) if not s))
    tables = [
        _Table(tuple(scope), np.asarray(table), [])
        for scope, table in zip(model.scopes, model.log_tables, strict=True)
        if scope
    ]
    alone = sorted(set(range(len(cards))).difference(*(table.scope for table in tables)))
    tables += [_Table((v,), np.zeros(cards[v]), []) for v in alone]
    scopes = [table.scope for table in tables]
    leaves, known = leaves_of(cards, scopes)
    tree = _tree(cards, tuple(tuple(sorted(scope)) for scope in known), max_edges)
    found = []
    for leaf in leaves:
        whole = [tables[member] for member, *_ in leaf.members]
        found.append(nodes.product(whole, [leaf.scope[axis] for axis in leaf.gone]))
    for (one, two), scope in zip(tree.pairs, tree.scopes[len(leaves) :], strict=True):
        pair = [found[one], found[two]]
        found[one] = found[two] = None
        gone = {*pair[0].scope, *pair[1].scope}.difference(scope)
        found.append(nodes.product(pair, sorted(gone)))
    return nodes.finish([int(found[k].nodes[0]) for k in tree.roots], constant, dtype)


def _tree(cards: tuple[int, ...], scopes: tuple[tuple[int, ...], ...], max_edges: int) -> Tree:
    """A contraction tree whose tables are not larger than the circuit may be."""
    try:
        tree = levelled_tree(cards, scopes, _LEVEL_COST)
    except TooWide as wide:
        log2_entries, width = wide.log2_entries, len(wide.variables)
    else:
        sizes = [(sum(math.log2(cards[v]) for v in union), len(union)) for union in tree.unions]
        log2_entries, width = max(sizes, default=(0.0, 0))
        if log2_entries <= math.log2(max_edges):
            return tree
    raise ValueError(
        f"The circuit needs a table of 2^{log2_entries:.1f} entries over {width} variables, more "
        f"than max_edges={max_edges}. Condition the model on evidence first (klprojax.condition), "
        "or raise max_edges."
    )


class _Table(NamedTuple):
    """Log-weights over the joint states of a scope, times nodes: tables of numbers, -1 for zero."""

    scope: tuple[int, ...]
    weight: np.ndarray
    nodes: list[np.ndarray]

    def over(self, scope: tuple[int, ...]) -> "_Table":
        """Axes in the order of ``scope``, of size one for variables that are not there."""
        order = sorted(range(len(self.scope)), key=lambda a: scope.index(self.scope[a]))
        shape = [self.weight.shape[self.scope.index(u)] if u in self.scope else 1 for u in scope]
        return _Table(
            scope,
            self.weight.transpose(order).reshape(shape),
            [node.transpose(order).reshape(shape) for node in self.nodes],
        )


class _Nodes:
    """Arrays of nodes, grown product by product."""

    def __init__(self, cards: tuple[int, ...], max_edges: int):
        self.cards = cards
        self.max_edges = max_edges
        self.edges = 0
        variables = np.repeat(np.arange(len(cards)), cards)
        starts = np.concatenate([[0], np.cumsum(cards)]).astype(np.int64)
        self.first_indicator = starts[:-1]
        self.indicators = (variables, np.arange(len(variables)) - starts[:-1][variables])
        self.kinds = [np.full(len(variables), LEAF, np.uint8)]
        self.counts = [np.zeros(len(variables), np.int64)]
        self.children: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.total = len(variables)

    def add(self, kind: int, counts: np.ndarray, children: np.ndarray) -> np.ndarray:
        self.edges += len(children)
        if self.edges > self.max_edges:
            raise ValueError(
                f"The circuit has more than max_edges={self.max_edges} edges. Condition the model "
                "on evidence first (klprojax.condition), or raise max_edges."
            )
        self.kinds.append(np.full(len(counts), kind, np.uint8))
        self.counts.append(counts)
        self.children.append(children.astype(np.int64))
        new = np.arange(self.total, self.total + len(counts))
        self.total += len(counts)
        return new

    def product(self, tables: Sequence[_Table], gone: Sequence[int]) -> _Table:
        """Multiply tables and sum variables out, one after the other."""
        scope = tuple({v: None for table in tables for v in table.scope if v not in gone})
        scope = (*scope, *gone)
        tables = [table.over(scope) for table in tables]
        shape = [self.cards[v] for v in scope]
        weight = np.zeros(shape) + sum(table.weight for table in tables)
        below = [np.broadcast_to(node, shape) for table in tables for node in table.nodes]
        alive = ~np.isneginf(weight)
        for node in below:
            alive &= node >= 0
        for v in reversed(gone):
            # One sum per joint state of what is left: over the states of ``v``, the product of the
            # indicator and of the nodes below.
            states = np.broadcast_to(np.arange(self.cards[v]), weight.shape)
            terms = (self.first_indicator[v] + states)[alive]
            if below:
                terms = self.multiply([terms, *(node[alive] for node in below)])
            counts = alive.sum(axis=-1)
            made = np.full(counts.shape, -1, np.int64)
            made[counts > 0] = self.add(SUM, counts[counts > 0], terms)
            self.weights.append(weight[alive])
            alive = counts > 0
            weight, below, scope = np.where(alive, 0.0, -np.inf), [made], scope[:-1]
        if len(below) > 1:
            made = np.full(alive.shape, -1, np.int64)
            made[alive] = self.multiply([node[alive] for node in below])
            below = [made]
        return _Table(scope, np.where(alive, weight, -np.inf), below)

    def multiply(self, below: Sequence[np.ndarray]) -> np.ndarray:
        """Products, entry by entry."""
        rows = np.stack(below, axis=1)
        return self.add(PRODUCT, np.full(len(rows), rows.shape[1]), rows.reshape(-1))

    def finish(self, roots: list[int], constant: float, dtype: Any) -> CircuitModel:
        if constant == -math.inf or min(roots, default=0) < 0:
            raise ValueError(
                "The model gives every joint state weight zero, so no circuit with positive "
                "weights represents it. Check its factors and its evidence."
            )
        if not roots:
            raise ValueError("The model has no variables; a circuit needs at least one.")
        root = roots[0]
        if len(roots) > 1:
            (root,) = self.add(PRODUCT, np.asarray([len(roots)]), np.asarray(roots))
        if constant != 0.0:
            (root,) = self.add(SUM, np.asarray([1]), np.asarray([root]))
            self.weights.append(np.asarray([constant]))
        return self._prune(int(root), dtype)

    def _prune(self, root: int, dtype: Any) -> CircuitModel:
        kinds = np.concatenate(self.kinds)
        counts = np.concatenate(self.counts)
        children = np.concatenate([np.zeros(0, np.int64), *self.children])
        weights = np.concatenate([np.zeros(0), *self.weights])
        # Children come first, so one backward pass over the buckets finds what the root reads.
        used = np.zeros(self.total, bool)
        used[root] = True
        ends = np.cumsum(counts)
        cuts = np.cumsum([len(part) for part in self.kinds])
        for first, last in zip(cuts[-2::-1], cuts[:0:-1], strict=True):
            mask = np.repeat(used[first:last], counts[first:last])
            start = int(ends[first - 1]) if first else 0
            used[children[start : int(ends[last - 1])][mask]] = True
        number = np.cumsum(used) - 1
        parents = np.repeat(np.arange(self.total), counts)
        kept = used[parents]
        variables, states = self.indicators
        is_leaf = np.flatnonzero(used[: len(variables)])
        cards = np.asarray(self.cards)
        groups = []
        for card in np.unique(cards):
            mine = is_leaf[cards[variables[is_leaf]] == card]
            if len(mine):
                group = (number[mine], variables[mine], states[mine])
                groups.append(LeafGroup(Indicator(), *(g.astype(np.int32) for g in group)))
        circuit = Circuit(
            cards,
            kinds[used],
            np.concatenate([[0], np.cumsum(counts[used])]),
            number[children[kept]],
            groups,
            int(number[root]),
        )
        dtype = dtype or jnp.zeros(0).dtype
        log_weights = jnp.asarray(weights[kept[kinds[parents] == SUM]], dtype)
        parameters = tuple(jnp.zeros(shape, dtype) for shape in circuit.parameter_shapes)
        return CircuitModel(circuit, log_weights, parameters)
