"""From an elimination order to a program: rows of sums over cells of one flat buffer.

Every number of the computation lives in one cell of a flat buffer: the potentials, the evidence,
then the entries of all messages, in the order they are computed. One *row* computes one entry,
``cell[row] = log sum_s exp sum_k cell[index[k, s, row]]``: a sum over the states ``s`` of the
variable that goes, of a product over ``k`` input tables. Rows whose inputs are ready together form
a level, and levels are cut into steps of equal width, so the whole elimination is one `scan` over
one integer array: compile time does not depend on the model, clusters never exist as tables in
memory, and models with equal sizes share compiled code.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..graphs import FactorGraph
from ._elimination_order import Cluster, TooWide, best_order
from ._solver import TooLargeError, size_in_words

# Cells 0 and 1 hold log 1 and log 0: what padding reads.
ONE, ZERO = 0, 1
# Tables multiplied in one row; a cluster with more inputs multiplies the smallest ones first.
INPUTS = 3
# A scan step costs about as much as this many gathered cells.
STEP_COST = 4096


class EliminationPlan(eqx.Module):
    """Index arrays of the program, and its size.

    Attributes:
        index: cells to read, ``[inputs, states, steps, rows]``; step ``t`` writes the next ``rows``
            cells.
        roots: cells whose sum is the log-partition ``[components]``.
        owner: which table a row belongs to, counted from the first table of its step.
        first: first table of each step. Tables are numbered as their cells are.
        sources: tables that each table is computed from; the last table stands for given numbers.
        root_tables: tables of ``roots``.
        inputs: number of cells before the first computed one.
        slots: most tables in one step.
        total_entries: entries of all clusters' tables.
        largest_entries: entries of the largest cluster's table.
    """

    index: Int[Array, "inputs states steps rows"]
    roots: Int[Array, " components"]
    owner: Int[Array, "steps rows"]
    first: Int[Array, " steps"]
    sources: Int[Array, "tables inputs"]
    root_tables: Int[Array, " components"]
    inputs: int = eqx.field(static=True)
    slots: int = eqx.field(static=True)
    total_entries: int = eqx.field(static=True)
    largest_entries: int = eqx.field(static=True)


class _Table(NamedTuple):
    """Where a table is: a fixed cell, or the rows of an operation."""

    variables: tuple[int, ...]
    cell: int
    operation: int


class _Operation(NamedTuple):
    """Rows over ``variables``; sums ``states`` cells ``summed_stride`` apart in each input.

    Each input is (table, stride of the summed axis, stride of each of ``variables``).
    ``limit`` is the number of states left for each value of the first axis, when that axis cuts a
    large variable into pieces.
    """

    shape: tuple[int, ...]
    inputs: tuple[tuple[_Table, int, tuple[int, ...]], ...]
    states: int
    pieces_of: int | None
    level: int


@lru_cache(maxsize=32)
def plan_elimination(
    graph: FactorGraph, shared: tuple[bool, ...], itemsize: int, memory_limit: int
) -> EliminationPlan:
    """Choose an order and lay out the program.

    Args:
        shared: per group, whether its factors share one table.
        itemsize: bytes of one number.
        memory_limit: most bytes for the program and its buffers.

    Raises:
        ValueError: the cheapest order found does not fit; the message has the predicted size.
    """
    cards = graph.cardinalities
    scopes = [tuple(s) for scope in graph.group_scopes for s in scope.tolist()]
    try:
        order = best_order(cards, scopes, math.log2(max(memory_limit / (4 * INPUTS), 1)))
    except TooWide as wide:
        raise TooLargeError(
            f"Elimination needs a table over {len(wide.variables)} variables with at least "
            f"2^{wide.log2_entries:.1f} entries "
            f"({size_in_words(4 * INPUTS * 2**wide.log2_entries)}), beyond memory_limit = "
            f"{size_in_words(memory_limit)}. Raise Elimination(memory_limit=...), condition on "
            "more evidence, or use BeliefPropagation()."
        ) from None
    sizes = [cards[c.variable] * math.prod(cards[u] for u in c.neighbours) for c in order]
    states = _chosen_states(cards, order)
    operations, roots, first = _lay_out(graph, shared, order, states)
    rows = [math.prod(operation.shape) for operation in operations]
    needed = sum(rows) * (4 * (INPUTS * states + 1) + 4 * itemsize)
    if needed > memory_limit:
        width = 1 + len(order[int(np.argmax(sizes))].neighbours)
        raise TooLargeError(
            f"Elimination needs tables of {sum(sizes):,} entries in all, the largest over "
            f"{width} variables with {max(sizes):,} ({size_in_words(needed)} for program and "
            f"buffers), beyond memory_limit = {size_in_words(memory_limit)}. Raise "
            "Elimination(memory_limit=...), condition on more evidence, or use "
            "BeliefPropagation()."
        )
    index, cells = _index(operations, rows, states, first)
    root_cells = [cells[t.operation] if t.operation >= 0 else t.cell for t in roots]
    owner, firsts, sources, number = _ownership(operations, rows, cells, first, index.shape[2:])
    root_tables = [number[t.operation] for t in roots]
    # Concrete arrays even while something is being traced: the plan outlives the trace.
    with jax.ensure_compile_time_eval():
        arrays = tuple(
            jnp.asarray(np.asarray(x, np.int32))
            for x in (index, root_cells, owner, firsts, sources, root_tables)
        )
    return EliminationPlan(
        *arrays,
        inputs=first,
        slots=1 + int(owner.max(initial=0)),
        total_entries=sum(sizes),
        largest_entries=max(sizes, default=1),
    )


def _chosen_states(cards: tuple[int, ...], order: list[Cluster]) -> int:
    """States summed in one row: the width that wastes least on variables of other sizes."""

    def cost(width: int) -> int:
        total = 0
        for cluster in order:
            rows = math.prod(cards[u] for u in cluster.neighbours)
            left = cards[cluster.variable]
            while left > 1:
                pieces = -(-left // width)
                total += rows * pieces * width
                left = pieces
        return total

    return min((2, 3, 4, 6, 8), key=cost)


def _lay_out(
    graph: FactorGraph, shared: tuple[bool, ...], order: list[Cluster], states: int
) -> tuple[list[_Operation], list[_Table], int]:
    cards = graph.cardinalities
    position = {cluster.variable: k for k, cluster in enumerate(order)}
    buckets: list[list[_Table]] = [[] for _ in order]
    roots: list[_Table] = []

    def place(table: _Table) -> None:
        if table.variables:
            buckets[min(position[v] for v in table.variables)].append(table)
        else:
            roots.append(table)

    cell = 2
    for group, scope, one in zip(graph.signature.groups, graph.group_scopes, shared, strict=True):
        size = math.prod(group.shape)
        for row, variables in enumerate(scope.tolist()):
            place(_Table(tuple(variables), cell if one else cell + row * size, -1))
        cell += size * (1 if one else group.count)
    for ids, card in zip(graph._host.variables, graph.signature.cardinalities, strict=True):
        for row, v in enumerate(ids.tolist()):
            place(_Table((v,), cell + row * card, -1))
        cell += len(ids) * card

    operations: list[_Operation] = []

    def level(tables: list[_Table]) -> int:
        return 1 + max(
            (operations[t.operation].level for t in tables if t.operation >= 0), default=-1
        )

    def strides(table: _Table) -> dict[int, int]:
        out, stride = {}, 1
        for v in reversed(table.variables):
            out[v] = stride
            stride *= cards[v]
        return out

    def emit(tables: list[_Table], kept: tuple[int, ...], gone: int | None) -> _Table:
        """Multiply tables and sum out ``gone``; the result is over ``kept``."""
        known = [strides(t) for t in tables]
        shape = tuple(cards[v] for v in kept)
        inputs = [
            (t, 0 if gone is None else s.get(gone, 0), tuple(s.get(v, 0) for v in kept))
            for t, s in zip(tables, known, strict=True)
        ]
        left = cards[gone] if gone is not None else 1
        depth = level(tables)
        while left > states:
            # More states than one row sums: cut them into pieces along a new first axis.
            pieces = -(-left // states)
            inputs = [(t, by, (by * states, *rest)) for t, by, rest in inputs]
            operations.append(_Operation((pieces, *shape), tuple(inputs), states, left, depth))
            size = math.prod(shape)
            partial = _Table((), -1, len(operations) - 1)
            inner = []
            stride = size
            for n in shape:
                stride //= n
                inner.append(stride)
            inputs = [(partial, size, tuple(inner))]
            left, depth = pieces, depth + 1
        operations.append(_Operation(shape, tuple(inputs), left, None, depth))
        return _Table(kept, -1, len(operations) - 1)

    for cluster, tables in zip(order, buckets, strict=True):
        while len(tables) > INPUTS:
            tables.sort(key=lambda t: math.prod(cards[v] for v in t.variables))
            some = tables[:INPUTS]
            union = sorted({v for t in some for v in t.variables}, key=lambda v: position[v])
            tables[:INPUTS] = [emit(some, tuple(union), None)]
        kept = tuple(sorted(cluster.neighbours, key=lambda v: position[v]))
        place(emit(tables, kept, cluster.variable))
    return operations, roots, cell


def _index(
    operations: list[_Operation], rows: list[int], states: int, first: int
) -> tuple[np.ndarray, list[int]]:
    """Index array ``[INPUTS, states, steps, width]`` and the first cell of each operation."""
    depth = 1 + max((operation.level for operation in operations), default=-1)
    by_level: list[list[int]] = [[] for _ in range(depth)]
    for k, operation in enumerate(operations):
        by_level[operation.level].append(k)
    sizes = [sum(rows[k] for k in level) for level in by_level]
    width = _chosen_width(sizes, INPUTS * states)
    cells = [0] * len(operations)
    steps = 0
    for level, size in zip(by_level, sizes, strict=True):
        at = first + steps * width
        for k in level:
            cells[k] = at
            at += rows[k]
        steps += -(-size // width)
    steps = max(steps, 1)  # without variables, one step of padding
    index = np.full((INPUTS, states, steps * width), ONE, np.int32)
    index[0] = ZERO
    for k, operation in enumerate(operations):
        to = slice(cells[k] - first, cells[k] - first + rows[k])
        for i in range(INPUTS):
            if i >= len(operation.inputs):
                index[i, : operation.states, to] = ONE
                continue
            table, by, strides = operation.inputs[i]
            start = cells[table.operation] if table.operation >= 0 else table.cell
            where = np.full((1,), start, np.int32)
            for n, stride in zip(operation.shape, strides, strict=True):
                along = stride * np.arange(n, dtype=np.int32)
                where = (where[:, None] + along[None]).reshape(-1)
            for s in range(operation.states):
                np.add(where, s * by, out=index[i, s, to])
        if operation.pieces_of is not None:
            # The last piece is short: states that do not exist are zeros.
            pieces = operation.shape[0]
            for s in range(operation.states):
                beyond = np.arange(pieces) * states + s >= operation.pieces_of
                gone = np.repeat(beyond, rows[k] // pieces)
                index[0, s, to][gone] = ZERO
                for i in range(1, INPUTS):
                    index[i, s, to][gone] = ONE
    return index.reshape(INPUTS, states, steps, width), cells


def _ownership(
    operations: list[_Operation],
    rows: list[int],
    cells: list[int],
    first: int,
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which table each row belongs to, see `EliminationPlan`, and each operation's table."""
    steps, width = shape
    order = sorted(range(len(operations)), key=cells.__getitem__)
    number = np.empty(len(operations) + 1, np.int32)
    number[order] = np.arange(len(operations))
    owner = np.zeros((steps, width), np.int32)
    flat = owner.reshape(-1)
    for k in order:
        flat[cells[k] - first : cells[k] - first + rows[k]] = number[k]
    firsts = owner[:, 0].copy()
    owner -= firsts[:, None]
    np.maximum(owner, 0, out=owner)  # padding, whose rows are zero whatever they belong to
    # Slices of one length, the most tables in a step, must not run over the end.
    given = len(operations) + int(owner.max(initial=0))
    number[-1] = given
    sources = np.full((given + 1, INPUTS), given, np.int32)
    for k, operation in enumerate(operations):
        for i, (one, _, _) in enumerate(operation.inputs):
            sources[number[k], i] = number[one.operation]
    return owner, firsts, sources, number


def _chosen_width(sizes: list[int], reads: int) -> int:
    options = [2**k for k in range(5, 17)]
    return min(options, key=lambda w: sum(-(-n // w) for n in sizes) * (w * reads + STEP_COST))
