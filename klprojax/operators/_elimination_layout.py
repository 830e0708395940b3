"""From a contraction tree to operations: which tables are multiplied, and how they are read."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ..graphs import FactorGraph
from ._elimination_steps import View
from .contraction import Leaf, Tree, leaves_of, levelled_tree

# Tables multiplied in one row; of more, the smallest are multiplied first.
INPUTS = 2
# A scan step costs about as much as this many gathered cells.
STEP_COST = 4096
# A product of so many entries is a dense step, and at most so many products are: each of them
# takes time to compile.
DENSE, MOST_DENSE = 2**20, 48
# Small products that wait for a dense one are dense too if there are so few of them, or too many
# phases of them.
FEW, MOST_PHASES = 3, 3


class Region(NamedTuple):
    """Where a table is: from a fixed cell on, or what an operation computes."""

    variables: tuple[int, ...]
    cell: int
    operation: int = -1


class Input(NamedTuple):
    """A table, its stride along each axis of the result, offsets of the states that are summed."""

    table: Region
    strides: tuple[int, ...]
    offsets: np.ndarray


class RowOperation(NamedTuple):
    """A table of sums of products.

    Attributes:
        shape: of the result; where many states are summed, its first axis is pieces of the sum.
        inputs: at most `INPUTS`; offsets are ``[pieces, states]``.
        states: how many are summed in all, the last piece may be short.
        level: one more than the highest level among the inputs.
        phase: when it is computed, see `_phases`.
    """

    shape: tuple[int, ...]
    inputs: tuple[Input, ...]
    states: int
    level: int
    phase: int

    @property
    def tables(self) -> list[Region]:
        return [one.table for one in self.inputs]


class DenseOperation(NamedTuple):
    """A product of two tables as one step.

    Attributes:
        shape: of the result; its variables are those kept of both, then of each alone.
        views: of the tables, from their first cells.
        tables: the two. level, phase: as in `RowOperation`.
    """

    shape: tuple[int, ...]
    views: tuple[View, View]
    tables: list[Region]
    level: int
    phase: int


Operation: TypeAlias = RowOperation | DenseOperation


class LaidOut(NamedTuple):
    """All operations.

    Attributes:
        operations: none before its inputs. roots: the tables without variables that remain.
        states: most states summed in one row.
        given: the first cell after potentials and evidence.
        products: multiplications in all. largest_dense: in one dense step.
        largest: entries of the largest result. width: its number of variables.
    """

    operations: list[Operation]
    roots: list[Region]
    states: int
    given: int
    products: int
    largest_dense: int
    largest: int
    width: int


def lay_out(graph: FactorGraph, shared: tuple[bool, ...]) -> LaidOut:
    """Search for a tree and list what it takes.

    Args:
        graph: the structure.
        shared: per group, whether its factors share one table.

    Raises:
        TooWide: no tree was found with tables that any machine holds.
    """
    cards = graph.cardinalities
    tables, given = _given_tables(graph, shared)
    leaves, known = leaves_of(cards, [table.variables for table in tables])
    tree = levelled_tree(cards, tuple(tuple(sorted(scope)) for scope in known), STEP_COST)
    products = [math.prod(cards[v] for v in union) for union in tree.unions]
    phases = _phases(len(leaves), tree, products)
    states = _chosen_states(cards, tree, products, phases)
    emitter = _Emitter(cards, tables, leaves, states)
    roots = emitter.follow(tree, phases)
    dense = max((n for n, phase in zip(products, phases, strict=True) if phase % 2), default=0)
    sizes = [(math.prod(cards[v] for v in scope), len(scope)) for scope in tree.scopes]
    largest, width = max(sizes[len(leaves) :], default=(1, 0))
    return LaidOut(emitter.operations, roots, states, given, sum(products), dense, largest, width)


def _given_tables(graph: FactorGraph, shared: tuple[bool, ...]) -> tuple[list[Region], int]:
    """Where potentials and evidence are, and the first cell after them."""
    tables, cell = [], 2
    for group, scope, one in zip(graph.signature.groups, graph.group_scopes, shared, strict=True):
        size = math.prod(group.shape)
        for row, variables in enumerate(scope.tolist()):
            tables.append(Region(tuple(variables), cell if one else cell + row * size))
        cell += size * (1 if one else group.count)
    for ids, card in zip(graph._host.variables, graph.signature.cardinalities, strict=True):
        tables += [Region((v,), cell + row * card) for row, v in enumerate(ids.tolist())]
        cell += len(ids) * card
    return tables, cell


def _phases(leaves: int, tree: Tree, products: Sequence[int]) -> list[int]:
    """In which phase each pair is: the large ones are dense steps, in odd phases."""
    large = sorted((n, k) for k, n in enumerate(products) if n >= DENSE)[-MOST_DENSE:]
    dense = {k for _, k in large}
    while True:
        found = [0] * leaves
        for k, pair in enumerate(tree.pairs):
            parity = int(k in dense)
            found.append(max(found[c] + ((found[c] - parity) % 2) for c in pair))
        del found[:leaves]
        waiting = [(found.count(phase), phase) for phase in {*found} if phase and phase % 2 == 0]
        few, phase = min(waiting, default=(0, 0))
        if not few or (few > FEW and len(waiting) < MOST_PHASES):
            return found
        dense |= {k for k, n in enumerate(found) if n == phase}


def _chosen_states(
    cards: tuple[int, ...], tree: Tree, products: Sequence[int], phases: Sequence[int]
) -> int:
    """States summed in one row: the width that wastes least on sums of other lengths."""
    counts: dict[int, int] = {}
    scopes = tree.scopes[len(tree.scopes) - len(products) :]
    for n, scope, phase in zip(products, scopes, phases, strict=True):
        if phase % 2 == 0:
            rows = math.prod(cards[v] for v in scope)
            summed = n // rows
            counts[summed] = counts.get(summed, 0) + rows

    def cost(width: int) -> int:
        total = 0
        for left, rows in counts.items():
            while left > 1:
                pieces = -(-left // width)
                total += rows * pieces * width
                left = pieces
        return total

    return min((2, 3, 4, 6, 8), key=cost)


class _Emitter:
    """Operations, as they are found."""

    def __init__(
        self, cards: tuple[int, ...], given: list[Region], leaves: list[Leaf], states: int
    ):
        self.cards, self.given, self.leaves, self.states = cards, given, leaves, states
        self.operations: list[Operation] = []

    def follow(self, tree: Tree, phases: Sequence[int]) -> list[Region]:
        """Emit all operations of a tree; returns the tables at its roots."""
        tables: dict[int, Region] = {}

        def table(k: int) -> Region:
            if k not in tables:
                leaf = self.leaves[k]
                members = [self.given[member] for member, *_ in leaf.members]
                tables[k] = self.product(members, leaf.scope, [leaf.scope[a] for a in leaf.gone])
            return tables[k]

        pairs = zip(tree.pairs, tree.unions, phases, strict=True)
        for n, (pair, union, phase) in enumerate(pairs, len(self.leaves)):
            kept = frozenset(tree.scopes[n])
            inputs = [table(k) for k in pair]
            if phase % 2:
                tables[n] = self.dense(inputs, kept, phase)
            else:
                tables[n] = self.product(inputs, tuple(sorted(union)), sorted(union - kept), phase)
        return [table(k) for k in tree.roots]

    def size(self, variables: Sequence[int]) -> int:
        """Joint states of some variables."""
        return math.prod(self.cards[v] for v in variables)

    def strides(self, table: Region) -> dict[int, int]:
        """How far apart the states of each variable are."""
        out, stride = {}, 1
        for v in reversed(table.variables):
            out[v] = stride
            stride *= self.cards[v]
        return out

    def level(self, tables: Sequence[Region]) -> int:
        """One more than the highest level among these."""
        levels = [self.operations[t.operation].level for t in tables if t.operation >= 0]
        return 1 + max(levels, default=-1)

    def dense(self, tables: list[Region], kept: frozenset[int], phase: int) -> Region:
        """A product of two tables as one step."""
        # The longest axis last: it is the one that vector units and threads run along.
        tables = sorted(tables, key=lambda t: self.size(t.variables))
        one, two = (t.variables for t in tables)
        summed = [v for v in one if v in two and v not in kept]
        both = [v for v in one if v in two and v in kept]
        alone = [[v for v in one if v not in two], [v for v in two if v not in one]]
        views = []
        for axis, (t, own) in enumerate(zip(tables, alone, strict=True), 3):
            groups = (summed, both, own)
            sizes = (self.size(summed), self.size(both), self.size(own))
            order = tuple(t.variables.index(v) for group in groups for v in group)
            shape = tuple(self.cards[v] for v in t.variables)
            views.append(View(0, shape, order, sizes, axis))
        variables = (*both, *alone[0], *alone[1])
        shape = tuple(self.cards[v] for v in variables)
        level = self.level(tables)
        self.operations.append(DenseOperation(shape, (views[0], views[1]), tables, level, phase))
        return Region(variables, -1, len(self.operations) - 1)

    def product(
        self, tables: list[Region], scope: Sequence[int], gone: Sequence[int], phase: int = 0
    ) -> Region:
        """Multiply tables over parts of a scope, and sum some of its variables."""
        if len(tables) == 1 and not gone:
            return tables[0]
        tables = sorted(tables, key=lambda t: self.size(t.variables))
        while len(tables) > INPUTS:
            some = tables[:INPUTS]
            union = sorted({v for t in some for v in t.variables})
            tables[:INPUTS] = [self.product(some, union, (), phase)]
        kept = tuple(v for v in scope if v not in gone)
        shape = tuple(self.cards[v] for v in kept)
        inputs = []
        for t in tables:
            stride = self.strides(t)
            offsets = np.zeros(1, np.int64)
            for v in gone:
                along = stride.get(v, 0) * np.arange(self.cards[v])
                offsets = (offsets[:, None] + along).reshape(-1)
            inputs.append(Input(t, tuple(stride.get(v, 0) for v in kept), offsets))
        level, count = self.level(tables), self.size(gone)
        while count > self.states:
            # More states than one row sums: cut them into pieces along a new first axis.
            pieces, size = -(-count // self.states), math.prod(shape)
            self._emit(pieces, shape, inputs, count, level, phase)
            partial = Region((), -1, len(self.operations) - 1)
            inner = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            inputs = [Input(partial, inner, size * np.arange(pieces))]
            count, level = pieces, level + 1
        self._emit(1, shape, inputs, count, level, phase)
        return Region(kept, -1, len(self.operations) - 1)

    def _emit(
        self,
        pieces: int,
        shape: tuple[int, ...],
        inputs: list[Input],
        count: int,
        level: int,
        phase: int,
    ) -> None:
        states = self.states if pieces > 1 else count
        cut = []
        for table, strides, offsets in inputs:
            padded = np.zeros(pieces * states, np.int64)
            padded[:count] = offsets
            along = (0, *strides) if pieces > 1 else strides
            cut.append(Input(table, along, padded.reshape(pieces, states)))
        whole = (pieces, *shape) if pieces > 1 else shape
        self.operations.append(RowOperation(whole, tuple(cut), count, level, phase))
