"""The benchmark of density estimation, at tiny size."""

import json

import numpy as np
import pytest

from benchmarks import density


@pytest.fixture
def data(tmp_path):
    """Two small sets in packed bits."""
    rng = np.random.default_rng(0)
    (tmp_path / "density20").mkdir()
    for name in ("nltcs", "plants"):
        hidden = rng.integers(0, 2, (90, 1))
        rows = np.where(rng.random((90, 5)) < 0.9, hidden, 1 - hidden).astype(np.uint8)
        parts = {
            key: np.packbits(part, axis=1)
            for key, part in zip(("train", "valid", "test"), np.split(rows, 3), strict=True)
        }
        np.savez(tmp_path / "density20" / f"{name}.npz", **parts, n_vars=5)
    return tmp_path


def row(name, candidate, seed, valid, test, **more):
    return {
        "data": name, "candidate": candidate, "seed": seed, "status": "done",
        "valid_log_likelihood": valid, "test_log_likelihood": test, "seconds": 2.0, **more,
    }  # fmt: skip


def test_validation_rows_choose():
    small, large, *_ = density.CANDIDATES
    rows = [
        row("nltcs", small, 0, -6.0, -5.0),
        row("nltcs", large, 0, -5.9, -6.005),
        row("nltcs", large, 1, -9.0, -6.015),
        row("plants", small, 0, -15.0, -15.0),
        row("kdd", small, 0, 0, 0) | {"status": "failed"},
    ]
    assert density.chosen(rows, "nltcs") == large
    assert density.chosen(rows, "kdd") is None
    nltcs, plants = density.summary(rows)
    assert nltcs["candidate"] == large
    assert nltcs["seeds"] == 2
    assert nltcs["mean"] == pytest.approx(-6.01)
    # -5.999 is the published figure, and 0.2 % below it is -6.011.
    assert nltcs["reached"]
    assert not plants["reached"]
    assert plants["sd"] is None
    facts = {"versions": {"jax": "9"}, "device": "x", "cpu_count": 1, "commit": "c", "date": "d"}
    text = density.markdown({**facts, "rows": rows})
    assert "| nltcs | -6.010 | 0.007 | 2 | " in text
    assert "within 0.2%: 1 of 2. Above every column: 0 of 2" in text
    assert "Failed: 1 runs" in text


def test_runs_and_goes_on(data, tmp_path, monkeypatch, capsys):
    tiny = ("--units", "2", "--epochs", "2", "--full-epochs", "1")
    monkeypatch.setattr(density, "CANDIDATES", {"tiny": tiny})
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    options = ["--data-dir", str(data), "--json", str(out), "--markdown", str(table)]
    assert density.main([*options, "--only", "nltcs", "--seeds", "1"]) == 0
    (first,) = json.loads(out.read_text())["rows"]
    assert first["epochs"] == 3
    assert np.isfinite(first["test_log_likelihood"])
    # The second run keeps the first one's row and adds a seed.
    monkeypatch.setattr(
        density, "fit", lambda path, candidate, seed: row(path.stem, candidate, seed, -1.0, -2.0)
    )
    assert density.main([*options, "--only", "nltcs", "--seeds", "2", "--resume"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["seed"] for r in rows] == [0, 1]
    assert {**rows[0], **first} == rows[0]
    assert rows[1]["test_log_likelihood"] == -2.0
    assert "| nltcs |" in table.read_text()
    assert "| nltcs |" in capsys.readouterr().out


def test_failures_are_told(data, tmp_path, monkeypatch):
    monkeypatch.setattr(density, "CANDIDATES", {"wrong": ("--units", "0")})
    out = tmp_path / "out.json"
    options = ["--data-dir", str(data), "--json", str(out), "--only", "nltcs", "--seeds", "1"]
    assert density.main(options) == 1
    (failed,) = json.loads(out.read_text())["rows"]
    assert failed["status"] == "failed"
    assert "--units" in failed["detail"]
    with pytest.raises(SystemExit, match="No data set is named"):
        density.main(["--data-dir", str(data), "--only", "unknown"])
