"""toulbar2's side of ``python -m benchmarks exactness_peers``; needs ``pytoulbar2`` and numpy."""

import math
import pickle
from importlib.metadata import version
from typing import Any

import pytoulbar2

from benchmarks._peers._serve import Tasks, clock, elapsed, limit_memory, serve

# Costs are whole numbers of 1e-8 nats.
DIGITS = 8
ROUNDINGS = 1e-6
# Nats of a state that was not observed: with infinite ones it dies of a segmentation fault where
# much is observed (Pedigree_12). Our score of its state shows if this was too little.
UNSEEN = 1e5


class Toulbar2(Tasks):
    """Branch and bound with soft local consistencies (C++), default options."""

    def start(self, memory_gib: float) -> dict[str, Any]:
        """Nothing to wake up."""
        limit_memory(memory_gib)
        return {"version": version("pytoulbar2")}

    def load(self, file: str) -> dict[str, Any]:
        """Costs, from float64 tables."""
        with open(file, "rb") as content:
            model = pickle.load(content)
        since = clock()
        self.cards = model["cardinalities"]
        self.problem, self.costs = pytoulbar2.CFN(resolution=DIGITS), []
        for v, card in enumerate(self.cards):
            self.problem.AddVariable(f"v{v}", range(card))
        for scope, log_table in zip(model["scopes"], model["log_tables"], strict=True):
            costs = (0.0 - log_table).ravel().tolist()
            self.costs.append((list(scope), costs if scope else costs[0]))
        return elapsed(since)

    def best(self, evidence: list[Any], seconds: float) -> dict[str, Any]:
        """The state of least cost, and whether the search was finished; once per load.

        Its functions are counted: our side makes its graph in this time.
        """
        since = clock()
        try:
            for scope, costs in self.costs:
                self.problem.AddFunction(scope, costs)
            for v, state in evidence:
                costs = [0.0 if s == state else UNSEEN for s in range(self.cards[v])]
                self.problem.AddFunction([v], costs)
            found = self.problem.Solve(timeLimit=math.ceil(seconds))
        except self.problem.Contradiction:
            return elapsed(since) | {"status": "impossible"}
        time = elapsed(since)
        # Its timer may be early by a little.
        late = time["cpu_s"] >= 0.9 * seconds
        if found is None:
            return time | {"status": "time limit" if late else "impossible"}
        states, cost, _ = found
        # Preprocessing may end a search without raising the lower bound to the cost.
        left = cost - self.problem.GetDDualBound()
        proven = not late or left <= ROUNDINGS * max(1.0, abs(cost))
        status = "solved" if proven else "time limit"
        return time | {"status": status, "left": left, "states": list(map(int, states))}


if __name__ == "__main__":
    serve(Toulbar2())
