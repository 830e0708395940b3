"""Belief propagation on every loopy reference model: converged or flagged, and how far from exact.

Flooding without damping, flooding with damping 0.5, and the sequential schedule, after `condition`.
Errors are against exact marginals and log-partitions where those are known. The claim is that no
belief is ever NaN, and that a run that has not settled says so; the exit status is 1 if not.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import _shared as shared

METHODS = {
    "flooding": {"damping": 0.0},
    "flooding, damping 0.5": {"damping": 0.5},
    "sequential": {"damping": 0.0},
}


def solve(
    case: shared.Case, data: Path, method: str, tolerance: float, max_steps: int
) -> dict[str, Any]:
    """One run of belief propagation and its errors."""
    import jax
    import numpy as np

    import klprojax
    from klprojax.operators._schedules import is_forest

    model, observed = case.load(data)
    row: dict[str, Any] = {"variables": len(model.cardinalities), "factors": len(model.scopes)}
    try:
        reduced = klprojax.condition(model, observed)
    except klprojax.ContradictionError as error:
        return row | {"status": "contradiction", "detail": str(error)}
    row["variables_left"] = len(reduced.kept)
    graph, log_potentials = reduced.model.to_graph()
    if is_forest(graph):
        return row | {"status": "tree"}
    schedule = klprojax.Sequential() if method == "sequential" else klprojax.Flooding()
    solver = klprojax.BeliefPropagation(schedule=schedule, tolerance=tolerance, **METHODS[method])
    start = shared.now()
    solution = jax.block_until_ready(
        klprojax.infer(graph, log_potentials, solver, max_steps=max_steps, throw=False)
    )
    row["seconds"] = shared.now() - start
    marginals = reduced.expand(graph.unpack_variables(solution.beliefs))
    log_partition = float(solution.log_partition)
    row["finite"] = bool(
        all(np.isfinite(m).all() for m in marginals)
        and np.isfinite(log_partition)
        and not np.isnan(float(solution.residual))
    )
    assert row["finite"], "a belief, the log-partition or the residual is NaN or infinite"
    row["status"] = "converged" if bool(solution.converged) else "flagged"
    # The verdict must be the flag: a run that has not settled is never reported as a success.
    success = bool(solution.result == klprojax.RESULTS.successful)
    assert success == bool(solution.converged)
    assert success == (float(solution.residual) < tolerance)
    row |= {"steps": int(solution.steps), "residual": float(solution.residual)}
    row["bethe_log_partition"] = log_partition
    kind, exact, known = case.answer(data, model.variable_names)
    row["reference"] = kind
    if exact is not None:
        row["exact_log_partition"] = exact
        row["log_partition_error"] = log_partition - exact
    if known is not None:
        row["max_error"], row["mean_error"] = shared.differences(marginals, known)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """One line a model and method."""
    f = shared.figure
    return shared.markdown_table(
        (
            "model",
            "method",
            "verdict",
            "steps",
            "residual",
            "max error",
            "mean error",
            "Bethe - exact log Z",
            "s",
        ),
        [
            (
                r["case"],
                r["method"],
                r["status"],
                str(r.get("steps", "-")),
                f(r.get("residual"), ".0e"),
                f(r.get("max_error"), ".1e"),
                f(r.get("mean_error"), ".1e"),
                f(r.get("log_partition_error"), ".2e"),
                f(r.get("seconds", r.get("limit_s")), ".1f"),
            )
            for r in rows
            if r["status"] != "tree"
        ],
    )


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a run broke a claim."""
    parser = shared.parser("bp_accuracy", __doc__)
    parser.add_argument("--tolerance", type=float, default=1e-9)
    parser.add_argument("--max-steps", type=int, default=1000)
    options = parser.parse_args(argv)
    data = shared.data_dir(options)
    cases = shared.reference_cases(data, options.only)
    where = shared.environment(options.float_bits)  # before the run: the code that is measured
    worker = shared.Worker(solve, {"float_bits": options.float_bits})
    rows = shared.finished_rows(options, ("converged", "flagged", "contradiction"))
    trees: list[str] = []
    done = {(row["case"], row["method"]) for row in rows}

    def report() -> tuple[str, dict[str, Any]]:
        counts = {
            method: dict(Counter(r["status"] for r in rows if r["method"] == method))
            for method in METHODS
        }
        facts = {
            "benchmark": "bp_accuracy",
            **where,
            "tolerance": options.tolerance,
            "max_steps": options.max_steps,
            "time_limit_s": options.time_limit,
            "counts": counts,
            "trees": trees,
            "rows": rows,
        }
        said = "; ".join(
            f"{method}: " + ", ".join(f"{n} {status}" for status, n in count.items())
            for method, count in counts.items()
        )
        text = (
            f"# Belief propagation on the loopy reference models\n\n"
            f"`python -m benchmarks bp_accuracy`, float{options.float_bits}, tolerance "
            f"{options.tolerance:g}, at most {options.max_steps} steps, "
            f"{options.time_limit:g} s per run, {facts['device']}, jax {facts['versions']['jax']}, "
            f"commit {str(facts['commit'])[:12]}, {facts['date'][:10]}.\n\n"
            f"{said}. No run gave NaN"
            f"{'' if not broken(rows) else ' EXCEPT: ' + ', '.join(broken(rows))}.\n\n"
            "`flagged`: the result says not converged, its beliefs are those of the last step. "
            "Errors are absolute, against exact marginals; log Z errors of some large models "
            "are against published values with about 6 digits. A dash: no exact answer known.\n"
            f"Trees once evidence and impossible states are removed, where belief propagation is "
            f"exact, are left out: {', '.join(trees) or 'none'}.\n\n" + table(rows)
        )
        return text, facts

    try:
        for case in shared.tracked(cases, lambda c: c.name):
            for method in METHODS:
                if (case.name, method) in done:
                    continue
                row = worker.run(
                    options.time_limit, case, data, method, options.tolerance, options.max_steps
                )
                if row["status"] == "tree":
                    trees.append(case.name)
                    break
                row |= {"method": method, "commit": where["commit"]}
                rows.append({"case": case.name, "folder": case.folder, **row})
            if options.json:
                shared.write_json(options.json, report()[1])
    finally:
        worker.stop()
    text, facts = report()
    shared.publish(options, text, facts)
    return 1 if broken(rows) else 0


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """Runs that ended in an error or with a number that is not finite."""
    return [
        f"{r['case']} ({r['method']})"
        for r in rows
        if r["status"] in ("error", "died") or not r.get("finite", True)
    ]
