"""The wiring of a circuit on the host: nodes, edges, leaves, and what follows from them.

Plain numpy, vectorised over the nodes of one topological rank; nothing recurses. Equal content
compares and hashes equal.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._variables import VariableLayout
from ._flow import Flow
from ._layered_plan import layered_plan, spans
from ._leaves import AbstractLeaf, Indicator

LEAF, PRODUCT, SUM = 0, 1, 2
KIND_NAMES = ("leaf", "product", "sum")


class LeafGroup(NamedTuple):
    """Leaves of one family over variables of one cardinality.

    Attributes:
        family: the kind of distribution.
        nodes: node of each leaf. variables: its variable.
        states: the state of each indicator; empty for other families.
    """

    family: AbstractLeaf
    nodes: Int[np.ndarray, " leaves"]
    variables: Int[np.ndarray, " leaves"]
    states: Int[np.ndarray, " states"]


class LeafWiring(NamedTuple):
    """Where the leaves of one group read their evidence: row in the class, state."""

    rows: Array | np.ndarray
    states: Array | np.ndarray


class CircuitWiring(NamedTuple):
    """All index arrays of a circuit, as device arrays.

    Attributes:
        flow: the two scans.
        leaves: one per leaf group.
        weight_of_edge: position of each edge in ``log_weights``, one past its end below products.
        sum_edges: the edges out of sum nodes.
    """

    flow: Flow
    leaves: tuple[LeafWiring, ...]
    weight_of_edge: Int[Array | np.ndarray, " edges"]
    sum_edges: Int[Array | np.ndarray, " weights"]


class Shape:
    """The static part of a compiled program: cardinalities, leaf families, the root.

    ``classes`` are the distinct cardinalities; ``counts`` the variables of each, then the number of
    continuous variables; ``groups`` the family and class of each leaf group (-1: continuous).
    """

    def __init__(self, classes: tuple[int, ...], counts: tuple[int, ...], groups: tuple, root: int):
        self.classes = classes
        self.counts = counts
        self.groups = groups
        self.root = root
        self._key = (classes, counts, groups, root)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and self._key == other._key


class CircuitStructure:
    """Immutable arrays that describe a circuit; see `Circuit` for the meaning of each."""

    def __init__(
        self,
        cardinalities: np.ndarray,
        kinds: np.ndarray,
        offsets: np.ndarray,
        children: np.ndarray,
        groups: Sequence[LeafGroup],
        root: int,
        names: tuple[str, ...] | None = None,
    ):
        self.cardinalities = _frozen(cardinalities, np.int64)
        self.kinds = _frozen(kinds, np.uint8)
        self.offsets = _frozen(offsets, np.int64)
        self.children = _frozen(children, np.int32)
        self.groups = tuple(
            LeafGroup(group.family, *(_frozen(part, np.int32) for part in group[1:]))
            for group in groups
        )
        self.root = root
        self.names = names
        self.small_calls = 0  # values computed without a compiled program

    @property
    def num_nodes(self) -> int:
        return len(self.kinds)

    @property
    def num_edges(self) -> int:
        return len(self.children)

    def label(self, node: int) -> str:
        """How messages call a node."""
        name = "" if self.names is None or not self.names[node] else f" {self.names[node]!r}"
        return f"{KIND_NAMES[self.kinds[node]]} node {node}{name}"

    @cached_property
    def fan_in(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def parents(self) -> np.ndarray:
        """Parent of each edge."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int32), self.fan_in)

    @cached_property
    def sum_edges(self) -> np.ndarray:
        """Edges out of sum nodes: what ``log_weights`` is listed by."""
        return np.flatnonzero(self.kinds[self.parents] == SUM).astype(np.int32)

    @cached_property
    def weight_of_edge(self) -> np.ndarray:
        """Position of each edge in ``log_weights``; one past the end for edges out of products."""
        position = np.full(self.num_edges, len(self.sum_edges), np.int32)
        position[self.sum_edges] = np.arange(len(self.sum_edges))
        return position

    @cached_property
    def by_child(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets per node and edge numbers: the edges that end in each node."""
        order = np.argsort(self.children, kind="stable")
        counts = np.bincount(self.children, minlength=self.num_nodes)
        return np.concatenate([[0], np.cumsum(counts)]), order

    @cached_property
    def rank(self) -> np.ndarray:
        """Longest way down to a leaf; -1 for nodes on or above a cycle."""
        offsets, order = self.by_child
        waiting = self.fan_in.copy()
        rank = np.full(self.num_nodes, -1, np.int64)
        front = np.flatnonzero(waiting == 0)
        depth = 0
        while len(front):
            rank[front] = depth
            edges = order[spans(offsets[front], offsets[front + 1] - offsets[front])]
            above, times = np.unique(self.parents[edges], return_counts=True)
            waiting[above] -= times
            front = above[waiting[above] == 0]
            depth += 1
        return rank

    @cached_property
    def reachable(self) -> np.ndarray:
        """Which nodes lie below the root, itself included."""
        seen = np.zeros(self.num_nodes, bool)
        front = np.asarray([self.root])
        while len(front):
            seen[front] = True
            below = np.unique(self.children[spans(self.offsets[front], self.fan_in[front])])
            front = below[~seen[below]]
        return seen

    @cached_property
    def ranks(self) -> list[np.ndarray]:
        """The inner nodes of each rank from 1 up."""
        order = np.argsort(self.rank, kind="stable")
        top = int(self.rank.max(initial=0))
        cuts = np.searchsorted(self.rank[order], np.arange(1, top + 2))
        return [order[a:b] for a, b in pairwise(cuts)]

    @cached_property
    def scopes(self) -> np.ndarray:
        """Packed bit sets ``[nodes, bytes]``: the variables below each node."""
        variables = len(self.cardinalities)
        scopes = np.zeros((self.num_nodes, -(-variables // 8)), np.uint8)
        for group in self.groups:
            scopes[group.nodes, group.variables // 8] = np.uint8(128) >> (
                group.variables % 8
            ).astype(np.uint8)
        for nodes in self.ranks:
            scopes[nodes] = self.union_below(scopes, nodes)
        return scopes

    def union_below(self, sets: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """Union of packed bit sets over the children of inner nodes."""
        sizes = self.fan_in[nodes]
        below = sets[self.children[spans(self.offsets[nodes], sizes)]]
        return np.bitwise_or.reduceat(below, np.cumsum(sizes) - sizes, axis=0)

    def scope_of(self, node: int) -> tuple[int, ...]:
        """Variables below a node."""
        bits = np.unpackbits(self.scopes[node], count=len(self.cardinalities))
        return tuple(np.flatnonzero(bits).tolist())

    @cached_property
    def variables(self) -> VariableLayout:
        """The variables, as arrays by cardinality hold them."""
        return VariableLayout(self.cardinalities)

    @cached_property
    def group_class(self) -> tuple[int, ...]:
        """Per leaf group, its cardinality class; -1 for continuous variables."""
        cards = [self.cardinalities[g.variables[0]] for g in self.groups]
        return tuple(int(np.searchsorted(self.variables.classes, c)) if c else -1 for c in cards)

    @cached_property
    def shape(self) -> Shape:
        """What a compiled program depends on besides array sizes."""
        families = tuple(group.family for group in self.groups)
        groups = tuple(zip(families, self.group_class, strict=True))
        v = self.variables
        counts = tuple(map(len, (*v.members, v.continuous)))
        return Shape(tuple(v.classes.tolist()), counts, groups, self.root)

    @cached_property
    def wiring(self) -> CircuitWiring:
        """Index arrays of the sweep; two circuits with equal sizes share compiled code."""
        offsets, order = self.by_child
        sums = self.kinds == SUM
        edges = np.arange(self.num_edges)
        down = int(self.rank.max(initial=0)) - self.rank
        flow = Flow(
            layered_plan(self.rank, self.offsets, self.children, edges, sums),
            layered_plan(down, offsets, self.parents[order], order, np.ones_like(sums)),
            self.children,
            self.parents,
            sums[self.parents],
            np.concatenate([group.nodes for group in self.groups]),
        )
        leaves = tuple(
            LeafWiring(self.variables.row_of[group.variables], group.states)
            for group in self.groups
        )
        wiring = CircuitWiring(flow, leaves, self.weight_of_edge, self.sum_edges)
        with jax.ensure_compile_time_eval():  # never a tracer of the caller's transformation
            return jax.tree.map(jnp.asarray, wiring)

    @cached_property
    def digest(self) -> bytes:
        digest = hashlib.sha256(repr((self.root, self.names)).encode())
        for group in self.groups:
            digest.update(repr(group.family).encode())
        arrays = [self.cardinalities, self.kinds, self.offsets, self.children]
        for array in (*arrays, *(part for group in self.groups for part in group[1:])):
            digest.update(str(array.shape).encode())
            digest.update(array.tobytes())
        return digest.digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CircuitStructure) and self.digest == other.digest


def is_indicator(group: LeafGroup) -> bool:
    """Whether the group holds indicators."""
    return isinstance(group.family, Indicator)


def _frozen(array, dtype) -> np.ndarray:
    out = np.array(array, dtype)
    out.flags.writeable = False
    return out
