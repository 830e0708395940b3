"""Section 4 beyond one sweep: leaves, best states, zeros and learning, against plain numpy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..circuits import (
    Bernoulli,
    Binomial,
    CircuitBuilder,
    Gaussian,
    TensorParameters,
    compile_model,
    em_step,
    hidden_markov,
    log_likelihood,
    mpe,
)
from ..circuits.tensor import mutual_information
from ..graphs import DiscreteModel
from ._measure import as_given, at_least, by_precision, largest_difference
from ._models import joint_log_table, random_cycle
from ._registry import statement


@statement("Section 4, leaves", "log_likelihood of a mixture vs its densities in numpy")
def section_4_leaves(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check leaves of every family: Bernoulli, categorical, binomial and normal.

    Source: section 4, the network polynomial with distributions in the place of indicators. `size`
    is the number of components of the mixture.
    """
    at_least(size, 1)
    rng = np.random.default_rng(seed)
    builder = CircuitBuilder([2, 3, 4, 0])
    odds, table = rng.normal(size=size), np.log(rng.dirichlet(np.ones(3), size))
    rate, mean, deviation = rng.normal(size=size), rng.normal(size=size), 1 + rng.random(size)
    weights = np.log(rng.dirichlet(np.ones(size)))
    odds, table, rate, mean, deviation, weights = (
        as_given(v, dtype) for v in (odds, table, rate, mean, deviation, weights)
    )
    natural = Gaussian.natural(jnp.asarray(mean, dtype), jnp.asarray(deviation, dtype))
    parts = [
        builder.product(
            [
                builder.leaf(0, Bernoulli(), odds[k]),
                builder.leaf(1, None, table[k]),
                builder.leaf(2, Binomial(), rate[k]),
                builder.leaf(3, Gaussian(), np.asarray(natural[k])),
            ]
        )
        for k in range(size)
    ]
    circuit, log_weights, parameters = builder.build(builder.sum(parts, weights), dtype=dtype)
    rows = np.stack([rng.integers(card, size=20) for card in (2, 3, 4)], axis=1)
    values = as_given(rng.normal(size=20), dtype)

    a, b, c = (rows[:, v, None] for v in range(3))
    choose = np.array([1, 3, 3, 1])
    joint = (
        weights
        + a * odds
        - np.log1p(np.exp(odds))
        + table.T[b[:, 0]]
        + np.log(choose[c])
        + c * rate
        - 3 * np.log1p(np.exp(rate))
        - ((values[:, None] - mean) / deviation) ** 2 / 2
        - np.log(deviation * np.sqrt(2 * np.pi))
    )
    # The mixture is divided by its log-partition, which the rounded weights and tables leave.
    total = np.log(np.sum(np.exp(weights) * np.exp(table).sum(axis=1)))
    want = np.log(np.exp(joint).sum(axis=1)) - total
    data = np.column_stack([rows, values])
    found = log_likelihood(circuit, log_weights, data, leaf_parameters=parameters)
    # Logarithms of size ten.
    return largest_difference(found, want), by_precision(dtype, 1e-13, 2e-5)


