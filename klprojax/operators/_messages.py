"""The two updates of normalised belief propagation (section 2), on log-tables, `-inf` safe.

All messages to variables of one cardinality are one array ``[edges, states]``, edges numbered
group by group, axis by axis, factor by factor (see `FactorGraph.edge_blocks`). Messages from
factors to variables are the only state; messages from variables to factors are totals minus the
message that came along the edge.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._types import FactorTables, VariableTables
from ..geometry import log_normalize, safe_logsumexp
from ..graphs import FactorGraph, GroupSignature, dense_table

Semiring: TypeAlias = Literal["sum", "max"]
# One array [edges, states] per cardinality.
Messages: TypeAlias = tuple[Float[Array, "_ _"], ...]
# The same, seen from the factors: per group and axis [factors, states].
GroupMessages: TypeAlias = tuple[tuple[Float[Array, "_ _"], ...], ...]


class Total(NamedTuple):
    """Sum of log-tables, kept as finite part and number of `-inf` entries.

    One term can be taken out again exactly, which ``-inf - -inf`` would not allow.
    """

    finite: Float[Array, "variables states"]
    zeros: Float[Array, "variables states"]

    def value(self) -> Float[Array, "variables states"]:
        """The sum itself."""
        return jnp.where(self.zeros > 0, -jnp.inf, self.finite)

    def without(self, term: "Total") -> Float[Array, "variables states"]:
        """The sum with one of its terms left out."""
        return jnp.where(self.zeros - term.zeros > 0, -jnp.inf, self.finite - term.finite)

    def rows(self, index: Array) -> "Total":
        """The totals of some variables."""
        return Total(self.finite[index], self.zeros[index])


def split(log_table: Float[Array, "..."]) -> Total:
    """One term of a `Total`."""
    zero = jnp.isneginf(log_table)
    return Total(jnp.where(zero, 0.0, log_table), zero.astype(log_table.dtype))


def batched(graph: FactorGraph, log_potentials: FactorTables) -> FactorTables:
    """Give every table a factor axis: ``[factors, *states]``, or ``[1, *states]`` when shared."""
    return tuple(
        table[None] if table.ndim == len(group.table_shape) else table
        for table, group in zip(log_potentials, graph.signature.groups, strict=True)
    )


def uniform_messages(graph: FactorGraph, dtype) -> Messages:
    """Messages that say nothing: uniform, in the gauge logsumexp = 0."""
    return tuple(
        jnp.full((rows.shape[0], card), -math.log(card), dtype)
        for rows, card in zip(graph.wiring.edges, graph.signature.cardinalities, strict=True)
    )


def by_group(graph: FactorGraph, messages: Messages) -> GroupMessages:
    """View messages from the factors: per group and axis ``[factors, states]``."""
    return tuple(
        tuple(messages[c][start : start + group.count] for c, start in blocks)
        for group, blocks in zip(graph.signature.groups, graph.edge_blocks, strict=True)
    )


def by_class(graph: FactorGraph, messages: GroupMessages, dtype) -> Messages:
    """Undo `by_group`."""
    parts: list[list[Array]] = [[] for _ in graph.signature.cardinalities]
    for axes, blocks in zip(messages, graph.edge_blocks, strict=True):
        for message, (c, _) in zip(axes, blocks, strict=True):
            parts[c].append(message)
    return tuple(
        jnp.concatenate(part) if part else jnp.zeros((0, card), dtype)
        for part, card in zip(parts, graph.signature.cardinalities, strict=True)
    )


def totals(
    graph: FactorGraph,
    messages: Messages,
    log_evidence: VariableTables | None,
    *,
    finite: bool = False,
) -> tuple[Total, ...]:
    """Sum all incoming messages and the evidence at every variable, one `Total` per class.

    Args:
        finite: promise that no message is `-inf` (evidence may be); saves counting zeros.
    """
    out = []
    for c, (message, rows, incoming, count) in enumerate(
        zip(
            messages,
            graph.wiring.edges,
            graph.wiring.incoming,
            graph.signature.counts,
            strict=True,
        )
    ):
        card = message.shape[1]
        term = message if finite else jnp.concatenate(split(message), axis=1)
        width = term.shape[1]
        # On a CPU a scatter is many times faster than the gather and sum, on a GPU the reverse.
        if graph.signature.degrees[c] > 0 and jax.default_backend() != "cpu":
            padded = jnp.concatenate([term, jnp.zeros((1, width), term.dtype)])
            summed = jnp.sum(padded[incoming], axis=0)
        else:
            summed = jnp.zeros((count, width), term.dtype).at[rows].add(term)
        total = Total(summed[:, :card], summed[:, card:] if not finite else jnp.zeros_like(summed))
        if log_evidence is not None:
            own = split(log_evidence[c])
            total = Total(total.finite + own.finite, total.zeros + own.zeros)
        out.append(total)
    return tuple(out)


def cavities(
    graph: FactorGraph,
    messages: Messages,
    at_variables: tuple[Total, ...],
    *,
    finite: bool = False,
) -> Messages:
    """Variable-to-factor messages ``m_{i->g}``, unnormalised: all but the edge's own message."""
    if finite:
        return tuple(
            total.value()[rows] - message
            for total, rows, message in zip(at_variables, graph.wiring.edges, messages, strict=True)
        )
    return tuple(
        total.rows(rows).without(split(message))
        for total, rows, message in zip(at_variables, graph.wiring.edges, messages, strict=True)
    )


