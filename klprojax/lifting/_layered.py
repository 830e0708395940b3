"""Layered networks: the backward pass by explicit layer rules (Corollary 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._tracing import no_python_values
from ._outputs import log_output_slope


class LayeredNetwork(eqx.Module):
    """A feedforward network `u_l = W_l a_{l-1} + b_l`, `a_l = σ_l(u_l)`.

    Attributes:
        weights: `W_l`, each `[outputs, inputs]`.
        biases: `b_l`, or None for a layer without bias.
        activations: `σ_l`, each a function of one sample's `[outputs]` vector.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"] | None, ...]
    activations: tuple[Callable[[Any], Any], ...]

    def __check_init__(self) -> None:
        counts = (len(self.weights), len(self.biases), len(self.activations))
        if len(set(counts)) != 1 or counts[0] == 0:
            raise ValueError(
                "a layered network needs one weight, one bias (or None) and one activation a"
                f" layer, and at least one layer; got {counts}"
            )
        for layer, (above, below) in enumerate(
            zip(self.weights[1:], self.weights[:-1], strict=True), start=1
        ):
            if above.shape[1] != below.shape[0]:
                raise ValueError(
                    f"layer {layer} takes {above.shape[1]} inputs, but layer {layer - 1} gives"
                    f" {below.shape[0]} outputs"
                )

    @classmethod
    def from_mlp(cls, mlp: eqx.nn.MLP) -> LayeredNetwork:
        """Read the layers of an Equinox MLP.

        Args:
            mlp: the network, with vectors as inputs and outputs.

        Raises:
            ValueError: the MLP has scalar inputs or outputs.
        """
        if mlp.in_size == "scalar" or mlp.out_size == "scalar":
            raise ValueError(
                "an MLP with in_size or out_size 'scalar' has no layer vectors; use size 1"
            )
        layers = _unstacked(mlp)
        activations = [_Units(_slice(mlp.activation, k)) for k in range(len(layers) - 1)]
        return cls.from_layers(layers, [*activations, _Units(mlp.final_activation)])

    @classmethod
    def from_layers(
        cls, layers: Sequence[eqx.nn.Linear], activations: Sequence[Callable[[Any], Any]]
    ) -> LayeredNetwork:
        """Pair `eqx.nn.Linear` layers with activations, each a function of a whole layer."""
        return cls(
            tuple(layer.weight for layer in layers),
            tuple(layer.bias for layer in layers),
            tuple(activations),
        )

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """Evaluate one sample."""
        return self.forward(x[None])[1][-1][0]

    def forward(
        self, x: Float[Array, "batch inputs"]
    ) -> tuple[tuple[Float[Array, "batch _"], ...], tuple[Float[Array, "batch _"], ...]]:
        """Run the upward pass: forward values of all `u_l` (l = 1..L) and `a_l` (l = 0..L).

        Args:
            x: inputs, one sample a row.
        """
        us, activities = [], [x]
        for weight, bias, activation in zip(
            self.weights, self.biases, self.activations, strict=True
        ):
            u = activities[-1] @ weight.T
            u = u if bias is None else u + bias[None]
            us.append(u)
            activities.append(jax.vmap(activation)(u))
        return tuple(us), tuple(activities)


class LayerMessages(eqx.Module):
    """Slopes of the downward beliefs of every layer, sample by sample.

    Attributes:
        z: output `C(a_L, y)` of every sample.
        u: forward values of the pre-activations, l = 1..L.
        a: forward values of the activities, l = 0..L.
        s_u: `∇_u log b_↓(u_l)`, l = 1..L.
        s_a: `∇_a log b_↓(a_l)`, l = 0..L.
        delta: `-s_u`; for `φ(z) = exp(-z)` the deltas of backpropagation.
        weights: gradients `Σ_samples delta_l a_{l-1}ᵀ`.
        biases: gradients `Σ_samples delta_l`, None for a layer without bias.
    """

    z: Float[Array, " batch"]
    u: tuple[Float[Array, "batch _"], ...]
    a: tuple[Float[Array, "batch _"], ...]
    s_u: tuple[Float[Array, "batch _"], ...]
    s_a: tuple[Float[Array, "batch _"], ...]
    delta: tuple[Float[Array, "batch _"], ...]
    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"] | None, ...]


