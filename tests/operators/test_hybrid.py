"""The Dykstra-type hybrid: iterate by iterate normalised flooding belief propagation."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import klprojax
from klprojax import RESULTS, BeliefPropagation, DykstraHybrid, FactorGraph, infer
from klprojax.geometry import ProductFamily
from klprojax.graphs._replication import ReplicatedLift
from klprojax.operators import HybridState
from klprojax.projections import Dykstra, LogTables, compose, left, right
from tests.reference import bp_sweep

from ._enumeration import (
    build,
    by_edge,
    by_variable,
    enumerate_exact,
    random_tables,
)

STEPS = 30
# Beliefs and messages are probabilities: 30 steps of sums and products of a few dozen terms in
# float64 leave errors of some 1e-15; 1e-12 is what the equality is claimed to.
ATOL = 1e-12
INF = np.inf

LOOPY = {
    "cardinalities": [2, 3, 2, 4],
    "scopes": [(0, 1), (1, 2), (2, 0), (0, 1, 3), (3,)],
}
# Loops of all kinds, and factors on the same variables, on one, on none; a variable in no factor.
STRUCTURES = {
    "loopy": LOOPY,
    "twice": {"cardinalities": [3, 2, 1, 2, 2], "scopes": [(0, 1), (1, 0), (), (3, 1, 0), (2,)]},
}
# Derivatives take most of the time to compile: cycles of two cardinalities and of one.
CYCLE = {"cardinalities": [2, 3, 2], "scopes": [(0, 1), (1, 2), (2, 0)]}
EQUAL = {"cardinalities": [3, 3, 3], "scopes": [(0, 1), (1, 2), (2, 0)]}
# One solver and limit, so that all solutions on one structure are found by one program.
SOLVER = DykstraHybrid(tolerance=1e-13)
MOST = 500


def graph_of(name):
    return FactorGraph(STRUCTURES[name]["cardinalities"], STRUCTURES[name]["scopes"])


def loopy(seed, zeros=0.0, structure=LOOPY):
    rng = np.random.default_rng(seed)
    tables, _ = random_tables(rng, structure["cardinalities"], structure["scopes"], zeros)
    return {**structure, "log_tables": tables}


def trajectory(solver, graph, start, steps=STEPS):
    """A program that drives ``steps`` steps by hand and stacks the states: compiled once.

    Args:
        start: ``(log_potentials, log_evidence) -> state``.
    """

    def run(log_potentials, log_evidence):
        def one(state, _):
            state = solver.step(graph, log_potentials, state, log_evidence=log_evidence)
            return state, state

        state = start(log_potentials, log_evidence)
        return jax.lax.scan(one, state, None, length=steps)[1]

    return compiled(run)


def compiled(function):
    """Compiled, and with its results in numpy."""
    function = jax.jit(function)
    return lambda *args: jax.device_get(function(*args))


def beliefs(log_q):
    return tuple(jnp.exp(jnp.asarray(table)) for table in log_q)


def at(n, tree):
    return jax.tree.map(lambda leaf: leaf[n], tree)


def close(got, want, atol=ATOL):
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


def on_support(messages, support):
    """Probabilities of messages restricted to the states that the iterate has not excluded."""
    out = []
    for message, live in zip(jax.tree.leaves(messages), jax.tree.leaves(support), strict=True):
        kept = np.where(np.isneginf(live), 0.0, np.exp(message))
        total = kept.sum(axis=-1, keepdims=True)
        out.append(kept / np.where(total > 0, total, 1.0))
    return out


def redraw(model, seed, zeros):
    """Other numbers on the same structure, so that one compiled program serves several."""
    cards, scopes = model["cardinalities"], model["scopes"]
    unary = [(v,) for v in range(len(cards))]
    tables, _ = random_tables(np.random.default_rng(seed), cards, scopes + unary, zeros)
    return {
        "cardinalities": cards,
        "scopes": scopes,
        "log_tables": tables[: len(scopes)],
        "log_evidence": tables[len(scopes) :],
    }


@functools.cache
def structured(name):
    """The graph, the hybrid told the evidence at once and in the first step, the messages."""
    graph = graph_of(name)
    hybrid, bp = DykstraHybrid(tolerance=0.0), BeliefPropagation(tolerance=0.0)
    return (
        graph,
        trajectory(hybrid, graph, lambda tables, evidence: hybrid.init(graph, tables, evidence)),
        trajectory(hybrid, graph, lambda tables, _: hybrid.init(graph, tables)),
        trajectory(bp, graph, lambda tables, _: bp.init(graph, tables)),
    )


@settings(max_examples=4)
@given(name=st.sampled_from(list(STRUCTURES)), seed=st.integers(0, 2**32 - 1))
def test_structured_equals_flooding_belief_propagation(name, seed):
    model, (graph, run, late, run_bp) = STRUCTURES[name], structured(name)
    unary = [(v,) for v in range(len(model["cardinalities"]))]
    for zeros in (0.0, 0.2, 0.4):
        drawn = redraw(model, seed, zeros)
        _, log_potentials, evidence = build(drawn)
        ours, theirs = run(log_potentials, evidence), run_bp(log_potentials, evidence)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(ours))
        # σ holds m_{k→i} on the states that k_n allows; belief propagation also keeps numbers on
        # states that other messages exclude, which no belief ever sees.
        minus_sigma = jax.tree.map(np.negative, ours.sigma)
        close(on_support(minus_sigma, ours.log_k), on_support(theirs.messages, ours.log_k))
        if zeros == 0.0:
            close(
                jax.tree.map(lambda s: np.exp(-s), ours.sigma),
                jax.tree.map(np.exp, theirs.messages),
            )

        # Without evidence: straight from the formulas of section 2.
        nothing = jax.tree.map(jnp.zeros_like, evidence)
        states = run(log_potentials, nothing)
        drawn_alone = {k: v for k, v in drawn.items() if k != "log_evidence"}
        check_formulas(graph, drawn_alone, states, with_messages=zeros == 0.0)
        # With evidence that is told in the first step: the evidence is one more unary factor.
        written_out = {
            "cardinalities": drawn["cardinalities"],
            "scopes": drawn["scopes"] + unary,
            "log_tables": drawn["log_tables"] + drawn["log_evidence"],
        }
        states = late(log_potentials, evidence)
        check_formulas(graph, written_out, states, with_messages=False)


def check_formulas(graph, model, states, with_messages):
    for n, (want_beliefs, want) in enumerate(bp_sweep.iterates(**model, steps=STEPS)):
        state = at(n, states)
        close(by_variable(graph, beliefs(state.log_q)), want_beliefs)
        if not with_messages:
            continue
        close(by_edge(graph, jax.tree.map(lambda s: np.exp(-s), state.sigma)), want)
        # τ_n = -log m_{i→k} up to a constant.
        from_variable = by_edge(graph, jax.tree.map(lambda t: np.exp(-t), state.tau))
        for k, scope in enumerate(model["scopes"]):
            for a, v in enumerate(scope):
                got, cavity = from_variable[k][a], want_beliefs[v] / want[k][a]
                close(got / got.sum(), cavity / cavity.sum())


class Dense(NamedTuple):
    """The five tables of the printed iteration, each over all copies."""

    log_k: Any
    log_r: Any
    log_q: Any
    sigma: Any
    tau: Any


def gauge(log_table):
    """Remove the constant that normalisation leaves free."""
    return log_table - log_table.mean()


@functools.cache
def generic(name):
    """The lift of a graph, and a program that runs the generic scheme on its dense tables."""
    lift = ReplicatedLift(graph_of(name))

    def dense(log_potentials):
        space, scheme = LogTables(), Dykstra()
        product, agree = right(ProductFamily()), left(lift.consensus)
        projections = product, compose(product, agree)

        def one(state, _):
            log_q, sigma, tau = state
            log_k = product(space.point(space.combine((1, log_q), (1, sigma))))
            log_r = agree(space.point(space.combine((1, log_k), (1, tau))))
            state = scheme.step(space, projections, state)
            return state, Dense(log_k, log_r, *state)

        start = scheme.init(space, projections, lift.log_table(log_potentials))
        return jax.lax.scan(one, start, None, length=STEPS)[1]

    return lift, compiled(dense)


@settings(max_examples=4)
@given(name=st.sampled_from(list(STRUCTURES)), seed=st.integers(0, 2**32 - 1))
def test_dykstra_hybrid_is_the_generic_scheme(name, seed):
    model, (graph, _, run, _), (lift, run_dense) = STRUCTURES[name], structured(name), generic(name)
    nothing = tuple(jnp.zeros_like(t) for t in graph.log_evidence())
    for zeros in (0.0, 0.3):
        drawn = redraw(model, seed, zeros)
        del drawn["log_evidence"]
        _, log_potentials, _ = build(drawn)
        states = run_dense(log_potentials)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(states))
        start = np.asarray(lift.log_table(log_potentials))
        small = run(log_potentials, nothing)
        for n, (want, _) in enumerate(bp_sweep.iterates(**drawn, steps=STEPS)):
            compare_dense(graph, lift, start, at(n, states), at(n, small), want, n)


def compare_dense(graph, lift, start, state, small, want, n):
    def product(per_axis):
        """A product over all copies from a log-table per axis."""
        joint = np.zeros(lift.shape)
        for axis, table in enumerate(per_axis):
            shape = [1] * len(lift.shape)
            shape[axis] = -1
            joint = joint + table.reshape(shape)
        return joint

    def edges(messages):
        out = [np.empty(0)] * len(lift.shape)
        for axes_of_factors, blocks in zip(lift.factor_axes, graph.edge_blocks, strict=True):
            for row, axes in enumerate(axes_of_factors):
                for axis, (cls, first) in zip(axes, blocks, strict=True):
                    out[axis] = messages[cls][first + row]
        return out

    variables = [np.empty(0)] * len(lift.shape)
    for axes, table in zip(lift.copies, want, strict=True):
        for axis in axes:
            variables[axis] = table
    with np.errstate(divide="ignore"):
        log_q = product([np.log(t) for t in variables])
    close(np.exp(state.log_q), np.exp(log_q))
    close(np.exp(state.log_k), np.exp(product(edges(small.log_k))))
    # r_n has no mass off the diagonal; on it, the agreed variables are independent.
    on_face = [np.unravel_index(cell, lift.shape) for cell in np.flatnonzero(np.exp(state.log_r))]
    for cell in on_face:
        assert all(len({cell[axis] for axis in axes}) <= 1 for axes in lift.copies)
        agreed = [want[v][cell[axes[0]]] for v, axes in enumerate(lift.copies) if axes]
        close(np.exp(state.log_r[cell]), np.prod(agreed))
    inside = np.isfinite(log_q)
    if n >= 8:
        return
    # The printed σ sums up logarithms over the iterates: some tens of roundings of numbers of size
    # ten.
    for got, structured in (
        (state.sigma, start + product(edges(small.sigma))),
        (state.tau, product(edges(small.tau))),
    ):
        live = inside & np.isfinite(structured)
        np.testing.assert_array_equal(np.isfinite(got[inside]), live[inside])
        if live.any():
            close(gauge(got[live]), gauge(structured[live]))


def test_residual_sees_evidence_that_arrives_late():
    # With a factor that says nothing, only the belief of variable 0 moves in the first step.
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack([np.array([[1.0, 0.0], [0.0, 1.0]])])
    cold = infer(graph, log_potentials, DykstraHybrid())
    evidence = graph.log_evidence({0: 1})
    warm = infer(graph, log_potentials, DykstraHybrid(), log_evidence=evidence, init=cold.state)
    want = infer(graph, log_potentials, klprojax.Elimination(), log_evidence=evidence)
    close(warm.beliefs, want.beliefs)
    assert int(warm.steps) > 1


@pytest.mark.parametrize(("zeros", "evidence"), [(0.25, False), (0.0, True), (0.25, True)])
def test_solution_agrees_with_belief_propagation(zeros, evidence):
    model = loopy(3, zeros)
    graph, log_potentials, _ = build(model)
    log_evidence = graph.log_evidence({3: np.array([0.3, -1.0, 0.0, 0.5])}) if evidence else None
    options = {"log_evidence": log_evidence, "max_steps": MOST, "factor_beliefs": True}
    got = infer(graph, log_potentials, SOLVER, **options)
    want = infer(graph, log_potentials, BeliefPropagation(tolerance=1e-13), **options)
    # Both stop at the same fixed point; the contraction of the last steps is below 1e-13.
    close(got.beliefs, want.beliefs)
    close(got.factor_beliefs, want.factor_beliefs)
    close(got.log_partition, want.log_partition)
    assert bool(got.converged)
    assert not got.exact
    assert float(got.residual) < 1e-13
    assert 1 < int(got.steps) < MOST
    # Beliefs of factors and variables agree with each other at a fixed point.
    tables = graph.unpack(got.factor_beliefs)
    variables = by_variable(graph, got.beliefs)
    for scope, table in zip(model["scopes"], tables, strict=True):
        for a, v in enumerate(scope):
            others = tuple(b for b in range(len(scope)) if b != a)
            close(table.sum(axis=others), variables[v])


def test_exact_on_a_tree_with_zeros():
    cards, scopes = [2, 3, 4, 2, 1], [(0, 1), (1, 2), (1, 3), (3,), (3, 4)]
    tables, _ = random_tables(np.random.default_rng(5), cards, scopes, 0.3)
    model = {"cardinalities": cards, "scopes": scopes, "log_tables": tables}
    graph, log_potentials, _ = build(model)
    got = infer(graph, log_potentials, DykstraHybrid(), factor_beliefs=True)
    want = enumerate_exact(**model)
    close(by_variable(graph, got.beliefs), want.marginals)
    close(graph.unpack(got.factor_beliefs), want.factor_marginals)
    close(got.log_partition, want.log_partition)


def test_shared_tables_arity_zero_and_isolated_variables():
    # Variable 4 is in no factor; the family shares one table; two factors have no variables.
    pairs = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    shared = np.array([[0.5, -0.2], [-INF, 0.3]])
    graph = FactorGraph([2, 2, 2, 2, 3], [pairs, (), (2,), np.zeros((2, 0), int)])
    tables = [shared, np.array(0.7), np.array([0.1, 0.9]), np.array(-0.4)]
    # The hard zeros make convergence slow; the iterates agree from the start.
    got = infer(
        graph, graph.pack(tables), DykstraHybrid(tolerance=0.0), max_steps=40, factor_beliefs=True
    )
    spread = FactorGraph([2, 2, 2, 2, 3], [*map(tuple, pairs.tolist()), (2,), ()])
    want = infer(
        spread,
        spread.pack([shared] * 4 + [tables[2], np.array(0.7 - 0.8)]),
        BeliefPropagation(tolerance=0.0),
        max_steps=40,
    )
    close(got.beliefs, want.beliefs, 1e-11)  # forty steps of float64
    close(got.log_partition, want.log_partition, 1e-11)
    close(by_variable(graph, got.beliefs)[4], np.full(3, 1 / 3))
    assert [t.shape for t in got.factor_beliefs] == [(4, 2, 2), (1,), (1, 2), (2,)]
    np.testing.assert_array_equal(got.factor_beliefs[1], 1.0)


def test_graphs_without_factors():
    graph = FactorGraph([2, 3], [])
    evidence = graph.log_evidence({0: np.array([0.0, np.log(3.0)])})
    got = infer(graph, (), DykstraHybrid(), log_evidence=evidence)
    close(by_variable(graph, got.beliefs), [np.array([0.25, 0.75]), np.full(3, 1 / 3)])
    close(got.log_partition, np.log(12.0))


def test_float32_in_float32_out():
    model = loopy(1, 0.2)
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    log_potentials = graph.pack(model["log_tables"], np.float32)
    got = infer(graph, log_potentials, DykstraHybrid(tolerance=1e-5), factor_beliefs=True)
    floats = [x for x in jax.tree.leaves(got) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {"float32"}
    tables = graph.pack(model["log_tables"])
    want = infer(graph, tables, SOLVER, max_steps=MOST, factor_beliefs=True)
    close(got.beliefs, want.beliefs, 1e-4)  # ten tolerances; rounding is 1e-7
    close(got.log_partition, want.log_partition, 1e-4)


def test_driven_by_hand_and_warm_start():
    graph, log_potentials, _ = build(loopy(2))
    options = {"max_steps": MOST, "factor_beliefs": True}
    state, steps = SOLVER.init(graph, log_potentials), 0
    step = jax.jit(SOLVER.step)
    while not SOLVER.terminate(state)[0]:
        state, steps = step(graph, log_potentials, state), steps + 1
    want = infer(graph, log_potentials, SOLVER, **options)
    assert steps == int(want.steps)
    close(beliefs(state.log_q), want.beliefs, 1e-15)  # two compilations of one program
    warm = infer(graph, log_potentials, SOLVER, init=want.state, **options)
    assert int(warm.steps) == 1
    assert isinstance(warm.state, HybridState)


def test_solves_inside_jit_with_the_graph_as_argument():
    model = loopy(4)
    graph, log_potentials, _ = build(model)
    traces = []

    @jax.jit
    def run(graph, log_potentials):
        traces.append(None)
        return infer(graph, log_potentials, SOLVER, max_steps=MOST).beliefs

    got = run(graph, log_potentials)
    want = infer(graph, log_potentials, SOLVER, max_steps=MOST, factor_beliefs=True)
    close(got, want.beliefs)
    # Another wiring of the same signature runs the same program.
    permuted = FactorGraph([2, 3, 2, 4], [(2, 1), (1, 0), (0, 2), (2, 1, 3), (3,)])
    run(permuted, log_potentials)
    assert len(traces) == 1


def test_contradictions_are_reported():
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack([np.array([[0.0, -INF], [-INF, 0.0]])])
    evidence = graph.log_evidence({0: 0, 1: 1})
    with pytest.raises(RuntimeError, match="Every joint state has probability zero"):
        infer(graph, log_potentials, DykstraHybrid(), log_evidence=evidence)
    solution = infer(graph, log_potentials, DykstraHybrid(), log_evidence=evidence, throw=False)
    assert bool(solution.result == RESULTS.contradiction)
    assert float(solution.log_partition) == -INF
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(solution.state))


def test_no_convergence_is_reported():
    graph, log_potentials, _ = build(loopy(2, structure=CYCLE))
    with pytest.raises(RuntimeError, match="still changing by more than the tolerance"):
        infer(graph, log_potentials, DykstraHybrid(), max_steps=2)
    solution = infer(graph, log_potentials, DykstraHybrid(), max_steps=2, throw=False)
    assert bool(solution.result == RESULTS.not_converged)
    assert int(solution.steps) == 2
    # Tolerance 0: run all steps, and that is success.
    solution = infer(graph, log_potentials, DykstraHybrid(tolerance=0.0), max_steps=2)
    assert int(solution.steps) == 2


def test_nonfinite_potentials_are_reported():
    graph = FactorGraph([2], [(0,)])
    with pytest.raises(RuntimeError, match="NaN or an infinite positive value"):
        infer(graph, graph.pack([np.array([np.nan, 0.0])]), DykstraHybrid())


@pytest.mark.parametrize("tolerance", [-1e-3, float("nan")])
def test_negative_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"tolerance is .* must be at least 0"):
        DykstraHybrid(tolerance=tolerance)


# -- derivatives ---------------------------------------------------------------------------------

STEP = 1e-5
# A central difference at 1e-5 errs by 1e-10 of the third derivative plus 1e-16 / 1e-5.
DIFFERENCE = 1e-8


def direction(log_potentials, seed):
    """A random direction that leaves `-inf` entries alone."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda t: jnp.where(jnp.isneginf(t), 0.0, jnp.asarray(rng.normal(size=t.shape))),
        log_potentials,
    )


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_derivatives_match_differences():
    solver = DykstraHybrid(tolerance=0.0)
    graph, _, _ = build(loopy(6, structure=EQUAL))
    weights = [jnp.asarray(np.random.default_rng(9).normal(size=c)) for c in graph.cardinalities]
    weights = graph.pack_variables(weights)

    def loss(log_potentials, evidence):
        solution = infer(
            graph, log_potentials, solver, log_evidence=evidence, max_steps=12, throw=False
        )
        return solution.log_partition + inner(solution.beliefs, weights)

    # Both modes and forward over reverse, compiled once, for tables without and with zeros.
    @jax.jit
    def program(tables, d, evidence):
        both = jax.value_and_grad(lambda t: loss(t, evidence))
        (value, slope), (_, curved) = jax.jvp(both, (tables,), (d,))
        forward = jax.jvp(lambda t: loss(t, evidence), (tables,), (d,))[1]
        return (value, slope), forward, curved

    points = []
    for zeros in (0.0, 0.3):
        log_potentials = graph.pack(loopy(6, zeros, EQUAL)["log_tables"])
        evidence = graph.log_evidence({1: np.array([0.2, -INF, 0.1]) if zeros else np.zeros(3)})
        d = direction(log_potentials, 1)
        points.append((log_potentials, d, evidence))
        (_, slope), forward, curved = program(log_potentials, d, evidence)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((slope, curved)))
        ends = [
            program(jax.tree.map(lambda p, d, h=h: p + h * d, log_potentials, d), d, evidence)[0]
            for h in (STEP, -STEP)
        ]
        want, bend = jax.tree.map(lambda a, b: (a - b) / (2 * STEP), *ends)
        close(inner(slope, d), want, DIFFERENCE)
        close(forward, want, DIFFERENCE)
        close(curved, bend, DIFFERENCE)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(bend)) > 1e-3
    # vmap of grad: both points at once.
    tables, _, evidence = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    together = jax.jit(jax.vmap(jax.grad(loss)))(tables, evidence)
    for n, point in enumerate(points):
        close(at(n, together), program(*point)[0][1])


