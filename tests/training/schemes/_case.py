"""The small network on which schemes are compared with the generic ones on written-out copies."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from klprojax.projections import Cyclic, Gaussians
from klprojax.training import CrossEntropy, Precisions
from klprojax.training.network import LiftedNetwork, trace_network
from tests.reference import projection_step

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
SEED = 3


def problem(depth=1, dtype: Any = np.float64, seed=SEED):
    """A network 3-4-..-3, and a batch of five."""
    model = eqx.nn.MLP(3, 3, 4, depth, key=jax.random.key(seed), dtype=dtype)
    rng = np.random.default_rng(seed + 1)
    x = rng.normal(size=(5, 3)).astype(dtype)
    return model, jnp.asarray(x), jnp.asarray(rng.integers(0, 3, 5).astype(np.int32))


def precisions(p, layers):
    """As `Precisions`."""
    parts = {**p, "weight": tuple(p["weight"][:layers])}
    parts["activation"] = tuple(p["activation"][:layers])
    return Precisions(**parts)


@functools.cache
def programs(scheme, consensus, unequal, depth):
    """The start and one iteration, compiled once for all numbers of a network."""
    p = precisions(UNEQUAL if unequal else PLAIN, depth + 1)

    def network(model, x, y):
        graph, parameters = trace_network(model, x)
        rows = jnp.asarray(ROWS.astype(x.dtype))
        return parameters, LiftedNetwork(graph, x, y, rows, CrossEntropy(), p, consensus)

    def begin(arrays, x, y):
        parameters, lifted = network(eqx.combine(arrays, static), x, y)
        return scheme.start(lifted, parameters)

    def advance(arrays, x, y, state):
        _, lifted = network(eqx.combine(arrays, static), x, y)
        new = scheme.iterate(lifted, state)
        return new, scheme.parameters(lifted, new)

    _, static = eqx.partition(problem(depth)[0], eqx.is_array)
    return quick_jit(begin), quick_jit(advance)


def iterates(
    scheme, count, consensus="average", p=PLAIN, depth=1, dtype: Any = np.float64, seed=SEED
):
    """Parameters `[W1, b1, W2, b2, ..]` after each of the iterations, and the last state."""
    begin, advance = programs(scheme, consensus, p is UNEQUAL, depth)
    model, *data = problem(depth, dtype, seed)
    given = (eqx.filter(model, eqx.is_array), *data)
    state, out = begin(*given), []
    for _ in range(count):
        state, found = advance(*given, state)
        out.append([np.asarray(leaf) for leaf in found])
    return out, state


def matrices(depth=1, dtype: Any = np.float64, seed=SEED):
    """Inputs, labels, weights and biases in numpy, float64."""
    model, x, y = problem(depth, dtype, seed)
    weights, biases = (
        [np.asarray(getattr(layer, name), np.float64) for layer in model.layers]
        for name in ("weight", "bias")
    )
    return np.asarray(x, np.float64), np.asarray(y), weights, biases


def halves(consensus="average", p=PLAIN, depth=1, dtype: Any = np.float64, seed=SEED):
    """The two projections on copies written out, and the start."""
    x, y, *parameters = matrices(depth, dtype, seed)
    lifted = Lifted(x, y, ROWS, consensus, p)

    def on_arrays(function, *args):
        return jax.tree.map(jnp.asarray, function(*jax.tree.map(np.asarray, args)))

    projections = [
        lambda point, half=half: on_arrays(functools.partial(lifted.project, half=half), point)
        for half in (0, 1)
    ]
    return projections, on_arrays(lifted.forward, *parameters)


def on_halves(scheme, count, *options):
    """Parameters after each iteration of a generic scheme on the two halves; options of `halves`.

    Args:
        scheme: of `klprojax.projections`.
        count: iterations.
    """
    projections, start = halves(*options)
    state, out = scheme.init(Gaussians(), projections, start), []
    for _ in range(count):
        state = scheme.step(Gaussians(), projections, state)
        point = scheme.read(state)
        layers = sum(key[0] == "PW" for key in point)
        out.append([point[kind, k] for k in range(layers) for kind in ("PW", "PB")])
    return out


def on_visits(count, consensus="average", p=PLAIN, depth=1, dtype: Any = np.float64, seed=SEED):
    """The same of cyclic projections onto one constraint after the other."""
    x, y, *parameters = matrices(depth, dtype, seed)
    point, out = projection_step.forward(x, *parameters), []
    projections = projection_step.projections(x, y, ROWS, depth + 1, p, consensus == "product")
    for _ in range(count):
        (point,) = Cyclic().step(Gaussians(), projections, (point,))
        out.append([point[kind, k] for k in range(depth + 1) for kind in "Wb"])
    return out


def assert_close(mine, truth, tolerance):
    """All iterates."""
    for k, (a, b) in enumerate(zip(mine, truth, strict=True)):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, q, rtol=0, atol=tolerance, err_msg=f"iterate {k + 1}")
