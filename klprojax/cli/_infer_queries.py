"""What ``klprojax infer`` answers beside marginals: best states, samples, joint marginals."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._screen import Screen, write_json, write_then_show

if TYPE_CHECKING:
    from ._infer import Asking, Case


@dataclass(frozen=True)
class JointStates:
    """Joint states of some variables, each with numbers."""

    title: str
    variables: list[str]
    states: list[list[Any]]
    numbers: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Columns by name."""
        columns = {name: column.tolist() for name, column in self.numbers.items()}
        return {"variables": self.variables, "states": self.states, **columns}

    def show(self, screen: Screen, rows: int) -> None:
        """Print it; many variables in rows of their own."""
        count = len(self.states)
        shown = range(min(rows, count))
        if not shown:
            return
        if len(self.variables) <= 6:
            cells = [
                [*self.states[k], *(f"{column[k]:.6g}" for column in self.numbers.values())]
                for k in shown
            ]
            headings = [*self.variables, *self.numbers]
            screen.table(headings, cells, title=self.title, left=self.variables)
        else:
            shown = range(min(count, 5))
            cells = [
                [name, *(self.states[k][v] for k in shown)]
                for v, name in enumerate(self.variables[:rows])
            ]
            cells += [
                [name, *(f"{column[k]:.6g}" for k in shown)]
                for name, column in self.numbers.items()
            ]
            headings = ["variable", *(f"state {k + 1}" for k in shown)]
            screen.table(headings, cells, title=self.title, left=headings)
            if len(self.variables) > rows:
                more = len(self.variables) - rows
                screen.show(f"{more} more variables: --rows or --json shows them.")
        if count > len(shown):
            screen.show(f"{count - len(shown)} more states: --json has all.")


def joint_table(case: "Case") -> JointStates:
    """The joint marginal of the variables asked for, all states, the most probable first."""
    from ..operators import Joint, query

    reduced, graph, log_potentials = _conditioned(case)
    left = [v for v in case.asked if v in reduced.kept]
    numbers = [reduced.kept.index(v) for v in left]
    log_table = query(graph, log_potentials, Joint(numbers), memory_limit=case.memory_limit)
    probs = np.exp(np.asarray(log_table, np.float64))
    places = np.argsort(-probs.ravel(), kind="stable")
    states = np.full((len(places), len(reduced.kept)), 0)
    states[:, numbers] = np.stack(np.unravel_index(places, probs.shape), axis=1).reshape(
        len(places), len(left)
    )
    full = reduced.expand_states(states)[:, list(case.asked)]
    return _table(case, "joint marginal", case.asked, full, {"probability": probs.ravel()[places]})


def ask(
    screen: Screen, case: "Case", asking: "Asking", json_out: Path | None, uai: dict[str, Path]
) -> None:
    """Answer ``map``, ``marginal-map`` and ``sample``."""
    import jax

    from ..graphs import write_uai_mmap, write_uai_mpe
    from ..operators import MostProbable, Samples, query

    task = asking.task.value
    if task == "marginal-map" and not case.asked:
        raise ValueError("--task marginal-map maximises over the variables of --query A,B.")
    start = time.perf_counter()
    with screen.working(f"{case.name}: {task}"):
        reduced, graph, log_potentials = _conditioned(case)
        variables = case.asked or tuple(range(len(case.model.cardinalities)))
        numbers = {v: k for k, v in enumerate(reduced.kept)}
        columns: dict[str, np.ndarray] = {}
        states = np.full((asking.best, len(reduced.kept)), -1)
        if task == "sample":
            question: Any = Samples(jax.random.key(asking.seed), asking.count)
            states = np.asarray(
                query(graph, log_potentials, question, memory_limit=case.memory_limit)
            )
        else:
            over = [numbers[v] for v in variables if v in numbers]
            question = MostProbable(asking.best, over if task == "marginal-map" else None)
            found = query(graph, log_potentials, question, memory_limit=case.memory_limit)
            log_partition = _log_partition(case, graph, log_potentials)
            chosen = over if task == "marginal-map" else slice(None)
            states[:, chosen] = np.asarray(found.states)
            log_weights = np.asarray(found.log_weights, np.float64)
            possible = log_weights > -np.inf
            states = states[possible]
            columns["log_weight"] = log_weights[possible]
            columns["log_probability"] = log_weights[possible] - log_partition
        full = reduced.expand_states(states)
    title = f"{task} of {case.name} ({time.perf_counter() - start:.2f} s)"
    table = _table(case, title, variables, full[:, list(variables)], columns)

    def write() -> None:
        write_json(json_out, {"task": task, **table.to_json()})
        if "MPE" in uai:
            write_uai_mpe(uai["MPE"], full[0])
        if "MMAP" in uai:
            write_uai_mmap(uai["MMAP"], {v: int(full[0, v]) for v in variables})

    write_then_show(write, lambda: table.show(screen, case.rows))


def _conditioned(case: "Case") -> tuple[Any, Any, Any]:
    from .. import condition

    reduced = condition(case.model, case.observed)
    return reduced, *reduced.model.to_graph()


def _log_partition(case: "Case", graph: Any, log_potentials: Any) -> float:
    from .. import Elimination, infer

    solver = Elimination(memory_limit=case.memory_limit)
    return float(infer(graph, log_potentials, solver).log_partition)


def _table(
    case: "Case",
    title: str,
    variables: tuple[int, ...],
    states: np.ndarray,
    numbers: dict[str, np.ndarray],
) -> JointStates:
    names = [case.state_names(v) for v in variables]
    rows = [[names[k][s] for k, s in enumerate(row)] for row in states.tolist()]
    return JointStates(title, [case.model.variable_names[v] for v in variables], rows, numbers)
