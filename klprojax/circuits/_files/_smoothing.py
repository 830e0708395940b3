"""From a negation normal form to a smooth circuit, in numpy, one pass per topological rank.

Constants and nodes of one child go first, then the form is checked, then every branch of an or-node
is multiplied by the variables that its siblings have and it lacks. Variables are halved again and
again in the order of their first occurrence, so a gap of neighbours costs few factors, and equal
gaps are one node.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._builder import CircuitModel
from .._circuit import Circuit
from .._layered_plan import spans
from .._leaves import INDICATOR
from .._structure import LEAF, PRODUCT, SUM, CircuitStructure, LeafGroup
from ._lines import LineFile

_MOST_SCOPE_BYTES = 2**28
_MOST_EDGES = 2**24
_ROWS = 2**14  # scopes compared at once
_CELLS = 2**24  # bits unpacked at once
# Nodes looked at, in all, for literals that are no direct conjuncts of a branch.
_MOST_LOOKS = 1_000_000


class NegationNormalForm(NamedTuple):
    """A negation normal form as a file has it; nodes in any order.

    Attributes:
        variables: their number.
        kinds: 0 (literal), 1 (and; without children: true), 2 (or; without children: false).
        counts: number of children of each node. children: all children, node by node.
        literals: per literal node, from 1, negative for a negated variable.
        decisions: per or-node the variable, from 1, that tells its two children apart; 0: none is
            named; -1: some literal does.
        lines: where each node stands. root: the root.
    """

    variables: int
    kinds: np.ndarray
    counts: np.ndarray
    children: np.ndarray
    literals: np.ndarray
    decisions: np.ndarray
    lines: np.ndarray
    root: int


def smooth_circuit(
    file: LineFile, nnf: NegationNormalForm, weights: np.ndarray | None
) -> CircuitModel:
    """Check a form and make it a circuit.

    Args:
        file: for errors.
        nnf: what it holds.
        weights: log-weights of both literals per variable, nats.

    Raises:
        ModelFileError: no d-DNNF, no models, or too large.
    """
    if weights is not None and np.isneginf(weights).all(axis=1).any():
        variable = 1 + int(np.argmax(np.isneginf(weights).all(axis=1)))
        got = f"weight 0 for both literals of variable {variable}"
        raise file.error(None, "a formula with a model of positive weight", got)
    occurring = len(np.unique(np.abs(nnf.literals[nnf.literals != 0])))
    if len(nnf.kinds) * occurring > 8 * _MOST_SCOPE_BYTES:
        expected = f"a circuit whose scopes take at most {_MOST_SCOPE_BYTES} bytes"
        got = f"{len(nnf.kinds)} nodes and {occurring} variables"
        raise file.error(None, expected, got)
    reduced = _reduce(file, nnf, weights)
    parts = _Parts(nnf.variables, weights)
    if reduced is None:
        return parts.finish(file, [], range(nnf.variables))
    order, s = _structure(reduced)
    _check_decomposable(file, reduced, s, order)
    _check_decisions(file, reduced, s)
    root = parts.add_formula(file, s, order, reduced)
    free = np.setdiff1d(np.arange(nnf.variables), order)
    return parts.finish(file, [root], free)


# -- constants -------------------------------------------------------------------------------


def _raw_structure(nnf: NegationNormalForm, groups=(), cards=()) -> CircuitStructure:
    offsets = np.concatenate([[0], np.cumsum(nnf.counts)])
    return CircuitStructure(
        np.asarray(cards), nnf.kinds, offsets, nnf.children, groups, int(nnf.root)
    )


def _reduce(
    file: LineFile, nnf: NegationNormalForm, weights: np.ndarray | None
) -> NegationNormalForm | None:
    """Without constants, nodes of one child and unused nodes; None for the constant true."""
    s = _raw_structure(nnf)
    cyclic = np.flatnonzero(s.rank < 0)
    if len(cyclic):
        raise file.error(int(nnf.lines[cyclic[0]]), "a node not on or above a cycle", "one that is")
    is_or = nnf.kinds == SUM
    positive = ~is_or
    if weights is not None:
        leaf = np.flatnonzero(nnf.literals)
        literal = nnf.literals[leaf]
        positive[leaf] = weights[np.abs(literal) - 1, (literal > 0).astype(int)] > -np.inf
    true = (nnf.kinds == PRODUCT) & (nnf.counts == 0)
    for nodes in s.ranks:
        starts = s.offsets[nodes]
        below = s.children[spans(starts, s.fan_in[nodes])]
        at = np.cumsum(s.fan_in[nodes]) - s.fan_in[nodes]
        alive = np.add.reduceat(positive[below], at, dtype=np.int64)
        sure = np.add.reduceat(positive[below] & true[below], at, dtype=np.int64)
        wide = is_or[nodes]
        overlapping = nodes[wide & (sure > 0) & (alive > 1)]
        for node in overlapping[s.reachable[overlapping]][:1]:
            expected = "children of an or-node that exclude one another"
            raise file.error(int(nnf.lines[node]), expected, "one that is always true")
        positive[nodes] = np.where(wide, alive > 0, alive == s.fan_in[nodes])
        true[nodes] = positive[nodes] & (sure == np.where(wide, alive, s.fan_in[nodes]))
    if not positive[nnf.root]:
        fix = "a circuit with positive weights has a model; is a literal's weight 0?"
        got = "the constant false" if weights is None else "none of positive weight"
        raise file.error(int(nnf.lines[nnf.root]), "a formula with a model", got, fix)
    if true[nnf.root]:
        return None
    kept = positive[s.parents] & positive[s.children]
    kept &= is_or[s.parents] | ~true[s.children]
    counts = np.bincount(s.parents[kept], minlength=s.num_nodes)
    same = np.arange(s.num_nodes)
    single = counts[s.parents] == 1
    same[s.parents[kept & single]] = s.children[kept & single]
    while (same != same[same]).any():
        same = same[same]
    counts[same != np.arange(s.num_nodes)] = 0
    kept &= ~single
    nnf = nnf._replace(counts=counts, children=same[s.children[kept]], root=same[nnf.root])
    return _used(nnf)


def _used(nnf: NegationNormalForm) -> NegationNormalForm:
    used = _raw_structure(nnf).reachable
    number = np.cumsum(used) - 1
    edges = np.repeat(used, nnf.counts)
    nodes = (part[used] for part in (nnf.literals, nnf.decisions, nnf.lines))
    return NegationNormalForm(
        nnf.variables,
        nnf.kinds[used],
        nnf.counts[used],
        number[nnf.children[edges]],
        *nodes,
        root=int(number[nnf.root]),
    )


# -- checks ----------------------------------------------------------------------------------


def _structure(nnf: NegationNormalForm) -> tuple[np.ndarray, CircuitStructure]:
    """The variables that occur, in the order of their first occurrence, and the wiring."""
    leaf = np.flatnonzero(nnf.kinds == LEAF)
    variable = np.abs(nnf.literals[leaf]) - 1
    occurring, first, which = np.unique(variable, return_index=True, return_inverse=True)
    rank = np.argsort(first)
    place = np.empty_like(rank)
    place[rank] = np.arange(len(rank))
    states = (nnf.literals[leaf] > 0).astype(np.int32)
    groups = [LeafGroup(INDICATOR, leaf, place[which], states)]
    return occurring[rank], _raw_structure(nnf, groups, np.full(len(occurring), 2))


def _check_decomposable(
    file: LineFile, nnf: NegationNormalForm, s: CircuitStructure, order
) -> None:
    sizes = np.concatenate(
        [
            np.bitwise_count(s.scopes[at : at + _ROWS]).sum(axis=1, dtype=np.int64)
            for at in range(0, s.num_nodes, _ROWS)
        ]
    )
    products = np.flatnonzero(s.kinds == PRODUCT)
    below = sizes[s.children[spans(s.offsets[products], s.fan_in[products])]]
    at = np.cumsum(s.fan_in[products]) - s.fan_in[products]
    total = np.add.reduceat(below, at) if len(products) else below
    for node in products[total != sizes[products]][:1].tolist():
        seen: set[int] = set()
        for child in s.children[s.offsets[node] : s.offsets[node + 1]].tolist():
            scope = set(s.scope_of(child))
            if seen & scope:
                expected = "children of an and-node without a common variable"
                got = f"variable {1 + min(order[v] for v in seen & scope)} in two of them"
                raise file.error(int(nnf.lines[node]), expected, got)
            seen |= scope


def _check_decisions(file: LineFile, nnf: NegationNormalForm, s: CircuitStructure) -> None:
    """Check that branches exclude one another by a literal, where the file says so."""
    looks = 0

    def conjuncts(node: int) -> set[int]:
        # Literals that a branch implies: itself, or what the and-nodes at its top join.
        nonlocal looks
        found, stack = set(), [node]
        while stack and looks < _MOST_LOOKS:
            looks += 1
            node = stack.pop()
            if s.kinds[node] == LEAF:
                found.add(int(nnf.literals[node]))
            elif s.kinds[node] == PRODUCT:
                stack += s.children[s.offsets[node] : s.offsets[node + 1]].tolist()
        return found

    claimed = np.flatnonzero((s.kinds == SUM) & (nnf.decisions != 0))
    for node in claimed[~_told_apart(nnf, s, claimed)].tolist():
        below = s.children[s.offsets[node] : s.offsets[node + 1]].tolist()
        branches = [conjuncts(child) for child in below]
        decision = int(nnf.decisions[node])
        if decision > 0:
            branches = [{lit for lit in b if abs(lit) == decision} for b in branches]
        seen: list[set[int]] = []
        for branch in branches:
            if any(not any(-lit in branch for lit in other) for other in seen):
                by = f"variable {decision}" if decision > 0 else "a literal"
                expected = f"children of an or-node that {by} tells apart"
                fix = "the form is not deterministic, so sums would count models twice"
                raise file.error(int(nnf.lines[node]), expected, "two that may both hold", fix)
            seen.append(branch)


def _told_apart(nnf: NegationNormalForm, s: CircuitStructure, nodes: np.ndarray) -> np.ndarray:
    """Which or-nodes have two branches with direct conjuncts of opposite sign."""
    edges = spans(s.offsets[nodes], s.fan_in[nodes])
    child = s.children[edges]
    owner = np.repeat(np.arange(len(nodes)), s.fan_in[nodes])
    products = s.kinds[child] == PRODUCT
    inner = child[products]
    below = s.children[spans(s.offsets[inner], s.fan_in[inner])]
    literal = nnf.literals[np.concatenate([child, below])]
    owners = np.concatenate([owner, np.repeat(owner[products], s.fan_in[inner])])
    wanted = nnf.decisions[nodes][owners]
    useful = (literal != 0) & ((wanted < 0) | (np.abs(literal) == wanted))
    # One branch is decomposable, so both signs of a variable come from two branches.
    seen = np.unique(np.stack([owners, np.abs(literal), literal > 0], axis=1)[useful], axis=0)
    both = (seen[1:, :2] == seen[:-1, :2]).all(axis=1)
    found = np.zeros(len(nodes), bool)
    found[seen[1:][both, 0]] = True
    return found & (s.fan_in[nodes] == 2)


def _gaps(s: CircuitStructure) -> tuple[np.ndarray, list[bytes]]:
    """Edges of or-nodes to children that lack variables, and what they lack, as bit sets."""
    edges, gaps = [np.zeros(0, np.int32)], []
    for at in range(0, len(s.sum_edges), _ROWS):
        part = s.sum_edges[at : at + _ROWS]
        lacking = s.scopes[s.parents[part]] & ~s.scopes[s.children[part]]
        rows = np.flatnonzero(lacking.any(axis=1))
        edges.append(part[rows])
        gaps += [row.tobytes() for row in lacking[rows]]
    return np.concatenate(edges), gaps


# -- the circuit -----------------------------------------------------------------------------


class _Parts:
    """Blocks of nodes with their children; the first are both indicators of every variable."""

    def __init__(self, variables: int, weights: np.ndarray | None):
        self.variables = variables
        self.weighted = weights is not None
        self.total = 0
        self.kinds: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []
        self.children: list[np.ndarray] = []
        self.log_weights: list[np.ndarray] = []
        self.edges = 0
        every = np.arange(2 * variables)
        self.literal = self._add(LEAF, np.zeros(len(every), np.int64), every[:0])
        flat = np.zeros(2 * variables) if weights is None else weights.reshape(-1)
        if weights is not None:
            # a forbidden literal is in no sum, and weights are finite
            ones = np.ones(len(every), np.int64)
            finite = np.where(np.isneginf(flat), 0.0, flat)
            self.literal = self._add(SUM, ones, every, finite)
        allowed = flat > -np.inf
        counts = allowed.reshape(-1, 2).sum(axis=1)
        self.free = self._add(SUM, counts, every[allowed], flat[allowed])

    def _add(self, kind, counts, children, log_weights=None) -> np.ndarray:
        new = np.arange(self.total, self.total + len(counts))
        self.total += len(counts)
        self.edges += len(children)
        kinds = np.full(len(counts), kind, np.uint8) if np.ndim(kind) == 0 else kind
        self.kinds.append(kinds)
        self.counts.append(np.asarray(counts, np.int64))
        self.children.append(np.asarray(children, np.int64))
        if log_weights is not None:
            self.log_weights.append(log_weights)
        return new

    def add_formula(
        self, file: LineFile, s: CircuitStructure, order, nnf: NegationNormalForm
    ) -> int:
        """Add all nodes, branches of or-nodes filled up; return the root."""
        leaf = s.kinds == LEAF
        literal = nnf.literals[leaf]
        number = np.empty(s.num_nodes, np.int64)
        number[leaf] = self.literal[2 * np.abs(literal) - 2 + (literal > 0)]
        inner = np.flatnonzero(~leaf)
        self.check_size(file)
        edges, gaps = _gaps(s)
        fill = self._add_gaps(file, gaps, order)
        first = self.total + len(edges)
        number[inner] = np.arange(first, first + len(inner))
        children = number[s.children]
        pairs = np.stack([children[edges], fill], axis=1)
        children[edges] = self._add(PRODUCT, np.full(len(edges), 2), pairs.reshape(-1))
        self._add(s.kinds[inner], s.fan_in[inner], children, np.zeros(len(s.sum_edges)))
        return int(number[s.root])

    def _add_gaps(self, file: LineFile, gaps: list[bytes], order) -> np.ndarray:
        """Nodes that sum out sets of variables: one per distinct set."""
        distinct = {gap: n for n, gap in enumerate(dict.fromkeys(gaps))}
        if not distinct:
            return np.zeros(0, np.int64)
        packed = np.frombuffer(b"".join(distinct), np.uint8).reshape(len(distinct), -1)
        # Level k has one node per 2^k neighbours, all of which are free below it.
        levels = [self.free[order]]
        while len(levels[-1]) > 1:
            pairs = levels[-1][: len(levels[-1]) // 2 * 2]
            levels.append(self._add(PRODUCT, np.full(len(pairs) // 2, 2), pairs))
        owners, members = [], []
        step = max(1, _CELLS // len(order))
        for at in range(0, len(packed), step):
            bits = np.unpackbits(packed[at : at + step], axis=1, count=len(order)).astype(bool)
            for nodes in levels:
                even = bits.shape[1] // 2 * 2
                whole = bits[:, :even:2] & bits[:, 1:even:2]
                bits[:, :even] &= ~np.repeat(whole, 2, axis=1)
                rows, columns = np.nonzero(bits)
                owners.append(at + rows)
                members.append(nodes[columns])
                bits = whole
        owner, member = np.concatenate(owners), np.concatenate(members)
        by_owner = np.argsort(owner, kind="stable")
        made = self._add(PRODUCT, np.bincount(owner), member[by_owner])
        self.check_size(file)
        return made[np.fromiter((distinct[gap] for gap in gaps), np.int64, len(gaps))]

    def check_size(self, file: LineFile) -> None:
        """Refuse a circuit that grew too large."""
        if self.edges > _MOST_EDGES:
            expected = f"a circuit of at most {_MOST_EDGES} edges when smoothed"
            raise file.error(None, expected, f"{self.edges}", "let the compiler smooth it")

    def finish(self, file: LineFile, roots: list[int], free) -> CircuitModel:
        """Multiply by the variables that do not occur, and build."""
        top = [*roots, *self.free[np.asarray(free, np.int64)]]
        if not top:
            raise file.error(None, "a formula with variables", "none")
        root = top[0] if len(top) == 1 else int(self._add(PRODUCT, [len(top)], top)[0])
        self.check_size(file)
        kinds, counts = np.concatenate(self.kinds), np.concatenate(self.counts)
        children, weights = np.concatenate(self.children), np.concatenate(self.log_weights)
        s = CircuitStructure(
            np.zeros(0), kinds, np.concatenate([[0], np.cumsum(counts)]), children, (), root
        )
        # What is used, children first.
        order = np.argsort(s.rank, kind="stable")
        order = order[s.reachable[order]]
        number = np.empty(s.num_nodes, np.int64)
        number[order] = np.arange(len(order))
        edges = spans(s.offsets[order], s.fan_in[order])
        leaves = order[kinds[order] == LEAF]
        circuit = Circuit(
            np.full(self.variables, 2),
            kinds[order],
            np.concatenate([[0], np.cumsum(counts[order])]),
            number[s.children[edges]],
            [LeafGroup(INDICATOR, number[leaves], leaves // 2, leaves % 2)],
            int(number[root]),
            validate=False,  # complete and decomposable as it was made
        )
        dtype = jnp.zeros(0).dtype
        places = s.weight_of_edge[edges]
        log_weights = jnp.asarray(weights[places[places < len(weights)]], dtype)
        parameters = tuple(jnp.zeros(shape, dtype) for shape in circuit.parameter_shapes)
        return CircuitModel(circuit, log_weights, parameters)
