"""Hidden Markov chains: a tree sweep's cost over length, beside two scans by hand and dynamax.

Smoothing (marginals and log-likelihood), its gradient and Viterbi (the best state of every step),
float32, one transition table shared by all steps. By hand is a forward and a backward ``lax.scan``
of log-sum-exps as one writes them, for the gradient the forward one and its transpose. dynamax
smooths on probabilities, not on logarithms. Sides take turns on one core; figures are the least CPU
seconds of several calls. Targets: an exponent of at most 1.1 over the length, and at the longest
chain of each size at most 3 times the scans by hand (but for Viterbi) and no slower than dynamax.
Exit status 1 if one is missed.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _shared as shared

# States: lengths.
LENGTHS = {8: (1_000, 10_000, 100_000), 100: (300, 1_000, 3_000)}
EXPONENT, RATIO = 1.1, 3.0
ENVIRONMENT = Path(__file__).parent / ".env" / "dynamax"
REQUIREMENTS = ("dynamax==1.0.3",)
# Runs in dynamax's environment: a process that times one call whenever it gets a line.
PEER = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
from dynamax.hidden_markov_model import hmm_filter, hmm_posterior_mode, hmm_smoother
given = np.load(sys.argv[1])
start, move, seen = (jnp.asarray(given[k]) for k in ("start", "move", "seen"))
start, move = jnp.exp(start), jnp.exp(move)
def smooth(seen):
    found = hmm_smoother(start, move, seen)
    return found.smoothed_probs, found.marginal_loglik
calls = {
    "smoothing": jax.jit(smooth),
    "gradient": jax.jit(jax.grad(lambda s: hmm_filter(start, move, s).marginal_loglik)),
    "viterbi": jax.jit(lambda s: hmm_posterior_mode(start, move, s)),
}
for line in sys.stdin:
    task = line.strip()
    began = time.process_time()
    found = jax.block_until_ready(calls[task](seen))
    seconds = time.process_time() - began
    np.savez(sys.argv[2], *map(np.asarray, jax.tree.leaves(found)))
    print(json.dumps(seconds), flush=True)
"""


def chain(states: int, length: int) -> dict[str, np.ndarray]:
    """Log-tables of the first state, the steps and what was seen, in float32."""
    rng = np.random.default_rng(0)
    tables = {
        "start": np.log(rng.dirichlet(np.ones(states))),
        "move": np.log(rng.dirichlet(np.ones(states), states)),
        "seen": rng.normal(scale=2.0, size=(length, states)),
    }
    return {name: table.astype(np.float32) for name, table in tables.items()}


def ours(given: dict[str, np.ndarray]) -> dict[str, Callable[[Any], Any]]:
    """Each task as a function of what was seen, by `TreeSweep`."""
    import jax
    import jax.numpy as jnp

    import klprojax

    length, states = given["seen"].shape
    steps = np.arange(length)
    pairs = np.stack([steps[:-1], steps[1:]], axis=1)
    graph = klprojax.FactorGraph([states] * length, [pairs, steps[:, None], (0,)])
    move, start = jnp.asarray(given["move"]), jnp.asarray(given["start"])[None]
    schedule = klprojax.TreeSweep()

    def solve(seen: Any, semiring: Any) -> Any:
        solver = klprojax.BeliefPropagation(semiring=semiring, schedule=schedule)
        return klprojax.infer(graph, (move, seen, start), solver, throw=False)

    def smooth(seen: Any) -> Any:
        found = solve(seen, "sum")
        return found.marginals[0], found.log_partition

    return {
        "smoothing": jax.jit(smooth),
        "gradient": jax.jit(jax.grad(lambda seen: solve(seen, "sum").log_partition)),
        "viterbi": jax.jit(lambda seen: jnp.argmax(solve(seen, "max").log_beliefs[0], axis=1)),
    }


