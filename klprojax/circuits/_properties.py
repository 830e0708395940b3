"""What a circuit's structure allows: determinism, structured decomposability, compatibility."""

import itertools

import numpy as np

from ._circuit import Circuit
from ._kinds import require_explicit
from ._structure import LEAF, PRODUCT, SUM, CircuitStructure, is_indicator

# Most pairs of children compared at one sum node before giving up.
_MOST_PAIRS = 2_000_000
# Most pairs of nodes whose joint support is looked into.
_MOST_JOINT = 1_000_000


def is_deterministic(circuit: Circuit) -> bool:
    """Say whether at most one child of every sum node is positive at any joint state.

    Two children are told apart by a variable whose possible states are disjoint below them, else
    by following the product of the two subcircuits, which decides where both split their scope in
    the same way. Leaves other than indicators count as positive at every state.

    Args:
        circuit: the structure.

    Returns:
        True if proved. False if two children overlap, or if that could not be decided.

    Reference: Darwiche (2003), determinism; needed for `mpe` to be exact and for `entropy`.
    """
    require_explicit(circuit, "is_deterministic")
    s = circuit.structure
    supports, starts = _supports(s)
    joint = JointSupport(s)
    for node in np.flatnonzero(s.kinds == SUM).tolist():
        children = s.children[s.offsets[node] : s.offsets[node + 1]]
        k = len(children)
        if k * (k - 1) // 2 > _MOST_PAIRS:
            return False
        scope = np.asarray(s.scope_of(node))
        if not len(scope):
            continue
        for i, j in _unseparated(supports[children], starts, scope):
            if joint.overlap(int(children[i]), int(children[j])) is not False:
                return False
    return True


def _supports(s: CircuitStructure) -> tuple[np.ndarray, np.ndarray]:
    """Which states of each variable are possible below each node ``[nodes, all states]``."""
    states = np.maximum(s.cardinalities, 1)
    starts = np.concatenate([[0], np.cumsum(states)])
    packed = np.zeros((s.num_nodes, -(-int(starts[-1]) // 8)), np.uint8)
    for group in s.groups:
        for node, v, t in itertools.zip_longest(
            group.nodes.tolist(), group.variables.tolist(), group.states.tolist()
        ):
            span = range(starts[v], starts[v + 1]) if t is None else (starts[v] + t,)
            for bit in span:
                packed[node, bit // 8] |= 128 >> (bit % 8)
    for nodes in s.ranks:
        packed[nodes] = s.union_below(packed, nodes)
    return packed, starts


def _unseparated(supports: np.ndarray, starts: np.ndarray, scope: np.ndarray):
    """Pairs of children that no single variable tells apart."""
    k = len(supports)
    bits = np.unpackbits(supports, axis=1, count=int(starts[-1])).astype(bool)
    for i in range(k - 1):
        both = bits[i + 1 :] & bits[i]
        shared = np.add.reduceat(both, starts[:-1], axis=1)[:, scope]
        for j in np.flatnonzero((shared > 0).all(axis=1)).tolist():
            yield i, i + 1 + j


class JointSupport:
    """Whether two nodes of one scope are ever positive together; None if undecided."""

    def __init__(self, s: CircuitStructure):
        self._s = s
        self._known: dict[tuple[int, int], bool | None] = {}
        self._states: dict[int, tuple[int, int]] = {}
        for group in s.groups:
            if is_indicator(group):
                pairs = zip(group.variables.tolist(), group.states.tolist(), strict=True)
                self._states.update(zip(group.nodes.tolist(), pairs, strict=True))

    def overlap(self, a: int, b: int) -> bool | None:
        """Decide it for two nodes."""
        stack = [_key(a, b)]
        while stack:
            pair = stack[-1]
            if pair in self._known:
                stack.pop()
                continue
            if len(self._known) + len(stack) > _MOST_JOINT:
                return None
            waiting, value = self._look(*pair)
            if waiting:
                stack += waiting
            else:
                self._known[pair] = value
                stack.pop()
        return self._known[_key(a, b)]

    def _look(self, a: int, b: int) -> tuple[list[tuple[int, int]], bool | None]:
        s = self._s
        if a == b:
            return [], True
        kinds = s.kinds[a], s.kinds[b]
        if kinds == (LEAF, LEAF):
            one, two = self._states.get(a), self._states.get(b)
            return [], one is None or two is None or one == two
        if SUM in kinds:
            if kinds[0] != SUM:
                a, b = b, a
            pairs = [_key(int(c), b) for c in self._below(a)]
            combine = _any
        elif kinds == (PRODUCT, PRODUCT):
            ours = {s.scope_of(int(c)): int(c) for c in self._below(a)}
            theirs = {s.scope_of(int(c)): int(c) for c in self._below(b)}
            if ours.keys() != theirs.keys():
                return [], None
            pairs = [_key(ours[scope], theirs[scope]) for scope in ours]
            combine = _all
        else:
            # a product of one child beside a leaf
            if kinds[0] != PRODUCT:
                a, b = b, a
            if len(self._below(a)) > 1:
                return [], None
            pairs, combine = [_key(int(self._below(a)[0]), b)], _any
        waiting = [pair for pair in pairs if pair not in self._known]
        if waiting:
            return waiting, None
        return [], combine([self._known[pair] for pair in pairs])

    def _below(self, node: int) -> np.ndarray:
        return self._s.children[self._s.offsets[node] : self._s.offsets[node + 1]]


def _key(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a <= b else (b, a)


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def is_structured(circuit: Circuit) -> bool:
    """Say whether all products of one scope split it in the same way (structured decomposability).

    Products of one child are passed over. Such circuits follow a tree of scopes, like a vtree, and
    can be multiplied with one another (`multiply`).

    Args:
        circuit: the structure.

    Returns:
        A Python bool.
    """
    require_explicit(circuit, "is_structured")
    split: dict[bytes, set[bytes]] = {}
    s = circuit.structure
    for node in np.flatnonzero((s.kinds == PRODUCT) & (s.fan_in > 1)).tolist():
        children = s.children[s.offsets[node] : s.offsets[node + 1]]
        parts = {s.scopes[c].tobytes() for c in children.tolist()}
        if split.setdefault(s.scopes[node].tobytes(), parts) != parts:
            return False
    return True
