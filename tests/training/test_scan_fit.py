"""A run as one function: the run of `fit`, and many at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.training import (
    CrossEntropy,
    ProjectionStep,
    Spectral,
    batch_order,
    fit,
    scan_fit,
)

from ._networks import build, quick_jit
from ._runs import weights_of

ROWS, BATCH = 22, 8  # the last batch is short
MODEL, _ = build("mlp")
X = jax.random.normal(jax.random.key(3), (ROWS, 3))
Y = jnp.arange(ROWS) % 2


def test_the_order_has_every_row_once_per_epoch():
    order = batch_order(ROWS, BATCH, 2, seed=5)
    assert order.shape == (6, BATCH)
    for epoch in order.reshape(2, -1):
        np.testing.assert_array_equal(np.sort(epoch), [-1, -1, *range(ROWS)])


def test_the_run_is_that_of_fit():
    step = ProjectionStep(move=Spectral.decaying(6))
    order = batch_order(ROWS, BATCH, 2, seed=5)
    model, losses = quick_jit(
        lambda: jax.tree.map(
            lambda leaf: leaf if eqx.is_array(leaf) else None,
            scan_fit(MODEL, step, (X, Y), order, loss=CrossEntropy()),
        )
    )()
    known = fit(MODEL, step, (X, Y), epochs=2, batch_size=BATCH, seed=5, devices=jax.devices()[:1])
    np.testing.assert_allclose(weights_of(model), weights_of(known.model), rtol=1e-12)
    assert losses.shape == (6,)
    assert float(losses[0]) == pytest.approx(
        float(jnp.mean(CrossEntropy()(jax.vmap(MODEL)(X[order[0]]), Y[order[0]])))
    )


def test_runs_vectorise_over_models_and_settings():
    order = batch_order(ROWS, BATCH, 1)
    arrays, static = eqx.partition(MODEL, eqx.is_array)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), arrays)

    def last(arrays, share):
        step = ProjectionStep(move=Spectral(share))
        return scan_fit(eqx.combine(arrays, static), step, (X, Y), order)[1][-1]

    found = quick_jit(jax.vmap(last))(many, jnp.asarray([0.01, 0.1]))
    for k, share in enumerate((0.01, 0.1)):
        alone = quick_jit(last)(jax.tree.map(lambda leaf, k=k: leaf[k], many), share)
        np.testing.assert_allclose(found[k], alone, rtol=1e-12)
