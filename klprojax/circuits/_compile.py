"""From a discrete model to a circuit: variable elimination with nodes in the place of numbers."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..graphs import DiscreteModel
from ..graphs._model import check_model
from ..operators._elimination_order import TooWide, best_order
from ._builder import CircuitModel
from ._circuit import Circuit
from ._leaves import Indicator
from ._structure import LEAF, PRODUCT, SUM, LeafGroup

_MOST_EDGES = 10_000_000


def compile_model(
    model: DiscreteModel, *, max_edges: int = _MOST_EDGES, dtype: Any = None
) -> CircuitModel:
    """Compile a discrete model into a circuit with the model's joint table as network polynomial.

    Summing a variable out of its bucket makes one sum node for each joint state of its
    neighbours: over its states, the product of the indicator and of the nodes of the incoming
    messages, weighted by the bucket's factors. States of weight zero are left out, so weights are
    positive. The circuit is complete, decomposable and deterministic; its log-partition is the
    model's.

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
    order = _order(cards, model.scopes, max_edges)
    position = {cluster.variable: k for k, cluster in enumerate(order)}
    nodes = _Nodes(cards, max_edges)
    # Per bucket: log-tables of factors, and messages (tables of nodes, -1 for zero), with scopes.
    factors: list[list[tuple[tuple[int, ...], np.ndarray]]] = [[] for _ in order]
    messages: list[list[tuple[tuple[int, ...], np.ndarray]]] = [[] for _ in order]
    constant = 0.0
    for scope, table in zip(model.scopes, model.log_tables, strict=True):
        if scope:
            factors[min(position[v] for v in scope)].append((tuple(scope), table))
        else:
            constant += float(table)
    roots: list[int] = []
    for k, cluster in enumerate(order):
        v = cluster.variable
        kept = tuple(sorted(cluster.neighbours, key=position.__getitem__))
        scope = (*kept, v)
        weight = np.zeros([cards[u] for u in scope])
        for inner, table in factors[k]:
            weight = weight + _expand(table, inner, scope)
        below = [
            np.broadcast_to(_expand(table, inner, scope), weight.shape)
            for inner, table in messages[k]
        ]
        made = nodes.eliminate(v, weight, below)
        factors[k] = messages[k] = []
        if kept:
            messages[min(position[u] for u in kept)].append((kept, made))
        else:
            roots.append(int(made))
    return nodes.finish(roots, constant, dtype)


def _order(cards, scopes, max_edges: int):
    limit = math.log2(max_edges)
    try:
        order = best_order(cards, scopes, limit)
    except TooWide as wide:
        raise ValueError(
            f"The circuit needs a table of 2^{wide.log2_entries:.1f} entries over "
            f"{len(wide.variables)} variables, more than max_edges={max_edges}. Condition the "
            "model on evidence first (klprojax.condition), or raise max_edges."
        ) from None
    return order


def _expand(table: np.ndarray, inner: tuple[int, ...], scope: tuple[int, ...]) -> np.ndarray:
    """Bring a table's axes into the order of ``scope``, size one where it has none."""
    order = sorted(range(len(inner)), key=lambda a: scope.index(inner[a]))
    shape = [table.shape[inner.index(u)] if u in inner else 1 for u in scope]
    return np.transpose(table, order).reshape(shape)


class _Nodes:
    """Arrays of nodes, grown bucket by bucket."""

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

    def eliminate(self, v: int, weight: np.ndarray, below: list[np.ndarray]) -> np.ndarray:
        """Sum nodes over the states of ``v``, the last axis; -1 where nothing is left."""
        alive = ~np.isneginf(weight)
        for message in below:
            alive &= message >= 0
        states = np.broadcast_to(np.arange(self.cards[v]), weight.shape)
        terms = (self.first_indicator[v] + states)[alive]
        if below:
            rows = np.stack([terms, *(message[alive] for message in below)], axis=1)
            terms = self.add(PRODUCT, np.full(len(rows), rows.shape[1]), rows.reshape(-1))
        counts = alive.sum(axis=-1)
        made = np.full(counts.shape, -1, np.int64)
        made[counts > 0] = self.add(SUM, counts[counts > 0], terms)
        self.weights.append(weight[alive])
        return made

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
