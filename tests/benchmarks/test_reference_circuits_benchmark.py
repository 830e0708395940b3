"""The benchmark of circuits from files, on a file of its own."""

import json

import numpy as np
import pytest

from benchmarks import reference_circuits

# Two variables that are always equal: both true with probability 0.3.
PSDD = f"""psdd 5
L 0 0 1
L 1 0 -1
L 2 2 2
L 3 2 -2
D 4 1 2 0 2 {np.log(0.3)} 1 3 {np.log(0.7)}
"""


@pytest.fixture
def data(tmp_path):
    """A circuit with its answers, and a density set to measure it on."""
    (tmp_path / "circuits").mkdir()
    (tmp_path / "density20").mkdir()
    (tmp_path / "circuits" / "toy.psdd").write_text(PSDD)
    rows = np.array([[1, 1], [0, 0], [0, 0]], np.uint8)
    np.savez(tmp_path / "density20" / "toy.npz", test=np.packbits(rows, axis=1), n_vars=2)
    record = {"format": "psdd", "file": "toy.psdd", "log_partition": 0.0}
    record["avg_ll_test"] = (np.log(0.3) + 2 * np.log(0.7)) / 3

    def write(**changes):
        content = {"toy.small": record | changes, "other": record | {"format": "unread"}}
        (tmp_path / "circuits" / "REFERENCE.json").write_text(json.dumps(content))

    write()
    return tmp_path, write


def test_agrees_and_says_when_not(data, tmp_path, capsys):
    folder, write = data
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    options = ["--data-dir", str(folder), "--only", "toy.small"]
    run = [*options, "--json", str(out), "--markdown", str(table)]
    assert reference_circuits.main(run) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["variables"], row["test_rows"]) == (2, 3)
    assert row["log_partition_difference"] < 1e-12  # rounding of numbers of size 1
    assert row["test_difference"] < 1e-12
    assert row["sweep_cpu_s"] > 0
    assert "disagreeing with the reference: none" in table.read_text()
    write(avg_ll_test=-0.6)
    assert reference_circuits.main(options) == 1
    assert "disagreeing with the reference: toy.small" in capsys.readouterr().out


def test_rows_are_optional(data):
    folder, write = data
    (folder / "density20" / "toy.npz").unlink()
    assert reference_circuits.rows_to_score(folder, "toy.small") is None
    write(log_partition=1.0)
    assert reference_circuits.main(["--data-dir", str(folder), "--only", "toy.small"]) == 1
