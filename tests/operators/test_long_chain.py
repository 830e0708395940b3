"""A chain of 10,000 variables with potentials of a thousand nats, against a scan in float64."""

import numpy as np
import pytest

from klprojax import BeliefPropagation, Elimination, FactorGraph, TreeSweep, infer

VARIABLES, STATES = 10_000, 3


def chain():
    steps = np.arange(VARIABLES - 1)
    return FactorGraph([STATES] * VARIABLES, [np.stack([steps, steps + 1], axis=1)])


def potentials(kind, scale):
    rng = np.random.default_rng(0)
    shape = (VARIABLES - 1, STATES, STATES)
    if kind == "spread":
        return rng.uniform(-scale, scale, shape)
    # Two values only: many states tie, so marginals depend on rounding everywhere.
    return scale * rng.choice([-1.0, 1.0], shape)


def log_sum(log_table, axis):
    top = log_table.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(log_table - top).sum(axis=axis))


def scan(tables):
    """Log-partition and marginals by a forward and a backward pass, normalised at every step."""
    forward = np.zeros((VARIABLES, STATES))
    backward = np.zeros((VARIABLES, STATES))
    constants = []
    for t, table in enumerate(tables):
        message = log_sum(forward[t][:, None] + table, 0)
        constants.append(message.max())
        forward[t + 1] = message - constants[-1]
    for t in range(VARIABLES - 2, -1, -1):
        message = log_sum(tables[t] + backward[t + 1], 1)
        backward[t] = message - message.max()
    log_partition = np.sum(constants, dtype=np.longdouble) + log_sum(forward[-1], 0)
    log_marginals = forward + backward
    return float(log_partition), np.exp(log_marginals - log_sum(log_marginals, 1)[:, None])


SOLVERS = [Elimination(), BeliefPropagation(schedule=TreeSweep())]


@pytest.mark.parametrize("solver", SOLVERS, ids=["elimination", "sweep"])
@pytest.mark.parametrize("kind", ["spread", "two values"])
@pytest.mark.parametrize(
    # A single message has a rounding error of eps * 1e3: 2e-13 and 6e-5. Where states tie, errors
    # of many messages add up like a random walk.
    ("dtype", "tolerance"),
    [(np.float64, 1e-10), (np.float32, 1e-3)],
    ids=["64", "32"],
)
def test_potentials_of_a_thousand_nats(solver, kind, dtype, tolerance):
    graph = chain()
    log_potentials = graph.pack([potentials(kind, 1e3)], dtype)
    log_partition, marginals = scan(np.asarray(log_potentials[0], np.float64))
    solution = infer(graph, log_potentials, solver)
    found = np.stack(graph.unpack_variables(solution.marginals))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, marginals, rtol=0, atol=tolerance)
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
@pytest.mark.parametrize("solver", SOLVERS, ids=["elimination", "sweep"])
def test_potentials_of_ten_thousand_nats_stay_finite(solver, dtype):
    graph = chain()
    log_potentials = graph.pack([potentials("two values", 1e4)], dtype)
    solution = infer(graph, log_potentials, solver)
    found = np.stack(graph.unpack_variables(solution.marginals))
    assert np.isfinite(found).all()
    # A message is rounded by eps * 1e4: 1e-3 in float32.
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-2)
    assert np.isfinite(solution.log_partition)
