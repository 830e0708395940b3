"""Belief propagation against PGMax: speed, first call, memory, gradients, batches, bandwidth.

Both sides run the same arrays, sum-product without damping, exactly T iterations, float32. Each is
a process of its own that stays alive, and their runs alternate. PGMax needs an environment of its
own: ``--setup-peers`` makes one under ``benchmarks/.env``, or KLPROJAX_PGMAX_PYTHON names its
Python; without one its figures come from a recording and are marked so. ising2000 runs by default
only on a GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _bp_report as report
from benchmarks import _shared as shared
from benchmarks._bp_problems import PROBLEMS, Problem, bytes_per_iteration, problem
from benchmarks._peers._serve import Side

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".env" / "pgmax"
REQUIREMENTS = ("pgmax==0.6.1", "jax==0.7.2")

INFERENCE = ("ising100", "ising300", "states8", "states64")
ACCELERATOR = ("ising2000",)
GRADIENT_CASE = "ising300"
ADJOINTS = ("implicit", "unrolled")
GRADIENT_ITERATIONS = (50, 200)
MEMORY_ITERATIONS = (50, 100, 200, 400, 800)
# case, what is batched, how many
BATCHES = (
    ("ising100", "evidence", 64),
    ("states8", "evidence", 64),
    ("ising100", "potentials", 64),
    ("states8", "potentials", 16),
)
SECTIONS = ("gradient", "memory", "batch", "roofline")
CASES = (*INFERENCE, *ACCELERATOR, *SECTIONS)


def setup_peers() -> int:
    """Make the environment that PGMax runs in (a few GB)."""
    print(f"Making {ENVIRONMENT} with {' '.join(REQUIREMENTS)} ...", flush=True)
    python = shared.make_environment(ENVIRONMENT, REQUIREMENTS)
    return subprocess.run([python, "-c", "import pgmax"], check=True).returncode


def peer_python() -> str | None:
    """The Python that has PGMax, if there is one."""
    return shared.python_of(ENVIRONMENT, "KLPROJAX_PGMAX_PYTHON")


def summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Median and least of the samples' CPU and wall seconds."""
    return {
        clock: {
            "median": statistics.median(s[clock] for s in samples),
            "min": min(s[clock] for s in samples),
        }
        for clock in ("cpu_s", "wall_s")
    } | {"samples": len(samples)}


def alternate(
    tasks: list[tuple[Side, str]], rounds: int, sample_s: float = 0.3
) -> list[dict[str, Any]]:
    """Time tasks in turn; each sample averages enough calls to last about ``sample_s``."""
    calls = []
    for side, task in tasks:
        once = side.do("time", task=task, calls=1)["wall_s"]
        calls.append(max(1, min(50, round(sample_s / max(once, 1e-6)))))
    samples: list[list[dict[str, float]]] = [[] for _ in tasks]
    for turn in range(rounds):
        order = range(len(tasks)) if turn % 2 == 0 else reversed(range(len(tasks)))
        for i in order:
            side, task = tasks[i]
            samples[i].append(side.do("time", task=task, calls=calls[i]))
    return [summary(s) for s in samples]


class Bench:
    """One run: who the sides are, where files go, what was measured."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.python = None if options.no_peer else peer_python()
        self.recorded: dict[str, Any] = {}
        self.recording: dict[str, Any] = {"cases": {}}
        if self.python is None and options.recorded.exists():
            self.recorded = json.loads(options.recorded.read_text())
        self.ours_start: dict[str, Any] = {}
        self.peer_start: dict[str, Any] = {}

    @property
    def peer_source(self) -> str:
        """Whether the peer's figures are live, recorded or missing."""
        return "live" if self.python else "recorded" if self.recorded else "none"

    def ours(self, stack: ExitStack) -> Side:
        """A fresh process of ours."""
        side = stack.enter_context(
            Side(sys.executable, "benchmarks._bp_ours", log=self.folder / "ours.log")
        )
        self.ours_start = side.do("start")
        return side

    def peer(self, stack: ExitStack, case: str) -> Side | None:
        """A fresh process of the peer."""
        if self.python is None or case in self.options.skip_peer:
            return None
        side = stack.enter_context(
            Side(self.python, "benchmarks._peers.pgmax_run", log=self.folder / "pgmax.log")
        )
        self.peer_start = side.do("start")
        return side

    def known(self, case: str, section: str) -> dict[str, Any] | None:
        """What the recording says."""
        return self.recorded.get("cases", {}).get(case, {}).get(section)

    def record(self, case: str, section: str, figures: dict[str, Any]) -> None:
        """Keep the peer's figures for a recording."""
        self.recording["cases"].setdefault(case, {})[section] = figures

    def problem(self, case: str) -> tuple[Problem, str]:
        """The problem, and the file it is in."""
        path = self.folder / f"{case}.npz"
        if not path.exists():
            problem(case, self.options.size).save(path)
        return Problem.load(path), str(path)

    def iterations(self, wanted: int) -> int:
        """As asked for, or fewer at tiny size, which converges sooner."""
        return wanted if self.options.size == "full" else wanted // 2


