"""Belief propagation on small graphs of known numbers, in numpy: no program is compiled.

The iteration of `LogFlooding`, step by step, in the tables' own precision. What compiling costs,
seconds, is more than all steps cost here.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..graphs import FactorGraph
from ._messages import TAIL, Semiring

Tables = list[np.ndarray]

# Entries of all tables, each counted once per message that it is summed for, and steps.
_SMALL, _FEW_STEPS = 2**16, 1000


class Flooded(NamedTuple):
    """Where the iteration ended; tables as arrays by cardinality or by group, nats."""

    messages: Tables
    residual: float
    steps: int
    log_beliefs: Tables
    log_partition: float
    factor_log_beliefs: Tables | None


def is_small(graph: FactorGraph, max_steps: int) -> bool:
    """Whether the iteration takes less time here than compiling it would; there are no rules."""
    if any(group.rule is not None for group in graph.signature.groups):
        return False
    entries = sum(
        group.count * math.prod(group.shape) * len(group.shape) for group in graph.signature.groups
    )
    return entries <= _SMALL and max_steps <= _FEW_STEPS


class _Wires(NamedTuple):
    """Variables of each edge by cardinality, how many edges meet each, and blocks of edges."""

    rows: Tables
    degrees: Tables
    blocks: tuple[tuple[tuple[int, int], ...], ...]


@lru_cache(maxsize=32)
def _wires(graph: FactorGraph) -> _Wires:
    rows = [np.asarray(edges) for edges in graph.wiring.edges]
    counts = graph.signature.counts
    degrees = [np.bincount(r, minlength=n) for r, n in zip(rows, counts, strict=True)]
    return _Wires(rows, degrees, graph.edge_blocks)


class EagerFlooding:
    """One problem: tables ``[factors or 1, *states]``, evidence by cardinality or None."""

    def __init__(
        self,
        graph: FactorGraph,
        tables: Sequence[Any],
        log_evidence: Sequence[Any] | None,
        semiring: Semiring,
        damping: float,
    ):
        self.graph, self.semiring, self.damping = graph, semiring, damping
        self.tables = [np.asarray(table) for table in tables]
        self.evidence = None if log_evidence is None else [np.asarray(e) for e in log_evidence]
        self.wires = _wires(graph)
        every = [table.reshape(len(table), -1) for table in self.tables]
        every += [table for table in self.evidence or () if table.shape[1] > 1]
        self.span = max(map(_finite_span, every), default=0.0)

    @np.errstate(all="ignore")
    def run(
        self, messages: Sequence[Any], tolerance: float, max_steps: int, factor_beliefs: bool
    ) -> Flooded:
        """Iterate until no message changes by the tolerance; see `BeliefPropagation`."""
        messages = [np.asarray(message) for message in messages]
        residual, steps = math.inf, 0
        while steps < max_steps:
            steps += 1
            old, messages = messages, self.step(messages)
            if tolerance == 0.0:
                continue
            residual = math.inf if _outgrown(messages) else self.change(messages, old)
            if residual < tolerance or not math.isfinite(residual):
                break
        if tolerance == 0.0:
            residual = self.change(self.step(messages), messages)
        at = [_value(*total) for total in self.totals(messages)]
        incoming = self.incoming(messages)
        joints = [_joint(t, axes) for t, axes in zip(self.tables, incoming, strict=True)]
        factors = None
        if factor_beliefs:
            factors = [
                np.broadcast_to(
                    _normalised(joint, tuple(range(1, joint.ndim))), (group.count, *group.shape)
                )
                for joint, group in zip(joints, self.graph.signature.groups, strict=True)
            ]
        beliefs = [_normalised(table, 1) for table in at]
        return Flooded(messages, residual, steps, beliefs, self.bethe(at, joints), factors)

    def totals(self, messages: Tables) -> list[tuple[np.ndarray, np.ndarray]]:
        """Sums of all messages and the evidence: finite parts, float64, and numbers of `-inf`."""
        out = []
        for c, (message, rows) in enumerate(zip(messages, self.wires.rows, strict=True)):
            shape = self.graph.signature.counts[c], message.shape[1]
            known = np.zeros(shape) if self.evidence is None else self.evidence[c]
            sums = tuple(part.astype(np.float64) for part in _split(known))
            for total, term in zip(sums, _split(message), strict=True):
                np.add.at(total, rows, term)
            out.append(sums)
        return out

    def incoming(self, messages: Tables) -> list[list[np.ndarray]]:
        """Messages to the factors, by group and axis: all but the edge's own."""
        cavities = []
        for message, rows, (finite, zeros) in zip(
            messages, self.wires.rows, self.totals(messages), strict=True
        ):
            own, gone = _split(message)
            left = _value(finite[rows] - own, zeros[rows] - gone)
            cavities.append(left.astype(message.dtype))
        return [
            [cavities[c][start : start + group.count] for c, start in blocks]
            for group, blocks in zip(self.graph.signature.groups, self.wires.blocks, strict=True)
        ]

    def step(self, messages: Tables) -> Tables:
        """All messages to the variables, from those before."""
        new = [np.empty_like(message) for message in messages]
        for table, axes, blocks, group in zip(
            self.tables,
            self.incoming(messages),
            self.wires.blocks,
            self.graph.signature.groups,
            strict=True,
        ):
            for a, (c, start) in enumerate(blocks):
                others = tuple(b + 1 for b in range(len(blocks)) if b != a)
                message = self.reduce(_joint(table, axes, skip=a), others)
                new[c][start : start + group.count] = _normalised(message, 1)
        if self.damping == 0.0:
            return new
        return [
            _normalised((1.0 - self.damping) * after + self.damping * before, 1)
            for after, before in zip(new, messages, strict=True)
        ]

    def reduce(self, table: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        """Sum or maximise over axes."""
        if not axes:
            return table
        return (
            table.max(axis=axes) if self.semiring == "max" else _log_sum(table, axes).squeeze(axes)
        )

    def change(self, new: Tables, old: Tables) -> float:
        """Largest change of a message; see `message_change`."""
        low = max(float(self.span), -TAIL)
        largest = 0.0
        for a, b in zip(new, old, strict=True):
            if a.size:
                tails = [(np.clip(_below_best(m), -low, TAIL) - TAIL) / low for m in (a, b)]
                both = np.maximum(np.abs(np.exp(a) - np.exp(b)), np.abs(tails[0] - tails[1]))
                largest = max(largest, float(both.max())) if not np.isnan(both).any() else math.nan
        return largest

    def bethe(self, at_variables: Tables, joints: Tables) -> float:
        """See `bethe_log_partition`."""
        masses = [self.reduce(table, (1,)) for table in at_variables]
        weights = [1.0 - degree for degree in self.wires.degrees]
        for joint, group in zip(joints, self.graph.signature.groups, strict=True):
            mass = self.reduce(joint, tuple(range(1, joint.ndim)))
            masses.append(np.broadcast_to(mass, (group.count,)))
            weights.append(np.ones(group.count))
        if not masses:
            return 0.0
        mass, weight = np.concatenate(masses), np.concatenate(weights)
        if np.isneginf(mass).any():
            return -math.inf
        return float((weight * mass).sum())


def _joint(
    table: np.ndarray, incoming: Sequence[np.ndarray], skip: int | None = None
) -> np.ndarray:
    """Factor tables times their messages, all or all but one axis."""
    for b, message in enumerate(incoming):
        if b != skip:
            shape = [len(message)] + [1] * (table.ndim - 1)
            shape[b + 1] = message.shape[1]
            table = table + message.reshape(shape)
    return table


def _log_sum(table: np.ndarray, axes: tuple[int, ...] | int) -> np.ndarray:
    top = table.max(axis=axes, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0.0).astype(table.dtype)
    return np.log(np.exp(table - shift).sum(axis=axes, keepdims=True)) + shift


def _normalised(table: np.ndarray, axes: tuple[int, ...] | int) -> np.ndarray:
    if axes == ():  # on no variables there is one distribution only
        return np.zeros_like(table)
    total = _log_sum(table, axes)
    return table - np.where(np.isneginf(total), 0.0, total).astype(table.dtype)


def _split(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite part, and 1 where an entry is `-inf`."""
    zero = np.isneginf(table)
    return np.where(zero, 0.0, table).astype(table.dtype), zero.astype(table.dtype)


def _value(finite: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return np.where(zeros > 0, -np.inf, finite)


def _finite_span(rows: np.ndarray) -> float:
    """Largest difference between finite entries of a row."""
    finite = np.isfinite(rows)
    high = np.where(finite, rows, -np.inf).max(axis=1, initial=-np.inf)
    low = np.where(finite, rows, np.inf).min(axis=1, initial=np.inf)
    return float(np.where(high > low, high - low, 0.0).max(initial=0.0))


def _below_best(message: np.ndarray) -> np.ndarray:
    best = message.max(axis=1, keepdims=True)
    return message - np.where(np.isneginf(best), 0.0, best)


def _outgrown(messages: Tables) -> bool:
    return any(
        ((m < -(float(np.finfo(m.dtype).max) ** 0.5)) & ~np.isneginf(m)).any() for m in messages
    )
