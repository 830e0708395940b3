"""Log-likelihoods of data rows, any entries missing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._sharding import on_any_mesh
from .._variables import missing_entries, numeric_rows
from ._circuit import Circuit
from ._flow import accurate_values
from ._kinds import explicit_or_method
from ._sweep import edge_log_weights, finite_or_stuck, leaf_log_values, log_partition


@explicit_or_method
@on_any_mesh(batch=("rows",), out=0)
def log_likelihood(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    rows: Any,
    *,
    given: Any = None,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    batch_size: int = 1024,
) -> Float[Array, " rows"]:
    """Compute ``log p(row)`` of every data row: joint, marginal or conditional.

    The circuit is normalised by its log-partition, whatever its weights.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters for ``log_weights``
            and the other arguments of `TensorCircuit.log_likelihood`.
        log_weights: one per edge out of a sum node, nats.
        rows: states or values ``[rows, variables]``; missing entries (-1, NaN) are summed out.
            Read on the host: inside a transformation close over them, or map `log_partition` over
            evidence instead.
        given: rows to condition on ``[rows, variables]``: ``log p(row and given) - log p(given)``.
        leaf_parameters: one array per leaf group.
        batch_size: rows evaluated together; bounds memory, does not change the result.

    Returns:
        Natural logarithms, ``-inf`` for impossible rows; also where ``given`` is impossible.

    Differentiation:
        With respect to weights and leaf parameters, to any order.

    Raises:
        ValueError: rows that do not fit the circuit, or that contradict ``given`` by stating
            another value for the same variable.
    """
    rows = numeric_rows(rows)
    if rows.ndim != 2:
        raise ValueError(f"rows has shape {rows.shape}; expected [rows, variables].")
    if given is None:
        log_total = log_partition(circuit, log_weights, leaf_parameters=leaf_parameters)
        return _unnormalised(circuit, log_weights, rows, leaf_parameters, batch_size) - log_total
    continuous = np.asarray(circuit.cardinalities) == 0
    both, given = join_rows(rows, given, continuous)
    log_joint = _unnormalised(circuit, log_weights, both, leaf_parameters, batch_size)
    log_given = _unnormalised(circuit, log_weights, given, leaf_parameters, batch_size)
    return log_conditional(log_joint, log_given)


def join_rows(
    rows: np.ndarray, given: Any, continuous: Any = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with the entries that ``given`` adds, and ``given`` with one row each.

    Args:
        rows, given: numbers, -1 and NaN where missing.
        continuous: per variable, whether -1 is a value.

    Raises:
        ValueError: a variable with two values.
    """
    given = numeric_rows(given)
    if given.ndim not in (1, 2) or np.broadcast_shapes(given.shape, rows.shape) != rows.shape:
        raise ValueError(
            f"given has shape {given.shape}; expected one row for each of the data's, or one for "
            f"all: {rows.shape} or {rows.shape[1:]}."
        )
    given = np.broadcast_to(given, rows.shape)
    known, asked = ~missing_entries(given, continuous), ~missing_entries(rows, continuous)
    clash = known & asked & (given != rows)
    if clash.any():
        row, variable = np.argwhere(clash)[0]
        raise ValueError(
            f"Row {row} states {rows[row, variable]} for variable {variable}, but given states "
            f"{given[row, variable]}; leave one of them missing."
        )
    return np.where(asked, rows, given), given


def log_conditional(log_joint: Array, log_given: Array) -> Array:
    """``log_joint - log_given``, and ``-inf`` where ``given`` is impossible."""
    impossible = jnp.isneginf(log_given)
    log_given = jnp.where(impossible, jnp.zeros_like(log_given), log_given)
    return jnp.where(impossible, jnp.full_like(log_joint, -jnp.inf), log_joint - log_given)


def _unnormalised(circuit, log_weights, rows, leaf_parameters, batch_size) -> Array:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
    parts = []
    s = circuit.structure
    for start in range(0, max(len(rows), 1), batch_size):
        part = rows[start : start + batch_size]
        short = min(batch_size, len(rows)) - len(part)
        if short:  # one shape, one compilation
            part = np.concatenate([part, np.repeat(part[:1], short, axis=0)])
        log_evidence, values = circuit.evidence_from_data(part, log_weights.dtype)
        parameters = circuit.check(
            log_weights, log_evidence, leaf_parameters, values, batch=(len(part),)
        )
        out = _batch(s.shape, s.wiring, log_weights, log_evidence, parameters, values)
        parts.append(out[: len(part) - short])
    return jnp.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def _batch(shape, wiring, log_weights, log_evidence, parameters, values):
    # Batch last: a gather then copies whole rows.
    log_evidence = tuple(jnp.moveaxis(table, 0, -1) for table in log_evidence)
    leaves = leaf_log_values(shape, wiring.leaves, log_evidence, parameters, values.T)
    weights = edge_log_weights(wiring, log_weights)[:, None]
    return finite_or_stuck(accurate_values(wiring.flow, leaves, weights)[shape.root])
