"""Small factor graphs with the answers of plain numpy: enumeration, and message passing."""

from typing import Any, NamedTuple

import numpy as np

from ..graphs import FactorGraph
from ..graphs._replication import ReplicatedLift
from ._measure import at_least, normalized

# Messages m[k, v] from factor k to variable v.
Messages = dict[tuple[int, int], np.ndarray]


class Model(NamedTuple):
    """A factor graph in plain numpy."""

    cardinalities: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    log_tables: tuple[np.ndarray, ...]

    def build(self, dtype: Any) -> tuple[FactorGraph, Any]:
        """Return the `FactorGraph` and its packed log-potentials."""
        graph = FactorGraph(self.cardinalities, self.scopes)
        return graph, graph.pack(self.log_tables, dtype)


def random_tree(seed: int, size: int) -> Model:
    """Draw a tree of pairwise factors over `size` variables, and one unary factor."""
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    scopes: list[tuple[int, ...]] = [(0,)]
    for v in range(1, size):
        pair = (int(rng.integers(v)), v)
        scopes.append(pair if rng.random() < 0.5 else pair[::-1])
    return _draw(rng, size, scopes)


def random_cycle(seed: int, size: int) -> Model:
    """Draw a cycle of pairwise factors over `size` variables, and one unary factor."""
    at_least(size, 3)
    rng = np.random.default_rng(seed)
    return _draw(rng, size, [(0,), *((v, (v + 1) % size) for v in range(size))])


def with_zeros(model: Model, seed: int) -> Model:
    """Exclude one joint state in every pairwise factor; the first state of all stays possible."""
    rng = np.random.default_rng(seed)
    tables = []
    for table in model.log_tables:
        table = table.copy()
        if table.ndim == 2:
            row, column = rng.integers(table.shape)
            table[max(row, 1), column] = -np.inf
        tables.append(table)
    return model._replace(log_tables=tuple(tables))


def _draw(rng: np.random.Generator, size: int, scopes: list[tuple[int, ...]]) -> Model:
    # Unequal cardinalities, so that a transposed table does not fit or shows.
    cardinalities = tuple(2 + v % 2 for v in range(size))
    tables = tuple(rng.normal(size=[cardinalities[v] for v in scope]) for scope in scopes)
    return Model(cardinalities, tuple(scopes), tables)


def joint_log_table(model: Model) -> np.ndarray:
    """Log-weights of all assignments."""
    joint = np.zeros(model.cardinalities)
    for scope, table in zip(model.scopes, model.log_tables, strict=True):
        shape = [n if v in scope else 1 for v, n in enumerate(model.cardinalities)]
        joint = joint + np.transpose(table, np.argsort(scope)).reshape(shape)
    return joint


def enumerated_marginals(model: Model) -> list[np.ndarray]:
    """Sum the joint table over all assignments."""
    probs = normalized(np.exp(joint_log_table(model)))
    count = len(model.cardinalities)
    return [probs.sum(axis=tuple(a for a in range(count) if a != v)) for v in range(count)]


def uniform_messages(model: Model) -> Messages:
    """Return the messages that sum-product starts with."""
    return {
        (k, v): np.full(model.cardinalities[v], 1 / model.cardinalities[v])
        for k, scope in enumerate(model.scopes)
        for v in scope
    }


def flood(model: Model, messages: Messages) -> tuple[Messages, Messages]:
    """Do one flooding step of normalised sum-product, in linear space, from section 2's formulas.

    Returns:
        The messages to the variables, and those from the variables that they were made of.
    """
    incoming = {}
    for k, v in messages:
        product = np.ones(model.cardinalities[v])
        for h, scope in enumerate(model.scopes):
            if h != k and v in scope:
                product = product * messages[h, v]
        incoming[k, v] = normalized(product)
    out = {}
    for k, (scope, log_table) in enumerate(zip(model.scopes, model.log_tables, strict=True)):
        for v in scope:
            product = np.exp(log_table)
            for axis, j in enumerate(scope):
                if j != v:
                    shape = [1] * len(scope)
                    shape[axis] = -1
                    product = product * incoming[k, j].reshape(shape)
            others = tuple(axis for axis, j in enumerate(scope) if j != v)
            out[k, v] = normalized(product.sum(axis=others))
    return out, incoming


def beliefs(model: Model, messages: Messages) -> list[np.ndarray]:
    """Multiply the messages into every variable."""
    out = []
    for v, card in enumerate(model.cardinalities):
        product = np.ones(card)
        for k, scope in enumerate(model.scopes):
            if v in scope:
                product = product * messages[k, v]
        out.append(normalized(product))
    return out


def fixed_point(model: Model, max_steps: int = 2000) -> Messages:
    """Flood until no message changes by more than 1e-15.

    Raises:
        ValueError: that takes more than `max_steps` steps.
    """
    messages = uniform_messages(model)
    for _ in range(max_steps):
        new, _ = flood(model, messages)
        change = max(np.abs(new[edge] - messages[edge]).max() for edge in messages)
        messages = new
        if change <= 1e-15:
            return messages
    raise ValueError(f"sum-product has no fixed point within {max_steps} steps; try another seed")


class Replicas:
    """The replicated space of a model: which copy each axis is."""

    def __init__(self, graph: FactorGraph):
        self.lift = ReplicatedLift(graph)
        self.edges: list[tuple[int, int]] = [(-1, -1)] * len(self.lift.shape)
        for axes_of_factors, scopes, items in zip(
            self.lift.factor_axes, graph.group_scopes, graph.wiring.items, strict=True
        ):
            for axes, scope, item in zip(axes_of_factors, scopes, np.asarray(items), strict=True):
                for axis, v in zip(axes, scope, strict=True):
                    self.edges[axis] = (int(item), int(v))

    def log_product(self, log_tables: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
        """Return the log of the product of one table per edge (factor, variable)."""
        joint = np.zeros(self.lift.shape)
        for axis, edge in enumerate(self.edges):
            shape = [1] * len(self.edges)
            shape[axis] = -1
            joint = joint + log_tables[edge].reshape(shape)
        return joint

    def on_diagonal(self, tables: list[np.ndarray]) -> np.ndarray:
        """Return the product of one table per variable where its copies agree, 0 elsewhere."""
        joint = np.zeros(self.lift.shape)
        for states in np.ndindex(*(len(table) for table in tables)):
            cell = tuple(states[v] for _, v in self.edges)
            joint[cell] = np.prod([table[t] for table, t in zip(tables, states, strict=True)])
        return joint