def joint(
    table: Float[Array, "..."],
    incoming: tuple[Float[Array, "factors _"], ...],
    skip: int | None = None,
) -> Float[Array, "..."]:
    """Factor table times the incoming messages (all, or all but one axis)."""
    arity = table.ndim - 1
    for b, message in enumerate(incoming):
        if b != skip:
            shape = [message.shape[0]] + [1] * arity
            shape[b + 1] = message.shape[1]
            table = table + message.reshape(shape)
    return table


def dense(graph: FactorGraph, tables: FactorTables) -> FactorTables:
    """Replace the parameters of structured factors by their tables.

    Raises:
        ValueError: such a table would be large.
    """
    return tuple(
        table if group.rule is None else dense_table(group.rule, table, group.shape)
        for table, group in zip(tables, graph.signature.groups, strict=True)
    )


def outgoing(
    group: GroupSignature,
    table: Float[Array, "..."],
    incoming: tuple[Float[Array, "factors _"], ...],
    semiring: Semiring,
) -> tuple[Float[Array, "factors _"], ...]:
    """Factor-to-variable messages ``m_{g->i}`` for every axis, gauge logsumexp = 0."""
    messages = unnormalized(group, table, incoming, semiring, range(len(incoming)))
    if group.rule is not None and len(set(group.shape)) == 1:
        # One normalisation, not one per axis: rules have hundreds of axes to compile.
        together = log_normalize(jnp.concatenate(messages), axis=1)
        return tuple(jnp.split(together, len(messages)))
    return tuple(log_normalize(message, axis=1) for message in messages)


def unnormalized(
    group: GroupSignature,
    table: Float[Array, "..."],
    incoming: tuple[Float[Array, "factors _"], ...],
    semiring: Semiring,
    asked: Iterable[int],
) -> tuple[Float[Array, "factors _"], ...]:
    """Factor-to-variable messages for some axes, any gauge."""
    if group.rule is not None:
        messages = group.rule.messages(table, incoming, semiring)
        return tuple(messages[a] for a in asked)
    out = []
    for a in asked:
        others = tuple(b + 1 for b in range(table.ndim - 1) if b != a)
        product = joint(table, incoming, skip=a)
        message = reduce(product, others, semiring) if others else product
        out.append(jnp.broadcast_to(message, incoming[a].shape))
    return tuple(out)


def log_mass(
    group: GroupSignature,
    table: Float[Array, "..."],
    incoming: tuple[Float[Array, "factors _"], ...],
    semiring: Semiring,
) -> Float[Array, " factors"]:
    """Sum, or maximum, of each factor times its incoming messages, in the log domain."""
    if group.rule is not None:
        mass = group.rule.log_mass(table, incoming, semiring)
    else:
        product = joint(table, incoming)
        states = tuple(range(1, product.ndim))
        mass = reduce(product, states, semiring) if states else product
    return jnp.broadcast_to(mass, (group.count,))


def reduce(table: Array, axes: tuple[int, ...] | int, semiring: Semiring) -> Array:
    """Sum (logsumexp) or maximise over axes."""
    if semiring == "max":
        return jnp.max(table, axis=axes)
    return safe_logsumexp(table, axis=axes)


def damp(new: Array, old: Array, damping: float) -> Array:
    """Geometric damping ``new^(1-d) old^d``, renormalised; zeros of either stay zeros."""
    if damping == 0.0:
        return new
    return log_normalize((1.0 - damping) * new + damping * old, axis=1)


