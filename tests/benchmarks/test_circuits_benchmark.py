"""The benchmark of circuits, at tiny size and without its peer."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import circuits
from benchmarks._circuits_ours import Ours

OURS = {"forward": 0.002, "gradient": 0.004, "epoch": 0.5, "build": 2.0, "peak_rss_mib": 300.0}
FACTS = {
    "device": "an abacus",
    "cpu_count": 3,
    "versions": {"jax": "9.9"},
    "commit": "0123456789abcdef",
    "date": "2001-02-03T04:05:06",
    "load": [0.25, 0.0, 0.0],
}


@pytest.fixture
def data(tmp_path):
    """A small density-estimation set in packed bits."""
    rng = np.random.default_rng(0)
    hidden = rng.integers(0, 2, (80, 1))
    rows = np.where(rng.random((80, 6)) < 0.9, hidden, 1 - hidden).astype(np.uint8)
    (tmp_path / "density20").mkdir()
    np.savez(tmp_path / "density20" / "nltcs.npz", train=np.packbits(rows, axis=1), n_vars=6)
    return tmp_path, rows


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.delenv("KLPROJAX_DATA", raising=False)
    plain = circuits.parser().parse_args([])
    assert plain.only == []
    assert plain.units == []
    assert (plain.repeats, plain.rows, plain.no_peer, plain.setup_peers) == (5, None, False, False)
    given = circuits.parser().parse_args(
        ["--only", "nltcs", "--only", "plants", "--units", "4", "--units", "8", "--rows", "7",
         "--repeats", "2", "--no-peer", "--json", "a.json", "--markdown", "b.md",
         "--data-dir", "d", "--setup-peers"]
    )  # fmt: skip
    assert (given.only, given.units, given.rows, given.repeats) == (
        ["nltcs", "plants"], [4, 8], 7, 2,
    )  # fmt: skip
    assert (given.json, given.markdown, given.data_dir) == (Path("a.json"), Path("b.md"), Path("d"))
    assert given.no_peer
    assert given.setup_peers
    with pytest.raises(SystemExit):
        circuits.parser().parse_args(["--only", "unknown"])
    with pytest.raises(SystemExit, match="--data-dir D"):
        circuits.main(["--no-peer"])


def test_rows_are_unpacked(data):
    folder, rows = data
    np.testing.assert_array_equal(circuits.load(folder, "nltcs"), rows)


def test_the_peer_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(circuits, "ENVIRONMENT", tmp_path)
    monkeypatch.delenv("KLPROJAX_CIRKIT_PYTHON", raising=False)
    assert circuits.peer_python() is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert circuits.peer_python() == str(tmp_path / "bin" / "python")
    monkeypatch.setenv("KLPROJAX_CIRKIT_PYTHON", "another")
    assert circuits.peer_python() == "another"


def test_ratios_live_and_recorded():
    twice = {task: 2 * OURS[task] for task in circuits.TARGETS}
    live = circuits.ratios({"data": "nltcs", "units": 5, "ours": OURS, "cirkit": twice})
    assert live == dict.fromkeys(circuits.TARGETS, 2.0)
    recorded = circuits.ratios({"data": "nltcs", "units": 16, "ours": OURS})
    # 6.8 and 18.9 ms beside 2 and 4 ms.
    assert recorded.keys() == {"forward", "gradient"}
    np.testing.assert_allclose([recorded["forward"], recorded["gradient"]], [3.4, 4.725])


def test_the_report_says_what_was_run_and_missed():
    cirkit = {**OURS, "forward": 0.1, "gradient": 0.1, "epoch": 5.0, "build": 2.5}
    row = {"data": "plants", "units": 8, "ours": OURS, "cirkit": cirkit}
    row["same"] = {"difference": 3e-7}
    row["ratios"] = circuits.ratios(row)
    text = circuits.markdown({**FACTS, "peer": "live", "rows": [row]})
    assert "beside ours in this run" in text
    assert "the same log-likelihoods to 3e-07" in text
    assert "**Missed:** plants 8 build 1.2 (target 2)." in text
    assert "| plants | 8 | ours | 2.00 | 4.00 | 0.500 | 2.00 | 300 |" in text
    assert "| plants | 8 | ratio | 50.0 | 25.0 | 10.0 | 1.2 | - |" in text
    row = {"data": "nltcs", "units": 16, "ours": OURS}
    row["ratios"] = circuits.ratios(row)
    text = circuits.markdown({**FACTS, "peer": "recorded", "rows": [row]})
    assert "RECORDED on another machine" in text
    assert "All targets met." in text
    assert "| nltcs | 16 | ratio | 3.4 | 4.7 | - | - | - |" in text
    assert "cirkit |" not in text


def test_the_peers_circuit_becomes_ours(tmp_path):
    """Layers as the peer writes them: inputs, dense sums above them, a product, its root."""
    rng = np.random.default_rng(1)
    shapes = [(2, 2), (2, 2), (2, 2), (2, 2), None, (1, 2)]
    tables = {
        f"layer{k}": rng.dirichlet(np.ones(shape[1]), shape[0])
        for k, shape in enumerate(shapes)
        if shape
    }
    layers = [
        {"kind": "TorchCategoricalLayer", "inputs": [], "variable": 1},
        {"kind": "TorchCategoricalLayer", "inputs": [], "variable": 0},
        {"kind": "TorchSumLayer", "inputs": [0]},
        {"kind": "TorchSumLayer", "inputs": [1]},
        {"kind": "TorchHadamardLayer", "inputs": [2, 3]},
        {"kind": "TorchSumLayer", "inputs": [4]},
    ]
    rows = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    first, second = (tables[f"layer{2 + k}"] @ tables[f"layer{k}"] for k in (0, 1))
    values = np.log((tables["layer5"] @ (first[:, rows[:, 1]] * second[:, rows[:, 0]]))[0])
    np.savez(tmp_path / "c.npz", layers=json.dumps(layers), values=values, **tables)
    np.save(tmp_path / "rows.npy", rows)
    answer = Ours().same(str(tmp_path / "rows.npy"), 4, str(tmp_path / "c.npz"))
    assert answer["difference"] < 1e-12  # rounding of numbers of size 1
    np.savez(tmp_path / "c.npz", layers=json.dumps(layers), values=values + 0.1, **tables)
    answer = Ours().same(str(tmp_path / "rows.npy"), 4, str(tmp_path / "c.npz"))
    assert answer["difference"] > 0.01


def test_a_tiny_run_without_peer(data, tmp_path, monkeypatch, capsys):
    folder, _ = data
    out, table = tmp_path / "report.json", tmp_path / "report.md"
    monkeypatch.setattr(circuits, "BATCH", 32)
    status = circuits.main(
        ["--data-dir", str(folder), "--only", "nltcs", "--units", "2", "--rows", "64",
         "--repeats", "1", "--no-peer", "--json", str(out), "--markdown", str(table)]
    )  # fmt: skip
    assert status == 0  # nothing to compare with, so nothing missed
    report = json.loads(out.read_text())
    assert (report["benchmark"], report["peer"]) == ("circuits", "recorded")
    (row,) = report["rows"]
    assert (row["data"], row["units"], row["ratios"]) == ("nltcs", 2, {})
    assert "cirkit" not in row
    for task in (*circuits.TARGETS, "flows", "epoch_em"):
        assert row["ours"][task] > 0
    # A tree over 6 variables: 5 sums, 6 leaf tables of two states, the root.
    assert row["ours"]["parameters"] == 5 * 4 + 6 * 2 * 2 + 2
    assert -6 * np.log(2) - 5 < row["ours"]["log_likelihood"] < 0
    assert "| nltcs | 2 | ours |" in table.read_text()
    assert "Circuits against cirkit" in capsys.readouterr().out