def probe_rows(given: Problem) -> np.ndarray:
    """Variables whose numbers a recording keeps."""
    return np.unique(np.linspace(0, given.variables - 1, 32).astype(int))


def gap(ours: np.ndarray, rows: np.ndarray, peer: dict[str, Any] | None, key: str) -> float | None:
    """Largest difference: over all numbers when the peer ran, else over those recorded."""
    if peer is None:
        return None
    if "full" in peer:
        return float(np.abs(ours - peer["full"][key]).max())
    return float(np.abs(ours[rows] - np.asarray(peer["probe"][key])).max())


def ratio(ours: dict[str, Any], peer: dict[str, Any] | None, clock: str) -> float | None:
    """How many times longer the peer takes."""
    if peer is None:
        return None
    pick = lambda figures: figures[clock]["median"] if "samples" in figures else figures[clock]  # noqa: E731
    return pick(peer) / pick(ours)


def inference(bench: Bench, case: str, clock: str | None = None) -> dict[str, Any]:
    """Build, first call, runs, memory and beliefs of one problem."""
    given, path = bench.problem(case)
    rows = probe_rows(given)
    out = {side: str(bench.folder / f"{case}.{side}.npy") for side in ("ours", "peer", "eager")}
    with ExitStack() as stack:
        side = bench.ours(stack)
        mine: dict[str, Any] = side.do("first", path=path, out=out["ours"])
        other = bench.peer(stack, case)
        if other is None:
            (mine["run"],) = alternate([(side, "marginals")], bench.options.repeats)
            mine |= side.do("memory")
            theirs = bench.known(case, "inference")
        else:
            theirs = other.do("first", path=path, out=out["peer"], compiled=True)
            mine["run"], theirs["run"] = alternate(
                [(side, "marginals"), (other, "marginals")], bench.options.repeats
            )
            mine |= side.do("memory")
            theirs |= other.do("memory")
            full = np.load(out["peer"])
            theirs["probe"] = {"beliefs": full[rows].tolist()}
            with ExitStack() as inner:  # the call without jit, in a process that has seen nothing
                plain = bench.peer(inner, case)
                assert plain is not None
                theirs["eager_first"] = plain.do(
                    "first", path=path, out=out["eager"], compiled=False
                )["first"]
                (theirs["eager_run"],) = alternate([(plain, "marginals")], 3)
            bench.record(case, "inference", theirs)
            theirs = {**theirs, "full": {"beliefs": full}}
    clock = clock or ("cpu_s" if bench.ours_start["platform"] == "cpu" else "wall_s")
    beliefs = np.load(out["ours"])
    row = {
        "case": case,
        "states": given.states,
        "variables": given.variables,
        "factors": len(given.scopes),
        "iterations": given.iterations,
        "clock": clock,
        "ours": mine,
        "messages_per_s": given.messages * given.iterations / mine["run"][clock]["median"],
        "max_difference": gap(beliefs, rows, theirs, "beliefs"),
    }
    if theirs is not None:
        theirs.pop("full", None)
        row["ratios"] = {
            "run": ratio(mine["run"], theirs["run"], clock),
            "build": ratio(mine["build"], theirs["build"], clock),
            "first": ratio(mine["first"], theirs["first"], clock),
            "first_eager": ratio(mine["first"], theirs["eager_first"], clock),
            "peak_rss": theirs["peak_rss_mib"] / mine["peak_rss_mib"],
        }
    return row | {"peer": theirs}


