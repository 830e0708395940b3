"""The benchmark of belief propagation, at tiny size, against a recording made by a naive loop."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import _bp_problems, _bp_report, bp
from benchmarks._bp_problems import Problem, bytes_per_iteration, ising, problem, random_pairs
from tests.reference import bp_sweep

SECONDS = {"cpu_s": 1.0, "wall_s": 1.0}
RUN = {"cpu_s": {"median": 1.0, "min": 1.0}, "wall_s": {"median": 1.0, "min": 1.0}, "samples": 1}


def naive_beliefs(given: Problem, iterations: int) -> np.ndarray:
    """Flooding, one factor at a time, float64."""
    cards = [given.states] * len(given.unaries)
    scopes = [*map(tuple, given.scopes.tolist()), *((v,) for v in range(len(cards)))]
    tables = np.exp(given.log_potentials.astype(np.float64))
    unaries = np.exp(given.unaries.astype(np.float64))
    # The programs know what unary factors say from the start.
    messages = bp_sweep.uniform(cards, scopes)
    messages[len(tables) :] = [[bp_sweep.normalized(unary)] for unary in unaries]
    for _ in range(iterations):
        messages = bp_sweep.sweep(cards, scopes, [*tables, *unaries], messages)
    return np.array([bp_sweep.into_variable(cards, scopes, messages, v) for v in range(len(cards))])


def recording(case: str, iterations: int) -> dict:
    """A recorded peer, its beliefs from the naive loop."""
    given = problem(case, "tiny")
    rows = bp.probe_rows(given)
    return {
        "date": "2001-02-03",
        "cpu": "an abacus",
        "versions": {"pgmax": "0"},
        "cases": {
            case: {
                "inference": {
                    "build": SECONDS,
                    "first": SECONDS,
                    "eager_first": SECONDS,
                    "run": RUN,
                    "eager_run": RUN,
                    "peak_rss_mib": 1000.0,
                    "probe": {"beliefs": naive_beliefs(given, iterations)[rows].tolist()},
                }
            }
        },
    }


def run(tmp_path, case: str, iterations: int):
    """Run one case through the command against a recording: exit status, figures, table."""
    (tmp_path / "peer.json").write_text(json.dumps(recording(case, iterations)))
    status = bp.main(
        [
            *("--size", "tiny", "--repeats", "1", "--no-peer", "--only", case),
            *("--recorded", str(tmp_path / "peer.json"), "--json", str(tmp_path / "bp.json")),
            *("--markdown", str(tmp_path / "bp.md")),
        ]
    )
    return status, json.loads((tmp_path / "bp.json").read_text()), (tmp_path / "bp.md").read_text()


def test_recorded_peer_end_to_end(tmp_path):
    iterations = problem("states8", "tiny").iterations
    status, facts, text = run(tmp_path, "states8", iterations)
    assert status == 0
    for key in ("commit", "device", "cpu", "versions", "date", "size", "load_before"):
        assert key in facts
    assert facts["float_bits"] == 32
    assert facts["peer"]["source"] == "recorded"
    assert "RECORDED on 2001-02-03 on an abacus" in text
    (row,) = facts["inference"]
    for side in (row["ours"], row["peer"]):
        for key in ("build", "first"):
            assert set(side[key]) == {"cpu_s", "wall_s"}
        assert side["run"]["cpu_s"]["median"] >= side["run"]["cpu_s"]["min"] > 0
        assert side["peak_rss_mib"] > 0
    # The recorded run takes one second by construction.
    assert row["ratios"]["run"] == pytest.approx(1.0 / row["ours"]["run"]["cpu_s"]["median"])
    # Float32 against float64 over three iterations.
    assert row["max_difference"] < 1e-5
    # Speed is no claim at tiny size; the beliefs are.
    assert [t["claim"] for t in facts["targets"]] == ["states8: difference from PGMax"]


def test_another_number_of_iterations_is_caught(tmp_path):
    iterations = problem("ising100", "tiny").iterations
    status, facts, text = run(tmp_path, "ising100", iterations + 1)
    assert status == 1
    assert facts["inference"][0]["max_difference"] > 1e-4
    assert "**Missed:**" in text


@pytest.mark.parametrize("name", _bp_problems.PROBLEMS)
def test_problems_are_well_formed(name, tmp_path):
    given = problem(name, "tiny")
    given.save(tmp_path / "p.npz")
    again = Problem.load(tmp_path / "p.npz")
    assert (again.name, again.iterations) == (name, given.iterations)
    for key in ("scopes", "log_potentials", "unaries", "targets"):
        np.testing.assert_array_equal(getattr(again, key), getattr(given, key))
    assert given.log_potentials.dtype == given.unaries.dtype == np.float32
    assert given.log_potentials.shape == (len(given.scopes), given.states, given.states)
    assert given.unaries.shape == (given.variables, given.states)
    # PGMax refuses two factors on one pair.
    assert len({frozenset(pair) for pair in given.scopes.tolist()}) == len(given.scopes)


def test_sizes_are_those_named():
    grid = ising("x", 10, 1)
    assert len(grid.scopes) == 200
    np.testing.assert_array_equal(np.bincount(grid.scopes.ravel()), np.full(100, 4))
    pairs = random_pairs("x", 50, 8, 200, 1)
    assert (pairs.variables, pairs.states, len(pairs.scopes)) == (50, 8, 200)


def test_bytes_are_counted():
    # 200 factors: 400 messages of 4 (2 + 3 + 1) bytes, and 100 fields of 4.
    assert bytes_per_iteration(ising("x", 10, 1))["bytes"] == 400 * 24 + 400
    # 400 messages: 8 x 8 table entries, 2 x 8 message entries and an index; 3 x 8 a variable.
    assert bytes_per_iteration(random_pairs("x", 50, 8, 200, 1))["bytes"] == (
        4 * (400 * (64 + 16 + 1) + 50 * 24)
    )


def figures(run_ratio: float, first_ratio: float, difference: float = 1e-6) -> dict:
    return {
        "case": "ising100",
        "max_difference": difference,
        "ratios": {"run": run_ratio, "first": first_ratio},
    }


def test_targets_judge_speed_memory_and_gradients():
    facts = {
        "size": "full",
        "inference": [figures(5.1, 4.9)],
        "gradient": [
            {"iterations": 200, "adjoint": "implicit", "relative_difference": 1e-6, "ratio": 12.0}
        ],
        "memory": [{"implicit": 100}, {"implicit": 109}],
    }
    met = {t["claim"]: t["met"] for t in _bp_report.targets(facts)}
    assert met["ising100: run, ratio"]
    assert not met["ising100: first call, ratio"]
    assert met["gradient T=200 implicit: ratio"]
    assert met["ImplicitAdjoint: growth of temporaries with the iterations"]
    facts["memory"].append({"implicit": 120})
    assert not _bp_report.targets(facts)[-1]["met"]
    wrong = _bp_report.targets({"size": "tiny", "inference": [figures(9.0, 9.0, np.nan)]})
    assert [t["met"] for t in wrong] == [False]


def test_a_failing_order_is_raised_with_its_message(tmp_path):
    with bp.Side(sys.executable, "benchmarks._bp_ours", log=tmp_path / "log") as side:
        assert side.do("start")["platform"]
        with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
            side.do("time", task="nothing", calls=1)
        assert side.do("memory")["peak_rss_mib"] > 0


def test_setup_asks_for_the_pinned_peer(monkeypatch, tmp_path):
    ran = []

    def fake(command, check):
        assert check
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bp.subprocess, "run", fake)
    monkeypatch.setattr(bp, "ENVIRONMENT", tmp_path / "pgmax")
    monkeypatch.delenv("KLPROJAX_PGMAX_PYTHON", raising=False)
    assert bp.peer_python() is None
    assert bp.setup_peers() == 0
    assert ran[0][1:3] == ["-m", "venv"]
    assert ran[1][-2:] == ["pgmax==0.6.1", "jax==0.7.2"]
    monkeypatch.setenv("KLPROJAX_PGMAX_PYTHON", "/somewhere/python")
    assert bp.peer_python() == "/somewhere/python"


def test_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    facts = {
        "peer": {"source": "live"},
        "inference": [figures(6.0, 2.0)],
        "gradient": [{"iterations": 200, "adjoint": "implicit", "ratio": 12.0}],
    }
    _bp_report.plot(facts, tmp_path / "deep" / "bp.png")
    assert (tmp_path / "deep" / "bp.png").stat().st_size > 0
