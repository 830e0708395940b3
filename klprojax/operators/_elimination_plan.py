"""From a contraction tree to a program: sums over cells of one flat buffer.

The buffer holds the potentials, the evidence, then the entries of all products, in the order they
are computed (see `_elimination_steps`). Rows whose inputs are ready together form a level, and
levels are cut into steps of equal width, so that all small products are one `scan` over one integer
array: compile time does not depend on the model. The few large products are dense steps of their
own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..graphs import FactorGraph
from ._elimination_layout import (
    INPUTS,
    STEP_COST,
    DenseOperation,
    Operation,
    Region,
    RowOperation,
    lay_out,
)
from ._elimination_order import TooWide
from ._elimination_steps import DenseStep, RowPhase
from ._solver import TooLargeError, size_in_words

# Cells 0 and 1 hold log 1 and log 0: what padding reads.
ONE, ZERO = 0, 1


class EliminationPlan(eqx.Module):
    """The steps of the program, and its size.

    Attributes:
        phases: steps in the order they are taken.
        roots: cells whose sum is the log-partition.
        sources: tables that each table is computed from; the last table stands for given numbers.
        root_tables: tables of ``roots``.
        inputs: number of cells before the first computed one. cells: number of all.
        products: multiplications in all. largest: entries of the largest result.
    """

    phases: tuple[RowPhase | DenseStep, ...]
    roots: Int[Array, " components"]
    sources: Int[Array, "tables inputs"]
    root_tables: Int[Array, " components"]
    inputs: int = eqx.field(static=True)
    cells: int = eqx.field(static=True)
    products: int = eqx.field(static=True)
    largest: int = eqx.field(static=True)


@lru_cache(maxsize=32)
def plan_elimination(
    graph: FactorGraph, shared: tuple[bool, ...], itemsize: int, memory_limit: int
) -> EliminationPlan:
    """Search for a tree and lay out the program.

    Args:
        graph: the structure.
        shared: per group, whether its factors share one table.
        itemsize: bytes of one number.
        memory_limit: most bytes for the program and its buffers.

    Raises:
        TooLargeError: the cheapest tree found does not fit; the message has the predicted size.
    """
    advice = (
        f"beyond memory_limit = {size_in_words(memory_limit)}. Raise "
        "Elimination(memory_limit=...), condition on more evidence, or use BeliefPropagation()."
    )
    try:
        program = lay_out(graph, shared)
    except TooWide as wide:
        raise TooLargeError(
            f"Elimination needs a table over {len(wide.variables)} variables with at least "
            f"2^{wide.log2_entries:.1f} entries "
            f"({size_in_words(itemsize * 2**wide.log2_entries)}), {advice}"
        ) from None
    operations, states = program.operations, program.states
    sizes = [math.prod(operation.shape) for operation in operations]
    rows = sum(n for n, one in zip(sizes, operations, strict=True) if isinstance(one, RowOperation))
    needed = rows * 4 * (INPUTS * states + 1) + (4 * sum(sizes) + program.largest_dense) * itemsize
    if needed > memory_limit:
        raise TooLargeError(
            f"Elimination takes {program.products:,} products, with tables of up to "
            f"{program.largest:,} entries over {program.width} variables "
            f"({size_in_words(needed)} for program and buffers), {advice}"
        )
    cells, widths, last = _cells(operations, states, program.given)
    number, sources = _numbers(operations, cells, max(widths.values(), default=0))

    def place(table: Region) -> int:
        return table.cell if table.operation < 0 else cells[table.operation]

    # Concrete arrays even while something is being traced: the plan outlives the trace.
    with jax.ensure_compile_time_eval():
        steps: list[RowPhase | DenseStep] = []
        for phase in sorted({operation.phase for operation in operations}):
            rows = []
            for k, operation in enumerate(operations):
                if operation.phase != phase:
                    continue
                if isinstance(operation, DenseOperation):
                    steps.append(_dense_step(operation, place, cells[k], number[k]))
                else:
                    rows.append((operation, cells[k], number[k]))
            if rows:
                steps.append(_row_phase(rows, states, widths[phase], place))
        return EliminationPlan(
            tuple(steps),
            roots=jnp.asarray(np.asarray([place(table) for table in program.roots], np.int32)),
            sources=jnp.asarray(sources),
            root_tables=jnp.asarray(
                np.asarray([number[table.operation] for table in program.roots], np.int32)
            ),
            inputs=program.given,
            cells=last,
            products=program.products,
            largest=program.largest,
        )


def _cells(
    operations: Sequence[Operation], states: int, first: int
) -> tuple[list[int], dict[int, int], int]:
    """First cell of each operation, rows per step of each phase of rows, number of cells."""
    cells, widths, at = [0] * len(operations), {}, first
    for phase in sorted({operation.phase for operation in operations}):
        levels: dict[int, list[int]] = {}
        for k, operation in enumerate(operations):
            if operation.phase == phase:
                levels.setdefault(k if phase % 2 else operation.level, []).append(k)
        sizes = [sum(math.prod(operations[k].shape) for k in level) for level in levels.values()]
        width = 1 if phase % 2 else _chosen_width(sizes, INPUTS * states)
        if phase % 2 == 0:
            widths[phase] = width
        for _, level in sorted(levels.items()):
            begin = at
            for k in level:
                cells[k] = at
                at += math.prod(operations[k].shape)
            at = begin + -(-(at - begin) // width) * width
    return cells, widths, at


def _chosen_width(sizes: Sequence[int], reads: int) -> int:
    options = [2**k for k in range(5, 17)]
    return min(options, key=lambda w: sum(-(-n // w) for n in sizes) * (w * reads + STEP_COST))


def _numbers(
    operations: Sequence[Operation], cells: Sequence[int], slots: int
) -> tuple[list[int], np.ndarray]:
    """Each operation's table, numbered as the cells are, and which tables it is computed from."""
    number = np.empty(len(operations) + 1, np.int32)
    number[np.argsort(cells, kind="stable")] = np.arange(len(operations))
    # Slices of one length, the most tables in a step, must not run over the end.
    given = len(operations) + slots
    number[-1] = given
    sources = np.full((given + 1, INPUTS), given, np.int32)
    for k, operation in enumerate(operations):
        for i, table in enumerate(operation.tables):
            sources[number[k], i] = number[table.operation]
    return number.tolist(), sources


