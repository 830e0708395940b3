"""Exact draws: a sweep up, then every variable given those above it, all draws at once."""

import math
from collections.abc import Sequence

import numpy as np

from ._marginals import sweep_up
from ._plan import planned, with_all
from ._scaled_tables import BLOCK, ScaledTable, Scope


def draw_states(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    count: int,
    random: np.random.Generator,
    *,
    memory_limit: float = math.inf,
) -> np.ndarray | None:
    """Draw joint states of ``p(x) ∝ prod_k exp(log_tables[k])``.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table.
        log_tables: in nats, float64; ``-inf`` is a hard zero.
        count: how many.
        random: where the draws come from.
        memory_limit: most bytes that tables may take.

    Returns:
        States ``[count, variables]``; None if no joint state is possible.

    Raises:
        BeyondLimits: the tables need more memory.
    """
    every = range(len(cardinalities))
    scopes, log_tables = with_all(cardinalities, scopes, log_tables, every)
    program = planned(cardinalities, scopes)
    leaves, tables = sweep_up(program, log_tables, memory_limit)
    if any(tables[k].logs() == -np.inf for k in program.tree.roots):
        return None
    states = np.zeros((count, len(cardinalities)), np.int32)
    for number in reversed(range(len(tables))):
        gone = sorted(program.summed(number))
        if not gone:
            continue
        if number < len(leaves):
            parts = [(leaves[number], program.leaves[number].scope)]
        else:
            pair = program.tree.pairs[number - len(leaves)]
            parts = [(tables[k], program.scopes[k]) for k in pair]
        shape = [cardinalities[v] for v in gone]
        width = max(BLOCK // math.prod(shape), 1)
        for start in range(0, count, width):
            rows = states[start : start + width]
            logs = sum(_cells(table, scope, rows, gone) for table, scope in parts)
            picks = _pick(np.asarray(logs), random.random(len(rows)))
            rows[:, gone] = np.stack(np.unravel_index(picks, shape), axis=1)
    return states


def _cells(table: ScaledTable, scope: Scope, states: np.ndarray, gone: list[int]) -> np.ndarray:
    """Logarithms ``[draws, states of the variables that are gone]`` at the others' states."""
    known = [v for v in scope if v not in gone]
    axes = [scope.index(v) for v in (*known, *gone)]
    part = table.array.transpose(axes)[tuple(states[:, v] for v in known)]
    rows = np.broadcast_to(part, (len(states), *part.shape[1 if known else 0 :]))
    return table._replace(array=rows.reshape(len(states), -1)).logs()


def _pick(logs: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One entry of each row with probability proportional to its exponential."""
    top = logs.max(axis=1, keepdims=True)
    upto = np.cumsum(np.exp(logs - np.where(top == -np.inf, 0.0, top)), axis=1)
    # Below the total, or the last entry could be one of probability 0.
    bar = np.minimum(uniform * upto[:, -1], np.nextafter(upto[:, -1], 0.0))
    return np.minimum((upto <= bar[:, None]).sum(axis=1), logs.shape[1] - 1)
