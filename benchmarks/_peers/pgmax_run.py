"""PGMax's side of ``python -m benchmarks bp``; runs in an environment that has ``pgmax``."""

import dataclasses
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pgmax import fgraph, fgroup, infer, vgroup

from benchmarks._bp_problems import Problem
from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve


class PGMax(Tasks):
    """Sum-product without damping, a set number of iterations."""

    def start(self) -> dict[str, Any]:
        """Wake the backend up, and say what runs."""
        jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
        return {
            "versions": {n: importlib.metadata.version(n) for n in ("pgmax", "jax", "jaxlib")},
            "device": str(jax.devices()[0]),
            "idle_rss_mib": peak_rss_mib(),
        }

    def first(self, path: str, out: str, compiled: bool) -> dict[str, Any]:
        """Build the graph, run once; beliefs go to ``out``.

        Args:
            compiled: put the run under ``jax.jit`` as a whole; else call it as it is, which
                compiles only the parts that PGMax puts under ``jit`` itself.
        """
        self.problem = p = Problem.load(path)
        since = clock()
        self.variables = vgroup.NDVarArray(num_states=p.states, shape=(p.variables,))
        graph = fgraph.FactorGraph(variable_groups=self.variables)
        names = self.variables.variables
        graph.add_factors(
            fgroup.PairwiseFactorGroup(
                variables_for_factors=[[names[a], names[b]] for a, b in p.scopes.tolist()],
                log_potential_matrix=p.log_potentials,
            )
        )
        self.inferer = infer.build_inferer(graph.bp_state, backend="bp")
        build = elapsed(since)
        self.arrays = self.inferer.init(evidence_updates={self.variables: p.unaries})
        run = self._marginals(p.iterations)
        run = jax.jit(run) if compiled else run
        self.timed["marginals"] = lambda: jax.block_until_ready(run(self.arrays))
        marginals = self.timed["marginals"]()
        first = elapsed(since)
        np.save(out, np.asarray(marginals))
        return {"build": build, "first": first}

    def gradient(self, iterations: int, out: str | None) -> dict[str, Any]:
        """Compile value and gradient through the iterations; the numbers go to ``out``."""
        targets = self.problem.targets
        rows = np.arange(len(targets))
        run = self._marginals(iterations)

        def loss(log_potentials, evidence):
            arrays = dataclasses.replace(
                self.arrays, log_potentials=log_potentials, evidence=evidence
            )
            return -jnp.mean(jnp.log(run(arrays)[rows, targets]))

        arguments = (jnp.asarray(self.arrays.log_potentials), jnp.asarray(self.arrays.evidence))
        since = clock()
        function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        compiling = elapsed(since)
        answer = {"compile": compiling, "temp_bytes": _temporaries(function)}
        if out is not None:
            self.timed[f"gradient{iterations}"] = lambda: jax.block_until_ready(
                function(*arguments)
            )
            value, (by_potentials, by_unaries) = function(*arguments)
            np.savez(
                out,
                value=value,
                by_potentials=np.reshape(by_potentials, self.problem.log_potentials.shape),
                by_unaries=np.reshape(by_unaries, self.problem.unaries.shape),
            )
        return answer

    def batch(self, kind: str, path: str) -> dict[str, Any]:
        """Compile the run over many evidences or potentials."""
        field = {"evidence": "evidence", "potentials": "log_potentials"}[kind]
        given = np.load(path)
        rows = jnp.asarray(given.reshape(len(given), -1))
        run = self._marginals(self.problem.iterations)
        function = jax.jit(
            jax.vmap(lambda row: run(dataclasses.replace(self.arrays, **{field: row})))
        )
        self.timed[f"batch_{kind}"] = lambda: jax.block_until_ready(function(rows))
        since = clock()
        self.timed[f"batch_{kind}"]()
        return {"first": elapsed(since)}

    def _marginals(self, iterations: int):
        def run(arrays):
            done = self.inferer.run(arrays, num_iters=iterations, damping=0.0, temperature=1.0)
            return infer.get_marginals(self.inferer.get_beliefs(done))[self.variables]

        return run


def _temporaries(compiled: Any) -> int | None:
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


if __name__ == "__main__":
    serve(PGMax())
