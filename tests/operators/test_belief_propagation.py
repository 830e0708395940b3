"""Belief propagation: exact on trees, damping, tolerance, warm starts, evidence, verdicts."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from klprojax import (
    RESULTS,
    BeliefPropagation,
    FactorGraph,
    Flooding,
    Residual,
    Sequential,
    TreeSweep,
    infer,
)

from ._enumeration import build, enumerate_exact, joint_log_table, models, random_tables

SCHEDULES = [Flooding(), Residual(), Sequential(), TreeSweep()]
ITERATIVE = SCHEDULES[:3]
# A dozen messages, each a sum of a few exponentials: tens of roundings of 2e-16 on numbers of size
# 10; the iterations stop at a residual of 1e-13.
EXACT = 1e-11


def of_type(schedule):
    return type(schedule).__name__


@lru_cache
def tree(zeros=0.15):
    """A forest with arities 0 to 4, cardinalities 1 to 4, zeros, an isolated variable."""
    cards = [2, 3, 4, 1, 2, 3, 2, 2]
    scopes = [(0, 1), (2, 1), (2, 3, 4, 5), (0,), (), (6,), (5,)]
    tables, _ = random_tables(np.random.default_rng(12), cards, scopes, zeros)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


@lru_cache
def loop():
    """A cycle through mixed cardinalities with a pendant and unary factors; finite tables."""
    cards = [2, 3, 4, 2, 2]
    scopes = [(0, 1), (1, 2), (3, 2), (3, 0), (3, 4), (0,), (2,)]
    tables, _ = random_tables(np.random.default_rng(3), cards, scopes, 0.0)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


@lru_cache
def binary_loop():
    """An Ising-like cycle: the structure with an engine of its own."""
    cards = [2] * 5
    scopes = [(0, 1), (1, 2), (2, 3), (3, 0), (3, 4), (1,), (4,)]
    tables, _ = random_tables(np.random.default_rng(4), cards, scopes, 0.0)
    return {"cardinalities": cards, "scopes": scopes, "log_tables": tables}


def exact(model):
    return enumerate_exact(
        model["cardinalities"], model["scopes"], model["log_tables"], model.get("log_evidence")
    )


def assert_beliefs(graph, solution, known, tolerance=EXACT):
    for got, wanted in zip(graph.unpack_variables(solution.beliefs), known.marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
    if solution.factor_log_beliefs is not None:
        for got, wanted in zip(
            graph.unpack(solution.factor_beliefs), known.factor_marginals, strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=tolerance)


# -- exact on trees ----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=of_type)
def test_sum_product_is_exact_on_a_tree(schedule):
    graph, log_potentials, _ = build(tree())
    solution = infer(
        graph,
        log_potentials,
        BeliefPropagation(schedule=schedule, tolerance=1e-13),
        factor_beliefs=True,
    )
    known = exact(tree())
    assert_beliefs(graph, solution, known)
    np.testing.assert_allclose(solution.log_partition, known.log_partition, atol=EXACT)
    assert bool(solution.converged)
    assert bool(solution.result == RESULTS.successful)
    if isinstance(schedule, TreeSweep):
        assert int(solution.steps) == 1
        assert float(solution.residual) == 0
        assert_beliefs(graph, solution, known)
        np.testing.assert_array_equal(solution.marginals[0], solution.beliefs[0])
    else:
        # The longest path has five factors, one more step shows that nothing changes; `Residual`
        # holds some messages back in each step.
        assert 1 < int(solution.steps) <= (15 if isinstance(schedule, Residual) else 6)
        assert float(solution.residual) < 1e-13


@pytest.mark.parametrize("schedule", [Flooding(), Sequential(), TreeSweep()], ids=of_type)
def test_max_product_finds_the_mode_of_a_tree(schedule):
    model = tree()
    graph, log_potentials, _ = build(model)
    solution = infer(
        graph,
        log_potentials,
        BeliefPropagation(semiring="max", schedule=schedule, tolerance=1e-13),
        factor_beliefs=True,
    )
    joint = joint_log_table(**model)
    np.testing.assert_allclose(solution.log_partition, joint.max(), atol=EXACT)
    mode = np.unravel_index(np.argmax(joint), joint.shape)
    for v, belief in enumerate(graph.unpack_variables(solution.beliefs)):
        assert np.argmax(belief) == mode[v]
        # Beliefs are the max-marginals, normalised.
        others = tuple(u for u in range(joint.ndim) if u != v)
        wanted = np.exp(joint.max(axis=others) - joint.max())
        np.testing.assert_allclose(belief, wanted / wanted.sum(), atol=EXACT)


@settings(max_examples=5)
@given(models(forest=True, max_variables=4, max_factors=4, max_cardinality=3, max_arity=3))
def test_one_sweep_is_exact_on_any_forest(model):
    graph, log_potentials, _ = build(model)
    solution = infer(
        graph, log_potentials, BeliefPropagation(schedule=TreeSweep()), factor_beliefs=True
    )
    known = exact(model)
    assert_beliefs(graph, solution, known)
    np.testing.assert_allclose(solution.log_partition, known.log_partition, atol=EXACT)


@pytest.mark.parametrize("cards", [[2, 3], []])
def test_no_factors(cards):
    graph = FactorGraph(cards, [])
    for schedule in SCHEDULES:
        solution = infer(graph, (), BeliefPropagation(schedule=schedule))
        np.testing.assert_allclose(
            solution.log_partition, np.log(np.prod(cards, initial=1.0)), atol=1e-15
        )
        for belief, card in zip(graph.unpack_variables(solution.beliefs), cards, strict=True):
            np.testing.assert_allclose(belief, np.full(card, 1 / card), atol=1e-15)
        assert bool(solution.converged)


def test_approximate_beliefs_are_not_called_marginals():
    graph, log_potentials, _ = build(loop())
    solution = infer(graph, log_potentials, BeliefPropagation())
    with pytest.raises(ValueError, match=r"approximate beliefs, not marginals: read `solution.bel"):
        solution.marginals
    with pytest.raises(ValueError, match=r"Ask for them: infer\(..., factor_beliefs=True\)"):
        solution.factor_beliefs


# -- loopy graphs: schedules and engines agree at a fixed point ----------------------------------


@lru_cache
def fixed_point(model):
    """The undamped flooding fixed point of `loop` or `binary_loop` in the log domain."""
    graph, log_potentials, _ = build(model())
    return infer(
        graph,
        log_potentials,
        BeliefPropagation(tolerance=1e-13, engine="log"),
        factor_beliefs=True,
    )


@pytest.mark.parametrize("model", [loop, binary_loop])
@pytest.mark.parametrize(
    "options",
    [
        {"engine": "fast"},
        {"damping": 0.3},
        {"schedule": Residual(0.8)},
        {"schedule": Sequential(), "damping": 0.2},
    ],
    ids=str,
)
def test_schedules_engines_and_damping_share_the_fixed_point(model, options):
    graph, log_potentials, _ = build(model())
    solution = infer(graph, log_potentials, BeliefPropagation(tolerance=1e-13, **options))
    wanted = fixed_point(model)
    # Stopping at a change of 1e-13 leaves an error of that size over (1 - contraction rate), and
    # the cycles contract by about a half a step.
    for got, belief in zip(solution.beliefs, wanted.beliefs, strict=True):
        np.testing.assert_allclose(got, belief, atol=1e-11)
    np.testing.assert_allclose(solution.log_partition, wanted.log_partition, atol=1e-11)


def test_factor_beliefs_agree_with_variable_beliefs_at_a_fixed_point():
    graph, _, _ = build(loop())
    solution = fixed_point(loop)
    beliefs = graph.unpack_variables(solution.beliefs)
    for scope, table in zip(loop()["scopes"], graph.unpack(solution.factor_beliefs), strict=True):
        table = np.asarray(table).reshape([loop()["cardinalities"][v] for v in scope])
        for axis, v in enumerate(scope):
            others = tuple(a for a in range(len(scope)) if a != axis)
            np.testing.assert_allclose(table.sum(axis=others), beliefs[v], atol=1e-11)


def test_damping_mixes_old_and_new_geometrically():
    graph, log_potentials, _ = build(loop())
    plain, damped = BeliefPropagation(), BeliefPropagation(damping=0.25)
    old = plain.step(graph, log_potentials, plain.init(graph, log_potentials))
    new = plain.step(graph, log_potentials, old)
    mixed = damped.step(graph, log_potentials, old)
    for a, b, m in zip(old.messages, new.messages, mixed.messages, strict=True):
        wanted = np.exp(0.75 * b + 0.25 * a)
        wanted = wanted / wanted.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.exp(m), wanted, atol=1e-14)  # a few roundings
    change = max(
        float(jnp.max(jnp.abs(jnp.exp(m) - jnp.exp(a))))
        for m, a in zip(mixed.messages, old.messages, strict=True)
    )
    np.testing.assert_allclose(mixed.residual, change, rtol=1e-12)


def test_driving_the_loop_by_hand():
    graph, log_potentials, _ = build(loop())
    solver = BeliefPropagation(tolerance=1e-8, engine="log")
    state, steps = solver.init(graph, log_potentials), 0
    while not solver.terminate(state)[0]:
        state, steps = solver.step(graph, log_potentials, state), steps + 1
    solution = infer(graph, log_potentials, solver)
    assert int(solution.steps) == steps
    for got, wanted in zip(solution.state.messages, state.messages, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-13)  # same formulas, other fusion
    np.testing.assert_allclose(solution.residual, state.residual, rtol=1e-3)  # a difference


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "log"])
def test_tolerance_decides_when_to_stop(engine):
    graph, log_potentials, _ = build(loop())
    steps = []
    for tolerance in (1e-2, 1e-9):
        solution = infer(
            graph, log_potentials, BeliefPropagation(tolerance=tolerance, engine=engine)
        )
        assert float(solution.residual) < tolerance
        assert bool(solution.converged)
        steps.append(int(solution.steps))
    assert steps[0] < steps[1] < 200


def test_tolerance_zero_runs_all_steps_and_is_no_failure():
    graph, log_potentials, _ = build(loop())
    solution = infer(graph, log_potentials, BeliefPropagation(tolerance=0.0), max_steps=77)
    assert int(solution.steps) == 77
    assert bool(solution.result == RESULTS.successful)
    # Long converged: what one more step would change is rounding.
    assert float(solution.residual) < 1e-14
    early = infer(graph, log_potentials, BeliefPropagation(tolerance=0.0), max_steps=2)
    assert float(early.residual) > 1e-3


def test_running_out_of_steps_is_an_error_with_advice():
    graph, log_potentials, _ = build(loop())
    solver = BeliefPropagation(tolerance=1e-12)
    with pytest.raises(RuntimeError, match="still changing by more than the tolerance after max"):
        infer(graph, log_potentials, solver, max_steps=3)
    solution = infer(graph, log_potentials, solver, max_steps=3, throw=False)
    assert bool(solution.result == RESULTS.not_converged)
    assert not bool(solution.converged)
    assert int(solution.steps) == 3
    assert float(solution.residual) >= 1e-12


def test_a_tolerance_below_rounding_is_called_that():
    rng = np.random.default_rng(0)
    rows = np.array([(i, j) for i in range(12) for j in range(i)])
    tables = (0.2 * rng.normal(size=(len(rows), 3, 3))).astype(np.float32)
    graph = FactorGraph([3] * 12, [rows])
    log_potentials = graph.pack([tables])
    # Half a rounding of float32: the messages settle into moves of one or two of them.
    solver = BeliefPropagation(tolerance=3e-8)
    solution = infer(graph, log_potentials, solver, throw=False)
    assert bool(solution.result == RESULTS.limited_by_rounding)
    assert not solution.converged
    with pytest.raises(RuntimeError, match="as good as this float type allows"):
        infer(graph, log_potentials, solver)


def test_a_frustrated_cycle_is_flagged():
    # Two graphs glued: strong mixed couplings with fields on a complete graph, where flooding
    # jumps for ever between states.
    n = 6
    rng = np.random.default_rng(7)
    rows = np.array([(i, j) for i in range(n) for j in range(i)])
    signs = rng.choice([-1.0, 1.0], len(rows))
    table = 4.0 * signs[:, None, None] * np.array([[1.0, -1.0], [-1.0, 1.0]])
    graph = FactorGraph([2] * n, [rows, np.arange(n)[:, None]])
    log_potentials = graph.pack([table, rng.normal(size=(n, 2))])
    solution = infer(graph, log_potentials, BeliefPropagation(), max_steps=500, throw=False)
    assert bool(solution.result == RESULTS.not_converged)
    for belief in solution.beliefs:
        assert np.isfinite(belief).all()
    assert np.isfinite(solution.log_partition)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_messages_that_zeros_amplify_are_called_diverged_not_a_contradiction(dtype):
    # Both sides of a complete bipartite graph want state 1 and neighbours must differ: under
    # flooding every message flips its sign and doubles in each step.
    differ = np.array([[-np.inf, 0.0], [0.0, -np.inf]], dtype)
    pairs = np.array([(i, j) for i in range(3) for j in range(3, 6)])
    graph = FactorGraph([2] * 6, [pairs, np.arange(6)[:, None]])
    tables = [np.broadcast_to(differ, (9, 2, 2)), np.tile(np.array([0.0, 0.1], dtype), (6, 1))]
    log_potentials = graph.pack(tables)
    solution = infer(graph, log_potentials, BeliefPropagation(), max_steps=3000, throw=False)
    assert bool(solution.result == RESULTS.diverged)
    assert not solution.converged
    assert int(solution.steps) < 3000
    for belief in solution.beliefs:
        assert np.isfinite(belief).all()
    assert np.isfinite(solution.log_partition)
    with pytest.raises(RuntimeError, match=r"grow without bound.*Add damping"):
        infer(graph, log_potentials, BeliefPropagation(), max_steps=3000)
    damped = infer(graph, log_potentials, BeliefPropagation(damping=0.5), max_steps=100)
    # By symmetry; the tolerance is that of the messages, 1e-6.
    np.testing.assert_allclose(damped.beliefs[0], 0.5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"engine": "log"}, {"schedule": Sequential()}], ids=str)
def test_a_warm_start_converges_at_once(options):
    graph, log_potentials, _ = build(loop())
    solver = BeliefPropagation(tolerance=1e-9, **options)
    cold = infer(graph, log_potentials, solver)
    warm = infer(graph, log_potentials, solver, init=cold.state)
    assert int(warm.steps) == 1 < int(cold.steps)
    # A slightly different model is near, too.
    moved = jax.tree.map(lambda t: t + 1e-6 * jnp.cos(t), log_potentials)
    again = infer(graph, moved, solver, init=cold.state)
    assert int(again.steps) < int(cold.steps)


# -- the Bethe log-partition ---------------------------------------------------------------------


def test_bethe_gradient_with_messages_held_fixed_is_the_factor_beliefs():
    graph, log_potentials, _ = build(loop())
    held = jax.lax.stop_gradient(fixed_point(loop).state)
    solver = BeliefPropagation(tolerance=0.0, engine="log")

    def bethe(log_potentials):
        # One step from the fixed point changes nothing, and the Bethe log-partition is stationary
        # in the messages there, so the derivative through that step vanishes too.
        return infer(graph, log_potentials, solver, init=held, max_steps=1).log_partition

    for got, wanted in zip(
        jax.grad(bethe)(log_potentials), fixed_point(loop).factor_beliefs, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-11)  # the messages' error, see above


def test_bethe_gradient_through_the_iteration_is_the_factor_beliefs():
    graph, log_potentials, _ = build(binary_loop())

    def bethe(log_potentials):
        return infer(graph, log_potentials, BeliefPropagation(tolerance=1e-13)).log_partition

    for got, wanted in zip(
        jax.grad(bethe)(log_potentials), fixed_point(binary_loop).factor_beliefs, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-10)


# -- evidence that excludes states ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "schedule", "dtype"),
    [
        ([2, 3, 4, 3, 2], Flooding(), np.float64),
        ([2, 3, 4, 3, 2], TreeSweep(), np.float32),
        ([2] * 5, Flooding(), np.float32),
    ],
    ids=["flooding", "sweep", "binary"],
)
def test_observing_the_middle_gives_finite_beliefs_and_gradients(cards, schedule, dtype):
    # float32: tens of roundings of 6e-8 on numbers of size 10.
    tolerance = EXACT if dtype == np.float64 else 2e-5
    rng = np.random.default_rng(6)
    scopes = [(v, v + 1) for v in range(4)]
    tables = [(rng.integers(-8, 8, size=[cards[v] for v in s]) / 4).astype(dtype) for s in scopes]
    graph = FactorGraph(cards, scopes)
    log_potentials, log_evidence = graph.pack(tables, dtype), graph.log_evidence({2: 1}, dtype)
    known = enumerate_exact(
        cards, scopes, tables, [np.asarray(t) for t in graph.unpack_variables(log_evidence)]
    )
    solver = BeliefPropagation(schedule=schedule, tolerance=1e-13 if dtype == np.float64 else 1e-6)

    def both(log_potentials, log_evidence):
        solution = infer(graph, log_potentials, solver, log_evidence=log_evidence, max_steps=20)
        end = graph.unpack_variables(solution.log_beliefs)[0][0]
        return jnp.stack([solution.log_partition, end]), solution

    slopes, solution = jax.jacrev(both, argnums=(0, 1), has_aux=True)(log_potentials, log_evidence)
    assert solution.log_partition.dtype == dtype
    np.testing.assert_allclose(solution.log_partition, known.log_partition, rtol=tolerance)
    assert_beliefs(graph, solution, known, tolerance)
    # On a tree the Bethe log-partition is exact, so its slopes are the exact marginals.
    by_table, by_evidence = jax.tree.map(lambda t: t[0], slopes)
    for got, wanted in zip(graph.unpack(by_table), known.factor_marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
    for got, wanted in zip(graph.unpack_variables(by_evidence), known.marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
    # An observation cuts the path: nothing beyond it moves the belief of the first variable.
    by_table, by_evidence = jax.tree.map(lambda t: t[1], slopes)
    tables = graph.unpack(by_table)
    assert all(np.isfinite(t).all() for t in (*tables, *by_evidence))
    assert abs(tables[0]).max() > 1e-3
    np.testing.assert_allclose(tables[3], 0.0, atol=tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=of_type)
def test_contradictory_evidence_is_an_error_that_says_so(schedule):
    equal = np.where(np.eye(2) > 0, 0.0, -np.inf)
    graph = FactorGraph([2, 2, 2], [(0, 1), (1, 2)])
    log_potentials = graph.pack([equal, equal])
    evidence = graph.log_evidence({0: 0, 2: 1})
    solver = BeliefPropagation(schedule=schedule)
    with pytest.raises(RuntimeError, match="Every joint state has probability zero"):
        infer(graph, log_potentials, solver, log_evidence=evidence)
    solution = infer(graph, log_potentials, solver, log_evidence=evidence, throw=False)
    assert bool(solution.result == RESULTS.contradiction)
    assert float(solution.log_partition) == -np.inf
    assert not any(np.isnan(b).any() for b in solution.beliefs)


@pytest.mark.parametrize("engine", ["auto", "log"])
def test_evidence_without_any_state_left_is_a_contradiction(engine):
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack([np.zeros((2, 2))])
    evidence = graph.log_evidence({0: np.full(2, -np.inf)})
    with pytest.raises(RuntimeError, match="Every joint state has probability zero"):
        infer(graph, log_potentials, BeliefPropagation(engine=engine), log_evidence=evidence)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(2, 2), (2, 3)])
def test_nan_and_positive_infinity_are_reported(shape, bad):
    graph = FactorGraph(shape, [(0, 1)])
    table = np.zeros(shape)
    table[0, 1] = bad
    log_potentials = graph.pack([table])
    with pytest.raises(RuntimeError, match="A NaN or an infinite positive value appeared"):
        infer(graph, log_potentials, BeliefPropagation())
    solution = infer(graph, log_potentials, BeliefPropagation(), throw=False)
    assert bool(solution.result == RESULTS.nonfinite)


def test_the_fast_engine_says_when_numbers_are_out_of_its_range():
    graph = FactorGraph([2, 3], [(0, 1)])
    log_potentials = graph.pack([np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, 0.0]])])
    with pytest.raises(RuntimeError, match="engine='fast' met potentials beyond its range"):
        infer(graph, log_potentials, BeliefPropagation(engine="fast"))
    solution = infer(graph, log_potentials, BeliefPropagation(engine="fast"), throw=False)
    assert bool(solution.result == RESULTS.out_of_range)
    # "auto" takes the log domain instead, inside jit too, where numbers are unknown.
    for run in (infer, jax.jit(infer, static_argnums=(0, 2))):
        beliefs = graph.unpack_variables(run(graph, log_potentials, BeliefPropagation()).beliefs)
        np.testing.assert_allclose(beliefs[1], [0.4, 0.2, 0.4], atol=1e-14)


def test_huge_potentials_stay_exact():
    # Spans of 1e4 are far beyond exp: "auto" must not take the exponentiated tables.
    model = tree(0.0)
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    tables = [1e4 * t for t in model["log_tables"]]
    known = enumerate_exact(model["cardinalities"], model["scopes"], tables)
    # Messages this saturated change no probability for a while; they must not count as settled.
    solution = infer(graph, graph.pack(tables), BeliefPropagation(), max_steps=20)
    assert bool(solution.converged)
    # Rounding of numbers of size 1e5.
    assert_beliefs(graph, solution, known, 1e-9)
    np.testing.assert_allclose(solution.log_partition, known.log_partition, rtol=1e-14)


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 1.0}, r"damping is 1.0; it must be in \[0, 1\)"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"tolerance": -1e-3}, "tolerance is -0.001; it must be at least 0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BeliefPropagation(**options)


def test_fast_engine_where_there_is_none():
    graph, log_potentials, _ = build(loop())
    with pytest.raises(ValueError, match="engine='fast' has no engine for this schedule"):
        infer(graph, log_potentials, BeliefPropagation(engine="fast", schedule=Sequential()))
