"""Bethe log-partition in message form: exact on trees, stationary in the messages at fixed points.

``log Z_B = sum_f log sum f prod m_{i->f} + sum_i (1 - d_i) log sum lambda_i prod m_{f->i}``.
Because its derivative in the messages vanishes at a fixed point, its gradient in the potentials,
messages held fixed, is the factor beliefs: likelihoods need no derivative of the iteration.

Reference: Yedidia, Freeman, Weiss (2005), cited by the paper as [18].
"""

import jax.numpy as jnp

from .._types import FactorTables, Scalar
from ..graphs import FactorGraph
from ._messages import Messages, Semiring, Total, cavities, joint, reduce


def bethe_log_partition(
    graph: FactorGraph,
    tables: FactorTables,
    messages: Messages,
    at_variables: tuple[Total, ...],
    semiring: Semiring,
) -> Scalar:
    """Evaluate the Bethe log-partition (nats) at any messages; `-inf` if some belief is empty.

    Args:
        tables: log-potentials, states first (see `states_first`).
        messages: factor-to-variable messages, any gauge.
        at_variables: their totals, evidence included.
    """
    total = jnp.zeros((), tables[0].dtype if tables else at_variables[0].finite.dtype)
    empty = jnp.bool_(False)
    degrees = _degrees(graph)
    for degree, at in zip(degrees, at_variables, strict=True):
        mass = reduce(at.value(), 0, semiring)
        gone = jnp.isneginf(mass)
        empty = empty | jnp.any(gone)
        weight = 1.0 - degree.astype(mass.dtype)
        total = total + jnp.sum(weight * jnp.where(gone, 0.0, mass))
    for table, incoming, group in zip(
        tables, cavities(graph, messages, at_variables), graph.signature.groups, strict=True
    ):
        product = joint(table, incoming)
        axes = tuple(range(product.ndim - 1))
        mass = reduce(product, axes, semiring) if axes else product
        gone = jnp.isneginf(mass)
        empty = empty | jnp.any(gone)
        mass = jnp.broadcast_to(jnp.where(gone, 0.0, mass), (group.count,))
        total = total + jnp.sum(mass)
    return jnp.where(empty, -jnp.inf, total)


def _degrees(graph: FactorGraph):
    degrees = [jnp.zeros(count, jnp.int32) for count in graph.signature.counts]
    for group, edges in zip(graph.signature.groups, graph.wiring.edges, strict=True):
        for cls, rows in zip(group.classes, edges, strict=True):
            degrees[cls] = degrees[cls].at[rows].add(1)
    return degrees
