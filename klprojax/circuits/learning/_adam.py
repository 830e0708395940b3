"""Learning by gradients on logits."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ...fitting._step import AbstractStep, StepInfo, apply_optimiser, weighted_mean
from ..tensor import TensorModel, TensorParameters
from ..tensor._kinds import require_tensor
from ._schedule import geometric


class AdamStep(AbstractStep):
    """Learn by Adam on logits, whose normalised form are the parameters.

    The parameters of the models that `update` takes and returns are the logits.

    Args:
        learning_rate: of the first epoch; it decays to `final_learning_rate` geometrically.
        final_learning_rate: of the last epoch.
        softening: data softening, see `TensorCircuit.log_values`.
    """

    learning_rate: float | Float[Array, ""] = 0.03
    final_learning_rate: float | Float[Array, ""] = 0.003
    softening: float = 0.0

    def __check_init__(self):
        for name in ("learning_rate", "final_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")

    def size(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: number of the epoch.
            epochs: how many there will be.
        """
        return geometric(self.learning_rate, self.final_learning_rate, epoch, epochs)

    def at(self, epoch: int, epochs: int, rows: int) -> "AdamStep":
        """The step of an epoch: its learning rate, an array, stays.

        Args:
            epoch: number of the epoch.
            epochs: how many there will be.
            rows: of the whole data set; plays no part.
        """
        rate = jnp.asarray(self.size(epoch, epochs))
        return replace(self, learning_rate=rate, final_learning_rate=rate)

    def parameters(self, model: TensorModel) -> TensorParameters:
        """The normalised parameters.

        Args:
            model: with logits as its parameters.
        """
        return model.parameters.normalize()

    def init(self, model: Any) -> Any:
        """Start from parameters, which are logits of themselves; see `AbstractStep.init`."""
        require_tensor(getattr(model, "circuit", model), "AdamStep")
        logits: Any = model.parameters
        return optax.adam(self.learning_rate).init(logits)

    def update(self, model, state, x, y, weights, loss) -> tuple[TensorModel, Any, StepInfo]:
        """One batch of states ``[rows, variables]``; see `AbstractStep.update`."""
        circuit, logits = model

        def mean_loss(logits: TensorParameters) -> Array:
            values = circuit.log_values(logits.normalize(), x, softening=self.softening)
            return -weighted_mean(values, weights)

        value, gradient = jax.value_and_grad(mean_loss)(logits)
        rate = jnp.asarray(self.learning_rate, weights.dtype)
        updates, state = apply_optimiser(optax.adam(rate), gradient, state, logits)
        logits: Any = optax.apply_updates(logits, updates)
        return TensorModel(circuit, logits), state, StepInfo(value, {})
