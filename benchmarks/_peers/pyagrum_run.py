"""pyAgrum's side of ``python -m benchmarks exactness_peers``; its environment has ``pyagrum``."""

import math
import pickle
from typing import Any

import numpy as np
import pyagrum as gum

from benchmarks._peers._serve import Tasks, clock, elapsed, limit_memory, serve


class PyAgrum(Tasks):
    """Lazy propagation in a junction tree (C++)."""

    def start(self, memory_gib: float) -> dict[str, Any]:
        """Nothing to wake up."""
        limit_memory(memory_gib)
        return {"version": gum.__version__}

    def load(self, file: str) -> dict[str, Any]:
        """The network, from float64 tables (its reader of files rounds to float32)."""
        with open(file, "rb") as content:
            model = pickle.load(content)
        since = clock()
        self.network, self.kept = gum.BayesNet(), None
        for v, card in enumerate(model["cardinalities"]):
            self.network.add(gum.LabelizedVariable(f"v{v}", "", card))
        for *parents, child in model["scopes"]:
            for parent in parents:
                self.network.addArc(parent, child)
        for scope, log_table in zip(model["scopes"], model["log_tables"], strict=True):
            table = self.network.cpt(scope[-1])
            # Its first variable changes fastest.
            axes = [scope.index(int(name[1:])) for name in table.names]
            table.fillWith(np.exp(log_table).transpose(axes[::-1]).ravel().tolist())
        return elapsed(since)

    def again(self, evidence: list[Any]) -> dict[str, Any]:
        """All from the network: a new engine with its junction tree."""
        since = clock()
        engine = gum.LazyPropagation(self.network)
        engine.setEvidence(dict(evidence))
        return self.answer(engine, since)

    def changed(self, evidence: list[Any]) -> dict[str, Any]:
        """Other evidence on the same variables in an engine that is kept."""
        if self.kept is None:
            self.kept = gum.LazyPropagation(self.network)
            self.kept.setEvidence(dict(evidence))
        since = clock()
        for v, value in evidence:
            self.kept.chgEvidence(v, value)
        return self.answer(self.kept, since)

    def answer(self, engine: Any, since: tuple[float, float]) -> dict[str, Any]:
        """All marginals and the log-probability of the evidence."""
        engine.makeInference()
        marginals = [engine.posterior(v).toarray() for v in range(self.network.size())]
        log_p = math.log(engine.evidenceProbability())
        time = elapsed(since)
        return time | {"log_p": log_p, "marginals": [m.tolist() for m in marginals]}


if __name__ == "__main__":
    serve(PyAgrum())
