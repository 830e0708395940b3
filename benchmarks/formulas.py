"""Compiled formulas against KLay and PySDD: a sweep with gradient, the first value, CPU seconds.

SDDs of reference formulas, and one d-DNNF in d4's form (made by `compile_model`), with literal
weights P(v true) = (v mod 7 + 1) / 9, float32 (PySDD: float64). Each side is a process of its own
and their runs alternate. KLay's (JAX) and PySDD's environment is made by ``--setup-peers`` under
``benchmarks/.env``, or KLPROJAX_KLAY_PYTHON names its Python; without one only our side runs.

The first value counts reading the file; KLay's includes a compilation. PySDD reads no d-DNNF, and
its warm figure is a value alone, without gradient.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import _shared as shared
from benchmarks._peers._serve import Side

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".env" / "klay"
REQUIREMENTS = ("klaycircuits==0.1.2", "PySDD==1.0.6", "jax==0.10.2")
CASES = ("C17_mince", "majority_mince", "b1_mince", "cm82a_mince", "parity_mince")
NNF_OF = "parity_mince"
# Relative, of log-counts of the same formula and weights, in float32.
MAX_DIFFERENCE = 1e-5
# Our warm sweep with gradient takes no longer than KLay's; the first value of a circuit of fewer
# edges than this comes within so many CPU seconds of PySDD's.
SMALL_EDGES, FIRST_GAP_S = 1000, 0.5
CALLS = 20


def setup_peers() -> None:
    """Make the environment that both peers run in (about 500 MB)."""
    print(f"Making {ENVIRONMENT} with {' '.join(REQUIREMENTS)} ...", flush=True)
    shared.make_environment(ENVIRONMENT, REQUIREMENTS)


def peer_python() -> str | None:
    """The Python that has the peers, if there is one."""
    return shared.python_of(ENVIRONMENT, "KLPROJAX_KLAY_PYTHON")


def measure(
    file: str, vtree: str, variables: int, folder: Path, python: str | None, repeats: int
) -> dict[str, Any]:
    """Let every side read one file, then time them in turn."""
    sides = {"ours": (sys.executable, "benchmarks._formulas_ours")}
    if python is not None:
        sides["klay"] = (python, "benchmarks._peers.klay_run")
        if not file.endswith(".nnf"):
            sides["pysdd"] = (python, "benchmarks._peers.pysdd_run")
    with ExitStack() as stack:
        out: dict[str, Any] = {}
        running = {}
        for name, (program, module) in sides.items():
            side = stack.enter_context(Side(program, module, log=folder / f"{name}.log"))
            out[name] = side.do("start")
            out[name] |= side.do("first", file=file, vtree=vtree, variables=variables)
            side.do("time", task="sweep", calls=1)  # compiles what is left
            running[name] = side
        samples: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(repeats):
            for name in running if turn % 2 == 0 else reversed(running):
                answer = running[name].do("time", task="sweep", calls=CALLS)
                samples[name].append(answer["cpu_s"])
        for name, found in samples.items():
            out[name]["sweep"] = min(found)  # other load only adds
    return out


def faults(row: dict[str, Any], log_count: float) -> list[str]:
    """What the row misses."""
    out = []
    for name in ("ours", "klay", "pysdd"):
        if name in row and abs(row[name]["value"] - log_count) > MAX_DIFFERENCE * abs(log_count):
            out.append(f"{row['case']}: {name} disagrees with the reference")
    if "klay" in row and row["ours"]["sweep"] > row["klay"]["sweep"]:
        out.append(f"{row['case']}: a warm sweep takes longer than KLay's")
    if "pysdd" in row and row["ours"]["edges"] < SMALL_EDGES:
        gap = row["ours"]["first"] - row["pysdd"]["first"]
        if gap > FIRST_GAP_S:
            out.append(f"{row['case']}: the first value comes {gap:.2f} s after PySDD's")
    return out


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    headings = ["circuit", "edges", "side", "first value ms", "sweep with gradient µs"]
    body = []
    for row in report["rows"]:
        for side in ("ours", "klay", "pysdd"):
            if side in row:
                f = row[side]
                warm = f"{1e6 * f['sweep']:.0f}" + (" (no gradient)" if side == "pysdd" else "")
                first = f"{1e3 * f['first']:.0f}"
                body.append([row["case"], str(row["ours"]["edges"]), side, first, warm])
    missed = [fault for row in report["rows"] for fault in row["faults"]]
    live = "beside ours in this run" if report["peer"] == "live" else "not run"
    return (
        "# Compiled formulas against KLay and PySDD\n\n"
        f"`python -m benchmarks formulas`, CPU seconds of the whole process, least of several; "
        f"{report['device']}, {report['cpu_count']} cores, jax {report['versions']['jax']}, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}, load {report['load'][0]:.1f}. "
        f"{', '.join(report['requirements'])}: {live}.\n\n"
        + (f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n")
        + shared.markdown_table(headings, body)
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("formulas", __doc__, (*CASES, "nnf"))
    shared.add_data_dir(out, "circuits/sdd_from_cnf/")
    shared.add_peer(out, "KLay and PySDD", 40)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    data = shared.data_dir(options) / "circuits" / "sdd_from_cnf"
    if options.setup_peers:
        setup_peers()
    python = None if options.no_peer else peer_python()
    report: dict[str, Any] = {
        "benchmark": "formulas",
        **shared.environment(32),
        "load": list(os.getloadavg()),
        "peer": "none" if python is None else "live",
        "requirements": REQUIREMENTS,
        "rows": [],
    }
    reference = json.loads((data / "counts.json").read_text())
    for case in shared.tracked(options.only or (*CASES, "nnf"), str):
        with tempfile.TemporaryDirectory() as scratch:
            name = NNF_OF if case == "nnf" else case
            file, vtree = data / f"{name}.sdd", data / f"{name}.vtree"
            if case == "nnf":
                from benchmarks._formulas_ours import write_d4

                file = Path(scratch) / "formula.nnf"
                write_d4(file, data.parent / reference[name]["cnf"])
            record = reference[name]
            row = measure(
                str(file), str(vtree), record["n_vars"], Path(scratch), python, options.repeats
            )
        row = {"case": case, **row}
        row["faults"] = faults(row, record["log_weighted_count"])
        report["rows"].append(row)
        if options.json is not None:
            shared.write_json(options.json, report)
    text = markdown(report)
    Console().print(text, markup=False, soft_wrap=True)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return int(any(row["faults"] for row in report["rows"]))
