"""Deep networks: the default projection step beside tuned Adam and SGD, plain and with skips.

Rows of ReLU layers of 64 units on ``digits`` and on ``mnist`` (``mnist.npz`` in ``--data-dir``),
He-initialised. Adam and SGD with momentum have six learning rates each, of which validation chooses
for every depth; the projection step has its defaults. Learning rates and shares rise over a tenth
of the updates and fall by a cosine. ``crossed`` exchanges directions and moves. All seeds and
settings of a row run at once; runs of one seed start from the same weights and meet the same
batches.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _shared as shared
from benchmarks._runs import rising, tuned_runs
from klprojax.cli._network import make_network
from klprojax.training import (
    GradientStep,
    Precisions,
    ProjectionDirection,
    ProjectionStep,
    Spectral,
    gradient_agreement,
    load_dataset,
)

CASES = ("digits", "crossed", "mnist")
DEPTHS, CROSSED, WIDTH = (2, 4, 8, 16, 32), (2, 8, 16, 32), 64
SETTINGS = {"digits": {"epochs": 20, "batch_size": 64}, "mnist": {"epochs": 3, "batch_size": 128}}
RATIO = 1e-5  # of the default step
DEFAULT, ADAM, SGD = "projection, spectral (default)", "gradient, Adam", "gradient, SGD"
# The better tuned optimiser minus this, where it exceeds the second; the third: 16 plain layers.
SLACK, TRAINED, DEEP = 0.005, 0.9, 0.97


# Moves: settings that validation chooses from, and the optax optimiser of one.
MOVES: dict[str, tuple[tuple[float, ...], Callable[[Any, int], Any]]] = {
    "Adam": (
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        lambda rate, updates: optax.adam(rising(rate, updates)),
    ),
    "SGD": (
        (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        lambda rate, updates: optax.sgd(rising(rate, updates), momentum=0.9),
    ),
    "units": (
        (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
        lambda share, updates: Spectral(rising(share, updates), group=1).to_optax(),
    ),
    "spectral": (
        (0.03,),
        lambda share, updates: Spectral(rising(share, updates)).to_optax(),
    ),
}


def make_step(label: str) -> tuple[tuple[float, ...], Callable[[Any, int], Any]]:
    """Settings of a row, and its step by setting and number of updates."""
    direction, move = label.removesuffix(" (default)").split(", ")
    settings, optimiser = MOVES[move]
    if label == DEFAULT:
        return settings, lambda share, updates: ProjectionStep(
            move=Spectral(rising(share, updates))
        )
    if direction == "gradient":
        return settings, lambda value, updates: GradientStep(optimiser(value, updates))
    return settings, lambda value, updates: ProjectionDirection(
        optimiser(value, updates), RATIO, Precisions(relative=True)
    )


def run(label: str, name: str, data: Any, depth: int, skip: bool, seeds: int) -> dict[str, Any]:
    """All seeds and settings of a row."""
    (settings, step_of), inputs = make_step(label), data.train[0].shape[1]
    models = [
        make_network(inputs, (WIDTH,) * depth, data.classes, seed, skip=skip, dtype=np.float32)
        for seed in range(seeds)
    ]
    found = tuned_runs(models, step_of, settings, data, **SETTINGS[name])
    return {"data": name, "depth": depth, "skip": skip, "row": label, **found}


def agreement(data: Any, depth: int) -> float:
    """Median cosine of the default step's slopes and minus the gradient, at the start."""
    model = make_network(
        data.train[0].shape[1], (WIDTH,) * depth, data.classes, 0, skip=False, dtype=np.float32
    )
    x, y = (jnp.asarray(part[:64]) for part in data.train)
    return float(jnp.median(gradient_agreement(ProjectionStep(), model, x, y).cosines))


