"""What makes a circuit (section 4.1): acyclic, complete, decomposable, rooted."""

from typing import Any

import numpy as np

from ._layered_plan import spans
from ._structure import LEAF, PRODUCT, SUM, CircuitStructure


class CircuitError(ValueError):
    """What is wrong with a circuit, and the node at fault.

    Attributes:
        node: its number; None if no single node is to blame.
        built_from: the number that a `CircuitBuilder` gave it, if one built the circuit.
    """

    def __init__(self, message: str, node: Any = None):
        super().__init__(message)
        self.node = None if node is None else int(node)
        self.built_from: int | None = None


def check_wiring(structure: CircuitStructure) -> None:
    """Check what every evaluation needs: known children, no cycle, every node below the root.

    Raises:
        CircuitError: (a ValueError) naming the first node at fault.
    """
    s = structure
    _check_numbers(s)
    _check_leaves(s)
    childless = np.flatnonzero((s.kinds != LEAF) & (s.fan_in == 0))
    if len(childless):
        raise CircuitError(
            f"{_label(s, childless[0])} has no children; give it at least one or leave it out.",
            childless[0],
        )
    if (s.rank < 0).any():
        cycle = _cycle(s)
        names = " -> ".join(str(node) for node in cycle)
        raise CircuitError(
            f"{_label(s, cycle[0])} lies on a cycle ({names}); a circuit is acyclic: remove one of "
            "these edges.",
            cycle[0],
        )
    lost = np.flatnonzero(~s.reachable)
    if len(lost):
        raise CircuitError(
            f"{_label(s, lost[0])} cannot be reached from the root, {s.label(s.root)}; connect it "
            "or leave it out (CircuitBuilder.build leaves such nodes out).",
            lost[0],
        )


def _label(s: CircuitStructure, node) -> str:
    label = s.label(int(node))
    return label[0].upper() + label[1:]


def _check_numbers(s: CircuitStructure) -> None:
    if not 0 <= s.root < s.num_nodes:
        raise ValueError(f"The root is node {s.root}, but the nodes are 0 to {s.num_nodes - 1}.")
    if len(s.offsets) != s.num_nodes + 1 or s.offsets[0] != 0 or s.offsets[-1] != s.num_edges:
        raise ValueError(
            f"offsets must run from 0 to the number of children, {s.num_edges}, in "
            f"{s.num_nodes + 1} entries, one more than there are nodes."
        )
    if (s.fan_in < 0).any():
        raise ValueError("offsets must not decrease: entry n is where the children of n start.")
    if s.kinds.max(initial=0) > SUM:
        node = int(np.argmax(s.kinds > SUM))
        raise CircuitError(
            f"Node {node} has kind {s.kinds[node]}; use 0 (leaf), 1 (product) or 2 (sum).", node
        )
    bad = np.flatnonzero((s.children < 0) | (s.children >= s.num_nodes))
    if len(bad):
        raise CircuitError(
            f"{_label(s, s.parents[bad[0]])} has child {s.children[bad[0]]}, but the nodes are "
            f"0 to {s.num_nodes - 1}.",
            s.parents[bad[0]],
        )
    parents = np.flatnonzero((s.kinds == LEAF) & (s.fan_in > 0))
    if len(parents):
        raise CircuitError(
            f"{_label(s, parents[0])} has children; make it a sum or a product.", parents[0]
        )


