"""The decoder is the package's belief propagation, word by word; and its word-error rates."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import BeliefPropagation, infer
from klprojax.codes import (
    BinarySymmetricChannel,
    GaussianChannel,
    ParityCheckCode,
    _decode,
    _engine,
    decode,
    plot_word_error_curve,
    word_error_curve,
)


def irregular():
    """Checks of 1, 2, 3 and 12 bits (one above the unrolled size), a bit in no check."""
    rng = np.random.default_rng(0)
    matrix = np.zeros((9, 16), np.uint8)
    for row, size in zip(matrix, (1, 2, 3, 3, 3, 4, 4, 5, 12), strict=True):
        row[rng.choice(15, size, replace=False)] = 1
    return ParityCheckCode(matrix)


CODES = {
    "regular": lambda: ParityCheckCode.regular(24, 3, 6, seed=1),
    "irregular": irregular,
    "one long check": lambda: ParityCheckCode(np.ones((1, 70), np.uint8)),
}


def beliefs(code, log_odds, steps, semiring):
    """Log-odds of the beliefs of `infer`, word by word."""

    @jax.jit  # one compilation for all words
    def log_beliefs(log_potentials, log_evidence):
        return infer(
            code.graph,
            log_potentials,
            BeliefPropagation(semiring=semiring, tolerance=0.0),
            log_evidence=log_evidence,
            max_steps=steps,
            throw=False,
        ).log_beliefs

    log_potentials = tuple(t.astype(log_odds.dtype) for t in code.log_potentials)
    for word in log_odds.T:
        (table,) = log_beliefs(log_potentials, code.log_evidence(word))
        yield np.asarray(table[:, 0] - table[:, 1])


@pytest.mark.parametrize(
    ("name", "semiring", "dtype", "atol", "steps"),
    [
        ("regular", "sum", np.float64, 1e-12, 1),
        ("regular", "sum", np.float64, 1e-12, 3),
        ("irregular", "sum", np.float64, 1e-12, 3),
        ("one long check", "sum", np.float64, 1e-12, 3),
        ("irregular", "max", np.float64, 1e-12, 3),
        ("regular", "sum", np.float32, 1e-5, 3),
    ],
)
def test_iterates_are_those_of_belief_propagation(name, semiring, dtype, atol, steps):
    code = CODES[name]()
    rng = np.random.default_rng(2)
    log_odds = rng.normal(0.5, 1.0, (code.num_variables, 3)).astype(dtype)
    got = decode(code, log_odds, steps, early_stop=False, semiring=semiring)
    assert got.log_odds.dtype == dtype
    assert (np.asarray(got.steps) == steps).all()
    for word, want in enumerate(beliefs(code, log_odds, steps, semiring)):
        # a few dozen rounded operations on numbers below 10
        np.testing.assert_allclose(got.log_odds[:, word], want, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_and_infinite_log_odds(dtype):
    # these take the careful route: exp(-1e4) is no float
    code = CODES["irregular"]()
    rng = np.random.default_rng(3)
    size = rng.choice([0.3, 50.0, 1e4, np.inf, 0.0], (code.num_variables, 4))
    truth = np.zeros(code.num_variables, bool)
    log_odds = np.where(rng.random(size.shape) < 0.1, -0.3, size).astype(dtype)
    got = decode(code, log_odds, 3, early_stop=False)
    assert not np.isnan(got.log_odds).any()
    for word, want in enumerate(beliefs(code, log_odds, 3, "sum")):
        # sums of a handful of numbers up to 1e4
        np.testing.assert_allclose(
            got.log_odds[:, word], want, rtol=1e-6, atol=0.02 if dtype == np.float32 else 1e-9
        )
    assert not (np.asarray(got.words)[~truth] & (np.asarray(log_odds) == np.inf)).any()


def test_the_fast_update_equals_the_careful_one(monkeypatch):
    code = CODES["regular"]()
    log_odds = np.random.default_rng(4).normal(0.8, 2.0, (24, 50))
    fast = decode(code, log_odds, 6, early_stop=False)
    monkeypatch.setattr(_engine, "_MOST_FAST_BITS", 0)
    _decode._decode.clear_cache()
    careful = decode(code, log_odds, 6, early_stop=False)
    # float64 rounding of numbers below 50 over six steps
    np.testing.assert_allclose(fast.log_odds, careful.log_odds, rtol=0, atol=1e-10)
    _decode._decode.clear_cache()


@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_batch_is_a_loop_over_words(monkeypatch, lanes, early_stop):
    code = CODES["regular"]()
    channel = BinarySymmetricChannel(0.08)
    received = channel.transmit(np.random.default_rng(5), np.zeros((24, 37), np.uint8))
    log_odds = channel.log_odds(received)
    monkeypatch.setattr(_decode, "_LANES", lanes)
    got = decode(code, log_odds, 7, early_stop=early_stop)
    steps = np.asarray(got.steps)
    if early_stop:  # words finish at different times, so lanes were filled again
        assert len(set(steps.tolist())) > 2
    for word in range(0, 37, 6):
        one = decode(code, log_odds[:, word], 7, early_stop=early_stop)
        assert one.words.shape == (24,)
        assert one.valid.shape == one.steps.shape == ()
        np.testing.assert_array_equal(one.words, got.words[:, word])
        assert (one.valid, one.steps) == (got.valid[word], got.steps[word])
        # the same operations on another number of lanes
        np.testing.assert_allclose(one.log_odds, got.log_odds[:, word], rtol=1e-12, atol=1e-12)


def test_words_and_flags():
    code = CODES["regular"]()
    channel = BinarySymmetricChannel(0.1)
    received = channel.transmit(np.random.default_rng(6), np.zeros((24, 200), np.uint8))
    found = decode(code, channel.log_odds(received), 5)
    zero = ~code.syndrome(found.words).any(axis=0)
    np.testing.assert_array_equal(found.valid, zero)
    assert 0 < np.sum(zero) < 200
    # steps: none for words received valid, all of them for words that end invalid
    np.testing.assert_array_equal(
        np.asarray(found.steps) == 0, ~code.syndrome(received).any(axis=0)
    )
    assert (np.asarray(found.steps)[~zero] == 5).all()


def codewords(code):
    basis = [w for w in itertools.product((0, 1), repeat=code.num_variables)]
    return np.asarray([w for w in basis if not code.syndrome(np.asarray(w)).any()]).T


def test_noiseless_words_and_few_erasures():
    code = ParityCheckCode([[1, 1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1]])
    words = codewords(code)  # the Hamming code
    assert words.shape == (7, 16)
    assert code.dimension == 4
    for size in (3.0, np.inf):
        found = decode(code, np.where(words, -size, size), 10)
        np.testing.assert_array_equal(found.words, words)
        assert np.asarray(found.valid).all()
        assert not np.asarray(found.steps).any()
    for erased in range(7):  # one erasure: another bit's check fills it in
        log_odds = np.where(words, -np.inf, np.inf)
        log_odds[erased] = 0.0
        found = decode(code, log_odds, 3)
        np.testing.assert_array_equal(found.words, words)
    contradiction = np.full((7, 1), np.inf)
    contradiction[0] = -np.inf
    found = decode(code, contradiction, 3)
    assert not np.asarray(found.valid).any()


def test_jit_and_empty_batches():
    code = CODES["regular"]()
    log_odds = jnp.asarray(np.random.default_rng(7).normal(1.0, 1.0, (24, 3)))
    inside = jax.jit(lambda x: decode(code, x, 4).words)(log_odds)
    np.testing.assert_array_equal(inside, decode(code, log_odds, 4).words)
    assert decode(code, log_odds[:, :0], 4).words.shape == (24, 0)
    free = ParityCheckCode(np.zeros((0, 3), np.uint8))
    found = decode(free, np.array([[1.0], [-1.0], [2.0]]))
    assert np.asarray(found.words)[:, 0].tolist() == [0, 1, 0]
    assert bool(found.valid[0])


def test_equal_sizes_share_compiled_code():
    log_odds = np.ones((24, 3))
    decode(ParityCheckCode.regular(24, 3, 6, seed=10), log_odds, 4)
    before = _decode._decode._cache_size()
    decode(ParityCheckCode.regular(24, 3, 6, seed=11), log_odds, 4)
    assert _decode._decode._cache_size() == before


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda c: decode(c, np.zeros(23)), r"log_odds has shape \(23,\); expected \(24,\)"),
        (lambda c: decode(c, np.zeros((24, 2, 2))), r"shape \(24, 2, 2\)"),
        (lambda c: decode(c, np.zeros(24), 0), "max_steps is 0"),
        (lambda c: word_error_curve(c, [], 0), "words is 0; it must be at least 1"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make(CODES["regular"]())


def test_unknown_semiring():
    # the run-time check of annotations, on in tests only, comes before the ValueError
    with pytest.raises((ValueError, TypeError), match="semiring"):
        decode(CODES["regular"](), np.zeros(24), semiring="min")


# -- curves ----------------------------------------------------------------------------------


def test_word_error_curve_counts():
    code = ParityCheckCode.regular(48, 3, 6, seed=2)
    rates = word_error_curve(
        code,
        [BinarySymmetricChannel(p) for p in (0.0, 0.03, 0.15)],
        1200,
        seed=3,
        max_steps=10,
        progress=False,
    )
    assert [r.words for r in rates] == [1200] * 3
    assert rates[0].word_errors == rates[0].bit_errors == 0
    assert rates[0].mean_steps == 0.0
    assert rates[0].word_error_rate < rates[1].word_error_rate < rates[2].word_error_rate
    assert rates[2].bit_error_rate == rates[2].bit_errors / (1200 * 48)
    assert rates[2].undetected <= rates[2].word_errors
    want = math.sqrt(rates[2].word_error_rate * (1 - rates[2].word_error_rate) / 1200)
    # the estimate inside is shifted by one error
    assert math.isclose(rates[2].standard_error, want, rel_tol=0.05)
    stopped = word_error_curve(
        code, [BinarySymmetricChannel(0.15)], 3000, stop_at_errors=1, progress=False
    )
    assert stopped[0].words == 1000
    # one seed gives one curve
    again = word_error_curve(
        code, [BinarySymmetricChannel(0.03)], 1200, seed=3, max_steps=10, progress=False
    )
    assert again[0] == rates[1]


def test_plot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    code = ParityCheckCode.regular(24, 3, 6, seed=2)
    channels = [GaussianChannel(db, code.rate) for db in (0.0, 2.0)]
    rates = word_error_curve(code, channels, 100, progress=False)
    ax = plot_word_error_curve(rates, label="n = 24")
    assert ax.get_yscale() == "log"
    assert "dB" in ax.get_xlabel()
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0.0, 2.0])
    pyplot.close("all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "steps", "points", "words"),
    [
        ("LDPC_N2048_K1723_flooding_SPA_i100_eth_10Gbps", 100, (3.0, 3.2), 2000),
        ("LDPC_N8000_K4000_flooding_SPA_i20_MacKay", 20, (1.5, 1.6), 1000),
    ],
)
def test_published_word_error_rates(data_dir, file, steps, points, words):
    folder = data_dir / "ldpc"
    (record,) = (
        r for r in json.loads((folder / "error_rates.json").read_text()) if file in r["file"]
    )
    code = ParityCheckCode.from_alist(folder / "alist" / record["h_file"])
    assert steps == int(record["iterations"])
    channels = [GaussianChannel(db, code.rate) for db in points]
    found = word_error_curve(code, channels, words, max_steps=steps, progress=False)
    for rate, db in zip(found, points, strict=True):
        (row,) = (r for r in record["rows"] if r[1] == db)
        sent, errors = row[2], row[4]
        published = errors / sent
        spread = math.hypot(rate.standard_error, math.sqrt(published * (1 - published) / sent))
        # four of the two counts' joint binomial errors: one in 16,000 by chance
        assert abs(rate.word_error_rate - published) < 4 * spread, (db, rate, published)
