"""The benchmark of rounding, on a short chain and on a few random models."""

import itertools
import json

import equinox as eqx
import jax
import numpy as np
import pytest

import klprojax
from benchmarks import _rounding_models as random_models
from benchmarks import rounding
from tests.operators._enumeration import joint_log_table


class Here:
    """Runs jobs in this process."""

    def __init__(self, job, setup):
        self.job = job

    def run(self, limit, *arguments):
        return self.job(*arguments)

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(rounding.shared, "Worker", Here)


def test_the_reference_is_a_sum_over_hidden_paths():
    given = rounding.chain(3)
    start, move, show = (given[k].astype(np.float64) for k in ("start", "move", "show"))
    for symbols, value in zip(given["seen"], rounding.reference(given), strict=True):
        total = 0.0
        for path in itertools.product(range(rounding.STATES), repeat=3):
            steps = start[path[0]] + move[path[0], path[1]] + move[path[1], path[2]]
            total += np.exp(steps + show[path, symbols].sum())
        np.testing.assert_allclose(value, np.log(total), rtol=1e-14)  # rounding of 64 terms


def test_symbols_have_the_frequencies_of_the_chain():
    given = rounding.chain(5000)
    start, move, show = (np.exp(given[k]) for k in ("start", "move", "show"))
    assert given["seen"].shape == (rounding.SEQUENCES, 5000)
    stationary = np.linalg.matrix_power(move.astype(np.float64), 1000)[0]
    share = np.bincount(given["seen"].ravel(), minlength=rounding.SYMBOLS) / given["seen"].size
    # 40,000 dependent draws: standard errors of some 0.005.
    np.testing.assert_allclose(share, stationary @ show, atol=0.02)
    assert abs(start.sum() - 1) < 1e-6


def test_every_method_on_a_short_chain(tmp_path, capsys):
    out, table = tmp_path / "rounding.json", tmp_path / "rounding.md"
    run = [
        "--models",
        "2",
        "--compiled-models",
        "0",
        "--length",
        "6",
        "--json",
        str(out),
        "--markdown",
        str(table),
    ]
    assert rounding.main(run) == 0
    report = json.loads(out.read_text())
    assert [row["method"] for row in report["rows"]] == list(rounding.METHODS)
    for row in report["rows"]:
        # Six steps, each rounding a number of at most 10 nats a few times: ten half steps in all.
        assert row["largest"] <= 10 * row["half_step"]
        assert abs(row["mean"]) <= row["largest"]
        assert 0 < row["half_step"] <= 2**-21
        assert row["log_likelihood"] == pytest.approx(rounding.reference(rounding.chain(6)).mean())
    names = [(row["kind"], row["bits"], row["route"]) for row in report["random_models"]]
    assert names == [(kind, bits, "eager") for bits in (32, 64) for kind in ("ring", "grid")]
    assert all((row["models"], row["wrong"]) == (2, 0) for row in report["random_models"])
    text = table.read_text()
    assert "| steps | log-likelihood | half a step | plain scan | tensor circuit |" in text
    assert capsys.readouterr().out.startswith(text)


def test_errors_are_measured_and_failures_said(monkeypatch, capsys):
    right = rounding.reference(rounding.chain(6))
    off = np.float32(right) + np.float32(0.5)
    monkeypatch.setitem(rounding.METHODS, "Elimination", lambda given: off)
    row = rounding.measure("Elimination", 6)
    np.testing.assert_allclose([row["largest"], row["mean"]], 0.5, rtol=1e-5)  # float32 of 10
    for amiss in (off * np.float32("nan"), right):  # not finite; not single precision
        monkeypatch.setitem(rounding.METHODS, "Elimination", lambda given, amiss=amiss: amiss)
        assert rounding.main(["--only", "Elimination", "--length", "6"]) == 1
        assert "- Elimination, 6 steps: error: got [" in capsys.readouterr().out


def test_long_chains_only_where_they_end(monkeypatch):
    asked = []

    def run(self, limit, *case):
        asked.append(case)
        return {"status": "time limit", "limit_s": limit}

    monkeypatch.setattr(Here, "run", run)
    assert rounding.main([]) == 0
    assert {name for name, length, *_ in asked if length == 100_000} == (
        rounding.METHODS.keys() - rounding.LONGEST.keys()
    )
    with pytest.raises(SystemExit, match="--length is 1"):
        rounding.main(["--length", "1"])


@pytest.mark.parametrize(("kind", "seed"), [("ring", 42), ("grid", 18)])
def test_the_referee_enumerates_all_states(kind, seed):
    model = random_models.draw(kind, seed, 0, np.float64)
    found = random_models.referee(model)
    joint = joint_log_table(model.cards, model.scopes, model.tables, model.evidence)
    assert joint.size < 1e5
    atol = 1e-15 * random_models.magnitude(model)  # the sums in float64
    np.testing.assert_allclose(
        float(found.log_partition), np.logaddexp.reduce(joint, None), atol=atol
    )
    joint = joint - np.logaddexp.reduce(joint, None)
    scopes = [*model.scopes, *((v,) for v in range(len(model.cards)))]
    for scope, got in zip(scopes, [*found.factors, *found.variables], strict=True):
        gone = tuple(v for v in range(joint.ndim) if v not in scope)
        want = np.logaddexp.reduce(joint, gone)
        want = want if list(scope) == sorted(scope) else want.T
        np.testing.assert_allclose(got.astype(float), want, atol=2 * atol)


@pytest.mark.parametrize("lie", ["log_partition", "log_beliefs", "factor_log_beliefs", "result"])
def test_wrong_answers_are_counted(monkeypatch, lie):
    own = klprojax.infer

    def infer(*given, **options):
        found = own(*given, **options)
        if lie == "result":
            return eqx.tree_at(lambda s: s.result, found, klprojax.RESULTS.successful)
        off = jax.tree.map(lambda x: x + 1e-6, getattr(found, lie))
        return eqx.tree_at(lambda s: getattr(s, lie), found, off)

    monkeypatch.setattr(klprojax, "infer", infer)
    row = random_models.measure("grid", 64, "eager", 10)
    assert row["impossible"] == 1  # the last
    assert row["wrong"] == (1 if lie == "result" else 9)
