"""Our side of ``python -m benchmarks circuits``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve
from klprojax.circuits.learning import AdamStep, EMStep, fit
from klprojax.circuits.tensor import hclt


class Ours(Tasks):
    """Hidden Chow-Liu trees as tensor circuits."""

    def start(self) -> dict[str, Any]:
        """Wake the backend up."""
        jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
        return {"platform": jax.devices()[0].platform, "idle_rss_mib": peak_rss_mib()}

    def build(self, path: str, units: int, batch: int) -> dict[str, Any]:
        """From rows to the first gradient."""
        rows = np.load(path)
        since = clock()
        circuit = hclt(rows, units)
        parameters = circuit.init(0, rows=rows)
        part = jnp.asarray(circuit.states_from_data(rows[:batch]))
        value = jax.jit(lambda p, x: circuit.log_values(p.normalize(), x))
        gradient = jax.jit(
            jax.value_and_grad(lambda p, x: -jnp.mean(circuit.log_values(p.normalize(), x)))
        )
        jax.block_until_ready(gradient(parameters, part))
        answer = {"build": elapsed(since)}
        flows = jax.jit(circuit.flows)
        settings: dict[str, Any] = {"epochs": 1, "batch_size": batch, "parameters": parameters}
        self.timed |= {
            "forward": lambda: jax.block_until_ready(value(parameters, part)),
            "gradient": lambda: jax.block_until_ready(gradient(parameters, part)),
            "flows": lambda: jax.block_until_ready(flows(parameters, part)),
            "epoch": lambda: fit(circuit, rows, step=AdamStep(0.01, 0.01), **settings),
            "epoch_em": lambda: fit(circuit, rows, step=EMStep(), **settings),
        }
        mean = float(self.timed["forward"]().mean())
        return answer | {"parameters": circuit.num_parameters, "log_likelihood": mean}


if __name__ == "__main__":
    serve(Ours())
