"""A lifted function taken apart into elementary operations on scalars."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

from .._tracing import (
    LAYOUT,
    NUMPY,
    RULES,
    LiftError,
    Psi,
    interpret,
    is_elementwise,
    open_call,
    scan_counts,
)
from ._structure import Structure

# Reductions and the elementary operation that their tree is made of.
_REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "reduce_sum": np.add,
    "reduce_max": np.maximum,
    "reduce_min": np.minimum,
    "reduce_prod": np.multiply,
}


@dataclass(frozen=True, eq=False)
class Cells:
    """An array whose entries are scalar nodes or constants.

    Attributes:
        nodes: the node number of every entry, -1 for a constant; None if all are constants.
        values: forward values.
    """

    nodes: np.ndarray | None
    values: Any

    def numbers(self) -> np.ndarray:
        return np.full(np.shape(self.values), -1) if self.nodes is None else self.nodes


@dataclass(frozen=True, eq=False)
class Operation:
    """Equal elementary operations on different scalars.

    Attributes:
        psi: the operation, elementwise on arrays.
        outputs: node numbers `[count]`.
        arguments: node numbers `[count, variables]` of the distinct variable arguments.
        evaluate: maps one array `[count, ...]` for each variable argument to ψ's values; the
            clamped arguments are built in.
    """

    psi: Callable[..., Any]
    outputs: np.ndarray
    arguments: np.ndarray
    evaluate: Callable[..., Any]


class Scalars:
    """The scalar graph: nodes in topological order, and the operations that define them."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.operations: list[Operation] = []
        self.count = 0

    def forward_values(self) -> np.ndarray:
        """Return the forward value of every node."""
        return np.concatenate(self.values) if self.values else np.zeros(0)

    def new_nodes(self, values: Any) -> np.ndarray:
        """Add one node an entry."""
        array = np.asarray(values)
        numbers = np.arange(self.count, self.count + array.size).reshape(array.shape)
        self.values.append(array.reshape(-1))
        self.count += array.size
        return numbers

    def elementwise(self, psi: Callable[..., Any], operands: Sequence[Cells]) -> Cells:
        """Add the nodes of `psi` applied entry by entry."""
        with np.errstate(all="ignore"):
            values = psi(*(np.asarray(cells.values) for cells in operands))
        shape = np.shape(values)
        if all(cells.nodes is None for cells in operands):
            return Cells(None, values)
        numbers = np.stack(
            [np.broadcast_to(cells.numbers(), shape).reshape(-1) for cells in operands], axis=1
        )
        given = [np.broadcast_to(cells.values, shape).reshape(-1) for cells in operands]
        result = np.full(numbers.shape[0], -1)
        variable = np.any(numbers >= 0, axis=1)
        result[variable] = self.new_nodes(np.asarray(values).reshape(-1)[variable])
        # Entries with the same pattern of clamped, variable and repeated arguments share a table
        # shape, hence one operation.
        first = np.array(
            [[row.index(n) if n >= 0 else -1 for n in row] for row in numbers.tolist()]
        )
        for pattern in np.unique(first[variable], axis=0):
            rows = np.flatnonzero(variable & np.all(first == pattern, axis=1))
            places = [k for k, source in enumerate(pattern) if source == k]
            self.operations.append(
                Operation(
                    psi,
                    result[rows],
                    numbers[rows][:, places],
                    _partial(psi, pattern, places, [column[rows] for column in given]),
                )
            )
        return Cells(result.reshape(shape), values)

    def tree(self, psi: Callable[[Any, Any], Any], cells: Cells) -> Cells:
        """Reduce the last axis by a balanced tree of a binary operation."""
        numbers, values = cells.numbers(), np.asarray(cells.values)
        while values.shape[-1] > 1:
            half = values.shape[-1] // 2
            left = Cells(numbers[..., :half], values[..., :half])
            right = Cells(numbers[..., half : 2 * half], values[..., half : 2 * half])
            joined = self.elementwise(psi, (left, right))
            numbers = np.concatenate([joined.numbers(), numbers[..., 2 * half :]], axis=-1)
            values = np.concatenate([joined.values, values[..., 2 * half :]], axis=-1)
        return Cells(np.asarray(numbers[..., 0]), values[..., 0])


def _partial(
    psi: Callable[..., Any], pattern: np.ndarray, places: list[int], given: list[np.ndarray]
) -> Callable[..., Any]:
    def evaluate(*variables: Any) -> Any:
        shape = np.shape(variables[0])
        full = []
        for k, source in enumerate(pattern):
            if source >= 0:
                full.append(variables[places.index(source)])
            else:
                column = given[k].reshape(-1, *([1] * (len(shape) - 1)))
                full.append(np.broadcast_to(column, shape))
        # Points where psi is undefined are the caller's business.
        with np.errstate(all="ignore"):
            return psi(*full)

    return evaluate


