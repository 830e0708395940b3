"""The benchmark of a device, at tiny size: its rows, their checks, and its budget."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import _device_rows as rows_of
from benchmarks import device


class Here:
    """Runs jobs in this process, where they can be tampered with."""

    def __init__(self, job, setup):
        self.job = job

    def run(self, limit, *arguments):
        return self.job(*arguments)

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(device.shared, "Worker", Here)


# The first two rows, whose rates the others' shares are of, and one of each kind.
SOME = (
    "copy", "product float32 highest", "BP ising1000", "circuit EM step", "LDPC decoding",
    "projection update",
)  # fmt: skip


@pytest.mark.parametrize(
    "names", [SOME, pytest.param(tuple(rows_of.TASKS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_rows_agree_with_the_host(names, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device, "_cpu_name", lambda: "an abacus")
    out, table = tmp_path / "device.json", tmp_path / "device.md"
    only = [] if names != SOME else [word for name in names for word in ("--only", name)]
    run = ["--size", "tiny", "--json", str(out), "--markdown", str(table), *only]
    assert device.main(run) == 0
    report = json.loads(out.read_text())
    assert (report["platform"], report["device_kind"]) == ("cpu", "an abacus")
    assert {"commit", "date", "versions", "float_bits", "load"} <= report.keys()
    assert [row["row"] for row in report["rows"]] == list(names)
    for row in report["rows"]:
        assert row["status"] == "ok"
        assert row["error"] <= row["tolerance"]
        assert row["min_s"] <= row["median_s"]
        assert row["first_s"] >= row["compile_s"] > 0
        assert row["samples"] >= 3
        assert row["peak_bytes"] > 0
        assert row["compiler_bytes"] > 0
        # The larger of the two least times, over the median.
        assert (
            0
            < row["share"]
            == pytest.approx(
                max(
                    row["bytes"] / (report["rows"][0]["amount"] / report["rows"][0]["min_s"]),
                    row["flops"] / (report["rows"][1]["amount"] / report["rows"][1]["min_s"]),
                )
                / row["median_s"]
            )
        )
    assert report["rows"][0]["error"] == 0
    text = table.read_text()
    assert text.startswith("# This package on an abacus")
    assert "no accelerator, " in text
    assert "WRONG" not in text
    assert all(f"| {name} |" in text for name in names)
    assert capsys.readouterr().out.startswith(text)


@pytest.mark.parametrize("amiss", ["beliefs", "nan"])
def test_a_wrong_answer_is_reported(amiss, tmp_path, monkeypatch, capsys):
    """A device that is off by a few parts in a thousand, or that answers NaN."""
    right = rows_of.TASKS["circuit forward"]("tiny", "cpu")

    def broken(*arguments):
        found = right.function(*arguments)["log-values"]
        if found.dtype == np.float64:  # the host
            return {"log-values": found}
        return {"log-values": found * 1.003 if amiss == "beliefs" else found * jnp.nan}

    task = dataclasses.replace(right, function=broken)
    monkeypatch.setitem(rows_of.TASKS, "circuit forward", lambda size, platform: task)
    out = tmp_path / "device.json"
    run = ["--size", "tiny", "--only", "circuit forward", "--json", str(out)]
    assert device.main(run) == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["status"] == "wrong"
    if amiss == "beliefs":
        assert row["error"] == pytest.approx(0.003, rel=1e-3)  # float32 beside float64: 1e-7
    else:
        assert row["error"] is None  # infinite
    assert "**WRONG**" in capsys.readouterr().out


def test_a_row_that_fails_is_reported(monkeypatch, capsys):
    answers = {"": device.device_facts(), "copy": {"status": "error", "detail": "no memory"}}
    monkeypatch.setattr(Here, "run", lambda self, limit, name, *rest: answers[name])
    assert device.main(["--only", "copy"]) == 1
    assert "- copy: **error**: no memory." in capsys.readouterr().out


def test_the_budget_is_kept(monkeypatch, capsys):
    """Each row takes what it may of a clock of our own; what does not fit is named."""
    clock, asked = [0.0], []
    monkeypatch.setattr(device.shared, "now", lambda: clock[0])
    facts = device.device_facts()

    def run(self, limit, name, size, repeats):
        if not name:
            return dict(facts)
        asked.append((limit, repeats))
        clock[0] += min(limit, 40.0)
        if limit < 40:
            return {"status": "time limit", "limit_s": limit}
        return {"status": "error", "detail": "only a clock"}

    monkeypatch.setattr(Here, "run", run)
    device.main(["--seconds", "100"])
    assert [limit for limit, _ in asked] == [100, 60, 20]
    # A third of a row's share of what is left: twelve rows, then eleven.
    np.testing.assert_allclose([r for _, r in asked[:2]], [100 / 12 / 3, 60 / 11 / 3])
    text = capsys.readouterr().out
    assert "- product float32 default: **time limit**: stopped when 100 s were used up." in text
    assert text.count("**dropped**: 100 s were used up before it.") == len(rows_of.TASKS) - 3
    monkeypatch.setattr(Here, "run", lambda self, limit, name, *_: facts if not name else 1 / 0)
    assert device.main(["--seconds", "0"]) == 0  # nothing was wrong


def test_an_accelerator(monkeypatch):
    """Queued calls and products at JAX's default precision; here they are the same numbers."""
    monkeypatch.setattr(device, "_device", lambda: (jax.devices()[0], "gpu"))
    row = device.measure("Adam update", "tiny", 0.01)
    assert row["status"] == "ok"
    assert row["default_precision"]["error"] == row["error"]
    assert row["default_precision"]["median_s"] > 0
    clock, calls = [0.0], []
    monkeypatch.setattr(device.shared, "now", lambda: clock[0])

    def call():
        clock[0] += 2**-10
        calls.append(None)

    found = device.sample(call, 0.125, "gpu")  # about 10 ms per sample
    assert (len(found), len(calls)) == (12, 1 + 12 * 10)
    assert set(found) == {2**-10}
    assert len(device.sample(call, 0.125, "cpu")) == device.MOST
    assert len(device.sample(call, 0.0, "cpu")) == device.LEAST


def test_memory_of_the_allocator_comes_first():
    compiled = jax.jit(jnp.sin).lower(np.zeros(8, np.float32)).compile()

    class Device:
        def memory_stats(self):
            return {"peak_bytes_in_use": 12345}

    found = device.memory_of(compiled, Device())
    assert (found["peak_bytes"], found["peak_source"]) == (12345, "allocator")
    assert found["program_bytes"] == 64  # eight numbers in, eight out


def test_the_host_stays_available(monkeypatch):
    """An accelerator alone, asked for by name, would leave nothing to check with."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    seen = []

    def run(self, limit, *arguments):
        seen.append(device.os.environ["JAX_PLATFORMS"])
        return {"status": "died", "detail": "no such device"}

    monkeypatch.setattr(Here, "run", run)
    with pytest.raises(SystemExit, match="No device answers: no such device"):
        device.main([])
    assert seen == ["cuda,cpu"]
