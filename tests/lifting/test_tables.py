"""The table realisation: second-order convergence to the gradients, without any derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from klprojax.lifting import LiftError, LogOutput, delta_lift, exp_output, table_sensitivities
from klprojax.operators._messages import by_group


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def gradient(f, *args):
    return jax.jit(jax.grad(f, argnums=tuple(range(len(args)))))(*args)


def relative_error(slopes, expected):
    slopes, expected = jax.tree.leaves(slopes), jax.tree.leaves(expected)
    scale = max(float(jnp.max(jnp.abs(b))) for b in expected)
    return (
        max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(slopes, expected, strict=True)) / scale
    )


def scalar_fan_out(x):
    y = jnp.sin(x) * x
    return y * jnp.exp(y) + x / (y + 2)


def repeated_arguments(x, y):
    z = x * x + jnp.sqrt(1 + x * y * x)
    return jnp.sum(z * z + z / (x + 3.0)) + jnp.prod(jnp.cos(y))


def attention(q, k, v):
    weights = jax.nn.softmax(q @ k.T, axis=-1)
    out = weights @ v + q
    return jnp.sum(jnp.tanh(out) ** 2)


def recurrent(w, xs):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, jnp.sum(h**2)

    h, energy = lax.scan(step, jnp.zeros(3), xs, reverse=True)
    return jnp.sum(h) + jnp.sum(energy)


def digits():
    """A 2-layer network with cross-entropy on two real digits; about two thousand scalars."""
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    x, y = jnp.asarray(data.data[:2] / 16), jnp.asarray(data.target[:2])

    def f(params):
        w1, b1, w2, b2 = params
        logits = jnp.tanh(x @ w1 + b1[None]) @ w2 + b2[None]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(2), y])

    params = (normal(1, 64, 4) / 8, normal(2, 4) / 4, normal(3, 4, 10) / 4, normal(4, 10) / 4)
    return f, (params,)


FUNCTIONS = {
    "scalar": lambda: (scalar_fan_out, (jnp.asarray(0.7),)),
    "repeated": lambda: (repeated_arguments, (normal(0, 3), normal(1, 3))),
    "attention": lambda: (
        attention,
        (normal(2, 3, 2) / 3, normal(3, 4, 2) / 3, normal(4, 4, 2) / 3),
    ),
    "recurrent": lambda: (recurrent, (normal(5, 3, 3) / 2, normal(6, 4, 3))),
    "digits": digits,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_converge_at_second_order_over_four_decades(name):
    f, args = FUNCTIONS[name]()
    lift, expected = delta_lift(f, *args), gradient(f, *args)
    expected = jax.tree.map(jnp.negative, expected)
    spacings = 10.0 ** -np.arange(0.5, 5.0)
    errors = [
        relative_error(
            table_sensitivities(lift, exp_output(-1.0), spacing=float(h)).inputs, expected
        )
        for h in spacings
    ]
    order = np.polyfit(np.log(spacings), np.log(errors), 1)[0]
    # Second order; at the largest spacing higher orders still show, at the smallest rounding does.
    assert 1.9 < order < 2.1, (order, errors)
    # The constant is a product of curvatures along the graph, of order one to ten here; rounding
    # of log-messages, 1e-16 each, is divided by 2 h = 6e-5.
    assert errors[-1] < 1e-7


def test_any_output_factor():
    f, args = FUNCTIONS["repeated"]()
    z = f(*args)
    lift = delta_lift(f, *args)
    for phi, c in [
        (lambda z: 1 + z**2, 2 * z / (1 + z**2)),
        (LogOutput(lambda z: -(z**2)), -2 * z),
        (exp_output(900.0), 900.0),  # exp(900 z) is beyond the range of floats
    ]:
        got = table_sensitivities(lift, phi, spacing=1e-4).inputs
        expected = jax.tree.map(lambda g, c=c: c * g, gradient(f, *args))
        # h^2 = 1e-8 times curvatures; the steepest factor has phi''/phi = 900^2 = 1e6.
        assert relative_error(got, expected) < (1e-1 if isinstance(c, float) else 1e-6)


def test_no_derivative_is_taken(monkeypatch):
    f, args = FUNCTIONS["attention"]()
    expected = gradient(f, *args)

    def forbidden(*_, **__):
        raise AssertionError("a derivative was asked for")

    for name in (
        "vjp",
        "jvp",
        "grad",
        "value_and_grad",
        "linearize",
        "jacfwd",
        "jacrev",
        "hessian",
    ):
        monkeypatch.setattr(jax, name, forbidden)
    got = table_sensitivities(delta_lift(f, *args), exp_output(1.0), spacing=1e-4)
    assert relative_error(got.inputs, expected) < 1e-6  # h^2 = 1e-8 times curvatures
    with pytest.raises(AssertionError, match="a derivative was asked for"):
        delta_lift(f, *args).sensitivities(lambda z: jnp.exp(z))


def test_belief_propagation_collapses_upward_messages_to_dirac_masses():
    f, args = FUNCTIONS["attention"]()
    got = table_sensitivities(delta_lift(f, *args), exp_output(1.0), spacing=1e-3)
    graph, solution = got.graph, got.solution
    (beliefs,) = solution.log_beliefs
    dirac = np.array([-np.inf, 0.0, -np.inf])
    # One point carries all the mass; its log-probability is 0 up to rounding.
    np.testing.assert_allclose(beliefs, np.tile(dirac, (len(beliefs), 1)), atol=1e-12)
    assert graph.num_variables == len(got.slopes) == len(got.spacings)
    assert int(solution.steps) == 2 * got.depth + 2
    # It has settled: another flood changes nothing but the last digit.
    assert float(solution.residual) < 1e-14


def test_slopes_of_inner_nodes_are_jets_too():
    def f(x):
        return jnp.exp(jnp.sin(x) * 2)

    x = jnp.asarray(0.4)
    lift = delta_lift(f, x)
    tables = table_sensitivities(lift, exp_output(1.0), spacing=1e-4)
    jets = lift.sensitivities(exp_output(1.0))
    expected = [jets.inputs[0], *(jets[k] for k in range(3))]
    np.testing.assert_allclose(tables.slopes, expected, rtol=1e-6)  # h^2 = 1e-8 times curvatures


def test_data_movement_and_constants():
    def f(x, y):
        z = jnp.concatenate([x[::-1], jnp.zeros(1), y]).reshape(2, 3)
        z = jnp.pad(z.T, ((1, 0), (0, 1)), constant_values=0.5)
        z = z.at[0, 1].set(x[0]) * jnp.where(jnp.arange(3.0) > 1, 0.0, 2.0)[None]
        z = z + jnp.broadcast_to(z[1:2], z.shape)
        return jnp.sum(z**3) + jnp.max(x) * jnp.min(y) + jnp.sum(x[jnp.asarray([1, 1, 0])] * y[0])

    args = (jnp.asarray([0.5, -0.3]), jnp.asarray([0.9, 0.1, -0.7]))
    got = table_sensitivities(delta_lift(f, *args), exp_output(1.0), spacing=1e-4).inputs
    assert relative_error(got, gradient(f, *args)) < 1e-5  # h^2 = 1e-8 times cubes' curvatures


def test_control_flow_and_custom_rules():
    @jax.custom_vjp
    def grow(x):
        return lax.while_loop(lambda y: y < 5, lambda y: y * 1.5 + x, jnp.cos(x))

    # A rule that is wrong on purpose: tables evaluate the function and never ask for it.
    grow.defvjp(lambda x: (grow(x), None), lambda _, s: (100 * s,))

    def f(x):
        y = lax.cond(x > 0, grow, jnp.exp, x)
        return jax.nn.relu(jnp.sin(y) + 2) * lax.stop_gradient(x) + jax.checkpoint(jnp.tanh)(x)

    def plain(x):
        y = jnp.cos(x)
        for _ in range(3):
            y = y * 1.5 + x
        return (jnp.sin(y) + 2) * lax.stop_gradient(x) + jnp.tanh(x)

    x = jnp.asarray(0.4)
    np.testing.assert_allclose(f(x), plain(x), rtol=1e-15)
    lift = delta_lift(f, x)
    got = table_sensitivities(lift, exp_output(1.0), spacing=1e-4).inputs[0]
    np.testing.assert_allclose(got, jax.grad(plain)(x), rtol=1e-6)  # h^2 = 1e-8 times curvatures
    assert abs(lift.sensitivities(exp_output(1.0)).inputs[0] - got) > 1.0


def test_clamped_arguments_and_float32():
    def f(table, index):
        return jnp.sum(table[index] ** 2)

    table = jnp.asarray([0.5, 1.5, -2.0], jnp.float32)
    lift = delta_lift(f, table, jnp.asarray([1, 2]), variables=(True, False))
    got = table_sensitivities(lift, exp_output(1.0), spacing=1e-2).inputs
    assert got[1] is None
    assert got[0].dtype == jnp.float32
    # ψ is evaluated in float32: rounding 1e-7 over the spacing 1e-2, besides h^2 = 1e-4.
    np.testing.assert_allclose(got[0], [0.0, 3.0, -4.0], atol=2e-3)


def test_an_output_that_does_not_move():
    got = table_sensitivities(delta_lift(lambda x: 0.0 * x + 1, jnp.asarray(2.0)), exp_output())
    np.testing.assert_array_equal(got.inputs[0], 0.0)
    got = table_sensitivities(delta_lift(lambda x: jnp.asarray(3.0), jnp.ones(2)), exp_output())
    np.testing.assert_array_equal(got.inputs[0], np.zeros(2))
    got = table_sensitivities(delta_lift(lambda x: x, jnp.asarray(2.0)), exp_output(0.5))
    np.testing.assert_allclose(got.inputs[0], 0.5, rtol=1e-12)  # rounding 1e-16 over h = 1e-3


def test_dropping_a_message_at_a_fan_out_is_noticed():
    f, args = FUNCTIONS["repeated"]()
    got = table_sensitivities(delta_lift(f, *args), exp_output(1.0), spacing=1e-4)
    expected = gradient(f, *args)
    assert relative_error(got.inputs, expected) < 1e-6
    # Take one downward message into the first input away again.
    messages = by_group(got.graph, got.solution.state.messages)
    for family, axes in zip(got.graph.group_scopes, messages, strict=True):
        hits = np.argwhere(family[:, 1:] == 0)
        if len(hits):
            row, axis = hits[0]
            message = np.asarray(axes[axis + 1][row])
            break
    spacing = float(got.spacings[0])
    dropped = got.slopes[0] - (message[2] - message[0]) / (2 * spacing)
    assert abs(dropped - expected[0][0]) > 1e-2 * abs(expected[0][0])


def test_errors():
    lift = delta_lift(scalar_fan_out, jnp.asarray(0.7))
    with pytest.raises(ValueError, match=r"not finite within the spacing 0\.5"):
        table_sensitivities(delta_lift(jnp.log, jnp.asarray(0.2)), exp_output(), spacing=0.5)
    with pytest.raises(ValueError, match="spacing must be positive, got -1"):
        table_sensitivities(lift, exp_output(), spacing=-1.0)
    with pytest.raises(ValueError, match="positive and finite on the lattice"):
        table_sensitivities(lift, lambda z: z - lift.output)
    with pytest.raises(ValueError, match="positive and finite on the lattice"):
        table_sensitivities(lift, LogOutput(lambda z: jnp.log(z - 1e9)))
    sorting = delta_lift(lambda x: jnp.sort(x)[0], jnp.ones(3))
    with pytest.raises(LiftError, match=r"equation 0 \(sort\): the primitive has no elementary"):
        table_sensitivities(sorting, exp_output())

    def inside(x):
        return table_sensitivities(delta_lift(scalar_fan_out, x), exp_output()).inputs[0]

    with pytest.raises(ValueError, match="call it outside jit"):
        jax.jit(inside)(jnp.asarray(0.7))
