"""Exact inference on every reference model: difference to the known answers, size and seconds.

`Elimination` on each Bayesian network (without and with evidence) and each UAI-2014 model, after
`condition`, and with ``--jit`` as a compiled program too. A model that does not fit the limits is
listed with its predicted size. The claim is that every feasible model agrees with its float64
reference to 1e-8; the exit status is 1 if not.
"""

import re
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import _shared as shared

MAX_DIFFERENCE = 1e-8
# Published log-partitions have about 6 significant digits (half a unit of the last: 5e-6
# relative), those of small magnitude 3 decimals in log10.
MAX_PUBLISHED = 1e-5


# Models that take longer than this outside of `jit` are not compiled.
SECONDS_TO_COMPILE = 20.0


def solve(case: shared.Case, data: Path, memory_limit: int, in_jit: bool) -> dict[str, Any]:
    """Run twice, compare; then, if asked for, the same inside of `jit`."""
    import jax
    import numpy as np

    import klprojax

    model, observed = case.load(data)
    row: dict[str, Any] = {"variables": len(model.cardinalities), "factors": len(model.scopes)}
    start = shared.now()
    try:
        reduced = klprojax.condition(model, observed)
    except klprojax.ContradictionError as error:
        # Said of the file as it is; a published answer of such a file belongs to another model.
        return row | {"status": "contradiction", "detail": str(error)}
    row["condition_s"] = shared.now() - start
    row["variables_left"] = len(reduced.kept)
    graph, log_potentials = reduced.model.to_graph()
    solver = klprojax.Elimination(memory_limit=memory_limit)
    for key in ("first_call_s", "second_call_s"):
        start = shared.now()
        try:
            solution = jax.block_until_ready(klprojax.infer(graph, log_potentials, solver))
        except ValueError as error:
            row |= {"status": "infeasible", "refused_s": shared.now() - start, "detail": str(error)}
            return row
        row[key] = shared.now() - start
    row["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    marginals = reduced.expand(graph.unpack_variables(solution.marginals))
    assert all(np.isfinite(m).all() for m in marginals)
    row["log_partition"] = float(solution.log_partition)
    kind, log_partition, known = case.answer(data, model.variable_names)
    row["reference"] = kind
    row["status"] = "solved"
    if log_partition is not None:
        row["log_partition_difference"] = shared.relative(row["log_partition"], log_partition)
    if known is not None:
        row["marginal_difference"], _ = shared.differences(marginals, known)
    if in_jit and row["second_call_s"] < SECONDS_TO_COMPILE:
        row |= compiled(graph, log_potentials, solver, solution)
    return row


def compiled(graph: Any, log_potentials: Any, solver: Any, known: Any) -> dict[str, Any]:
    """Processor seconds of the first call inside of `jit`, seconds of the next, differences."""
    import jax
    import jax.numpy as jnp

    import klprojax

    run = jax.jit(lambda tables: klprojax.infer(graph, tables, solver, throw=False))
    start = time.process_time()
    try:
        found = jax.block_until_ready(run(log_potentials))
    except klprojax.operators.TooLargeError as error:
        return {"jit": "infeasible", "jit_detail": str(error)}
    first = time.process_time() - start
    start = shared.now()
    jax.block_until_ready(run(log_potentials))
    second = shared.now() - start
    gaps = [
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(found.marginals, known.marginals, strict=True)
        if a.size
    ]
    log_partition = float(found.log_partition), float(known.log_partition)
    gaps.append(shared.relative(*log_partition))
    return {"jit_first_cpu_s": first, "jit_second_call_s": second, "jit_difference": max(gaps)}


def agrees(row: dict[str, Any]) -> bool:
    """Whether a solved model has the known answer."""
    gaps = [row.get("log_partition_difference", 0.0), row.get("marginal_difference", 0.0)]
    limit = MAX_DIFFERENCE if row["reference"] == shared.EXACT else MAX_PUBLISHED
    return max(gaps) <= limit and row.get("jit_difference", 0.0) <= MAX_DIFFERENCE


def table(rows: list[dict[str, Any]]) -> str:
    """The human-readable table."""
    f = shared.figure
    solved = [r for r in rows if r["status"] == "solved"]
    rest = [r for r in rows if r["status"] != "solved"]
    text = shared.markdown_table(
        (
            "model",
            "variables (left)",
            "first call s",
            "second call s",
            "log Z difference",
            "marginal difference",
            "reference",
            "in jit: first call CPU s",
            "second call s",
        ),
        [
            (
                r["case"],
                f"{r['variables']} ({r['variables_left']})",
                f(r["first_call_s"], ".2f"),
                f(r["second_call_s"], ".3f"),
                f(r.get("log_partition_difference"), ".1e"),
                f(r.get("marginal_difference"), ".1e"),
                r["reference"],
                "infeasible" if "jit" in r else f(r.get("jit_first_cpu_s"), ".1f"),
                f(r.get("jit_second_call_s"), ".3f"),
            )
            for r in solved
        ],
    )
    if rest:
        text += "\nNot solved:\n\n" + shared.markdown_table(
            ("model", "variables (left)", "status", "seconds to say so", "predicted size"),
            [
                (
                    r["case"],
                    f"{r.get('variables', '?')} ({r.get('variables_left', '?')})",
                    r["status"],
                    f(r.get("refused_s", r.get("limit_s")), ".1f"),
                    predicted(r.get("detail", "-")),
                )
                for r in rest
            ],
        )
    return text


def predicted(detail: str) -> str:
    """The size in the error message, or the message."""
    found = re.match(r"Exact inference would take (about .* entries)\.", detail)
    return found.group(1) if found else detail


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a solved model disagrees with its reference."""
    parser = shared.parser("exactness", __doc__)
    parser.add_argument("--memory-limit", type=float, default=8.0, metavar="GIB")
    parser.add_argument("--jit", action="store_true", help="also inside of jit")
    options = parser.parse_args(argv)
    data = shared.data_dir(options)
    cases = shared.reference_cases(data, options.only)
    where = shared.environment(options.float_bits)  # before the run: the code that is measured
    worker = shared.Worker(solve, {"float_bits": options.float_bits})
    rows = shared.finished_rows(options, ("solved", "infeasible", "contradiction"))

    def report() -> tuple[str, dict[str, Any]]:
        counts = dict(Counter(r["status"] for r in rows))
        wrong = [r["case"] for r in rows if r["status"] == "solved" and not agrees(r)]
        facts = {
            "benchmark": "exactness",
            **where,
            "memory_limit_gib": options.memory_limit,
            "time_limit_s": options.time_limit,
            "counts": counts,
            "disagree": wrong,
            "rows": rows,
        }
        said = ", ".join(f"{n} {status}" for status, n in counts.items())
        in_jit = (
            f" Models of less than {SECONDS_TO_COMPILE:g} s are compiled too: processor seconds of "
            "the first call."
            if options.jit
            else ""
        )
        text = (
            f"# Exact inference on the reference models\n\n"
            f"`python -m benchmarks exactness{' --jit' * options.jit}`, float{options.float_bits}, "
            f"memory limit {options.memory_limit:g} GiB, {options.time_limit:g} s per model, "
            f"{facts['device']}, jax {facts['versions']['jax']}, "
            f"commit {str(facts['commit'])[:12]}, {facts['date'][:10]}.\n\n"
            f"{len(rows)} models: {said}. Disagreeing with the reference: "
            f"{', '.join(wrong) or 'none'}.\n\n"
            "Differences of log Z are relative where it exceeds 1, of marginals absolute. The "
            "first call includes the search for a contraction tree.\n"
            f"`published` answers have about 6 digits, no marginals.{in_jit}\n\n" + table(rows)
        )
        return text, facts

    try:
        done = {row["case"] for row in rows}
        for case in shared.tracked([c for c in cases if c.name not in done], lambda c: c.name):
            row = worker.run(
                options.time_limit, case, data, int(options.memory_limit * 2**30), options.jit
            )
            row |= {"commit": where["commit"]}
            rows.append({"case": case.name, "folder": case.folder, **row})
            if options.json:
                shared.write_json(options.json, report()[1])
    finally:
        worker.stop()
    text, facts = report()
    shared.publish(options, text, facts)
    return 1 if facts["disagree"] or facts["counts"].get("error") else 0
