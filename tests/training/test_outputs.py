"""Output factors: losses, proximal steps, and what they do not take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from klprojax.training import (
    AbstractOutputFactor,
    CrossEntropy,
    FunctionLoss,
    Margin,
    SigmoidCrossEntropy,
    SquaredError,
)

LABELS = jnp.asarray([2, 0], jnp.int32)


def outputs(seed=0, rows=2, classes=3, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=(rows, classes)))


def quartic(outputs, targets):
    return jnp.sum(
        (outputs - targets) ** 4 + outputs**2 * jnp.sum(outputs**2, -1, keepdims=True), -1
    )


TARGETS = {
    "CrossEntropy": LABELS,
    "SquaredError": outputs(7),
    "Margin": LABELS,
    "SigmoidCrossEntropy": jnp.asarray([[0.0, 1.0, 1.0], [1.0, 0.0, 0.3]]),
    "FunctionLoss": outputs(7),
}
FACTORS = {
    "CrossEntropy": CrossEntropy(),
    "SquaredError": SquaredError(),
    "Margin": Margin(0.5),
    "SigmoidCrossEntropy": SigmoidCrossEntropy(),
    "FunctionLoss": FunctionLoss(quartic),
}
COMPILED = {name: jax.jit(factor.__call__) for name, factor in FACTORS.items()}
PROXIMAL = {name: jax.jit(factor.proximal) for name, factor in FACTORS.items()}


@pytest.mark.parametrize("name", FACTORS)
@given(
    seed=st.integers(0, 99), scale=st.sampled_from([0.1, 2.0]), omega=st.sampled_from([0.2, 3.0])
)
def test_the_proximal_step_minimises_the_objective_it_names(name, seed, scale, omega):
    targets, start, loss = TARGETS[name], outputs(seed, scale=scale), COMPILED[name]

    def objective(x):
        x = jnp.asarray(x).reshape(start.shape)
        near = omega / 2 * float(jnp.sum((x - start) ** 2))
        return near + float(jnp.sum(loss(x, targets)))

    found = PROXIMAL[name](start, targets, omega)
    best = objective(found)
    # Powell's method needs no derivative; it stops at changes of 1e-10.
    other = optimize.minimize(
        objective,
        np.asarray(start).reshape(-1),
        method="Powell",
        options={"xtol": 1e-5, "maxiter": 3},
    ).fun
    assert best <= other + 1e-12
    rng = np.random.default_rng(seed)
    for _ in range(10):
        assert best <= objective(found + 1e-3 * rng.normal(size=found.shape))


@pytest.mark.parametrize("omega", [0.2, 3.0])
@pytest.mark.parametrize("name", FACTORS)
def test_the_slope_is_the_message_and_the_gradient_at_the_proximal_point(name, omega):
    factor, targets, start = FACTORS[name], TARGETS[name], outputs(1, scale=2.0)
    found = factor.slope(start, targets, omega)
    assert float(jnp.abs(found).max()) > 0.01
    # A few roundings of numbers of size 1 and the proximal step's own.
    close = {"rtol": 0, "atol": 1e-13}
    message = AbstractOutputFactor.slope(factor, start, targets, omega)
    np.testing.assert_allclose(found, message, **close)
    nearest = factor.proximal(start, targets, omega)
    gradient = jax.grad(lambda x: jnp.sum(factor(x, targets)))(nearest)
    np.testing.assert_allclose(found, -gradient, **close)


def test_losses_are_the_closed_forms():
    x = outputs()
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    np.testing.assert_allclose(CrossEntropy()(x, LABELS), -np.log(p[[0, 1], LABELS]), rtol=1e-14)
    half = jnp.full((2, 3), 1 / 3)
    np.testing.assert_allclose(CrossEntropy()(x, half), -np.log(p).mean(-1), rtol=1e-14)
    y = outputs(3)
    np.testing.assert_allclose(SquaredError()(x, y), ((x - y) ** 2).sum(-1) / 2, rtol=1e-14)
    cube = jnp.stack([x, y])
    np.testing.assert_allclose(
        SquaredError()(cube, cube + 2.0), [12.0, 12.0], rtol=1e-14
    )  # 6 entries, 4/2 each
    row = jnp.asarray([[0.2, -1.0, 0.3], [2.0, 0.4, -3.0]])
    # Row 0 wants class 2 at 1: 0.7² + 0.2²; row 1 wants class 0 and has it: 0.4².
    np.testing.assert_allclose(Margin()(row, LABELS), [0.53 / 2, 0.16 / 2], rtol=1e-14)


def test_positions_before_the_classes_are_summed():
    x = outputs(1, 6).reshape(2, 3, 3)
    y = jnp.asarray([[0, 1, 2], [2, 2, 0]])
    flat = CrossEntropy()(x.reshape(6, 3), y.reshape(6))
    np.testing.assert_allclose(CrossEntropy()(x, y), flat.reshape(2, 3).sum(-1), rtol=1e-14)
    moved = CrossEntropy().proximal(x, y, 0.2)
    rows = CrossEntropy().proximal(x.reshape(6, 3), y.reshape(6), 0.2)
    np.testing.assert_allclose(moved.reshape(6, 3), rows, rtol=1e-14)


@given(seed=st.integers(0, 99), margin=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_margin_set_is_entered_at_its_nearest_point_and_not_left(seed, margin):
    factor, x = Margin(margin), outputs(seed, scale=3.0)
    near = np.asarray(factor.nearest(x, LABELS))
    for row, label in zip(near, np.asarray(LABELS), strict=True):
        assert row[label] >= margin
        assert np.all(np.delete(row, label) <= 0)
    np.testing.assert_array_equal(factor.nearest(jnp.asarray(near), LABELS), near)
    # Optimal for a convex set: (x - near)·(v - near) <= 0 for every v in it.
    rng = np.random.default_rng(seed)
    for _ in range(20):
        v = -rng.exponential(3.0, size=near.shape)
        v[[0, 1], np.asarray(LABELS)] = margin + rng.exponential(3.0, size=2)
        assert np.all(np.sum((np.asarray(x) - near) * (v - near), -1) <= 1e-12)  # rounding
    # As the precision falls the proximal step becomes the projection.
    np.testing.assert_allclose(factor.proximal(x, LABELS, 1e-9), near, atol=1e-7)
    np.testing.assert_array_equal(factor(jnp.asarray(near), LABELS), np.zeros(2))


@pytest.mark.parametrize("name", FACTORS)
def test_float32_stays_float32(name):
    x, targets = outputs().astype(jnp.float32), TARGETS[name]
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(jnp.float32)
    assert FACTORS[name](x, targets).dtype == jnp.float32
    assert FACTORS[name].proximal(x, targets, 0.3).dtype == jnp.float32


@pytest.mark.parametrize("name", FACTORS)
def test_derivatives_of_the_proximal_step(name):
    factor, targets, x, d = FACTORS[name], TARGETS[name], outputs(5), outputs(6)

    def move(h):
        return factor.proximal(x + h * d, targets, 0.3 + h)

    @jax.jit
    def all_ways(h):
        return jax.jacfwd(move)(0 * h), jax.jacrev(move)(0 * h), move(h), move(-h)

    h = 1e-6
    slope, reverse, *ends = all_ways(jnp.asarray(h))
    finite = (ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose(slope, finite, atol=1e-8)  # eps/h, and h²
    np.testing.assert_allclose(reverse, slope, atol=1e-12)


@pytest.mark.parametrize(
    ("factor", "targets", "message"),
    [
        (
            CrossEntropy(),
            jnp.zeros(2),
            r"CrossEntropy got targets of shape \(2,\) and type float64",
        ),
        (
            CrossEntropy(),
            jnp.zeros((2, 3), jnp.int32),
            r"expected class numbers \(2,\) \(integers\)",
        ),
        (CrossEntropy(), jnp.zeros((2, 4)), r"or distributions \(2, 3\)"),
        (SquaredError(), jnp.zeros((2, 1)), r"SquaredError got targets of shape \(2, 1\)"),
        (Margin(), jnp.zeros((2, 3)), r"Margin got targets of shape \(2, 3\) and type float64"),
        (SigmoidCrossEntropy(), jnp.zeros(2), r"SigmoidCrossEntropy got targets of shape \(2,\)"),
        (
            SigmoidCrossEntropy(),
            jnp.asarray([[0.0, 1.0, 0.5], [0.0, 2.0, 0.0]]),
            r"targets between 0 and 1, one for each label; row 1 holds \[0.0, 2.0, 0.0\]",
        ),
    ],
)
def test_targets_that_do_not_fit_are_errors(factor, targets, message):
    with pytest.raises(ValueError, match=message):
        factor(outputs(), targets)
    with pytest.raises(ValueError, match=message):
        factor.proximal(outputs(), targets, 1.0)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("factor", "targets", "message"),
    [
        (CrossEntropy(), [0, 3], r"class number 3 in row 1 of targets; for 3 output.s. .* 0 to 2"),
        (CrossEntropy(), [-1, 0], "CrossEntropy got the class number -1 in row 0"),
        (CrossEntropy(), [[0.5, 0.5, 0.0], [0.4, 0.4, 0.4]], r"row 1 has entries of sum 1.2\."),
        (CrossEntropy(), [[1.5, -0.5, 0.0], [1.0, 0.0, 0.0]], r"row 0 has the entry -0.5\."),
        (CrossEntropy(), [[np.nan, 0.5, 0.5], [1.0, 0.0, 0.0]], r"row 0 has the entry nan\."),
        (Margin(), [1, -2], "Margin got the class number -2 in row 1"),
    ],
)
def test_known_targets_are_checked_whatever_their_kind(factor, targets, message, kind):
    for use in (
        lambda: factor(outputs(), kind(targets)),
        lambda: factor.proximal(outputs(), kind(targets), 1.0),
        lambda: factor.slope(outputs(), kind(targets), 1.0),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("factor", [CrossEntropy(), Margin()])
def test_a_traced_number_that_is_no_class_has_probability_zero(factor):
    labels = jnp.asarray([2, 3, -1, 0])
    x = jnp.concatenate([outputs(), outputs()])

    def total(x):
        losses = jax.jit(factor)(x, labels)
        return jnp.sum(jnp.where(jnp.isfinite(losses), losses, 0)), losses

    slopes, losses = jax.grad(total, has_aux=True)(x)
    np.testing.assert_array_equal(np.isposinf(losses), [False, True, True, False])
    np.testing.assert_allclose(losses[::3], factor(x[::3], labels[::3]), rtol=1e-15)
    assert bool(jnp.isfinite(slopes).all())
    # Labels of a type that cannot hold the number of classes.
    small = jax.ShapeDtypeStruct((2,), jnp.uint8)
    assert jax.eval_shape(factor, jnp.zeros((2, 300)), small).shape == (2,)


def test_half_precision_rounds_its_distributions():
    targets = jnp.asarray([[0.3, 0.3, 0.4], [0.2, 0.7, 0.1]], jnp.bfloat16)
    assert float(jnp.sum(targets.astype(jnp.float32), 1).max()) > 1.0005
    CrossEntropy()(outputs().astype(jnp.bfloat16), targets)


def test_functions_have_the_proximal_steps_of_the_factors_that_they_are():
    x = outputs(2, scale=3.0)
    softmax = FunctionLoss(
        lambda x, y: jax.nn.logsumexp(x, -1) - jnp.take_along_axis(x, y[:, None], -1)[:, 0]
    )
    wanted = CrossEntropy().proximal(x, LABELS, 0.2)
    # Newton's last step is exact to rounding.
    np.testing.assert_allclose(softmax.proximal(x, LABELS, 0.2), wanted, atol=1e-13)
    np.testing.assert_array_equal(softmax(x, LABELS), softmax.function(x, LABELS))
    # Two derivatives but no convexity: the nearer of two minima, 4 (x - 1/2) + 4 x (x² - 1) = 0.
    double = FunctionLoss(lambda x, y: jnp.sum((x**2 - 1) ** 2, -1))
    near = double.proximal(jnp.asarray([[0.5]]), jnp.zeros((1, 1)), 4.0)
    np.testing.assert_allclose(near, [[0.5 ** (1 / 3)]], rtol=1e-13)


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_a_margin_is_positive(margin):
    with pytest.raises(ValueError, match="must be positive"):
        Margin(margin)
