"""Values of input vectors: a column of a table per observed state, or soft evidence."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from ...geometry import safe_logsumexp
from ._rows import rows_of
from ._structure import TensorStructure

# With more states than this a gather beats one comparison a state.
MAX_SELECTED = 16


# In place of a state that the variable does not have.
IMPOSSIBLE = -2


class Evidence(NamedTuple):
    """Observed states ``[variables, batch]``, or log-evidence, states in between.

    -1 is a missing entry. `IMPOSSIBLE` counts as one here: it makes the whole row impossible.
    """

    states: Integer[Array, "variables batch"] | None
    log_evidence: Float[Array, "variables states batch"] | None

    def of(self, variables: np.ndarray) -> "Evidence":
        """The evidence on some variables."""
        return Evidence(*(None if part is None else rows_of(part, variables) for part in self))

    def table(self, states: int, dtype: Any) -> Array:
        """The same as log-evidence over so many states."""
        if self.log_evidence is not None:
            return self.log_evidence
        assert self.states is not None
        observed = self.states.astype(jnp.int32)[:, None, :]
        columns = jnp.arange(states, dtype=jnp.int32)
        allowed = (observed == -1) | (observed == columns[None, :, None])
        return jnp.where(allowed, jnp.zeros((), dtype), -jnp.inf)


def leaf_tables(
    structure: TensorStructure, log_inputs: Array, evidence: Evidence, softening: float
) -> Array:
    """The tables that `leaf_values` reads, ``[blocks, units, columns]``.

    For observed states, one more column holds the log of the total, the value of a missing entry.
    Softening replaces an observed state by soft evidence: ``1 - softening`` on it, the rest spread
    over the others; that is a change of the table, so it costs nothing a row.
    """
    if evidence.states is None:
        return log_inputs
    total = safe_logsumexp(log_inputs, axis=2, keepdims=True)
    if softening:
        cards = structure.input_cardinalities
        other = [softening / max(int(c) - 1, 1) for c in cards]
        own = [1 - softening - share for share in other]
        if min(own) <= 0:
            raise ValueError(
                f"softening is {softening}; it must leave an observed state more than the others."
            )
        column = lambda shares: jnp.asarray(  # noqa: E731
            [math.log(share) for share in shares], log_inputs.dtype
        )[:, None, None]
        log_inputs = jnp.logaddexp(log_inputs + column(own), total + column(other))
    return jnp.concatenate([log_inputs, total], axis=2)


def leaf_values(tables: Array, states: Array) -> Array:
    """Values ``[inputs, units, batch]`` from tables ``[inputs, units, columns]`` and states."""
    # Missing entries, -1, are the last column.
    columns = tables.shape[2]
    states = states.astype(jnp.int32)
    states = jnp.where(states < 0, columns - 1, states)
    if columns <= MAX_SELECTED:
        return _select(tables, states)
    index = jnp.broadcast_to(
        states[:, None, :], (tables.shape[0], tables.shape[1], states.shape[1])
    )
    return jnp.take_along_axis(tables, index, axis=2, mode="promise_in_bounds")


@jax.custom_jvp
def _select(tables: Array, states: Array) -> Array:
    out = tables[:, :, 0, None]
    for column in range(1, tables.shape[2]):
        out = jnp.where(states[:, None, :] == column, tables[:, :, column, None], out)
    return jnp.broadcast_to(out, (*tables.shape[:2], states.shape[1]))


@_select.defjvp
def _select_jvp(primals, tangents):
    tables, states = primals
    # As a matrix product, so that the transpose sums over the batch in one pass.
    columns = jnp.arange(tables.shape[2], dtype=states.dtype)
    hot = (states[:, None, :] == columns[None, :, None]).astype(tables.dtype)
    return _select(tables, states), jnp.matmul(
        tangents[0], hot, precision=jax.lax.Precision.HIGHEST
    )
