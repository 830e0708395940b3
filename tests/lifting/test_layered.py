"""Corollary 3.4: layer rules against `jax.grad`, and the projections whose limit they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.lifting import (
    LayeredNetwork,
    exp_output,
    layer_messages,
    projection_messages,
)

messages_of = eqx.filter_jit(layer_messages)

# Six layers of at most 64 x 24 products and sums in float64.
EXACT = 1e-12


def square_loss(a, y):
    return jnp.sum((a - y) ** 2)


def cross_entropy(a, y):
    return -jnp.log(a[y])


def six_layers(activation=jnp.tanh, dtype=jnp.float64, **options):
    mlp = eqx.nn.MLP(7, 4, 24, 5, activation, key=jax.random.key(0), dtype=dtype, **options)
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(64, k)), dtype) for k in (7, 4))
    return mlp, x, y


def referee(network, x, loss, y, phi):
    """Slopes of all layers by `jax.grad` with respect to shifts of every u and a."""

    def log_output(shifts, parameters):
        weights, biases = parameters
        a_shifts, u_shifts = shifts
        a = x + a_shifts[0]
        for k, activation in enumerate(network.activations):
            u = a @ weights[k].T + u_shifts[k]
            u = u if biases[k] is None else u + biases[k][None]
            a = jax.vmap(activation)(u) + a_shifts[k + 1]
        return jnp.sum(jax.vmap(lambda a, y: jnp.log(phi(loss(a, y))))(a, y))

    us, activities = network.forward(x)
    shifts = (tuple(map(jnp.zeros_like, activities)), tuple(map(jnp.zeros_like, us)))
    parameters = (network.weights, network.biases)
    return jax.jit(jax.grad(log_output, argnums=(0, 1)))(shifts, parameters)


def assert_close(got, expected, tolerance=EXACT):
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(b))))


def assert_corollary_holds(messages, expected, tolerance=EXACT):
    (s_a, s_u), (weights, biases) = expected
    assert_close(messages.s_a, s_a, tolerance)
    assert_close(messages.s_u, s_u, tolerance)
    assert_close(messages.delta, jax.tree.map(jnp.negative, s_u), tolerance)
    assert_close(messages.weights, jax.tree.map(jnp.negative, weights), tolerance)
    assert_close(messages.biases, jax.tree.map(jnp.negative, biases), tolerance)


@pytest.mark.parametrize("phi", [exp_output(-1.0), lambda z: 1 / (1 + z)], ids=["exp", "rational"])
def test_layer_rules_on_six_layers_and_a_batch_of_64(phi):
    mlp, x, y = six_layers()
    network = LayeredNetwork.from_mlp(mlp)
    messages = messages_of(network, x, square_loss, y, phi)
    assert len(messages.s_u) == 6
    assert_corollary_holds(messages, referee(network, x, square_loss, y, phi))


def test_parameter_gradients_are_those_of_the_mlp():
    mlp, x, y = six_layers()

    def total(mlp):
        return jnp.sum(jax.vmap(square_loss)(jax.vmap(mlp)(x), y))

    grads = eqx.filter_jit(eqx.filter_grad(total))(mlp)
    messages = messages_of(LayeredNetwork.from_mlp(mlp), x, square_loss, y, exp_output(-1.0))
    assert_close(messages.weights, [layer.weight for layer in grads.layers])
    assert_close(messages.biases, [layer.bias for layer in grads.layers])
    np.testing.assert_allclose(jnp.sum(messages.z), total(mlp), rtol=EXACT)


@pytest.mark.parametrize("scan", [False, True])
def test_mlps_without_biases_with_learnt_activations_and_a_mixing_last_layer(scan):
    prelu = eqx.nn.PReLU(0.3)
    prelu = eqx.tree_at(lambda p: p.negative_slope, prelu, jnp.asarray(0.3))
    mlp, x, _ = six_layers(prelu, use_bias=False, use_final_bias=False, scan=scan)
    network = LayeredNetwork.from_mlp(mlp)
    np.testing.assert_allclose(network.forward(x)[1][-1], jax.vmap(mlp)(x), rtol=EXACT, atol=EXACT)
    network = eqx.tree_at(
        lambda n: n.activations, network, (*network.activations[:-1], jax.nn.softmax)
    )
    labels = jnp.arange(64) % 4
    phi = exp_output(-1.0)
    messages = messages_of(network, x, cross_entropy, labels, phi)
    assert messages.biases == (None,) * 6
    assert_corollary_holds(messages, referee(network, x, cross_entropy, labels, phi))
    np.testing.assert_allclose(network(x[0]), network.forward(x)[1][-1][0], rtol=EXACT)


def test_single_precision():
    mlp, x, y = six_layers(dtype=jnp.float32)
    network, phi = LayeredNetwork.from_mlp(mlp), exp_output(-1.0)
    messages = messages_of(network, x, square_loss, y, phi)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(messages))
    # Rounding unit 1e-7, six layers of sums over 24 to 64 terms.
    assert_corollary_holds(messages, referee(network, x, square_loss, y, phi), 1e-5)


def test_transposing_one_weight_is_noticed():
    mlp, x, y = six_layers()
    network, phi = LayeredNetwork.from_mlp(mlp), exp_output(-1.0)
    expected = referee(network, x, square_loss, y, phi)
    wrong = eqx.tree_at(lambda n: n.weights[2], network, network.weights[2].T)
    messages = messages_of(wrong, x, square_loss, y, phi)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_corollary_holds(messages, expected)


def test_an_output_factor_that_changes_sign_is_noticed():
    mlp, x, y = six_layers()
    network = LayeredNetwork.from_mlp(mlp)

    def run():
        return jax.block_until_ready(
            layer_messages(network, x, square_loss, y, lambda z: 5.0 - z).z
        )

    with pytest.raises(Exception, match="must be positive and finite"):
        run()


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.softplus])
def test_projections_tend_to_the_layer_rules_at_first_order(activation):
    mlp, x, y = six_layers(activation)
    network, phi = LayeredNetwork.from_mlp(mlp), exp_output(-1.0)
    exact = messages_of(network, x, square_loss, y, phi)
    run = eqx.filter_jit(projection_messages)
    ratios = 10.0 ** -np.arange(3, 7)
    errors = []
    for ratio in ratios:
        got = run(network, x, square_loss, y, phi, precision_ratio=jnp.asarray(ratio))
        pairs = [
            (got.s_u, exact.s_u),
            (got.s_a[:-1], exact.s_a[:-1]),
            (got.weights, exact.weights),
            (got.biases, exact.biases),
        ]
        errors.append(
            [
                float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                for left, right in pairs
                for a, b in zip(left, right, strict=True)
            ]
        )
    orders = np.polyfit(np.log(ratios), np.log(np.asarray(errors)), 1)[0]
    # Second-order terms are of relative size ratio/order <= 5e-2 at the largest ratio.
    assert np.all(np.abs(orders - 1) < 0.05), orders
    assert np.max(errors[-1]) < 1e-3


def test_shapes_that_do_not_fit():
    w = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="layer 1 takes 2 inputs, but layer 0 gives 3 outputs"):
        LayeredNetwork((w, w), (None, None), (jnp.tanh, jnp.tanh))
    with pytest.raises(ValueError, match="one weight, one bias"):
        LayeredNetwork((w,), (None, None), (jnp.tanh,))
    mlp = eqx.nn.MLP("scalar", 1, 4, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no layer vectors; use size 1"):
        LayeredNetwork.from_mlp(mlp)
