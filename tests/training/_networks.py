"""Small models of many architectures for the tests of projection training."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from klprojax.lifting.local import quantise

BATCH = 4
# Compilation dominates; less optimised code computes the same numbers. Not for use inside jit.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Residual(eqx.Module):
    """A skip with an activation on its other branch."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.inner, self.outer = (eqx.nn.Linear(3, 3, key=k) for k in keys[:2])
        self.last = eqx.nn.Linear(3, 2, key=keys[2])

    def __call__(self, x):
        h = jax.nn.relu(self.inner(x))
        return self.last(jax.nn.relu(self.outer(h)) + h)


class Joined(eqx.Module):
    """A skip by concatenation."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.inner, self.outer = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])
        self.last = eqx.nn.Linear(6, 2, key=keys[2])

    def __call__(self, x):
        h = jnp.tanh(self.inner(x))
        return self.last(jnp.concatenate([h, jax.nn.relu(self.outer(h))]))


class Convolutional(eqx.Module):
    """A convolution, pooling by maxima, a dense layer."""

    convolution: eqx.nn.Conv2d
    last: eqx.nn.Linear
    by_reshape: bool = eqx.field(static=True)

    def __init__(self, key, by_reshape=True):
        keys = jax.random.split(key, 2)
        self.convolution = eqx.nn.Conv2d(1, 2, 2, key=keys[0])
        self.last = eqx.nn.Linear(8 if by_reshape else 2, 2, key=keys[1])
        self.by_reshape = by_reshape

    def __call__(self, x):
        h = jax.nn.relu(self.convolution(x))  # [2, 4, 4]
        if self.by_reshape:
            pooled = h.reshape(2, 2, 2, 2, 2).max(axis=(2, 4)).reshape(-1)
        else:
            pooled = jnp.max(h, axis=(1, 2))
        return self.last(pooled)


class Tokens(eqx.Module):
    """An embedding of two tokens, concatenated."""

    table: eqx.nn.Embedding
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.table = eqx.nn.Embedding(5, 3, key=keys[0])
        self.last = eqx.nn.Linear(6, 2, key=keys[1])

    def __call__(self, x):
        rows = jnp.concatenate([self.table(x[0]), self.table(x[1])])
        return self.last(jnp.tanh(rows))


class Recurrent(eqx.Module):
    """A plain recurrent cell over three steps; both matrices are shared by the steps."""

    inputs: eqx.nn.Linear
    state: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.inputs = eqx.nn.Linear(2, 3, key=keys[0])
        self.state = eqx.nn.Linear(3, 3, use_bias=False, key=keys[1])
        self.last = eqx.nn.Linear(3, 2, key=keys[2])

    def __call__(self, x):
        h = jax.nn.relu(self.inputs(x[0]))
        for k in (1, 2):
            h = jax.nn.relu(self.inputs(x[k]) + self.state(h))
        return self.last(h)


class Gated(eqx.Module):
    """Equinox's gated recurrent cell over two steps."""

    cell: eqx.nn.GRUCell
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.cell = eqx.nn.GRUCell(2, 3, key=keys[0])
        self.last = eqx.nn.Linear(3, 2, key=keys[1])

    def __call__(self, x):
        h = jnp.full(3, 0.3, x.dtype)
        for k in (0, 1):
            h = self.cell(x[k], h)
        return self.last(h)


class Masked(eqx.Module):
    """A mask that comes with the data, and constants."""

    inner: eqx.nn.Linear
    last: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.inner, self.last = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])
        self.scale = 0.5

    def __call__(self, x):
        inputs, mask = x
        h = jax.nn.relu(self.inner(inputs)) * mask
        offset = jnp.asarray([0.1, -0.2], h.dtype)
        return self.scale * self.last(h) + offset


