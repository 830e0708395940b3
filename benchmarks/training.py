"""Projection training against PJAX: equal iterates, CPU seconds per iteration, temporaries.

The same networks, weights and batch, float32, PJAX's own weighting (primal averages, λ = 5). Each
side is a process of its own and their runs alternate. PJAX is used from its sources, which need
jax and networkx: ``--setup-peers`` makes an environment under ``benchmarks/.env`` and clones them,
or KLPROJAX_PJAX_PYTHON names a Python and KLPROJAX_PJAX_SOURCE the folder. Without them only our
side runs, beside figures recorded elsewhere and marked so.

Where PJAX's own local projections are not minimisers (its ReLU where pre-activation and target are
negative, its cross-entropy step, its dot product at large residuals) the iterates are compared with
those projections replaced by their definitions; the difference that they make is given too.
"""

import argparse
import os
import statistics
import subprocess
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
ENVIRONMENT = HERE / ".env" / "pjax"
REQUIREMENTS = ("jax==0.10.2", "networkx==3.5", "frozendict==2.4.6")
SOURCE = ("https://github.com/AndreasBergmeister/pjax", "4d2ed445cb388d68da77beea67e689342063e12c")

NETWORKS = {"64-128-128-10": [64, 128, 128, 10], "784-128-10": [784, 128, 10]}
MEMORY_NETWORK = [784, 512]
SCHEMES = ("alternating", "cyclic", "douglas-rachford")
ITERATIONS, BATCH, SHORT = 50, 256, 20
TARGETS = {
    ("64-128-128-10", "alternating"): 15.0,
    ("64-128-128-10", "cyclic"): 15.0,
    ("64-128-128-10", "douglas-rachford"): 5.0,
    ("784-128-10", "alternating"): 60.0,
    ("784-128-10", "cyclic"): 60.0,
    ("784-128-10", "douglas-rachford"): 15.0,
}
MEMORY_TARGET, SWEEP_TARGET, EQUAL_TARGET = 50.0, 4.0, 1e-4
# PJAX on jax 0.10.2, another machine, wall seconds per update of 50 iterations.
RECORDED_S = {
    ("64-128-128-10", "alternating"): 1.43,
    ("64-128-128-10", "cyclic"): 1.66,
    ("64-128-128-10", "douglas-rachford"): 2.67,
    ("784-128-10", "alternating"): 5.56,
    ("784-128-10", "cyclic"): 13.0,
    ("784-128-10", "douglas-rachford"): 7.50,
}
RECORDED_MIB = {"cyclic": 2758.0, "douglas-rachford": 2369.0}
CASES = ("equality", "speed", "memory", "sweep")


def setup_peers() -> None:
    """Make the environment that PJAX runs in and fetch its sources."""
    print(f"Making {ENVIRONMENT} with {' '.join(REQUIREMENTS)} and PJAX ...", flush=True)
    shared.make_environment(ENVIRONMENT, REQUIREMENTS)
    source = str(ENVIRONMENT / "source")
    subprocess.run(["git", "clone", "-q", SOURCE[0], source], check=True)
    subprocess.run(["git", "-C", source, "checkout", "-q", SOURCE[1]], check=True)


def peer() -> tuple[str, str] | None:
    """The Python and the source folder of PJAX, if there are any."""
    python = os.environ.get("KLPROJAX_PJAX_PYTHON", str(ENVIRONMENT / "bin" / "python"))
    source = os.environ.get("KLPROJAX_PJAX_SOURCE", str(ENVIRONMENT / "source"))
    return (python, source) if Path(python).exists() and Path(source).exists() else None


class Sides(ExitStack):
    """Starts sides and ends them all."""

    def __init__(self, found: tuple[str, str] | None, folder: Path):
        super().__init__()
        self.found, self.folder = found, folder

    def ours(self, float_bits: int = 32) -> Side:
        """Our process."""
        return self._start(sys.executable, "benchmarks._training_ours", float_bits)

    def pjax(self, float_bits: int = 32) -> Side | None:
        """PJAX's process; None without one."""
        if self.found is None:
            return None
        python, source = self.found
        return self._start(python, "benchmarks._peers.pjax_run", float_bits, source)

    def _start(self, python: str, module: str, float_bits: int, sources: str | None = None) -> Side:
        side = Side(python, module, log=self.folder / "sides.log", sources=sources)
        self.enter_context(side)
        side.do("start", float_bits=float_bits)
        return side


def problem(sizes: list[int], rows: int, path: Path, dtype: str = "float32") -> None:
    """Write the arrays of a network and its batch."""
    np.savez(path, **problem_arrays(sizes, rows, dtype))


