"""Our side of ``python -m benchmarks circuits``."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve
from klprojax.circuits.learning import AdamStep, EMStep, fit
from klprojax.circuits.tensor import TensorCircuit, TensorParameters, hclt


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

    def same(self, path: str, batch: int, exported: str) -> dict[str, Any]:
        """Largest relative difference of log-likelihoods for the peer's circuit and weights."""
        circuit, parameters, values = from_layers(exported)
        rows = np.load(path)[:batch]
        ours = np.asarray(jax.jit(circuit.log_values)(parameters, rows.astype(np.int8)))
        return {"difference": float(np.max(np.abs(ours - values) / np.abs(values)))}


def from_layers(file: str) -> tuple[TensorCircuit, TensorParameters, np.ndarray]:
    """The peer's circuit as ours, with its weights and its log-likelihoods.

    Input layers are input vectors, a sum of one layer or of a product of layers is a node.
    """
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    layers = json.loads(str(arrays["layers"]))
    inputs = [k for k, layer in enumerate(layers) if not layer["inputs"]]
    number = {k: n for n, k in enumerate(inputs)}
    levels, matrices = [], []
    for k, layer in enumerate(layers[:-1]):
        if layer["kind"] == "TorchSumLayer":
            (below,) = layer["inputs"]
            children = layers[below]["inputs"] if below not in number else [below]
            number[k] = len(number)
            levels.append([tuple(number[child] for child in children)])
            matrices.append(arrays[f"layer{k}"])
    (below,) = layers[-1]["inputs"]
    tables = np.stack([arrays[f"layer{k}"] for k in inputs])
    circuit = TensorCircuit(
        (tables.shape[2],) * len(inputs),
        tables.shape[1],
        [layers[k]["variable"] for k in inputs],
        levels,
        [tuple(number[child] for child in layers[below]["inputs"])],
    )
    numbers = (np.stack(matrices), tables, arrays[f"layer{len(layers) - 1}"])
    parameters = TensorParameters(*(jnp.log(jnp.asarray(part)) for part in numbers))
    return circuit, parameters, arrays["values"]


if __name__ == "__main__":
    serve(Ours())
