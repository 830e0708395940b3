"""What the writers of circuit files share: circuits over binary variables, leaves as tables."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._builder import CircuitModel
from .._leaves import AbstractDiscreteLeaf
from .._structure import CircuitStructure, is_indicator


class BinaryCircuit(NamedTuple):
    """A circuit's numbers on the host.

    Attributes:
        s: the wiring. order: all nodes, children first.
        log_weights: one per edge, nats; 0 below products.
        variable: per leaf node, its variable. table: per leaf node, the logarithms of both states.
    """

    s: CircuitStructure
    order: list[int]
    log_weights: np.ndarray
    variable: dict[int, int]
    table: dict[int, tuple[float, float]]

    def children(self, node: int) -> list[int]:
        """Children of a node."""
        return self.s.children[self.s.offsets[node] : self.s.offsets[node + 1]].tolist()

    def weights(self, node: int) -> list[float]:
        """Log-weights of its edges."""
        return self.log_weights[self.s.offsets[node] : self.s.offsets[node + 1]].tolist()


def binary_circuit(model: CircuitModel, kind: str) -> BinaryCircuit:
    """Bring a circuit to the host.

    Args:
        model: circuit, log-weights and leaf parameters.
        kind: the file format, for messages.

    Raises:
        ValueError: numbers that do not fit the circuit, or a variable that is not binary.
    """
    s = model.circuit.structure
    parameters = model.circuit.check(model.log_weights, None, model.leaf_parameters)
    other = np.flatnonzero(s.cardinalities != 2)
    if len(other):
        v = int(other[0])
        states = int(s.cardinalities[v])
        what = f"has {states} states" if states else "is continuous"
        raise ValueError(
            f"{kind} files hold binary variables only, but variable {v} {what}. Use save_circuit, "
            "which writes any circuit."
        )
    variable, table = {}, {}
    for group, numbers in zip(s.groups, parameters, strict=True):
        nodes = group.nodes.tolist()
        variable.update(zip(nodes, group.variables.tolist(), strict=True))
        if is_indicator(group):
            rows = np.where(np.eye(2)[group.states] > 0, 0.0, -np.inf)
        else:
            assert isinstance(group.family, AbstractDiscreteLeaf)
            rows = np.asarray(group.family.log_table(jnp.asarray(numbers), 2), np.float64)
        table.update(zip(nodes, map(tuple, rows.tolist()), strict=True))
    log_weights = np.zeros(s.num_edges)
    log_weights[s.sum_edges] = np.asarray(model.log_weights, np.float64)
    return BinaryCircuit(
        s, np.argsort(s.rank, kind="stable").tolist(), log_weights, variable, table
    )
