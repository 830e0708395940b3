"""The numbers of a tensor circuit."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...geometry import log_normalize
from ._structure import TensorStructure


class TensorParameters(eqx.Module):
    """Log-weights of a `TensorCircuit`, nats; a pytree of arrays.

    Attributes:
        log_weights: of the sums, ``[blocks, out, in]``; a sum's weights are the last axis.
        log_inputs: leaf tables of the input units, ``[blocks, units, states]``, ``-inf`` beyond
            the states of a variable.
        log_root: of the root sum, over components and their units.
        log_mixing: of the mixtures, ``[mixtures, units, partitions]``, ``-inf`` beyond the
            children of a mixture; None for a circuit without mixtures.
    """

    log_weights: Float[Array, "blocks out in"]
    log_inputs: Float[Array, "inputs units states"]
    log_root: Float[Array, "components units"]
    log_mixing: Float[Array, "mixtures units partitions"] | None = None

    def normalize(self) -> "TensorParameters":
        """Make every sum and every leaf a distribution; the identity if they are.

        The map from logits to log-weights when training by gradients.
        """
        return TensorParameters(
            log_normalize(self.log_weights, axis=2),
            log_normalize(self.log_inputs, axis=2),
            log_normalize(self.log_root),
            None if self.log_mixing is None else log_normalize(self.log_mixing, axis=2),
        )


def random_parameters(
    s: TensorStructure, seed: Any, states: np.ndarray | None, scale: float, dtype: Any
) -> TensorParameters:
    """See `TensorCircuit.init`; ``states`` are its rows, checked."""
    dtype = jnp.zeros(0).dtype if dtype is None else np.dtype(dtype)
    is_key = isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(seed)) if is_key else seed)
    base = np.zeros((s.num_input_blocks, s.max_states))
    if states is not None:
        for block, v in zip(s.input_blocks, s.variables, strict=True):
            seen = states[:, v]
            counts = np.bincount(seen[seen >= 0], minlength=s.max_states)
            base[block] += counts
        # One imaginary row: no state is excluded for good.
        base = np.log(base + 1 / s.max_states)
    base = np.where(np.arange(s.max_states) < s.input_cardinalities[:, None], base, -np.inf)
    sums = rng.normal(size=(s.num_sum_blocks, s.units, s.units)) * scale
    leaves = base[:, None] + rng.normal(size=(len(base), s.units, s.max_states)) * scale
    root = rng.normal(size=(len(s.roots), s.units)) * scale
    # In numpy: nothing to compile.
    tables = [_normalized(sums, (2,)), _normalized(leaves, (2,)), _normalized(root, (0, 1))]
    if s.mixing:
        mixing = rng.normal(size=(len(s.mixtures), s.units, s.max_partitions)) * scale
        inside = np.arange(s.max_partitions) < s.partitions[:, None, None]
        tables.append(_normalized(np.where(inside, mixing, -np.inf), (2,)))
    return TensorParameters(*(jnp.asarray(table, dtype) for table in tables))


def _normalized(logits: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Log-distributions; every row has a finite entry."""
    top = logits.max(axis=axes, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=axes, keepdims=True))