def gradient(bench: Bench) -> list[dict[str, Any]]:
    """Value and gradient of a loss on the beliefs, the peer through all iterations."""
    case = GRADIENT_CASE
    given, path = bench.problem(case)
    rows, out = probe_rows(given), []
    with ExitStack() as stack:
        side = bench.ours(stack)
        side.do("first", path=path, out=str(bench.folder / "gradient.npy"))
        other = bench.peer(stack, case)
        if other is not None:
            other.do("first", path=path, out=str(bench.folder / "gradient.npy"), compiled=True)
        for asked in GRADIENT_ITERATIONS:
            steps = bench.iterations(asked)
            files = {k: str(bench.folder / f"{k}{steps}.npz") for k in (*ADJOINTS, "peer")}
            mine = {
                a: side.do("gradient", iterations=steps, adjoint=a, out=files[a]) for a in ADJOINTS
            }
            tasks = [(side, f"gradient{steps}_{a}") for a in ADJOINTS]
            if other is None:
                theirs = bench.known(case, f"gradient{steps}")
            else:
                theirs = other.do("gradient", iterations=steps, out=files["peer"])
                tasks.append((other, f"gradient{steps}"))
            runs = alternate(tasks, min(5, bench.options.repeats))
            for adjoint, run in zip(ADJOINTS, runs, strict=False):
                mine[adjoint]["run"] = run
            if other is not None:
                theirs["run"] = runs[-1]
                full = np.load(files["peer"])
                theirs["value"] = float(full["value"])
                theirs["probe"] = {"by_unaries": full["by_unaries"][rows].tolist()}
                bench.record(case, f"gradient{steps}", theirs)
                theirs = {**theirs, "full": full}
            clock = "cpu_s" if bench.ours_start["platform"] == "cpu" else "wall_s"
            for adjoint in ADJOINTS:
                found = np.load(files[adjoint])
                largest = float(np.abs(found["by_unaries"]).max())
                difference = gap(found["by_unaries"], rows, theirs, "by_unaries")
                out.append(
                    {
                        "case": case,
                        "iterations": steps,
                        "adjoint": adjoint,
                        "clock": clock,
                        "ours": mine[adjoint],
                        "peer": None
                        if theirs is None
                        else {k: v for k, v in theirs.items() if k != "full"},
                        "ratio": None
                        if theirs is None
                        else ratio(mine[adjoint]["run"], theirs["run"], clock),
                        "relative_difference": None if difference is None else difference / largest,
                    }
                )
    return out


def memory(bench: Bench) -> list[dict[str, Any]]:
    """Temporaries of the compiled gradient against the number of iterations."""
    case, out = GRADIENT_CASE, []
    _, path = bench.problem(case)
    with ExitStack() as stack:
        side = bench.ours(stack)
        side.do("first", path=path, out=str(bench.folder / "memory.npy"))
        other = bench.peer(stack, case)
        if other is not None:
            other.do("first", path=path, out=str(bench.folder / "memory.npy"), compiled=True)
        for asked in MEMORY_ITERATIONS:
            steps = bench.iterations(asked)
            row: dict[str, Any] = {"case": case, "iterations": steps}
            for adjoint in ADJOINTS:
                answer = side.do("gradient", iterations=steps, adjoint=adjoint, out=None)
                row[adjoint] = answer["temp_bytes"]
            if other is None:
                row["peer"] = (bench.known(case, "memory") or {}).get(str(steps))
            else:
                row["peer"] = other.do("gradient", iterations=steps, out=None)["temp_bytes"]
            out.append(row)
        if other is not None:
            bench.record(case, "memory", {str(row["iterations"]): row["peer"] for row in out})
    return out


def batch(bench: Bench) -> list[dict[str, Any]]:
    """One call on many evidences or potentials against as many single calls."""
    out = []
    for case, kind, count in BATCHES:
        given, path = bench.problem(case)
        count = count if bench.options.size == "full" else 3
        rng = np.random.default_rng(1)
        if kind == "evidence":
            noise = rng.normal(scale=0.5, size=(count, *given.unaries.shape))
            rows = given.unaries + noise.astype(np.float32)
        else:
            scale = rng.uniform(0.5, 1.0, size=(count, len(given.scopes), 1, 1))
            rows = given.log_potentials * scale.astype(np.float32)
        file = str(bench.folder / "batch.npy")
        np.save(file, rows)
        with ExitStack() as stack:
            side = bench.ours(stack)
            side.do("first", path=path, out=str(bench.folder / "single.npy"))
            mine = side.do("batch", kind=kind, path=file)
            tasks = [(side, f"batch_{kind}"), (side, f"single_{kind}")]
            other = bench.peer(stack, case)
            if other is None:
                theirs = bench.known(case, f"batch_{kind}")
            else:
                other.do("first", path=path, out=str(bench.folder / "single.npy"), compiled=True)
                theirs = other.do("batch", kind=kind, path=file)
                tasks.append((other, f"batch_{kind}"))
            runs = alternate(tasks, min(3, bench.options.repeats))
            together, alone = runs[:2]
            if other is not None:
                theirs["run"] = runs[2]
                bench.record(case, f"batch_{kind}", theirs)
            clock = "cpu_s" if bench.ours_start["platform"] == "cpu" else "wall_s"
            out.append(
                {
                    "case": case,
                    "batched": kind,
                    "count": count,
                    "clock": clock,
                    "ours": mine | {"run": together, "single": alone} | side.do("memory"),
                    "throughput": {
                        c: count * alone[c]["median"] / together[c]["median"]
                        for c in ("cpu_s", "wall_s")
                    },
                    "peer": theirs,
                    "ratio": None if theirs is None else ratio(together, theirs["run"], clock),
                }
            )
    return out


