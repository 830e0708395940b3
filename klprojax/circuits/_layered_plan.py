"""From a directed acyclic graph to one scan: rows of at most K inputs on a flat cell buffer.

Cells 0 and 1 hold log 1 and log 0, what padding reads; then come the inputs of the graph, then rows
in the order they are computed. A node with more than K inputs is reduced in stages of K. Rows
of one kind whose inputs are ready together form a level, levels are cut into steps of equal width,
and a step writes its rows side by side. Compile time depends on none of the sizes.
"""

from itertools import pairwise

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Int

ONE, ZERO = 0, 1
# A scan step costs about as much as this many gathered cells.
_STEP_COST = 2048
# Most cells that one step gathers (times the batch): bounds the memory of a step.
_STEP_CELLS = 2**14
_FANS = (2, 3, 4, 8)


class LayeredPlan(eqx.Module):
    """Index arrays of the scan.

    Attributes:
        index: cells to read. edge: the edge read through; E for an inner edge of a staged node,
            E + 1 for padding. is_sum: whether the rows of a step sum (else multiply).
        cell_source: node whose number a cell starts from, N for none.
        node_cell: the cell of each node.
    """

    index: Int[Array | np.ndarray, "steps fan width"]
    edge: Int[Array | np.ndarray, "steps fan width"]
    is_sum: Bool[Array | np.ndarray, " steps"]
    cell_source: Int[Array | np.ndarray, " cells"]
    node_cell: Int[Array | np.ndarray, " nodes"]


def spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenate the ranges ``start .. start + count - 1``."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def layered_plan(
    rank: np.ndarray,
    offsets: np.ndarray,
    inputs: np.ndarray,
    edges: np.ndarray,
    is_sum: np.ndarray,
) -> LayeredPlan:
    """Lay a graph out.

    Args:
        rank: topological rank of each node: every input of a node has a lower one.
        offsets, inputs: the nodes that each node reads, in compressed rows.
        edges: number of the edge behind each entry of ``inputs``.
        is_sum: per node; nodes without inputs are given from outside.
    """
    counts = np.diff(offsets)
    order = np.argsort(rank, kind="stable")
    bounds = np.searchsorted(rank[order], np.arange(int(rank.max(initial=0)) + 2))
    best = None
    for fan in _FANS:
        stages = _stages(counts, fan)
        level = _levels(order, bounds, offsets, inputs, counts, stages)
        rows = _rows_per_level(level, counts, stages, fan, is_sum)
        for width in (2**k for k in range(4, 14)):
            if fan * width > _STEP_CELLS:
                break
            cost = int(np.sum(-(-rows // width))) * (fan * width + _STEP_COST)
            if best is None or cost < best[0]:
                best = (cost, fan, width, stages, level)
    assert best is not None  # every fan has widths
    _, fan, width, stages, level = best
    return _lay_out(offsets, inputs, edges, is_sum, counts, stages, level, fan, width)


def _stages(counts: np.ndarray, fan: int) -> np.ndarray:
    """Stages of fan-in ``fan`` that reduce ``counts`` inputs to one number."""
    stages = (counts > 0).astype(np.int64)
    left = -(-counts // fan)
    while (left > 1).any():
        stages += left > 1
        left = -(-left // fan)
    return stages


def _levels(order, bounds, offsets, inputs, counts, stages) -> np.ndarray:
    level = np.zeros(len(counts), np.int64)
    for first, last in pairwise(bounds):
        nodes = order[first:last]
        nodes = nodes[counts[nodes] > 0]
        if len(nodes):
            sizes = counts[nodes]
            read = level[inputs[spans(offsets[nodes], sizes)]]
            starts = np.cumsum(sizes) - sizes
            level[nodes] = np.maximum.reduceat(read, starts) + stages[nodes]
    return level


def _rows_per_level(level, counts, stages, fan, is_sum) -> np.ndarray:
    """Rows of products and sums at each level, alternating."""
    rows = np.zeros(2 * int(level.max(initial=0)) + 2, np.int64)
    left = counts
    for stage in range(1, int(stages.max(initial=0)) + 1):
        left = -(-left // fan)
        active = stages >= stage
        at = (2 * (level - stages + stage) + is_sum)[active]
        rows += np.bincount(at, weights=left[active], minlength=len(rows)).astype(np.int64)
    return rows


def _lay_out(offsets, inputs, edges, is_sum, counts, stages, level, fan, width) -> LayeredPlan:
    number = len(counts)
    given = np.flatnonzero(counts == 0)
    first_cell = 2 + len(given)
    # One record a row: level, node, and the place of its inputs.
    levels, nodes, stage_of, within, sizes = [], [], [], [], []
    left = counts
    for stage in range(1, int(stages.max(initial=0)) + 1):
        before, left = left, -(-left // fan)
        active = np.flatnonzero(stages >= stage)
        repeats = left[active]
        node = np.repeat(active, repeats)
        k = spans(np.zeros_like(repeats), repeats)
        nodes.append(node)
        within.append(k)
        stage_of.append(np.full(len(node), stage))
        levels.append(2 * ((level - stages)[node] + stage) + is_sum[node])
        sizes.append(np.minimum(before[node] - k * fan, fan))
    empty = np.zeros(0, np.int64)
    node = np.concatenate([empty, *nodes])
    k = np.concatenate([empty, *within])
    stage = np.concatenate([empty, *stage_of])
    row_level = np.concatenate([empty, *levels])
    size = np.concatenate([empty, *sizes])

    by_level = np.argsort(row_level, kind="stable")
    per_level = np.bincount(row_level, minlength=2 * int(level.max(initial=0)) + 2)
    steps_of = -(-per_level // width)
    begins = (np.cumsum(steps_of) - steps_of) * width
    steps = max(int(steps_of.sum()), 1)
    slot = np.empty(len(node), np.int64)
    slot[by_level] = np.repeat(begins, per_level) + spans(np.zeros_like(per_level), per_level)

    # Rows of one stage of a node are consecutive in the records; where each run starts:
    start_of = np.full((int(stages.max(initial=0)) + 1, number), -1, np.int64)
    first = k == 0
    start_of[stage[first], node[first]] = np.flatnonzero(first)

    node_cell = np.empty(number, np.int32)
    node_cell[given] = 2 + np.arange(len(given))
    last = stage == stages[node]
    node_cell[node[last]] = first_cell + slot[last]

    cells = np.full((steps * width, fan), ZERO, np.int32)
    edge = np.full((steps * width, fan), len(inputs) + 1, np.int32)
    step_sum = np.ones(steps, bool)
    step_sum[slot // width] = is_sum[node]
    cells[slot[~is_sum[node]]] = ONE
    for j in range(fan):
        has = size > j
        base = has & (stage == 1)
        at = offsets[node[base]] + k[base] * fan + j
        cells[slot[base], j] = node_cell[inputs[at]]
        edge[slot[base], j] = edges[at]
        inner = has & (stage > 1)
        below = start_of[stage[inner] - 1, node[inner]] + k[inner] * fan + j
        cells[slot[inner], j] = first_cell + slot[below]
        edge[slot[inner], j] = len(inputs)
    source = np.full(first_cell + steps * width, number, np.int32)
    source[2 : 2 + len(given)] = given
    source[node_cell] = np.arange(number)
    shape = (steps, width, fan)
    return LayeredPlan(
        np.ascontiguousarray(cells.reshape(shape).transpose(0, 2, 1)),
        np.ascontiguousarray(edge.reshape(shape).transpose(0, 2, 1)),
        step_sum,
        source,
        node_cell,
    )