def plain_tables(graph: FactorGraph, tables: FactorTables) -> FactorTables:
    """The tables of factors that have no rule."""
    return tuple(
        table
        for table, group in zip(tables, graph.signature.groups, strict=True)
        if group.rule is None
    )


def reach(
    graph: FactorGraph,
    tables: FactorTables,
    log_evidence: VariableTables | None,
    *,
    finite: bool = False,
) -> Float[Array, ""]:
    """Largest difference between finite entries of one factor's table or one variable's evidence.

    Finite tables send messages whose log-probabilities differ by no more.

    Args:
        finite: promise that no table has an infinite entry (evidence may); several times faster.
    """
    dtype = tables[0].dtype if tables else jnp.zeros(0).dtype
    plain = plain_tables(graph, tables)
    spans = spans_of(plain) if finite else [_finite_span(_rows(table)) for table in plain]
    spans += [_finite_span(table) for table in log_evidence or () if table.shape[1] > 1]
    return lax.stop_gradient(largest(spans, dtype))


def spans_of(tables: FactorTables) -> list[Float[Array, " factors"]]:
    """Range of every factor's table; infinite or NaN where an entry is infinite."""
    rows = [_rows(table) for table in tables]
    return [jnp.max(row, axis=1) - jnp.min(row, axis=1) for row in rows if row.shape[1]]


def _rows(table: Array) -> Float[Array, "factors entries"]:
    return table.reshape(table.shape[0], -1)


def _finite_span(rows: Float[Array, "factors entries"]) -> Float[Array, " factors"]:
    finite = jnp.isfinite(rows)
    high = jnp.max(jnp.where(finite, rows, -jnp.inf), axis=1, initial=-jnp.inf)
    low = jnp.min(jnp.where(finite, rows, jnp.inf), axis=1, initial=jnp.inf)
    return jnp.where(high > low, high - low, 0.0)


def change(new: Array, old: Array, span: Array) -> Float[Array, " edges"]:
    """Largest change of each message, in linear space and, where that is blind, in log space.

    States 100 times less probable than the best may decide other messages however small they are,
    as far down as tables of this ``span`` can lift them (see `reach`). Their change counts relative
    to the span, so that rounding of large tables is no change. Both parts are finite for `-inf`.
    """
    linear = jnp.abs(jnp.exp(new) - jnp.exp(old))
    below = jnp.abs(tail(_below_best(new), span) - tail(_below_best(old), span))
    return jnp.max(jnp.maximum(linear, below), axis=1, initial=0.0)


def tail(log_ratio: Array, span: Array) -> Array:
    """The part of log-ratios to the best state that `change` compares, as a fraction of the span.

    0 for all above 1/100.
    """
    low = jnp.maximum(span, -TAIL)
    return (jnp.clip(log_ratio, -low, TAIL) - TAIL) / low


TAIL = math.log(1e-2)


def _below_best(message: Array) -> Array:
    best = jnp.max(message, axis=1, keepdims=True, initial=-jnp.inf)
    return message - jnp.where(jnp.isneginf(best), 0.0, best)


def largest(changes: list[Array], dtype) -> Float[Array, ""]:
    """Largest of all changes; 0 without any."""
    tops = [jnp.max(c, initial=0.0) for c in changes]
    return jnp.max(jnp.stack(tops)) if tops else jnp.zeros((), dtype)


def log_beliefs(at_variables: tuple[Total, ...]) -> VariableTables:
    """Normalised log-beliefs ``[variables, states]`` from the totals."""
    return tuple(log_normalize(total.value(), axis=1) for total in at_variables)


def factor_log_beliefs(
    graph: FactorGraph,
    tables: FactorTables,
    messages: Messages,
    at_variables: tuple[Total, ...],
) -> FactorTables:
    """Normalised log-beliefs of every factor's scope, ``[factors, *states]``."""
    out = []
    incoming = by_group(graph, cavities(graph, messages, at_variables))
    for table, axes, group in zip(
        dense(graph, tables), incoming, graph.signature.groups, strict=True
    ):
        product = jnp.broadcast_to(joint(table, axes), (group.count, *group.shape))
        states = tuple(range(1, product.ndim))
        # On no variables there is one distribution only.
        out.append(log_normalize(product, axis=states) if states else jnp.zeros_like(product))
    return tuple(out)
