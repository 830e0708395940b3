"""``klprojax infer``: marginals and log-partition of a model file."""

import math
import re
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._options import JsonOption, Precision, PrecisionOption, Reading, grouped
from ._screen import NOT_CONVERGED, Screen, check_outputs, write_json, write_then_show
from ._wrong_files import check_kind

_MOST_STATES = 8  # of a variable, in the table that is shown


class Method(StrEnum):
    """Inference operators by name."""

    exact = "exact"
    bp = "bp"
    hybrid = "hybrid"


@dataclass(frozen=True)
class Solving:
    """How marginals are computed."""

    method: Annotated[
        Method | None,
        typer.Option(help="One method. Left out: exact and belief propagation side by side."),
    ] = None
    max_steps: Annotated[int, typer.Option(min=1, help="Most iterations.")] = 1000
    damping: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="Weight of the old message.")
    ] = 0.0
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Stop when no message changes by more.")
    ] = 1e-8


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


@grouped
def infer_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A .uai, .bif, .fg or .cnf file (or .gz), or a shipped network: alarm."
        ),
    ],
    *,
    evidence: Annotated[
        Path | None,
        typer.Option(help="A UAI .evid file, or JSON {variable: state name or index}."),
    ] = None,
    solving: Solving,
    json_out: JsonOption = None,
    uai_output: Annotated[
        Path | None, typer.Option(help="Write NAME.MAR and NAME.PR into this folder.")
    ] = None,
    reading: Reading,
    precision: PrecisionOption = Precision.double,
    memory_limit: Annotated[float, typer.Option(help="GiB that exact inference may use.")] = 4.0,
    rows: Annotated[int, typer.Option(min=0, help="Most variables to print.")] = 40,
) -> None:
    """Infer the marginals and the log-partition of MODEL.

    Exit status: 0; 2 for bad input; 3 if the method did not converge (results are still written).
    """
    screen = Screen()
    precision.use()
    from .. import load_model, read_evidence

    with screen.bad_input_exits():
        check_kind(model, "infer")
        check_kind(evidence, "infer --evidence")
        check_outputs(json_out)
        loaded = load_model(model, repair=reading.repair, encoding=reading.encoding)
        observed = {}
        if evidence is not None:
            observed = read_evidence(evidence, loaded, encoding=reading.encoding)
        uai = _uai_paths(uai_output, loaded.name or Path(model).name.split(".")[0])
        check_outputs(*uai)
        for note in loaded.notes:
            screen.note(f"note: {note}")
        wanted = [solving.method] if solving.method is not None else [Method.exact, Method.bp]
        answers: list[Answer] = []
        for one in wanted:
            with screen.working(f"{loaded.name or model}: {one.value}"):
                try:
                    answers.append(_answer(loaded, observed, one, solving, memory_limit))
                except TooLarge as large:
                    if len(wanted) == 1:
                        raise
                    screen.note(f"exact inference left out: {large}", style="")

        def write() -> None:
            content = answers[0].to_json(loaded.variable_names)
            if len(answers) > 1:
                content["compared_with"] = [a.to_json(loaded.variable_names) for a in answers[1:]]
            write_json(json_out, content)
            _write_uai(uai, answers[0])

        write_then_show(write, lambda: _show(screen, loaded, observed, answers, rows))
    late = [answer for answer in answers if not answer.converged]
    for answer in late:
        screen.note(
            f"{answer.method} did not converge in {answer.steps} steps (residual "
            f"{answer.residual:.2g}); try --damping 0.5 or more --max-steps.",
            style="",
        )
    if late:
        raise typer.Exit(NOT_CONVERGED)


class TooLarge(ValueError):
    """Exact inference does not fit the memory limit."""


def _answer(model, observed, method: Method, how: Solving, memory_limit: float) -> Answer:
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
        solver = BeliefPropagation(damping=how.damping, tolerance=how.tolerance)
    else:
        if how.damping:
            raise ValueError("--damping belongs to --method bp; the hybrid has none.")
        solver = DykstraHybrid(tolerance=how.tolerance)
    solution = infer(graph, log_potentials, solver, max_steps=how.max_steps, throw=False)
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


def _show(screen: Screen, model, observed, answers: list[Answer], rows: int) -> None:
    screen.table(
        ("method", "log-partition (nats)", "converged", "steps", "residual", "seconds"),
        [
            (
                a.method,
                f"{a.log_partition:.10g}",
                "yes" if a.converged else "NO",
                str(a.steps) if a.method != Method.exact else "-",
                f"{a.residual:.1e}" if a.method != Method.exact else "-",
                f"{a.seconds:.2f}",
            )
            for a in answers
        ],
        title=f"{model.name or 'model'}: {len(model.cardinalities)} variables, "
        f"{len(model.scopes)} factors, {len(observed)} observed",
        left=("method",),
    )
    if not rows:
        return
    gaps = []
    if len(answers) == 2:
        pairs = zip(answers[0].marginals, answers[1].marginals, strict=True)
        gaps = [np.abs(a - b).max() for a, b in pairs]
    shown = range(min(rows, len(model.cardinalities)))
    cells = []
    for v in shown:
        count = model.cardinalities[v]
        states = list(range(count) if model.state_names is None else model.state_names[v])
        more = [f"... {count - _MOST_STATES} more"] if count > _MOST_STATES else []
        name = model.variable_names[v] + (" (observed)" if v in observed else "")
        # A state a row: a long name that goes on in the next line keeps its number beside it.
        for s, state in enumerate([*states[:_MOST_STATES], *more]):
            numbers = [f"{a.marginals[v][s]:.6f}" if s < _MOST_STATES else "" for a in answers]
            gap = [f"{gaps[v]:.1e}" if s == 0 else ""] if gaps else []
            cells.append([name if s == 0 else "", state, *numbers, *gap])
    screen.table(
        ["variable", "state", *(a.method for a in answers), *["largest difference"] * bool(gaps)],
        cells,
        title="marginals",
        left=("variable", "state"),
    )
    if len(shown) < len(model.cardinalities):
        screen.show(
            f"{len(model.cardinalities) - len(shown)} more variables: --rows or --json shows them."
        )
    if gaps:
        worst = int(np.argmax(gaps))
        screen.show(
            f"Largest difference of {answers[1].method} from {answers[0].method}: "
            f"{gaps[worst]:.2e} at {model.variable_names[worst]}; mean {np.mean(gaps):.2e}."
        )


def _uai_paths(folder: Path | None, name: str) -> tuple[Path, ...]:
    """Where the two result files go; the folder is made."""
    if folder is None:
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    # The name comes from the model's file, and must not lead out of the folder.
    safe = re.sub(r"[/\\\0]", "_", name)
    return folder / f"{safe}.MAR", folder / f"{safe}.PR"


def _write_uai(paths: tuple[Path, ...], answer: Answer) -> None:
    from ..graphs import write_uai_mar, write_uai_pr

    if paths:
        write_uai_mar(paths[0], answer.marginals)
        write_uai_pr(paths[1], answer.log_partition)
