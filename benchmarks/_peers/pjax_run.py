"""PJAX's side of ``python -m benchmarks training``; runs where PJAX's sources and networkx are.

PJAX traces a network once per process: its graph's keys are object addresses.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pjax
from pjax import nn, optim
from pjax.core import ops
from pjax.core.computation import make_computation
from pjax.core.frozen_dict import freeze

from benchmarks._peers._serve import Tasks, clock, elapsed, peak_rss_mib, serve

OPTIMISERS = {
    "alternating": optim.AlternatingProjections,
    "cyclic": optim.CyclicProjections,
    "douglas-rachford": optim.DouglasRachford,
}


class Network(nn.Module):
    """Dense layers with ReLU between them; a bias in every activation, none in the last layer."""

    def __init__(self, sizes: list[int]):
        self.depth = len(sizes) - 2
        for k in range(self.depth):
            setattr(self, f"dense_{k}", nn.Linear(sizes[k], sizes[k + 1]))
            setattr(self, f"relu_{k}", nn.ReLU(sizes[k + 1]))
        self.out = nn.Linear(sizes[-2], sizes[-1])

    def __call__(self, x):
        for k in range(self.depth):
            x = getattr(self, f"relu_{k}")(getattr(self, f"dense_{k}")(x))
        return self.out(x)


def correct() -> None:
    """Replace the local projections that are not minimisers.

    The ReLU projection of PJAX takes a farther point where pre-activation and target are both
    negative, and its cross-entropy step and the ten unprotected Newton steps of its dot product
    do not always converge. These are the definitions, written plainly.
    """

    def relu(*inputs):
        terms, z = inputs[:-1], inputs[-1]
        s, count = sum(terms), len(terms)
        off = jnp.minimum(s, 0)
        on = jnp.maximum((s + count * z) / (1 + count), 0)
        cost_off = (off - s) ** 2 / count + z**2
        cost_on = (on - s) ** 2 / count + (on - z) ** 2
        moved = jnp.where(jnp.where(s > 0, cost_on <= cost_off, cost_on < cost_off), on, off)
        return tuple(x + (moved - s) / count for x in terms)

    def cross_entropy(logits, labels, _):
        step = 1 / pjax.config.cross_entropy_lambda

        def newton(_, x):
            p = jax.nn.softmax(x)
            gradient = step * (x - logits) + p - labels
            hessian = step * jnp.eye(x.shape[-1], dtype=x.dtype) + jax.vmap(jnp.diag)(p)
            hessian = hessian - p[:, :, None] * p[:, None, :]
            move = jnp.linalg.solve(hessian, gradient[..., None])[..., 0]
            length = jnp.sqrt(2 * jnp.sum(move**2, axis=-1, keepdims=True)) + 1e-30
            return x - jnp.log1p(length) / length * move

        return jax.lax.fori_loop(0, 30, newton, logits), labels

    def dot(a, b, z):
        p, q = a @ b, a @ a + b @ b

        def bisect(_, ends):
            low, high = ends
            t = (low + high) / 2
            up = ((1 + t**2) * p + t * q) / (1 - t**2) ** 2 - z + t > 0
            return jnp.where(up, low, t), jnp.where(up, t, high)

        one = jnp.ones_like(p)
        low, high = jax.lax.fori_loop(0, 80, bisect, (-one, one))
        t = (low + high) / 2
        return (a + t * b) / (1 - t**2), (b + t * a) / (1 - t**2)

    ops.sum_relu = make_computation("sum_relu", ops.sum_relu_op, relu)
    ops.cross_entropy = make_computation("cross_entropy", ops.cross_entropy_op, cross_entropy)
    ops.dot = make_computation("dot", ops.dotproduct_op, dot)


class Peer(Tasks):
    """One scheme of PJAX on one network."""

    def start(self, float_bits: int) -> dict[str, Any]:
        """Say what runs."""
        jax.config.update("jax_enable_x64", float_bits == 64)
        jax.block_until_ready(jax.jit(jnp.sin)(jnp.zeros(3)))
        return {"idle_rss_mib": peak_rss_mib()}

    def build(
        self, path: str, sizes: list[int], scheme: str, iterations: int, corrected: bool, run: bool
    ) -> dict[str, Any]:
        """Compile one update; `run` also runs it and writes the new parameters beside `path`."""
        if corrected:
            correct()
        with np.load(path) as file:
            arrays = {name: jnp.asarray(file[name]) for name in file.files}
        model = Network(sizes)
        names = dict.fromkeys(
            f"{layer}_{k}.{part}"
            for k in range(model.depth)
            for layer, part in (("dense", "weight"), ("relu", "bias"))
        )
        names["out.weight"] = None
        model.init(jax.random.key(0))
        parameters = freeze({name: arrays[name] for name in names})
        optimiser = OPTIMISERS[scheme](steps_per_update=iterations)

        def update(parameters, x, y):
            labels = jax.nn.one_hot(y, sizes[-1]).astype(x.dtype)

            def loss(p):
                return pjax.cross_entropy(model.apply(p, x), labels)

            return optimiser.update(loss, parameters)[0]

        since = clock()
        compiled = jax.jit(update).lower(parameters, arrays["x"], arrays["y"]).compile()
        answer: dict[str, Any] = {"compile": elapsed(since)}
        answer["temporaries_mib"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        if run:
            new = jax.block_until_ready(compiled(parameters, arrays["x"], arrays["y"]))
            np.savez(path + ".pjax.npz", **{name: np.asarray(v) for name, v in new.items()})
            self.timed["update"] = lambda: jax.block_until_ready(
                compiled(parameters, arrays["x"], arrays["y"])
            )
        return answer


if __name__ == "__main__":
    serve(Peer())
