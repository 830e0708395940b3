"""Theorem 3.3 of the operator itself: derivatives of T_Proj and T_SPN against what they must be."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..circuits import t_spn
from ..lifting import DeltaLift, TableGraph, delta_lift
from ..operators import t_proj
from ._measure import (
    at_least,
    by_precision,
    largest_difference,
    observed_order,
    relative_difference,
)
from ._registry import statement
from ._section_4 import STEP, enumerate_parses, mixture_example
from ._theorem_3_3 import output_factor, output_slope


def _product(x: Any) -> Any:
    return jnp.sin(x[0] * x[1]) * x[1] + x[0]


def _quotient(x: Any) -> Any:
    return jnp.tanh(x[0]) * x[0] + x[1] / (x[0] ** 2 + 1.0)


def _exponential(x: Any) -> Any:
    return jnp.exp(x[0] * x[1]) * jnp.cos(x[1]) - x[0] * x[0]


def _recurrence(x: Any) -> Any:
    state = x[1]
    for _ in range(3):
        state = jnp.tanh(x[0] * state + x[1])
    return state


def _softmax(x: Any) -> Any:
    scores = jnp.stack([x[0] * x[1], x[0], x[1] * x[1]])
    return jnp.log(jnp.sum(jnp.exp(scores))) - scores[0]


# Every input of every function is read more than once, so all of their graphs have cycles.
FUNCTIONS: tuple[Callable[[Any], Any], ...] = (
    _product,
    _quotient,
    _exponential,
    _recurrence,
    _softmax,
)


def sum_of_functions(points: Any) -> Any:
    """Add up the first functions, each of a point of its own."""
    return sum(function(x) for function, x in zip(FUNCTIONS, points, strict=False))


def network_loss(parameters: Any, x: Any, label: int) -> Any:
    """Evaluate the cross-entropy of a network of one `tanh` layer on one image."""
    w1, b1, w2, b2 = parameters
    logits = jnp.tanh(x @ w1 + b1) @ w2 + b2
    # No maximum is subtracted: the logits are of order one, and a maximum would be a kink.
    return jnp.log(jnp.sum(jnp.exp(logits))) - logits[label]


def random_parameters(seed: int, widths: tuple[int, int, int], dtype: Any) -> tuple[Any, ...]:
    """Draw weights and biases of `network_loss`, of order one over the square root of the width."""
    rng = np.random.default_rng(seed)
    inputs, hidden, outputs = widths

    def draw(*shape: int, fan_in: int) -> Any:
        return jnp.asarray(rng.normal(size=shape) / fan_in**0.5, dtype)

    return (
        draw(inputs, hidden, fan_in=inputs),
        draw(hidden, fan_in=4),
        draw(hidden, outputs, fan_in=hidden),
        draw(outputs, fan_in=4),
    )


def t_proj_readout(tables: TableGraph, *arguments: Any, method: Any = "auto") -> Any:
    """``log E_q[φ(z)]``, q the marginal of z in `t_proj` of the tables at the arguments."""
    evidence = tables.evidence(*arguments)
    marginals = t_proj(tables.graph, tables.log_potentials, evidence, method=method)
    return tables.readout(marginals, output_factor)


def _compiled(function: Callable[..., Any], tables: TableGraph) -> Callable[..., Any]:
    """Compile `function(tables, *args)` for all tables on the same graph, which stays static."""
    _, structure = eqx.partition(tables, eqx.is_inexact_array)

    @jax.jit
    def run(numbers: Any, *args: Any) -> Any:
        return function(eqx.combine(numbers, structure), *args)

    return lambda tables, *args: run(eqx.filter(tables, eqx.is_inexact_array), *args)


@functools.lru_cache(maxsize=1)
def _lifted(seed: int, size: int, dtype: Any) -> tuple[list[Any], DeltaLift]:
    rng = np.random.default_rng(seed)
    points = [jnp.asarray(rng.uniform(0.3, 0.9, size=2), dtype) for _ in FUNCTIONS[:size]]
    return points, delta_lift(sum_of_functions, points)


@statement(
    "Theorem 3.3", "order in h at which jax.grad of T_Proj tends to φ'/φ · jax.grad, less two"
)
def theorem_3_3_differential(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check that the derivative of T_Proj itself is backpropagation: reverse mode of one and other.

    `t_proj` is applied to the tables of a function, exactly, cycles and all, and its readout at z
    is differentiated in the means of the inputs' tables. The order is that of the worst of several
    functions, which one graph holds as their sum.

    Source: Theorem 3.3; abstract. `size` is the number of functions, at most five.
    """
    at_least(size, 1)
    points, lift = _lifted(seed, size, dtype)
    scale = output_slope(lift.output)
    want = [scale * np.asarray(jax.grad(f)(x)) for f, x in zip(FUNCTIONS, points, strict=False)]
    spacings = by_precision(dtype, 2e-3, 2e-2) * np.array([1.0, 2.0, 4.0])
    tables = [lift.table_graph(spacing) for spacing in spacings]
    slopes = _compiled(jax.grad(t_proj_readout, argnums=1), tables[0])
    found = [slopes(t, points) for t in tables]
    orders = [
        observed_order(spacings, np.array([relative_difference(row[k], slope) for row in found]))
        for k, slope in enumerate(want)
    ]
    # Fourth-order terms are of relative size 1e3 h² at worst; single precision adds rounding.
    return float(np.max(np.abs(np.array(orders) - 2))), by_precision(dtype, 0.1, 0.5)


