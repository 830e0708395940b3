"""Constraints without a projection of their own; scipy's minimiser is the referee."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from klprojax.lifting import LiftError
from klprojax.projections import DouglasRachford
from klprojax.training import (
    CrossEntropy,
    Precisions,
    ProjectionDirection,
    ProjectionStep,
    Relaxed,
    Spectral,
    fit,
    gradient_agreement,
)
from klprojax.training.network import trace_network
from klprojax.training.network._generic import Generic

from .._networks import quick_jit

KEYS = jax.random.split(jax.random.key(0), 8)
CELL = eqx.nn.GRUCell(2, 3, key=KEYS[0])


def recurrent(x):
    return jax.lax.scan(lambda h, x: (CELL(x, h), None), jnp.zeros(3), x.reshape(3, 2))[0]


def windows(x):
    return jax.lax.reduce_window(x.reshape(2, 3), -jnp.inf, jax.lax.max, (2, 2), (1, 1), "VALID")


FUNCTIONS = {
    "scan": recurrent,
    "window maximum": windows,
    "sort": jnp.sort,
    "product": jnp.prod,
    "power": lambda x: jnp.abs(x[:3]) ** x[3:],
    "running maximum": jax.lax.cummax,
}


KINKED = ("window maximum", "sort", "running maximum")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_projections_are_the_nearest_points(name, rho):
    function, omega = FUNCTIONS[name], 1.5
    base = np.random.default_rng(3).normal(size=(4, 6)) + np.arange(6) / 3
    if name in KINKED:  # no two values meet on the way
        base = np.stack([np.random.default_rng(k).permutation(6) - 2.0 for k in range(4)])
    output = jax.vmap(function)(jnp.asarray(base))
    target = output + 0.3 * jax.random.normal(KEYS[1], output.shape)
    rule = Generic(function, (True,))

    @quick_jit
    def project(base):
        return rule.project((base,), target, (omega,), rho, jnp.ones(4), (True,))

    found = project(jnp.asarray(base))
    moved = base + np.asarray(found.slopes[0]) / omega

    def objective(a, z):
        off = z - function(a)
        return omega / 2 * jnp.sum((a - at) ** 2) + rho / 2 * jnp.sum(off**2)

    for row in range(4):
        at = jnp.asarray(base[row])
        value = quick_jit(jax.value_and_grad(lambda a, row=row: objective(a, target[row])))
        best = minimize(
            lambda a, value=value: tuple(map(np.asarray, value(jnp.asarray(a)))),
            base[row],
            jac=True,
            method="BFGS",
            options={"gtol": 1e-10},
        )
        # BFGS ends within 1e-10 of a stationary point; steps of ours below 1e-9 end the descent.
        np.testing.assert_allclose(moved[row], best.x, atol=1e-6)
        np.testing.assert_allclose(found.output[row], function(jnp.asarray(moved[row])), atol=1e-9)


class Head(eqx.Module):
    body: eqx.Module
    function: object
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(self.function(self.body, x).reshape(-1))


def through_cell(cell, x):
    return jax.lax.scan(lambda h, x: (cell(x, h), None), jnp.zeros(5, x.dtype), x.reshape(3, 2))[0]


def pooled(convolution, x):
    return eqx.nn.MaxPool2d(2, 1)(jax.nn.relu(convolution(x.reshape(1, 2, 3))))


def attended(attention, x):
    rows = jnp.stack([x[:4], x[2:], x[1:5]])
    return jax.nn.softmax(rows + attention(rows, rows, rows), axis=-1)


def normalised(layer, x):
    return jax.vmap(eqx.nn.LayerNorm(4))(jax.vmap(layer)(jnp.stack([x[:4], x[2:]])))


MODELS = {
    "recurrent": Head(
        eqx.nn.GRUCell(2, 5, key=KEYS[2]), through_cell, eqx.nn.Linear(5, 3, key=KEYS[3])
    ),
    "pooling": Head(
        eqx.nn.Conv2d(1, 2, 2, padding=1, key=KEYS[2]), pooled, eqx.nn.Linear(12, 3, key=KEYS[3])
    ),
    "attention": Head(
        eqx.nn.MultiheadAttention(2, 4, key=KEYS[2]), attended, eqx.nn.Linear(12, 3, key=KEYS[3])
    ),
    "norm": Head(eqx.nn.Linear(4, 4, key=KEYS[2]), normalised, eqx.nn.Linear(8, 3, key=KEYS[3])),
}
X, Y = jax.random.normal(KEYS[4], (8, 6)), jnp.arange(8) % 3


@pytest.mark.parametrize("name", MODELS)
def test_slopes_tend_to_the_gradient_with_order_one(name):
    arrays, static = eqx.partition(MODELS[name], eqx.is_array)

    @quick_jit
    def distances(arrays, ratio):
        step = ProjectionDirection(optax.sgd(1.0), ratio=ratio)
        return gradient_agreement(step, eqx.combine(arrays, static), X, Y).distances

    far, near = (jnp.max(distances(arrays, ratio)) for ratio in (1e-4, 1e-5))
    assert float(near) < 0.01
    assert 0.9 < np.log10(float(far / near)) < 1.1  # the next order is smaller by the ratio


def test_a_recurrent_network_trains_and_its_update_has_derivatives():
    model = jax.tree.map(
        lambda leaf: leaf.astype(np.float32) if eqx.is_inexact_array(leaf) else leaf,
        MODELS["recurrent"],
    )
    x = jax.random.normal(KEYS[5], (64, 6), np.float32)
    data = x, (x[:, 0] + x[:, 4] > 0).astype(np.int32)
    step = ProjectionStep(move=Spectral(0.1))
    result = fit(model, step, data, data, epochs=15, batch_size=16)
    assert (
        result.history[-1]["validation_accuracy"] > 0.85 > result.history[0]["validation_accuracy"]
    )

    def moved(relaxation, precision):
        precisions = Precisions(10.0, 10.0, 10.0, precision, 10.0, 1.0)
        step = ProjectionStep(precisions=precisions, move=Relaxed(relaxation))
        model, loss = MODELS["recurrent"], CrossEntropy()
        new, _, _ = step.update(model, step.init(model), X, Y, jnp.ones(8), loss)
        return jnp.sum(CrossEntropy()(jax.vmap(new)(X), Y))

    back = quick_jit(jax.grad(moved, (0, 1)))(1.0, 5.0)
    value, h = quick_jit(moved), 1e-4
    for k, d in enumerate(((h, 0.0), (0.0, h))):
        finite = (value(1.0 + d[0], 5.0 + d[1]) - value(1.0 - d[0], 5.0 - d[1])) / (2 * h)
        np.testing.assert_allclose(back[k], finite, rtol=1e-4)  # h², and the descent's last digits
    assert abs(float(back[1])) > 1e-5


def test_schemes_with_copies_take_generic_constraints():
    step = ProjectionStep(DouglasRachford(), 2, Precisions(), "average", Relaxed())
    model = MODELS["recurrent"]
    said, stats = quick_jit(lambda: step.direction(model, X, Y, jnp.ones(8), CrossEntropy()))()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(said))
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(said.displacement))
    assert float(stats["certificate"]) > 0


def test_functions_of_parameters_alone_are_named():
    linear = eqx.nn.Linear(6, 3, key=KEYS[6])

    def of_parameters(layer, x):
        return jnp.sort(layer.bias) + layer(x)

    with pytest.raises(LiftError, match="makes a parameter from parameters"):
        trace_network(Head(linear, of_parameters, eqx.nn.Linear(3, 3, key=KEYS[7])), X)
