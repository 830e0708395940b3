"""Networks of step functions, which have no gradients: projection steps beside what there is.

Two hidden layers of units that are -1 or 1 (`quantise`), on ``digits`` and ``mnist`` (``mnist.npz``
in ``--data-dir``). The default projection step trains them as they are: a local projection moves a
sum across the step where the message asks for it. Beside it: the real-valued twin (ReLU) by tuned
Adam; Adam on the network of steps, which moves the last layer alone; and Adam with a surrogate
gradient, the straight-through estimator. All optimisers have four learning rates, of which
validation chooses, and the schedule of the projection step.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _shared as shared
from benchmarks._runs import rising, tuned_runs
from klprojax.cli._network import make_network
from klprojax.lifting.local import quantise
from klprojax.training import (
    GradientStep,
    ProjectionStep,
    Spectral,
    gradient_agreement,
    load_dataset,
)

SETTINGS = {
    "digits": {"epochs": 30, "batch_size": 64},
    "mnist": {"epochs": 5, "batch_size": 128},
}
HIDDEN = (128, 128)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SHARE = (0.03,)  # the default


def step_units(x: Any) -> Any:
    """-1 or 1."""
    return quantise(x, levels=2)


def straight_through(x: Any) -> Any:
    """-1 or 1, with the derivative of a clip to [-1, 1]."""
    clipped = jnp.clip(x, -1, 1)
    return clipped + lax.stop_gradient(quantise(x, levels=2) - clipped)


# Activation, settings, step.
ROWS: dict[str, tuple[Any, tuple[float, ...], Any]] = {
    "ReLU, Adam": (
        jax.nn.relu,
        RATES,
        lambda rate, updates: GradientStep(optax.adam(rising(rate, updates))),
    ),
    "steps, Adam": (
        step_units,
        RATES,
        lambda rate, updates: GradientStep(optax.adam(rising(rate, updates))),
    ),
    "steps, Adam, straight-through": (
        straight_through,
        RATES,
        lambda rate, updates: GradientStep(optax.adam(rising(rate, updates))),
    ),
    "steps, projection (default)": (
        step_units,
        SHARE,
        lambda share, updates: ProjectionStep(move=Spectral(rising(share, updates))),
    ),
}
TWIN, OURS = "ReLU, Adam", "steps, projection (default)"
SLACK = 0.02  # of the real-valued twin


def make(activation: Any, data: Any, seed: int) -> Any:
    """A network with this activation."""
    inputs = data.train[0].shape[1]
    model = make_network(inputs, HIDDEN, data.classes, seed, skip=False, dtype=np.float32)
    return eqx.tree_at(lambda m: m.activation, model, activation)


def run(label: str, name: str, data: Any, seeds: int) -> dict[str, Any]:
    """All seeds and settings of a row."""
    activation, settings, step_of = ROWS[label]
    models = [make(activation, data, seed) for seed in range(seeds)]
    return {"row": label, **tuned_runs(models, step_of, settings, data, **SETTINGS[name])}


def agreement(data: Any) -> list[float]:
    """Cosines of the slopes and minus the gradient, array by array, at the start."""
    x, y = (jnp.asarray(part[:64]) for part in data.train)
    found = gradient_agreement(ProjectionStep(), make(step_units, data, 0), x, y)
    return np.asarray(found.cosines).tolist()


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    out = []
    for name in SETTINGS:
        found = {row["row"]: row["accuracy"] for row in report.get(name, [])}
        if found and not found[OURS] >= found[TWIN] - SLACK:
            gap = 100 * (found[TWIN] - found[OURS])
            out.append(f"{name}: {gap:.1f} points below the real-valued twin")
    return out


def markdown(report: dict[str, Any]) -> str:
    """The tables."""
    missed = misses(report)
    text = (
        "# Step functions: projections where gradients are 0\n\n"
        f"`python -m benchmarks hard`, float32; {report['device']}, {report['cpu_count']} cores, "
        f"jax {report['versions']['jax']}, commit {str(report['commit'])[:12]}, "
        f"{report['date'][:10]}. Hidden layers {HIDDEN}; test accuracy of the last weights, mean "
        f"over {report['seeds']} seeds ± their standard deviation.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"
    labels = list(ROWS)
    cells = {
        (name, row["row"]): f"{row['accuracy']:.3f} ± {row['accuracy_sd']:.3f}"
        + (f" ({row['chosen']:g})" if len(row["settings"]) > 1 else "")
        for name in SETTINGS
        for row in report.get(name, [])
    }
    names = [name for name in SETTINGS if report.get(name)]
    text += shared.markdown_table(
        ["units, step", *names],
        [[label, *(cells.get((name, label), "-") for name in names)] for label in labels],
    )
    cosines = ", ".join(f"{value:.2f}" for value in report["cosines"])
    return text + (
        "\nIn brackets the learning rate that validation chose of four. Cosines of the slopes of "
        f"the projection and minus the gradient on digits, array by array at the start: "
        f"{cosines}; the gradient of all but the last layer is 0.\n"
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("hard", __doc__, tuple(SETTINGS))
    shared.add_data_dir(out, "mnist.npz")
    out.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    report: dict[str, Any] = {"benchmark": "hard", "seeds": options.seeds, **shared.environment(32)}
    for name in options.only or list(SETTINGS):
        source = shared.data_dir(options) / "mnist.npz" if name == "mnist" else "digits"
        data = load_dataset(source, dtype=np.float32)
        report[name] = []
        for label in shared.tracked(list(ROWS), lambda label, name=name: f"{name}: {label}"):
            report[name].append(run(label, name, data, options.seeds))
            jax.clear_caches()
            if options.json is not None:
                shared.write_json(options.json, report)
        if name == "digits" or "cosines" not in report:
            report["cosines"] = agreement(data)
    shared.publish(options, markdown(report), report)
    return 1 if misses(report) else 0
