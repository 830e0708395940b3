"""Circuits against cirkit: forward, gradient, an epoch, build and compile, CPU seconds.

Hidden Chow-Liu trees of the same data, units and batch, float32. Each side is a process of its own
and their runs alternate. cirkit (torch, one thread) needs an environment of its own:
``--setup-peers`` makes one under ``benchmarks/.env``, or KLPROJAX_CIRKIT_PYTHON names its Python;
without one only our side runs, beside figures recorded elsewhere and marked so. cirkit puts a dense
layer above its inputs, so it has more parameters than our circuit of equally many units.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import _shared as shared
from benchmarks._peers._serve import Side

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".env" / "cirkit"
REQUIREMENTS = ("libcirkit==0.3.1", "torch==2.13.0")

DATA = ("nltcs", "plants")
UNITS = (16, 32, 64)
BATCH = 1024
# Relative, of log-likelihoods for the same circuit and weights, in float32.
MAX_DIFFERENCE = 1e-5
TARGETS = {"forward": 3.0, "gradient": 3.0, "epoch": 5.0, "build": 2.0}
# cirkit 0.3.1, torch 2.13.0, one thread, on another machine: milliseconds at batch 1024.
RECORDED_MS = {
    ("nltcs", 16): {"forward": 6.8, "gradient": 18.9},
    ("nltcs", 32): {"forward": 9.2, "gradient": 32.0},
    ("nltcs", 64): {"forward": 16.5, "gradient": 43.0},
    ("plants", 16): {"forward": 53.0, "gradient": 104.0},
    ("plants", 32): {"forward": 58.0, "gradient": 141.0},
    ("plants", 64): {"forward": 143.0, "gradient": 379.0},
}


def setup_peers() -> None:
    """Make the environment that cirkit runs in (about 1 GB)."""
    print(f"Making {ENVIRONMENT} with {' '.join(REQUIREMENTS)} ...", flush=True)
    shared.make_environment(ENVIRONMENT, REQUIREMENTS)


def peer_python() -> str | None:
    """The Python that has cirkit, if there is one."""
    return shared.python_of(ENVIRONMENT, "KLPROJAX_CIRKIT_PYTHON")


def load(data: Path, name: str, part: str = "train") -> np.ndarray:
    """Rows of a density-estimation set: its part train, valid or test."""
    with np.load(data / "density20" / f"{name}.npz") as file:
        return np.unpackbits(file[part], axis=1, count=int(file["n_vars"]))


def measure(
    rows: np.ndarray, units: int, folder: Path, python: str | None, repeats: int
) -> dict[str, Any]:
    """Build both sides, then time them in turn."""
    path = folder / "rows.npy"
    np.save(path, rows)
    sides = {"ours": (sys.executable, "benchmarks._circuits_ours")}
    if python is not None:
        sides["cirkit"] = (python, "benchmarks._peers.cirkit_run")
    with ExitStack() as stack:
        out: dict[str, Any] = {}
        running = {}
        for name, (program, module) in sides.items():
            side = stack.enter_context(Side(program, module, log=folder / f"{name}.log"))
            out[name] = side.do("start")
            out[name] |= side.do("build", path=str(path), units=units, batch=BATCH)
            running[name] = side
        tasks = [(name, task) for task in ("forward", "gradient", "epoch") for name in running]
        tasks += [("ours", "flows"), ("ours", "epoch_em")]
        samples: dict[tuple[str, str], list[float]] = {task: [] for task in tasks}
        for name, task in tasks:
            running[name].do("time", task=task, calls=1)  # compiles what is left
        for turn in range(repeats):
            for name, task in tasks if turn % 2 == 0 else reversed(tasks):
                calls = 1 if task.startswith("epoch") else 10
                answer = running[name].do("time", task=task, calls=calls)
                samples[name, task].append(answer["cpu_s"])
        for (name, task), found in samples.items():
            out[name][task] = statistics.median(found)
        for name in running:
            out[name]["build"] = out[name]["build"]["cpu_s"]
            out[name] |= running[name].do("memory")
        if python is not None:
            exported = str(folder / "circuit.npz")
            running["cirkit"].do("export", path=str(path), units=units, batch=BATCH, out=exported)
            out["same"] = running["ours"].do("same", path=str(path), batch=BATCH, exported=exported)
    return out


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """cirkit's seconds over ours, live or recorded."""
    if "cirkit" in row:
        return {task: row["cirkit"][task] / row["ours"][task] for task in TARGETS}
    known = RECORDED_MS[row["data"], row["units"]]
    return {task: known[task] / 1e3 / row["ours"][task] for task in known}


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    live = report["peer"] == "live"
    headings = ["data", "units", "side", "forward ms", "gradient ms", "epoch s", "build s", "MiB"]
    body = []
    for row in report["rows"]:
        for side in ("ours", "cirkit"):
            if side in row:
                f = row[side]
                body.append(
                    [
                        row["data"],
                        str(row["units"]),
                        side,
                        f"{1e3 * f['forward']:.2f}",
                        f"{1e3 * f['gradient']:.2f}",
                        f"{f['epoch']:.3f}",
                        f"{f['build']:.2f}",
                        f"{f['peak_rss_mib']:.0f}",
                    ]
                )
        body.append(
            [
                row["data"],
                str(row["units"]),
                "ratio",
                *(shared.figure(row["ratios"].get(task), ".1f") for task in TARGETS),
                "-",
            ]
        )
    said = "beside ours in this run" if live else "RECORDED on another machine, not run here"
    gaps = [row["same"]["difference"] for row in report["rows"] if "same" in row]
    same = (
        f"For cirkit's circuits and weights both give the same log-likelihoods to {max(gaps):.0e} "
        "(relative).\n\n"
        if gaps
        else ""
    )
    missed = [
        f"{row['data']} {row['units']} {task} {row['ratios'][task]:.1f} (target {TARGETS[task]:g})"
        for row in report["rows"]
        for task in row["ratios"]
        if row["ratios"][task] < TARGETS[task]
    ]
    return (
        "# Circuits against cirkit\n\n"
        f"`python -m benchmarks circuits`, hidden Chow-Liu trees, float32, batch {BATCH}, Adam; "
        f"CPU seconds of the whole process, medians; {report['device']}, {report['cpu_count']} "
        f"cores, jax {report['versions']['jax']}, commit {str(report['commit'])[:12]}, "
        f"{report['date'][:10]}, load {report['load'][0]:.1f}. cirkit: {said}.\n\n"
        + same
        + (f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n")
        + shared.markdown_table(headings, body)
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("circuits", __doc__, DATA)
    shared.add_data_dir(out, "density20/")
    shared.add_peer(out, "cirkit", 5)
    out.add_argument("--units", action="append", default=[], type=int, help="repeatable")
    out.add_argument("--rows", type=int, help="use only so many training rows")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    data = shared.data_dir(options)
    if options.setup_peers:
        setup_peers()
    python = None if options.no_peer else peer_python()
    report: dict[str, Any] = {
        "benchmark": "circuits",
        **shared.environment(32),
        "load": list(os.getloadavg()),
        "peer": "recorded" if python is None else "live",
        "requirements": REQUIREMENTS,
        "rows": [],
    }
    cases = [(d, u) for d in options.only or DATA for u in options.units or UNITS]
    for name, units in shared.tracked(cases, lambda case: f"{case[0]} {case[1]}"):
        with tempfile.TemporaryDirectory() as folder:
            rows = load(data, name)[: options.rows]
            row = measure(rows, units, Path(folder), python, options.repeats)
        row = {"data": name, "units": units, **row}
        known = python is not None or (name, units) in RECORDED_MS
        row["ratios"] = ratios(row) if known else {}
        report["rows"].append(row)
        if options.json is not None:
            shared.write_json(options.json, report)
    text = markdown(report)
    Console().print(text, markup=False, soft_wrap=True)
    if options.markdown is not None:
        options.markdown.write_text(text)
    met = all(
        row["ratios"][task] >= TARGETS[task] for row in report["rows"] for task in row["ratios"]
    )
    met &= all(
        row["same"]["difference"] <= MAX_DIFFERENCE for row in report["rows"] if "same" in row
    )
    return 0 if met else 1
