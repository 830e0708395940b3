"""The graph of a network: values, and the nodes that make them from other values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, eq=False)
class Value:
    """One value of the network.

    Attributes:
        index: position in `NetworkGraph.values`.
        shape: shape for one sample.
        shared: whether all samples share it (parameters and what is made of them alone).
        kind: `"given"` (computed from the data alone), `"parameter"` or `"result"`.
        name: the path of a parameter, or the operation that made it.
        movable: whether a message into it can reach a parameter.
    """

    index: int
    shape: tuple[int, ...]
    shared: bool
    kind: str
    name: str
    movable: bool


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: a local constraint, or a linear map that only carries messages.

    Attributes:
        index: position in `NetworkGraph.nodes`.
        rule: what the operation does.
        inputs: values read.
        output: value made.
    """

    index: int
    rule: Any
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """A traced network; nodes in topological order.

    Attributes:
        values: all values.
        nodes: all operations.
        given: values that depend on the data alone.
        evaluate_given: gives their arrays from a batch of the model's argument.
        parameters: value of every inexact array of the model.
        output: value of the result, the input of the output factor.
        form: of what the model returns; joined to one vector per row if it is not one array.
        coupled: whether rows of the batch read each other.
    """

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    given: tuple[int, ...]
    evaluate_given: Callable[[Any], tuple[Any, ...]]
    parameters: tuple[int, ...]
    output: int
    form: Any
    coupled: bool

    @cached_property
    def consumers(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each value the `(node, input position)` pairs that read it."""
        out: list[list[tuple[int, int]]] = [[] for _ in self.values]
        for node in self.nodes:
            for position, index in enumerate(node.inputs):
                out[index].append((node.index, position))
        return tuple(map(tuple, out))

    @cached_property
    def producers(self) -> dict[int, Node]:
        """For each value that an operation made, that operation."""
        return {node.output: node for node in self.nodes}

    @cached_property
    def constraints(self) -> tuple[Node, ...]:
        """The nodes that are local constraints, in topological order."""
        return tuple(node for node in self.nodes if not node.rule.carries)

    @cached_property
    def colours(self) -> dict[tuple[str, int], int] | None:
        """Two-colouring of the constraints, the parameters and the output factor, or None.

        Keys are `("node", index)`, `("parameter", value)` and `("output", value)`, the latter of
        colour 0. Two constraints that meet in a value, directly or through maps that only carry
        messages, have different colours. None if there is an odd cycle.
        """
        edges: dict[tuple[str, int], set[tuple[str, int]]] = {("output", self.output): set()}
        sources: dict[int, set[tuple[str, int]]] = {}
        for index in self.parameters:
            sources[index] = {("parameter", index)}
            edges.setdefault(("parameter", index), set())
        for node in self.nodes:
            behind = set().union(*(sources.get(index, set()) for index in node.inputs))
            if node.rule.carries:
                sources[node.output] = behind if self.values[node.output].movable else set()
                continue
            here = ("node", node.index)
            edges.setdefault(here, set())
            for other in behind:
                edges[here].add(other)
                edges[other].add(here)
            sources[node.output] = {here}
        for other in sources.get(self.output, set()):
            edges[("output", self.output)].add(other)
            edges[other].add(("output", self.output))
        colours = {("output", self.output): 0}
        # Constraints that no path of movable values joins to the output are coloured on their own.
        for start in edges:
            if start not in colours:
                colours[start] = 0
            queue = [start]
            while queue:
                at = queue.pop()
                for other in edges[at]:
                    if other not in colours:
                        colours[other] = 1 - colours[at]
                        queue.append(other)
                    elif colours[other] == colours[at]:
                        return None
        return colours

    def halves(self) -> dict[tuple[str, int], int]:
        """`colours`, where there are any.

        Raises:
            ValueError: the constraints form an odd cycle.
        """
        if self.colours is None:
            raise ValueError(
                "The network's constraints form an odd cycle, so they have no two halves; use "
                "CyclicProjections, or put an operation on one branch of the skip."
            )
        return self.colours
