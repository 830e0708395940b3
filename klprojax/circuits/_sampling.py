"""Exact draws from a circuit given evidence, all samples in one sweep of array operations."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num, UInt32

from .._sharding import on_any_mesh
from .._types import VariableTables
from ._circuit import Circuit
from ._kinds import explicit_or_method
from ._leaves import AbstractContinuousLeaf, Indicator
from ._selection import leaf_tables, reached, read_states, select_best
from ._sweep import edge_log_weights, evaluate, leaf_log_values


@explicit_or_method
@on_any_mesh()
def sample(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    key: Key[Array, ""] | UInt32[Array, "2"],
    num_samples: int,
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
) -> Num[Array, "samples variables"]:
    """Draw joint states from ``p(x | e)``.

    One upward pass; then every sum node of every sample selects an edge with the probabilities of
    its gates (the largest of Gumbel-perturbed log-scores), and a downward pass finds the leaves
    that each parse reaches.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters for ``log_weights``
            and the other arguments of `TensorCircuit.sample`.
        log_weights: one per edge out of a sum node, nats.
        key: a JAX random key.
        num_samples: how many; static under ``jit``.
        log_evidence: soft or hard evidence; hard evidence is reproduced.
        leaf_parameters: one array per leaf group.
        values: values of the continuous variables, NaN where they are drawn.

    Returns:
        Rows of states, int32, or of the weights' floating dtype if any variable is continuous. With
        impossible evidence the rows mean nothing.

    Raises:
        ValueError: numbers that do not fit the circuit, or fewer than one sample.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    s = circuit.structure
    classes, continuous = _sample(
        s.shape, num_samples, s.wiring, key, log_weights, log_evidence, parameters, values
    )
    dtype = jnp.int32 if continuous is None else log_weights.dtype
    rows = jnp.zeros((num_samples, circuit.num_variables), dtype)
    for ids, states in zip(s.variables.members, classes, strict=True):
        rows = rows.at[:, ids].set(states.T.astype(dtype))
    if continuous is not None:
        rows = rows.at[:, s.variables.continuous].set(continuous.T)
    return rows


@partial(jax.jit, static_argnums=(0, 1))
def _sample(shape, count, wiring, key, log_weights, log_evidence, parameters, values):
    flow = wiring.flow
    given = leaf_log_values(shape, wiring.leaves, log_evidence, parameters, values)
    weights = edge_log_weights(wiring, log_weights)
    log_values = evaluate(flow, given, weights)
    scores = weights + log_values[flow.source]
    gates_key, *leaf_keys = jax.random.split(key, 1 + len(shape.groups))
    noise = jax.random.gumbel(gates_key, (scores.shape[0], count), scores.dtype)
    chosen = select_best(flow, scores[:, None] + noise)
    active = reached(flow, shape.root, chosen)[flow.given]
    states = []
    tables = leaf_tables(shape, wiring, log_evidence, parameters)
    for (family, _), wires, theta, table, leaf_key in zip(
        shape.groups, wiring.leaves, parameters, tables, leaf_keys, strict=True
    ):
        if isinstance(family, AbstractContinuousLeaf):
            keys = jax.random.split(leaf_key, count)
            draws = jax.vmap(lambda k, f=family, p=theta: f.sample(k, p), out_axes=1)(keys)
            if values is not None:
                own = values[wires.rows][:, None]
                draws = jnp.where(jnp.isnan(own), draws, own)
            states.append(draws)
        elif isinstance(family, Indicator):
            states.append(wires.states.astype(scores.dtype)[:, None])
        else:
            noise = jax.random.gumbel(leaf_key, (*table.shape, count), table.dtype)
            best = jnp.argmax(table[:, :, None] + noise, axis=1)
            states.append(best.astype(scores.dtype))
    return read_states(shape, wiring, active, states)
