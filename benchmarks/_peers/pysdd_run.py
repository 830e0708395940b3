"""PySDD's side of ``python -m benchmarks formulas``; runs in an environment with ``PySDD``."""

import math
from typing import Any

from pysdd.sdd import SddManager, Vtree

from benchmarks._peers._serve import Tasks, clock, elapsed, serve


class PySdd(Tasks):
    """The library in C."""

    def start(self) -> dict[str, Any]:
        """Nothing to wake up."""
        return {}

    def first(self, file: str, vtree: str, variables: int) -> dict[str, Any]:
        """From the file to the first value."""
        since = clock()
        self.manager = SddManager.from_vtree(Vtree.from_file(vtree))
        self.node = self.manager.read_sdd_file(file.encode())
        counter = self.node.wmc(log_mode=True)
        for v in range(1, variables + 1):
            true = (v % 7 + 1) / 9
            counter.set_literal_weight(v, math.log(true))
            counter.set_literal_weight(-v, math.log1p(-true))
        value = counter.propagate()
        first = elapsed(since)["cpu_s"]
        self.timed["sweep"] = counter.propagate
        return {"first": first, "value": value}


if __name__ == "__main__":
    serve(PySdd())
