"""Our side of ``python -m benchmarks exactness_peers``."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import klprojax
from benchmarks._peers._serve import Tasks, clock, elapsed, serve


class Ours(Tasks):
    """Outside of ``jit``, float64."""

    def start(self, memory_gib: float) -> dict[str, Any]:
        """Wake the backend up."""
        jax.config.update("jax_enable_x64", True)
        jax.block_until_ready(jnp.zeros(3))
        self.memory = int(memory_gib * 2**30)
        self.solver = klprojax.Elimination(memory_limit=self.memory)
        return {}

    def load(self, file: str) -> dict[str, Any]:
        """The model, from its tables."""
        with open(file, "rb") as content:
            tables = pickle.load(content)
        since = clock()
        self.model, self.graph = klprojax.DiscreteModel(**tables), None
        return elapsed(since)

    def again(self, evidence: list[Any]) -> dict[str, Any]:
        """All from the model: condition, make the graph, infer; a known tree is found again."""
        since = clock()
        reduced = klprojax.condition(self.model, known(evidence))
        graph, log_potentials = reduced.model.to_graph()
        solution = klprojax.infer(graph, log_potentials, self.solver)
        marginals = reduced.expand(graph.unpack_variables(solution.marginals))
        return answer(since, float(solution.log_partition), marginals)

    def changed(self, evidence: list[Any]) -> dict[str, Any]:
        """Other evidence on a graph that is kept, without what no evidence makes possible."""
        if self.graph is None:
            self.reduced = klprojax.condition(self.model)
            self.graph, self.log_potentials = self.reduced.model.to_graph()
        since = clock()
        place = {v: k for k, v in enumerate(self.reduced.kept)}
        observed, constant = {}, 0.0
        for v, value in known(evidence).items():
            states = self.reduced.states[v]
            hard = np.ndim(value) == 0
            if v in place:
                observed[place[v]] = int(states[:value].sum()) if hard else value[states]
            elif not hard:
                constant += value[states].item()
        solution = klprojax.infer(
            self.graph,
            self.log_potentials,
            self.solver,
            log_evidence=self.graph.log_evidence(observed),
        )
        marginals = self.reduced.expand(self.graph.unpack_variables(solution.marginals))
        return answer(since, float(solution.log_partition) + constant, marginals)

    def best(self, evidence: list[Any], seconds: float) -> dict[str, Any]:
        """The most probable state, from the model; the other end ends this process if late."""
        del seconds
        since = clock()
        try:
            reduced = klprojax.condition(self.model, known(evidence))
            graph, log_potentials = reduced.model.to_graph()
            question = klprojax.MostProbable()
            found = klprojax.query(graph, log_potentials, question, memory_limit=self.memory)
        except klprojax.ContradictionError:
            return elapsed(since) | {"status": "impossible"}
        except klprojax.operators.TooLargeError as error:
            return elapsed(since) | {"status": "refused", "detail": str(error)}
        states = reduced.expand_states(found.states)[0]
        time = elapsed(since)
        return time | {"status": "solved", "states": states.tolist()}


def known(evidence: list[Any]) -> dict[int, Any]:
    """A state number, or a log-table, by variable."""
    return {v: np.log(value) if isinstance(value, list) else value for v, value in evidence}


def answer(since: tuple[float, float], log_p: float, marginals: Any) -> dict[str, Any]:
    """Times and numbers; writing them out as lists is not counted."""
    time = elapsed(since)
    return time | {"log_p": log_p, "marginals": [np.asarray(m).tolist() for m in marginals]}


if __name__ == "__main__":
    serve(Ours())