def problem_arrays(sizes: list[int], rows: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """He-initialised weights, small biases, images of uniform noise and random labels."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for k in range(len(sizes) - 2):
        scale = np.sqrt(2 / sizes[k])
        arrays[f"dense_{k}.weight"] = rng.normal(size=sizes[k : k + 2]) * scale
        arrays[f"relu_{k}.bias"] = rng.normal(size=sizes[k + 1]) * 0.01
    arrays["out.weight"] = rng.normal(size=sizes[-2:]) * np.sqrt(1 / sizes[-2])
    arrays["x"] = rng.random((rows, sizes[0]))
    typed = {name: array.astype(dtype) for name, array in arrays.items()}
    return typed | {"y": rng.integers(0, sizes[-1], rows).astype(np.int32)}


def distance(path: Path) -> float:
    """Largest difference of a parameter, relative to the largest of its array."""
    with np.load(f"{path}.ours.npz") as ours, np.load(f"{path}.pjax.npz") as theirs:
        return max(
            float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max()) for n in ours.files
        )


def equality(found: tuple[str, str] | None) -> list[dict[str, Any]]:
    """Iterates of both sides, PJAX as it is and with its projections corrected."""
    if found is None:
        return []
    rows = []
    cases = [(s, 32, SHORT) for s in SCHEMES] + [("douglas-rachford", 64, SHORT)]
    for scheme, bits, iterations in cases:
        row: dict[str, Any] = {"scheme": scheme, "float_bits": bits, "iterations": iterations}
        for corrected in (True, False):
            with tempfile.TemporaryDirectory() as folder, Sides(found, Path(folder)) as sides:
                path = Path(folder) / "problem.npz"
                problem(NETWORKS["64-128-128-10"], 64, path, f"float{bits}")
                order = {"sizes": NETWORKS["64-128-128-10"], "scheme": scheme, "run": True}
                order |= {"path": str(path), "iterations": iterations, "corrected": corrected}
                for side in (sides.ours(bits), sides.pjax(bits)):
                    assert side is not None
                    side.do("build", **order)
                row["corrected" if corrected else "as it is"] = distance(path)
        rows.append(row)
    return rows


def speed(name: str, found: tuple[str, str] | None, repeats: int) -> list[dict[str, Any]]:
    """CPU seconds per iteration, in turn."""
    rows = []
    for scheme in SCHEMES:
        with tempfile.TemporaryDirectory() as folder, Sides(found, Path(folder)) as sides:
            path = Path(folder) / "problem.npz"
            problem(NETWORKS[name], BATCH, path)
            order = {"sizes": NETWORKS[name], "scheme": scheme, "corrected": False, "run": True}
            order |= {"path": str(path), "iterations": ITERATIONS}
            running = {"ours": sides.ours(), "pjax": sides.pjax()}
            row: dict[str, Any] = {"network": name, "scheme": scheme}
            running = {key: side for key, side in running.items() if side is not None}
            for key, side in running.items():
                row[key] = side.do("build", **order)
            samples: dict[str, list[float]] = {key: [] for key in running}
            for turn in range(repeats):
                keys = list(running) if turn % 2 == 0 else list(running)[::-1]
                for key in keys:
                    answer = running[key].do("time", task="update", calls=1)
                    samples[key].append(answer["cpu_s"] / ITERATIONS)
            for key, found_times in samples.items():
                row[key]["cpu_s"] = statistics.median(found_times)
            theirs = row["pjax"]["cpu_s"] if "pjax" in row else None
            theirs = RECORDED_S[name, scheme] / ITERATIONS if theirs is None else theirs
            row["ratio"] = theirs / row["ours"]["cpu_s"]
            rows.append(row)
    return rows


def memory(found: tuple[str, str] | None) -> list[dict[str, Any]]:
    """Temporaries of one compiled update of a wide layer; nothing is run."""
    rows = []
    for scheme in ("cyclic", "douglas-rachford"):
        with tempfile.TemporaryDirectory() as folder, Sides(found, Path(folder)) as sides:
            path = Path(folder) / "problem.npz"
            problem(MEMORY_NETWORK, BATCH, path)
            order = {"sizes": MEMORY_NETWORK, "scheme": scheme, "corrected": False, "run": False}
            order |= {"path": str(path), "iterations": ITERATIONS}
            ours = sides.ours().do("build", **order)["temporaries_mib"]
            side = sides.pjax()
            recorded = side is None
            theirs = RECORDED_MIB[scheme]
            if side is not None:
                theirs = side.do("build", **order)["temporaries_mib"]
            row = {"scheme": scheme, "ours_mib": ours, "pjax_mib": theirs, "recorded": recorded}
            rows.append(row | {"ratio": theirs / ours})
    return rows


def sweep(repeats: int) -> list[dict[str, Any]]:
    """One backward sweep of projections beside one step of Adam."""
    rows = []
    for name, sizes in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder, Sides(None, Path(folder)) as sides:
            path = Path(folder) / "problem.npz"
            problem(sizes, BATCH, path)
            side = sides.ours()
            side.do("build_steps", path=str(path), repeats=100)
            samples: dict[str, list[float]] = {n: [] for n in ("adam", "sweep", "direction")}
            for _ in range(repeats):
                for task, found in samples.items():
                    found.append(side.do("time", task=task, calls=1)["cpu_s"] / 100)
            row: dict[str, Any] = {"network": name}
            row |= {task: statistics.median(found) for task, found in samples.items()}
            rows.append(row | {"ratio": row["sweep"] / row["adam"]})
    return rows


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    out = []
    for row in report.get("equality", []):
        visits = row["float_bits"] == 32 and row["scheme"] != "douglas-rachford"
        if visits and row["corrected"] > EQUAL_TARGET:
            out.append(f"{row['scheme']} iterates differ by {row['corrected']:.1e}")
    for row in report.get("speed", []):
        target = TARGETS[row["network"], row["scheme"]]
        if row["ratio"] < target:
            out.append(f"{row['network']} {row['scheme']} {row['ratio']:.1f}x ({target:g}x)")
    for row in report.get("memory", []):
        if row["ratio"] < MEMORY_TARGET:
            out.append(f"temporaries {row['scheme']} {row['ratio']:.0f}x ({MEMORY_TARGET:g}x)")
    for row in report.get("sweep", []):
        if row["ratio"] > SWEEP_TARGET:
            out.append(f"sweep {row['network']} {row['ratio']:.1f} Adam steps ({SWEEP_TARGET:g})")
    return out


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    live = report["peer"] == "live"
    said = "beside ours in this run" if live else "RECORDED on another machine, not run here"
    missed = misses(report)
    text = (
        "# Projection training against PJAX\n\n"
        f"`python -m benchmarks training`, float32, batch {BATCH}; CPU seconds of the whole "
        f"process, medians; {report['device']}, {report['cpu_count']} cores, "
        f"jax {report['versions']['jax']}, commit {str(report['commit'])[:12]}, "
        f"{report['date'][:10]}, load {report['load'][0]:.1f}. PJAX: {said}.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"
    if report.get("equality"):
        text += (
            f"Largest relative difference of a parameter after {SHORT} iterations on 64-128-128-10,"
            " with PJAX's own local projections and with those that are not minimisers replaced by "
            "their definitions. Douglas-Rachford amplifies rounding: compare it in float64.\n\n"
        )
        text += shared.markdown_table(
            ["scheme", "bits", "corrected", "as it is"],
            [
                [
                    row["scheme"],
                    str(row["float_bits"]),
                    f"{row['corrected']:.1e}",
                    f"{row['as it is']:.1e}",
                ]
                for row in report["equality"]
            ],
        )
    if report.get("speed"):
        text += "\nMilliseconds an iteration, CPU.\n\n" + shared.markdown_table(
            ["network, scheme", "ours", "PJAX", "ratio", "target"],
            [
                [
                    f"{row['network']}, {row['scheme']}",
                    f"{1e3 * row['ours']['cpu_s']:.2f}",
                    f"{1e3 * row['ratio'] * row['ours']['cpu_s']:.1f}",
                    f"{row['ratio']:.1f}",
                    f"{TARGETS[row['network'], row['scheme']]:g}",
                ]
                for row in report["speed"]
            ],
        )
    if report.get("memory"):
        text += "\nTemporaries of one compiled update of a layer 784-512, MiB.\n\n"
        text += shared.markdown_table(
            ["scheme", "ours", "PJAX", "ratio", "target"],
            [
                [
                    row["scheme"],
                    f"{row['ours_mib']:.1f}",
                    f"{row['pjax_mib']:.0f}{' (recorded)' if row['recorded'] else ''}",
                    f"{row['ratio']:.0f}",
                    f"{MEMORY_TARGET:g}",
                ]
                for row in report["memory"]
            ],
        )
    if report.get("sweep"):
        text += (
            "\nMilliseconds an update of one batch, CPU: a gradient step with Adam, one backward "
            "sweep of projections, and the sweep's direction handed to Adam.\n\n"
        )
        text += shared.markdown_table(
            ["network", "Adam", "sweep", "direction", "sweep/Adam", "at most"],
            [
                [
                    row["network"],
                    *(f"{1e3 * row[task]:.2f}" for task in ("adam", "sweep", "direction")),
                    f"{row['ratio']:.1f}",
                    f"{SWEEP_TARGET:g}",
                ]
                for row in report["sweep"]
            ],
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("training", __doc__, CASES)
    shared.add_peer(out, "PJAX", 5)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    if options.setup_peers:
        setup_peers()
    found = None if options.no_peer else peer()
    report: dict[str, Any] = {
        "benchmark": "training",
        **shared.environment(32),
        "load": list(os.getloadavg()),
        "peer": "recorded" if found is None else "live",
        "requirements": REQUIREMENTS,
        "source": SOURCE,
    }
    wanted = options.only or list(CASES)
    jobs = [(case, name) for case in wanted for name in (NETWORKS if case == "speed" else (None,))]
    for case, name in shared.tracked(jobs, lambda job: " ".join(filter(None, job))):
        if case == "speed":
            report.setdefault(case, []).extend(speed(name, found, options.repeats))
        elif case == "sweep":
            report[case] = sweep(options.repeats)
        else:
            report[case] = {"equality": equality, "memory": memory}[case](found)
        if options.json is not None:
            shared.write_json(options.json, report)
    text = markdown(report)
    Console().print(text, markup=False, soft_wrap=True)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return 1 if misses(report) else 0
