"""The gradient step: the lifted operator, linearised at the forward point."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._sharding import on_any_mesh
from ..fitting._network import forward, parameters, partition, rows_of_batch, with_state
from ..fitting._precision import follow, narrow, start, wide
from ..fitting._step import (
    AbstractStep,
    StepInfo,
    apply_optimiser,
    mean_loss,
    with_named,
    without_padding,
)


class GradientStep(AbstractStep):
    """Update the weights along the gradient of the mean loss.

    The gradient is the differential of the lifted projection operator at the forward point: the
    slopes of its downward log-messages are the derivatives of the loss (Theorem 3.3), layer by
    layer those of backpropagation (Corollary 3.4). Reverse-mode differentiation computes the same
    numbers in one pass, so that is what runs here; a projection step iterates the operator itself.

    Reports `gradient_norm` and `displacement_norm` by weight matrix, in the model's order (by
    array if the model has no matrix), and the numbers that the loss names.

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
        return start(parameters(model), self.optimiser.init)

    @on_any_mesh(out=("model", "state", None))
    def update(
        self,
        model: PyTree,
        state: PyTree,
        x: PyTree,
        y: PyTree,
        weights: Float[Array, " batch"],
        loss: Callable[[Any, Any], Any],
        key: Any = None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Take a model and its state to the next ones; see `AbstractStep.update`."""
        params, of_params = as_function_of_parameters(model, x, y, weights, loss, key)
        found, gradient = jax.value_and_grad(of_params, has_aux=True)(params)
        value, (after, named) = found
        gradient = wide(gradient)
        more = {
            "value": value,
            "grad": gradient,
            "value_fn": lambda full: of_params(narrow(full, params))[0],
        }
        new, state, updates = follow(
            params,
            state,
            lambda full, inner: apply_optimiser(self.optimiser, gradient, inner, full, **more),
        )
        stats = {"gradient_norm": layer_norms(gradient), "displacement_norm": layer_norms(updates)}
        model = with_state(eqx.combine(new, partition(model)[1]), after)
        return model, state, StepInfo(value, with_named(stats, named))


def as_function_of_parameters(
    model: PyTree, x: PyTree, y: Any, weights: Float[Array, " batch"], loss: Any, key: Any = None
) -> tuple[PyTree, Callable[[PyTree], tuple[Array, Any]]]:
    """The parameters of a model, and the mean loss of a batch as a function of them.

    The function gives the next state and the numbers of the loss beside it.
    """
    params, rest = partition(model)
    y, rows = wide(without_padding(y, weights)), rows_of_batch(model, x, weights, key)
    weights = wide(weights)

    def of_parameters(params: PyTree) -> tuple[Array, Any]:
        outputs, state = forward(eqx.combine(params, rest), rows)
        value, named = mean_loss(loss, outputs, y, weights)
        return value, (state, named)

    return params, of_parameters


def layer_norms(tree: PyTree) -> Float[Array, " layers"]:
    """Norms of the weight matrices of a tree in its order; of all arrays if there is no matrix."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.zeros(0)
    matrices = [leaf for leaf in leaves if leaf.ndim >= 2] or leaves
    return jnp.stack([jnp.sqrt(jnp.sum(jnp.square(jnp.abs(leaf)))) for leaf in matrices])
