"""Circuits, layer by layer."""

from typing import Any

import numpy as np

from ..circuits import Circuit
from ..circuits._structure import LEAF, PRODUCT, SUM
from ._axes import make_axes

_MOST_NODES = 2000
_KINDS = ((SUM, "C0", "o", "sums"), (PRODUCT, "C1", "s", "products"), (LEAF, "0.7", "o", "leaves"))
_SIGNS = {SUM: "+", PRODUCT: "×", LEAF: ""}


def circuit(
    circuit: Circuit,
    log_weights: Any = None,
    ax: Any = None,
    *,
    node_values: Any = None,
    labels: bool | None = None,
) -> Any:
    """Draw a circuit: sums, products and leaves in layers, leaves at the bottom.

    Sums and products carry their sign. An edge out of a sum is as thick as its weight, relative to
    the other weights of that sum.

    Args:
        circuit: the structure.
        log_weights: one per edge out of a sum node, nats; lines of one thickness if None.
        ax: axes to draw on; a new figure if None.
        node_values: numbers in [0, 1] by node that become the nodes' opacity, such as ``visits``
            of a sweep; opaque if None.
        labels: write signs and leaves' variables into the nodes; if None, where there are at most
            150 nodes.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: too many nodes to show, or numbers that do not fit the circuit.
    """
    structure = circuit.structure
    nodes = circuit.num_nodes
    if nodes > _MOST_NODES:
        raise ValueError(f"The circuit has {nodes} nodes; at most {_MOST_NODES} can be shown.")
    opacity = np.ones(nodes) if node_values is None else np.asarray(node_values, float)
    if opacity.shape != (nodes,) or not ((opacity >= 0) & (opacity <= 1 + 1e-6)).all():
        raise ValueError(f"node_values must be {nodes} numbers in [0, 1], one per node.")
    opacity = np.minimum(opacity, 1.0)
    parents, children = structure.parents, structure.children
    kinds = structure.kinds
    places = _places(nodes, parents, children)
    widths = _widths(circuit, parents, log_weights)
    (axis,) = make_axes(ax, 1, (7.0, 4.5))
    for edge in range(len(children)):
        ends = places[[parents[edge], children[edge]]]
        axis.plot(*ends.T, color="0.5", linewidth=widths[edge], zorder=1)
    size = float(np.clip(15000 / nodes, 20, 300))
    for kind, color, marker, label in _KINDS:
        at = np.flatnonzero(kinds == kind)
        # White beneath, so that the edges do not shine through.
        axis.scatter(*places[at].T, s=size, c="white", marker=marker, zorder=2)
        axis.scatter(
            *places[at].T, s=size, c=color, marker=marker, alpha=opacity[at], zorder=3, label=label
        )
    if labels if labels is not None else nodes <= 150:
        for node, text in enumerate(_texts(circuit, kinds)):
            axis.annotate(
                text, places[node], ha="center", va="center", fontsize="x-small", zorder=4
            )
    from matplotlib.lines import Line2D

    # Handles of their own: those of the nodes have the nodes' opacity.
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=label)
        for _, color, marker, label in _KINDS
    ]
    axis.legend(handles=handles, fontsize="small")
    axis.set_axis_off()
    return axis.figure


def _places(nodes: int, parents: np.ndarray, children: np.ndarray) -> np.ndarray:
    """Height above the leaves; sideways, a few rounds of each node's mean over its neighbours."""
    height = np.zeros(nodes, int)
    # A circuit has no cycle: after as many rounds as it is deep, nothing changes.
    while len(parents):
        raised = height.copy()
        np.maximum.at(raised, parents, height[children] + 1)
        if (raised == height).all():
            break
        height = raised
    order = np.zeros(nodes)
    layers = [np.flatnonzero(height == level) for level in range(height.max() + 1)]
    for layer in layers:
        order[layer] = _spread(len(layer))
    for _ in range(8):
        for layer in layers:
            mean = np.asarray([_mean(order, int(node), parents, children) for node in layer])
            order[layer[np.argsort(mean, kind="stable")]] = _spread(len(layer))
    return np.stack([order, height.astype(float)], axis=1)


def _spread(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _mean(order: np.ndarray, node: int, parents: np.ndarray, children: np.ndarray) -> float:
    near = np.concatenate([parents[children == node], children[parents == node]])
    return float(order[near].mean()) if len(near) else float(order[node])


def _widths(circuit: Circuit, parents: np.ndarray, log_weights: Any) -> np.ndarray:
    widths = np.ones(circuit.num_edges)
    if log_weights is None:
        return widths
    weights = np.asarray(log_weights, float)
    if weights.shape != (circuit.num_weights,):
        raise ValueError(
            f"Got log_weights of shape {weights.shape}; expected {(circuit.num_weights,)}, one an "
            "edge out of a sum node."
        )
    edges = circuit.structure.sum_edges
    largest = np.full(circuit.num_nodes, -np.inf)
    np.maximum.at(largest, parents[edges], weights)
    # A sum whose weights are all -inf: no edge stands out.
    top = np.where(np.isneginf(largest), 0.0, largest)[parents[edges]]
    widths[edges] = 0.2 + 2.3 * np.exp(weights - top)
    return widths


def _texts(circuit: Circuit, kinds: np.ndarray) -> list[str]:
    texts = [_SIGNS[int(kind)] for kind in kinds]
    for group in circuit.groups:
        for node, variable, state in zip(group.nodes, group.variables, group.states, strict=False):
            texts[node] = f"{variable}={state}" if state >= 0 else str(variable)
        for node, variable in zip(group.nodes, group.variables, strict=True):
            texts[node] = texts[node] or str(variable)
    return texts