def scalarize(
    structure: Structure, values: Sequence[Any], inputs: Sequence[int] | None = None
) -> tuple[Scalars, list[Cells]]:
    """Take a lifted function apart at its forward values.

    Args:
        structure: the lifted graph.
        values: forward value of every variable; concrete.
        inputs: the variables that become nodes, others are clamped; by default the lift's own.

    Returns:
        The scalar graph, and the cells of every variable.

    Raises:
        LiftError: a primitive has no elementary form.
    """
    if inputs is None:
        inputs = [i for i in structure.inputs if structure.variables[i].kind == "input"]
    scalars = Scalars()
    cells: list[Any] = [
        None if value is None else Cells(None, jnp.asarray(value)) for value in values
    ]
    for index in inputs:
        cells[index] = Cells(scalars.new_nodes(values[index]), jnp.asarray(values[index]))
    for factor in structure.factors:
        outputs = _apply(scalars, factor.equation, [cells[i] for i in factor.inputs], factor.label)
        for index, output in zip(factor.outputs, outputs, strict=True):
            cells[index] = output
    return scalars, cells


def _run(
    scalars: Scalars, jaxpr: Any, consts: Sequence[Any], args: Sequence[Cells], place: str
) -> list[Cells]:
    places = itertools.count()

    def apply(eqn: Any, operands: list[Cells]) -> list[Cells]:
        inside = f"{place} > equation {next(places)} ({eqn.primitive.name})"
        return _apply(scalars, eqn, operands, inside)

    known = [Cells(None, jnp.asarray(value)) for value in consts]
    return interpret(jaxpr, known, args, apply, lambda v: Cells(None, jnp.asarray(v.val)))


def _apply(scalars: Scalars, eqn: Any, operands: list[Cells], place: str) -> list[Cells]:
    name = eqn.primitive.name
    psi = Psi(eqn)
    if all(cells.nodes is None for cells in operands) or name == "stop_gradient":
        return [Cells(None, y) for y in psi(*(jnp.asarray(cells.values) for cells in operands))]
    # No derivative is taken here, so a function itself is what counts, not its rule.
    opened = open_call(eqn, RULES)
    if opened is not None:
        return _run(scalars, *opened, operands, place)
    if name == "scan":
        return _unroll(scalars, eqn, operands, place)
    if name == "cond":
        branches = eqn.params["branches"]
        branch = branches[int(np.clip(operands[0].values, 0, len(branches) - 1))]
        return _run(scalars, branch.jaxpr, branch.consts, operands[1:], place)
    if name == "while":
        return _loop(scalars, eqn, operands, place)
    types = [v.aval.dtype for v in eqn.outvars]
    if not any(jnp.issubdtype(kind, jnp.inexact) for kind in types):
        return [Cells(None, y) for y in psi(*(jnp.asarray(cells.values) for cells in operands))]
    if not any(jnp.issubdtype(kind, jnp.complexfloating) for kind in types):
        if name == "convert_element_type":
            return [Cells(operands[0].nodes, psi(jnp.asarray(operands[0].values))[0])]
        if name == "select_n" and operands[0].nodes is None:
            return [_select(operands)]
        if name in LAYOUT:
            return _move(psi, operands)
        if name in _REDUCTIONS:
            return [_reduce(scalars, eqn, operands[0])]
        if name == "dot_general":
            return [_dot(scalars, eqn, *operands)]
        if name in NUMPY:
            return [scalars.elementwise(NUMPY[name], operands)]
        if is_elementwise(eqn, RULES):
            return [scalars.elementwise(lambda *args: psi(*map(jnp.asarray, args))[0], operands)]
    raise LiftError(
        "the primitive has no elementary form on real scalars; write it with elementwise functions,"
        " sums and products, or use the jets of DeltaLift.sensitivities",
        place,
    )


def _select(operands: list[Cells]) -> Cells:
    which, *cases = operands
    shape = np.shape(cases[0].values)
    index = np.broadcast_to(np.asarray(which.values).astype(int), shape)[None]
    numbers = np.stack([case.numbers() for case in cases])
    values = np.stack([np.asarray(case.values) for case in cases])
    return Cells(
        np.asarray(np.take_along_axis(numbers, index, 0)[0]),
        jnp.asarray(np.take_along_axis(values, index, 0)[0]),
    )


