"""``klprojax infer``: marginals, log-partition, best states or samples of a model file."""

import math
import re
import time
from collections.abc import Sequence
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


class Task(StrEnum):
    """What is asked of a model."""

    marginals = "marginals"
    log_partition = "partition"
    map = "map"
    marginal_map = "marginal-map"
    sample = "sample"


@dataclass(frozen=True)
class Asking:
    """What is asked, and of which variables."""

    task: Annotated[Task, typer.Option(help="What is asked; all but the first two are exact.")] = (
        Task.marginals
    )
    query: Annotated[
        str | None,
        typer.Option(
            help="Variables, separated by commas: those shown, with their joint marginal if "
            "there are several; of marginal-map those maximised over."
        ),
    ] = None
    best: Annotated[int, typer.Option(min=1, help="How many most probable states.")] = 1
    count: Annotated[int, typer.Option(min=1, help="How many samples.")] = 10
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0


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
    memory_limit: Annotated[float, typer.Option(help="GiB that exact inference may use.")] = 4.0


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

    def to_json(self, names: tuple[str, ...], kept: Sequence[int]) -> dict[str, Any]:
        """The keys promised by ``--json``."""
        return {
            "method": self.method,
            "log_partition": self.log_partition,
            "converged": self.converged,
            "steps": self.steps,
            # JSON has no infinity; diverged messages have no residual.
            "residual": self.residual if math.isfinite(self.residual) else None,
            "marginals": {names[v]: [float(p) for p in self.marginals[v]] for v in kept},
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
        list[str] | None,
        typer.Option(
            help="NAME=STATE, a UAI .evid file, or JSON, in a file or as text: {variable: state, "
            "or list of weights}. May be given several times."
        ),
    ] = None,
    asking: Asking,
    solving: Solving,
    json_out: JsonOption = None,
    uai_output: Annotated[
        Path | None,
        typer.Option(help="Write NAME.MAR, .PR, .MPE or .MMAP into this folder."),
    ] = None,
    reading: Reading,
    precision: PrecisionOption = Precision.double,
    rows: Annotated[int, typer.Option(min=0, help="Most variables to print.")] = 40,
) -> None:
    """Infer the marginals and the log-partition of MODEL, its best states, or samples.

    Exit status: 0; 2 for bad input; 3 if the method did not converge (results are still written).
    """
    screen = Screen()
    precision.use()
    from .. import load_model
    from ._infer_queries import ask

    with screen.bad_input_exits():
        check_kind(model, "infer")
        check_outputs(json_out)
        loaded = load_model(model, repair=reading.repair, encoding=reading.encoding)
        observed = _observed(loaded, evidence or [], reading.encoding)
        asked = _asked(loaded, asking.query)
        for note in loaded.notes:
            screen.note(f"note: {note}")
        name = loaded.name or Path(model).name.split(".")[0]
        case = Case(loaded, observed, asked, name, int(solving.memory_limit * 2**30), rows)
        exact_only = asking.task not in (Task.marginals, Task.log_partition)
        if exact_only and solving.method not in (None, Method.exact):
            raise ValueError(f"--task {asking.task.value} is exact; leave --method out.")
        results = {
            Task.map: ("MPE",),
            Task.marginal_map: ("MMAP",),
            Task.sample: (),
            Task.log_partition: ("PR",),
        }.get(asking.task, ("MAR", "PR"))
        uai = _uai_paths(uai_output, name, results)
        check_outputs(*uai.values())
        if exact_only:
            ask(screen, case, asking, json_out, uai)
            return
        late = _infer(screen, case, asking.task, solving, json_out, uai)
    for answer in late:
        screen.note(
            f"{answer.method} did not converge in {answer.steps} steps (residual "
            f"{answer.residual:.2g}); try --damping 0.5 or more --max-steps.",
            style="",
        )
    if late:
        raise typer.Exit(NOT_CONVERGED)


@dataclass(frozen=True)
class Case:
    """A model and what is known and asked of it."""

    model: Any
    observed: dict[int, Any]
    asked: tuple[int, ...]
    name: str
    memory_limit: int
    rows: int

    def state_names(self, variable: int) -> list[Any]:
        """Names, or numbers, of a variable's states."""
        names = self.model.state_names
        return list(range(self.model.cardinalities[variable]) if names is None else names[variable])


