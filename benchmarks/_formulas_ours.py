"""Our side of ``python -m benchmarks formulas``."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._peers._serve import Tasks, clock, elapsed, serve
from klprojax import read_model
from klprojax.circuits import compile_model, log_partition, read_nnf, read_sdd
from klprojax.circuits._structure import SUM


def log_literal_weights(variables: int) -> np.ndarray:
    """Logarithms of P(v false) and P(v true)."""
    true = (np.arange(1, variables + 1) % 7 + 1) / 9
    return np.log(np.stack([1 - true, true], axis=1))


class Ours(Tasks):
    """Circuits read from files."""

    def start(self) -> dict[str, Any]:
        """Wake the backend up."""
        jax.block_until_ready(jnp.zeros(3))
        return {}

    def first(self, file: str, vtree: str, variables: int) -> dict[str, Any]:
        """From the file to the first value."""
        since = clock()
        if file.endswith(".nnf"):
            circuit, log_weights, _ = read_nnf(file, num_variables=variables)
        else:
            circuit, log_weights, _ = read_sdd(file, vtree)
        weights = log_literal_weights(variables)
        evidence = circuit.pack_variables(list(weights), log_weights.dtype)
        value = float(log_partition(circuit, log_weights, evidence))
        first = elapsed(since)["cpu_s"]
        program = jax.jit(jax.value_and_grad(lambda e: log_partition(circuit, log_weights, e)))
        self.timed["sweep"] = lambda: jax.block_until_ready(program(evidence))
        return {"first": first, "value": value, "edges": circuit.num_edges}


def write_d4(path: Path, cnf: Path) -> None:
    """Compile clauses to a decision-DNNF as d4 writes it: literals on edges, children first."""
    s = compile_model(read_model(cnf)).circuit.structure
    literal = {}
    for group in s.groups:
        signs = np.where(group.states > 0, 1, -1) * (group.variables + 1)
        literal.update(zip(group.nodes.tolist(), signs.tolist(), strict=True))
    kinds = ["o 1 0", "t 2 0"]
    edges: list[str] = []
    # Where an edge to a node leads, and the literals on it; the true constant has number 2.
    end: dict[int, tuple[int, list[int]]] = {n: (2, [lit]) for n, lit in literal.items()}
    for node in np.argsort(s.rank, kind="stable").tolist():
        if node in end:
            continue
        below = [end[c] for c in s.children[s.offsets[node] : s.offsets[node + 1]].tolist()]
        if s.kinds[node] != SUM:
            carried = [lit for to, lits in below if to == 2 for lit in lits]
            below = [(to, lits) for to, lits in below if to != 2]
            if len(below) < 2:
                to, lits = below[0] if below else (2, [])
                end[node] = (to, [*carried, *lits])
                continue
        else:
            carried = []
        kinds.append(f"{'o' if s.kinds[node] == SUM else 'a'} {len(kinds) + 1} 0")
        number = len(kinds)
        edges += [" ".join(map(str, [number, to, *lits, 0])) for to, lits in below]
        end[node] = (number, carried)
    to, lits = end[s.root]
    edges.append(" ".join(map(str, [1, to, *lits, 0])))
    path.write_text("\n".join([*kinds, *edges, ""]))


if __name__ == "__main__":
    serve(Ours())