def test_gradient_of_the_bethe_log_partition_is_the_factor_beliefs():
    # Stationary in the messages: at the fixed point the gradient needs no derivative of them.
    graph, log_potentials, _ = build(loopy(10, structure=CYCLE))

    @jax.jit
    def solve(tables):
        def energy(tables):
            solution = infer(graph, tables, SOLVER, factor_beliefs=True, throw=False)
            return solution.log_partition, solution

        return jax.grad(energy, has_aux=True)(tables)

    slope, solution = solve(log_potentials)
    assert bool(solution.converged)
    # Tolerance times the condition of the iteration.
    close(slope, solution.factor_beliefs, 1e-11)


def test_derivatives_stay_finite_under_contradiction():
    graph = FactorGraph([2, 2], [(0, 1), (0,)])
    log_potentials = graph.pack([np.array([[0.0, -INF], [-INF, 0.0]]), np.zeros(2)])
    evidence = graph.log_evidence({0: 0, 1: 1})

    def energy(log_potentials):
        solution = infer(graph, log_potentials, DykstraHybrid(), log_evidence=evidence, throw=False)
        return sum(jnp.sum(b) for b in solution.beliefs)

    slope = jax.jit(jax.grad(energy))(log_potentials)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_rounding_does_not_pile_up(seed):
    graph, log_potentials, _ = build(loopy(seed, structure=CYCLE))
    solver = DykstraHybrid(tolerance=0.0)
    options = {"max_steps": 3000, "throw": False}
    got = infer(graph, log_potentials, solver, **options)
    want = infer(graph, log_potentials, BeliefPropagation(tolerance=0.0), **options)
    close(got.beliefs, want.beliefs, 1e-13)  # as good after 3000 steps as after 30
