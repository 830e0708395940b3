"""The benchmark of exact inference beside peers, on models of its own and without processes."""

import copy
import gzip
import itertools
import json
import math
import sys

import numpy as np
import pytest

from benchmarks import exactness_peers
from benchmarks._exactness_ours import Ours
from benchmarks._peers._serve import Side
from klprojax import DiscreteModel

BIF = """network toy {
}
variable a {
  type discrete [ 2 ] { yes, no };
}
variable b {
  type discrete [ 2 ] { yes, no };
}
probability ( a ) {
  table 0.25, 0.75;
}
probability ( b | a ) {
  (yes) 0.9, 0.1;
  (no) 0.4, 0.6;
}
"""
UAI = "MARKOV\n2\n2 2\n2\n1 0\n2 0 1\n2\n1 3\n4\n5 0\n2 1\n"


@pytest.fixture
def data(tmp_path):
    """One Bayesian network, with and without evidence, and one model for MAP."""
    for folder in ("bn/bif", "bn/reference", "uai2014/models"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bn/bif/toy.bif.gz").write_bytes(gzip.compress(BIF.encode()))
    seen = 0.25 * 0.1 + 0.75 * 0.6
    cases = [
        {"evidence": {}, "log_p_evidence": 0.0},
        {"evidence": {"b": {"index": 1}}, "log_p_evidence": math.log(seen)},
    ]
    cases[0]["marginals"] = {"a": [0.25, 0.75], "b": [1 - seen, seen]}
    cases[1]["marginals"] = {"a": [0.25 * 0.1 / seen, 0.75 * 0.6 / seen], "b": [0.0, 1.0]}
    (tmp_path / "bn/reference/toy.json").write_text(json.dumps({"cases": cases}))
    (tmp_path / "uai2014/INDEX.json").write_text(json.dumps({"pair": {}}))
    (tmp_path / "uai2014/models/pair.uai.gz").write_bytes(gzip.compress(UAI.encode()))
    return tmp_path


class InProcess:
    """A side without a process: all are ours; pgmpy is always late, pyAgrum off by ``off``."""

    off = 0.0

    def __init__(self, python, module, *, log):
        del python, log
        self.module, self.tasks = module, Ours()

    def do(self, order, *, limit=None, **arguments):
        """What a process would answer."""
        if "pgmpy" in self.module and order == "again":
            raise TimeoutError(f"{limit} s")
        answer = copy.deepcopy(getattr(self.tasks, order)(**arguments))
        if "pyagrum" in self.module and "log_p" in answer:
            answer["log_p"] += self.off
        return answer

    def close(self):
        """Nothing to end."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_rows_and_report(data, monkeypatch):
    monkeypatch.setattr(exactness_peers, "Side", InProcess)
    monkeypatch.setattr(exactness_peers, "pythons", lambda _: dict.fromkeys(exactness_peers.PEERS))
    for library in ("OPENBLAS", "OMP"):  # set by the benchmark
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    # Only what is right, not how fast: the same code is timed on all sides.
    monkeypatch.setattr(exactness_peers, "TIMES_FASTER", 0.0)
    out, table = data / "out.json", data / "out.md"
    run = ["--data-dir", str(data), "--repeats", "2", "--json", str(out), "--markdown", str(table)]
    exactness_peers.main(run)
    report = json.loads(out.read_text())
    first, second = report["marginals"]
    assert [row["case"] for row in (first, second)] == ["toy", "toy+evidence"]
    for row in (first, second):
        assert row["gaps"]["pyagrum"] == 0.0
        assert row["gaps"]["reference"] < 1e-15  # a few roundings
        assert set(row["sides"]["ours"]) >= {"first", "again", "changed", "load"}
    assert first["sides"]["pgmpy"]["status"] == "time limit"
    assert second["sides"]["pgmpy"]["status"].startswith("not tried")
    (row,) = report["map"]
    # a = 1, b = 0: 3 * 2
    assert row["ours"]["score"] == row["toulbar2"]["score"] == pytest.approx(math.log(6))
    assert row["faults"] == []
    text = table.read_text()
    assert "MAP of 1 models: ours: 1 solved; toulbar2: 1 solved." in text
    assert "| pair | 2 | solved |" in text
    monkeypatch.setattr(InProcess, "off", 1e-6)
    assert exactness_peers.main([*run[:4], "--only", "toy", "--part", "marginals"]) == 1


def test_what_is_missed():
    def row(mine, theirs, gap=0.0):
        sides = {"ours": {"changed": {"cpu_s": mine}}, "pyagrum": {"changed": {"cpu_s": theirs}}}
        sides["ours"]["status"] = "done"
        return {"case": "x", "sides": sides, "gaps": {"reference": gap}}

    assert exactness_peers.marginal_faults(row(0.1, 0.1)) == []
    assert exactness_peers.marginal_faults(row(0.1, 0.6)) == []
    (slow,) = exactness_peers.marginal_faults(row(0.2, 0.6))
    assert slow == "x: changed evidence 3.00 times as fast as pyAgrum, wanted 5"
    assert exactness_peers.marginal_faults(row(0.1, 0.1, 1e-7)) == [
        "x: reference differs by 1.0e-07"
    ]
    assert exactness_peers.marginal_faults(row(0.1, 0.1, math.nan))

    def best(status, score, other_status, other_score):
        ours, theirs = {"status": status}, {"status": other_status}
        ours |= {} if score is None else {"score": score}
        theirs |= {} if other_score is None else {"score": other_score}
        return exactness_peers.map_faults({"case": "x", "ours": ours, "toulbar2": theirs})

    assert best("solved", -10.0, "solved", -10.000001) == []
    assert best("solved", -10.0, "time limit", -12.0) == []
    assert best("refused", None, "solved", -12.0) == []
    assert best("impossible", None, "impossible", None) == []
    assert best("solved", -10.0, "solved", -10.1)
    assert best("solved", -10.0, "time limit", -9.9)
    assert best("solved", -10.0, "impossible", None)
    # a state against the evidence
    assert best("solved", -10.0, "solved", -math.inf)


def test_evidence_to_change_to_is_possible_and_changes():
    with np.errstate(divide="ignore"):
        tables = np.log([0.5, 0.5]), np.log([[1.0, 0.0], [0.3, 0.7]])
    # The child comes first in the list.
    model = DiscreteModel((2, 2), ((1, 0), (1,)), tables[::-1])
    sets = exactness_peers.changes(model, {0: 0, 1: 0}, 0, 6)
    assert len(sets) == 6
    assert all(one != two for one, two in itertools.pairwise(sets))
    for evidence in sets:
        assert exactness_peers.score(model, dict(evidence), [s for _, s in evidence]) > -np.inf
        assert exactness_peers.score(model, {0: 1 - evidence[0][1]}, [0, 0]) in (
            -np.inf,
            np.log(0.5),
        )
    ((known,),) = exactness_peers.changes(model, {}, 1, 1)
    assert (known[0], len(known[1])) == (1, 2)


def test_a_late_side_is_ended(tmp_path):
    # An interpreter that has not even started when the time is over.
    with Side(sys.executable, "code", log=tmp_path / "log") as side:
        with pytest.raises(TimeoutError, match="no answer to 'first' within 0 s"):
            side.do("first", limit=0.0)
        assert side.process.wait(10) != 0