def roofline(bench: Bench, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Bytes an iteration must move, against the memory bandwidth measured beside it."""
    out = []
    for case in names:
        given, path = bench.problem(case)
        with ExitStack() as stack:
            side = bench.ours(stack)
            side.do("first", path=path, out=str(bench.folder / "roofline.npy"))
            many = 5 * given.iterations
            side.do("longer", iterations=many)
            megabytes = 256 if bench.options.size == "full" else 1
            bandwidth, short, long = 0.0, float("inf"), float("inf")
            for _ in range(bench.options.repeats):
                bandwidth = max(bandwidth, side.do("bandwidth", megabytes=megabytes)["bytes_per_s"])
                short = min(short, side.do("time", task="marginals", calls=2)["wall_s"])
                long = min(long, side.do("time", task="longer", calls=1)["wall_s"])
        # The difference leaves out what is done once per call; on a tiny problem it is noise.
        each = (long - short) / (many - given.iterations) if long > short else None
        moved = bytes_per_iteration(given)
        achieved = None if each is None else float(moved["bytes"]) / each
        out.append(
            {
                "case": case,
                **moved,
                "seconds_per_iteration": each,
                "once_per_call_s": None if each is None else short - given.iterations * each,
                "achieved_bytes_per_s": achieved,
                "triad_bytes_per_s": bandwidth,
                "share": None if achieved is None else achieved / bandwidth,
            }
        )
    return out


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("bp", __doc__, CASES)
    shared.add_peer(out, "PGMax", 9)
    out.add_argument("--plot", type=Path, metavar="OUT", help="draw the ratios here (matplotlib)")
    out.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: for tests")
    out.add_argument(
        "--skip-peer",
        action="append",
        default=[],
        metavar="CASE",
        help="do not run PGMax on this problem (it is slow to build at ising2000)",
    )
    out.add_argument(
        "--recorded",
        type=Path,
        default=HERE / "results" / "bp_peer.json",
        help="figures of PGMax to use when it cannot run",
    )
    out.add_argument("--record", type=Path, metavar="OUT", help="write PGMax's figures here")
    return out


def platform() -> str:
    """Where JAX puts arrays."""
    import jax

    return jax.devices()[0].platform


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed or a belief is wrong."""
    options = parser().parse_args(argv)
    if options.setup_peers:
        setup_peers()
    chosen = options.only or [
        *INFERENCE,
        *(ACCELERATOR if platform() != "cpu" else ()),
        *SECTIONS,
    ]
    problems = tuple(name for name in chosen if name in PROBLEMS)
    facts: dict[str, Any] = {
        "benchmark": "bp",
        **shared.environment(32),
        "cpu": cpu_name(),
        "size": options.size,
        "repeats": options.repeats,
        "load_before": list(os.getloadavg()),
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        facts["peer"] = {"name": "PGMax", "source": bench.peer_source}
        if bench.peer_source == "recorded":
            facts["peer"] |= {k: v for k, v in bench.recorded.items() if k != "cases"}
        jobs: list[tuple[str, Callable[[], Any]]] = [
            (
                name,
                lambda name=name: facts.setdefault("inference", []).append(inference(bench, name)),
            )
            for name in problems
        ]
        sections = {
            "gradient": lambda: gradient(bench),
            "memory": lambda: memory(bench),
            "batch": lambda: batch(bench),
            "roofline": lambda: roofline(bench, problems or INFERENCE),
        }
        jobs += [
            (name, lambda name=name: facts.update({name: sections[name]()}))
            for name in SECTIONS
            if name in chosen
        ]
        for _, job in shared.tracked(jobs, lambda job: job[0]):
            job()
            facts["ours"] = bench.ours_start
            if bench.peer_start:
                facts["peer"] |= bench.peer_start
            facts["targets"] = report.targets(facts)
            if options.json:
                shared.write_json(options.json, facts)
    facts["load_after"] = list(os.getloadavg())
    text = report.markdown(facts)
    shared.publish(options, text, facts)
    if options.plot:
        report.plot(facts, options.plot)
    if options.record:
        about = {k: facts[k] for k in ("date", "cpu", "cpu_count", "machine", "size")}
        shared.write_json(options.record, {**about, **bench.peer_start, **bench.recording})
    return 0 if all(t["met"] for t in facts["targets"]) else 1


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")
