"""What a move is: from what a batch says about the parameters to their next values."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


class Direction(NamedTuple):
    """What one batch says about the parameters; trees like the model's inexact arrays.

    Attributes:
        displacement: from the parameters to the consensus of their copies.
        slopes: mean slope of the copies' messages per sample, nats per unit of the parameter; where
            the outputs' precision is small, minus the gradient of the mean loss.
        loss: mean loss before the update, in nats.
    """

    displacement: PyTree
    slopes: PyTree
    loss: Float[Array, ""]


class AbstractMove(eqx.Module):
    """The second half of a projection step: a projection in some metric.

    The local projections give a `Direction`; a move says in which norm the parameters follow it,
    and how far. `init` and `move` are pure and jittable.
    """

    @abc.abstractmethod
    def init(self, parameters: PyTree) -> PyTree:
        """State before the first update.

        Args:
            parameters: the model's inexact arrays.
        """

    @abc.abstractmethod
    def move(self, direction: Direction, state: PyTree) -> tuple[PyTree, PyTree]:
        """What to add to the parameters, and the next state.

        Args:
            direction: what the batch says.
            state: of `init` or of the update before.
        """

    def to_optax(self) -> optax.GradientTransformationExtraArgs:
        """The move as an optax optimiser: it takes a gradient for minus the slopes.

        Returns:
            A transformation, for `GradientStep` for example. Its `update` needs the mean loss as
            `value`, which the training steps hand over, and raises a ValueError without it.
        """

        def update(
            updates: PyTree,
            state: Any,
            params: PyTree | None = None,
            *,
            value: Any = None,
            **others: Any,
        ) -> tuple[PyTree, Any]:
            del params, others
            if value is None:
                raise ValueError("A move needs the mean loss: update(updates, state, value=loss).")
            slopes = jax.tree.map(jnp.negative, updates)
            return self.move(Direction(slopes, slopes, value), state)

        def init(params: PyTree) -> PyTree:
            return self.init(params)

        return optax.GradientTransformationExtraArgs(init, update)


def scheduled(value: Any, count: Array) -> Any:
    """A setting at an update: itself, or what its schedule says."""
    if not callable(value):
        return value
    # Optax mixes dtypes inside; strict promotion, if set, is for the rest.
    with jax.numpy_dtype_promotion("standard"):
        return value(count)
