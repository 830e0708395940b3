"""Whole tasks: the default projection step beside tuned Adam and SGD, PJAX and predictive coding.

Each task is one call of ``klprojax train``: every step gets as many trials, of which validation
chooses, and as many seeds. ``mnist.npz``, ``cifar10/cifar10_25k.zip`` (JPEG files, 20,000 for
training and 5,000 for test) and ``text/tinyshakespeare.txt`` lie in ``--data-dir``. PJAX's figures
are those of its paper, of the same kind of network on its own splits. jpc, predictive coding in
JAX, runs live on the MNIST rows where ``--setup-peers`` made its environment.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _shared as shared
from benchmarks._peers._serve import Side

ENVIRONMENT = Path(__file__).resolve().parent / ".env" / "jpc"
COMMIT = "7d6cc05742d28b543311e6c4d4ca140ba996f8b5"
REQUIREMENTS = ("jax==0.5.2", f"jpc @ git+https://github.com/thebuckleylab/jpc@{COMMIT}")

# Where the data lie, and options of the command.
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "digits": ("digits", {"network": "mlp", "hidden": "128,128", "epochs": "30"}),
    "mnist": (
        "mnist.npz",
        {"network": "mlp", "hidden": "128", "epochs": "5", "batch-size": "128"},
    ),
    "cifar10": ("cifar10/cifar10_25k.zip", {"network": "cnn", "epochs": "3"}),
    "characters": (
        "text/tinyshakespeare.txt",
        {"network": "transformer", "hidden": "64", "epochs": "2", "batch-size": "16"},
    ),
}
STEPS, OURS = ("adam", "sgd", "projection"), "projection"
# Best test accuracies of the PJAX paper (arXiv 2506.05878).
PJAX = {"mnist": 0.958, "cifar10": 0.337, "characters": 0.324}
# How far below the better tuned optimiser we may be.
SLACK = {"digits": 0.01, "mnist": 0.01, "cifar10": 0.02, "characters": 0.02}
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of Adam inside jpc's step


def run(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All steps of a task."""
    source, settings = TASKS[name]
    data = source if source == "digits" else str(shared.data_dir(options) / source)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        call = "from klprojax.cli import main; main()"
        command = [sys.executable, "-c", call, "train", "--data", data]
        for step in STEPS:
            command += ["--step", step]
        for key, value in settings.items():
            command += [f"--{key}", value]
        command += ["--tune", str(options.trials), "--seeds", str(options.seeds)]
        subprocess.run([*command, "--json", str(out)], check=True, stdout=sys.stderr)
        return json.loads(out.read_text())["results"]


