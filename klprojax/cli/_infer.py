"""``klprojax infer``: marginals and log-partition of a model file."""

import json
import math
import os
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

BAD_INPUT, NOT_CONVERGED = 2, 3


class Method(StrEnum):
    """Inference operators by name."""

    exact = "exact"
    bp = "bp"
    hybrid = "hybrid"


class Precision(StrEnum):
    """Floating-point width."""

    single = "32"
    double = "64"


@dataclass(frozen=True)
class Answer:
    """One method's result, all variables in the model's order."""

    method: str
    log_partition: float
    marginals: list[np.ndarray]
    converged: bool
    steps: int
    residual: float
    seconds: float

    def to_json(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The keys promised by ``--json``."""
        return {
            "method": self.method,
            "log_partition": self.log_partition,
            "converged": self.converged,
            "steps": self.steps,
            # JSON has no infinity; diverged messages have no residual.
            "residual": self.residual if math.isfinite(self.residual) else None,
            "marginals": {
                name: [float(p) for p in marginal]
                for name, marginal in zip(names, self.marginals, strict=True)
            },
        }


def infer_command(
    model: Annotated[
        str, typer.Argument(help="A .uai, .bif or .fg file (or .gz), or a shipped network: alarm.")
    ],
    evidence: Annotated[
        Path | None,
        typer.Option(help="A UAI .evid file, or JSON {variable: state name or index}."),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="One method. Left out: exact and belief propagation side by side."),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Most iterations.")] = 1000,
    damping: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="Weight of the old message.")
    ] = 0.0,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Stop when no message changes by more.")
    ] = 1e-8,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    uai_output: Annotated[
        Path | None, typer.Option(help="Write NAME.MAR and NAME.PR into this folder.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Floating-point bits.")] = Precision.double,
    memory_limit: Annotated[float, typer.Option(help="GiB that exact inference may use.")] = 4.0,
    rows: Annotated[int, typer.Option(min=0, help="Most variables to print.")] = 40,
) -> None:
    """Infer the marginals and the log-partition of MODEL.

    Exit status: 0; 2 for bad input; 3 if the method did not converge (results are still written).
    """
    console, errors = Console(), Console(stderr=True)
    import jax

    jax.config.update("jax_enable_x64", precision is Precision.double)
    from .. import load_model, read_evidence

    try:
        loaded = load_model(model)
        observed = read_evidence(evidence, loaded) if evidence is not None else {}
        for note in loaded.notes:
            errors.print(f"[dim]note: {note}[/dim]", highlight=False)
        wanted = [method] if method is not None else [Method.exact, Method.bp]
        answers = []
        for one in wanted:
            with errors.status(f"{loaded.name or model}: {one.value}"):
                try:
                    answers.append(
                        _answer(loaded, observed, one, max_steps, damping, tolerance, memory_limit)
                    )
                except TooLarge as large:
                    if len(wanted) == 1:
                        raise
                    errors.print(f"exact inference left out: {large}", highlight=False)
        _show(console, loaded, observed, answers, rows)
        if json_out is not None:
            _write_json(json_out, answers, loaded.variable_names)
        if uai_output is not None:
            _write_uai(uai_output, loaded.name or Path(model).name.split(".")[0], answers[0])
    except (ValueError, OSError) as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    late = [answer for answer in answers if not answer.converged]
    for answer in late:
        errors.print(
            f"{answer.method} did not converge in {answer.steps} steps (residual "
            f"{answer.residual:.2g}); try --damping 0.5 or more --max-steps.",
            highlight=False,
        )
    if late:
        raise typer.Exit(NOT_CONVERGED)


class TooLarge(ValueError):
    """Exact inference does not fit the memory limit."""


def _answer(model, observed, method, max_steps, damping, tolerance, memory_limit) -> Answer:
    from .. import RESULTS, BeliefPropagation, DykstraHybrid, Elimination, condition, infer
    from ..graphs import ContradictionError

    start = time.perf_counter()
    reduced = condition(model, observed)
    graph, log_potentials = reduced.model.to_graph()
    if method is Method.exact:
        solver: Any = Elimination(memory_limit=int(memory_limit * 2**30))
        try:
            solver.plan(graph, log_potentials)
        except ValueError as error:
            raise TooLarge(str(error)) from None
    elif method is Method.bp:
        solver = BeliefPropagation(damping=damping, tolerance=tolerance)
    else:
        if damping:
            raise ValueError("--damping belongs to --method bp; the hybrid has none.")
        solver = DykstraHybrid(tolerance=tolerance)
    solution = infer(graph, log_potentials, solver, max_steps=max_steps, throw=False)
    if bool(solution.result == RESULTS.contradiction):
        raise ContradictionError(RESULTS[RESULTS.contradiction])
    if bool(solution.result == RESULTS.nonfinite):
        raise ValueError(RESULTS[RESULTS.nonfinite])
    marginals = reduced.expand(graph.unpack_variables(solution.beliefs))
    return Answer(
        method.value,
        float(solution.log_partition),
        marginals,
        bool(solution.converged),
        int(solution.steps),
        float(solution.residual),
        time.perf_counter() - start,
    )


def _show(console: Console, model, observed, answers: list[Answer], rows: int) -> None:
    summary = Table(
        title=f"{model.name or 'model'}: {len(model.cardinalities)} variables, "
        f"{len(model.scopes)} factors, {len(observed)} observed"
    )
    for heading in ("method", "log-partition (nats)", "converged", "steps", "residual", "seconds"):
        summary.add_column(heading, justify="left" if heading == "method" else "right")
    for a in answers:
        summary.add_row(
            a.method,
            f"{a.log_partition:.10g}",
            "yes" if a.converged else "NO",
            str(a.steps) if a.method != Method.exact else "-",
            f"{a.residual:.1e}" if a.method != Method.exact else "-",
            f"{a.seconds:.2f}",
        )
    console.print(summary)
    if not rows or not answers:
        return
    table = Table(title="marginals")
    table.add_column("variable")
    table.add_column("state")
    for a in answers:
        table.add_column(a.method, justify="right")
    if len(answers) == 2:
        table.add_column("largest difference", justify="right")
    shown = range(min(rows, len(model.cardinalities)))
    for v in shown:
        states = (
            model.state_names[v]
            if model.state_names is not None
            else [str(s) for s in range(model.cardinalities[v])]
        )
        name = model.variable_names[v] + (" (observed)" if v in observed else "")
        limit = 8
        cells = ["\n".join(f"{p:.6f}" for p in a.marginals[v][:limit]) for a in answers]
        if len(answers) == 2:
            gap = np.abs(answers[0].marginals[v] - answers[1].marginals[v]).max()
            cells.append(f"{gap:.1e}")
        more = [f"... {len(states) - limit} more"] if len(states) > limit else []
        table.add_row(name, "\n".join([*states[:limit], *more]), *cells)
    console.print(table)
    if len(shown) < len(model.cardinalities):
        console.print(
            f"{len(model.cardinalities) - len(shown)} more variables: --rows or --json shows them."
        )
    if len(answers) == 2:
        gaps = [
            np.abs(a - b).max()
            for a, b in zip(answers[0].marginals, answers[1].marginals, strict=True)
        ]
        worst = int(np.argmax(gaps))
        console.print(
            f"Largest difference of {answers[1].method} from {answers[0].method}: "
            f"{gaps[worst]:.2e} at {model.variable_names[worst]}; mean {np.mean(gaps):.2e}."
        )


def _write_json(path: Path, answers: list[Answer], names: tuple[str, ...]) -> None:
    content = answers[0].to_json(names)
    if len(answers) > 1:
        content["compared_with"] = [answer.to_json(names) for answer in answers[1:]]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def _write_uai(folder: Path, name: str, answer: Answer) -> None:
    from ..graphs import write_uai_mar, write_uai_pr

    folder.mkdir(parents=True, exist_ok=True)
    write_uai_mar(folder / f"{name}.MAR", answer.marginals)
    write_uai_pr(folder / f"{name}.PR", answer.log_partition)