@no_python_values("an activation, the loss or phi")
def layer_messages(
    network: LayeredNetwork,
    x: Float[Array, "batch inputs"],
    loss: Callable[[Any, Any], Any],
    y: Any,
    phi: Callable[[Any], Any],
) -> LayerMessages:
    """Send the layers' messages down by the rules of Corollary 3.4.

    `s_a[L] = ∇ log φ(C(a_L, y))`, `s_u[l] = σ_l'(u_l) ⊙ s_a[l]`, `s_a[l-1] = W_lᵀ s_u[l]`. An
    activation that mixes units (softmax) uses the transpose of its Jacobian in place of `σ' ⊙`.
    The parameters are shared by the samples, whose messages multiply: their slopes add up.

    Args:
        network: the layers.
        x: inputs, one sample a row.
        loss: `C(a_L, y)` of one sample, a scalar.
        y: targets, a pytree with a leading batch axis (or None).
        phi: output factor of each sample's z; `exp_output(-1.0)` gives the deltas and gradients of
            plain backpropagation of the summed loss.

    Returns:
        Slopes of all layers and the parameter gradients.

    Raises:
        ValueError: φ is not positive and finite at a forward value.

    Reference: Corollary 3.4.
    """
    us, activities, z, slope = forward_and_seed(network, x, loss, y, phi)
    s_a, s_u = [slope], []
    for weight, activation, u in zip(
        reversed(network.weights), reversed(network.activations), reversed(us), strict=True
    ):
        s_u.append(jax.vmap(_activation_rule, (None, 0, 0))(activation, u, s_a[-1]))
        s_a.append(s_u[-1] @ weight)
    s_a.reverse()
    s_u.reverse()
    delta = tuple(-s for s in s_u)
    weights = tuple(d.T @ a for d, a in zip(delta, activities[:-1], strict=True))
    biases = tuple(
        None if bias is None else jnp.sum(d, axis=0)
        for d, bias in zip(delta, network.biases, strict=True)
    )
    return LayerMessages(z, us, activities, tuple(s_u), tuple(s_a), delta, weights, biases)


def forward_and_seed(
    network: LayeredNetwork, x: Any, loss: Callable[[Any, Any], Any], y: Any, phi: Any
) -> tuple[Any, Any, Any, Any]:
    """Return `us, activities, z` and the slopes `∇ log φ(C(a_L, y))`, sample by sample."""

    def top(a: Any, target: Any) -> tuple[Any, Any]:
        z, pullback = jax.vjp(lambda a: loss(a, target), a)
        return z, pullback(log_output_slope(phi, z))[0]

    us, activities = network.forward(x)
    return us, activities, *jax.vmap(top)(activities[-1], y)


def _activation_rule(activation: Callable[[Any], Any], u: Any, slope: Any) -> Any:
    """Return `σ'(u) ⊙ s_a`, the slope of the one log-message through the activation."""
    return jax.vjp(activation, u)[1](slope)[0]


class _Units(eqx.Module):
    """Activations of Equinox MLPs hold one copy of their parameters a unit."""

    activation: Any

    @property
    def every_unit(self) -> Any:
        """The activation, if it has no parameters of its own."""
        return self.activation

    def __call__(self, u: Any) -> Any:
        return eqx.filter_vmap(lambda activation, unit: activation(unit))(self.activation, u)


def _slice(tree: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x[k] if eqx.is_array(x) else x, tree)


def _unstacked(mlp: eqx.nn.MLP) -> list[Any]:
    layers = list(mlp.layers)
    if not getattr(mlp, "scan", False):
        return layers
    first, stack, last = layers
    return [first, *(_slice(stack, k) for k in range(mlp.depth - 1)), last]
