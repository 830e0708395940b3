"""The product of two compatible circuits, itself a circuit."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._types import Scalar
from ._builder import CircuitBuilder, CircuitModel
from ._leaves import AbstractContinuousLeaf, AbstractDiscreteLeaf, Categorical, Indicator
from ._structure import LEAF, PRODUCT, SUM
from ._sweep import log_partition

_MOST_NODES = 2_000_000


def multiply(one: CircuitModel, two: CircuitModel, *, max_nodes: int = _MOST_NODES) -> CircuitModel:
    """Multiply the network polynomials of two circuits state by state.

    The result computes ``S_one(x) S_two(x)`` at every joint state x; it has at most one node for
    each pair of nodes of one scope. Parts that are zero everywhere are left out.

    Args:
        one, two: circuits over the same discrete variables, products over one scope splitting it in
            the same way (see `is_structured`).
        max_nodes: limit on the size of the result.

    Returns:
        The product circuit with its numbers.

    Raises:
        ValueError: other variables, continuous variables, products that split a scope in different
            ways (naming both), a product that is zero everywhere, more than ``max_nodes`` nodes.

    Reference: Vergari et al. (2021), compatible products.
    """
    for model in (one, two):
        if not isinstance(model, CircuitModel):
            raise TypeError(
                f"multiply needs models of explicit circuits, but got a {type(model).__name__}; "
                "pass CircuitModel(circuit, log_weights, leaf_parameters), or what to_circuit of a "
                "TensorCircuit returns."
            )
    cards = one.circuit.cardinalities
    if cards != two.circuit.cardinalities:
        raise ValueError(
            f"The circuits have variables of cardinalities {cards} and "
            f"{two.circuit.cardinalities}; they must have the same variables."
        )
    builder = CircuitBuilder(cards)
    sides = (_Side(one), _Side(two))
    made: dict[tuple[int, int], int | None] = {}
    root = (one.circuit.root, two.circuit.root)
    stack = [root]
    while stack:
        pair = stack[-1]
        if pair in made:
            stack.pop()
            continue
        if len(builder) > max_nodes:
            raise ValueError(f"The product has more than max_nodes={max_nodes} nodes.")
        terms = _terms(sides, pair)
        if terms is None:
            made[pair] = _leaves(builder, sides, pair)
            stack.pop()
            continue
        is_sum, below = terms
        waiting = [inner for inner, _ in below if inner not in made]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        nodes = [(made[inner], weight) for inner, weight in below]
        if is_sum:
            alive = [(node, weight) for node, weight in nodes if node is not None]
            weights = np.asarray([weight for _, weight in alive])
            made[pair] = builder.sum([n for n, _ in alive], weights) if alive else None
        elif all(node is not None for node, _ in nodes):
            made[pair] = builder.product([node for node, _ in nodes if node is not None])
        else:
            made[pair] = None
    top = made[root]
    if top is None:
        raise ValueError("The product of the circuits is zero at every joint state.")
    return builder.build(top, dtype=one.log_weights.dtype)


def log_inner_product(one: CircuitModel, two: CircuitModel) -> Scalar:
    """Compute ``log sum_x S_one(x) S_two(x)`` of two compatible circuits (see `multiply`).

    Args:
        one: structure, weights and leaf parameters of one circuit.
        two: those of the other.

    Returns:
        A scalar, nats.
    """
    circuit, log_weights, parameters = multiply(one, two)
    return log_partition(circuit, log_weights, leaf_parameters=parameters)


class _Side:
    """One factor, its numbers on the host."""

    def __init__(self, model: CircuitModel):
        self.s = model.circuit.structure
        self.log_weights = np.asarray(model.log_weights, np.float64)
        # leaf node -> (variable, state) of an indicator, or (variable, log-table)
        self.leaves: dict[int, tuple[int, Any]] = {}
        for group, parameters in zip(model.circuit.groups, model.leaf_parameters, strict=True):
            nodes, variables = group.nodes.tolist(), group.variables.tolist()
            if isinstance(group.family, AbstractContinuousLeaf):
                raise ValueError(
                    f"Leaf node {nodes[0]} is continuous; products are defined for discrete leaves."
                )
            if isinstance(group.family, Indicator):
                contents: Any = group.states.tolist()
            else:
                assert isinstance(group.family, AbstractDiscreteLeaf)  # there are two kinds
                card = int(self.s.cardinalities[variables[0]])
                contents = np.asarray(group.family.log_table(jnp.asarray(parameters), card))
            for node, variable, content in zip(nodes, variables, contents, strict=True):
                self.leaves[node] = (variable, content)

    def terms(self, node: int) -> list[tuple[int, float]]:
        """Children with weights of a sum; any other node is a sum of itself."""
        if self.s.kinds[node] != SUM:
            return [(node, 0.0)]
        edges = range(self.s.offsets[node], self.s.offsets[node + 1])
        return [
            (int(self.s.children[e]), float(self.log_weights[self.s.weight_of_edge[e]]))
            for e in edges
        ]

    def parts(self, node: int) -> dict[tuple[int, ...], int]:
        children = self.s.children[self.s.offsets[node] : self.s.offsets[node + 1]]
        return {self.s.scope_of(int(c)): int(c) for c in children}


def _terms(sides, pair) -> tuple[bool, list[tuple[tuple[int, int], float]]] | None:
    """What a pair of nodes is made of: whether a sum, and pairs with weights; None for leaves."""
    kinds = [side.s.kinds[node] for side, node in zip(sides, pair, strict=True)]
    if SUM in kinds:
        ours, theirs = (side.terms(node) for side, node in zip(sides, pair, strict=True))
        return True, [((a, b), v + w) for a, v in ours for b, w in theirs]
    for k in (0, 1):
        # a product of one child is that child
        side, node = sides[k], pair[k]
        if kinds[k] == PRODUCT and kinds[1 - k] == LEAF and side.s.fan_in[node] == 1:
            child = int(side.s.children[side.s.offsets[node]])
            inner = (child, pair[1]) if k == 0 else (pair[0], child)
            return False, [(inner, 0.0)]
    if kinds == [LEAF, LEAF]:
        return None
    ours, theirs = (side.parts(node) for side, node in zip(sides, pair, strict=True))
    if ours.keys() != theirs.keys():
        labels = [side.s.label(node) for side, node in zip(sides, pair, strict=True)]
        raise ValueError(
            f"The circuits are not compatible: {labels[0]} of the first and {labels[1]} of the "
            f"second split the scope {sides[0].s.scope_of(pair[0])} in different ways."
        )
    return False, [((ours[scope], theirs[scope]), 0.0) for scope in ours]


def _leaves(builder: CircuitBuilder, sides, pair) -> int | None:
    a: Any
    b: Any
    (variable, a), (_, b) = (side.leaves[node] for side, node in zip(sides, pair, strict=True))
    if isinstance(a, int) and isinstance(b, int):
        return builder.indicator(variable, a) if a == b else None
    if isinstance(b, int):
        a, b = b, a
    if isinstance(a, int):
        if b[a] == -np.inf:
            return None
        return builder.sum([builder.indicator(variable, a)], np.asarray([b[a]], np.float64))
    table = a + b
    return builder.leaf(variable, Categorical(), table) if (table > -np.inf).any() else None
