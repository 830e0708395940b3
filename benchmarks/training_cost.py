"""What an update costs: the default projection step beside Adam, first update, later ones, memory.

Each pair of a network and a step runs in a fresh process without a cache of compiled programs, so
the first update is what a user waits for: trace, compile, run, in CPU seconds of all threads. Later
updates are medians; memory is the compiler's plan for one update.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _shared as shared

# Hidden layers and their width, or a kind; rows of a batch.
NETWORKS: dict[str, int] = {
    "2x128": 256,
    "8x128": 256,
    "32x128": 256,
    "4x1024": 256,
    "cnn": 64,
    "transformer": 16,
}
STEPS = ("adam", "projection")
TARGET = 2.0  # the first update of the projection step over Adam's


def make(name: str) -> tuple[Any, Any, Any]:
    """A network by name, with a batch."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from klprojax.cli._architectures import ConvolutionalNetwork, TransformerNetwork
    from klprojax.cli._network import make_network

    rng, rows, key = np.random.default_rng(0), NETWORKS[name], jax.random.key(0)
    labels = jnp.asarray(rng.integers(0, 10, rows))
    if name == "cnn":
        x = jnp.asarray(rng.random((rows, 32, 32, 3), dtype=np.float32))
        options = {"key": key, "dtype": np.float32}
        return ConvolutionalNetwork((32, 32, 3), (16, 32), 10, **options), x, labels
    if name == "transformer":
        text = jnp.asarray(rng.integers(0, 65, (rows, 65)))
        model = TransformerNetwork((64,), (64,), 65, text=True, key=key, dtype=np.float32)
        return model, text[:, :-1], text[:, 1:]
    depth, width = map(int, name.split("x"))
    x = jnp.asarray(rng.random((rows, 64), dtype=np.float32))
    model = make_network(64, (width,) * depth, 10, 0, skip=False, dtype=np.float32)
    assert isinstance(model, eqx.Module)
    return model, x, labels


def measure(name: str, step_name: str, updates: int) -> dict[str, float]:
    """First update, later ones and memory, in this process."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    from klprojax.training import CrossEntropy, GradientStep, ProjectionStep

    jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
    model, x, y = make(name)
    step = {"adam": GradientStep(optax.adam(1e-3)), "projection": ProjectionStep()}[step_name]
    loss, weights = CrossEntropy(), jnp.ones(len(x))
    state = step.init(model)
    arrays, static = eqx.partition((model, state), eqx.is_array)

    def update(arrays: Any, x: Any, y: Any) -> Any:
        model, state = eqx.combine(arrays, static)
        model, state, info = step.update(model, state, x, y, weights, loss)
        return eqx.filter((model, state), eqx.is_array), info.loss

    times = [time.process_time()]
    lowered = jax.jit(update).lower(arrays, x, y)
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    arrays, _ = jax.block_until_ready(compiled(arrays, x, y))
    times.append(time.process_time())
    later = []
    for _ in range(updates):
        start = time.process_time()
        arrays, last = jax.block_until_ready(compiled(arrays, x, y))
        later.append(time.process_time() - start)
    assert jnp.isfinite(last)
    plan = compiled.memory_analysis()
    return {
        "trace_s": times[1] - times[0],
        "compile_s": times[2] - times[1],
        "first_s": times[3] - times[0],
        "update_s": statistics.median(later),
        "temporaries_mib": plan.temp_size_in_bytes / 2**20,
    }


def fresh(name: str, step: str, updates: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "training_cost", "--one", name, step]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [*command, "--updates", str(updates)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}, {step}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(name: str, repeats: int, updates: int) -> dict[str, Any]:
    """Both steps, alternating; medians over the repeats."""
    found: dict[str, list[dict[str, float]]] = {step: [] for step in STEPS}
    for _ in range(repeats):
        for step in STEPS:
            found[step].append(fresh(name, step, updates))
    row: dict[str, Any] = {"network": name, "batch": NETWORKS[name]}
    for step, runs in found.items():
        row[step] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for key in ("first_s", "update_s", "temporaries_mib"):
        row[f"{key.rpartition('_')[0]}_ratio"] = row["projection"][key] / row["adam"][key]
    return row


def misses(report: dict[str, Any]) -> list[str]:
    """Targets that were missed, in words."""
    return [
        f"first update of {row['network']} {row['first_ratio']:.1f} times Adam's ({TARGET:g})"
        for row in report["rows"]
        if row["first_ratio"] > TARGET
    ]


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    missed = misses(report)
    text = (
        "# What an update costs: the default projection step beside Adam\n\n"
        f"`python -m benchmarks training_cost`, float32; {report['device']}, "
        f"{report['cpu_count']} cores, jax {report['versions']['jax']}, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}. CPU seconds; medians of "
        f"{report['repeats']} fresh processes per cell.\n\n"
    )
    text += f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n"

    def pair(row: dict[str, Any], key: str, form: Callable[[float], str]) -> list[str]:
        ratio = row["projection"][key] / row["adam"][key]
        return [form(row["adam"][key]), form(row["projection"][key]), f"{ratio:.1f}"]

    headings = ["network", "batch", "first: Adam (s)", "ours", "ratio", "update: Adam (ms)"]
    headings += ["ours", "ratio", "temporaries: Adam (MiB)", "ours", "ratio"]
    rows = []
    for row in report["rows"]:
        rows.append(
            [
                row["network"],
                str(row["batch"]),
                *pair(row, "first_s", lambda v: f"{v:.2f}"),
                *pair(row, "update_s", lambda v: f"{1e3 * v:.2f}"),
                *pair(row, "temporaries_mib", lambda v: f"{v:.2f}"),
            ]
        )
    return text + shared.markdown_table(headings, rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("training_cost", __doc__, tuple(NETWORKS))
    out.add_argument("--repeats", type=int, default=3, help="fresh processes per cell")
    out.add_argument("--updates", type=int, default=20, help="later updates that are timed")
    out.add_argument("--one", nargs=2, metavar=("NETWORK", "STEP"), help=argparse.SUPPRESS)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    if options.one:
        print(json.dumps(measure(*options.one, options.updates)))
        return 0
    rows = []
    for name in shared.tracked(options.only or list(NETWORKS), str):
        rows.append(run(name, options.repeats, options.updates))
    report = {"benchmark": "training_cost", "repeats": options.repeats, "rows": rows}
    report |= shared.environment(32)
    shared.publish(options, markdown(report), report)
    return 1 if misses(report) else 0
