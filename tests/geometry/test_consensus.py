"""Consensus: the diagonal face, and copies with Gaussian tables."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klprojax.geometry import (
    ConsensusFace,
    FixedPrecisionGaussian,
    GaussianConsensus,
    consensus_of_copies,
    i_projection,
    kl_divergence,
    log_normalize,
    right_projection,
)

from .._derivatives import check_derivatives

INF = np.inf
entries = st.one_of(st.just(-INF), st.floats(-5, 5))
PAIRS = ConsensusFace(((0, 2), (1, 3)))  # copies A, B, A, B


def diagonal_mask(shape):
    index = np.indices(shape)
    return (index[0] == index[2]) & (index[1] == index[3])


def random_member(rng, mask):
    return log_normalize(jnp.asarray(np.where(mask, rng.normal(scale=2, size=mask.shape), -INF)))


@given(table=hnp.arrays(np.float64, (2, 3, 2, 3), elements=entries), seed=st.integers(0, 2**32 - 1))
def test_projection_is_feasible_nearest_and_pythagorean(table, seed):
    table[0, 0, 0, 0] = 0.0  # some mass on the face
    log_q = log_normalize(jnp.asarray(table))
    result = i_projection(PAIRS, log_q)
    mask = diagonal_mask(table.shape)
    assert bool(result.converged)
    assert int(result.steps) == 0
    probs = np.exp(result.value)
    assert np.all(probs[~mask] == 0)
    assert probs.sum() == pytest.approx(1, abs=1e-14)  # six terms
    # Members have mass only where q has: elsewhere both sides are infinite.
    rng = np.random.default_rng(seed)
    nearest = float(kl_divergence(result.value, log_q))
    for _ in range(5):
        member = random_member(rng, mask & (table > -INF))
        distance = float(kl_divergence(member, log_q))
        assert distance >= nearest - 1e-12  # rounding of terms up to 20
        split = float(kl_divergence(member, result.value)) + nearest
        assert distance == pytest.approx(split, rel=1e-12, abs=1e-12)
    again = i_projection(PAIRS, result.value).value
    np.testing.assert_allclose(np.exp(again), probs, atol=1e-15)  # one more normalisation


def test_default_group_is_all_axes():
    q = np.random.default_rng(0).normal(size=(3, 3, 3))
    got = np.exp(ConsensusFace().left_projection(jnp.asarray(q)).value)
    diagonal = np.exp(np.einsum("iii->i", q))
    want = np.zeros((3, 3, 3))
    want[range(3), range(3), range(3)] = diagonal / diagonal.sum()
    np.testing.assert_allclose(got, want, rtol=1e-14)  # one exp, one sum of three


def test_scale_of_the_table_does_not_matter():
    q = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    a, b = (ConsensusFace().left_projection(t).value for t in (q, q + 100.0))
    np.testing.assert_allclose(jnp.exp(a), jnp.exp(b), rtol=1e-13)  # eps at 100 is 1.4e-14


@given(table=hnp.arrays(np.float64, (2, 3, 2, 3, 2), elements=entries))
def test_diagonal_and_embed_are_inverse(table):
    # Axis 4 is a variable with a single copy.
    diagonal = PAIRS.diagonal(jnp.asarray(table))
    assert diagonal.tolist() == np.einsum("ababc->abc", table).tolist()
    joint = np.asarray(PAIRS.embed(diagonal, 5))
    mask = np.broadcast_to(diagonal_mask((2, 3, 2, 3))[..., None], table.shape)
    assert joint.tolist() == np.where(mask, table, -INF).tolist()


def test_interleaved_groups_keep_the_first_copy():
    face = ConsensusFace(((3, 0), (2, 1)))
    table = np.random.default_rng(2).normal(size=(2, 3, 3, 2))
    assert face.diagonal(jnp.asarray(table)).tolist() == np.einsum("abba->ab", table).tolist()


@given(table=hnp.arrays(np.float64, (3, 4), elements=entries))
def test_independent_copies_need_no_joint_table(table):
    table[:, 0] = 0.0
    joint = jnp.asarray(table[0][:, None, None] + table[1][None, :, None] + table[2][None, None, :])
    face = ConsensusFace()
    want = face.diagonal(face.left_projection(joint).value)
    got = consensus_of_copies(jnp.asarray(table))
    np.testing.assert_allclose(np.exp(got), np.exp(want), rtol=1e-13, atol=1e-15)  # rounding


def test_no_mass_on_the_face():
    empty = jnp.array([[-jnp.inf, 0.0], [0.0, -jnp.inf]])
    result = i_projection(ConsensusFace(), empty, throw=False)
    assert not result.converged
    assert float(result.residual) == 1
    assert bool(jnp.isneginf(result.value).all())
    with pytest.raises(eqx.EquinoxRuntimeError, match="no mass on the consensus face"):
        i_projection(ConsensusFace(), empty)


def test_derivatives():
    q = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 2, 3))).at[0, 1, 0, 1].set(-jnp.inf)

    def probs(q):
        return jnp.exp(PAIRS.left_projection(q).value)

    # Central differences with step 1e-5: rounding over the step, 1e-11 times the size.
    check_derivatives(probs, (q,), tolerance=1e-8)
    check_derivatives(PAIRS.diagonal, (q.at[0, 1, 0, 1].set(0.0),), tolerance=1e-8)


def test_jit_vmap_and_float32():
    q = jnp.asarray(np.random.default_rng(4).normal(size=(5, 2, 3, 2, 3)))
    want = jnp.stack([PAIRS.left_projection(table).value for table in q])
    result = jax.jit(jax.vmap(PAIRS.left_projection))(q)
    np.testing.assert_allclose(result.value, want, rtol=1e-14)  # reordered sums of six
    assert bool(result.converged.all())
    single = PAIRS.left_projection(q[0].astype(jnp.float32))
    assert single.value.dtype == jnp.float32
    # float32 rounding of inputs up to 3 and of the sum.
    np.testing.assert_allclose(jnp.exp(single.value), jnp.exp(want[0]), rtol=2e-6)


def test_misuse_is_refused():
    q = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="Use the I-projection"):
        right_projection(ConsensusFace(), q)
    with pytest.raises(ValueError, match="same states"):
        ConsensusFace().left_projection(q)
    with pytest.raises(ValueError, match="disjoint"):
        ConsensusFace(((0, 1), (1, 2)))
    with pytest.raises(ValueError, match="disjoint"):
        ConsensusFace(((0, -1),))
    with pytest.raises(ValueError, match="one axis for each variable"):
        PAIRS.embed(jnp.zeros(2), 4)
    with pytest.raises(ValueError, match="Name only axes the table has"):
        PAIRS.left_projection(q)


vectors = hnp.arrays(np.float64, (3, 4), elements=st.floats(-5, 5))
precisions = hnp.arrays(np.float64, (3, 4), elements=st.floats(0.1, 10))


@given(means=vectors, weights=precisions, seed=st.integers(0, 2**32 - 1))
def test_gaussian_projection_is_feasible_nearest_and_pythagorean(means, weights, seed):
    face = GaussianConsensus(jnp.asarray(weights))
    means = jnp.asarray(means)
    result = i_projection(face, means)
    assert bool(result.converged)
    want = (weights * means).sum(0) / weights.sum(0)
    # Sums of three terms up to 50.
    np.testing.assert_allclose(result.value, np.broadcast_to(want, (3, 4)), atol=1e-13)
    f = FixedPrecisionGaussian(jnp.asarray(weights))
    rng = np.random.default_rng(seed)
    for _ in range(5):
        member = jnp.broadcast_to(jnp.asarray(rng.normal(size=(1, 4), scale=3)), (3, 4))
        nearest, distance = f.divergence(result.value, means), f.divergence(member, means)
        assert distance >= nearest - 1e-10  # rounding of terms up to 1e3
        split = f.divergence(member, result.value) + nearest
        assert float(distance) == pytest.approx(float(split), rel=1e-11, abs=1e-10)
    again = right_projection(face, result.value).value
    assert again.tolist() == result.value.tolist()


def test_gaussian_consensus_by_copy_and_with_silent_copies():
    means = jnp.array([[1.0, 5.0], [3.0, 7.0], [100.0, 100.0]])
    face = GaussianConsensus(jnp.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(face.mean(means), [2.5, 6.5], rtol=1e-15)  # exact but for a quotient
    nobody = GaussianConsensus(jnp.zeros(3))
    np.testing.assert_allclose(nobody.mean(means), jnp.mean(means, axis=0), rtol=1e-14)  # sum of 3
    slopes = jax.grad(lambda m, w: jnp.sum(GaussianConsensus(w).mean(m)), (0, 1))(
        means, jnp.zeros(3)
    )
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


def test_gaussian_consensus_derivatives_jit_vmap_float32():
    rng = np.random.default_rng(5)
    means, weights = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.uniform(1, 2, (3, 4)))

    def project(means, weights):
        return GaussianConsensus(weights).left_projection(means).value

    # Central differences with step 1e-5: rounding over the step, 1e-11 times the size.
    check_derivatives(project, (means, weights), tolerance=1e-8)
    batch = jnp.stack([means, 2 * means])
    np.testing.assert_allclose(
        jax.vmap(project, (0, None))(batch, weights)[1], project(2 * means, weights), rtol=1e-14
    )  # reordered sums of three
    single = project(means.astype(jnp.float32), weights.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, project(means, weights), atol=1e-6)  # float32 rounding


def test_gaussian_consensus_refuses_misfits_and_infinite_precision():
    with pytest.raises(ValueError, match="one precision for each copy"):
        GaussianConsensus(jnp.ones(2)).mean(jnp.ones((3, 4)))
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite"):
        GaussianConsensus(jnp.array([1.0, jnp.inf])).left_projection(jnp.array([1.0, 2.0]))


def test_gaussian_consensus_reports_its_generator():
    face = GaussianConsensus(jnp.array([2.0, 3.0]))
    assert float(face.generator.divergence(jnp.array([1.0, 1.0]), jnp.zeros(2))) == 2.5
