"""What benchmarks on reference models share: the models, a worker with a time limit, reports."""

import argparse
import gzip
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# `published` log-partitions have about 6 significant digits and no checked marginals.
EXACT, PUBLISHED, NOTHING = "exact", "published", "none"


@dataclass(frozen=True)
class Case:
    """A model with its evidence, and where its known answers are."""

    name: str
    folder: str
    source: str
    case: int

    def load(self, data: Path) -> tuple[Any, dict[int, int]]:
        """The model and the state number of each observed variable number."""
        import klprojax

        if self.folder == "bn":
            model = klprojax.read_model(data / "bn" / "bif" / f"{self.source}.bif.gz")
            observed = self._network(data).get("evidence") or {}
            return model, model.evidence({v: o["index"] for v, o in observed.items()})
        model = klprojax.read_model(data / "uai2014" / "models" / f"{self.source}.uai.gz")
        evidence = data / "uai2014" / "models" / f"{self.source}.uai.evid"
        return model, klprojax.read_evidence(evidence, model) if evidence.exists() else {}

    def answer(self, data: Path, names: Sequence[str]) -> tuple[str, float | None, Any]:
        """Kind of the known answer, log-partition in nats, marginals of all variables."""
        if self.folder == "bn":
            known = self._network(data)
            return EXACT, known["log_p_evidence"], [known["marginals"][n] for n in names]
        exact = data / "uai2014" / "exact" / f"{self.source}.json.gz"
        if exact.exists():
            with gzip.open(exact, "rt") as file:
                known = json.load(file)
            if "logZ" in known:
                return EXACT, known["logZ"], known.get("marginals")
        published = data / "uai2014" / "published" / f"{self.source}.uai.PR"
        if published.exists():
            from klprojax.graphs import read_uai_pr

            return PUBLISHED, read_uai_pr(published), None
        return NOTHING, None, None

    def _network(self, data: Path) -> dict[str, Any]:
        return json.loads((data / "bn" / "reference" / f"{self.source}.json").read_text())["cases"][
            self.case
        ]


def reference_cases(data: Path, only: Sequence[str] = ()) -> list[Case]:
    """All reference models: Bayesian networks without and with evidence, UAI-2014 models."""
    cases = []
    for path in sorted((data / "bn" / "reference").glob("*.json")):
        cases.append(Case(path.stem, "bn", path.stem, 0))
        cases.append(Case(f"{path.stem}+evidence", "bn", path.stem, 1))
    for name in json.loads((data / "uai2014" / "INDEX.json").read_text()):
        cases.append(Case(name, "uai2014", name, 0))
    chosen = [c for c in cases if not only or c.name in only or c.source in only]
    missing = set(only) - {c.name for c in cases} - {c.source for c in cases}
    if missing:
        raise SystemExit(f"No reference model is named {', '.join(sorted(missing))}.")
    return chosen


def differences(found: Sequence[Any], wanted: Sequence[Any]) -> tuple[float, float]:
    """Largest and mean absolute difference of two lists of marginals (mean over all states)."""
    gaps = np.concatenate([np.abs(np.asarray(a) - b) for a, b in zip(found, wanted, strict=True)])
    return float(gaps.max()), float(gaps.mean())


def relative(found: float, wanted: float) -> float:
    """Difference of log-partitions, relative when they are larger than 1."""
    return abs(found - wanted) / max(1.0, abs(wanted))


class Worker:
    """A process that runs one job at a time and is replaced when a job takes too long or dies.

    It keeps the models' memory, and a crash, away from the benchmark itself.
    """

    def __init__(self, job: Callable[..., dict[str, Any]], setup: dict[str, Any]):
        self.job, self.setup = job, setup
        self.process = self.connection = None

    def run(self, limit: float, *arguments: Any) -> dict[str, Any]:
        """The job's answer, or ``{"status": "time limit"}``, or why it failed."""
        starting = self.process is None
        if starting:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(
                target=_serve, args=(theirs, self.job, self.setup), daemon=True
            )
            self.process.start()
            theirs.close()
        try:
            if starting:
                self.connection.recv()  # ready: imports do not count against the job
            self.connection.send(arguments)
            if not self.connection.poll(limit):
                self.stop()
                return {"status": "time limit", "limit_s": limit}
            return self.connection.recv()
        except (EOFError, BrokenPipeError):
            self.process.join()
            status = self.process.exitcode
            self.process = None
            return {"status": "died", "detail": f"the worker ended with status {status}"}

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(connection: Connection, job: Callable[..., Any], setup: dict[str, Any]) -> None:
    import jax

    jax.config.update("jax_enable_x64", setup["float_bits"] == 64)
    jax.devices()
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(job(*arguments))
        except Exception as error:  # reported as a row of its own
            connection.send({"status": "error", "detail": f"{type(error).__name__}: {error}"})
        # Every compiled program maps memory of its own, and a process may map only so many pieces.
        jax.clear_caches()


