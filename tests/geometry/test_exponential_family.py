"""Exponential families (right projection) and moment constraints (I-projection)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from klprojax.geometry import (
    ExponentialFamily,
    MomentConstraints,
    i_projection,
    kl_divergence,
    log_normalize,
    right_projection,
)

from .._derivatives import check_derivatives

INF = np.inf
SHAPE = (2, 3)


@eqx.filter_jit
def onto_family(statistic, log_base, table):
    return right_projection(ExponentialFamily(statistic, log_base), table, tolerance=1e-13)


@eqx.filter_jit
def onto_moments(statistic, moments, table):
    return i_projection(MomentConstraints(statistic, moments), table, tolerance=1e-13)


def problem(seed, zeros=0.2, statistics=2):
    rng = np.random.default_rng(seed)
    absent = rng.uniform(size=SHAPE) < zeros
    absent.flat[:3] = False  # three points: two moments can vary
    table = np.where(absent, -INF, rng.normal(size=SHAPE))
    return jnp.asarray(rng.normal(size=(*SHAPE, statistics))), jnp.asarray(table)


def moments(statistic, log_probs):
    return jnp.tensordot(jnp.exp(log_probs), statistic, axes=2)


@given(seed=st.integers(0, 2**32 - 1), uniform=st.booleans())
def test_right_projection_is_feasible_nearest_and_pythagorean(seed, uniform):
    statistic, table = problem(seed)
    log_q = log_normalize(table)
    rng = np.random.default_rng(seed)
    log_base = None if uniform else jnp.asarray(rng.normal(size=SHAPE))
    family = ExponentialFamily(statistic, log_base)
    result = onto_family(statistic, log_base, table)
    assert bool(result.converged)
    # A member of the family: that of its multipliers. Same formula, other rounding.
    np.testing.assert_allclose(result.value, family.log_probs(result.multipliers), atol=1e-12)
    # Moments to the residual times the range of the statistic (below 6).
    np.testing.assert_allclose(
        moments(statistic, result.value), moments(statistic, log_q), atol=1e-12
    )
    nearest = float(kl_divergence(log_q, result.value))
    for _ in range(5):
        member = family.log_probs(jnp.asarray(rng.normal(size=2)))
        distance = float(kl_divergence(log_q, member))
        assert distance >= nearest - 1e-11
        # Multipliers (up to a few tens) times the moment gap.
        split = nearest + float(kl_divergence(result.value, member))
        assert distance == pytest.approx(split, abs=1e-11)
    again = onto_family(statistic, log_base, result.value)
    np.testing.assert_allclose(jnp.exp(again.value), jnp.exp(result.value), atol=1e-11)


@given(seed=st.integers(0, 2**32 - 1))
def test_left_projection_is_feasible_nearest_and_pythagorean(seed):
    statistic, table = problem(seed)
    log_q = log_normalize(table)
    rng = np.random.default_rng(seed)
    absent = np.isneginf(table)
    witness = np.where(absent, -INF, rng.normal(size=SHAPE))
    target = jnp.asarray(moments(statistic, log_normalize(jnp.asarray(witness))))
    result = onto_moments(statistic, target, table)
    assert bool(result.converged)
    probs = np.asarray(jnp.exp(result.value))
    assert np.all(probs[absent] == 0)
    # The residual times the range of the statistic (below 6).
    np.testing.assert_allclose(moments(statistic, result.value), target, atol=1e-12)
    nearest = float(kl_divergence(result.value, log_q))
    conditions = np.concatenate([np.asarray(statistic)[~absent].T, np.ones((1, (~absent).sum()))])
    kernel = scipy.linalg.null_space(conditions)
    for _ in range(5 if kernel.shape[1] else 0):
        move = kernel @ rng.normal(size=kernel.shape[1])
        longest = np.min(probs[~absent][move < 0] / -move[move < 0])
        member = np.zeros(SHAPE)
        member[~absent] = probs[~absent] + rng.uniform(0.1, 0.9) * longest * move
        with np.errstate(divide="ignore"):
            log_r = jnp.asarray(np.log(member))
        distance = float(kl_divergence(log_r, log_q))
        assert distance >= nearest - 1e-11
        # Multipliers (up to a few tens) times the moment gap.
        split = float(kl_divergence(log_r, result.value)) + nearest
        assert distance == pytest.approx(split, abs=1e-11)
    again = onto_moments(statistic, target, result.value)
    assert int(again.steps) <= 1  # a step only if rounding left it above the tolerance
    np.testing.assert_allclose(jnp.exp(again.value), probs, atol=1e-11)


def test_the_two_projections_meet_in_one_point():
    # Onto the family through q of the moments of p, from either side.
    statistic, table = problem(0, zeros=0.0)
    other = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
    family = ExponentialFamily(statistic, table)
    right = onto_family(statistic, table, other)
    left = onto_moments(statistic, family.moments(other), table)
    # Both solve one problem, each to 1e-13.
    np.testing.assert_allclose(left.value, right.value, atol=1e-11)


def test_binomial_closed_form():
    # Counts of successes in four trials with base binomial coefficients: mean 1 means p = 1/4.
    statistic = jnp.arange(5.0)[:, None]
    log_base = jnp.log(jnp.array([1.0, 4.0, 6.0, 4.0, 1.0]))
    q = jnp.log(jnp.array([0.5, 0.0, 0.5, 0.0, 0.0]))
    result = onto_family(statistic, log_base, q)
    p = 0.25
    want = [w * p**k * (1 - p) ** (4 - k) for k, w in enumerate([1, 4, 6, 4, 1])]
    np.testing.assert_allclose(jnp.exp(result.value), want, atol=1e-12)  # the residual
    assert float(result.multipliers[0]) == pytest.approx(np.log(p / (1 - p)), abs=1e-12)


def test_units_of_the_statistic_do_not_matter():
    statistic, table = problem(2, zeros=0.0)
    units = jnp.array([1e8, 1e-6])
    a = onto_family(statistic, None, table)
    b = onto_family(statistic * units[None, None] + jnp.array([[[0.0, 3e-6]]]), None, table)
    # Shifting by 3e-6 in units of 1e-6 costs a digit.
    np.testing.assert_allclose(jnp.exp(a.value), jnp.exp(b.value), atol=1e-11)
    assert int(a.steps) == int(b.steps)


def test_dependent_statistics_are_allowed():
    statistic, table = problem(3, zeros=0.0)
    doubled = jnp.concatenate(
        [statistic, statistic.sum(-1, keepdims=True), jnp.full((*SHAPE, 1), 0.1)], -1
    )
    want = onto_family(statistic, None, table)
    got = onto_family(doubled, None, table)
    np.testing.assert_allclose(jnp.exp(got.value), jnp.exp(want.value), atol=1e-11)  # residual

    def probs(table):
        return jnp.exp(onto_family(doubled, None, table).value)

    # Central differences with step 1e-4, fixed point to 1e-13.
    check_grads(jax.jit(probs), (table,), order=1, rtol=1e-6, atol=1e-6)

    target = moments(doubled, log_normalize(table)).at[-1].set(np.nextafter(0.1, 1))

    def constant_multiplier(table):
        return onto_moments(doubled, target, table).multipliers[-1]

    # A constant statistic has no say, and its rounding is not amplified into one.
    assert not jax.jit(jax.grad(constant_multiplier))(table).any()


def test_hard_start_needs_the_safeguard():
    # From a base concentrated far from the target a full Newton step overshoots by e^30.
    statistic = jnp.arange(11.0)[:, None]
    base = jnp.where(jnp.arange(11) == 0, 0.0, -30.0)
    result = onto_moments(statistic, jnp.array([7.5]), base)
    assert bool(result.converged)
    assert float(
        moments(statistic[:, None], np.asarray(result.value)[:, None])[0]
    ) == pytest.approx(7.5, abs=1e-11)


def test_boundary_moments_are_approached():
    # Only the last state has the moment 2: no theta attains it, the limit does.
    result = right_projection(
        ExponentialFamily(jnp.arange(3.0)[:, None]), jnp.array([-jnp.inf, -jnp.inf, 0.0])
    )
    assert bool(result.converged)
    # The default tolerance, 4e-11, is relative to the range 2.
    np.testing.assert_allclose(jnp.exp(result.value), [0, 0, 1], atol=1e-10)


UNREACHABLE = [
    pytest.param(jnp.zeros(3), jnp.array([2.5]), id="outside the range"),
    pytest.param(jnp.array([0.0, 0.0, -jnp.inf]), jnp.array([1.5]), id="outside the support"),
    pytest.param(jnp.array([0.0, -jnp.inf, -jnp.inf]), jnp.array([1.0]), id="one state"),
    pytest.param(jnp.full(3, -jnp.inf), jnp.array([1.0]), id="no mass"),
]


@eqx.filter_jit
def onto_count_moment(target, table, throw):
    statistic = jnp.arange(3.0, dtype=table.dtype)[:, None]
    return i_projection(MomentConstraints(statistic, target), table, throw=throw)


@jax.jit
def slopes_of_count_projection(target, table):
    return jax.jacrev(lambda *x: jnp.exp(onto_count_moment(*x, False).value), (0, 1))(target, table)


@pytest.mark.parametrize(("table", "target"), UNREACHABLE)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_unreachable_moments_are_reported_and_never_nan(table, target, dtype):
    table, target = table.astype(dtype), target.astype(dtype)
    result = onto_count_moment(target, table, False)
    assert not result.converged
    assert float(result.residual) > 0.1  # a real gap, not rounding
    for leaf in jax.tree.leaves((result, slopes_of_count_projection(target, table))):
        assert not jnp.isnan(leaf).any()
    with pytest.raises(eqx.EquinoxRuntimeError, match="did not match the moments"):
        onto_count_moment(target, table, True)


def test_mass_outside_the_base_is_reported():
    statistic = jnp.array([[0.0], [1.0], [1.0]])
    family = ExponentialFamily(statistic, jnp.array([0.0, 0.0, -jnp.inf]))
    # The moments can be matched, but the divergence is infinite: q has mass 1/3 where b has none.
    result = right_projection(family, jnp.zeros(3), throw=False)
    assert not result.converged
    assert float(result.residual) == pytest.approx(1 / 3, rel=1e-12)  # one normalisation


def test_too_few_steps_are_reported():
    statistic, table = problem(4, zeros=0.0)
    result = right_projection(ExponentialFamily(statistic), 3 * table, max_steps=1, throw=False)
    assert not result.converged
    assert int(result.steps) == 1


def test_family_derivatives_match_finite_differences():
    statistic, table = problem(5, zeros=0.0)
    table = table.at[1, 2].set(-jnp.inf)
    base = jnp.asarray(np.random.default_rng(5).normal(size=SHAPE))

    def probs(statistic, base, table):
        return jnp.exp(onto_family(statistic, base, table).value)

    # Central differences with step 1e-4, fixed point to 1e-13.
    check_grads(jax.jit(probs), (statistic, base, table), order=1, rtol=1e-6, atol=1e-6)


def test_moment_derivatives_match_finite_differences_twice():
    statistic, table = problem(6, zeros=0.0)
    table = table.at[1, 2].set(-jnp.inf)
    target = jnp.mean(statistic, axis=(0, 1))
    weights = jnp.asarray(np.random.default_rng(6).normal(size=SHAPE))

    def total(target, table):
        result = onto_moments(statistic, target, table)
        return jnp.sum(weights * jnp.exp(result.value)) + jnp.sum(result.multipliers**2)

    # Central differences with step 1e-4, fixed point to 1e-13.
    check_derivatives(total, (target, table), step=1e-4, tolerance=1e-5, atol=1e-9)


def test_vmap_jit_and_float32():
    statistic, _ = problem(7)
    tables = jnp.asarray(np.random.default_rng(7).normal(size=(4, *SHAPE)))
    batch = jax.vmap(lambda table: onto_family(statistic, None, table))(tables)
    for k, table in enumerate(tables):
        single = onto_family(statistic, None, table)
        np.testing.assert_allclose(batch.value[k], single.value, atol=1e-11)  # residual
        assert int(batch.steps[k]) == int(single.steps)
    small = right_projection(
        ExponentialFamily(statistic.astype(jnp.float32)), tables[0].astype(jnp.float32)
    )
    assert small.value.dtype == small.multipliers.dtype == jnp.float32
    # The default float32 tolerance is 2.4e-5, moments to parameters costs a factor of a few.
    np.testing.assert_allclose(jnp.exp(small.value), jnp.exp(batch.value[0]), atol=2e-4)


def test_misuse_is_refused():
    statistic = jnp.zeros((2, 3, 1))
    with pytest.raises(ValueError, match="Use the right projection"):
        i_projection(ExponentialFamily(statistic), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="Use the I-projection"):
        right_projection(MomentConstraints(statistic, jnp.zeros(1)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="Got a base of shape"):
        ExponentialFamily(statistic, jnp.zeros(3))
    with pytest.raises(ValueError, match="Got moments of shape"):
        MomentConstraints(statistic, jnp.zeros(2))
    with pytest.raises(ValueError, match="Got a table of shape"):
        right_projection(ExponentialFamily(statistic), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="Got a table of shape"):
        i_projection(MomentConstraints(statistic, jnp.zeros(1)), jnp.zeros((3, 2)))


def test_a_statistic_far_from_zero_keeps_its_digits():
    # T = 1e5 + u: theta T has 1e5 times the size of what matters, and of its rounding.
    rng = np.random.default_rng(0)
    statistic = jnp.asarray(rng.uniform(size=(200, 2)) + 1e5, jnp.float32)
    exact = np.asarray(statistic, np.float64)
    weights = rng.dirichlet(np.ones(200))
    moments = jnp.asarray(weights @ exact, jnp.float32)
    table = jnp.asarray(3 * rng.normal(size=200), jnp.float32)
    result = MomentConstraints(statistic, moments).left_projection(table)
    probs = np.exp(np.asarray(result.value, np.float64))
    gap = (probs / probs.sum()) @ exact - np.asarray(moments, np.float64)
    # The default tolerance, of ranges just below 1.
    assert np.abs(gap).max() < 2.4e-5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_recognised_and_named(dtype):
    rng = np.random.default_rng(0)
    statistic = jnp.asarray(rng.uniform(size=(200, 2)), dtype)
    moments = jnp.asarray(rng.dirichlet(np.ones(200)), dtype) @ statistic
    table = jnp.asarray(3 * rng.normal(size=200), dtype)
    constraint = MomentConstraints(statistic, moments)
    result = constraint.left_projection(table, tolerance=0.0, throw=False)
    assert bool(result.limited_by_rounding)
    assert not result.converged
    assert int(result.steps) < 30  # 4 to converge, and a few more without progress
    assert float(result.residual) < 10 * float(jnp.finfo(dtype).eps)  # 200 terms of one range
    with pytest.raises(eqx.EquinoxRuntimeError, match="below what the floating type can reach"):
        constraint.left_projection(table, tolerance=0.0)
