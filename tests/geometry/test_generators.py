"""Generators: dual coordinates, conjugates, divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klprojax.geometry import (
    FixedPrecisionGaussian,
    NegativeEntropy,
    bregman_divergence,
    kl_divergence,
)

from .._derivatives import check_derivatives

PRECISION = jnp.array([0.5, 2.0, 3.0, 0.1, 1.0])
vectors = hnp.arrays(np.float64, 5, elements=st.floats(-4, 4))


def simplex(vector):
    weights = np.exp(vector)
    return jnp.asarray(weights / weights.sum())


GENERATORS = [
    pytest.param(NegativeEntropy(), simplex, id="entropy"),
    pytest.param(FixedPrecisionGaussian(PRECISION), jnp.asarray, id="gaussian"),
]


@pytest.mark.parametrize(("generator", "point_of"), GENERATORS)
@given(a=vectors)
def test_dual_coordinates_round_trip(generator, point_of, a):
    point = point_of(a)
    # exp of log, or a product and a quotient: a few eps; subnormals may be flushed to zero.
    np.testing.assert_allclose(
        generator.from_dual(generator.to_dual(point)), point, rtol=1e-14, atol=1e-300
    )


@pytest.mark.parametrize(("generator", "point_of"), GENERATORS)
@given(a=vectors)
def test_coordinate_maps_are_gradients(generator, point_of, a):
    point = point_of(a)
    dual = generator.to_dual(point)
    # Derivatives by JAX and by formula agree to rounding of terms up to 10.
    np.testing.assert_allclose(jax.grad(generator.value)(point), dual, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        jax.grad(generator.conjugate)(dual), generator.from_dual(dual), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(("generator", "point_of"), GENERATORS)
@given(a=vectors, b=vectors)
def test_divergence_is_the_dual_divergence_with_arguments_swapped(generator, point_of, a, b):
    r, q = point_of(a), point_of(b)
    dual_r, dual_q = generator.to_dual(r), generator.to_dual(q)
    divergence = float(generator.divergence(r, q))
    definition = float(bregman_divergence(generator.value, r, q))
    dual_definition = float(bregman_divergence(generator.conjugate, dual_q, dual_r))
    # The definitions cancel terms up to 100: a hundred eps and some.
    assert divergence == pytest.approx(definition, abs=1e-12)
    assert divergence == pytest.approx(dual_definition, abs=1e-12)
    assert divergence == pytest.approx(float(generator.dual_divergence(dual_q, dual_r)), abs=1e-12)
    assert divergence >= -1e-13  # likewise


@pytest.mark.parametrize(("generator", "point_of"), GENERATORS)
@given(a=vectors, seed=st.integers(0, 2**32 - 1))
def test_conjugate_is_the_supremum(generator, point_of, a, seed):
    # Random search never beats f*, and the search comes near it around the maximiser.
    dual = jnp.asarray(a)
    rng = np.random.default_rng(seed)
    best = generator.from_dual(dual)
    far = [point_of(rng.normal(scale=3, size=5)) for _ in range(20)]
    near = best + 1e-3 * (point_of(rng.normal(size=5)) - best)
    gains = [float(jnp.vdot(dual, p) - generator.value(p)) for p in [*far, near]]
    conjugate = float(generator.conjugate(dual))
    assert max(gains) <= conjugate + 1e-12  # rounding of terms up to 100
    # A displacement of 1e-3 (times up to 50 for a Gaussian of precision 0.1) costs a second-order
    # amount: at most 1e-6 * 50^2 * precision / 2 a coordinate.
    assert max(gains) >= conjugate - 2e-2
    assert float(jnp.vdot(dual, best) - generator.value(best)) == pytest.approx(
        conjugate, abs=1e-12
    )


def test_entropy_divergence_is_kl_and_the_constant_of_the_dual_is_free():
    r, q = simplex(np.arange(5.0)), simplex(np.array([1.0, 0.0, -1.0, 2.0, 0.5]))
    f = NegativeEntropy()
    # Rounding of five terms near one.
    assert float(f.divergence(r, q)) == pytest.approx(
        float(kl_divergence(jnp.log(r), jnp.log(q))), abs=1e-15
    )
    np.testing.assert_allclose(f.from_dual(f.to_dual(r) + 7.0), r, rtol=1e-14)


def test_entropy_divergence_of_unnormalised_points_is_bregman():
    r, q = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.5, 1.0, 3.0])
    f = NegativeEntropy()
    # Rounding of three terms near one.
    assert float(f.divergence(r, q)) == pytest.approx(
        float(bregman_divergence(f.value, r, q)), abs=1e-14
    )


def test_entropy_on_a_face():
    f = NegativeEntropy()
    p = jnp.array([0.25, 0.0, 0.75])
    q = jnp.array([0.5, 0.25, 0.25])
    assert f.to_dual(p)[1] == -jnp.inf
    assert f.from_dual(f.to_dual(p))[1] == 0
    # Sums of two terms near one.
    assert float(f.value(p)) == pytest.approx(0.25 * np.log(0.25) + 0.75 * np.log(0.75), abs=1e-15)
    assert float(f.divergence(p, q)) == pytest.approx(
        0.25 * np.log(0.5) + 0.75 * np.log(3), abs=1e-15
    )
    assert f.divergence(q, p) == jnp.inf
    for derivative in (jax.grad(f.value)(p), jax.grad(f.divergence)(p, q)):
        assert bool(jnp.isfinite(derivative).all())
        assert derivative[1] == 0
    assert not jnp.isnan(jax.jacrev(lambda p: f.from_dual(f.to_dual(p)))(p)).any()


@given(a=vectors, b=vectors)
def test_gaussian_divergence_is_weighted_squared_distance(a, b):
    got = FixedPrecisionGaussian(PRECISION).divergence(jnp.asarray(a), jnp.asarray(b))
    # Five squares up to 64, rounded.
    assert float(got) == pytest.approx(np.sum(np.asarray(PRECISION) * (a - b) ** 2) / 2, rel=1e-13)


def test_gaussian_divergence_is_kl_between_gaussians():
    # KL of N(r, 1/w) from N(q, 1/w), by quadrature.
    w, r, q = 2.0, 0.3, -0.4
    x = np.linspace(-8, 8, 4001)
    log_density = [-w / 2 * (x - m) ** 2 + np.log(w / (2 * np.pi)) / 2 for m in (r, q)]
    want = np.trapezoid(np.exp(log_density[0]) * (log_density[0] - log_density[1]), x)
    got = FixedPrecisionGaussian(jnp.array([w])).divergence(jnp.array([r]), jnp.array([q]))
    # The trapezoid rule on a Gaussian converges faster than any power of the step.
    assert float(got) == pytest.approx(want, rel=1e-10)


def test_gaussian_precision_broadcasts_or_is_refused():
    f = FixedPrecisionGaussian(jnp.array(2.0))
    assert float(f.value(jnp.array([[1.0, 2.0]]))) == 5.0
    with pytest.raises(ValueError, match="broadcasts to the point"):
        FixedPrecisionGaussian(jnp.ones(3)).value(jnp.ones(2))


@pytest.mark.parametrize(("generator", "point_of"), GENERATORS)
def test_derivatives_jit_and_float32(generator, point_of):
    rng = np.random.default_rng(1)
    r, q = point_of(rng.normal(size=5)), point_of(rng.normal(size=5))
    divergence = jax.jit(lambda r, q: generator.divergence(r, q))
    from_dual = jax.jit(lambda dual: generator.from_dual(dual))
    # Central differences with step 1e-5 of functions with third derivatives up to 1e3.
    check_derivatives(divergence, (r, q), tolerance=1e-6)
    check_derivatives(from_dual, (generator.to_dual(q),), tolerance=1e-6)
    want = generator.divergence(r, q)
    np.testing.assert_allclose(divergence(r, q), want, rtol=1e-13)  # reordered sums
    single = jax.tree.map(lambda x: x.astype(jnp.float32), generator)
    got = single.divergence(r.astype(jnp.float32), q.astype(jnp.float32))
    assert got.dtype == jnp.float32
    # float32 carries 1.2e-7 relative; five terms, inputs rounded too.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
