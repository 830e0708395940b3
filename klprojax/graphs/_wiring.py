"""The arrays and sizes that make up a graph's structure, and how scopes are read into them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._message_rule import AbstractMessageRule


class GroupSignature(NamedTuple):
    """Shape of one factor group.

    shape: cardinality of each axis. count: number of factors. classes: cardinality class of each
    axis. rule: how messages are computed, None for a plain table.
    """

    shape: tuple[int, ...]
    count: int
    classes: tuple[int, ...]
    rule: AbstractMessageRule | None = None

    @property
    def table_shape(self) -> tuple[int, ...]:
        """Shape of one factor's log-potentials: its table, or its rule's parameters."""
        return self.shape if self.rule is None else self.rule.parameter_shape(self.shape)


class GraphSignature(NamedTuple):
    """All that a compiled program depends on: sizes only, no wiring.

    cardinalities: the distinct ones, ascending. counts: variables of each. degrees: most edges of
    a variable of each, 0 where the wiring's ``incoming`` is left empty. groups: shape, number and
    rule of the factors of each group.
    """

    cardinalities: tuple[int, ...]
    counts: tuple[int, ...]
    degrees: tuple[int, ...]
    groups: tuple[GroupSignature, ...]


class Wiring(NamedTuple):
    """Integer arrays that say who meets whom.

    variables: per cardinality class, the graph's variable numbers ``[variables]``.
    edges: per cardinality class, the row within its class of the variable that each edge ends in
        ``[edges]``. The edges of a class are numbered group by group, axis by axis, factor by
        factor (see `FactorGraph.edge_blocks`).
    items: per group, which entry of the constructor's ``factors`` each row came from ``[factors]``.
    axes: per group, for each row, the position in the given scope of each stored axis
        ``[factors, arity]``.
    incoming: per class, which of the class's edges end in each variable, ``[degree, variables]``,
        padded with the number of edges. Left empty, ``[0, variables]``, where padding would cost
        more than a scatter.
    slots, reverse: for graphs of binary variables with plain factors on one or two of them: the
        edges of pairwise factors that end in each variable, ``[degree, variables]``, and for each
        the flat position of the same factor's other edge; padded. Otherwise empty.
    """

    variables: tuple[Any, ...]
    edges: tuple[Any, ...]
    items: tuple[Any, ...]
    axes: tuple[Any, ...]
    incoming: tuple[Any, ...]
    slots: Any
    reverse: Any


def scope_rows(item: int, factor: Any, cards: np.ndarray) -> np.ndarray:
    rows = np.asarray(factor, dtype=np.int64)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim == 2 and not len(rows):
        raise ValueError(f"factors[{item}] is a family without factors; leave it out.")
    if rows.ndim != 2:
        raise ValueError(
            f"factors[{item}] has {rows.ndim} axes; expected one scope or an array [factors, arity]"
        )
    if rows.size and (rows.min() < 0 or rows.max() >= len(cards)):
        bad = int(rows.min() if rows.min() < 0 else rows.max())
        raise ValueError(
            f"factors[{item}] names variable {bad}; the graph has variables 0..{len(cards) - 1}."
        )
    ordered = np.sort(rows, axis=1)
    repeats = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if repeats.size:
        raise ValueError(
            f"factors[{item}] repeats a variable in the scope {rows[repeats[0]].tolist()}; "
            "write the factor on distinct variables."
        )
    if len(rows) and (cards[rows] != cards[rows[0]]).any():
        raise ValueError(
            f"factors[{item}] is a family whose rows differ in shape; split it by shape."
        )
    return rows


def incoming_edges(rows: np.ndarray, count: int) -> np.ndarray:
    degree = np.bincount(rows, minlength=count)
    width = int(degree.max(initial=0))
    # A padded gather moves width * count numbers, a scatter about four times as long per edge.
    if width * count > 4 * len(rows):
        return np.zeros((0, count), np.int32)
    order = np.argsort(rows, kind="stable")
    rank = np.arange(len(rows)) - (np.cumsum(degree) - degree)[rows[order]]
    table = np.full((width, count), len(rows), np.int32)
    table[rank, rows[order]] = order
    return table


def pairwise_slots(
    groups: list[GroupSignature], edges: tuple[np.ndarray, ...], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    nothing = np.zeros((0, 0), np.int32)
    plain = all(group.rule is None and len(group.shape) <= 2 for group in groups)
    pairwise = any(len(group.shape) == 2 for group in groups)
    if not (
        plain and pairwise and len(edges) == 1 and max(g.shape or (1,) for g in groups)[0] == 2
    ):
        return nothing, nothing
    count, total = counts[0], len(edges[0])
    partner = np.full(total + 1, total, np.int64)
    at = 0
    for group in groups:
        if len(group.shape) == 2:
            numbers = np.arange(at, at + group.count)
            partner[numbers] = numbers + group.count
            partner[numbers + group.count] = numbers
        at += group.count * len(group.shape)
    ours = np.flatnonzero(partner[:-1] < total)
    table = incoming_edges(edges[0][ours], count)
    if not len(table):
        return nothing, nothing
    slots = np.append(ours, total)[table]
    place = np.zeros(total + 1, np.int64)
    place[slots.ravel()] = np.arange(slots.size)
    # Padding reads itself: any finite number will do, for its factor says nothing.
    reverse = np.where(
        slots < total, place[partner[slots]], np.arange(slots.size).reshape(slots.shape)
    )
    return slots.astype(np.int32), reverse.astype(np.int32)