@statement("Theorem 3.3", "jax.jvp of T_Proj vs φ'/φ · jax.jvp of the function")
def theorem_3_3_differential_forward(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check the same in forward mode, on T_Proj as two projections of one dense joint table.

    Source: Theorem 3.3; section 3.1. The function is ``sin(x)^(size-1) x``.
    """
    at_least(size, 1)

    def function(x: Any) -> Any:
        y = x
        for _ in range(size - 1):
            y = jnp.sin(x) * y
        return y

    spacing = by_precision(dtype, 1e-4, 1e-2)
    x, direction = jnp.asarray(np.random.default_rng(seed).uniform(0.3, 0.9, size=2), dtype)
    lift = delta_lift(function, x)
    tables = lift.table_graph(spacing)

    @jax.jit
    def differential(x: Any, direction: Any) -> Any:
        return jax.jvp(lambda x: t_proj_readout(tables, x, method="dense"), (x,), (direction,))[1]

    got = differential(x, direction)
    _, slope = jax.jvp(function, (x,), (direction,))
    want = output_slope(lift.output) * np.asarray(slope)
    # Error h² times curvatures of order one; single precision adds rounding 1e-7 over h.
    return relative_difference(got, want), by_precision(dtype, 1e-7, 1e-3)


def _beliefs(tables: TableGraph, evidence: Any) -> Any:
    return t_proj(tables.graph, tables.log_potentials, evidence)


def _log_mean(tables: TableGraph, evidence: Any) -> Any:
    return tables.readout(_beliefs(tables, evidence), output_factor)


@statement("Theorem 3.3", "jax.grad of T_Proj in the evidence vs a difference of two beliefs")
def theorem_3_3_beliefs(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check ``∂ log E_q[φ] / ∂ log λ_i(k) = P_φ(x_i = k) - P(x_i = k)``, at a coarse spacing.

    The beliefs are two evaluations of T_Proj, with and without φ as a factor; nothing on their side
    is differentiated, and the identity is exact at every spacing.

    Source: Theorem 3.3, the downward messages as ratios of beliefs. `size` is the number of
    functions.
    """
    at_least(size, 1)
    points, lift = _lifted(seed, size, dtype)
    tables = lift.table_graph(0.02)
    evidence = tables.evidence(points)
    slopes = _compiled(jax.grad(_log_mean, argnums=1), tables)(tables, evidence)[0]
    beliefs = _compiled(_beliefs, tables)
    with_phi = beliefs(tables, tables.with_output(evidence, output_factor))[0]
    want = np.exp(np.asarray(with_phi)) - np.exp(np.asarray(beliefs(tables, evidence)[0]))
    nodes = np.asarray(tables.inputs)
    gap = largest_difference(np.asarray(slopes)[nodes], want[nodes])
    # Probabilities by two orders of the same sums; a few roundings.
    return gap, by_precision(dtype, 1e-12, 1e-5)


@statement("Theorem 3.3", "jax.grad of T_Proj in a 64-8-k network's weights vs φ'/φ · jax.grad")
def theorem_3_3_network(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check the differential of T_Proj where the variables are all weights of a network.

    Source: Theorem 3.3, Corollary 3.4. `size` is k, the number of classes; one image of 64 pixels.
    """
    at_least(size, 2)
    parameters = random_parameters(seed, (64, 8, size), dtype)
    x = jnp.asarray(np.random.default_rng(seed).uniform(size=64), dtype)
    lift = delta_lift(lambda p: network_loss(p, x, 0), parameters)
    tables = lift.table_graph(by_precision(dtype, 1e-5, 1e-3))
    got = _compiled(jax.grad(t_proj_readout, argnums=1), tables)(tables, parameters)
    gradient = jax.grad(network_loss)(parameters, x, 0)
    want = jax.tree.map(lambda g: output_slope(lift.output) * np.asarray(g), gradient)
    # A lattice of z reaches some hundred spacings: error 1e4 h². Single precision adds rounding
    # 1e-7 over h, gathered along two thousand nodes.
    return relative_difference(got, want), by_precision(dtype, 1e-5, 5e-2)


@statement(
    "Theorem 4.6",
    "jax.jvp of T_SPN vs central differences of sums over all parses, in numpy",
    reading="T_SPN on activations",
)
def theorem_4_6_differential(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that the derivative of T_SPN in its evidence is the covariance of its indicators.

    Source: Theorems 4.1 and 4.6. Differences are taken of marginals by enumeration, in float64, so
    nothing on their side differentiates or sweeps. `size` is the number of components.
    """
    known = mixture_example(seed, size, dtype)
    rng = np.random.default_rng(seed)
    log_weights = np.exp(np.asarray(known.log_weights, np.float64))
    tables = [np.asarray(t, np.float64) for t in known.circuit.unpack_variables(known.log_evidence)]
    direction = [rng.normal(size=table.shape) for table in tables]

    def marginals(step: float) -> list[np.ndarray]:
        evidence = [np.exp(t + step * d) for t, d in zip(tables, direction, strict=True)]
        out, total = [np.zeros(len(table)) for table in tables], 0.0
        for weight, states, _, _ in enumerate_parses(known.circuit, log_weights, evidence):
            total += weight
            for v, t in states.items():
                out[v][t] += weight
        return [table / total for table in out]

    pairs = zip(marginals(STEP), marginals(-STEP), strict=True)
    want = [(above - below) / (2 * STEP) for above, below in pairs]
    gaps = []
    for method in ("sweep", "elimination"):

        @jax.jit
        def differential(evidence: Any, direction: Any, method: Any = method) -> Any:
            project = functools.partial(t_spn, known.circuit, known.log_weights, method=method)
            log_marginals, moved = jax.jvp(project, (evidence,), (direction,))
            return tuple(jnp.exp(t) * d for t, d in zip(log_marginals, moved, strict=True))

        moved = differential(known.log_evidence, known.circuit.pack_variables(direction, dtype))
        gaps.append(largest_difference(known.circuit.unpack_variables(moved), want))
    # float64: the differences' own error, 1e-10; float32: rounding of both operators.
    return float(np.max(gaps)), by_precision(dtype, 1e-8, 1e-5)
