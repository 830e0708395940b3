"""KLay's side of ``python -m benchmarks formulas``; its environment has ``klaycircuits``."""

from typing import Any

import jax
import jax.numpy as jnp
import klay
import numpy as np

from benchmarks._peers._serve import Tasks, clock, elapsed, serve


class Klay(Tasks):
    """Layers of gathers and segment sums, one compiled program a circuit."""

    def start(self) -> dict[str, Any]:
        """Wake the backend up."""
        jax.block_until_ready(jnp.zeros(3))
        return {}

    def first(self, file: str, vtree: str, variables: int) -> dict[str, Any]:
        """From the file to the first value; smoothing is not needed, as weights add up to 1."""
        del vtree
        since = clock()
        circuit = klay.Circuit()
        if file.endswith(".nnf"):
            circuit.add_d4_from_file(file)
        else:
            circuit.add_sdd_from_file(file)
        function = circuit.to_jax_function(semiring="log")
        true = (np.arange(1, variables + 1) % 7 + 1) / 9
        weights = jnp.log(jnp.asarray(true)), jnp.log1p(-jnp.asarray(true))
        value = float(function(*weights)[0])
        first = elapsed(since)["cpu_s"]
        program = jax.jit(jax.value_and_grad(lambda *w: function(*w)[0], argnums=(0, 1)))
        self.timed["sweep"] = lambda: jax.block_until_ready(program(*weights))
        return {"first": first, "value": value}


if __name__ == "__main__":
    serve(Klay())