def predictive_coding(options: argparse.Namespace) -> dict[str, Any] | None:
    """jpc on the rows of the MNIST task; None without its environment."""
    from klprojax.training import load_dataset

    python = shared.python_of(ENVIRONMENT, "KLPROJAX_JPC_PYTHON")
    if python is None:
        return None
    source, settings = TASKS["mnist"]
    data = load_dataset(shared.data_dir(options) / source)
    parts = dict(zip(("train", "validation", "test"), data[:3], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        path, arrays = Path(folder) / "rows.npz", {}
        for name, (x, y) in parts.items():
            arrays |= {f"x_{name}": x, f"y_{name}": y}
        np.savez(path, **arrays)
        with Side(python, "benchmarks._peers.jpc_run", log=Path(folder) / "log") as side:
            versions = side.do("start")

            def train(rate: float, seed: int) -> dict[str, Any]:
                return side.do(
                    "train",
                    path=str(path),
                    hidden=[int(settings["hidden"])],
                    rate=rate,
                    seed=seed,
                    epochs=int(settings["epochs"]),
                    batch_size=int(settings["batch-size"]),
                )

            trials = {rate: train(rate, 0) for rate in RATES[: options.trials]}
            best = max(trials, key=lambda rate: trials[rate]["validation"])
            runs = [trials[best], *(train(best, seed) for seed in range(1, options.seeds))]
    found = [run["test"] for run in runs]
    return {
        "versions": versions,
        "rate": best,
        "by_seed": found,
        "accuracy_mean": statistics.fmean(found),
        "accuracy_sd": statistics.stdev(found) if len(found) > 1 else 0.0,
        "seconds": statistics.fmean(run["wall_s"] for run in runs),
    }


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    out = []
    for name, slack in SLACK.items():
        rows = {row["step"]: row["accuracy_mean"] for row in report.get(name, [])}
        if not rows:
            continue
        ours, best = rows[OURS], max(rows[step] for step in STEPS if step != OURS)
        if not ours >= best - slack:
            out.append(f"{name}: {100 * (best - ours):.1f} points below the better tuned optimiser")
        if not ours > PJAX.get(name, 0.0):
            out.append(f"{name}: not above PJAX's {PJAX[name]}")
    return out


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    missed = misses(report)
    text = (
        "# Whole tasks: projection steps beside tuned optimisers\n\n"
        f"`python -m benchmarks tasks`, float32; {report['device']}, {report['cpu_count']} cores, "
        f"jax {report['versions']['jax']}, commit {str(report['commit'])[:12]}, "
        f"{report['date'][:10]}. {report['trials']} trials of each step, of which validation "
        f"chooses, then {report['seeds']} seeds; test accuracy at the best validation epoch with "
        "its 95 % interval over seeds; wall seconds in updates of one run.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"
    left = [name for name in TASKS if not report.get(name)]
    text += f"Not run: {', '.join(left)}.\n\n" if left else ""
    rows = []
    for name, (_, settings) in TASKS.items():
        for row in report.get(name, []):
            low, high = row["accuracy_interval"] or (row["accuracy_mean"],) * 2
            setting = row["setting"]
            chosen = f"{setting['name']} {setting['value']:.3g}" if setting else "default"
            rows.append(
                [
                    f"{name}, {settings['network']}",
                    row["step"],
                    f"{row['accuracy_mean']:.4f} ({max(low, 0):.4f} to {min(high, 1):.4f})",
                    chosen,
                    f"{row['seconds']:.1f}",
                ]
            )
        if name in PJAX and report.get(name):
            rows.append([name, "PJAX (its paper)", f"{PJAX[name]:.3f}", "-", "-"])
        coded = report.get("jpc") if name == "mnist" else None
        if coded:
            mean = f"{coded['accuracy_mean']:.4f} ± {coded['accuracy_sd']:.4f}"
            rate = f"Adam {coded['rate']:g}"
            rows.append([f"{name}, mlp", "jpc, live", mean, rate, f"{coded['seconds']:.1f}"])
    return text + shared.markdown_table(
        ["task, network", "step", "test accuracy", "setting", "seconds"], rows
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("tasks", __doc__, (*TASKS, "jpc"))
    shared.add_data_dir(out, "mnist.npz, cifar10 and text")
    out.add_argument("--seeds", type=int, default=3, help="runs of each step")
    out.add_argument("--trials", type=int, default=4, help="settings that each step tries")
    out.add_argument("--resume", action="store_true", help="keep finished tasks of --json FILE")
    out.add_argument("--setup-peers", action="store_true", help="make jpc's environment first")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    if options.setup_peers:
        print(f"Making {ENVIRONMENT} with {', '.join(REQUIREMENTS)} ...", flush=True)
        shared.make_environment(ENVIRONMENT, REQUIREMENTS)
    report: dict[str, Any] = {
        "benchmark": "tasks",
        "seeds": options.seeds,
        "trials": options.trials,
        **shared.environment(32),
    }
    if options.resume and options.json is not None and options.json.exists():
        known = json.loads(options.json.read_text())
        report |= {name: known[name] for name in (*TASKS, "jpc") if known.get(name)}
    todo = [name for name in options.only or (*TASKS, "jpc") if not report.get(name)]
    for name in todo:
        print(f"{name} ...", file=sys.stderr, flush=True)
        report[name] = predictive_coding(options) if name == "jpc" else run(name, options)
        if options.json is not None:
            shared.write_json(options.json, report)
    shared.publish(options, markdown(report), report)
    return 1 if misses(report) else 0
