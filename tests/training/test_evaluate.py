"""Means over rows, and what counts as a hit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.training import evaluate

from ._runs import blobs, cross_entropy, network, squared


def identity(x):
    return x


@pytest.mark.parametrize("batch_size", [1, 7, 31, 1000, None])
def test_batches_do_not_matter(batch_size):
    x, y = blobs(31)
    got = evaluate(network(), (x, y), loss=cross_entropy, batch_size=batch_size)
    outputs = jax.vmap(network())(x)
    # One mean of 31 numbers in float64.
    assert got.loss == pytest.approx(float(cross_entropy(outputs, y).mean()), rel=1e-13)
    assert got.metric == pytest.approx((np.asarray(outputs).argmax(1) == y).mean(), rel=1e-15)


ZERO = lambda outputs, y: jnp.zeros(len(outputs))  # noqa: E731
OUTPUTS = np.array([[0.1, 2.0], [3.0, -1.0], [0.0, 0.5], [1.0, 0.0]])
SIGNS = np.array([[0.3], [-2.0], [0.1], [-0.1]])


@pytest.mark.parametrize(
    ("outputs", "y", "accuracy"),
    [
        (OUTPUTS, np.array([1, 0, 0, 1]), 0.5),
        (OUTPUTS, np.array([1, 0, 1, 1], np.uint8), 0.75),
        (OUTPUTS, np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), 1.0),
        (OUTPUTS, np.array([[1, -1], [1, -1], [-1, 1], [1, -1]]), 0.75),
        (SIGNS, np.array([1, 0, 0, 1]), 0.5),
        (SIGNS[:, 0], np.array([1, -1, 1, 1]), 0.75),
        # Two labels a row: a row counts by the share that is right.
        (OUTPUTS.reshape(2, 2, 2), np.array([[1, 1], [1, 0]]), 0.75),
        (OUTPUTS, OUTPUTS, None),  # a regression has no accuracy
        (SIGNS, SIGNS, None),
        (OUTPUTS, np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), None),
    ],
)
def test_accuracy(outputs, y, accuracy):
    assert evaluate(identity, (outputs, y), loss=ZERO).metric == accuracy


def test_trees_have_no_accuracy():
    x, y = blobs(5)
    got = evaluate(network(), (x, {"label": y}), loss=lambda o, t: cross_entropy(o, t["label"]))
    assert got.metric is None


def test_no_metric():
    x, y = blobs(5)
    assert evaluate(network(), (x, y), loss=cross_entropy, metric=None).metric is None


def test_bad_data_are_called_data():
    with pytest.raises(ValueError, match="data x has 5 rows, but data y has 4"):
        evaluate(identity, (np.ones((5, 2)), np.ones((4, 2))), loss=squared)
