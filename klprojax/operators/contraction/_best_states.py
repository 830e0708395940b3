"""The most probable joint states: the same tree, with maxima in the place of sums.

Tables hold the ``best`` largest values of every cell, in a leading axis, largest first. On the way
down each of the answers takes the term that its value came from, so its states belong together,
ties included.

Reference: Dawid (1992), max-propagation; Aji and McEliece (2000) for the semiring.
"""

import math
from collections.abc import Sequence

import numpy as np

from ._marginals import sweep_up
from ._plan import Program, planned, with_all
from ._scaled_tables import BLOCK, PairStep, Scope, blocks, gathered, in_blocks, largest_sum, terms


def best_states(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    *,
    best: int = 1,
    over: Sequence[int] | None = None,
    memory_limit: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``best`` most probable states of all variables, or of some with the others summed out.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table.
        log_tables: in nats, float64; ``-inf`` is a hard zero.
        best: how many.
        over: the variables to maximise over; all if None.
        memory_limit: most bytes that tables may take.

    Returns:
        States ``[best, variables]``, -1 of those summed out, and their log-weights ``[best]``:
        decreasing, and -inf, with states that mean nothing, where no more are possible.

    Raises:
        BeyondLimits: the tables need more memory.
    """
    free = set(range(len(cardinalities))) if over is None else set(over)
    constant = 0.0
    if over is not None:
        program = planned(cardinalities, scopes, kept=sorted(free))
        _, tables = sweep_up(program, log_tables, memory_limit)
        roots = [(program.scopes[k], tables[k]) for k in program.tree.roots]
        scopes = [scope for scope, _ in roots]
        log_tables = [table.logs() for _, table in roots]
        constant = math.fsum(table.scale for _, table in roots)
        constant += math.fsum(math.log(cardinalities[v]) for v in program.free)
    scopes, log_tables = with_all(cardinalities, scopes, log_tables, free)
    program = planned(cardinalities, scopes)
    leaves = program.leaf_logs(log_tables)
    program.check_memory(best * sum(logs.size for logs in leaves), memory_limit / best)
    tables = []
    for logs, leaf in zip(leaves, program.leaves, strict=True):
        terms_first = np.moveaxis(logs, leaf.gone, range(len(leaf.gone)))
        left = terms_first.shape[len(leaf.gone) :]
        tables.append(_largest(terms_first.reshape(-1, *left), best))
    for (one, two), step in zip(program.tree.pairs, program.up, strict=True):
        tables.append(_largest_products(step, tables[one], tables[two], best))

    states = np.full((best, len(cardinalities)), -1, np.int32)
    values = np.full(best, -np.inf)
    roots = program.tree.roots
    for place, (value, ranks) in enumerate(_largest_sums([tables[k] for k in roots], best)):
        values[place] = value + constant
        _trace(program, leaves, tables, dict(zip(roots, ranks, strict=True)), states[place])
    return states, values


def _largest(terms: np.ndarray, best: int) -> np.ndarray:
    """The largest along the first axis, in decreasing order."""
    if best == 1:
        return terms.max(axis=0, keepdims=True)
    more = len(terms) - best
    if more > 0:
        terms = np.partition(terms, more, axis=0)[more:]
    return np.sort(terms, axis=0)[::-1]


def _largest_products(step: PairStep, one: np.ndarray, two: np.ndarray, best: int) -> np.ndarray:
    """The largest terms of every cell of a product of ``[ranks, *states]``."""
    if best == 1:
        return gathered(step, in_blocks(largest_sum, *terms(step, one[0], two[0])))[None]
    arranged = [
        terms(step, one[i], two[j])
        for i in range(len(one))
        for j in range(len(two))
        if (i + 1) * (j + 1) <= best  # as many other terms are no smaller than the rest
    ]
    k, rows, _, batch = arranged[0][0].shape
    count = k * len(arranged)
    out = np.empty((min(best, count), rows, arranged[0][1].shape[2], batch))
    for i, j, at in blocks(out.shape[1:], BLOCK // count):
        sums = [a[:, i, :, at] + b[:, :, j, at] for a, b in arranged]
        out[:, i, j, at] = _largest(np.concatenate(sums), best)
    return np.stack([gathered(step, table) for table in out])


def _largest_sums(roots: list[np.ndarray], best: int) -> list[tuple[float, tuple[int, ...]]]:
    """The largest sums of one value per root, and the rank of each root's value."""
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for values in roots:
        longer = [
            (total + value, (*ranks, rank))
            for total, ranks in found
            for rank, value in enumerate(values.tolist())
        ]
        found = sorted(longer, key=lambda entry: -entry[0])[:best]
    return found


def _trace(
    program: Program,
    leaves: list[np.ndarray],
    tables: list[np.ndarray],
    ranks: dict[int, int],
    state: np.ndarray,
) -> None:
    """Fill in the states that the values of these ranks at the roots came from."""
    for number in reversed(range(len(tables))):
        gone = sorted(program.summed(number))
        rank = ranks.pop(number)
        if number < len(leaves):
            at = _cells(leaves[number], program.leaves[number].scope, state, gone)
            _, state[gone] = _place(at, rank, 0)
            continue
        one, two = program.tree.pairs[number - len(leaves)]
        a, b = (
            np.stack([_cells(table, program.scopes[k], state, gone) for table in tables[k]])
            for k in (one, two)
        )
        (ranks[one], ranks[two]), state[gone] = _place(a[:, None] + b[None], rank, 2)


def _cells(table: np.ndarray, scope: Scope, state: np.ndarray, gone: Sequence[int]) -> np.ndarray:
    """The entries at a state, over all states of the variables that are gone."""
    part = np.asarray(table[tuple(slice(None) if v in gone else state[v] for v in scope)])
    return part.transpose(np.argsort([v for v in scope if v in gone]))


def _place(values: np.ndarray, rank: int, first: int) -> tuple[list[int], list[int]]:
    """Where the value of this rank is; the first axes apart."""
    flat = np.argsort(-values.ravel(), kind="stable")[rank]
    place = [int(n) for n in np.unravel_index(flat, values.shape)]
    return place[:first], place[first:]