def _check_leaves(s: CircuitStructure) -> None:
    times = np.zeros(s.num_nodes, np.int64)
    variables = len(s.cardinalities)
    if s.cardinalities.min(initial=0) < 0:
        variable = int(np.argmin(s.cardinalities))
        raise ValueError(
            f"Variable {variable} has cardinality {s.cardinalities[variable]}; use the number of "
            "states, or 0 for a continuous variable."
        )
    for group in s.groups:
        bad = np.flatnonzero((group.nodes < 0) | (group.nodes >= s.num_nodes))
        if len(bad):
            raise ValueError(
                f"A leaf is node {group.nodes[bad[0]]}, but the nodes are 0 to {s.num_nodes - 1}."
            )
        bad = np.flatnonzero((group.variables < 0) | (group.variables >= variables))
        if len(bad):
            raise CircuitError(
                f"{_label(s, group.nodes[bad[0]])} is over variable {group.variables[bad[0]]}, but "
                f"the variables are 0 to {variables - 1}.",
                group.nodes[bad[0]],
            )
        cards = s.cardinalities[group.variables]
        if len(set(cards.tolist())) > 1:
            raise ValueError(
                f"One group of leaves is over variables of cardinalities {sorted(set(cards))}; "
                "make one group a cardinality."
            )
        if len(cards):
            group.family.parameter_shape(int(cards[0]))  # a family that does not suit raises here
        bad = np.flatnonzero((group.states < 0) | (group.states >= cards[: len(group.states)]))
        if len(bad):
            node, state = group.nodes[bad[0]], group.states[bad[0]]
            raise CircuitError(
                f"{_label(s, node)} indicates state {state} of variable "
                f"{group.variables[bad[0]]}, which has states 0 to {cards[bad[0]] - 1}.",
                node,
            )
        np.add.at(times, group.nodes, 1)
    wrong = np.flatnonzero(times != (s.kinds == LEAF))
    if len(wrong):
        node = int(wrong[0])
        raise CircuitError(
            f"{_label(s, node)} is listed {times[node]} times among the leaves; list every leaf "
            "node once and no other node.",
            node,
        )


def _cycle(s: CircuitStructure) -> list[int]:
    node = int(np.flatnonzero(s.rank < 0)[0])
    path: list[int] = []
    seen: dict[int, int] = {}
    while node not in seen:
        seen[node] = len(path)
        path.append(node)
        below = s.children[s.offsets[node] : s.offsets[node + 1]]
        node = int(below[s.rank[below] < 0][0])
    return [*path[seen[node] :], node]


def check_semantics(structure: CircuitStructure) -> None:
    """Check completeness, decomposability and the scope of the root.

    Raises:
        CircuitError: (a ValueError) naming the first node at fault, the variables in question and
            the remedy.
    """
    s = structure
    scopes = s.scopes
    sums = s.sum_edges
    wrong = np.flatnonzero((scopes[s.children[sums]] != scopes[s.parents[sums]]).any(axis=1))
    if len(wrong):
        edge = sums[wrong[0]]
        parent, child = int(s.parents[edge]), int(s.children[edge])
        missing = sorted(set(s.scope_of(parent)) - set(s.scope_of(child)))
        raise CircuitError(
            f"{_label(s, parent)} is not complete (smooth): its child, {s.label(child)}, lacks "
            f"{_variables(missing)} of its other children. Multiply that child by a leaf or a sum "
            "of indicators over each missing variable.",
            parent,
        )
    products = np.flatnonzero(s.kinds == PRODUCT)
    if len(products):
        sizes = s.fan_in[products]
        counts = np.bitwise_count(scopes).sum(axis=1, dtype=np.int64)
        below = counts[s.children[spans(s.offsets[products], sizes)]]
        total = np.add.reduceat(below, np.cumsum(sizes) - sizes)
        bad = np.flatnonzero(total != counts[products])
        if len(bad):
            node = int(products[bad[0]])
            a, b, shared = _overlap(s, node)
            raise CircuitError(
                f"{_label(s, node)} is not decomposable: its children {s.label(a)} and "
                f"{s.label(b)} share {_variables(shared)}. Let the children of a product have "
                "disjoint scopes.",
                node,
            )
    missing = sorted(set(range(len(s.cardinalities))) - set(s.scope_of(s.root)))
    if missing:
        raise CircuitError(
            f"The root, {s.label(s.root)}, lacks {_variables(missing)}. Multiply it by a leaf or a "
            "sum of indicators over each, or leave these variables out of the cardinalities.",
            s.root,
        )


def _overlap(s: CircuitStructure, node: int) -> tuple[int, int, list[int]]:
    seen: dict[int, int] = {}
    for child in s.children[s.offsets[node] : s.offsets[node + 1]].tolist():
        scope = s.scope_of(child)
        shared = [v for v in scope if v in seen]
        if shared:
            other = seen[shared[0]]
            return other, child, sorted(set(shared) & set(s.scope_of(other)))
        seen.update({v: child for v in scope})
    raise AssertionError("no overlap")  # the counts said otherwise


def _variables(variables: list[int]) -> str:
    shown = ", ".join(map(str, variables[:5])) + (", ..." if len(variables) > 5 else "")
    return f"variable{'s' if len(variables) > 1 else ''} {shown}"
