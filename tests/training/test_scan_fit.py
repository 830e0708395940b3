"""A run as one function: the run of `fit`, and many at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.fitting._network import slow_in_loops
from klprojax.training import (
    CrossEntropy,
    GradientStep,
    ProjectionStep,
    Spectral,
    batch_order,
    evaluate,
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


def test_convolutions_are_updated_one_by_one_with_the_same_numbers():
    class Convolutional(eqx.Module):
        inner: eqx.nn.Conv1d
        last: eqx.nn.Linear

        def __call__(self, x):
            return self.last(jax.nn.relu(self.inner(x[None])).reshape(-1))

    keys = jax.random.split(jax.random.key(0), 3)
    model = Convolutional(eqx.nn.Conv1d(1, 2, 3, key=keys[0]), eqx.nn.Linear(8, 3, key=keys[1]))
    x = np.asarray(jax.random.normal(keys[2], (20, 6)))
    data, step = (x, (np.arange(20) % 3).astype(np.int32)), GradientStep(optax.adam(1e-2))
    assert slow_in_loops(model, x) == (jax.default_backend() == "cpu")
    assert not slow_in_loops(model.last, np.ones((2, 8)))
    result = fit(model, step, data, data, epochs=2, batch_size=8)
    order = batch_order(20, 8, epochs=2)
    expected, losses = eqx.filter_jit(lambda: scan_fit(model, step, data, order))()
    for leaf, same in zip(weights_of(result.last_model), weights_of(expected), strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-9)  # another order of sums, twice six times
    rows = CrossEntropy()(jax.vmap(result.model)(data[0]), data[1])
    np.testing.assert_allclose(evaluate(result.model, data, batch_size=8).loss, rows.mean())
    sizes = np.array([8.0, 8.0, 4.0])
    np.testing.assert_allclose(result.history[1]["train_loss"], losses[:3] @ sizes / 20)
