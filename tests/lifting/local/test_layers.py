"""Local projections onto the graphs of one layer: optimality, limits, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax.lifting.local import project_activation, project_linear, project_linear_parameters

seeds = st.integers(0, 2**32 - 1)


def problem(seed, outputs, inputs, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    shapes = ((outputs, inputs), (outputs,), (inputs,), (outputs,))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@given(seeds, st.sampled_from([(3, 5), (5, 3)]), st.floats(0.01, 100), st.booleans())
def test_linear_projection_is_the_weighted_nearest_point(seed, shape, ratio, biased):
    weight, bias, a, u = problem(seed, *shape)
    bias = bias if biased else None
    got = project_linear(weight, bias, a, u, input_precision=2.0, output_precision=2 * ratio)
    shift = 0 if bias is None else bias
    # The same problem as a least-squares problem in a alone, by another routine.
    stacked = np.concatenate([np.eye(shape[1]), np.sqrt(ratio) * weight])
    target = np.concatenate([a, np.sqrt(ratio) * (u - shift)])
    expected = np.linalg.lstsq(stacked, target)[0]
    # Conditioning up to 100 * |W|^2 < 1e4 costs four of sixteen digits.
    np.testing.assert_allclose(got.a, expected, atol=1e-11)
    np.testing.assert_allclose(got.u, weight @ got.a + shift, atol=1e-12)
    np.testing.assert_allclose(got.slope_a, 2 * (got.a - a), atol=1e-11)
    np.testing.assert_allclose(got.slope_u, 2 * ratio * (u - got.u), atol=1e-9)
    np.testing.assert_allclose(got.slope_a, weight.T @ got.slope_u, atol=1e-9)


def objective(weight, bias, a, u, point, precisions):
    omega_w, omega_a, omega_u = precisions
    total = omega_w * jnp.sum((point.weight - weight) ** 2) + omega_a * jnp.sum((point.a - a) ** 2)
    if bias is not None:
        total += omega_w * jnp.sum((point.bias - bias) ** 2)
    return (total + omega_u * jnp.sum((point.u - u) ** 2)) / 2


@given(seeds, st.sampled_from([(3, 5), (5, 3)]), st.floats(0.05, 20), st.booleans())
def test_parameter_projection_is_a_stationary_point_of_the_constrained_problem(
    seed, shape, omega_u, biased
):
    weight, bias, a, u = problem(seed, *shape)
    bias = bias if biased else None
    precisions = (1.5, 0.7, omega_u)
    run = partial(
        project_linear_parameters,
        parameter_precision=1.5,
        input_precision=0.7,
        output_precision=omega_u,
    )
    got = run(weight, bias, a, u)
    assert got.residual < 1e-8  # Newton's method to rounding, sums of terms up to 1e4
    affine = got.weight @ got.a + (0 if bias is None else got.bias)
    np.testing.assert_allclose(got.u, affine, atol=1e-12)
    # Lagrange conditions of the full problem, written in the readouts.
    np.testing.assert_allclose(got.slope_weight, jnp.outer(got.slope_u, got.a), atol=1e-9)
    np.testing.assert_allclose(got.slope_a, got.weight.T @ got.slope_u, atol=1e-9)
    np.testing.assert_allclose(got.slope_weight, 1.5 * (got.weight - weight), atol=1e-9)
    np.testing.assert_allclose(got.slope_u, omega_u * (u - got.u), atol=1e-9)
    # Descent from a: no worse than the best point with a held fixed, nor than W held fixed.
    value = objective(weight, bias, a, u, got, precisions)
    held = project_linear(weight, bias, a, u, input_precision=0.7, output_precision=omega_u)
    start = u - weight @ a - (0 if bias is None else bias)
    spread = 1 / omega_u + (a @ a + float(biased)) / 1.5
    assert value <= (start @ start) / spread / 2 + 1e-9
    fixed = 0.7 * jnp.sum((held.a - a) ** 2) + omega_u * jnp.sum((held.u - u) ** 2)
    assert value <= fixed / 2 + 1e-9


def test_parameter_projection_is_a_local_minimum():
    weight, bias, a, u = problem(3, 3, 4)
    got = project_linear_parameters(weight, bias, a, u)
    precisions = (1.0, 1.0, 1.0)
    best = objective(weight, bias, a, u, got, precisions)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            moved = got._replace(
                weight=got.weight + scale * rng.normal(size=(3, 4)),
                bias=got.bias + scale * rng.normal(size=3),
                a=got.a + scale * rng.normal(size=4),
            )
            moved = moved._replace(u=moved.weight @ moved.a + moved.bias)
            assert objective(weight, bias, a, u, moved, precisions) > best


def test_far_targets_do_not_upset_the_solve():
    weight, bias, a, u = problem(5, 4, 3)
    for scale in (1e1, 1e3, 1e6):
        got = project_linear_parameters(weight, bias, a, scale * u, max_steps=200)
        for leaf in got:
            assert np.all(np.isfinite(leaf))
        # Rounding relative to the size of the problem.
        assert got.residual < 1e-9 * scale
        np.testing.assert_allclose(
            got.u, got.weight @ got.a + got.bias, rtol=1e-9, atol=1e-9 * scale
        )


@pytest.mark.parametrize("biased", [True, False])
def test_readouts_tend_to_the_layer_rules_at_first_order(biased):
    weight, bias, a, slope = problem(7, 5, 4)
    bias = bias if biased else None
    u = weight @ a + (0 if bias is None else bias)
    ratios = 10.0 ** -np.arange(2, 7)
    errors = []
    for ratio in ratios:
        stiff = 1 / ratio
        free = project_linear_parameters(
            weight, bias, a, u + slope, parameter_precision=stiff, input_precision=stiff
        )
        fixed = project_linear(weight, bias, a, u + slope, input_precision=stiff)
        pairs = [
            (free.slope_a, weight.T @ slope),
            (free.slope_weight, jnp.outer(slope, a)),
            (fixed.slope_a, weight.T @ slope),
            (free.slope_u, slope),
            (fixed.slope_u, slope),
        ]
        if biased:
            pairs.append((free.slope_bias, slope))
        errors.append([float(jnp.linalg.norm(p - q) / jnp.linalg.norm(q)) for p, q in pairs])
    orders = np.polyfit(np.log(ratios), np.log(np.asarray(errors)), 1)[0]
    # Curvature of the error is of relative size |W|^2 ratio <= 0.3 at the largest of five ratios.
    assert np.all(np.abs(orders - 1) < 0.1), orders


ACTIVATIONS = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "identity": lambda u: u,
    "sine": jnp.sin,
}


def cost(activation, x, u, a, omega_u, omega_a):
    return (omega_u * (x - u) ** 2 + omega_a * (activation(x) - a) ** 2) / 2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_projection_beats_a_fine_grid_nearby(name):
    activation = ACTIVATIONS[name]
    rng = np.random.default_rng(11)
    u, a = jnp.asarray(rng.normal(size=40)), jnp.asarray(2 * rng.normal(size=40))
    omega_u, omega_a = 1.3, 0.8
    got = project_activation(activation, u, a, input_precision=omega_u, output_precision=omega_a)
    np.testing.assert_allclose(got.a, activation(got.u), atol=1e-15)
    np.testing.assert_allclose(got.slope_u, omega_u * (got.u - u), atol=1e-14)
    np.testing.assert_allclose(got.slope_a, omega_a * (a - got.a), atol=1e-14)
    found = cost(activation, got.u, u, a, omega_u, omega_a)
    assert np.all(found <= cost(activation, u, u, a, omega_u, omega_a))
    # Everywhere for the monotone functions with one minimum; nearby for the others.
    width = 6.0 if name in ("relu", "identity", "tanh") else 0.3
    grid = got.u[None] + jnp.linspace(-width, width, 4001)[:, None]
    values = cost(activation, grid, u[None], a[None], omega_u, omega_a)
    # The quadratic bowl is resolved to 1e-12 of a cost of order one.
    assert np.all(found <= np.min(values, axis=0) + 1e-12)


@given(seeds, st.floats(0.01, 1e4))
def test_activation_projection_is_stationary_and_bracketed(seed, ratio):
    rng = np.random.default_rng(seed)
    u, a = jnp.asarray(rng.normal(size=6)), jnp.asarray(3 * rng.normal(size=6))
    got = project_activation(jnp.tanh, u, a, output_precision=ratio)
    slope = 1 - jnp.tanh(got.u) ** 2
    # Balance of the two tables, relative to their size.
    np.testing.assert_allclose(got.slope_u, slope * got.slope_a, atol=1e-12 * (1 + ratio))
    assert np.all(np.abs(got.u - u) <= np.sqrt(ratio) * np.abs(jnp.tanh(u) - a) * (1 + 1e-12))


def test_activation_readout_tends_to_the_layer_rule_at_first_order():
    rng = np.random.default_rng(2)
    u, slope = jnp.asarray(rng.normal(size=9)), jnp.asarray(rng.normal(size=9))
    ratios = 10.0 ** -np.arange(2, 7)
    expected = (1 - jnp.tanh(u) ** 2) * slope
    errors = [
        float(
            jnp.linalg.norm(
                project_activation(
                    jnp.tanh, u, jnp.tanh(u) + slope, input_precision=1 / ratio
                ).slope_u
                - expected
            )
        )
        for ratio in ratios
    ]
    order = np.polyfit(np.log(ratios), np.log(errors), 1)[0]
    assert abs(order - 1) < 0.05


def test_derivatives_of_the_projections():
    weight, bias, a, u = problem(13, 3, 4)

    def linear(weight, bias, a, u):
        return jnp.sum(jnp.sin(project_linear(weight, bias, a, u).a))

    def parameters(weight, bias, a, u):
        return jnp.sum(jnp.sin(project_linear_parameters(weight, bias, a, u).weight))

    def activation(weight, bias, a, u):
        del weight, bias
        return jnp.sum(project_activation(jnp.tanh, a[:3], u).slope_u ** 2)

    for f in (linear, parameters, activation):
        grads = jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(weight, bias, a, u)
        direction = problem(14, 3, 4)
        along = sum(jnp.vdot(g, d) for g, d in zip(grads, direction, strict=True))
        h = 1e-5
        plus = f(*(p + h * d for p, d in zip((weight, bias, a, u), direction, strict=True)))
        minus = f(*(p - h * d for p, d in zip((weight, bias, a, u), direction, strict=True)))
        # Central difference: h^2 times a third derivative of order 1e2, and 1e-16/h of rounding.
        np.testing.assert_allclose(along, (plus - minus) / (2 * h), rtol=1e-6, atol=1e-8)


def test_vmap_and_single_precision():
    weight, bias, _, _ = problem(17, 3, 4, jnp.float32)
    rng = np.random.default_rng(1)
    a, u = (jnp.asarray(rng.normal(size=(8, k)), jnp.float32) for k in (4, 3))
    batch = jax.vmap(partial(project_linear_parameters, weight, bias))(a, u)
    for leaf in batch:
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))
    single = project_linear_parameters(weight, bias, a[2], u[2])
    # Newton stops within a rounding unit (1e-7) of the same point, entries of order one.
    np.testing.assert_allclose(batch.a[2], single.a, atol=1e-5)
    unit = jax.vmap(partial(project_activation, jnp.tanh))(u, u + 1)
    assert unit.u.dtype == jnp.float32
