"""The benchmark of chains, on short ones."""

import itertools
import json

import jax
import numpy as np

from benchmarks import chains


def test_both_sides_agree_with_enumeration_and_are_reported(tmp_path):
    out, table = tmp_path / "chains.json", tmp_path / "chains.md"
    chains.main(
        ["--only", "8", "--length", "4", "--repeats", "1", "--no-peer"]
        + ["--json", str(out), "--markdown", str(table)]
    )
    report = json.loads(out.read_text())
    assert [row["task"] for row in report["rows"]] == ["smoothing", "gradient", "viterbi"]
    # A few roundings of probabilities in float32.
    assert all(row["differs"]["by hand"] < 1e-5 for row in report["rows"])
    assert "smoothing, 8 states" in table.read_text()
    given = chains.chain(2, 3)
    paths = list(itertools.product(range(2), repeat=3))
    weights = np.exp(
        [
            given["start"][p[0]]
            + sum(given["move"][p[t], p[t + 1]] for t in (0, 1))
            + sum(given["seen"][t, p[t]] for t in range(3))
            for p in paths
        ]
    )
    with jax.enable_x64(False):
        marginals, log_likelihood = chains.by_hand(given)["smoothing"](given["seen"])
    np.testing.assert_allclose(log_likelihood, np.log(weights.sum()), rtol=1e-5)
    for t in range(3):
        second = sum(w for p, w in zip(paths, weights, strict=True) if p[t]) / weights.sum()
        np.testing.assert_allclose(marginals[t, 1], second, rtol=1e-5)


def test_what_misses_a_target_is_named():
    def row(task, length, mine, hand, peer):
        seconds = {"klprojax": mine, "by hand": hand, "dynamax": peer}
        return {"states": 8, "length": length, "task": task, "cpu_s": seconds}

    rows = [row("smoothing", 10, 1.0, 1.0, 2.0), row("smoothing", 100, 40.0, 10.0, 50.0)]
    slopes = chains.exponents(rows)
    np.testing.assert_allclose(slopes[0]["exponent"], np.log10(40.0))
    assert chains.missed(rows, slopes) == [
        "smoothing at 8 states: exponent 1.60 over 1.1",
        "smoothing at 8 states, 100 steps: 4.00 times by hand, over 3",
    ]
