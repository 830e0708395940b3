"""Small data, models and losses for the tests of training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(outputs, y):
    """Cross-entropy of labels, nats."""
    scores = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]


def squared(outputs, y):
    """Half the squared error."""
    return 0.5 * jnp.sum((outputs - y) ** 2, axis=1)


def blobs(rows=53, seed=0, classes=3, dtype=np.float64):
    """Three clouds of points in the plane, with labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows).astype(np.int32)
    centres = np.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    return (centres[y] + rng.normal(size=(rows, 2))).astype(dtype), y


def network(seed=0, dtype=jnp.float64, classes=3):
    """A small network."""
    return eqx.nn.MLP(2, classes, 5, 1, key=jax.random.key(seed), dtype=dtype)


def weights_of(model):
    """All weights, as one vector."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
