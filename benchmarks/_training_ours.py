"""Our side of ``python -m benchmarks training``."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve
from klprojax.projections import DouglasRachford
from klprojax.training import (
    AlternatingProjections,
    CrossEntropy,
    CyclicProjections,
    GradientStep,
    Precisions,
    ProjectionDirection,
    ProjectionStep,
    Relaxed,
)

SCHEMES = {
    "alternating": AlternatingProjections,
    "cyclic": CyclicProjections,
    "douglas-rachford": DouglasRachford,
}


class Network(eqx.Module):
    """Dense layers with ReLU between them; no bias in the last layer."""

    layers: list[eqx.nn.Linear]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def network(arrays: Any) -> Network:
    """The network of an archive with weights `[inputs, outputs]`."""
    depth = sum(name.startswith("dense_") for name in arrays)
    layers = []
    for k in range(depth):
        layers.append((arrays[f"dense_{k}.weight"], arrays[f"relu_{k}.bias"]))
    layers.append((arrays["out.weight"], None))
    made = []
    for weight, bias in layers:
        layer = eqx.nn.Linear(*weight.shape, use_bias=bias is not None, key=jax.random.key(0))
        layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(weight.T))
        if bias is not None:
            layer = eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(bias))
        made.append(layer)
    return Network(made)


def arrays_of(model: Network) -> dict[str, np.ndarray]:
    """Undo `network`."""
    out = {}
    for k, layer in enumerate(model.layers[:-1]):
        out[f"dense_{k}.weight"] = np.asarray(layer.weight).T
        out[f"relu_{k}.bias"] = np.asarray(layer.bias)
    out["out.weight"] = np.asarray(model.layers[-1].weight).T
    return out


class Ours(Tasks):
    """Projection steps, Adam, and the projection's direction."""

    def start(self, float_bits: int) -> dict[str, Any]:
        """Say what runs."""
        jax.config.update("jax_enable_x64", float_bits == 64)
        jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
        return {"platform": jax.devices()[0].platform, "idle_rss_mib": peak_rss_mib()}

    def build(
        self, path: str, sizes: list[int], scheme: str, iterations: int, corrected: bool, run: bool
    ) -> dict[str, Any]:
        """Compile one update; `run` also runs it and writes the new parameters beside `path`."""
        del sizes, corrected
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        # PJAX's weighting: primal averages, λ = 5 in the cross-entropy's proximal step.
        step = ProjectionStep(
            scheme=SCHEMES[scheme](),
            iterations=iterations,
            precisions=Precisions(output=0.2),
            consensus="average",
            move=Relaxed(),
        )
        return self._compile(path, arrays, step, 1, run)

    def build_steps(self, path: str, repeats: int) -> dict[str, Any]:
        """Compile `repeats` updates in a row of Adam, one cyclic sweep, and the direction."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        steps = {
            "adam": GradientStep(optax.adam(1e-3)),
            "sweep": ProjectionStep(),
            "direction": ProjectionDirection(optax.adam(1e-3)),
        }
        answer = {}
        for name, step in steps.items():
            answer[name] = self._compile(path, arrays, step, repeats, False, name)
        return answer

    def _compile(
        self, path: str, arrays: Any, step: Any, repeats: int, save: bool, name: str = "update"
    ) -> dict[str, Any]:
        model = network(arrays)
        x, y = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
        weights, loss = jnp.ones(len(y), x.dtype), CrossEntropy()
        parts, static = eqx.partition(model, eqx.is_array)
        state = step.init(model)

        def run(parts: Any, state: Any, x: Any, y: Any) -> Any:
            def body(carry: Any, _: Any) -> Any:
                whole = eqx.combine(carry[0], static)
                new, state, _ = step.update(whole, carry[1], x, y, weights, loss)
                return (eqx.filter(new, eqx.is_array), state), None

            return jax.lax.scan(body, (parts, state), length=repeats)[0]

        since = clock()
        compiled = jax.jit(run).lower(parts, state, x, y).compile()
        answer: dict[str, Any] = {"compile": elapsed(since)}
        answer["temporaries_mib"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        if save:
            new = compiled(parts, state, x, y)[0]
            np.savez(path + ".ours.npz", **arrays_of(eqx.combine(new, static)))
        self.timed[name] = lambda: jax.block_until_ready(compiled(parts, state, x, y))
        return answer


if __name__ == "__main__":
    serve(Ours())
