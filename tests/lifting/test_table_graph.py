"""A function as a factor graph: T_Proj's own derivative against the function's reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import Elimination, t_proj
from klprojax.lifting import LogOutput, delta_lift, exp_output


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def product(x):
    return jnp.sin(x[0] * x[1]) * x[1] + x[0]


def readout(tables, *arguments, phi):
    evidence = tables.evidence(*arguments)
    return tables.readout(t_proj(tables.graph, tables.log_potentials, evidence), phi)


def slopes(f, **options):
    """Its gradient, compiled."""
    return jax.jit(jax.grad(f, **options))


def worst(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    gap = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    return gap / max(float(jnp.max(jnp.abs(b))) for b in jax.tree.leaves(want))


def digit_loss(parameters, x, label):
    w1, b1, w2, b2 = parameters
    logits = jnp.tanh(x @ w1 + b1) @ w2 + b2
    return jax.nn.logsumexp(logits) - logits[label]


def digits_network(classes, hidden=8):
    """The first digit of the data set below so many classes, and a 64-h-k network."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    row = int(np.flatnonzero(data.target < classes)[3])
    parameters = (
        normal(1, 64, hidden) / 8,
        normal(2, hidden) / 4,
        normal(3, hidden, classes) / 2,
        normal(4, classes) / 4,
    )
    return parameters, jnp.asarray(data.data[row] / 16), int(data.target[row])


@pytest.mark.parametrize(
    ("classes", "hidden"), [(3, 4), pytest.param(10, 8, marks=pytest.mark.slow)]
)
def test_t_proj_backpropagates_a_digit_to_all_weights(classes, hidden):
    parameters, x, label = digits_network(classes, hidden)
    lift = delta_lift(lambda p: digit_loss(p, x, label), parameters)
    want = jax.tree.map(jnp.negative, jax.grad(digit_loss)(parameters, x, label))
    errors = []
    for spacing in (2e-4, 1e-4):
        tables = lift.table_graph(spacing)
        found = slopes(lambda p, t=tables: readout(t, p, phi=exp_output(-1.0)))(parameters)
        errors.append(worst(found, want))
    # The lattice of z reaches some hundred spacings, so the error is 1e4 h²: 1e-4 at the second.
    assert errors[1] < 1e-3
    # Second order; the next term is of relative size 1e4 h².
    assert 1.9 < np.log2(errors[0] / errors[1]) < 2.1


def test_weights_and_inputs_together():
    def f(x, w1, w2):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w1) @ w2) ** 2)

    arguments = normal(5, 3), normal(6, 3, 2), normal(7, 2, 2)
    lift = delta_lift(f, *arguments)
    want = jax.grad(f, argnums=(0, 1, 2))(*arguments)

    def error(spacing):
        tables = lift.table_graph(spacing)
        found = slopes(lambda *a: readout(tables, *a, phi=exp_output(1.0)), argnums=(0, 1, 2))
        return worst(found(*arguments), want)

    # Error h² times curvatures of order ten, and second order.
    coarse, fine = error(2e-3), error(1e-3)
    assert fine < 1e-4
    assert 1.9 < np.log2(coarse / fine) < 2.1


def test_a_network_too_wide_is_refused_by_its_width():
    w1, w2 = normal(8, 12, 12), normal(9, 12)
    x = normal(10, 12)
    lift = delta_lift(lambda x, w1, w2: jnp.tanh(x @ w1) @ w2, x, w1, w2)
    tables = lift.table_graph(1e-3)
    # Of concrete numbers a wider network fits.
    with pytest.raises(ValueError, match="entries over 16 variables"):
        jax.eval_shape(
            lambda evidence: t_proj(tables.graph, tables.log_potentials, evidence),
            tables.evidence(x, w1, w2),
        )


def test_only_some_arguments_as_variables():
    w, x = normal(11, 2), normal(12, 2)
    f = lambda w, x: jnp.tanh(w @ x) * w[0]  # noqa: E731
    lift = delta_lift(f, w, x)
    tables = lift.table_graph(1e-4, variables=(True, False))
    assert len(tables.inputs) == 2
    found = slopes(lambda w: readout(tables, w, x, phi=exp_output(1.0)))(w)
    # Error h² times curvatures of order ten.
    np.testing.assert_allclose(found, jax.grad(f)(w, x), rtol=1e-6)


