"""Arithmetic of log-tables: values, derivatives, zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klprojax.geometry import (
    finite_part,
    kl_divergence,
    log_marginal,
    log_normalize,
    safe_log,
    safe_logsumexp,
)
from klprojax.geometry._log_table import default_tolerance

from .._derivatives import check_derivatives

INF = np.inf
entries = st.one_of(st.just(-INF), st.floats(-50, 50))
tables = hnp.arrays(np.float64, (3, 2, 4), elements=entries)
AXES = [None, 0, -1, (0, 2), (1,), ()]


@given(table=tables)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", [False, True])
def test_safe_logsumexp_matches_scipy(table, axis, keepdims):
    got = safe_logsumexp(jnp.asarray(table), axis=axis, keepdims=keepdims)
    # scipy reads axis=() as a full reduction, where numpy reduces nothing.
    want = table if axis == () else scipy.special.logsumexp(table, axis=axis, keepdims=keepdims)
    assert got.shape == np.shape(want)
    # Up to 24 terms, each rounded to about 2e-16 relative to values up to 50.
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)


def test_safe_logsumexp_does_not_overflow_or_underflow():
    table = jnp.array([[1e4, 1e4], [-1e4, -1e4]])
    # Relative rounding of the value 1e4.
    np.testing.assert_allclose(
        safe_logsumexp(table, axis=1), [1e4 + np.log(2), -1e4 + np.log(2)], rtol=1e-15
    )


def test_safe_logsumexp_of_no_entries_is_log_zero():
    assert safe_logsumexp(jnp.zeros((0, 2)), axis=0).tolist() == [-INF, -INF]


def test_safe_logsumexp_keeps_nan_visible():
    assert bool(jnp.isnan(safe_logsumexp(jnp.array([jnp.nan, 0.0]))))


def test_safe_logsumexp_keeps_float32():
    table = jnp.array([0.5, -jnp.inf, 1.5], jnp.float32)
    got = safe_logsumexp(table)
    assert got.dtype == jnp.float32
    # A few units in the last place of float32 (1.2e-7).
    np.testing.assert_allclose(got, np.log(np.exp(0.5) + np.exp(1.5)), rtol=5e-7)


@given(table=tables)
def test_derivative_is_softmax_and_zero_on_empty_slices(table):
    got = jax.grad(lambda x: jnp.sum(jnp.exp(-0.1 * safe_logsumexp(x, axis=(0, 2)) ** 2)))(
        jnp.asarray(table)
    )
    log_sum = scipy.special.logsumexp(table, axis=(0, 2))
    outer = np.where(
        np.isneginf(log_sum),
        0,
        np.exp(-0.1 * log_sum**2) * -0.2 * np.where(log_sum > -INF, log_sum, 0),
    )
    softmax = np.exp(table - np.where(np.isneginf(log_sum), 0, log_sum)[None, :, None])
    # Rounding in exp of arguments up to 100: about 100 eps.
    np.testing.assert_allclose(got, outer[None, :, None] * softmax, rtol=1e-12, atol=1e-13)


def test_second_derivatives_with_zeros():
    table = jnp.array([[0.3, -jnp.inf, -1.0], [-jnp.inf, -jnp.inf, -jnp.inf]])
    # The Hessian of logsumexp is diag(p) - p p^T; an empty slice gives zero.
    p = np.zeros(6)
    p[[0, 2]] = scipy.special.softmax([0.3, -1.0])
    want = np.diag(p) - np.outer(p, p)

    def total(x):
        return jnp.sum(jnp.where(jnp.isneginf(y := safe_logsumexp(x, axis=1)), 0.0, y))

    for hessian in (
        jax.hessian(total),
        jax.jacrev(jax.jacrev(total)),
        jax.jacfwd(jax.jacfwd(total)),
    ):
        # A handful of roundings of numbers at most one.
        np.testing.assert_allclose(hessian(table).reshape(6, 6), want, atol=1e-15)


def test_directional_derivative_through_an_empty_slice_is_zero():
    table = jnp.full((2, 3), -jnp.inf)
    value, slope = jax.jvp(lambda x: safe_logsumexp(x, axis=1), (table,), (jnp.ones((2, 3)),))
    assert value.tolist() == [-INF, -INF]
    assert slope.tolist() == [0.0, 0.0]


@given(table=tables)
def test_log_normalize_sums_to_one_or_stays_empty(table):
    got = np.exp(log_normalize(jnp.asarray(table), axis=(0, 2))).sum(axis=(0, 2))
    want = (table > -INF).any(axis=(0, 2)).astype(float)
    # exp and log of values up to 50, summed over 12 entries.
    np.testing.assert_allclose(got, want, atol=1e-13)


def test_log_normalize_derivatives_with_zeros():
    table = jnp.array([0.3, -jnp.inf, -1.0, 2.0])
    # Central differences with step 1e-5: rounding over the step, 1e-11 times the size.
    check_derivatives(lambda x: jnp.exp(log_normalize(x)), (table,), tolerance=1e-8)
    empty = jnp.full(3, -jnp.inf)
    assert not jnp.isnan(jax.jacrev(log_normalize)(empty)).any()
    assert not jnp.isnan(jax.jacfwd(log_normalize)(empty)).any()


@given(r=tables, q=tables)
def test_kl_divergence_matches_the_sum(r, q):
    r[0, 0, 0] = q[0, 0, 0] = 0.0  # something to normalise
    log_r, log_q = log_normalize(jnp.asarray(r)), log_normalize(jnp.asarray(q))
    want = scipy.special.rel_entr(np.exp(log_r), np.exp(log_q)).sum()
    got = float(kl_divergence(log_r, log_q))
    if np.any((r > -INF) & (q == -INF)):
        assert got == INF
    elif np.exp(log_q)[r > -INF].min() > 0:
        # rel_entr takes logs of exponentials: relative error of a few eps on values up to 100.
        assert got == pytest.approx(want, rel=1e-11, abs=1e-12)
    assert got >= -1e-12  # the same rounding


def test_kl_divergence_over_some_axes():
    log_r = log_normalize(jnp.array([[0.0, 1.0], [2.0, -1.0]]), axis=1)
    log_q = log_normalize(jnp.array([[1.0, 1.0], [0.0, -jnp.inf]]), axis=1)
    got = kl_divergence(log_r, log_q, axis=1)
    assert got[1] == INF
    # One subtraction and one sum of numbers near one.
    assert float(got[0]) == pytest.approx(float(kl_divergence(log_r[0], log_q[0])), abs=1e-15)


def test_kl_divergence_derivatives_with_zeros():
    log_r = log_normalize(jnp.array([0.3, -jnp.inf, -1.0, -jnp.inf]))
    log_q = log_normalize(jnp.array([0.1, 0.2, 1.0, -jnp.inf]))
    # Central differences with step 1e-5: rounding over the step, 1e-11 times the size.
    check_derivatives(kl_divergence, (log_r, log_q), tolerance=1e-8)
    for argument in (0, 1):
        slopes = jax.grad(kl_divergence, argument)(log_q, log_r)  # the divergence is infinite
        assert bool(jnp.isfinite(slopes).all())


@given(table=tables)
@pytest.mark.parametrize("axes", [(0,), (2, 0), (-1, 1), (1, 2, 0), ()])
def test_log_marginal_keeps_axes_in_order(table, axes):
    letters = "abc"
    kept = "".join(letters[axis] for axis in axes)
    want = np.einsum(f"abc->{kept}", np.exp(table))
    # 24 terms, each exact to a few eps.
    np.testing.assert_allclose(np.exp(log_marginal(jnp.asarray(table), axes)), want, rtol=1e-12)


def test_log_marginal_accepts_one_axis():
    table = jnp.arange(6.0).reshape(2, 3)
    assert log_marginal(table, 1).shape == (3,)


def test_log_marginal_refuses_bad_axes():
    table = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="Name only axes the table has"):
        log_marginal(table, (2,))
    with pytest.raises(ValueError, match="name each axis once"):
        log_marginal(table, (0, -2))


def test_jit_and_vmap_agree_with_eager():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2))).at[1].set(-jnp.inf)
    eager = jnp.stack([safe_logsumexp(row) for row in table])
    # Fusion may reorder six additions.
    np.testing.assert_allclose(jax.jit(jax.vmap(safe_logsumexp))(table), eager, rtol=1e-14)


def test_default_tolerance_follows_the_dtype():
    assert default_tolerance(jnp.dtype("float64")) == pytest.approx(3.7e-11, rel=0.01)
    assert default_tolerance(jnp.dtype("float32")) == pytest.approx(2.4e-5, rel=0.02)


def test_logarithms_of_zero_have_derivative_zero():
    p = jnp.array([0.0, 0.5, -1e-20])
    np.testing.assert_array_equal(safe_log(p), [-np.inf, np.log(0.5), -np.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(safe_log))(p), [0.0, 2.0, 0.0])
    log_p = jnp.array([-jnp.inf, -2.0])
    np.testing.assert_array_equal(finite_part(log_p), [0.0, -2.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(finite_part))(log_p), [0.0, 1.0])
    assert np.isnan(safe_log(jnp.array(jnp.nan)))
    assert np.isnan(finite_part(jnp.array(jnp.nan)))
