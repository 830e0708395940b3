"""Rounding: float32 log-likelihoods of long chains; random models over 10,000 nats.

Each way of this package to get a chain's log-likelihood, in float32, against a scaled forward pass
in float64 on the same float32 tables; beside them a forward pass in log space as one writes it,
``lax.scan`` of a log-sum-exp, in float32. Errors are in nats, over several observed sequences. The
largest says how far off; the mean keeps its sign, so a mean of that size is a drift, not chance.

Then exact inference on random rings and grids with potentials of up to 10,000 nats and `-inf`, in
both precisions: eagerly, and on fewer of them compiled. No answer may be wrong and not flagged.

Exit status 1 if a row failed or an answer is wrong.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import _rounding_models as random_models
from benchmarks import _shared as shared

LENGTHS = (100, 1000, 10_000, 100_000)
STATES, SYMBOLS, SEQUENCES = 4, 6, 8
PLAIN, RANDOM = "plain scan", "random models"
# Beyond these building or running takes minutes: it grows faster than the length.
LONGEST = {"explicit circuit": 10_000}


def chain(length: int) -> dict[str, np.ndarray]:
    """Log-tables in float32 and observed symbols ``[sequences, length]``, drawn from them."""
    rng = np.random.default_rng(0)
    tables = {
        "start": rng.dirichlet(np.ones(STATES)),
        "move": rng.dirichlet(np.full(STATES, 0.5), STATES),
        "show": rng.dirichlet(np.full(SYMBOLS, 0.5), STATES),
    }
    state = np.full(SEQUENCES, rng.choice(STATES, p=tables["start"]))
    seen = np.empty((SEQUENCES, length), np.int32)
    moves, shows = (np.cumsum(tables[name], axis=1) for name in ("move", "show"))
    for t in range(length):
        draws = rng.random((2, SEQUENCES, 1))
        seen[:, t] = np.minimum((draws[0] > shows[state]).sum(axis=1), SYMBOLS - 1)
        state = np.minimum((draws[1] > moves[state]).sum(axis=1), STATES - 1)
    return {name: np.log(table).astype(np.float32) for name, table in tables.items()} | {
        "seen": seen
    }


def reference(given: dict[str, np.ndarray]) -> np.ndarray:
    """Log-likelihoods by a forward pass in float64, scaled to 1 at every step, its logs summed."""
    start, move, show = (np.exp(given[k].astype(np.float64)) for k in ("start", "move", "show"))
    weights = np.tile(start, (SEQUENCES, 1))
    logs = []
    for t, symbols in enumerate(given["seen"].T):
        weights = (weights @ move if t else weights) * show[:, symbols].T
        scale = weights.sum(axis=1, keepdims=True)
        weights = weights / scale
        logs.append(np.log(scale[:, 0]))
    return np.array([math.fsum(column) for column in np.array(logs).T])


def plain(given: dict[str, np.ndarray]) -> Any:
    """The forward pass in log space, as one writes it."""
    import jax
    import jax.numpy as jnp

    shown = jnp.asarray(given["show"])[:, given["seen"]].transpose(2, 1, 0)
    move = jnp.asarray(given["move"])[None]

    def body(before: Any, shown: Any) -> Any:
        return jax.nn.logsumexp(before[:, :, None] + move, axis=1) + shown, None

    start = jnp.asarray(given["start"])[None] + shown[0]
    last = jax.jit(lambda start, shown: jax.lax.scan(body, start, shown)[0])(start, shown[1:])
    return jax.nn.logsumexp(last, axis=1)


def _tensor(given: dict[str, np.ndarray]) -> tuple[Any, Any]:
    import jax.numpy as jnp

    from klprojax.circuits import TensorParameters, hidden_markov

    circuit = hidden_markov(given["seen"].shape[1], STATES, cardinality=SYMBOLS)
    tables = (given["move"][None], given["show"][None], given["start"][None])
    return circuit, TensorParameters(*map(jnp.asarray, tables))


def tensor(given: dict[str, np.ndarray]) -> Any:
    """The tensor circuit."""
    circuit, parameters = _tensor(given)
    return circuit.log_values(parameters, given["seen"])


def explicit(given: dict[str, np.ndarray]) -> Any:
    """The same circuit as an explicit graph."""
    import jax
    import jax.numpy as jnp

    from klprojax import circuits

    circuit, parameters = _tensor(given)
    explicit, *numbers = circuit.to_circuit(parameters)
    weights, leaves = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), numbers)
    evidence = [explicit.log_evidence(dict(enumerate(map(int, row)))) for row in given["seen"]]
    batch = jax.tree.map(lambda *parts: np.stack(parts).astype(np.float32), *evidence)

    def run(tables: Any) -> Any:
        return circuits.sweep(explicit, weights, tables, leaf_parameters=leaves).log_partition

    return jax.jit(jax.vmap(run))(batch)


def _inferred(given: dict[str, np.ndarray], solver: Any) -> Any:
    import jax
    import jax.numpy as jnp

    import klprojax

    length = given["seen"].shape[1]
    steps = np.arange(length - 1)
    graph = klprojax.FactorGraph([STATES] * length, [np.stack([steps, steps + 1], axis=1)])
    tables = (jnp.asarray(given["move"]),)
    shown = given["show"][:, given["seen"]].transpose(1, 2, 0).copy()
    shown[:, 0] += given["start"]

    def run(evidence: Any) -> Any:
        return klprojax.infer(
            graph, tables, solver, log_evidence=(evidence,), throw=False
        ).log_partition

    return jax.jit(jax.vmap(run))(shown)


def elimination(given: dict[str, np.ndarray]) -> Any:
    """Exact inference on the factor graph."""
    import klprojax

    return _inferred(given, klprojax.Elimination())


def tree_sweep(given: dict[str, np.ndarray]) -> Any:
    """One sweep of belief propagation over the tree."""
    import klprojax

    return _inferred(given, klprojax.BeliefPropagation(schedule=klprojax.TreeSweep()))


METHODS: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    PLAIN: plain,
    "tensor circuit": tensor,
    "Elimination": elimination,
    "BP TreeSweep": tree_sweep,
    "explicit circuit": explicit,
}


def measure(name: str, length: int) -> dict[str, Any]:
    """Errors of one method at one length."""
    import jax

    given = chain(length)
    right = reference(given)
    start = shared.now()
    with jax.enable_x64(False):
        found = np.asarray(METHODS[name](given))
    if found.dtype != np.float32 or not np.isfinite(found).all():
        return {"status": "error", "detail": f"got {found} in {found.dtype}"}
    errors = found.astype(np.float64) - right
    return {
        "status": "ok",
        "log_likelihood": float(right.mean()),
        "largest": float(np.abs(errors).max()),
        "mean": float(errors.mean()),
        "half_step": float(np.spacing(np.float32(np.abs(right).max())) / 2),
        "seconds": shared.now() - start,
    }


def markdown(report: dict[str, Any]) -> str:
    """A line per length, two columns per method."""
    found = {(row["method"], row["length"]): row for row in report["rows"]}
    names = list(dict.fromkeys(row["method"] for row in report["rows"]))
    body = []
    for length in sorted({row["length"] for row in report["rows"]}):
        own = [found.get((name, length)) for name in names]
        done = [row for row in own if row and row["status"] == "ok"]
        cells = [f"{length:,}"]
        cells.append(f"{done[0]['log_likelihood']:.0f}" if done else "-")
        cells.append(f"{done[0]['half_step']:.0e}" if done else "-")
        for row in own:
            if row is None or row["status"] == "ok":
                cells.append(f"{row['largest']:.1e} ({row['mean']:+.1e})" if row else "-")
            else:
                cells.append(row["status"])
        body.append(cells)
    failed = [
        f"- {row['method']}, {row['length']:,} steps: {row['status']}: "
        f"{row.get('detail', f'''{row.get('limit_s', 0):g} s''')}."
        for row in report["rows"]
        if row["status"] != "ok"
    ]
    return (
        "# Rounding over length\n\n"
        f"`python -m benchmarks rounding`: log-likelihoods of a hidden Markov chain of {STATES} "
        f"states and {SYMBOLS} symbols in float32, {SEQUENCES} sequences; {report['device']}, jax "
        f"{report['versions']['jax']}, commit {str(report['commit'])[:12]}, {report['date'][:10]}."
        "\n\nLargest error in nats against float64 on the same tables, and in brackets the mean "
        "with its sign. Half a step is what rounding the right answer once to float32 may cost; "
        f"“{PLAIN}” is a forward pass in log space as one writes it. A dash: not run at this "
        "length.\n\n"
        + shared.markdown_table(("steps", "log-likelihood", "half a step", *names), body)
        + ("\n" + "\n".join(failed) + "\n" if failed else "")
        + (random_models.markdown(report["random_models"]) if report["random_models"] else "")
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("rounding", __doc__, (*METHODS, RANDOM))
    out.add_argument(
        "--length", action="append", type=int, default=[], help="steps of the chain; repeatable"
    )
    out.add_argument(
        "--time-limit", type=float, default=300.0, metavar="S", help="seconds per method and length"
    )
    out.add_argument(
        "--models", type=int, default=1000, help="random models per kind and precision"
    )
    out.add_argument(
        "--compiled-models", type=int, default=200, help="of these, how many compiled, each way"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a row failed."""
    options = parser().parse_args(argv)
    if any(length < 2 for length in options.length):
        raise SystemExit(f"--length is {min(options.length)}; a chain has at least 2 steps here.")
    cases = [
        (name, length)
        for name in options.only or METHODS
        if name != RANDOM
        for length in options.length or LENGTHS
        if length <= LONGEST.get(name, length)
    ]
    drawn = [
        (kind, bits, route, count)
        for bits in (32, 64)
        for route in random_models.ROUTES
        for kind in random_models.KINDS
        if (count := options.models if route == "eager" else options.compiled_models)
        if RANDOM in (options.only or [RANDOM])
    ]
    rows: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    report = {
        "benchmark": "rounding",
        **shared.environment(32),
        "rows": rows,
        "random_models": others,
    }
    workers = {
        job: shared.Worker(job, {"float_bits": 32}) for job in (measure, random_models.measure)
    }
    for job, *case in shared.tracked(
        [(measure, *case) for case in cases] + [(random_models.measure, *case) for case in drawn],
        lambda case: " ".join(map(str, case[1:])),
    ):
        row = workers[job].run(options.time_limit, *case)
        names, to = (
            (("method", "length"), rows) if job is measure else (("kind", "bits", "route"), others)
        )
        to.append({**dict(zip(names, case, strict=False)), **row})
        if options.json is not None:
            shared.write_json(options.json, report)
    for worker in workers.values():
        worker.stop()
    shared.publish(options, markdown(report), report)
    failed = any(row["status"] in ("error", "died") for row in (*rows, *others))
    return int(failed or any(row.get("wrong", 0) for row in others))
