"""How near a step's direction is to the gradient, array by array."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..fitting._precision import wide
from ..fitting._updates import weight_dtype
from ._evaluate import find_loss
from ._gradient_step import as_function_of_parameters
from ._projection_direction import ProjectionDirection
from ._projection_step import ProjectionStep


class GradientAgreement(NamedTuple):
    """What `gradient_agreement` returns, for every inexact array of the model in its order.

    Attributes:
        names: paths of the arrays.
        cosines: of the angle between the slopes and minus the gradient; 0 where one of them is 0.
        distances: norm of their difference over that of the gradient.
    """

    names: tuple[str, ...]
    cosines: Float[Array, " arrays"]
    distances: Float[Array, " arrays"]


def gradient_agreement(
    step: ProjectionStep | ProjectionDirection,
    model: PyTree,
    x: PyTree,
    y: Any,
    *,
    loss: Callable[[Any, Any], Array] | None = None,
    weights: Float[Array, " batch"] | None = None,
    key: Any = None,
) -> GradientAgreement:
    """Compare the slopes that a step reads from its projections with the gradient of the mean loss.

    A step whose median cosine is above .99 moves in the gradient's direction, whatever its metric.

    Args:
        step: the step, before its move.
        model: a callable on one sample, or a pair (network, state).
        x: a batch.
        y: its targets.
        loss: an output factor (default: `CrossEntropy()`).
        weights: of the rows; 1 if None.
        key: for a network that takes one: both draw the same numbers from it.

    Returns:
        A `GradientAgreement`.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from klprojax.training import ProjectionStep, gradient_agreement
        >>> model = eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(0))
        >>> x, y = jax.random.normal(jax.random.key(1), (16, 3)), jnp.arange(16) % 2
        >>> found = gradient_agreement(ProjectionStep(), model, x, y)
        >>> bool(found.cosines.min() > 0.99)
        True
    """
    loss = find_loss(loss)
    if weights is None:
        weights = jnp.ones(len(jax.tree.leaves(x)[0]), weight_dtype(model))
    params, of_params = as_function_of_parameters(model, x, y, weights, loss, key)
    gradient, _ = jax.grad(of_params, has_aux=True)(params)
    direction, _ = step.direction(model, x, y, weights, loss, key)
    pairs = list(
        zip(
            jax.tree.leaves(direction.slopes),
            jax.tree.leaves(wide(gradient)),
            strict=True,
        )
    )

    def ratio(part: Array, whole: Array) -> Array:
        return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)

    norm = jnp.linalg.norm
    cosines = [-ratio(jnp.sum(s * g), norm(s.ravel()) * norm(g.ravel())) for s, g in pairs]
    distances = [ratio(norm((s + g).ravel()), norm(g.ravel())) for s, g in pairs]
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = tuple(jax.tree_util.keystr(path) for path, _ in paths)
    return GradientAgreement(names, jnp.stack(cosines), jnp.stack(distances))
