"""pgmpy's side of ``python -m benchmarks exactness_peers``; its environment has ``pgmpy``.

Variable elimination, one query per variable, by its default order: its junction trees need up to
60 million entries where 400 do (alarm).
"""

import math
import pickle
from importlib.metadata import version
from typing import Any

import numpy as np
from pgmpy.factors.discrete import TabularCPD
from pgmpy.inference import VariableElimination
from pgmpy.models import DiscreteBayesianNetwork

from benchmarks._peers._serve import Tasks, clock, elapsed, limit_memory, serve


class Pgmpy(Tasks):
    """Keeps nothing from one query to the next."""

    def start(self, memory_gib: float) -> dict[str, Any]:
        """Nothing to wake up."""
        limit_memory(memory_gib)
        return {"version": version("pgmpy")}

    def load(self, file: str) -> dict[str, Any]:
        """The network, from float64 tables."""
        with open(file, "rb") as content:
            model = pickle.load(content)
        since = clock()
        cards = self.cards = model["cardinalities"]
        self.network = DiscreteBayesianNetwork()
        self.network.add_nodes_from(range(len(cards)))
        self.network.add_edges_from((p, s[-1]) for s in model["scopes"] for p in s[:-1])
        for (*parents, child), log_table in zip(model["scopes"], model["log_tables"], strict=True):
            table = np.moveaxis(np.exp(log_table), -1, 0).reshape(cards[child], -1)
            sizes = [cards[p] for p in parents]
            self.network.add_cpds(TabularCPD(child, cards[child], table, parents, sizes))
        return elapsed(since)

    def again(self, evidence: list[Any]) -> dict[str, Any]:
        """All marginals; the log-probability of the evidence by the chain rule."""
        since = clock()
        engine = VariableElimination(self.network)
        observed = dict(evidence)
        marginals = []
        for v, card in enumerate(self.cards):
            if v in observed:
                marginals.append(np.eye(card)[observed[v]])
            else:
                found = engine.query([v], evidence=observed, show_progress=False)
                marginals.append(found.values)
        log_p = 0.0
        for n, (v, state) in enumerate(evidence):
            found = engine.query([v], evidence=dict(evidence[:n]), show_progress=False)
            log_p += math.log(found.values[state])
        time = elapsed(since)
        return time | {"log_p": log_p, "marginals": [m.tolist() for m in marginals]}


if __name__ == "__main__":
    serve(Pgmpy())
