"""The gradient step: the lifted operator, linearised at the forward point."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._sharding import on_any_mesh
from ..fitting._step import (
    AbstractStep,
    StepInfo,
    apply_optimiser,
    weighted_mean,
    without_padding,
)


class GradientStep(AbstractStep):
    """Update the weights along the gradient of the mean loss.

    The gradient is the differential of the lifted projection operator at the forward point: the
    slopes of its downward log-messages are the derivatives of the loss (Theorem 3.3), layer by
    layer those of backpropagation (Corollary 3.4). Reverse-mode differentiation computes the same
    numbers in one pass, so that is what runs here; a projection step iterates the operator itself.

    Reports `gradient_norm` and `displacement_norm` by weight matrix, in the model's order (by
    array if the model has no matrix).

    Attributes:
        optimiser: turns gradients into updates; optax's line searches and L-BFGS work too.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, optax
        >>> from klprojax.training import GradientStep
        >>> model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
        >>> step = GradientStep(optax.sgd(0.1))
        >>> x, y, ones = jnp.ones((4, 2)), jnp.zeros((4, 1)), jnp.ones(4)
        >>> squared = lambda outputs, y: ((outputs - y) ** 2).sum(-1)
        >>> _, _, before = step.update(model, step.init(model), x, y, ones, squared)
        >>> model, state, _ = step.update(model, step.init(model), x, y, ones, squared)
        >>> _, _, after = step.update(model, state, x, y, ones, squared)
        >>> bool(after.loss < before.loss)
        True

    Reference:
        Theorem 3.3 and Corollary 3.4.
    """

    optimiser: optax.GradientTransformation

    def init(self, model: PyTree) -> PyTree:
        """Return the optimiser's state."""
        return self.optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @on_any_mesh(out=("model", "state", None))
    def update(
        self,
        model: PyTree,
        state: PyTree,
        x: PyTree,
        y: PyTree,
        weights: Float[Array, " batch"],
        loss: Callable[[Any, Any], Array],
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Take a model and its state to the next ones; see `AbstractStep.update`."""
        params, mean_loss = as_function_of_parameters(model, x, y, weights, loss)
        value, gradient = jax.value_and_grad(mean_loss)(params)
        more = {"value": value, "grad": gradient, "value_fn": mean_loss}
        updates, state = apply_optimiser(self.optimiser, gradient, state, params, **more)
        stats = {"gradient_norm": layer_norms(gradient), "displacement_norm": layer_norms(updates)}
        return eqx.apply_updates(model, updates), state, StepInfo(value, stats)


def as_function_of_parameters(
    model: PyTree, x: PyTree, y: Any, weights: Float[Array, " batch"], loss: Any
) -> tuple[PyTree, Callable[[PyTree], Array]]:
    """The inexact arrays of a model, and the mean loss of a batch as a function of them."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    y = without_padding(y, weights)

    def mean_loss(params: PyTree) -> Array:
        outputs = jax.vmap(eqx.combine(params, rest))(x)
        return weighted_mean(loss(outputs, y), weights)

    return params, mean_loss


def layer_norms(tree: PyTree) -> Float[Array, " layers"]:
    """Norms of the weight matrices of a tree in its order; of all arrays if there is no matrix."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros(0)
    matrices = [leaf for leaf in leaves if leaf.ndim >= 2] or leaves
    return jnp.stack([jnp.sqrt(jnp.sum(jnp.square(jnp.abs(leaf)))) for leaf in matrices])
