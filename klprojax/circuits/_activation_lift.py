"""The activation lift (Theorem 4.6): a circuit as a factor graph of binary variables.

Every node n has a variable ``a_n``: is n part of the parse? Every edge out of a sum node has one
too: is it chosen? A chain of ternary factors says that exactly one edge out of an active sum is
chosen and pays its weight; the children of a product are as active as it; a node with several
parents is active iff exactly one of the edges into it is; leaves pay their value when active; the
root is active. The partition function is ``S(e)`` and the marginal of ``a_n`` is
``D(n) S(n) / S(e)``. The lift of a tree is a tree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._types import FactorTables
from ..graphs import FactorGraph
from ._circuit import Circuit
from ._kinds import require_explicit
from ._structure import PRODUCT, SUM


class ActivationLift(NamedTuple):
    """The factor graph of a circuit's parses.

    Attributes:
        graph: binary variables; its factors come in families, see `log_potentials`.
        node_variables: variable of each node.
        edge_variables: variable of each edge out of a sum node.
        leaf_order: node of each row of the leaf family.
        chain_weights: position in ``log_weights`` of each row of the sum family; one past the end
            where a row carries no weight.
    """

    graph: FactorGraph
    node_variables: Int[np.ndarray, " nodes"]
    edge_variables: Int[np.ndarray, " weights"]
    leaf_order: Int[np.ndarray, " leaves"]
    chain_weights: Int[np.ndarray, " rows"]

    def log_potentials(
        self, log_weights: Float[Array, " weights"], leaf_log_values: Float[Array, " leaves"]
    ) -> FactorTables:
        """Tables of the lift.

        Args:
            log_weights: of the circuit, nats.
            leaf_log_values: ``log S`` of the leaves, in the order of ``leaf_order``.

        Returns:
            One array per factor family, in nats: root; leaves, then the off starts of all chains;
            links between products and children; chains.
        """
        dtype = log_weights.dtype
        no = -jnp.inf
        tables = [jnp.asarray([no, 0.0], dtype)]
        starts = self.graph.signature.groups[1].count - leaf_log_values.shape[0]
        active = jnp.concatenate([leaf_log_values, jnp.full(starts, no, dtype)])
        tables.append(jnp.stack([jnp.zeros_like(active), active], axis=1))
        families = [group.shape for group in self.graph.signature.groups]
        if (2, 2) in families:
            tables.append(jnp.asarray([[0.0, no], [no, 0.0]], dtype))
        if (2, 2, 2) in families:
            weight = jnp.concatenate([log_weights, jnp.zeros(1, dtype)])[self.chain_weights]
            # [chosen before, this edge, chosen up to here]
            logic = jnp.asarray([[[0.0, no], [no, 0.0]], [[no, 0.0], [no, no]]], dtype)
            pays = jnp.asarray([[[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype)
            paid = weight[:, None, None, None] * pays[None]
            tables.append(jnp.where(jnp.isneginf(logic)[None], no, logic[None] + paid))
        return tuple(tables)


def activation_lift(circuit: Circuit) -> ActivationLift:
    """Lift a circuit to a factor graph over activations of nodes and choices at sums.

    Args:
        circuit: the circuit. A circuit built with ``validate=False`` lifts too, but a node reached
            twice in one parse is then excluded: the lift is no longer its network polynomial.

    Returns:
        The graph, and which of its variables stands for which node and edge.

    Reference: section 4.3, Theorem 4.6.
    """
    require_explicit(circuit, "activation_lift")
    s = circuit.structure
    offsets, by_child = s.by_child
    parents_of = np.diff(offsets)
    nodes = np.arange(s.num_nodes)
    total = s.num_nodes

    def fresh() -> int:
        nonlocal total
        total += 1
        return total - 1

    edge_variable = np.full(s.num_edges, -1, np.int64)
    products = s.kinds[s.parents] == PRODUCT
    edge_variable[products] = s.parents[products]  # chosen exactly when the product is active
    links = []
    for edge in np.flatnonzero(~products).tolist():
        child = int(s.children[edge])
        # The only edge into a node is chosen exactly when the node is active.
        edge_variable[edge] = child if parents_of[child] == 1 else fresh()
    for edge in np.flatnonzero(products).tolist():
        child = int(s.children[edge])
        if parents_of[child] == 1:
            links.append((int(s.parents[edge]), child))
    chains, chain_weights = [], []

    def chain(inputs, weights, end: int) -> None:
        """Exactly one input is on iff ``end`` is."""
        before = fresh()  # off: it starts the chain
        off.append(before)
        for k, (one, weight) in enumerate(zip(inputs, weights, strict=True)):
            after = end if k == len(inputs) - 1 else fresh()
            chains.append((before, int(one), after))
            chain_weights.append(int(weight))
            before = after

    off: list[int] = []
    none = circuit.num_weights
    for node in np.flatnonzero(s.kinds == SUM).tolist():
        edges = np.arange(s.offsets[node], s.offsets[node + 1])
        chain(edge_variable[edges], s.weight_of_edge[edges], node)
    for node in np.flatnonzero(parents_of > 1).tolist():
        edges = by_child[offsets[node] : offsets[node + 1]]
        chain(edge_variable[edges], [none] * len(edges), node)
    leaf_order = np.concatenate([group.nodes for group in s.groups])
    # A variable that starts a chain is off, like a leaf of value zero.
    factors: list = [np.asarray([[s.root]]), np.concatenate([leaf_order, off])[:, None]]
    if links:
        factors.append(np.asarray(links))
    if chains:
        factors.append(np.asarray(chains))
    with jax.ensure_compile_time_eval():  # concrete wiring, also inside a transformation
        graph = FactorGraph([2] * total, [f.astype(np.int64) for f in factors])
    return ActivationLift(
        graph,
        nodes,
        edge_variable[s.sum_edges],
        leaf_order,
        np.asarray(chain_weights, np.int64),
    )
