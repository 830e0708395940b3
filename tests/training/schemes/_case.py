"""The small network on which schemes are compared with the written-out copies."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from klprojax.training import CrossEntropy, Precisions
from klprojax.training.network import LiftedNetwork, trace_network

from .._networks import quick_jit
from ._oracle import Lifted

PLAIN = {
    "weight": [1.0] * 3,
    "activation": [1.0] * 3,
    "unit": 1.0,
    "bias": 1.0,
    "output": 1.0,
    "node": 1.0,
}
UNEQUAL = {
    "weight": [0.8, 1.5, 2.0],
    "activation": [1.2, 0.7, 1.1],
    "unit": 1.4,
    "bias": 0.6,
    "output": 0.2,
    "node": 0.9,
}
ROWS = np.array([1.0, 1.0, 1.0, 1.0, 0.0])


def problem(depth=1, dtype: Any = np.float64):
    """A network 3-4-..-3, and a batch of five."""
    model = eqx.nn.MLP(3, 3, 4, depth, key=jax.random.key(3), dtype=dtype)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(5, 3)).astype(dtype)
    return model, jnp.asarray(x), jnp.asarray(rng.integers(0, 3, 5).astype(np.int32))


def precisions(p, layers):
    """As `Precisions`."""
    parts = {**p, "weight": tuple(p["weight"][:layers])}
    parts["activation"] = tuple(p["activation"][:layers])
    return Precisions(**parts)


def matrices(model):
    """Weights and biases in numpy, float64."""
    layers = model.layers
    return (
        [np.asarray(layer.weight, np.float64) for layer in layers],
        [np.asarray(layer.bias, np.float64) for layer in layers],
    )


def iterates(scheme, count, consensus="average", p=PLAIN, depth=1, dtype: Any = np.float64):
    """Parameters `[W1, b1, W2, b2, ..]` after each of the iterations, and the last state."""
    model, x, y = problem(depth, dtype)
    rows = jnp.asarray(ROWS.astype(dtype))

    def network():
        graph, parameters = trace_network(model, x)
        return parameters, LiftedNetwork(
            graph, x, y, rows, CrossEntropy(), precisions(p, depth + 1), consensus
        )

    @quick_jit
    def begin():
        parameters, lifted = network()
        return scheme.start(lifted, parameters)

    @quick_jit
    def advance(state):
        _, lifted = network()
        new = scheme.iterate(lifted, state)
        return new, scheme.parameters(lifted, new)

    state, out = begin(), []
    for _ in range(count):
        state, found = advance(state)
        out.append([np.asarray(leaf) for leaf in found])
    return out, state


def oracle(consensus="average", p=PLAIN, depth=1, dtype: Any = np.float64):
    """The written-out copies, and the parameters."""
    model, x, y = problem(depth, dtype)
    return Lifted(x, y, ROWS, consensus, p), *matrices(model)


def of_point(point):
    """The parameters of an oracle's point, in the model's order."""
    layers = sum(key[0] == "PW" for key in point)
    return [point[kind, k] for k in range(layers) for kind in ("PW", "PB")]


def assert_close(mine, truth, tolerance):
    """All iterates, relative to the largest parameter."""
    for k, (a, b) in enumerate(zip(mine, truth, strict=True)):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, q, atol=tolerance, err_msg=f"iterate {k + 1}")
