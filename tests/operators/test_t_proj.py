"""T_Proj: dense projections, elimination and one tree sweep give the exact marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from klprojax import BeliefPropagation, Elimination, FactorGraph, TreeSweep, infer, t_proj
from klprojax.graphs._replication import ReplicatedLift
from klprojax.operators import is_forest, t_proj_dense

from ._enumeration import build, by_variable, enumerate_exact, models, random_tables

INF = np.inf
# Probabilities: sums of at most a few thousand terms, tens of roundings of 2e-16.
ATOL = 1e-12


def close(got, want, atol=ATOL):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


def marginals(graph, log_marginals):
    return by_variable(graph, tuple(np.exp(np.asarray(table)) for table in log_marginals))


@settings(max_examples=3)
@given(model=models(max_entries=2**9, max_factors=4, max_variables=4, evidence=True))
def test_all_methods_equal_enumeration(model):
    graph, log_potentials, evidence = build(model)
    want = enumerate_exact(**model).marginals
    methods = ["auto", "dense", "elimination"] + (["tree"] if is_forest(graph) else [])
    for method in methods:
        got = t_proj(graph, log_potentials, evidence, method=method)
        close(marginals(graph, got), want)


@settings(max_examples=3)
@given(model=models(forest=True, max_variables=5, max_factors=4))
def test_one_sweep_is_exact_on_forests(model):
    graph, log_potentials, _ = build(model)
    assert is_forest(graph)
    want = enumerate_exact(**model)
    sweep = BeliefPropagation(schedule=TreeSweep())
    for solver in (sweep, Elimination()):
        got = infer(graph, log_potentials, solver, factor_beliefs=True)
        close(by_variable(graph, got.marginals), want.marginals)
        close(
            [np.squeeze(t) for t in graph.unpack(got.factor_beliefs)],
            [np.squeeze(t) for t in want.factor_marginals],
        )


def loopy(seed, zeros=0.0):
    cards, scopes = [2, 3, 2, 4], [(0, 1), (1, 2), (2, 0), (3, 0)]
    tables, _ = random_tables(np.random.default_rng(seed), cards, scopes, zeros)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


def cycle(seed, zeros=0.0):
    cards, scopes = [2, 3, 2], [(0, 1), (1, 2), (2, 0)]
    tables, _ = random_tables(np.random.default_rng(seed), cards, scopes, zeros)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


def tree(seed, zeros=0.0):
    cards, scopes = [2, 3, 2], [(0, 1), (1, 2)]
    tables, _ = random_tables(np.random.default_rng(seed), cards, scopes, zeros)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


def test_evidence_excludes_a_state_in_the_middle():
    model = cycle(3)
    graph, log_potentials, _ = build(model)
    table = np.array([0.3, -INF, -0.7])
    evidence = graph.log_evidence({1: table, 2: 1})
    written_out = {
        "cardinalities": model["cardinalities"],
        "scopes": [*model["scopes"], (1,), (2,)],
        "log_tables": [*model["log_tables"], table, np.array([-INF, 0.0])],
    }
    want = enumerate_exact(**written_out).marginals
    for method in ("dense", "elimination"):
        close(marginals(graph, t_proj(graph, log_potentials, evidence, method=method)), want)


def test_shared_tables_arity_zero_and_isolated_variables():
    pairs = np.array([[0, 1], [1, 2], [2, 0]])
    shared = np.array([[0.5, -0.2], [-INF, 0.3]])
    single = np.array([0.1, 0.9])
    graph = FactorGraph([2, 2, 2, 3], [pairs, (), (2,)])
    log_potentials = graph.pack([shared, np.array(0.7), single])
    want = enumerate_exact(
        [2, 2, 2, 3],
        [*map(tuple, pairs.tolist()), (), (2,)],
        [shared] * 3 + [np.array(0.7), single],
    ).marginals
    for method in ("dense", "elimination"):
        close(marginals(graph, t_proj(graph, log_potentials, method=method)), want)


@pytest.mark.parametrize("method", ["dense", "elimination", "tree"])
def test_float32_in_float32_out(method):
    model = tree(1, 0.2)
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    got = t_proj(graph, graph.pack(model["log_tables"], np.float32), method=method)
    assert {str(table.dtype) for table in got} == {"float32"}
    close(marginals(graph, got), enumerate_exact(**model).marginals, 1e-5)  # a hundred float32 eps


@pytest.mark.parametrize("method", ["auto", "dense", "elimination", "tree"])
def test_contradictions_raise(method):
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack([np.array([[0.0, -INF], [-INF, 0.0]])])
    evidence = graph.log_evidence({0: 0, 1: 1})
    with pytest.raises(RuntimeError, match="Every joint state has probability zero"):
        t_proj(graph, log_potentials, evidence, method=method)


def test_misuse_is_refused():
    graph, log_potentials, _ = build(loopy(0))
    with pytest.raises(ValueError, match="TreeSweep needs a graph without cycles"):
        t_proj(graph, log_potentials, method="tree")
    with pytest.raises(ValueError, match="has 8 axes and 1,152 entries, beyond max_entries = 100"):
        ReplicatedLift(graph, max_entries=100)
    with pytest.raises(ValueError, match="no log_evidence for a lift made with evidence=True"):
        ReplicatedLift(graph, evidence=True).log_table(log_potentials)
    with pytest.raises(ValueError, match="Got log_evidence for a lift made with evidence=False"):
        ReplicatedLift(graph).log_table(log_potentials, graph.log_evidence())
    with pytest.raises(ValueError, match="copies of different sizes"):
        t_proj_dense(jnp.zeros((2, 3)), [(0, 1)])
    with pytest.raises(RuntimeError, match="no mass on the consensus face"):
        t_proj_dense(jnp.array([[-INF, 0.0], [0.0, -INF]]), [(0, 1)])


# -- derivatives ---------------------------------------------------------------------------------

STEP = 1e-5
# A central difference at 1e-5 errs by 1e-10 of the third derivative plus 1e-16 / 1e-5.
DIFFERENCE = 1e-8


def direction_for(tables, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda t: jnp.where(jnp.isneginf(t), 0.0, jnp.asarray(rng.normal(size=t.shape))), tables
    )


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("method", ["dense", "elimination", "tree"])
def test_derivatives_match_differences(method):
    make = tree if method == "tree" else cycle
    graph, _, _ = build(make(6))
    rng = np.random.default_rng(9)
    weights = graph.pack_variables([rng.normal(size=c) for c in graph.cardinalities])

    def score(tables):
        return inner(jax.tree.map(jnp.exp, t_proj(graph, tables, method=method)), weights)

    # Both modes and forward over reverse, compiled once, for tables without and with zeros.
    @jax.jit
    def program(t, d):
        both, (_, curved) = jax.jvp(jax.value_and_grad(score), (t,), (d,))
        return both, jax.jvp(score, (t,), (d,))[1], curved

    slopes = jax.jit(jax.vmap(jax.grad(score))) if method == "elimination" else None
    for zeros in (0.0, 0.3):
        log_potentials = graph.pack(make(6, zeros)["log_tables"])
        d = direction_for(log_potentials, 1)
        (_, got), forward, curved = program(log_potentials, d)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
        ends = [
            program(jax.tree.map(lambda p, d, h=h: p + h * d, log_potentials, d), d)[0]
            for h in (STEP, -STEP)
        ]
        want, bend = jax.tree.map(lambda a, b: (a - b) / (2 * STEP), *ends)
        assert abs(float(want)) > 1e-3
        close(inner(got, d), want, DIFFERENCE)
        close(forward, want, DIFFERENCE)
        close(curved, bend, DIFFERENCE)
        if slopes is None:
            continue
        # vmap of grad: two points at once.
        two = jax.tree.map(lambda t, s: jnp.stack([t, t + 0.1 * s]), log_potentials, d)
        batch = slopes(two)
        for row in range(2):
            (_, one), _, _ = program(jax.tree.map(lambda t, row=row: t[row], two), d)
            close(jax.tree.map(lambda t, row=row: t[row], batch), one)
