"""A network with batch norm and dropout, and the same written out without its layers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

EPS, MOMENTUM = 1e-3, 0.9


class Net(eqx.Module):
    """Two channels of two places, normalised; half of the units dropped."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key, mode="batch", width=4, classes=2, inputs=3, p=0.5, dtype: Any = None):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(inputs, width, key=keys[0], dtype=dtype)
        self.norm = eqx.nn.BatchNorm(
            width // 2, "batch", EPS, True, MOMENTUM, dtype=dtype, mode=mode
        )
        self.drop = eqx.nn.Dropout(p)
        self.last = eqx.nn.Linear(width, classes, key=keys[1], dtype=dtype)

    def __call__(self, x, state, *, key=None):
        h, state = self.norm(self.first(x).reshape(-1, 2), state)
        return self.last(self.drop(jax.nn.relu(h.reshape(-1)), key=key)), state


def pair(seed=0, **options):
    """A network and its state."""
    return eqx.nn.make_with_state(Net)(jax.random.key(seed), **options)


def written_out(net, x, keys, running=None, share=1.0):
    """Outputs of a batch, and its means and variances by channel.

    Args:
        net: where the parameters are.
        x: rows; every one counts in the statistics.
        keys: of the rows, or None.
        running: means and variances that are mixed in.
        share: of the batch's own in the mixture.
    """
    h = (x @ net.first.weight.T + net.first.bias[None]).reshape(len(x), -1, 2)
    mean = h.mean((0, 2))
    variance = ((h - mean[None, :, None]) ** 2).mean((0, 2))
    if running is not None:
        mean = share * mean + (1 - share) * running[0]
        variance = share * variance + (1 - share) * running[1]
    h = (h - mean[None, :, None]) / jnp.sqrt(variance + EPS)[None, :, None]
    h = h * net.norm.weight[None, :, None] + net.norm.bias[None, :, None]
    h = jnp.maximum(h.reshape(len(x), -1), 0)
    if keys is not None:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, h.shape[1:]))(keys)
        h = jnp.where(kept, 2 * h, 0)
    return h @ net.last.weight.T + net.last.bias[None], (mean, variance)
