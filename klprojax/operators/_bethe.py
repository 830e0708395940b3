"""Bethe log-partition in message form: exact on trees, stationary in the messages at fixed points.

``log Z_B = sum_f log sum f prod m_{i->f} + sum_i (1 - d_i) log sum lambda_i prod m_{f->i}``.
Because its derivative in the messages vanishes at a fixed point, its gradient in the potentials,
messages held fixed, is the factor beliefs: likelihoods need no derivative of the iteration.

Reference: Yedidia, Freeman, Weiss (2005), cited by the paper as [18].
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FactorTables, Scalar
from ..graphs import FactorGraph
from ._messages import Messages, Semiring, Total, by_group, cavities, log_mass, reduce


def bethe_log_partition(
    graph: FactorGraph,
    tables: FactorTables,
    messages: Messages,
    at_variables: tuple[Total, ...],
    semiring: Semiring,
    *,
    finite: bool = False,
    mass_of: Callable[..., Float[Array, " factors"]] = log_mass,
) -> Scalar:
    """Evaluate the Bethe log-partition (nats) at any messages; `-inf` if some belief is empty.

    Args:
        tables: log-potentials with a factor axis (see `batched`).
        messages: factor-to-variable messages, any gauge.
        at_variables: their totals, evidence included.
        finite: promise that no message is `-inf`.
        mass_of: computes what `log_mass` does; an engine may have a faster way.
    """
    masses, weights = [], []
    for rows, at in zip(graph.wiring.edges, at_variables, strict=True):
        degree = jnp.zeros(at.finite.shape[0], jnp.int32).at[rows].add(1)
        masses.append(reduce(at.value(), 1, semiring))
        weights.append(1.0 - degree.astype(at.finite.dtype))
    incoming = by_group(graph, cavities(graph, messages, at_variables, finite=finite))
    for table, axes, group in zip(tables, incoming, graph.signature.groups, strict=True):
        masses.append(mass_of(group, table, axes, semiring))
        weights.append(jnp.ones_like(masses[-1]))
    if not masses:
        return jnp.zeros(())
    mass, weight = jnp.concatenate(masses), jnp.concatenate(weights)
    gone = jnp.isneginf(mass)
    total = jnp.sum(weight * jnp.where(gone, 0.0, mass))
    return jnp.where(jnp.any(gone), -jnp.inf, total)
