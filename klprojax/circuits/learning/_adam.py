"""Learning by gradients on logits."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..tensor import TensorCircuit, TensorParameters
from ._schedule import geometric


class AdamState(NamedTuple):
    """Unnormalised log-weights and the state of the optimiser."""

    logits: TensorParameters
    optimizer: Any


@dataclass(frozen=True)
class AdamStep:
    """Learn by Adam on logits, whose normalised form are the parameters.

    Args:
        learning_rate: of the first epoch; it decays to `final_learning_rate` geometrically.
        final_learning_rate: of the last epoch.
        softening: data softening, see `TensorCircuit.log_values`.
    """

    learning_rate: float = 0.03
    final_learning_rate: float = 0.003
    softening: float = 0.0

    def __post_init__(self):
        for name in ("learning_rate", "final_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")

    def init(self, parameters: TensorParameters) -> AdamState:
        """Start from parameters; they are logits of themselves."""
        logits: Any = parameters
        return AdamState(parameters, optax.scale_by_adam().init(logits))

    def parameters(self, state: AdamState) -> TensorParameters:
        """The current normalised parameters.

        Args:
            state: of the learning.
        """
        return state.logits.normalize()

    def size(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch.
            epochs: how many there will be.
        """
        return geometric(self.learning_rate, self.final_learning_rate, epoch, epochs)

    def update(
        self,
        circuit: TensorCircuit,
        state: AdamState,
        rows: Array,
        row_weights: Float[Array, " rows"],
        total: Float[Array, ""],
        size: Float[Array, ""],
    ) -> tuple[AdamState, Float[Array, " rows"]]:
        """One batch; returns the new state and the log-values before it.

        Args:
            circuit: the structure.
            state: where we are.
            rows: states ``[rows, variables]``.
            row_weights: 0 for rows that only fill the batch up.
            total: rows of the whole data set; plays no part.
            size: the step size, from `size`.
        """
        del total

        def loss(logits):
            values = circuit.log_values(logits.normalize(), rows, softening=self.softening)
            counted = jnp.where(row_weights > 0, values, jnp.zeros_like(values)) * row_weights
            return -jnp.sum(counted) / jnp.sum(row_weights), values

        grads, values = jax.grad(loss, has_aux=True)(state.logits)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            updates, optimizer = optax.scale_by_adam().update(grads, state.optimizer)
        logits = jax.tree.map(lambda p, u: p - size * u, state.logits, updates)
        return AdamState(logits, optimizer), values