def _observed(model, given: list[str], encoding: str | None) -> dict[int, Any]:
    """All evidence; refused if it names a variable twice."""
    from .. import read_evidence
    from ..graphs import parse_evidence

    observed: dict[int, Any] = {}
    for text in given:
        if Path(text).suffix in (".evid", ".json", ".gz") or (
            text.lstrip()[:1] != "{" and Path(text).exists()
        ):
            check_kind(Path(text), "infer --evidence")
            found = read_evidence(text, model, encoding=encoding)
        else:
            found = parse_evidence(text, model)
        for v in found:
            if v in observed:
                raise ValueError(f"Variable {model.variable_names[v]!r} is observed twice.")
        observed |= found
    return observed


def _asked(model, query: str | None) -> tuple[int, ...]:
    """The variables of ``--query``."""
    names = [] if query is None else [name.strip() for name in query.split(",")]
    found = tuple(model.variable_index(name) for name in names)
    if len(set(found)) < len(found):
        raise ValueError(f"--query {query} names a variable twice.")
    return found


def _infer(
    screen: Screen,
    case: Case,
    task: Task,
    solving: Solving,
    json_out: Path | None,
    uai: dict[str, Path],
) -> list[Answer]:
    """Marginals and log-partition; returns the answers that did not converge."""
    from ..graphs import write_uai_mar, write_uai_pr
    from ..operators import TooLargeError
    from ._infer_queries import JointStates, joint_table

    wanted = [solving.method] if solving.method is not None else [Method.exact, Method.bp]
    answers: list[Answer] = []
    for one in wanted:
        with screen.working(f"{case.name}: {one.value}"):
            try:
                answers.append(_answer(case, one, solving))
            except TooLargeError as large:
                if len(wanted) == 1:
                    raise
                screen.note(f"exact inference left out: {large}", style="")
    joint: JointStates | None = None
    if task is Task.marginals and len(case.asked) > 1 and answers[0].method == Method.exact:
        joint = joint_table(case)
    kept = case.asked or range(len(case.model.cardinalities))
    if task is Task.log_partition:
        kept = ()

    def write() -> None:
        content, *others = (answer.to_json(case.model.variable_names, kept) for answer in answers)
        if joint is not None:
            content["joint"] = joint.to_json()
        if others:
            content["compared_with"] = others
        write_json(json_out, content)
        if "MAR" in uai:
            write_uai_mar(uai["MAR"], answers[0].marginals)
        if "PR" in uai:
            write_uai_pr(uai["PR"], answers[0].log_partition)

    def show() -> None:
        _show(screen, case, answers, kept)
        if joint is not None:
            joint.show(screen, case.rows)

    write_then_show(write, show)
    return [answer for answer in answers if not answer.converged]


def _answer(case: Case, method: Method, how: Solving) -> Answer:
    from .. import RESULTS, BeliefPropagation, DykstraHybrid, Elimination, condition, infer
    from ..graphs import ContradictionError

    start = time.perf_counter()
    reduced = condition(case.model, case.observed)
    graph, log_potentials = reduced.model.to_graph()
    if method is Method.exact:
        solver: Any = Elimination(memory_limit=case.memory_limit)
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


def _show(screen: Screen, case: Case, answers: list[Answer], kept: Sequence[int]) -> None:
    model, observed = case.model, case.observed
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
    shown = list(kept[: case.rows])
    if not shown:
        return
    gaps = []
    if len(answers) == 2:
        pairs = zip(answers[0].marginals, answers[1].marginals, strict=True)
        gaps = [np.abs(a - b).max() for a, b in pairs]
    cells = []
    for v in shown:
        count = model.cardinalities[v]
        states = case.state_names(v)
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
    if len(shown) < len(kept):
        screen.show(f"{len(kept) - len(shown)} more variables: --rows or --json shows them.")
    if gaps:
        worst = int(np.argmax(gaps))
        screen.show(
            f"Largest difference of {answers[1].method} from {answers[0].method}: "
            f"{gaps[worst]:.2e} at {model.variable_names[worst]}; mean {np.mean(gaps):.2e}."
        )


def _uai_paths(folder: Path | None, name: str, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Where the result files go; the folder is made."""
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    # The name comes from the model's file, and must not lead out of the folder.
    safe = re.sub(r"[/\\\0]", "_", name)
    return {kind: folder / f"{safe}.{kind}" for kind in kinds}
