"""The structure of a tensor circuit: vectors of units, their products, dense sums, mixtures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..._variables import VariableLayout

Node = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TensorStructure:
    """Which vectors of units multiply, level by level; hashes and compares by content.

    Ids: the input vectors come first, 0 to inputs - 1, then the nodes, level by level.

    Attributes:
        cardinalities: states of each variable.
        units: length K of every vector.
        variables: the variable of each input vector.
        input_blocks: which table of leaf distributions an input vector has.
        levels: per level, lowest first, the children of each node.
        sum_blocks: which weight matrix a sum node has, over all levels of sums in order.
        roots: per component the children of its product; the root sums over components and units.
        mixing: the levels whose nodes are mixtures of their children, in ascending order; all
            others are of sum nodes.
    """

    cardinalities: tuple[int, ...]
    units: int
    variables: tuple[int, ...]
    input_blocks: tuple[int, ...]
    levels: tuple[tuple[Node, ...], ...]
    sum_blocks: tuple[int, ...]
    roots: tuple[Node, ...]
    mixing: tuple[int, ...] = ()

    @cached_property
    def _key(self) -> tuple:
        return (
            self.cardinalities,
            self.units,
            self.variables,
            self.input_blocks,
            self.levels,
            self.sum_blocks,
            self.roots,
            self.mixing,
        )

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, TensorStructure)
            and self._hash == other._hash
            and self._key == other._key
        )

    # -- sizes -------------------------------------------------------------------------------

    @property
    def num_inputs(self) -> int:
        """Number of input vectors."""
        return len(self.variables)

    @property
    def num_input_blocks(self) -> int:
        """Number of different tables of leaf distributions."""
        return max(self.input_blocks) + 1

    @property
    def num_sum_blocks(self) -> int:
        """Number of different weight matrices."""
        return max(self.sum_blocks, default=-1) + 1

    @cached_property
    def mixtures(self) -> tuple[Node, ...]:
        """The children of every mixture, level by level."""
        return tuple(node for level in self.mixing for node in self.levels[level])

    @property
    def max_partitions(self) -> int:
        """Most children of a mixture: the width of the table of mixing weights."""
        return max(map(len, self.mixtures), default=0)

    @cached_property
    def partitions(self) -> np.ndarray:
        """Number of children of each mixture."""
        return np.asarray([len(node) for node in self.mixtures], np.int64)

    @cached_property
    def weights_of(self) -> np.ndarray:
        """Per node, its matrix among the sums' or its row among the mixtures'."""
        blocks, mixtures, out = iter(self.sum_blocks), iter(range(len(self.mixtures))), []
        for number, level in enumerate(self.levels):
            out += [next(mixtures if number in self.mixing else blocks) for _ in level]
        return np.asarray(out, np.int64)

    @property
    def max_states(self) -> int:
        """Largest cardinality: the width of the leaf tables."""
        return max(self.cardinalities)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First id of every level, and one past the last."""
        sizes = [self.num_inputs, *map(len, self.levels)]
        return tuple(np.cumsum(sizes).tolist())

    @cached_property
    def input_cardinalities(self) -> np.ndarray:
        """States of the variable of each input block."""
        out = np.zeros(self.num_input_blocks, np.int64)
        for variable, block in zip(self.variables, self.input_blocks, strict=True):
            out[block] = self.cardinalities[variable]
        return out

    @cached_property
    def layout(self) -> VariableLayout:
        """The circuit's variables, as arrays by cardinality hold them."""
        return VariableLayout(self.cardinalities)

    # -- checks ------------------------------------------------------------------------------

    def check(self) -> None:
        """Check sizes, wiring, decomposability and the scope of the roots.

        Raises:
            ValueError: naming the node at fault.
        """
        if self.units < 1:
            raise ValueError(f"units is {self.units}; a vector needs at least 1 unit.")
        if not self.cardinalities or min(self.cardinalities) < 1:
            raise ValueError(
                f"cardinalities are {self.cardinalities}; every variable needs at least 1 state."
            )
        if not self.roots:
            raise ValueError("The circuit has no root; give at least one component.")
        if len(self.input_blocks) != self.num_inputs:
            raise ValueError(
                f"input_blocks has {len(self.input_blocks)} entries for {self.num_inputs} inputs."
            )
        if list(self.mixing) != sorted(set(self.mixing) & set(range(len(self.levels)))):
            raise ValueError(
                f"mixing is {self.mixing}; it lists some of the levels 0 to {len(self.levels) - 1} "
                "in ascending order."
            )
        sums = self.starts[-1] - self.num_inputs - len(self.mixtures)
        if len(self.sum_blocks) != sums:
            raise ValueError(f"sum_blocks has {len(self.sum_blocks)} entries for {sums} sum nodes.")
        for name, blocks in (("input_blocks", self.input_blocks), ("sum_blocks", self.sum_blocks)):
            if sorted(set(blocks)) != list(range(len(set(blocks)))):
                raise ValueError(f"{name} must number the blocks 0, 1, ... without gaps.")
        scopes: list[int] = []
        shared: dict[int, int] = {}
        for node, (v, block) in enumerate(zip(self.variables, self.input_blocks, strict=True)):
            if not 0 <= v < len(self.cardinalities):
                raise ValueError(
                    f"Input {node} is over variable {v}; the variables are 0 to "
                    f"{len(self.cardinalities) - 1}."
                )
            card = self.cardinalities[v]
            if shared.setdefault(block, card) != card:
                raise ValueError(
                    f"Inputs of block {block} have {shared[block]} and {card} states; only "
                    "variables of one cardinality can share leaf distributions."
                )
            scopes.append(1 << v)
        for number, level in enumerate((*self.levels, self.roots)):
            where = f"level {number}" if number < len(self.levels) else "the roots"
            scope = _common_scope if number in self.mixing else _scope
            scopes += [scope(children, scopes, where) for children in level]
        everything = (1 << len(self.cardinalities)) - 1
        for component, scope in enumerate(scopes[self.starts[-1] :]):
            if scope != everything:
                missing = [v for v in range(len(self.cardinalities)) if not (scope >> v) & 1]
                raise ValueError(
                    f"Component {component} lacks variables {missing[:5]}; every component must "
                    "be over all variables."
                )


def _check_children(children: Sequence[int], scopes: list[int], where: str) -> None:
    if not children:
        raise ValueError(f"A node of {where} has no children.")
    for child in children:
        if not 0 <= child < len(scopes):
            raise ValueError(
                f"A node of {where} has child {child}; children come from lower levels, here 0 to "
                f"{len(scopes) - 1}."
            )


def _common_scope(children: Sequence[int], scopes: list[int], where: str) -> int:
    _check_children(children, scopes, where)
    if len({scopes[child] for child in children}) > 1:
        raise ValueError(
            f"A mixture of {where} with children {tuple(children)} is not smooth: they are not "
            "over the same variables."
        )
    return scopes[children[0]]


def _scope(children: Sequence[int], scopes: list[int], where: str) -> int:
    _check_children(children, scopes, where)
    scope = 0
    for child in children:
        if scope & scopes[child]:
            raise ValueError(
                f"A node of {where} with children {tuple(children)} is not decomposable: two of "
                "them share a variable."
            )
        scope |= scopes[child]
    return scope
