"""What projection steps learn beside Adam: test accuracy, depth, and how far weights move.

Everything is chosen on validation rows: each run keeps the weights of its best validation epoch.
Runs of one seed start from the same weights and meet the same batches. ``digits`` is an 80/20 split
of scikit-learn's digits; ``mnist`` needs ``mnist.npz`` in ``--data-dir``.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks import _shared as shared
from klprojax.cli._network import make_network
from klprojax.projections import DouglasRachford
from klprojax.training import (
    AlternatingProjections,
    GradientStep,
    Precisions,
    ProjectionDirection,
    ProjectionStep,
    Relaxed,
    Splitting,
    evaluate,
    fit,
    load_dataset,
)

CASES = ("digits", "mnist", "deep", "depth")
SETTINGS = {
    "digits": {"hidden": (128, 128), "epochs": 100, "batch_size": 64},
    "mnist": {"hidden": (128,), "epochs": 10, "batch_size": 128},
    "deep": {"hidden": (512,) * 4, "epochs": 10, "batch_size": 128},
}
# PJAX on jax 0.10.2, another machine: best test accuracy (chosen on test) and seconds.
PJAX = {"digits": (0.961, 144.0), "mnist": (0.891, 245.0)}
DEPTHS, WIDTH, DEPTH_EPOCHS, DEPTH_ITERATIONS = (2, 4, 8, 16), 64, 20, 10
TARGET_POINTS, TARGET_TIME = 0.005, 2.0


def steps(updates: int) -> dict[str, Any]:
    """The steps that are compared, with the settings of ``klprojax train``."""
    return {
        "adam": GradientStep(optax.adam(1e-3)),
        "projection": ProjectionStep.decaying(updates),
        "projection-adam": ProjectionDirection(optax.adam(1e-3)),
    }


def schemes() -> dict[str, Any]:
    """Schemes of the depth table; `depth` is the benchmark of the default step."""
    kept = {"iterations": DEPTH_ITERATIONS, "precisions": Precisions(output=0.2)}
    plain = {**kept, "move": Relaxed()}
    return {
        "cyclic, averages": ProjectionStep(consensus="average", **plain),
        "cyclic, products": ProjectionStep(consensus="product", **plain),
        "alternating, averages": ProjectionStep(
            scheme=AlternatingProjections(), consensus="average", **plain
        ),
        "Douglas-Rachford, averages": ProjectionStep(
            scheme=Splitting(DouglasRachford(), history=2), consensus="average", **plain
        ),
    }


def run(
    data: Any, hidden: Any, step: Any, seed: int, *, skip: bool = False, **settings: Any
) -> dict[str, Any]:
    """Train once; test accuracy of the best validation epoch, seconds in updates."""
    start = make_network(
        data.train[0].shape[1], hidden, data.classes, seed, skip=skip, dtype=np.float32
    )
    try:
        result = fit(
            start, step, data.train, data.validation, seed=seed, select="metric", **settings
        )
    except ValueError as error:
        if "NaN" not in str(error) and "infinite" not in str(error):
            raise
        return {"accuracy": float("nan"), "seconds": float("nan"), "detail": str(error)}
    moved = jax.tree.map(
        lambda a, b: float(np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-30)),
        [layer for layer in jax.tree.leaves(eqx.filter(start, eqx.is_array)) if layer.ndim == 2],
        [
            layer
            for layer in jax.tree.leaves(eqx.filter(result.last_model, eqx.is_array))
            if layer.ndim == 2
        ],
    )
    found = evaluate(result.model, data.test)
    return {
        "accuracy": found.metric,
        "seconds": result.history[-1]["seconds"],
        "updates": result.updates,
        "movement": moved,
    }


def updates_of(data: Any, epochs: int, batch_size: int) -> int:
    """Updates of a run."""
    return epochs * -(-len(data.train[1]) // batch_size)


def accuracy(name: str, data: Any, seeds: int) -> list[dict[str, Any]]:
    """Accuracy over seeds."""
    options = dict(SETTINGS[name])
    hidden = options.pop("hidden")
    rows = []
    for label, step in steps(updates_of(data, **options)).items():
        runs = [run(data, hidden, step, seed, **options) for seed in range(seeds)]
        found = [one["accuracy"] for one in runs]
        rows.append(
            {
                "data": name,
                "step": label,
                "accuracy_mean": statistics.fmean(found),
                "accuracy_sd": statistics.stdev(found) if seeds > 1 else 0.0,
                "seconds": statistics.fmean(one["seconds"] for one in runs),
                "seeds": seeds,
                "movement": np.mean([one["movement"] for one in runs], axis=0).tolist(),
            }
        )
    return rows


def depth(
    data: Any, seeds: int, rows: list[dict[str, Any]], save: Callable[[], None]
) -> list[dict[str, Any]]:
    """Which schemes still train deep networks; goes on with the rows there are."""
    options = {"epochs": DEPTH_EPOCHS, "batch_size": 64}
    done = {(row["skip"], row["depth"], row["step"]) for row in rows}
    cases = [
        (skip, layers, label, step)
        for skip in (False, True)
        for layers in DEPTHS
        for label, step in schemes().items()
    ]
    for skip, layers, label, step in shared.tracked(cases, lambda c: f"depth {c[1]} {c[2]}"):
        row: dict[str, Any] = {"skip": skip, "depth": layers, "step": label, "seeds": seeds}
        if (skip, layers, label) in done:
            continue
        try:
            runs = [
                run(data, (WIDTH,) * layers, step, seed, skip=skip, **options)
                for seed in range(seeds)
            ]
            row["accuracy"] = statistics.fmean(one["accuracy"] for one in runs)
            row["seconds"] = statistics.fmean(one["seconds"] for one in runs)
        except ValueError as error:  # skips may leave no two halves
            row |= {"accuracy": None, "detail": str(error)}
        rows.append(row)
        save()
        jax.clear_caches()
    return rows


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    out = []
    for name in ("digits", "mnist", "deep"):
        rows = {row["step"]: row for row in report.get(name, [])}
        if not rows:
            continue
        adam, pure, direction = (rows[s] for s in ("adam", "projection", "projection-adam"))
        if pure["accuracy_mean"] < adam["accuracy_mean"] - TARGET_POINTS:
            gap = adam["accuracy_mean"] - pure["accuracy_mean"]
            out.append(f"{name}: projection {100 * gap:.2f} points below Adam")
        if name in PJAX:
            best, seconds = PJAX[name]
            if pure["accuracy_mean"] < best or pure["seconds"] > seconds / 10:
                out.append(f"{name}: projection not above PJAX's best at a tenth of its time")
        error = np.hypot(adam["accuracy_sd"], direction["accuracy_sd"])
        error = error / np.sqrt(adam["seeds"])
        if direction["accuracy_mean"] < adam["accuracy_mean"] - error:
            gap = adam["accuracy_mean"] - direction["accuracy_mean"]
            out.append(f"{name}: direction {100 * gap:.2f} points below Adam")
        if direction["seconds"] > TARGET_TIME * adam["seconds"]:
            out.append(
                f"{name}: direction takes {direction['seconds'] / adam['seconds']:.1f}x Adam's time"
            )
    return out


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    missed = misses(report)
    text = (
        "# What projection steps learn beside Adam\n\n"
        f"`python -m benchmarks training_accuracy`, float32; {report['device']}, "
        f"{report['cpu_count']} cores, jax {report['versions']['jax']}, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}. Weights of the best validation "
        "epoch; seconds are wall time in updates, without compiling and evaluating.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"
    if report.get("note"):
        text += f"{report['note']}\n\n"
    rows = [row for name in ("digits", "mnist", "deep") for row in report.get(name, [])]
    if rows:
        body = [
            [
                f"{row['data']}, {row['step']}",
                f"{row['accuracy_mean']:.4f} ± {row['accuracy_sd']:.4f}",
                f"{row['seconds']:.1f}",
                str(row["seeds"]),
                " ".join(f"{m:.2f}" for m in row["movement"]),
            ]
            for row in rows
        ]
        for name, (best, seconds) in PJAX.items():
            if report.get(name):
                body.append(
                    [
                        f"{name}, PJAX's best (recorded on another machine)",
                        f"{best:.3f}",
                        f"{seconds:.0f}",
                        "1",
                        "-",
                    ]
                )
        text += (
            "Test accuracy (mean ± sd over seeds), and how far each weight matrix moved, "
            "`|W - W0|/|W0|` from the first layer to the last. `projection` has no Adam inside; "
            "`projection-adam` hands the projection's slopes to Adam.\n\n"
        )
        headings = ["data, step", "test accuracy", "seconds", "seeds", "movement"]
        text += shared.markdown_table(headings, body)
    if report.get("depth"):
        labels = list(dict.fromkeys(row["step"] for row in report["depth"]))
        found = {(r["step"], r["skip"], r["depth"]): r["accuracy"] for r in report["depth"]}
        columns = [(skip, layers) for skip in (False, True) for layers in DEPTHS]
        text += (
            f"\nTest accuracy on digits by the number of hidden layers of {WIDTH} units, "
            f"{DEPTH_EPOCHS} epochs, {DEPTH_ITERATIONS} iterations per batch; `python -m "
            "benchmarks depth` has the default step. With skips each layer is added to its input. "
            "A dash: the scheme needs two halves, which the skips do not leave.\n\n"
        )
        text += shared.markdown_table(
            ["step", *(f"{layers}{' skip' if skip else ''}" for skip, layers in columns)],
            [
                [label, *(shared.figure(found.get((label, *column)), ".3f") for column in columns)]
                for label in labels
            ],
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("training_accuracy", __doc__, CASES)
    shared.add_data_dir(out, "mnist.npz")
    out.add_argument("--seeds", type=int, default=5, help="runs of each step")
    out.add_argument("--resume", action="store_true", help="keep finished cases of --json FILE")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    report: dict[str, Any] = {"benchmark": "training_accuracy", **shared.environment(32)}
    if options.resume and options.json is not None and options.json.exists():
        import json

        known = json.loads(options.json.read_text())
        report |= {name: known[name] for name in (*CASES, "note") if name in known}
    wanted = [n for n in options.only or CASES if n == "depth" or n not in report]

    def save() -> None:
        if options.json is not None:
            shared.write_json(options.json, report)

    for name in wanted:
        digits = name in ("digits", "depth")
        data = load_dataset("digits" if digits else shared.data_dir(options) / "mnist.npz")
        if name == "depth":
            depth(data, min(options.seeds, 2), report.setdefault(name, []), save)
        else:
            report[name] = accuracy(name, data, 1 if name == "deep" else options.seeds)
        save()
    text = markdown(report)
    Console().print(text, markup=False, soft_wrap=True)
    if options.markdown is not None:
        options.markdown.write_text(text)
    return 1 if misses(report) else 0