@statement("Section 4, best states", "mpe of a compiled model vs enumeration in numpy")
def section_4_best_states(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check that sums replaced by maxima find a most probable state of a deterministic circuit.

    Source: section 4 in the semiring of maxima. `size` is the number of variables of a cycle.
    """
    model = random_cycle(seed, size)
    circuit, log_weights, _ = compile_model(
        DiscreteModel(model.cardinalities, model.scopes, model.log_tables), dtype=dtype
    )
    joint = joint_log_table(model)
    gaps = []
    for state in range(model.cardinalities[1]):
        answer = mpe(circuit, log_weights, circuit.log_evidence({1: state}, dtype))
        wanted = np.where(np.arange(joint.shape[1])[:, None] == state, 0.0, -np.inf)
        wanted = joint + wanted.reshape([-1 if v == 1 else 1 for v in range(size)])
        best = np.unravel_index(np.argmax(wanted), joint.shape)
        gaps += [
            largest_difference(answer.states, np.asarray(best)),
            largest_difference(answer.log_value, np.max(wanted)),
        ]
    # A logarithm of size ten; states exactly.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Section 4, zeros", "a hidden Markov circuit with zeros vs the forward pass in numpy")
def section_4_zeros(seed: int = 0, size: int = 20, dtype: Any = None) -> Any:
    """Check values and derivatives where weights vanish, and states read with errors.

    Source: Theorem 4.1 on a left-to-right chain, whose states may be impossible. `size` is the
    number of steps.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    transition, start = np.array([[1, 0], [0.4, 0.6]]), np.array([[0.3, 0.7]])
    emission = np.array([[0, 1], [0.9, 0.1]])
    with np.errstate(divide="ignore"):
        tables = [as_given(np.log(table), dtype) for table in (transition, emission, start)]
    matrix, leaf, root = (jnp.asarray(table[None], dtype) for table in tables)
    parameters = TensorParameters(matrix, leaf, root[0])
    circuit = hidden_markov(size, 2)
    rows = rng.integers(2, size=(6, size))
    rows[0] = 1

    def forward(tables: list, softening: float) -> np.ndarray:
        matrix, leaf, root = map(np.exp, tables)
        seen = leaf @ np.array([[1 - softening, softening], [softening, 1 - softening]])
        mass = root * seen[:, rows[:, 0]].T
        for column in rows.T[1:]:
            mass = (mass @ matrix) * seen[:, column].T
        with np.errstate(divide="ignore"):
            return np.log(mass.sum(axis=1))

    def value(parameters: Any, softening: float = 0.0) -> Any:
        return circuit.flows(parameters, rows, softening=softening)[0]

    ones = jax.tree.map(jnp.ones_like, parameters)
    found, slope = jax.jvp(lambda p: circuit.log_values(p, rows), (parameters,), (ones,))
    want = forward(tables, 0.0)
    possible = np.isfinite(want)
    # Every path has one start, its transitions and its emissions: scaled by e, the sum is scaled.
    slopes = np.where(possible, 2.0 * size, 0.0)
    gaps = [
        largest_difference(np.isneginf(found), ~possible),
        largest_difference(np.where(possible, found, 0.0), np.where(possible, want, 0.0)),
        largest_difference(np.where(possible, slope, 0.0), slopes),
        largest_difference(value(parameters, 0.1), forward(tables, 0.1)),
    ]
    # Logarithms and slopes of size forty, sums over the steps.
    return float(np.max(gaps)), by_precision(dtype, 1e-12, 1e-4)


@statement(
    "Section 4, learning", "em_step with pseudocounts, mutual_information vs counts in numpy"
)
def section_4_learning(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check pseudocounts, spread evenly over the terms of a sum, and mutual informations.

    Source: section 2, right projection of the counts and a uniform table. `size` is the number of
    columns.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    rows, pseudocount = rng.integers(2, size=(30, size)), 1.5
    circuit = hidden_markov(size, 2)
    parts = [rng.dirichlet(np.ones(2), n) for n in (2, 2, 1)]
    matrix, leaf, root = parts = [as_given(part, dtype) for part in parts]
    old = TensorParameters(
        *(jnp.asarray(np.log(part), dtype) for part in (matrix[None], leaf[None], root))
    )
    new, _ = em_step(circuit, old, rows, pseudocount=pseudocount)
    counts = [np.zeros_like(part) for part in parts]
    for row in rows:
        paths = list(itertools.product(range(2), repeat=size))
        weights = np.array(
            [
                root[0, path[0]]
                * np.prod([matrix[move] for move in itertools.pairwise(path)])
                * np.prod([leaf[h, x] for h, x in zip(path, row, strict=True)])
                for path in paths
            ]
        )
        for path, weight in zip(paths, weights / weights.sum(), strict=True):
            counts[2][0, path[0]] += weight
            for move in itertools.pairwise(path):
                counts[0][move] += weight
            for h, x in zip(path, row, strict=True):
                counts[1][h, x] += weight
    want = [
        (c + pseudocount / 2) / (c + pseudocount / 2).sum(axis=1, keepdims=True) for c in counts
    ]
    found = [jnp.exp(new.log_weights[0]), jnp.exp(new.log_inputs[0]), jnp.exp(new.log_root)]
    gap = largest_difference(found, want)

    shared = mutual_information(rows, (2,) * size, pseudocount=pseudocount)
    for i, j in itertools.permutations(range(size), 2):
        table = np.full((2, 2), pseudocount / 4)
        np.add.at(table, (rows[:, i], rows[:, j]), 1)
        table /= table.sum()
        outer = table.sum(axis=1)[:, None] * table.sum(axis=0)
        gap = max(gap, abs(float(shared[i, j]) - np.sum(table * np.log(table / outer))))
    # Probabilities, sums over thirty rows.
    return gap, by_precision(dtype, 1e-13, 1e-5)
