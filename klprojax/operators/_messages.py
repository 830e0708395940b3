"""The two updates of normalised belief propagation (section 2), on log-tables, `-inf` safe.

Layout: states first, factors or variables last, so that the inner axis is the long one. The
messages of group ``g`` at axis ``a`` are one array ``[states, factors]``; tables are
``[*states, factors]``, or ``[*states, 1]`` when shared, and broadcast.
Messages from factors to variables are the only state; messages from variables to factors are
totals minus the message that came along the edge.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FactorTables, VariableTables
from ..geometry import log_normalize, safe_logsumexp
from ..graphs import FactorGraph

Semiring: TypeAlias = Literal["sum", "max"]
Messages: TypeAlias = tuple[tuple[Float[Array, "states factors"], ...], ...]


class Total(NamedTuple):
    """Sum of log-tables per variable, kept as finite part and number of `-inf` entries.

    One term can be taken out again exactly, which ``-inf - -inf`` would not allow.
    """

    finite: Float[Array, "states variables"]
    zeros: Float[Array, "states variables"]

    def value(self) -> Float[Array, "states variables"]:
        """The sum itself."""
        return jnp.where(self.zeros > 0, -jnp.inf, self.finite)

    def without(self, term: "Total") -> Float[Array, "states variables"]:
        """The sum with one of its terms left out."""
        return jnp.where(self.zeros - term.zeros > 0, -jnp.inf, self.finite - term.finite)

    def columns(self, index: Array) -> "Total":
        """The totals of some variables."""
        return Total(self.finite[:, index], self.zeros[:, index])


def split(log_table: Float[Array, "..."]) -> Total:
    """One term of a `Total`."""
    zero = jnp.isneginf(log_table)
    return Total(jnp.where(zero, 0.0, log_table), zero.astype(log_table.dtype))


def states_first(log_potentials: FactorTables, graph: FactorGraph) -> FactorTables:
    """Move the factor axis last: ``[factors, *states]`` to ``[*states, factors]``, shared to 1."""
    return tuple(
        table[..., None] if table.ndim == len(group.shape) else jnp.moveaxis(table, 0, -1)
        for table, group in zip(log_potentials, graph.signature.groups, strict=True)
    )


def uniform_messages(graph: FactorGraph, dtype) -> Messages:
    """Messages that say nothing: uniform, in the gauge logsumexp = 0."""
    return tuple(
        tuple(jnp.full((s, group.count), -jnp.log(s), dtype) for s in group.shape)
        for group in graph.signature.groups
    )


def totals(
    graph: FactorGraph, messages: Messages, log_evidence: VariableTables | None
) -> tuple[Total, ...]:
    """Sum all incoming messages and the evidence at every variable, one `Total` per class."""
    signature = graph.signature
    out = []
    for c, (card, count) in enumerate(zip(signature.cardinalities, signature.counts, strict=True)):
        ends = [
            (message, rows)
            for group, axes, edges in zip(
                signature.groups, messages, graph.wiring.edges, strict=True
            )
            for cls, message, rows in zip(group.classes, axes, edges, strict=True)
            if cls == c
        ]
        dtype = _dtype(messages, log_evidence)
        term = split(jnp.concatenate([*(m for m, _ in ends), jnp.zeros((card, 0), dtype)], axis=1))
        stacked = jnp.concatenate(term, axis=0)
        if signature.degrees[c] > 0:
            padded = jnp.concatenate([stacked, jnp.zeros((2 * card, 1), dtype)], axis=1)
            summed = jnp.sum(padded[:, graph.wiring.incoming[c]], axis=1)
        else:
            rows = jnp.concatenate([*(r for _, r in ends), jnp.zeros(0, jnp.int32)])
            summed = jnp.zeros((2 * card, count), dtype).at[:, rows].add(stacked)
        total = Total(summed[:card], summed[card:])
        if log_evidence is not None:
            own = split(log_evidence[c].T)
            total = Total(total.finite + own.finite, total.zeros + own.zeros)
        out.append(total)
    return tuple(out)


def cavities(graph: FactorGraph, messages: Messages, at_variables: tuple[Total, ...]) -> Messages:
    """Variable-to-factor messages ``m_{i->g}``, unnormalised: all but the edge's own message."""
    return tuple(
        tuple(
            at_variables[cls].columns(rows).without(split(message))
            for cls, rows, message in zip(group.classes, edges, axes, strict=True)
        )
        for group, edges, axes in zip(
            graph.signature.groups, graph.wiring.edges, messages, strict=True
        )
    )


def joint(
    table: Float[Array, "*states_and_factors"],
    incoming: tuple[Float[Array, "states factors"], ...],
    skip: int | None = None,
) -> Float[Array, "*states_and_factors"]:
    """Factor table times the incoming messages (all, or all but one axis)."""
    arity = table.ndim - 1
    for b, message in enumerate(incoming):
        if b != skip:
            shape = [1] * arity + [message.shape[1]]
            shape[b] = message.shape[0]
            table = table + message.reshape(shape)
    return table


def outgoing(
    table: Float[Array, "*states_and_factors"],
    incoming: tuple[Float[Array, "states factors"], ...],
    semiring: Semiring,
) -> tuple[Float[Array, "states factors"], ...]:
    """Factor-to-variable messages ``m_{g->i}`` for every axis, gauge logsumexp = 0."""
    arity = table.ndim - 1
    messages = []
    for a in range(arity):
        others = tuple(b for b in range(arity) if b != a)
        product = joint(table, incoming, skip=a)
        message = reduce(product, others, semiring) if others else product
        count = incoming[a].shape[1]
        message = jnp.broadcast_to(message, (message.shape[0], count))
        messages.append(log_normalize(message, axis=0))
    return tuple(messages)


def reduce(table: Array, axes: tuple[int, ...] | int, semiring: Semiring) -> Array:
    """Sum (logsumexp) or maximise over axes."""
    if semiring == "max":
        return jnp.max(table, axis=axes)
    return safe_logsumexp(table, axis=axes)


def damp(new: Array, old: Array, damping: float) -> Array:
    """Geometric damping ``new^(1-d) old^d``, renormalised; zeros of either stay zeros."""
    if damping == 0.0:
        return new
    return log_normalize((1.0 - damping) * new + damping * old, axis=0)


def change(new: Array, old: Array) -> Float[Array, " factors"]:
    """Largest change of each message's probabilities (linear space, so `-inf` is harmless)."""
    return jnp.max(jnp.abs(jnp.exp(new) - jnp.exp(old)), axis=0, initial=0.0)


def log_beliefs(at_variables: tuple[Total, ...]) -> VariableTables:
    """Normalised log-beliefs ``[variables, states]`` from the totals."""
    return tuple(log_normalize(total.value(), axis=0).T for total in at_variables)


def _dtype(messages: Messages, log_evidence: VariableTables | None):
    for axes in messages:
        for message in axes:
            return message.dtype
    if log_evidence:
        return log_evidence[0].dtype
    return jnp.zeros(0).dtype
