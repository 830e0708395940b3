"""Networks that the training benchmarks share."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class ConvolutionalNetwork(eqx.Module):
    """Convolutions of 3x3 with ReLU and a maximum over 2x2, then one linear layer.

    Args:
        shape: channels, height and width of an image.
        channels: of each convolution.
        classes: number of outputs.
        key: of the weights.
    """

    layers: list[eqx.nn.Conv2d]
    last: eqx.nn.Linear

    def __init__(
        self, shape: tuple[int, int, int], channels: tuple[int, ...], classes: int, key: Array
    ):
        *keys, last = jax.random.split(key, len(channels) + 1)
        widths = (shape[0], *channels)
        self.layers = [
            eqx.nn.Conv2d(a, b, 3, padding=1, key=k)
            for a, b, k in zip(widths, widths[1:], keys, strict=False)
        ]
        shrunk = 2 ** len(channels)
        size = widths[-1] * (shape[1] // shrunk) * (shape[2] // shrunk)
        self.last = eqx.nn.Linear(size, classes, key=last)

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " classes"]:
        """Evaluate one image."""
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
            c, h, w = x.shape
            x = jnp.max(x.reshape(c, h // 2, 2, w // 2, 2), axis=(2, 4))
        return self.last(x.reshape(-1))


class Block(eqx.Module):
    """Attention to the past and an MLP, each added to its normed input."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, heads: int, key: Array):
        first, second, third = jax.random.split(key, 3)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=first)
        self.up = eqx.nn.Linear(width, 4 * width, key=second)
        self.down = eqx.nn.Linear(4 * width, width, key=third)

    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        """Evaluate one sequence."""
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        h = jax.vmap(self.norms[1])(x)
        return x + jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(row))))(h)


class Transformer(eqx.Module):
    """A causal transformer on symbols, with learned positions.

    Args:
        symbols: size of the alphabet.
        length: longest sequence.
        width: of the residual stream.
        heads: of the attention.
        depth: number of blocks.
        key: of the weights.
    """

    symbol: eqx.nn.Embedding
    position: Array
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, symbols: int, length: int, width: int, heads: int, depth: int, key: Array):
        first, second, third, *keys = jax.random.split(key, 3 + depth)
        self.symbol = eqx.nn.Embedding(symbols, width, key=first)
        self.position = 0.02 * jax.random.normal(second, (length, width))
        self.blocks = [Block(width, heads, k) for k in keys]
        self.norm = eqx.nn.LayerNorm(width)
        self.last = eqx.nn.Linear(width, symbols, key=third)

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, "length symbols"]:
        """Logits of the next symbol at every place."""
        h = jax.vmap(self.symbol)(x) + self.position[: len(x)]
        for block in self.blocks:
            h = block(h)
        return jax.vmap(lambda row: self.last(self.norm(row)))(h)
