"""Quadratic jets against `jax.hessian` where they are exact, and visibly not where they are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from klprojax.lifting import LiftError, LogOutput, delta_lift, exp_output


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def hessian_of_log(phi, f, x):
    return jax.jit(jax.hessian(lambda x: jnp.log(phi(f(x)))))(x)


def curvatures(phi, f, *args, **options):
    """Those of the arguments, compiled."""
    return jax.jit(lambda *args: delta_lift(f, *args).curvatures(phi, **options).inputs)(*args)


# Second derivatives in float64 along chains of at most ten factors: the rounding unit 2e-16 times
# the depth and the size of the entries, which are below 1e2.
EXACT = 1e-12

CURVED = LogOutput(lambda z: jnp.sin(z) - z**2)


def chain_of_scalars(x):
    return jnp.exp(jnp.sin(jnp.tanh(x) ** 3) / 2)


def chain_of_arrays(x):
    y = jnp.tanh(normal(1, 4, 3) @ x)
    return jnp.log1p(jnp.sum(jnp.sin(normal(2, 5, 4) @ y) ** 2))


def relu_chain(x):
    return jnp.sum(jax.nn.relu(normal(1, 4, 3) @ x) ** 3)


def scan_chain(x):
    def step(c, w):
        return jnp.tanh(w @ c), None

    return jnp.sum(lax.scan(step, x, normal(3, 4, 3, 3))[0] ** 2)


def cond_chain(x):
    return jnp.sum(lax.cond(x[0] > 0, jnp.sin, lambda x: x**3, x) ** 2)


@pytest.mark.parametrize("phi", [exp_output(-0.7), CURVED], ids=["exp", "curved"])
@pytest.mark.parametrize(
    ("f", "x"),
    [
        (chain_of_scalars, jnp.asarray(0.7)),
        (chain_of_arrays, normal(0, 3)),
        (relu_chain, normal(0, 3)),
        (scan_chain, normal(0, 3)),
        (cond_chain, normal(0, 3)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_full_curvature_is_the_hessian_on_a_chain(f, x, phi):
    got = curvatures(phi, f, x, kind="full")[0]
    np.testing.assert_allclose(got, hessian_of_log(phi, f, x), atol=EXACT, rtol=EXACT)


def test_full_curvature_is_exact_on_a_tree_of_arguments():
    def f(tree):
        left = jnp.sin(tree["a"]) * jnp.exp(tree["b"])
        return jnp.dot(left, jnp.tanh(tree["c"])) ** 2

    tree = {"a": normal(0, 3), "b": normal(1, 3), "c": normal(2, 3)}
    got = curvatures(CURVED, f, tree, kind="full")[0]
    for name, value in tree.items():
        alone = lambda x, name=name: f({**tree, name: x})  # noqa: E731
        np.testing.assert_allclose(
            got[name], hessian_of_log(CURVED, alone, value), atol=EXACT, rtol=EXACT
        )


def test_full_curvature_is_exact_at_fan_out_into_a_sum_of_losses():
    def f(x):
        return jnp.sum(jnp.sin(normal(1, 4, 3) @ x)) + jnp.sum(x**4)

    x, phi = normal(0, 3), exp_output(-1.3)
    got = curvatures(phi, f, x, kind="full")[0]
    np.testing.assert_allclose(got, hessian_of_log(phi, f, x), atol=EXACT, rtol=EXACT)


def test_full_curvature_leaves_out_the_coupling_of_messages_that_meet_in_a_product():
    def f(x):
        return jnp.sin(x) * jnp.exp(x)

    x, phi = jnp.asarray(0.7), exp_output(1.0)
    got = curvatures(phi, f, x, kind="full")[0]
    # The two messages clamp each other's argument: sin'' exp + sin exp'', without 2 sin' exp'.
    np.testing.assert_allclose(got, 0.0, atol=EXACT)
    coupling = 2 * jnp.cos(x) * jnp.exp(x)
    np.testing.assert_allclose(got + coupling, hessian_of_log(phi, f, x), rtol=EXACT)
    assert abs(coupling) > 1  # so the approximation is a visible one


def elementwise(x):
    return jnp.sum(jax.nn.softplus(jnp.sin(x) / 2))


@pytest.mark.parametrize("f", [elementwise, lambda x: jnp.sum(jnp.tanh(x[::-1]).reshape(2, 2))])
def test_diagonal_curvature_of_elementwise_functions_is_exact(f):
    x, phi = normal(0, 4), exp_output(-0.7)
    got = curvatures(phi, f, x)[0]
    expected = jnp.diagonal(hessian_of_log(phi, f, x))
    np.testing.assert_allclose(got, expected, atol=EXACT, rtol=EXACT)


def two_layers(params, x):
    w1, w2 = params
    return jnp.sum(jnp.cosh(jnp.tanh(x @ w1) @ w2))


def test_diagonal_curvature_is_exact_until_entries_with_full_curvature_mix():
    params, x, phi = (normal(0, 3, 4), normal(1, 4, 2)), normal(2, 5, 3), exp_output(-1.0)
    got = jax.tree.leaves(curvatures(phi, two_layers, params, x))
    leaves, treedef = jax.tree.flatten((params, x))
    gaps = []
    for position, leaf in enumerate(leaves):

        def alone(value, position=position):
            changed = [value if i == position else old for i, old in enumerate(leaves)]
            return -two_layers(*treedef.unflatten(changed))

        exact = jnp.einsum("ijij->ij", jax.jit(jax.hessian(alone))(leaf))
        gaps.append(float(jnp.max(jnp.abs(got[position] - exact)) / jnp.max(jnp.abs(exact))))
    # Each hidden unit reads its own column of w1, but x mixes hidden units, whose curvature is a
    # full matrix behind w2.
    assert gaps[0] < EXACT
    assert gaps[1] < EXACT
    assert 1e-3 < gaps[2] < 10


def test_diagonal_curvature_of_a_convolution_squares_the_other_argument():
    x, w = normal(0, 1, 2, 6), normal(1, 3, 2, 3)

    def f(x, w):
        return jnp.sum(lax.conv_general_dilated(x, w, (1,), "SAME") ** 4)

    phi = exp_output(-1.0)
    got = curvatures(phi, f, x, w)
    for argnum in (0, 1):
        exact = jax.jit(jax.hessian(lambda *a: -f(*a), argnum))(x, w)
        exact = exact.reshape(got[argnum].size, -1)
        np.testing.assert_allclose(
            got[argnum].reshape(-1), jnp.diagonal(exact), atol=EXACT, rtol=EXACT
        )


def test_diagonal_falls_back_to_a_dense_second_derivative():
    def f(x):
        return jnp.sum(jnp.sin(lax.cumprod(x)))

    x, phi = normal(0, 4), exp_output(1.0)
    got = curvatures(phi, f, x)[0]
    exact = jnp.diagonal(hessian_of_log(phi, f, x))
    np.testing.assert_allclose(got, exact, atol=EXACT, rtol=EXACT)


def test_gauss_newton_linearises_all_but_the_loss():
    w, x, y = normal(0, 3, 2), normal(1, 3), normal(2, 2)

    def network(w):
        return jnp.tanh(x @ w)

    def f(w):
        out = network(w)
        with jax.named_scope("loss"):
            return jnp.sum((out - y) ** 4)

    def in_loss(factor):
        return "loss" in factor.path

    phi = exp_output(-1.0)
    got = curvatures(phi, f, w, kind="full", curved=in_loss)[0].reshape(6, 6)
    jacobian = jax.jit(jax.jacobian(network))(w).reshape(2, 6)
    loss = jax.jit(jax.hessian(lambda out: -jnp.sum((out - y) ** 4)))(network(w))
    np.testing.assert_allclose(got, jacobian.T @ loss @ jacobian, atol=EXACT, rtol=EXACT)
    exact = curvatures(phi, f, w, kind="full")[0].reshape(6, 6)
    assert jnp.max(jnp.abs(got - exact)) > 1e-2  # the option changes the answer
    diagonal = curvatures(phi, f, w, curved=in_loss)[0]
    np.testing.assert_allclose(diagonal.reshape(-1), jnp.diagonal(got), atol=EXACT, rtol=EXACT)


def test_curvature_under_jit_and_by_equation():
    x, phi = normal(0, 3), CURVED

    @jax.jit
    def run(x):
        return delta_lift(chain_of_arrays, x).curvatures(phi, kind="full")

    got, eager = run(x), delta_lift(chain_of_arrays, x).curvatures(phi, kind="full")
    np.testing.assert_allclose(got["args[0]"], eager["args[0]"], rtol=EXACT, atol=EXACT)
    assert got[0].shape == (4, 4)
    last = delta_lift(chain_of_arrays, x).output
    np.testing.assert_allclose(got.output, -jnp.sin(last) - 2, rtol=EXACT)


def test_an_unused_input_has_no_curvature():
    got = delta_lift(lambda x, y: jnp.sum(x**2), normal(0, 2), normal(1, 3)).curvatures(CURVED)
    np.testing.assert_array_equal(got.inputs[1], jnp.zeros(3))


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind must be 'diagonal' or 'full', got 'block'"):
        delta_lift(jnp.sum, normal(0, 2)).curvatures(CURVED, kind="block")


def test_a_matrix_that_is_too_large():
    lift = delta_lift(lambda x: jnp.sum(x**2), jnp.ones(5000))
    with pytest.raises(LiftError, match=r"5000 x 5000 is too large; use kind='diagonal'"):
        lift.curvatures(exp_output(), kind="full")
    np.testing.assert_allclose(lift.curvatures(exp_output()).inputs[0], 2.0)


def test_a_rule_without_second_derivative():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    def backward(_, slope):
        return (jax.pure_callback(lambda s: 2 * s, slope, slope),)

    double.defvjp(lambda x: (2 * x, None), backward)
    with pytest.raises(LiftError, match=r"equation 0 \(custom_vjp_call\).*no second derivative"):
        delta_lift(lambda x: double(x) ** 2, jnp.asarray(1.0)).curvatures(exp_output())


def test_complex_variables_have_no_curvature():
    def f(x):
        return jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2)

    with pytest.raises(LiftError, match="curvature is defined for real variables only"):
        delta_lift(f, normal(0, 4)).curvatures(exp_output())