def base_parser(
    module: str, document: str | None, cases: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """Options that every benchmark has; ``--only`` takes the cases named, or anything."""
    out = argparse.ArgumentParser(
        prog=f"python -m benchmarks {module}",
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    out.add_argument("--markdown", type=Path, metavar="OUT", help="write the tables here")
    said = "repeatable" + (f"; one of {', '.join(cases)}" if cases else "")
    out.add_argument(
        "--only", action="append", default=[], choices=cases, metavar="CASE", help=said
    )
    return out


def add_data_dir(out: argparse.ArgumentParser, content: str) -> None:
    """The option that says where data is."""
    out.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("KLPROJAX_DATA"),
        help=f"folder with {content} (default: $KLPROJAX_DATA)",
    )


def add_peer(out: argparse.ArgumentParser, name: str, repeats: int) -> None:
    """Options of a comparison with another package."""
    out.add_argument("--repeats", type=int, default=repeats, help="timed samples of each side")
    out.add_argument("--setup-peers", action="store_true", help=f"make {name}'s environment first")
    out.add_argument("--no-peer", action="store_true", help=f"do not run {name}")


def parser(module: str, document: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark on reference models has."""
    out = base_parser(module, document)
    add_data_dir(out, "the reference models")
    out.add_argument("--resume", action="store_true", help="keep finished rows of --json FILE")
    out.add_argument("--float-bits", type=int, choices=(32, 64), default=64)
    out.add_argument(
        "--time-limit", type=float, default=180.0, metavar="S", help="seconds per model and method"
    )
    return out


def finished_rows(options: argparse.Namespace, statuses: Sequence[str]) -> list[dict[str, Any]]:
    """With ``--resume``, the rows of the report at ``--json`` that ended in one of the statuses."""
    if not options.resume:
        return []
    if options.json is None or not options.json.exists():
        raise SystemExit("--resume needs --json FILE, the report of the run to go on with.")
    report = json.loads(options.json.read_text())
    keep = [row for row in report["rows"] if row["status"] in statuses]
    return [{"commit": report["commit"], **row} for row in keep]


def data_dir(options: argparse.Namespace) -> Path:
    """The folder asked for, or a clear end."""
    if options.data_dir is None or not Path(options.data_dir).is_dir():
        raise SystemExit("Say where the reference models are: --data-dir D or KLPROJAX_DATA=D.")
    return Path(options.data_dir)


def environment(float_bits: int) -> dict[str, Any]:
    """Commit, versions, device and float width: what a figure depends on besides the code."""
    import jax

    from klprojax.checks._provenance import provenance

    return {
        **provenance(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(jax.devices()[0]),
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "float_bits": float_bits,
    }


def progress(console: Console) -> Progress:
    """A progress bar with the name of the current model."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def tracked(cases: Sequence[Any], name: Callable[[Any], str]) -> Iterator[Any]:
    """Go through the cases behind a progress bar."""
    with progress(Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(cases))
        for case in cases:
            bar.update(task, description=name(case))
            yield case
            bar.advance(task)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report; numbers that JSON has no name for become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(clean(report), indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def publish(options: argparse.Namespace, text: str, facts: dict[str, Any]) -> None:
    """Print the report and write it where ``--json`` and ``--markdown`` say."""
    print(text)
    if options.json:
        write_json(options.json, facts)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|--:" * (len(headings) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def figure(value: float | None, form: str) -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else format(value, form)


def now() -> float:
    """Seconds for differences."""
    return time.perf_counter()


# -- peers -----------------------------------------------------------------------------------------


def make_environment(folder: Path, requirements: Iterable[str]) -> str:
    """Make a virtual environment with these packages; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    return python


def python_of(folder: Path, variable: str) -> str | None:
    """The Python that an environment variable names, or that of a folder if it is there."""
    made = folder / "bin" / "python"
    return os.environ.get(variable) or (str(made) if made.exists() else None)
