"""Chains of 10,000 and 20,000 variables, thousands of nats, against a scan in float64."""

import numpy as np
import pytest

from klprojax import BeliefPropagation, Elimination, FactorGraph, TreeSweep, infer

STATES = 3


def chain(variables):
    steps = np.arange(variables - 1)
    return FactorGraph([STATES] * variables, [np.stack([steps, steps + 1], axis=1)])


def potentials(kind, scale, variables):
    rng = np.random.default_rng(0)
    shape = (variables - 1, STATES, STATES)
    if kind == "spread":
        return rng.uniform(-scale, scale, shape)
    # Two values only: many states tie, so marginals depend on rounding everywhere.
    return scale * rng.choice([-1.0, 1.0], shape)


def log_sum(log_table, axis):
    top = log_table.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(log_table - top).sum(axis=axis))


def scan(tables):
    """Log-partition and marginals by a forward and a backward pass, normalised at every step."""
    forward = np.zeros((len(tables) + 1, STATES))
    backward = np.zeros_like(forward)
    constants = []
    for t, table in enumerate(tables):
        message = log_sum(forward[t][:, None] + table, 0)
        constants.append(message.max())
        forward[t + 1] = message - constants[-1]
    for t in range(len(tables) - 1, -1, -1):
        message = log_sum(tables[t] + backward[t + 1], 1)
        backward[t] = message - message.max()
    log_partition = np.sum(constants, dtype=np.longdouble) + log_sum(forward[-1], 0)
    log_marginals = forward + backward
    return float(log_partition), np.exp(log_marginals - log_sum(log_marginals, 1)[:, None])


SOLVERS = [Elimination(), BeliefPropagation(schedule=TreeSweep())]
LONG = [*zip(SOLVERS, (10_000, 20_000), strict=True)]


@pytest.mark.parametrize(("solver", "variables"), LONG, ids=["elimination", "sweep"])
@pytest.mark.parametrize("kind", ["two values", pytest.param("spread", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    # A single message has a rounding error of eps * 1e3: 2e-13 and 6e-5. Where states tie, errors
    # of many messages add up like a random walk.
    ("dtype", "tolerance"),
    [(np.float64, 1e-10), (np.float32, 1e-3)],
    ids=["64", "32"],
)
def test_potentials_of_a_thousand_nats_and_of_ten(solver, variables, kind, dtype, tolerance):
    graph = chain(variables)
    log_potentials = graph.pack([potentials(kind, 1e3, variables)], dtype)
    log_partition, marginals = scan(np.asarray(log_potentials[0], np.float64))
    solution = infer(graph, log_potentials, solver)
    found = np.stack(graph.unpack_variables(solution.marginals))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, marginals, rtol=0, atol=tolerance)
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=tolerance)
    # Of ten thousand nats, by the same program: finite. A message is rounded by eps * 1e4, 1e-3 in
    # float32.
    solution = infer(graph, graph.pack([potentials("two values", 1e4, variables)], dtype), solver)
    found = np.stack(graph.unpack_variables(solution.marginals))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-2)
    assert np.isfinite(solution.log_partition)


@pytest.mark.parametrize("solver", SOLVERS, ids=["elimination", "sweep"])
def test_the_log_partition_of_a_long_chain_does_not_drift(solver):
    # A hidden Markov chain whose every step adds about -1.4 to log Z. A float32 recursion whose
    # messages carry the running sum rounds it the same way at every step, to 57 units.
    rng = np.random.default_rng(0)
    steps = 2_000
    rows = np.log([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    sees = np.log([[0.6, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    seen = np.ascontiguousarray(sees[:, rng.integers(0, 4, steps)].T)
    times = np.arange(steps)
    pairs = np.stack([times[:-1], times[1:]], axis=1)
    graph = FactorGraph([STATES] * steps, [pairs, times[:, None]])
    log_potentials = graph.pack([rows, seen], np.float32)
    rows, seen = (np.asarray(t, np.float64) for t in log_potentials)
    message, total = seen[0], 0.0
    for t in range(1, steps):
        message = log_sum(message[:, None] + rows, 0) + seen[t]
        total += message.max()
        message = message - message.max()
    total += log_sum(message, 0)
    found = float(infer(graph, log_potentials, solver).log_partition)
    # In units of the last digit of log Z. The partial sums of the Bethe form are a few times as
    # large as log Z, so a few of their roundings.
    assert abs(found - total) < 8 * np.spacing(np.float32(abs(total)))


def test_a_long_chain_by_an_associative_scan():
    # In float32, where products of tables would lose the most digits.
    graph = chain(1_000)
    log_potentials = graph.pack([potentials("two values", 1e3, 1_000)], np.float32)
    log_partition, marginals = scan(np.asarray(log_potentials[0], np.float64))
    solver = BeliefPropagation(schedule=TreeSweep(parallel=True))
    solution = infer(graph, log_potentials, solver)
    # As above: a rounding of a thousand nats is 6e-5, and where states tie many of them add up.
    np.testing.assert_allclose(solution.marginals[0], marginals, rtol=0, atol=1e-3)
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=1e-6)
