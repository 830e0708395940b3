"""What a step is: the contract that the loop and every step share."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree


class StepInfo(NamedTuple):
    """What one update reports.

    Attributes:
        loss: mean loss of the batch before the update, in nats.
        stats: scalars or small vectors by name (certificates, norms by layer); may be empty.
    """

    loss: Float[Array, ""]
    stats: dict[str, Array]


class AbstractStep(eqx.Module):
    """One update of a model from a batch; what `fit` repeats, for networks and circuits alike.

    `update` is pure and jittable. Everything the next update needs is in the state, whose arrays
    keep their shapes and dtypes.
    """

    @abc.abstractmethod
    def init(self, model: PyTree) -> PyTree:
        """Return the state before the first update."""

    @abc.abstractmethod
    def update(
        self,
        model: PyTree,
        state: PyTree,
        x: PyTree,
        y: PyTree,
        weights: Float[Array, " batch"],
        loss: Callable[[Any, Any], Any] | None,
        key: Any = None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Take a model and its state to the next ones.

        Args:
            model: a network, callable on one sample, of which `jax.vmap(model)` takes the batch;
                the pair (network, state) of `equinox.nn.make_with_state`; or a circuit with its
                parameters.
            state: of `init` or of the update before.
            x: inputs, leading axis `batch`.
            y: targets, leading axis `batch`; None for circuits.
            weights: of the rows, 0 for the padding of a short batch; every mean is weighted, so a
                row of weight 2 counts as two.
            loss: an output factor `loss(outputs, y) -> [batch]`, in nats; None for circuits, whose
                loss is minus the log-likelihood. It may return `([batch], numbers by name)` too.
            key: of the random numbers of this update, for networks that take one; given only
                where the run has keys, so a step for others may leave it out.

        Returns:
            The new model, the new state and a `StepInfo`.
        """


def weighted_mean(
    values: Float[Array, "batch *rest"], weights: Float[Array, " batch"]
) -> Float[Array, "*rest"]:
    """Mean of the rows of weight above 0; what the others hold does not matter, NaN included."""
    weights = weights.astype(values.dtype).reshape((-1,) + (1,) * (values.ndim - 1))
    # 0 * inf would be NaN, so padding is replaced before it is weighted.
    values = jnp.where(weights > 0, values, jnp.zeros_like(values))
    return jnp.sum(weights * values, axis=0) / jnp.sum(weights)


def mean_loss(
    loss: Callable[[Any, Any], Any], outputs: PyTree, y: Any, weights: Float[Array, " batch"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted mean of a loss, and of the numbers by name that it may return beside the rows."""
    values = loss(outputs, y)
    values, named = values if isinstance(values, tuple) else (values, {})

    def mean(number: Any) -> Array:
        number = jnp.asarray(number)
        if number.shape[:1] != weights.shape:
            return number
        real = jnp.issubdtype(number.dtype, jnp.floating)
        return weighted_mean(number if real else number.astype(weights.dtype), weights)

    return weighted_mean(values, weights), {name: mean(number) for name, number in named.items()}


def with_named(stats: dict[str, Array], named: dict[str, Array]) -> dict[str, Array]:
    """Figures of a step and numbers of its loss.

    Raises:
        ValueError: a name is taken.
    """
    if both := sorted(stats.keys() & named.keys()):
        raise ValueError(f"The loss names a number {both[0]}, as the step does; rename it.")
    return {**stats, **named}


def without_padding(targets: PyTree, weights: Float[Array, " batch"]) -> PyTree:
    """Known targets, the rows of weight 0, which may hold anything, replaced by one that counts.

    Losses check the targets that they know; those of padding are none.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((targets, weights))):
        return targets
    rows = jnp.where(weights > 0, jnp.arange(len(weights)), jnp.argmax(weights > 0))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], targets)


def apply_optimiser(
    optimiser: optax.GradientTransformation, gradient: PyTree, state: PyTree, params: PyTree, **more
) -> tuple[Any, PyTree]:
    """Updates of an optax optimiser and its next state."""
    # Optax mixes dtypes inside; strict promotion, if set, is for the rest.
    with jax.numpy_dtype_promotion("standard"):
        return optax.with_extra_args_support(optimiser).update(gradient, state, params, **more)
