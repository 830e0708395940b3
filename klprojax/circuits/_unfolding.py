"""Unfolding of a circuit into a tree, and the merging identities of Lemmas 4.3 to 4.5."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..geometry import safe_logsumexp
from ._circuit import Circuit
from ._flow import segment_sum
from ._kinds import require_explicit
from ._layered_plan import spans
from ._structure import LeafGroup

_LIMIT = 1_000_000


class Unfolding(NamedTuple):
    """The tree of a circuit and the way back.

    Attributes:
        circuit: the original. tree: the unfolded circuit, node 0 its root.
        copy_of: the map ρ: the original node of every tree node.
        weight_of: the original weight of every weight of the tree.
        parameter_rows: per leaf group, the original row of every leaf of the tree.
    """

    circuit: Circuit
    tree: Circuit
    copy_of: Int[np.ndarray, " tree_nodes"]
    weight_of: Int[np.ndarray, " tree_weights"]
    parameter_rows: tuple[Int[np.ndarray, " leaves"], ...]

    def log_weights(self, log_weights: Float[Array, " weights"]) -> Float[Array, " tree_weights"]:
        """Weights of the tree: every copy of an edge carries the edge's weight.

        Args:
            log_weights: of the circuit.
        """
        return log_weights[self.weight_of]

    def leaf_parameters(
        self, leaf_parameters: tuple[Float[Array, "..."], ...]
    ) -> tuple[Float[Array, "..."], ...]:
        """Parameters of the tree's leaves.

        Args:
            leaf_parameters: of the circuit, one array per group.
        """
        return tuple(
            table[rows] for table, rows in zip(leaf_parameters, self.parameter_rows, strict=True)
        )

    def spread(self, node_values: Float[Array, " nodes"]) -> Float[Array, " tree_nodes"]:
        """Give every copy its original's number: Lemma 4.3 says ``S_tree(ñ) = S(ρ(ñ))``.

        Args:
            node_values: one number per node of the circuit.
        """
        return node_values[self.copy_of]

    def merge(self, tree_values: Float[Array, " tree_nodes"]) -> Float[Array, " nodes"]:
        """Add up over copies: visit probabilities of nodes (Lemma 4.5).

        Args:
            tree_values: one number per node of the tree.
        """
        return segment_sum(tree_values, self.copy_of, self.circuit.num_nodes)

    def merge_edges(
        self, tree_edge_values: Float[Array, " tree_weights"]
    ) -> Float[Array, " weights"]:
        """Add up over copies of edges: gate probabilities (Lemma 4.5).

        Args:
            tree_edge_values: one number a weighted edge of the tree.
        """
        return segment_sum(tree_edge_values, self.weight_of, self.circuit.num_weights)

    def merge_log(self, tree_log_values: Float[Array, " tree_nodes"]) -> Float[Array, " nodes"]:
        """``log sum exp`` over copies: downward values, ``D(n) = sum D_tree(ñ)`` (Lemma 4.4).

        Args:
            tree_log_values: one logarithm a node of the tree.
        """
        order = np.argsort(self.copy_of, kind="stable")
        counts = np.bincount(self.copy_of, minlength=self.circuit.num_nodes)
        width = int(counts.max())
        if width * len(counts) <= 16 * len(order):
            # One padded row per node.
            row = np.repeat(np.arange(len(counts)), counts)
            column = spans(np.zeros_like(counts), counts)
            padded = np.full((len(counts), width), len(order), np.int64)
            padded[row, column] = order
            ends = jnp.full((1,), -jnp.inf, tree_log_values.dtype)
            return safe_logsumexp(jnp.concatenate([tree_log_values, ends])[padded], axis=1)
        top = jnp.full(len(counts), -jnp.inf, tree_log_values.dtype)
        top = top.at[self.copy_of].max(tree_log_values)
        shift = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
        total = segment_sum(jnp.exp(tree_log_values - shift[self.copy_of]), self.copy_of, len(top))
        empty = total == 0
        value = jnp.log(jnp.where(empty, jnp.ones_like(total), total)) + shift
        return jnp.where(empty, -jnp.inf, value)


def unfold(circuit: Circuit, *, max_nodes: int = _LIMIT) -> Unfolding:
    """Unfold a circuit into the rooted tree that repeats every shared subcircuit.

    Args:
        circuit: the circuit.
        max_nodes: most nodes of the tree, which may be exponentially many.

    Returns:
        The tree, with the maps between its nodes and the circuit's.

    Raises:
        ValueError: the tree has more than ``max_nodes`` nodes; the message says how many.

    Reference: section 4.3, "Unfolding notation".
    """
    require_explicit(circuit, "unfold")
    s = circuit.structure
    size = np.ones(s.num_nodes)  # float: may overflow to inf, which is above any limit
    for nodes in s.ranks:
        fans = s.fan_in[nodes]
        below = size[s.children[spans(s.offsets[nodes], fans)]]
        size[nodes] += np.add.reduceat(below, np.cumsum(fans) - fans)
    if size[s.root] > max_nodes:
        raise ValueError(
            f"Unfolded, the circuit has {size[s.root]:.4g} nodes, more than max_nodes={max_nodes}. "
            "Work on the graph itself (sweep needs no unfolding), or raise max_nodes."
        )
    levels, edges = [np.asarray([s.root])], []
    while True:
        front = levels[-1]
        below = spans(s.offsets[front], s.fan_in[front])
        edges.append(below)
        if not len(below):
            break
        levels.append(s.children[below].astype(np.int64))
    copy_of = np.concatenate(levels)
    edge_of = np.concatenate(edges)
    # Breadth first, so the children of all nodes in order are the nodes from 1 on.
    counts = s.fan_in[copy_of]
    row_of = np.full(s.num_nodes, -1)
    group_of = np.full(s.num_nodes, -1)
    for g, group in enumerate(s.groups):
        row_of[group.nodes] = np.arange(len(group.nodes))
        group_of[group.nodes] = g
    groups, rows = [], []
    for g, group in enumerate(s.groups):
        nodes = np.flatnonzero(group_of[copy_of] == g)
        row = row_of[copy_of[nodes]]
        rows.append(row)
        states = group.states[row] if len(group.states) else group.states
        groups.append(LeafGroup(group.family, nodes, group.variables[row], states))
    tree = Circuit(
        s.cardinalities,
        s.kinds[copy_of],
        np.concatenate([[0], np.cumsum(counts)]),
        np.arange(1, len(copy_of)),
        groups,
        0,
        names=None if s.names is None else tuple(s.names[n] for n in copy_of),
        validate=False,  # as valid as the original
    )
    weight_of = s.weight_of_edge[edge_of]
    return Unfolding(
        circuit, tree, copy_of, weight_of[weight_of < circuit.num_weights], tuple(rows)
    )