def _row_phase(
    operations: Sequence[tuple[RowOperation, int, int]],
    states: int,
    width: int,
    place: Callable[[Region], int],
) -> RowPhase:
    """Index arrays of operations, each with its first cell and its number."""
    start = min(cell for _, cell, _ in operations)
    end = max(cell + math.prod(operation.shape) for operation, cell, _ in operations)
    steps = -(-(end - start) // width)
    index = np.full((INPUTS, states, steps * width), ONE, np.int32)
    index[0] = ZERO
    owner = np.zeros(steps * width, np.int32)
    for operation, cell, number in operations:
        rows = math.prod(operation.shape)
        to = slice(cell - start, cell - start + rows)
        owner[to] = number
        pieces, summed = operation.inputs[0].offsets.shape
        index[:, :summed, to] = ONE
        for i, (table, strides, offsets) in enumerate(operation.inputs):
            where = np.asarray([place(table)])
            for n, stride in zip(operation.shape, strides, strict=True):
                where = (where[:, None] + stride * np.arange(n)).reshape(-1)
            where = where.reshape(pieces, -1)
            for s in range(summed):
                index[i, s, to] = (where + offsets[:, s, None]).reshape(-1)
        # The last piece may be short: states that do not exist are zeros.
        for s in range(summed - (pieces * summed - operation.states), summed):
            last = slice(to.stop - rows // pieces, to.stop)
            index[0, s, last] = ZERO
            index[1:, s, last] = ONE
    owner = owner.reshape(steps, width)
    firsts = owner[:, 0].copy()
    owner = np.maximum(owner - firsts[:, None], 0)  # padding is zero whatever it belongs to
    return RowPhase(
        jnp.asarray(index.reshape(INPUTS, states, steps, width)),
        jnp.asarray(owner),
        jnp.asarray(firsts),
        start=start,
        slots=1 + int(owner.max(initial=0)),
    )


def _dense_step(
    operation: DenseOperation, place: Callable[[Region], int], start: int, number: int
) -> DenseStep:
    one, two = (
        replace(view, start=place(table))
        for view, table in zip(operation.views, operation.tables, strict=True)
    )
    return DenseStep((one, two), start=start, table=number)