def by_hand(given: dict[str, np.ndarray]) -> dict[str, Callable[[Any], Any]]:
    """The same by two scans."""
    import jax
    import jax.numpy as jnp
    from jax.nn import logsumexp

    move, start = jnp.asarray(given["move"]), jnp.asarray(given["start"])

    def ahead(message: Any, seen: Any) -> Any:
        message = logsumexp((message + seen)[:, None] + move, axis=0)
        level = logsumexp(message)
        return message - level, (message - level, level)

    def behind(message: Any, seen: Any) -> Any:
        message = logsumexp(move + (message + seen)[None, :], axis=1)
        message = message - logsumexp(message)
        return message, message

    def forward(seen: Any) -> Any:
        last, (before, levels) = jax.lax.scan(ahead, start, seen[:-1])
        return before, jnp.sum(levels) + logsumexp(last + seen[-1])

    def smooth(seen: Any) -> Any:
        before, log_likelihood = forward(seen)
        nothing = jnp.zeros_like(start)
        _, after = jax.lax.scan(behind, nothing, seen[1:], reverse=True)
        total = jnp.concatenate([start[None], before]) + seen
        total = total + jnp.concatenate([after, nothing[None]])
        return jax.nn.softmax(total, axis=1), log_likelihood

    def best(message: Any, seen: Any) -> Any:
        ways = (message + seen)[:, None] + move
        return jnp.max(ways, axis=0), jnp.argmax(ways, axis=0)

    def viterbi(seen: Any) -> Any:
        last, came_from = jax.lax.scan(best, start, seen[:-1])
        end = jnp.argmax(last + seen[-1])
        _, path = jax.lax.scan(lambda s, ways: (ways[s], ways[s]), end, came_from, reverse=True)
        return jnp.append(path, end)

    return {
        "smoothing": jax.jit(smooth),
        "gradient": jax.jit(jax.grad(lambda seen: forward(seen)[1])),
        "viterbi": jax.jit(viterbi),
    }


