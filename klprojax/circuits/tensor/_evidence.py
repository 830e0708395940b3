"""What users give as evidence, checked: rows on the host, on the device or traced, log-tables."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Integer

from ..._variables import numeric_rows, states_of
from ._leaf import IMPOSSIBLE, Evidence
from ._structure import TensorStructure


def read_states(structure: TensorStructure, rows: Any) -> Integer[np.ndarray, "rows variables"]:
    """Concrete rows of any kind as small integers, -1 where missing.

    Raises:
        ValueError: another number of variables, or a state that a variable does not have.
    """
    rows = numeric_rows(rows)
    _check_shape(structure, rows)
    return states_of(rows, structure.cardinalities)


def read_evidence(
    structure: TensorStructure, rows: Any, log_evidence: Sequence[Array] | None, dtype: Any
) -> Evidence:
    """Rows or log-tables as `Evidence`; in traced rows, what is no state is `IMPOSSIBLE`.

    Raises:
        ValueError: both or none of them, or what does not fit the structure.
    """
    s = structure
    if (rows is None) == (log_evidence is None):
        raise ValueError("Give either rows or log_evidence.")
    if log_evidence is None:
        if isinstance(rows, Tracer):
            return Evidence(_traced_states(s, rows).T, None)
        return Evidence(jnp.asarray(read_states(s, rows)).T, None)
    got = [jnp.shape(table) for table in log_evidence]
    wanted = list(s.layout.shapes((got[0][0] if got and got[0] else 0,)))
    if got != wanted:
        raise ValueError(
            f"log_evidence has shapes {got}; expected {[('rows', *w[1:]) for w in wanted]}, "
            "one array per cardinality."
        )
    if any(table.dtype != dtype for table in log_evidence):
        raise ValueError(f"log_evidence must have the parameters' dtype {dtype}.")
    padded = [
        jnp.pad(
            table,
            ((0, 0), (0, 0), (0, s.max_states - table.shape[2])),
            constant_values=-jnp.inf,
        )
        for table in log_evidence
    ]
    order = np.argsort(np.concatenate(s.layout.members))
    return Evidence(None, jnp.concatenate(padded, axis=1)[:, order].transpose(1, 2, 0))


def _traced_states(structure: TensorStructure, rows: Array) -> Array:
    _check_shape(structure, rows)
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"Traced rows have dtype {rows.dtype}; pass integers with -1 for missing entries "
            "(see states_from_data)."
        )
    # In the rows' own dtype, whatever its width and sign.
    last = np.minimum(np.asarray(structure.cardinalities) - 1, jnp.iinfo(rows.dtype).max)
    known = rows <= jnp.asarray(last, rows.dtype)[None]
    if jnp.issubdtype(rows.dtype, jnp.signedinteger):
        known = jnp.logical_and(known, rows >= -1)
    small = jnp.int8 if structure.max_states < 128 else jnp.int32
    return jnp.where(known, rows.astype(small), jnp.asarray(IMPOSSIBLE, small))


def _check_shape(structure: TensorStructure, rows: Any) -> None:
    wanted = len(structure.cardinalities)
    if rows.ndim != 2 or rows.shape[1] != wanted:
        raise ValueError(f"The data has shape {rows.shape}; expected [rows, {wanted}].")
