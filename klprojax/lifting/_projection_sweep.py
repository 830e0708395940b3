"""The backward pass of a layered network by local projections with a small output precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._tracing import no_python_values
from ._layered import LayeredNetwork, LayerMessages, forward_and_seed
from .local import project_activation, project_linear_parameters


@no_python_values("an activation, the loss or phi")
def projection_messages(
    network: LayeredNetwork,
    x: Float[Array, "batch inputs"],
    loss: Callable[[Any, Any], Any],
    y: Any,
    phi: Callable[[Any], Any],
    *,
    precision_ratio: Any,
) -> LayerMessages:
    """Send the layers' messages down by projections instead of derivatives (Corollary 3.4).

    Going down, each layer's output gets the target `v + s` at precision 1, a table with slope s at
    the forward value, while the inputs keep their forward values at precision `ω = 1/ρ`. The
    projection onto the layer's graph moves the inputs, and `ω (v* - v̄)` is the slope that goes on.
    The seed `∇ log φ(C(a_L, y))` and the forward values are those of `layer_messages`, to whose
    result this one tends as `ρ → 0`, with relative error O(ρ); at finite ρ each layer makes a
    damped Gauss-Newton step.

    Args:
        network: the layers, with elementwise activations.
        x: inputs, one sample a row.
        loss: `C(a_L, y)` of one sample, a scalar.
        y: targets with a leading batch axis (or None).
        phi: output factor of each sample's z.
        precision_ratio: ρ > 0, precision of the outputs over that of the inputs, a scalar.

    Returns:
        Slopes of all layers and parameter readouts, as in `layer_messages`.

    Reference: Corollary 3.4.
    """
    us, activities, z, slope = forward_and_seed(network, x, loss, y, phi)
    stiff = 1 / jnp.asarray(precision_ratio, x.dtype)
    s_a, s_u, weights, biases = [slope], [], [], []
    for layer in reversed(range(len(network.weights))):
        activation, weight = network.activations[layer], network.weights[layer]
        bias, below, u = network.biases[layer], activities[layer], us[layer]

        def through_activation(u: Any, a: Any, s: Any, activation: Any = activation) -> Any:
            return project_activation(activation, u, a + s, input_precision=stiff).slope_u

        def through_linear(a: Any, u: Any, s: Any, weight: Any = weight, bias: Any = bias) -> Any:
            return project_linear_parameters(
                weight, bias, a, u + s, parameter_precision=stiff, input_precision=stiff
            )

        s_u.append(jax.vmap(through_activation)(u, activities[layer + 1], s_a[-1]))
        projected = jax.vmap(through_linear)(below, u, s_u[-1])
        s_a.append(projected.slope_a)
        # The samples' messages into the shared parameters multiply: their slopes add up.
        weights.append(-jnp.sum(projected.slope_weight, axis=0))
        biases.append(None if bias is None else -jnp.sum(projected.slope_bias, axis=0))
    for column in (s_a, s_u, weights, biases):
        column.reverse()
    delta = tuple(-s for s in s_u)
    parameters = tuple(weights), tuple(biases)
    return LayerMessages(z, us, activities, tuple(s_u), tuple(s_a), delta, *parameters)