class Dynamax:
    """The peer's process for one chain."""

    def __init__(self, python: str, folder: Path, given: dict[str, np.ndarray]):
        self.out = folder / "found.npz"
        np.savez(folder / "given.npz", **given)
        self.process = subprocess.Popen(
            [python, "-c", PEER, str(folder / "given.npz"), str(self.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, task: str) -> tuple[float, list[np.ndarray]]:
        """CPU seconds of a call, and what it found."""
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("dynamax's process ended; see its message above.")
        with np.load(self.out) as found:
            return json.loads(line), [found[name] for name in found.files]


def measure(states: int, length: int, repeats: int, python: str | None) -> list[dict[str, Any]]:
    """One row per task: all sides in turn on one chain."""
    import jax
    import jax.numpy as jnp

    given = chain(states, length)
    seen = jnp.asarray(given["seen"])
    sides = {"klprojax": ours(given), "by hand": by_hand(given)}

    def call(function: Callable[[Any], Any]) -> tuple[float, list[np.ndarray]]:
        start = time.process_time()
        found = jax.block_until_ready(function(seen))
        return time.process_time() - start, [np.asarray(x) for x in jax.tree.leaves(found)]

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        peer = None if python is None else Dynamax(python, Path(folder), given)
        for task in sides["klprojax"]:
            calls = {name: lambda f=side[task]: call(f) for name, side in sides.items()}
            if peer is not None:
                calls["dynamax"] = lambda task=task: peer.seconds(task)
            first = {name: timed() for name, timed in calls.items()}
            least = {name: np.inf for name in calls}
            for _ in range(repeats):
                for name, timed in calls.items():
                    least[name] = min(least[name], timed()[0])
            mine = first["klprojax"][1]
            rows.append(
                {
                    "states": states,
                    "length": length,
                    "task": task,
                    "cpu_s": least,
                    "first_call_cpu_s": {name: seconds for name, (seconds, _) in first.items()},
                    # Largest difference of a probability, or share of steps whose state differs.
                    "differs": {
                        name: float(
                            np.mean(mine[0] != found[0])
                            if task == "viterbi"
                            else np.abs(mine[0] - found[0]).max()
                        )
                        for name, (_, found) in first.items()
                        if name != "klprojax"
                    },
                }
            )
        if peer is not None:
            peer.process.stdin.close()
            peer.process.wait()
    return rows


def exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slope of the logarithm of the CPU seconds over that of the length, per size and task."""
    out = []
    for states, task in dict.fromkeys((row["states"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["states"], row["task"]) == (states, task)]
        if len(mine) > 1:
            lengths = np.log([row["length"] for row in mine])
            seconds = np.log([row["cpu_s"]["klprojax"] for row in mine])
            slope = float(np.polyfit(lengths, seconds, 1)[0])
            out.append({"states": states, "task": task, "exponent": slope})
    return out


def missed(rows: list[dict[str, Any]], slopes: list[dict[str, Any]]) -> list[str]:
    """Targets that were missed, in words."""
    out = [
        f"{s['task']} at {s['states']} states: exponent {s['exponent']:.2f} over {EXPONENT}"
        for s in slopes
        if s["exponent"] > EXPONENT
    ]
    for row in rows:
        if row["length"] != max(r["length"] for r in rows if r["states"] == row["states"]):
            continue
        for name, most in (("by hand", RATIO), ("dynamax", 1.0)):
            # Best paths by hand take one pass of sums and one of look-ups, not two of sums.
            if name in row["cpu_s"] and (name, row["task"]) != ("by hand", "viterbi"):
                ratio = row["cpu_s"]["klprojax"] / row["cpu_s"][name]
                if ratio > most:
                    what = f"{row['task']} at {row['states']} states, {row['length']:,} steps"
                    out.append(f"{what}: {ratio:.2f} times {name}, over {most:g}")
    return out


def markdown(report: dict[str, Any]) -> str:
    """One line per task and chain."""
    names = list(dict.fromkeys(n for row in report["rows"] for n in row["cpu_s"]))
    body = [
        [
            f"{row['task']}, {row['states']} states",
            f"{row['length']:,}",
            *(shared.figure(row["cpu_s"].get(n), ".4f") for n in names),
            *(shared.figure(row["first_call_cpu_s"].get(n), ".1f") for n in names),
            " / ".join(f"{gap:.0e}" for gap in row["differs"].values()),
        ]
        for row in report["rows"]
    ]
    headings = ["task", "steps", *(f"{n}, CPU s" for n in names)]
    headings += [*(f"{n}, first call" for n in names), "differs by"]
    slopes = [
        [f"{s['task']}, {s['states']} states", f"{s['exponent']:.2f}"] for s in report["exponents"]
    ]
    said = "".join(f"- {line}\n" for line in report["missed"]) or "- none\n"
    return (
        "# Chains\n\n"
        f"`python -m benchmarks chains`: hidden Markov chains in float32, one core; "
        f"{report['device']}, jax {report['versions']['jax']}, commit {report['commit'][:12]}, "
        f"{report['date'][:10]}.\n\n"
        + shared.markdown_table(headings, body)
        + "\nGrowth with the length: seconds go as its power\n\n"
        + shared.markdown_table(("task", "exponent"), slopes)
        + "\nTargets missed:\n\n"
        + said
    )


def setup_peers() -> None:
    """Make dynamax's environment."""
    shared.make_environment(ENVIRONMENT, REQUIREMENTS)


def peer_python() -> str | None:
    """The interpreter that has dynamax, if there is one."""
    return shared.python_of(ENVIRONMENT, "KLPROJAX_DYNAMAX_PYTHON")


def main(argv: list[str] | None = None) -> int:
    """Measure, print; 1 where a target is missed."""
    options = shared.base_parser("chains", __doc__, [str(states) for states in LENGTHS])
    shared.add_peer(options, "dynamax", 5)
    options.add_argument("--length", type=int, action="append", help="steps; repeatable")
    asked = options.parse_args(argv)
    if asked.setup_peers:
        setup_peers()
    # One core for all sides, and before JAX starts its threads.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax

    python = None if asked.no_peer else peer_python()
    sizes = [s for s in LENGTHS if not asked.only or str(s) in asked.only]
    cases = [(s, length) for s in sizes for length in asked.length or LENGTHS[s]]
    with jax.enable_x64(False):
        rows = [
            row
            for states, length in shared.tracked(cases, lambda c: f"{c[0]} states, {c[1]:,} steps")
            for row in measure(states, length, asked.repeats, python)
        ]
    slopes = exponents(rows)
    report = {
        "benchmark": "chains",
        **shared.environment(32),
        "rows": rows,
        "exponents": slopes,
        "missed": missed(rows, slopes),
    }
    shared.publish(asked, markdown(report), report)
    return 1 if report["missed"] else 0
