"""Codes and channels: structure, rank, evidence, what is refused."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax.codes import BinarySymmetricChannel, GaussianChannel, ParityCheckCode
from klprojax.graphs import ParityCheckMatrix, write_alist


@given(seed=st.integers(0, 10**6))
def test_dimension_counts_the_words(seed):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((rng.integers(0, 6), rng.integers(1, 8))) < 0.5).astype(np.uint8)
    code = ParityCheckCode(matrix)
    words = np.asarray(list(itertools.product((0, 1), repeat=code.num_variables))).T
    satisfying = ~code.syndrome(words).any(axis=0)
    np.testing.assert_array_equal(satisfying, ~((matrix.astype(int) @ words) % 2).any(axis=0))
    assert satisfying.sum() == 2**code.dimension
    assert code.rate == code.dimension / code.num_variables


def test_rank_across_words_of_64_bits():
    # a cycle of 130 pairs: one check is redundant
    matrix = np.zeros((130, 130), np.uint8)
    for i in range(130):
        matrix[i, [i, (i + 1) % 130]] = 1
    assert ParityCheckCode(matrix).dimension == 1


def test_regular_codes():
    code = ParityCheckCode.regular(30, 3, 5, seed=4)
    dense = code.checks.to_dense()
    assert dense.shape == (18, 30)
    assert (dense.sum(axis=0) == 3).all()
    assert (dense.sum(axis=1) == 5).all()
    assert code.dimension >= 30 - 18 + 2
    assert code.checks == ParityCheckCode.regular(30, 3, 5, seed=4).checks
    assert code.checks != ParityCheckCode.regular(30, 3, 5, seed=5).checks
    assert "30 variables, 18 checks" in repr(code)


def test_graph_groups_checks_by_size(tmp_path):
    matrix = ParityCheckMatrix(4, ((0, 1, 2), (3, 1), (), (2, 3)))
    write_alist(tmp_path / "code.alist", matrix)
    code = ParityCheckCode.from_alist(tmp_path / "code.alist")
    assert [g.shape for g in code.graph.signature.groups] == [(2, 2), (2, 2, 2)]
    assert code.graph.num_factors == 3
    assert code.num_checks == 4
    assert [t.shape for t in code.log_potentials] == [(2,), (1, 2)]


def test_evidence():
    (table,) = ParityCheckCode([[1, 1, 1]]).log_evidence(np.array([2.0, -3.0, np.inf]))
    np.testing.assert_array_equal(table[:, 0] - table[:, 1], [2.0, -3.0, np.inf])
    np.testing.assert_array_equal(jnp.max(table, axis=1), 0.0)


def test_binary_symmetric_channel():
    channel = BinarySymmetricChannel(0.2)
    bits = np.ones((100, 100), np.uint8)
    received = channel.transmit(np.random.default_rng(0), bits)
    # 10,000 bits: standard error 0.004
    assert abs((received == 0).mean() - 0.2) < 0.02
    got = channel.log_odds(np.array([0.0, 1.0], np.float32))
    assert got.dtype == jnp.float32
    # float32 rounding
    np.testing.assert_allclose(got, [math.log(4), -math.log(4)], rtol=1e-6)
    for flip, size in ((0.0, np.inf), (1.0, -np.inf), (0.5, 0.0)):
        odds = BinarySymmetricChannel(flip).log_odds(np.array([0.0, 1.0]))
        np.testing.assert_array_equal(odds, [size, -size])
    assert channel.label == "p = 0.2"
    assert channel.quality == 0.2


def test_gaussian_channel():
    channel = GaussianChannel(3.0, 0.5)
    # Es/N0 = Eb/N0 + 10 log10(rate) = -0.01 dB, and noise 1 / (2 Es/N0)
    assert math.isclose(channel.variance, 0.5 / 10 ** ((3.0 + 10 * math.log10(0.5)) / 10))
    received = channel.transmit(np.random.default_rng(0), np.array([[0] * 20000, [1] * 20000]))
    # 20,000 samples of unit size: standard error 0.005
    np.testing.assert_allclose(received.mean(axis=1), [1.0, -1.0], atol=0.03)
    np.testing.assert_allclose(received.var(axis=1), channel.variance, rtol=0.05)
    y = 0.7
    density = [-((y - x) ** 2) / (2 * channel.variance) for x in (1.0, -1.0)]
    got = channel.log_odds(np.array([y]))
    # float64 rounding
    np.testing.assert_allclose(got, [density[0] - density[1]], rtol=1e-12)
    assert channel.label == "Eb/N0 = 3 dB"
    assert channel.quality == 3.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ParityCheckCode(np.zeros((2, 0))), "at least one variable"),
        (lambda: ParityCheckCode([[1, 3]]), "a parity-check matrix has zeros and ones"),
        (lambda: ParityCheckCode.regular(10, 3, 4, 0), "10 variables and 4 bits a check"),
        (lambda: ParityCheckCode.regular(10, 0, 5, 0), "must be at least 1"),
        (lambda: ParityCheckCode([[1, 1]]).syndrome([1, 0, 1]), r"shape \(3,\); expected 2 bits"),
        (lambda: BinarySymmetricChannel(1.5), "flip is 1.5; a probability"),
        (lambda: GaussianChannel(math.inf, 0.5), "ebn0_db is inf; it must be finite"),
        (lambda: GaussianChannel(1.0, 0.0), r"rate is 0.0; it must be in \(0, 1\]"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