def test_readout_goes_through_jit_vmap_and_jvp():
    x = jnp.asarray([0.4, 0.8])
    tables = delta_lift(product, x).table_graph(0.05)
    phi = LogOutput(lambda z: 0.5 * z)
    points = x[None] + 0.005 * normal(13, 3, 2)

    def f(x):
        return readout(tables, x, phi=phi)

    one_by_one = jnp.stack([*map(jax.jit(f), points[:2]), f(points[2])])
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(points), one_by_one, rtol=1e-12)
    slope = slopes(f)(x)
    _, along = jax.jit(lambda x, d: jax.jvp(f, (x,), (d,)))(x, jnp.asarray([1.0, -2.0]))
    np.testing.assert_allclose(along, slope[0] - 2 * slope[1], rtol=1e-12)


def test_evidence_has_the_arguments_as_means():
    x = jnp.asarray([0.4, 0.8])
    tables = delta_lift(product, x).table_graph(0.1)
    nodes = np.asarray(tables.inputs)
    moved = x + jnp.asarray([0.02, -0.03])
    probabilities = jnp.exp(tables.evidence(moved)[0][nodes])
    # Three products of numbers of order one.
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-14)
    means = (probabilities * tables.points[nodes]).sum(axis=1)
    np.testing.assert_allclose(means, moved, rtol=1e-14)


def test_mistakes_are_refused():
    x = jnp.asarray([0.4, 0.8])
    lift = delta_lift(product, x)
    with pytest.raises(ValueError, match="spacing must be positive"):
        lift.table_graph(0.0)
    tables = lift.table_graph(0.1)
    with pytest.raises(RuntimeError, match="half a lattice spacing or more away"):
        tables.evidence(x + 0.06)
    with pytest.raises(ValueError, match="positive and finite on the lattice of z"):
        tables.readout(tables.evidence(x), lambda z: z - 100.0)
    with pytest.raises(ValueError, match="structure"):
        tables.evidence(x, x)
    with pytest.raises(ValueError, match="names none of the lift's variables"):
        lift.table_graph(0.1, variables=(False,))
    constant = delta_lift(lambda x, y: jnp.sum(x) + 0.0 * jnp.sum(jax.lax.stop_gradient(y)), x, x)
    with pytest.raises(ValueError, match="does not depend on the chosen variables"):
        constant.table_graph(0.1, variables=(False, True))
    with pytest.raises(ValueError, match="concrete numbers"):
        jax.jit(lambda x: delta_lift(product, x).table_graph(0.1).points)(x)


def test_stacked_arrays_have_tables():
    def f(x):
        a, b = jnp.stack([x[0] * x[1], x[1]])
        return jnp.sum(jnp.tile(jnp.stack([a, b]), 2)) * a

    x = jnp.asarray([0.4, 0.8])
    tables = delta_lift(f, x).table_graph(1e-4)
    found = slopes(lambda x: readout(tables, x, phi=exp_output(1.0)))(x)
    # Error h² times curvatures of order ten.
    np.testing.assert_allclose(found, jax.grad(f)(x), rtol=1e-6)


def test_the_tables_of_single_precision():
    x = jnp.asarray([0.4, 0.8], jnp.float32)
    tables = delta_lift(product, x).table_graph(1e-2)
    assert tables.points.dtype == tables.log_potentials[0].dtype == jnp.float32
    found = slopes(lambda x: readout(tables, x, phi=exp_output(1.0)))(x)
    # Error 1e-4 from the spacing, rounding 6e-8 over the spacing.
    np.testing.assert_allclose(found, jax.grad(product)(x), rtol=1e-3)


def test_elimination_predicts_the_size_of_a_table_graph():
    parameters, x, label = digits_network(4)
    tables = delta_lift(lambda p: digit_loss(p, x, label), parameters).table_graph(1e-4)
    plan = Elimination().plan(tables.graph, tables.log_potentials)
    # Two thousand nodes of three states; the eight hidden units meet in one table.
    assert plan.largest <= 3**10
