"""New numbers, and new graphs of the same shape, reuse compiled programs."""

from contextlib import contextmanager

import jax
import numpy as np
import pytest

import klprojax as kp


@contextmanager
def compilations():
    """Count the programs that XLA compiles inside the block."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def graph_of(scopes):
    return kp.FactorGraph([2, 2, 3, 3], [*scopes, (0,)])


def potentials(graph, seed):
    rng = np.random.default_rng(seed)
    return graph.pack([rng.normal(size=s) for s in ((2, 3), (2, 3), (3, 3), (2,))])


FIRST = [(0, 2), (1, 3), (2, 3)]
SECOND = [(1, 2), (0, 3), (3, 2)]  # the same shapes and degrees, wired otherwise


@pytest.mark.parametrize(
    "solver",
    [
        kp.BeliefPropagation(engine="log"),
        kp.BeliefPropagation(),
        kp.BeliefPropagation(schedule=kp.Residual()),
        kp.BeliefPropagation(schedule=kp.Sequential()),
        kp.BeliefPropagation(schedule=kp.TreeSweep()),
        kp.DykstraHybrid(),
    ],
    ids=["log", "auto", "residual", "sequential", "tree", "hybrid"],
)
def test_belief_propagation_compiles_once_per_shape(solver, monkeypatch):
    # The first calls of so small a problem would compile nothing.
    monkeypatch.setattr("klprojax.operators._belief_propagation._EAGER_CALLS", 0)
    first, second = graph_of(FIRST), graph_of(SECOND)
    assert first != second
    assert first.signature == second.signature
    tables = [potentials(g, s) for g, s in ((first, 0), (first, 1), (second, 2))]
    evidence = [g.log_evidence({0: 1}) for g in (first, second)]
    with compilations() as cold:
        kp.infer(first, tables[0], solver, log_evidence=evidence[0], throw=False)
    # The counter works: the first call compiles.
    assert cold
    with compilations() as warm:
        kp.infer(first, tables[1], solver, log_evidence=evidence[0], throw=False)
        kp.infer(second, tables[2], solver, log_evidence=evidence[1], throw=False)
    assert not warm


def test_elimination_of_concrete_numbers_compiles_nothing():
    with compilations() as eager:
        # Shapes of no other test; a factor alone in its group, with its axes to be exchanged.
        graph = kp.FactorGraph([17, 13, 13], [(0, 1), (1,), (2,), (2, 1)])
        rng = np.random.default_rng(0)
        tables = graph.pack([rng.normal(size=s) for s in ((17, 13), (13,), (13,), (13, 13))])
        evidence = graph.log_evidence({0: 1})
        solution = kp.infer(
            graph, tables, kp.Elimination(), log_evidence=evidence, factor_beliefs=True
        )
        assert solution.marginals[0].shape == (2, 13)
        assert solution.factor_beliefs[0].shape == (1, 13, 17)
    assert not eager
    # The counter works: traced numbers are compiled for.
    with compilations() as traced:
        jax.jit(lambda t: kp.infer(graph, t, kp.Elimination()).log_partition)(tables)
    assert traced
