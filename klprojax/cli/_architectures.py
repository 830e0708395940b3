"""Networks by name: what ``klprojax train --network`` makes for images, sequences and text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._network import make_network
from ._user_code import load_named

# Hidden widths unless others are given: of layers, channels of stages, states, blocks.
WIDTHS = {
    "mlp": (128, 128),
    "cnn": (16, 32),
    "resnet": (16, 32),
    "gru": (128,),
    "transformer": (64, 64),
}
CONTEXT, KERNEL, HEADS = 8, 5, 4  # characters that an mlp sees; width of filters in time
_NEVER = -1e9  # score of a place that is not seen


def make_architecture(
    name: str, data: Any, hidden: Sequence[int] | None, seed: int, *, skip: bool, dtype: type
) -> Any:
    """Make a network for the rows of a data set, shaped as `row_shape` says.

    Args:
        name: of a network, or ``MODULE:NAME`` of a function `(shape, outputs, key) -> network`.
        data: a `Dataset`.
        hidden: widths; those of the name if None.
        seed: of the weights.
        skip: whether layers of an mlp are added to their inputs.
        dtype: floating type.

    Raises:
        ValueError: a network that is not for such data, or not to be had.
    """
    text, outputs = data.task == "text", data.classes
    if ":" in name:
        return _of_user(name, data.shape, outputs, seed)
    if name not in WIDTHS:
        raise ValueError(
            f"--network is {name!r}; expected one of {', '.join(WIDTHS)}, or MODULE:NAME of a "
            "function of shape, outputs and key."
        )
    widths = WIDTHS[name] if hidden is None else tuple(hidden)
    if skip and name != "mlp":
        raise ValueError("--skip belongs to --network mlp.")
    if name == "mlp" and not text:
        inputs = math.prod(data.shape)
        return make_network(inputs, widths, outputs, seed, skip=skip, dtype=dtype)
    if not widths:
        raise ValueError(f"--hidden is empty; --network {name} needs a width.")
    key = jax.random.key(seed)
    if name in ("gru", "transformer"):
        kind = RecurrentNetwork if name == "gru" else TransformerNetwork
        return kind(data.shape, widths, outputs, text=text, key=key, dtype=dtype)
    if text:
        # An mlp sees the last characters at once, the others by filters upon filters.
        kernels = [CONTEXT] + [1] * (len(widths) - 1) if name == "mlp" else [KERNEL] * len(widths)
        skip = skip or name == "resnet"
        return CausalNetwork(widths, kernels, outputs, skip=skip, key=key, dtype=dtype)
    if len(data.shape) not in (2, 3):
        raise ValueError(
            f"--network {name} is for images and text; rows of this data have the shape "
            f"{tuple(data.shape)}. mlp, gru and transformer take them."
        )
    kind = ConvolutionalNetwork if name == "cnn" else ResidualNetwork
    return kind(data.shape, widths, outputs, key=key, dtype=dtype)


def row_shape(name: str, data: Any) -> tuple[int, ...]:
    """Shape of the rows that a network takes: flat for an mlp."""
    return (math.prod(data.shape),) if name == "mlp" else tuple(data.shape)


def _of_user(spec: str, shape: tuple[int, ...], outputs: int, seed: int) -> Any:
    _, make = load_named("--network", spec, "model:make")
    call = f"{spec}(shape={tuple(shape)}, outputs={outputs}, key)"
    try:
        model = make(shape, outputs, jax.random.key(seed))
    except Exception as error:
        raise ValueError(f"{call} failed: {type(error).__name__}: {error}") from error
    if not callable(model) or not jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)):
        raise ValueError(
            f"{call} gave a {type(model).__name__}; expected a network: a callable on one row, "
            "with its weights as arrays, an equinox.Module for example."
        )
    return model


def _channels_first(x: Float[Array, "..."]) -> Float[Array, "channels height width"]:
    """An image `[height, width]`, with channels last, or first where that axis is short."""
    if x.ndim == 2:
        return x[None]
    return x if x.shape[0] <= 4 < x.shape[2] else jnp.moveaxis(x, 2, 0)


def _halve(x: Float[Array, "channels height width"]) -> Float[Array, "channels h w"]:
    """Means of 2 by 2, as far as there are two."""
    sizes = [2 if size > 1 else 1 for size in x.shape[1:]]
    pool = eqx.nn.AvgPool2d(tuple(sizes), tuple(sizes))
    return pool(x)


def _size_of(inner: Callable[[Any], Any], shape: tuple[int, ...], dtype: type) -> tuple[int, ...]:
    return jax.eval_shape(inner, jax.ShapeDtypeStruct(shape, dtype)).shape


class ConvolutionalNetwork(eqx.Module):
    """Stages of a 3 by 3 convolution, ReLU and halving; then one linear layer."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    head: eqx.nn.Linear

    def __init__(self, shape, widths, outputs, *, key, dtype):
        keys = jax.random.split(key, len(widths) + 1)
        channels = _size_of(_channels_first, shape, dtype)[0]
        before = (channels, *widths)
        self.convolutions = tuple(
            _convolution(before[n], width, 3, keys[n], dtype, padding=1)
            for n, width in enumerate(widths)
        )
        (inputs,) = _size_of(lambda x: _stages(self.convolutions, x), shape, dtype)
        self.head = eqx.nn.Linear(inputs, outputs, key=keys[-1], dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """Evaluate one image."""
        return self.head(_stages(self.convolutions, x))


def _stages(convolutions: Sequence[eqx.nn.Conv2d], x: Array) -> Array:
    x = _channels_first(x)
    for convolution in convolutions:
        x = _halve(jax.nn.relu(convolution(x)))
    return x.reshape(-1)


class ResidualStage(eqx.Module):
    """Two 3 by 3 convolutions, each after a ReLU, beside a linear one."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    shortcut: eqx.nn.Conv2d

    def __init__(self, inputs, width, stages, *, key, dtype):
        keys = jax.random.split(key, 3)
        first, last = (
            _convolution(before, width, 3, k, dtype, padding=1)
            for before, k in ((inputs, keys[0]), (width, keys[1]))
        )
        # Without norms a sum of many stages keeps its size if each adds little.
        last = eqx.tree_at(lambda m: m.weight, last, last.weight / stages)
        self.convolutions = (first, last)
        self.shortcut = _convolution(inputs, width, 1, keys[2], dtype)

    def __call__(self, x: Array) -> Array:
        h = x
        for convolution in self.convolutions:
            h = convolution(jax.nn.relu(h))
        return self.shortcut(x) + h


class ResidualNetwork(eqx.Module):
    """A residual network without norms; stages after the first halve the image first."""

    stem: eqx.nn.Conv2d
    stages: tuple[ResidualStage, ...]
    head: eqx.nn.Linear

    def __init__(self, shape, widths, outputs, *, key, dtype):
        keys = jax.random.split(key, len(widths) + 2)
        channels = _size_of(_channels_first, shape, dtype)[0]
        self.stem = _convolution(channels, widths[0], 3, keys[-2], dtype, padding=1)
        before = (widths[0], *widths)
        self.stages = tuple(
            ResidualStage(before[n], width, len(widths), key=keys[n], dtype=dtype)
            for n, width in enumerate(widths)
        )
        self.head = eqx.nn.Linear(widths[-1], outputs, key=keys[-1], dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """Evaluate one image."""
        x = self.stem(_channels_first(x))
        for n, stage in enumerate(self.stages):
            x = stage(x if n == 0 else _halve(x))
        return self.head(jnp.mean(jax.nn.relu(x), (1, 2)))


class CausalNetwork(eqx.Module):
    """Filters in time that see the past only; one prediction per character."""

    embedding: eqx.nn.Embedding
    filters: tuple[eqx.nn.Linear, ...]
    head: eqx.nn.Linear
    kernels: tuple[int, ...] = eqx.field(static=True)
    skip: bool = eqx.field(static=True)

    def __init__(self, widths, kernels, outputs, *, skip, key, dtype):
        keys = jax.random.split(key, len(widths) + 2)
        self.embedding = _embedding(outputs, widths[0], keys[-2], dtype)
        before = (widths[0], *widths)
        self.filters = tuple(
            _he(eqx.nn.Linear(kernel * before[n], width, key=keys[n], dtype=dtype), keys[n])
            for n, (width, kernel) in enumerate(zip(widths, kernels, strict=True))
        )
        self.head = eqx.nn.Linear(widths[-1], outputs, key=keys[-1], dtype=dtype)
        self.kernels, self.skip = tuple(kernels), skip

    def __call__(self, x: Array) -> Array:
        """Evaluate one window of characters."""
        x = jax.vmap(self.embedding)(x)
        for kernel, layer in zip(self.kernels, self.filters, strict=True):
            # A product of matrices, which is faster than a convolution inside of loops.
            padded = jnp.pad(x, ((kernel - 1, 0), (0, 0)))
            past = [padded[n : n + len(x)] for n in range(kernel)]
            h = jax.nn.relu(jax.vmap(layer)(jnp.concatenate(past, 1)))
            x = x + h if self.skip and h.shape == x.shape else h
        return jax.vmap(self.head)(x)


class RecurrentNetwork(eqx.Module):
    """Gated recurrent units, one upon the other; the last state is read, or all for text."""

    reader: eqx.Module
    cells: tuple[eqx.nn.GRUCell, ...]
    head: eqx.nn.Linear
    text: bool = eqx.field(static=True)

    def __init__(self, shape, widths, outputs, *, text, key, dtype):
        keys = jax.random.split(key, len(widths) + 2)
        self.reader = _reader(shape, widths[0], outputs, text, keys[-2], dtype)
        before = (widths[0], *widths)
        self.cells = tuple(
            eqx.nn.GRUCell(before[n], width, key=keys[n], dtype=dtype)
            for n, width in enumerate(widths)
        )
        self.head = eqx.nn.Linear(widths[-1], outputs, key=keys[-1], dtype=dtype)
        self.text = text

    def __call__(self, x: Array) -> Array:
        """Evaluate one sequence."""
        x = jax.vmap(self.reader)(_sequence(x, self.text))  # type: ignore[arg-type]
        for cell in self.cells:

            def step(state: Array, inputs: Array, cell: Any = cell) -> tuple[Array, Array]:
                state = cell(inputs, state)
                return state, state

            _, x = jax.lax.scan(step, jnp.zeros(cell.hidden_size, x.dtype), x)
        return jax.vmap(self.head)(x) if self.text else self.head(x[-1])


class AttentionBlock(eqx.Module):
    """Attention and a network of each place, both on normalised inputs and added to them."""

    norms: tuple[eqx.nn.LayerNorm, ...]
    triples: eqx.nn.Linear
    joined: eqx.nn.Linear
    layers: tuple[eqx.nn.Linear, ...]
    heads: int = eqx.field(static=True)

    def __init__(self, width, *, key, dtype):
        keys = jax.random.split(key, 4)
        self.norms = tuple(eqx.nn.LayerNorm(width, dtype=dtype) for _ in range(2))
        self.triples, self.joined, *layers = (
            eqx.nn.Linear(before, after, key=k, dtype=dtype)
            for before, after, k in (
                (width, 3 * width, keys[0]),
                (width, width, keys[1]),
                (width, 4 * width, keys[2]),
                (4 * width, width, keys[3]),
            )
        )
        self.layers, self.heads = tuple(layers), math.gcd(HEADS, width)

    def __call__(self, x: Array, past_only: bool) -> Array:
        x = x + self.attend(jax.vmap(self.norms[0])(x), past_only)
        h = jax.vmap(self.layers[0])(jax.vmap(self.norms[1])(x))
        return x + jax.vmap(self.layers[1])(jax.nn.gelu(h))

    def attend(self, x: Array, past_only: bool) -> Array:
        """Attention of places to places, or to those that are not later."""
        triples = jax.vmap(self.triples)(x).reshape(len(x), 3, self.heads, -1)
        q, k, v = jnp.moveaxis(triples, 1, 0)
        scores = jnp.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        if past_only:
            # Far below all scores, and its square a number still.
            scores = scores + jnp.triu(jnp.full(scores.shape, _NEVER, scores.dtype), 1)
        heads = jnp.einsum("hij,jhd->ihd", jax.nn.softmax(scores), v)
        return jax.vmap(self.joined)(heads.reshape(x.shape))


class TransformerNetwork(eqx.Module):
    """Blocks with learned places; the mean over places is read, or each for text."""

    reader: eqx.Module
    places: Float[Array, "length width"]
    blocks: tuple[AttentionBlock, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    text: bool = eqx.field(static=True)

    def __init__(self, shape, widths, outputs, *, text, key, dtype):
        if len(set(widths)) > 1:
            raise ValueError("--network transformer needs blocks of one width, 64,64 for example.")
        keys = jax.random.split(key, len(widths) + 3)
        width = widths[0]
        self.reader = _reader(shape, width, outputs, text, keys[-3], dtype)
        self.places = 0.1 * jax.random.normal(keys[-2], (shape[0], width), dtype)
        self.blocks = tuple(AttentionBlock(width, key=k, dtype=dtype) for k in keys[: len(widths)])
        self.norm = eqx.nn.LayerNorm(width, dtype=dtype)
        self.head = eqx.nn.Linear(width, outputs, key=keys[-1], dtype=dtype)
        self.text = text

    def __call__(self, x: Array) -> Array:
        """Evaluate one sequence."""
        x = jax.vmap(self.reader)(_sequence(x, self.text)) + self.places  # type: ignore[arg-type]
        for block in self.blocks:
            x = block(x, self.text)
        x = jax.vmap(self.norm)(x)
        return jax.vmap(self.head)(x) if self.text else self.head(jnp.mean(x, 0))


def _sequence(x: Array, text: bool) -> Array:
    """Rows of an image, or features one by one; characters as they are."""
    return x if text else x.reshape(len(x), -1)


def _reader(shape, width, outputs, text, key, dtype) -> Any:
    """Makes a vector of a character, or of one element of a sequence."""
    if text:
        return _embedding(outputs, width, key, dtype)
    return eqx.nn.Linear(math.prod(shape[1:]), width, key=key, dtype=dtype)


def _embedding(count, width, key, dtype) -> eqx.nn.Embedding:
    return eqx.nn.Embedding(weight=jax.random.normal(key, (count, width), dtype))


def _convolution(inputs, outputs, kernel, key, dtype, *, padding=0) -> eqx.nn.Conv2d:
    layer = eqx.nn.Conv2d(inputs, outputs, kernel, padding=padding, key=key, dtype=dtype)
    return _he(layer, key)


def _he(layer: Any, key: Any) -> Any:
    """The layer with He-initialised weights and biases 0."""
    shape, dtype = layer.weight.shape, layer.weight.dtype
    scale = jnp.asarray((2 / math.prod(shape[1:])) ** 0.5, dtype)
    weight = scale * jax.random.normal(key, shape, dtype)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, jnp.zeros_like(layer.bias)))