class Normalised(eqx.Module):
    """Layer normalisation written out: means and products of activations."""

    inner: eqx.nn.Linear
    gain: jax.Array
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.inner, self.last = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])
        self.gain = 1 + 0.1 * jax.random.normal(keys[2], (4,))

    def __call__(self, x):
        h = self.inner(x)
        centred = h - jnp.broadcast_to(jnp.sum(h) * 0.25, h.shape)
        spread = jnp.sum(centred * centred) * 0.25
        normal = centred * jnp.broadcast_to(jax.lax.rsqrt(spread + 0.1), h.shape)
        return self.last(jnp.tanh(normal * self.gain))


class Attention(eqx.Module):
    """Products of activations with one another, over positions."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.query, self.key = (eqx.nn.Linear(2, 3, key=k) for k in keys[:2])
        self.last = eqx.nn.Linear(9, 2, key=keys[2])

    def __call__(self, x):
        q, k = jax.vmap(self.query)(x), jax.vmap(self.key)(x)
        return self.last(jax.nn.sigmoid(q @ k.T).reshape(-1))


class Sliced(eqx.Module):
    """Some hidden units are read by nothing, and some work is for nothing."""

    inner: eqx.nn.Linear
    last: eqx.nn.Linear
    unused: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.inner, self.last = eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(2, 2, key=keys[1])
        self.unused = eqx.nn.Linear(4, 2, key=keys[2])

    def __call__(self, x):
        h = jnp.tanh(self.inner(x))
        jnp.argmax(jax.nn.relu(self.unused(h)))
        return self.last(h[1:3])


def mlp(key, activation=jax.nn.relu, **options):
    """A network 3-4-2."""
    return eqx.nn.MLP(3, 2, 4, 1, activation=activation, key=key, **options)


class Case(NamedTuple):
    """A way to build a model, and the shape of what it reads."""

    build: Callable[[Any], Any]
    x: Any = (3,)


CASES = {
    "mlp": Case(mlp),
    "deep": Case(lambda key: eqx.nn.MLP(3, 2, 4, 3, key=key)),
    "no biases": Case(lambda key: mlp(key, use_bias=False, use_final_bias=False)),
    "maximum with 0": Case(lambda key: mlp(key, lambda x: jnp.maximum(x, 0.0))),
    "tanh": Case(lambda key: mlp(key, jnp.tanh)),
    "sigmoid": Case(lambda key: mlp(key, jax.nn.sigmoid)),
    "gelu": Case(lambda key: mlp(key, jax.nn.gelu)),
    "silu": Case(lambda key: mlp(key, jax.nn.silu)),
    "abs": Case(lambda key: mlp(key, jnp.abs)),
    "identity": Case(lambda key: mlp(key, lambda x: x)),
    "quantise": Case(lambda key: mlp(key, lambda x: quantise(x, levels=3))),
    "residual": Case(Residual),
    "joined": Case(Joined),
    "convolution, reshape": Case(Convolutional, (1, 5, 5)),
    "convolution, axes": Case(lambda key: Convolutional(key, False), (1, 5, 5)),
    "embedding": Case(Tokens, "tokens"),
    "recurrent": Case(Recurrent, (3, 2)),
    "gated": Case(Gated, (2, 2)),
    "masked": Case(Masked, "masked"),
    "normalised": Case(Normalised),
    "attention": Case(Attention, (3, 2)),
    "sliced": Case(Sliced),
}


def build(name, dtype: Any = np.float64, seed=0):
    """A model of a case, with arrays of a dtype, and a batch for it."""
    case, rng = CASES[name], np.random.default_rng(seed)
    model = case.build(jax.random.key(seed))
    model = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, model
    )
    if case.x == "tokens":
        x: Any = jnp.asarray(rng.integers(0, 4, size=(BATCH, 2)))  # token 4 is never seen
    elif case.x == "masked":
        mask = rng.integers(0, 2, size=(BATCH, 4)).astype(dtype)
        x = (jnp.asarray(rng.normal(size=(BATCH, 3)).astype(dtype)), jnp.asarray(mask))
    else:
        x = jnp.asarray(rng.normal(size=(BATCH, *case.x)).astype(dtype))
    return model, x


def labels(rows=BATCH, classes=2, seed=1):
    """Class numbers."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, classes, rows).astype(np.int32))
