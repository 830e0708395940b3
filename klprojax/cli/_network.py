"""The networks that ``klprojax train`` trains."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class SkipNetwork(eqx.Module):
    """ReLU layers, each added to its input where both have one width."""

    layers: tuple[eqx.nn.Linear, ...]

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " classes"]:
        """Evaluate one sample."""
        for layer in self.layers[:-1]:
            h = jax.nn.relu(layer(x))
            x = x + h if h.shape == x.shape else h
        return self.layers[-1](x)


def make_network(
    inputs: int, hidden: Sequence[int], classes: int, seed: int, *, skip: bool, dtype: type
) -> eqx.Module:
    """Make a ReLU network with He-initialised weights and biases 0.

    An `eqx.nn.MLP` if all hidden layers have one width and nothing is skipped, else layers of
    `eqx.nn.Linear`.
    """
    keys = jax.random.split(jax.random.key(seed), len(hidden) + 1)
    widths = [inputs, *hidden, classes]
    layers = []
    for n, key in enumerate(keys):
        layer = eqx.nn.Linear(widths[n], widths[n + 1], key=key, dtype=dtype)
        scale = jnp.asarray((2 / widths[n]) ** 0.5, dtype)
        weight = scale * jax.random.normal(key, layer.weight.shape, dtype)
        layers.append(
            eqx.tree_at(
                lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros(widths[n + 1], dtype))
            )
        )
    if skip:
        return SkipNetwork(tuple(layers))
    if len(set(hidden)) <= 1:
        width = hidden[0] if hidden else classes
        mlp = eqx.nn.MLP(inputs, classes, width, len(hidden), key=keys[0], dtype=dtype)
        return eqx.tree_at(lambda m: m.layers, mlp, tuple(layers))
    relu = eqx.nn.Lambda(jax.nn.relu)
    inner = [part for layer in layers[:-1] for part in (layer, relu)]
    return eqx.nn.Sequential([*inner, layers[-1]])
