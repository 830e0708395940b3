"""Build a circuit node by node, children first."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._circuit import Circuit
from ._leaves import CATEGORICAL, INDICATOR, AbstractLeaf, Indicator
from ._structure import LEAF, PRODUCT, SUM, LeafGroup
from ._validation import CircuitError


class CircuitModel(NamedTuple):
    """A circuit with its numbers.

    Attributes:
        circuit: the structure.
        log_weights: one per edge out of a sum node, nats.
        leaf_parameters: one array per leaf group (see `Circuit.parameter_shapes`).
    """

    circuit: Circuit
    log_weights: Float[Array, " weights"]
    leaf_parameters: tuple[Float[Array, "..."], ...]


class CircuitBuilder:
    """Collect nodes; every method returns the number of the node it makes.

    Args:
        cardinalities: number of states of each variable; 0 for a continuous one.

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits import CircuitBuilder, sweep
        >>> b = CircuitBuilder([2, 2])
        >>> x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
        >>> same = [b.product([x[0][t], x[1][t]]) for t in (0, 1)]
        >>> circuit, log_weights, _ = b.build(b.sum(same, np.log([0.25, 0.75])))
        >>> result = sweep(circuit, log_weights, circuit.log_evidence())
        >>> [[round(float(p), 3) for p in row] for row in result.marginals[0]]
        [[0.25, 0.75], [0.25, 0.75]]
    """

    def __init__(self, cardinalities: Sequence[int]):
        self.cardinalities = [int(c) for c in cardinalities]
        self._kinds: list[int] = []
        self._children: list[list[int]] = []
        self._weights: list[Any] = []
        self._leaves: list[tuple[AbstractLeaf, int, int, Any] | None] = []
        self._names: list[str] = []
        self._indicators: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._kinds)

    def indicator(self, variable: int, state: int) -> int:
        """Leaf ``1[X_variable = state]``; asked for twice, it is the same node."""
        key = (variable, state)
        if key not in self._indicators:
            self._indicators[key] = self._add(
                LEAF, [], None, (INDICATOR, variable, state, None), ""
            )
        return self._indicators[key]

    def leaf(
        self,
        variable: int,
        family: AbstractLeaf | None = None,
        parameters: Any = None,
        *,
        name: str = "",
    ) -> int:
        """Leaf of a family (default `Categorical`), a new node each time.

        Args:
            variable: the variable.
            family: the kind of distribution; for indicators use `indicator`.
            parameters: natural parameters, zeros if left out (see the family).
            name: for messages.
        """
        family = CATEGORICAL if family is None else family
        if isinstance(family, Indicator):
            raise ValueError("Use CircuitBuilder.indicator(variable, state) for an indicator.")
        return self._add(LEAF, [], None, (family, variable, -1, parameters), name)

    def product(self, children: Sequence[int], *, name: str = "") -> int:
        """Product of children with disjoint scopes.

        Args:
            children: numbers of the nodes multiplied.
            name: for messages of errors.
        """
        return self._add(PRODUCT, children, None, None, name)

    def sum(self, children: Sequence[int], log_weights: Any = None, *, name: str = "") -> int:
        """Weighted sum of children with one scope.

        Args:
            children: the children.
            log_weights: natural logarithms of positive weights; uniform and normalised if None.
            name: for messages.
        """
        if log_weights is None:
            log_weights = np.full(len(children), -np.log(max(len(children), 1)))
        log_weights = np.asarray(log_weights, np.float64)
        if log_weights.shape != (len(children),):
            raise ValueError(
                f"A sum of {len(children)} children got log-weights of shape {log_weights.shape}."
            )
        if not np.isfinite(log_weights).all():
            bad = int(np.argmin(np.isfinite(log_weights)))
            raise ValueError(
                f"Weight {bad} of sum node {len(self)} {name!r} has logarithm {log_weights[bad]}; "
                "weights are positive and finite: leave a child of weight zero out."
            )
        return self._add(SUM, children, log_weights, None, name)

    def _add(self, kind, children, weights, leaf, name) -> int:
        node = len(self._kinds)
        children = [int(child) for child in children]
        for child in children:
            if not 0 <= child < node:
                raise ValueError(
                    f"Node {node} {name!r} has child {child}, but only nodes 0 to {node - 1} "
                    "exist; add children first."
                )
        self._kinds.append(kind)
        self._children.append(children)
        self._weights.append(weights)
        self._leaves.append(leaf)
        self._names.append(name)
        return node

    def build(self, root: int, *, validate: bool = True, dtype: Any = None) -> CircuitModel:
        """Make the circuit below ``root``; nodes not below it are left out, order is kept.

        Args:
            root: the root node.
            validate: see `Circuit`.
            dtype: floating dtype of the numbers (default: JAX's default float).

        Raises:
            ValueError: naming the node at fault; a name given here is part of the message.
        """
        if not 0 <= root < len(self):
            raise ValueError(f"The root is node {root}, but the nodes are 0 to {len(self) - 1}.")
        keep, stack = {root}, [root]
        while stack:
            for child in self._children[stack.pop()]:
                if child not in keep:
                    keep.add(child)
                    stack.append(child)
        order = sorted(keep)
        number = {node: n for n, node in enumerate(order)}
        families: dict[tuple[AbstractLeaf, int], list[int]] = {}
        for node in order:
            leaf = self._leaves[node]
            if leaf is not None:
                family, variable = leaf[:2]
                if not 0 <= variable < len(self.cardinalities):
                    raise ValueError(
                        f"Leaf node {number[node]} is over variable {variable}, but the variables "
                        f"are 0 to {len(self.cardinalities) - 1}."
                    )
                families.setdefault((family, self.cardinalities[variable]), []).append(node)
        groups, parameters = [], []
        dtype = jnp.zeros(0).dtype if dtype is None else dtype
        for (family, card), nodes in families.items():
            leaves = [leaf for node in nodes if (leaf := self._leaves[node]) is not None]
            states = [leaf[2] for leaf in leaves] if isinstance(family, Indicator) else []
            shape = family.parameter_shape(card)
            rows = [np.zeros(shape) if leaf[3] is None else np.asarray(leaf[3]) for leaf in leaves]
            for node, row in zip(nodes, rows, strict=True):
                if row.shape != shape:
                    raise ValueError(
                        f"Leaf node {number[node]} {self._names[node]!r} has parameters of shape "
                        f"{row.shape}; {type(family).__name__} expects {shape}."
                    )
            groups.append(
                LeafGroup(
                    family,
                    np.asarray([number[node] for node in nodes], np.int32),
                    np.asarray([leaf[1] for leaf in leaves], np.int32),
                    np.asarray(states, np.int32),
                )
            )
            parameters.append(jnp.asarray(np.stack(rows), dtype))
        sizes = [len(self._children[node]) for node in order]
        children = [number[child] for node in order for child in self._children[node]]
        weights = [self._weights[node] for node in order if self._kinds[node] == SUM]
        named = tuple(self._names[node] for node in order)
        try:
            circuit = Circuit(
                self.cardinalities,
                np.asarray([self._kinds[node] for node in order], np.uint8),
                np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
                np.asarray(children, np.int32),
                groups,
                number[root],
                names=named if any(named) else None,
                validate=validate,
            )
        except CircuitError as error:
            error.built_from = None if error.node is None else order[error.node]
            raise
        flat = np.concatenate([np.zeros(0), *weights])
        return CircuitModel(circuit, jnp.asarray(flat, dtype), tuple(parameters))
