"""Our side of ``python -m benchmarks bp``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import klprojax
from benchmarks._bp_problems import Problem
from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve

ADJOINTS = {"implicit": klprojax.ImplicitAdjoint, "unrolled": klprojax.UnrolledAdjoint}


class Ours(Tasks):
    """Sum-product without damping, a set number of iterations."""

    def start(self) -> dict[str, Any]:
        """Wake the backend up, and say what runs."""
        jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
        device = jax.devices()[0]
        return {
            "device": str(device),
            "platform": device.platform,
            "device_kind": device.device_kind,
            "idle_rss_mib": peak_rss_mib(),
        }

    def first(self, path: str, out: str) -> dict[str, Any]:
        """Build the graph, run once; beliefs go to ``out``."""
        self.problem = p = Problem.load(path)
        since = clock()
        self.graph = klprojax.FactorGraph(np.full(p.variables, p.states), [p.scopes])
        jax.block_until_ready(self.graph.wiring)
        build = elapsed(since)
        self.log_potentials = self.graph.pack([p.log_potentials], np.float32)
        self.log_evidence = (jnp.asarray(p.unaries),)
        self.timed["marginals"] = lambda: self._run(p.iterations)
        beliefs = self.timed["marginals"]()
        first = elapsed(since)
        np.save(out, np.asarray(beliefs))
        return {"build": build, "first": first}

    def longer(self, iterations: int) -> dict[str, Any]:
        """Compile the same run with another number of iterations."""
        self.timed["longer"] = lambda: self._run(iterations)
        self.timed["longer"]()
        return {}

    def gradient(self, iterations: int, adjoint: str, out: str | None) -> dict[str, Any]:
        """Compile value and gradient of a loss on the beliefs; the numbers go to ``out``."""
        targets = self.problem.targets
        rows = np.arange(len(targets))
        # Told to stay with the fast engine: under jit the numbers are not there to be looked at.
        solver = klprojax.BeliefPropagation(tolerance=0.0, engine="fast")

        def loss(numbers, graph):
            solution = klprojax.infer(
                graph,
                numbers[0],
                solver,
                log_evidence=numbers[1],
                max_steps=iterations,
                adjoint=ADJOINTS[adjoint](),
                throw=False,
            )
            return -jnp.mean(solution.log_beliefs[0][rows, targets])

        numbers = (self.log_potentials, self.log_evidence)
        since = clock()
        function = jax.jit(jax.value_and_grad(loss)).lower(numbers, self.graph).compile()
        compiling = elapsed(since)
        analysis = function.memory_analysis()
        answer = {
            "compile": compiling,
            "temp_bytes": None if analysis is None else int(analysis.temp_size_in_bytes),
        }
        if out is not None:
            self.timed[f"gradient{iterations}_{adjoint}"] = lambda: jax.block_until_ready(
                function(numbers, self.graph)
            )
            value, ((by_potentials,), (by_unaries,)) = function(numbers, self.graph)
            np.savez(out, value=value, by_potentials=by_potentials, by_unaries=by_unaries)
        return answer

    def batch(self, kind: str, path: str) -> dict[str, Any]:
        """Compile the run over many evidences or potentials, and a loop of single calls."""
        rows = jnp.asarray(np.load(path))
        solver = klprojax.BeliefPropagation(tolerance=0.0, engine="fast")

        def run(log_potentials, log_evidence):
            return klprojax.infer(
                self.graph,
                log_potentials,
                solver,
                log_evidence=log_evidence,
                max_steps=self.problem.iterations,
                throw=False,
            ).beliefs[0]

        if kind == "evidence":
            function = jax.jit(jax.vmap(lambda p, row: run(p, (row,)), in_axes=(None, 0)))
            arguments = (self.log_potentials, rows)
        else:
            function = jax.jit(jax.vmap(lambda e, row: run((row,), e), in_axes=(None, 0)))
            arguments = (self.log_evidence, rows)
        self.timed[f"batch_{kind}"] = lambda: jax.block_until_ready(function(*arguments))
        since = clock()
        together = self.timed[f"batch_{kind}"]()
        first = elapsed(since)
        # The loop goes round the rows, one call a step.
        at = iter(range(10**9))

        def one():
            row = rows[next(at) % len(rows)]
            numbers = (self.log_potentials, (row,))
            if kind == "potentials":
                numbers = ((row,), self.log_evidence)
            return self._run(self.problem.iterations, *numbers)

        self.timed[f"single_{kind}"] = one
        alone = one()
        return {"first": first, "difference": float(jnp.max(jnp.abs(together[0] - alone)))}

    def bandwidth(self, megabytes: int) -> dict[str, Any]:
        """Measured memory bandwidth: the triad ``a + 3 b`` on float32, two reads and a write."""
        size = megabytes * 2**20 // 4
        a, b = jnp.ones(size, jnp.float32), jnp.full(size, 2, jnp.float32)
        triad = jax.jit(lambda a, b: a + 3.0 * b)
        jax.block_until_ready(triad(a, b))
        best = float("inf")
        for _ in range(7):
            since = clock()
            jax.block_until_ready(triad(a, b))
            best = min(best, elapsed(since)["wall_s"])
        return {"bytes_per_s": 3 * 4 * size / best}

    def _run(self, iterations: int, log_potentials: Any = None, log_evidence: Any = None):
        solution = klprojax.infer(
            self.graph,
            self.log_potentials if log_potentials is None else log_potentials,
            klprojax.BeliefPropagation(tolerance=0.0),
            log_evidence=self.log_evidence if log_evidence is None else log_evidence,
            max_steps=iterations,
        )
        return jax.block_until_ready(solution.beliefs[0])


if __name__ == "__main__":
    serve(Ours())
