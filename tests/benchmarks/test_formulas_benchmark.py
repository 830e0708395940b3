"""The benchmark of compiled formulas, at tiny size and without its peers."""

import json

import numpy as np
import pytest

from benchmarks import formulas
from benchmarks._formulas_ours import Ours, log_literal_weights, write_d4
from tests.circuits._formulas import cnf_text, truth_table

CLAUSES = [[1, 2], [-2, 3], [3, -4, 5], [-1, -5]]


def test_our_side(tmp_path):
    (tmp_path / "a.cnf").write_text(cnf_text(6, CLAUSES))
    write_d4(tmp_path / "a.nnf", tmp_path / "a.cnf")
    weights = np.exp(log_literal_weights(6))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(weights[[0, 5], 1], [2 / 9, 7 / 9])
    total = truth_table(6, CLAUSES)
    for v in range(6):
        total = total * weights[v].reshape([2 if u == v else 1 for u in range(6)])
    side = Ours()
    assert side.start() == {}
    found = side.first(str(tmp_path / "a.nnf"), "", 6)
    # float32
    assert abs(found["value"] - np.log(total.sum())) < 1e-6
    value, slopes = side.timed["sweep"]()
    assert abs(float(value) - np.log(total.sum())) < 1e-6
    true = total.sum(axis=(1, 2, 3, 4, 5)) / total.sum()
    np.testing.assert_allclose(slopes[0][0], true, rtol=1e-5)


def test_faults_and_table():
    row = {
        "case": "x",
        "ours": {"value": -9.0, "first": 0.1, "sweep": 1e-4, "edges": 10},
        "klay": {"value": -9.0, "first": 2.0, "sweep": 2e-4},
        "pysdd": {"value": -9.0, "first": 0.01, "sweep": 1e-6},
    }
    assert formulas.faults(row, -9.0) == []
    assert len(formulas.faults(row, -9.1)) == 3
    slow = {**row, "ours": {**row["ours"], "sweep": 3e-4, "first": 0.6}}
    assert [fault[:13] for fault in formulas.faults(slow, -9.0)] == [
        "x: a warm swe",
        "x: the first ",
    ]
    large = {**slow, "ours": {**slow["ours"], "edges": 1000, "sweep": 1e-5}}
    assert formulas.faults(large, -9.0) == []
    facts = {"device": "an abacus", "cpu_count": 3, "versions": {"jax": "9.9"}, "commit": "0123"}
    report = {**facts, "date": "2001-02-03T04", "load": [0.25], "peer": "live"}
    report |= {"requirements": ["klay"], "rows": [{**row, "faults": ["x: late"]}]}
    text = formulas.markdown(report)
    assert "**Missed:** x: late." in text
    assert "| x | 10 | pysdd | 10 | 1 (no gradient) |" in text


def test_main_without_peers(tmp_path, monkeypatch):
    folder = tmp_path / "circuits" / "sdd_from_cnf"
    folder.mkdir(parents=True)
    record = {"b1_mince": {"n_vars": 2, "log_weighted_count": -9.0}}
    (folder / "counts.json").write_text(json.dumps(record))
    ours = {"value": -9.0, "first": 0.1, "sweep": 1e-4, "edges": 10}
    # the sides are processes: their start takes seconds
    monkeypatch.setattr(formulas, "measure", lambda *_: {"ours": ours})
    monkeypatch.delenv("KLPROJAX_KLAY_PYTHON", raising=False)
    out = [tmp_path / "out.json", tmp_path / "out.md"]
    arguments = ["--no-peer", "--repeats", "1", "--only", "b1_mince", "--data-dir", str(tmp_path)]
    assert formulas.main([*arguments, "--json", str(out[0]), "--markdown", str(out[1])]) == 0
    report = json.loads(out[0].read_text())
    assert report["peer"] == "none"
    assert report["rows"][0]["faults"] == []
    assert "| b1_mince |" in out[1].read_text()
    with pytest.raises(SystemExit):
        formulas.parser().parse_args(["--only", "unknown"])
