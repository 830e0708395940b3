"""Parses in arrays: which edge every sum node selects, which leaves are reached, which state."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._flow import Flow, propagate_back
from ._leaves import AbstractContinuousLeaf, Indicator
from ._structure import CircuitWiring, Shape


def select_best(flow: Flow, scores: Array) -> Array:
    """One 1 an edge out of each sum node, at its largest score; 1 at every edge of a product.

    Ties go to the first edge. Scores are ``[edges, *batch]``.
    """
    edges = scores.shape[0]
    batch = scores.shape[1:]
    ones = (1,) * len(batch)
    is_sum = jnp.asarray(flow.sum_edge).reshape(-1, *ones)
    top = jnp.full((flow.num_nodes, *batch), -jnp.inf, scores.dtype).at[flow.target].max(scores)
    number = jnp.broadcast_to(jnp.arange(edges, dtype=jnp.int32).reshape(-1, *ones), scores.shape)
    candidate = jnp.where(scores == top[flow.target], number, edges)
    first = jnp.full((flow.num_nodes, *batch), edges, jnp.int32).at[flow.target].min(candidate)
    chosen = first[flow.target] == number
    return jnp.where(jnp.logical_or(chosen, jnp.logical_not(is_sum)), 1.0, 0.0).astype(scores.dtype)


def reached(flow: Flow, root: int, chosen: Array) -> Array:
    """1 at every node that the parse of the chosen edges visits, else 0."""
    batch = chosen.shape[1:]
    start = jnp.zeros((flow.num_nodes, *batch), chosen.dtype).at[root].set(1.0)
    start = lax.optimization_barrier(start)  # XLA would spend seconds on folding this constant
    return propagate_back(flow, chosen, start)


def read_states(
    shape: Shape, wiring: CircuitWiring, active: Array, leaf_states: list[Array]
) -> tuple[tuple[Array, ...], Array | None]:
    """Collect the states of the active leaves.

    Args:
        active: ``[leaves, *batch]`` in the order of the groups, 0 or 1.
        leaf_states: per group, the state (or value) that each leaf takes, ``[leaves, *batch]``.

    Returns:
        Per cardinality class, states ``[variables, *batch]`` as floats; values of the continuous
        variables.
    """
    batch = active.shape[1:]
    at = 0
    out: dict[int, Any] = {}
    for (_, group_class), wires, states in zip(
        shape.groups, wiring.leaves, leaf_states, strict=True
    ):
        count = wires.rows.shape[0]
        own = active[at : at + count]
        at += count
        picked = jnp.where(own > 0.5, jnp.broadcast_to(states, own.shape), jnp.zeros_like(own))
        rows = shape.counts[group_class]
        total = out.get(group_class)
        if total is None:
            total = jnp.zeros((rows, *batch), active.dtype)
        out[group_class] = total.at[wires.rows].add(picked)
    classes = tuple(
        out.get(c, jnp.zeros((shape.counts[c], *batch), active.dtype))
        for c in range(len(shape.classes))
    )
    return classes, out.get(-1)


def leaf_tables(
    shape: Shape, wiring: CircuitWiring, log_evidence: Any, parameters: Any
) -> list[Any]:
    """Per group, evidence-weighted log-tables ``[leaves, states]``; None unless finite-state."""
    tables: list[Any] = []
    for (family, group_class), wires, theta in zip(
        shape.groups, wiring.leaves, parameters, strict=True
    ):
        if isinstance(family, AbstractContinuousLeaf | Indicator):
            tables.append(None)
        else:
            table = family.log_table(theta, shape.classes[group_class])
            tables.append(table + log_evidence[group_class][wires.rows])
    return tables
