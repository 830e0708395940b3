"""After one backward sweep at a small ratio the messages' slopes are minus the gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.fitting._step import weighted_mean
from klprojax.lifting import LayeredNetwork, delta_lift, exp_output, layer_messages
from klprojax.training import CrossEntropy, SquaredError, projection_slopes

from .._networks import BATCH, CASES, build, labels, quick_jit

WEIGHTS = jnp.asarray([1.0, 1.0, 0.0, 1.0])


def slopes_of(name):
    """`ratio -> slopes` of a case, compiled, and the model's arrays."""
    model, x = build(name)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def slopes(ratio):
        return projection_slopes(model, x, labels(), WEIGHTS, CrossEntropy(), ratio=ratio)

    @quick_jit
    def loss(arrays):
        outputs = jax.vmap(eqx.combine(arrays, static))(x)
        return weighted_mean(CrossEntropy()(outputs, labels()), WEIGHTS)

    return quick_jit(slopes), loss, arrays


def relative(leaves, truth):
    """Largest error of any array, relative to the largest slope of all."""
    size = max(float(np.abs(t).max()) for t in truth)
    return (
        max(float(np.abs(np.asarray(a) - t).max()) for a, t in zip(leaves, truth, strict=True))
        / size
    )


# What others have too, and longest to compile.
SLOW = {"gated", "maximum with 0", "silu", "joined"}


# The derivative of quantise is zero, so only its last layer has a gradient.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)
def test_slopes_are_minus_the_gradient_up_to_the_ratio(name):
    slopes, loss, arrays = slopes_of(name)
    leaves, tree = jax.tree.flatten(arrays)
    rng = np.random.default_rng(5)
    found, value, _ = slopes(1e-5)
    np.testing.assert_allclose(value, loss(arrays), rtol=1e-13)
    got = jax.tree.leaves(found)
    # One random direction an array: a finite difference along it is the slope's inner product.
    h = 1e-5
    products = []
    for k, leaf in enumerate(leaves):
        d = rng.normal(size=leaf.shape)
        ends = [
            loss(jax.tree.unflatten(tree, [*leaves[:k], leaf + s * h * d, *leaves[k + 1 :]]))
            for s in (1, -1)
        ]
        products.append((float(np.sum(np.asarray(got[k]) * d)), float(ends[1] - ends[0]) / (2 * h)))
    mine, finite = map(np.array, zip(*products, strict=True))
    assert np.abs(finite).max() > 1e-3
    # The ratio times a constant of the network below 100, and eps/h of the differences.
    np.testing.assert_allclose(mine, finite, atol=1e-3 * np.abs(finite).max() + 1e-10)
    # The error falls in proportion to the ratio; against the limit, extrapolated.
    fine = jax.tree.leaves(slopes(1e-6)[0])
    finer = jax.tree.leaves(slopes(1e-7)[0])
    limit = [
        np.asarray(b) + (np.asarray(b) - np.asarray(a)) / 9
        for a, b in zip(fine, finer, strict=True)
    ]
    errors = [relative(jax.tree.leaves(slopes(r)[0]), limit) for r in (1e-3, 1e-4)]
    assert errors[0] < 0.2
    # Second order terms at 1e-3 are a few percent.
    assert 0.8 < np.log10(errors[0] / errors[1]) < 1.2


def test_slopes_of_a_multilayer_perceptron_are_those_of_the_layer_rules():
    model, x = build("deep")
    y = labels()
    got, _, _ = quick_jit(
        lambda: projection_slopes(model, x, y, jnp.ones(BATCH), CrossEntropy(), ratio=1e-6)
    )()

    def loss(outputs, target):
        return jax.nn.logsumexp(outputs) - outputs[target]

    network = LayeredNetwork.from_mlp(model)
    rules = quick_jit(lambda: layer_messages(network, x, loss, y, exp_output(-1.0)))()
    for layer, weight, bias in zip(got.layers, rules.weights, rules.biases, strict=True):
        assert bias is not None
        # O(ratio), the constant below 100.
        np.testing.assert_allclose(layer.weight * BATCH, -weight, rtol=0, atol=1e-4)
        np.testing.assert_allclose(layer.bias * BATCH, -bias, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "recurrent"])
def test_slopes_are_the_sensitivities_of_the_delta_lift(name):
    model, x = build(name)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def total(arrays):
        outputs = jax.vmap(eqx.combine(arrays, static))(x)
        return jnp.sum(SquaredError()(outputs, jnp.ones_like(outputs)))

    lifted = quick_jit(lambda a: delta_lift(total, a).sensitivities(exp_output(-1.0)).inputs)
    truth = [np.asarray(s) for s in jax.tree.leaves(lifted(arrays))]
    target = jnp.ones((BATCH, 2))
    got, _, _ = quick_jit(
        lambda: projection_slopes(model, x, target, jnp.ones(BATCH), SquaredError(), ratio=1e-6)
    )()
    assert relative([np.asarray(g) * BATCH for g in jax.tree.leaves(got)], truth) < 1e-4  # O(ratio)
