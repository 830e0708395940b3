"""Contraction in slices: where tables do not fit, variables are fixed, one joint state at a time.

A variable that is fixed leaves every table. All slices have one structure, so one plan; what they
give is summed with the weights of the slices.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from ._marginals import Contracted, contract
from ._plan import BeyondLimits, Program, planned
from ._scaled_tables import Scope

# Seconds of Python for each table of a slice.
_PER_TABLE = 5e-5


def contract_in_slices(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    log_tables: Sequence[np.ndarray],
    *,
    of_tables: bool = False,
    memory_limit: float = math.inf,
    time_limit: float = math.inf,
) -> Contracted:
    """`contract`, in as few slices as fit the memory.

    Args:
        cardinalities: states of each variable.
        scopes: variables of each table.
        log_tables: in nats, float64; ``-inf`` is a hard zero.
        of_tables: also the marginals over each table's scope.
        memory_limit: most bytes that tables may take.
        time_limit: most seconds that all slices may take, as predicted.

    Raises:
        BeyondLimits: the predicted time is longer, with the slices that would fit.
    """
    fixed: list[int] = []
    while True:
        inside = [tuple(v for v in scope if v not in fixed) for scope in scopes]
        left = [1 if v in fixed else card for v, card in enumerate(cardinalities)]
        program = planned(left, inside, of_tables)
        count = math.prod(cardinalities[v] for v in fixed)
        given = sum(math.prod(cardinalities[v] for v in scope) for scope in inside)
        needed = program.needed_bytes(2.0 * given)
        seconds = count * (program.seconds + _PER_TABLE * len(program.scopes))
        if seconds > time_limit:
            raise BeyondLimits(needed, program.tree.largest, seconds)
        if needed <= memory_limit:
            break
        fixed.append(_next_variable(program, cardinalities, needed, seconds))
    if not fixed:
        return contract(cardinalities, scopes, log_tables, of_tables=of_tables, program=program)
    total = _Together(cardinalities, log_tables if of_tables else None)
    for states in product(*(range(cardinalities[v]) for v in fixed)):
        at = dict(zip(fixed, states, strict=True))
        index = [tuple(at.get(v, slice(None)) for v in scope) for scope in scopes]
        tables = [np.asarray(t[where]) for t, where in zip(log_tables, index, strict=True)]
        part = contract(left, inside, tables, of_tables=of_tables, program=program)
        places = [(at.get(v, slice(None)),) for v in range(len(cardinalities))]
        total.add(part, places, index)
    return total.normalised()


class _Together:
    """Log-weights summed over slices, entry by entry."""

    def __init__(self, cardinalities: Sequence[int], log_tables: Sequence[np.ndarray] | None):
        self.log_partition = -math.inf
        self.variables = [np.full(card, -math.inf) for card in cardinalities]
        self.tables = None
        if log_tables is not None:
            self.tables = [np.full(table.shape, -math.inf) for table in log_tables]

    def add(self, part: Contracted, places: Sequence[tuple], index: Sequence[tuple]) -> None:
        """Add one slice, whose entries stand at these places."""
        weight = part.log_partition
        if weight == -math.inf:
            return
        self.log_partition = float(np.logaddexp(self.log_partition, weight))
        totals, where, parts = [*self.variables], [*places], [*part.variables]
        if self.tables is not None and part.tables is not None:
            totals, where, parts = totals + self.tables, where + [*index], parts + part.tables
        for total, place, log_probs in zip(totals, where, parts, strict=True):
            # A fixed variable has one state left.
            own = (log_probs + weight).reshape(total[place].shape)
            total[place] = np.logaddexp(total[place], own)

    def normalised(self) -> Contracted:
        """Log-probabilities."""
        log_z = self.log_partition
        shift = log_z if log_z > -math.inf else 0.0
        tables = None if self.tables is None else [table - shift for table in self.tables]
        return Contracted(log_z, [table - shift for table in self.variables], tables)


def _next_variable(
    program: Program, cardinalities: Sequence[int], needed: float, seconds: float
) -> int:
    """The variable of the largest tables whose fixing makes all slices cheapest."""
    sizes = [(math.prod(cardinalities[v] for v in scope), scope) for scope in program.tree.scopes]
    top = max(size for size, _ in sizes)
    candidates = {v for size, scope in sizes if size == top for v in scope}
    candidates = {v for v in candidates if cardinalities[v] > 1}
    if not candidates:
        raise BeyondLimits(needed, program.tree.largest, seconds)
    products = {v: 0.0 for v in candidates}
    for union in program.tree.unions:
        size = math.prod(cardinalities[v] for v in union)
        for v in candidates:
            products[v] += size if v in union else size * cardinalities[v]
    return min(sorted(candidates), key=lambda v: products[v])