def _move(psi: Psi, operands: list[Cells]) -> list[Cells]:
    values = psi(*(jnp.asarray(cells.values) for cells in operands))
    # The same move on node numbers; indices (integer operands) stay what they are.
    numbers = psi(
        *(
            jnp.asarray(cells.numbers().astype(np.int32))
            if jnp.issubdtype(cells.values.dtype, jnp.inexact)
            else jnp.asarray(cells.values)
            for cells in operands
        )
    )
    # Entries filled in for indices out of bounds are constants.
    return [
        Cells(np.where(np.asarray(n) < 0, -1, np.asarray(n)), y)
        for n, y in zip(numbers, values, strict=True)
    ]


def _last(cells: Cells, kept: list[int], summed: list[int], shape: tuple[int, ...]) -> Cells:
    order = [*kept, *summed]
    numbers = cells.numbers().transpose(order).reshape(shape)
    return Cells(numbers, np.asarray(cells.values).transpose(order).reshape(shape))


def _reduce(scalars: Scalars, eqn: Any, cells: Cells) -> Cells:
    summed = [int(axis) for axis in eqn.params["axes"]]  # vmap leaves numpy integers
    full = np.shape(cells.values)
    kept = [axis for axis in range(len(full)) if axis not in summed]
    shape = tuple(full[axis] for axis in kept)
    size = int(np.prod([full[axis] for axis in summed]))
    if size == 0:
        return Cells(None, Psi(eqn)(jnp.asarray(cells.values))[0])
    return scalars.tree(_REDUCTIONS[eqn.primitive.name], _last(cells, kept, summed, (*shape, size)))


def _dot(scalars: Scalars, eqn: Any, left: Cells, right: Cells) -> Cells:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    sides = []
    for cells, summed, batch in ((left, left_sum, left_batch), (right, right_sum, right_batch)):
        full = np.shape(cells.values)
        free = [axis for axis in range(len(full)) if axis not in (*summed, *batch)]
        sizes = [int(np.prod([full[axis] for axis in axes])) for axes in (batch, free, summed)]
        sides.append(
            (_last(cells, [*batch, *free], list(summed), tuple(sizes)), [full[a] for a in free])
        )
    (a, rows), (b, columns) = sides
    shape = (a.values.shape[0], a.values.shape[1], b.values.shape[1], a.values.shape[2])
    if shape[-1] == 0:
        return Cells(None, Psi(eqn)(jnp.asarray(left.values), jnp.asarray(right.values))[0])

    def spread(cells: Cells, axis: int) -> Cells:
        numbers = np.broadcast_to(np.expand_dims(cells.numbers(), axis), shape)
        values = np.broadcast_to(np.expand_dims(np.asarray(cells.values), axis), shape)
        return Cells(numbers, values)

    products = scalars.elementwise(np.multiply, (spread(a, 2), spread(b, 1)))
    total = scalars.tree(np.add, products)
    batch_shape = [np.shape(left.values)[axis] for axis in left_batch]
    final = (*batch_shape, *rows, *columns)
    return Cells(total.numbers().reshape(final), total.values.reshape(final))


def _unroll(scalars: Scalars, eqn: Any, operands: list[Cells], place: str) -> list[Cells]:
    params = eqn.params
    consts, carries = scan_counts(eqn)
    fixed, carry = operands[:consts], operands[consts : consts + carries]
    xs = operands[consts + carries :]
    steps = range(params["length"])
    body = params["jaxpr"]
    rows = []
    for k in reversed(steps) if params["reverse"] else steps:
        x = [Cells(None if c.nodes is None else c.nodes[k], c.values[k]) for c in xs]
        outputs = _run(scalars, body.jaxpr, body.consts, [*fixed, *carry, *x], place)
        carry = outputs[:carries]
        rows.append(outputs[carries:])
    if params["reverse"]:
        rows.reverse()
    stacked = [
        Cells(
            np.stack([cells.numbers() for cells in column]),
            jnp.stack([jnp.asarray(cells.values) for cells in column]),
        )
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _loop(scalars: Scalars, eqn: Any, operands: list[Cells], place: str) -> list[Cells]:
    params = eqn.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    fixed, carry = operands[first : first + second], operands[first + second :]
    while True:
        given = [jnp.asarray(cells.values) for cells in (*operands[:first], *carry)]
        if not bool(jex.jaxpr_as_fun(test)(*given)[0]):
            return list(carry)
        carry = _run(scalars, body.jaxpr, body.consts, [*fixed, *carry], place)


def concrete(values: Sequence[Any]) -> None:
    """Raise unless all values are known numbers."""
    if any(isinstance(value, Tracer) for value in values):
        raise ValueError(
            "the table realisation builds a factor graph from the forward values, so it runs on"
            " concrete numbers: call it outside jit, vmap and grad"
        )
