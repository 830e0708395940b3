"""The numbers of a tensor circuit."""

import equinox as eqx
from jaxtyping import Array, Float

from ...geometry import log_normalize


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