def cases(name: str) -> list[tuple[str, int, bool]]:
    """Rows of a case: label, depth, whether with skips."""
    if name == "crossed":
        labels = [f"{d}, {m}" for d in ("gradient", "projection") for m in MOVES]
        labels[-1] = DEFAULT
        return [(label, depth, False) for depth in CROSSED for label in labels]
    return [
        (label, depth, skip)
        for depth in DEPTHS
        for skip in (False, True)
        for label in (ADAM, SGD, DEFAULT)
    ]


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    out = []
    for name in ("digits", "mnist"):
        found = {(r["row"], r["depth"], r["skip"]): r["accuracy"] for r in report.get(name, [])}
        for (label, depth, skip), ours in found.items():
            if label != DEFAULT:
                continue
            kind = f"{name}, {depth} {'layers with skips' if skip else 'plain layers'}"
            best = max(found.get((other, depth, skip), 0.0) for other in (ADAM, SGD))
            if best > TRAINED and not ours >= best - SLACK:
                out.append(f"{kind}: {100 * (best - ours):.1f} points below the best tuned")
            if (name, depth, skip) == ("digits", 16, False) and not ours > DEEP:
                out.append(f"{kind}: {ours:.3f}, not above {DEEP}")
    return out


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    missed = misses(report)
    text = (
        "# Deep networks: projection steps beside tuned Adam and SGD\n\n"
        f"`python -m benchmarks depth`, float32; {report['device']}, {report['cpu_count']} cores, "
        f"jax {report['versions']['jax']}, commit {str(report['commit'])[:12]}, "
        f"{report['date'][:10]}. Hidden ReLU layers of {WIDTH} units; mean test accuracy of the "
        f"last weights over {report['seeds']} seeds, ± their standard deviation.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"
    if "cosines" in report:
        pairs = ", ".join(f"{v:.4f} at {k}" for k, v in report["cosines"].items())
        text += (
            "The default step's direction is that of the gradient: median cosine over the arrays, "
            f"at the start, {pairs} layers.\n\n"
        )
    for name in CASES:
        rows = report.get(name, [])
        if not rows:
            continue
        columns = list(dict.fromkeys((r["skip"], r["depth"]) for r in rows))
        columns.sort()
        found = {(r["row"], r["skip"], r["depth"]): r for r in rows}
        data = "digits" if name == "crossed" else name
        options = SETTINGS[data]
        title = "Directions and moves crossed, digits" if name == "crossed" else name
        text += f"## {title}\n\n{options['epochs']} epochs, batches of {options['batch_size']}.\n\n"

        def cell(row: dict[str, Any] | None) -> str:
            if row is None:
                return "-"
            chosen = f" ({row['chosen']:g})" if len(row["settings"]) > 1 else ""
            return f"{row['accuracy']:.3f} ± {row['accuracy_sd']:.3f}{chosen}"

        text += shared.markdown_table(
            ["direction, move", *(f"{d}{' skip' if s else ''}" for s, d in columns)],
            [
                [label, *(cell(found.get((label, *column))) for column in columns)]
                for label in dict.fromkeys(r["row"] for r in rows)
            ],
        )
        text += "\n"
    return text + (
        "In brackets the setting that validation chose of six. `units`: every unit moves by one "
        "length; `spectral`: groups of 32 units become orthonormal together.\n"
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("depth", __doc__, CASES)
    shared.add_data_dir(out, "mnist.npz")
    out.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    out.add_argument("--resume", action="store_true", help="keep finished rows of --json FILE")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    report: dict[str, Any] = {
        "benchmark": "depth",
        "seeds": options.seeds,
        **shared.environment(32),
    }
    if options.resume and options.json is not None and options.json.exists():
        known = json.loads(options.json.read_text())
        report |= {name: known[name] for name in CASES if name in known}
    for name in options.only or CASES:
        source = shared.data_dir(options) / "mnist.npz" if name == "mnist" else "digits"
        data = load_dataset(source, dtype=np.float32)
        rows = report.setdefault(name, [])
        done = {(row["row"], row["depth"], row["skip"]) for row in rows}
        todo = [case for case in cases(name) if case not in done]
        for label, depth, skip in shared.tracked(todo, lambda c: f"{c[1]} layers: {c[0]}"):
            kind = "digits" if name == "crossed" else name
            rows.append(run(label, kind, data, depth, skip, options.seeds))
            jax.clear_caches()
            if options.json is not None:
                shared.write_json(options.json, report)
        if name == "crossed":
            report["cosines"] = {str(depth): agreement(data, depth) for depth in CROSSED}
    shared.publish(options, markdown(report), report)
    return 1 if misses(report) else 0
