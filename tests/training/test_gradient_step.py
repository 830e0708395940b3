"""The gradient step: closed forms, padding, optimisers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.fitting._step import weighted_mean
from klprojax.training import GradientStep, StepInfo

from ._runs import blobs, cross_entropy, network, squared, weights_of

update_of = eqx.filter_jit(lambda step, *args: step.update(*args))
# Sums of a few numbers near 1 in float64, in another order: a few units of rounding.
ROUNDING = 1e-13


def linear_problem(dtype=np.float64):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 3)).astype(dtype), rng.normal(size=(6, 2)).astype(dtype)
    return eqx.nn.Linear(3, 2, key=jax.random.key(0), dtype=dtype), x, y


def test_sgd_on_a_linear_model_is_the_closed_form():
    model, x, y = linear_problem()
    step = GradientStep(optax.sgd(0.1))
    new, _, info = step.update(
        model, step.init(model), jnp.asarray(x), jnp.asarray(y), jnp.ones(6), squared
    )
    error = x @ np.asarray(model.weight).T + np.asarray(model.bias) - y
    slope = error.T @ x / 6
    np.testing.assert_allclose(new.weight, model.weight - 0.1 * slope, rtol=ROUNDING)
    np.testing.assert_allclose(new.bias, model.bias - 0.1 * error.mean(0), rtol=ROUNDING)
    assert isinstance(info, StepInfo)
    np.testing.assert_allclose(info.loss, 0.5 * (error**2).sum(1).mean(), rtol=ROUNDING)
    np.testing.assert_allclose(info.stats["gradient_norm"], [np.linalg.norm(slope)], rtol=ROUNDING)
    np.testing.assert_allclose(
        info.stats["displacement_norm"], [0.1 * np.linalg.norm(slope)], rtol=ROUNDING
    )


def test_first_adam_update_moves_every_weight_by_the_rate():
    x, y = blobs()
    model, step = network(), GradientStep(optax.adam(1e-3))
    new, _, _ = update_of(
        step, model, step.init(model), jnp.asarray(x), jnp.asarray(y), jnp.ones(53), cross_entropy
    )
    moved = np.abs(weights_of(new) - weights_of(model))
    # m/sqrt(v) is the sign of the gradient up to adam's epsilon, 1e-8 beside slopes above 1e-4;
    # a dead unit does not move at all.
    np.testing.assert_allclose(moved[moved > 0], 1e-3, rtol=1e-4)
    assert (moved > 0).sum() > 0.7 * moved.size


def test_padding_does_not_count_whatever_it_holds():
    x, y = blobs(8)
    x, y = jnp.asarray(x), jnp.asarray(y)
    model, step = network(), GradientStep(optax.sgd(0.1))
    alone, _, info = update_of(step, model, step.init(model), x, y, jnp.ones(8), cross_entropy)
    padded, _, info_padded = update_of(
        step,
        model,
        step.init(model),
        jnp.concatenate([x, 1e3 * jnp.ones((3, 2))]),
        jnp.concatenate([y, jnp.zeros(3, y.dtype)]),
        jnp.r_[jnp.ones(8), jnp.zeros(3)],
        cross_entropy,
    )
    np.testing.assert_allclose(weights_of(padded), weights_of(alone), rtol=1e-12)
    np.testing.assert_allclose(info_padded.loss, info.loss, rtol=ROUNDING)


def test_weighted_mean_is_blind_to_infinite_padding_also_in_its_gradient():
    weights = jnp.asarray([1.0, 1.0, 0.0])
    value, slope = jax.value_and_grad(weighted_mean)(jnp.asarray([1.0, 4.0, np.inf]), weights)
    assert float(value) == 2.5
    np.testing.assert_array_equal(slope, [0.5, 0.5, 0.0])


def test_float32_stays_float32():
    model, x, y = linear_problem(np.float32)
    step = GradientStep(optax.adam(1e-2))
    new, state, info = step.update(
        model, step.init(model), jnp.asarray(x), jnp.asarray(y), jnp.ones(6, jnp.float32), squared
    )
    for leaf in jax.tree.leaves((eqx.filter(new, eqx.is_array), state, info)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_a_line_search_optimiser_works():
    model, x, y = linear_problem()
    step = GradientStep(optax.lbfgs())
    state, losses = step.init(model), []
    for _ in range(15):
        model, state, info = eqx.filter_jit(step.update)(
            model, state, jnp.asarray(x), jnp.asarray(y), jnp.ones(6), squared
        )
        losses.append(float(info.loss))
    design = np.c_[x, np.ones(6)]
    best = 0.5 * ((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).sum(1).mean()
    # L-BFGS on a convex quadratic of 8 unknowns converges in about as many steps.
    assert losses[-1] == pytest.approx(best, rel=1e-6)


def test_a_model_without_matrices_reports_by_array():
    class Scale(eqx.Module):
        factor: jax.Array

        def __call__(self, x):
            return self.factor * x

    step = GradientStep(optax.sgd(0.5))
    model = Scale(jnp.asarray([2.0]))
    new, _, info = step.update(
        model, step.init(model), jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.ones(2), squared
    )
    # loss 0.5 w^2, slope w
    np.testing.assert_array_equal(info.stats["gradient_norm"], [2.0])
    np.testing.assert_array_equal(new.factor, [1.0])
