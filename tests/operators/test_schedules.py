"""Schedules: what each step updates, in what order, and on which graphs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax import (
    BeliefPropagation,
    FactorGraph,
    Flooding,
    Residual,
    Sequential,
    TreeSweep,
    infer,
)
from klprojax.operators._schedules import is_forest, pad_batches

from ._enumeration import models


def members(graph, batches):
    """Per batch, the (group, row) of its factors; padding left out."""
    steps = len(batches[0]) if batches else 0
    assert all(len(table) == steps for table in batches)
    return [
        [
            (g, int(row))
            for g, (table, group) in enumerate(zip(batches, graph.signature.groups, strict=True))
            for row in table[step]
            if row < group.count
        ]
        for step in range(steps)
    ]


def variables_of(graph, factor):
    return set(graph.group_scopes[factor[0]][factor[1]].tolist())


def path(n):
    return FactorGraph([2] * n, [np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)])


# -- batches -----------------------------------------------------------------------------------


@given(models(max_variables=8, max_factors=12))
def test_sequential_updates_every_factor_once_in_independent_sets(model):
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    batches = members(graph, Sequential().batches(graph))
    flat = [factor for batch in batches for factor in batch]
    assert len(flat) == len(set(flat)) == graph.num_factors
    for batch in batches:
        touched = [v for factor in batch for v in variables_of(graph, factor)]
        assert len(touched) == len(set(touched))


@given(models(max_variables=8, max_factors=12, forest=True))
def test_a_tree_sweep_goes_up_and_down_in_order(model):
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    assert is_forest(graph)
    batches = members(graph, TreeSweep().batches(graph))
    half = len(batches) // 2
    when = [
        {factor: t for t, batch in enumerate(part) for factor in batch}
        for part in (batches[:half], batches[half:])
    ]
    for up_or_down in when:
        assert len(up_or_down) == graph.num_factors
    # Neighbours never update together, and the way down is the way up reversed.
    factors = list(when[0])
    for one in factors:
        for two in factors:
            if one != two and variables_of(graph, one) & variables_of(graph, two):
                up = when[0][one] - when[0][two]
                down = when[1][one] - when[1][two]
                # Factors that meet at the variable nearer to the root may share a level: they do
                # not pass messages through each other on the way up.
                assert up * down <= 0


def test_a_tree_sweep_starts_in_the_middle_of_a_path():
    # Rooted at an end, a path of 64 factors would take 2 * 64 batches.
    graph = path(65)
    assert len(members(graph, TreeSweep().batches(graph))) <= 2 * 33


def test_long_paths_need_no_recursion():
    graph = path(5000)
    assert is_forest(graph)
    assert len(TreeSweep().batches(graph)[0]) >= 2 * 2499


def test_one_wide_level_does_not_pad_the_others():
    # 1000 factors in level 0, then 100 levels of one factor each.
    levels = [np.concatenate([np.zeros(1000, int), np.arange(1, 101)])]
    (table,) = pad_batches(levels)
    assert table.size < 12_000  # 101 batches of width 1000 would be 101,000
    assert sorted(table[table < 1100].tolist()) == list(range(1100))


@given(st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=3))
def test_padding_keeps_levels_in_order(levels):
    arrays = [np.array(level, int) for level in levels]
    batches = pad_batches(arrays)
    for level, table in zip(arrays, batches, strict=True):
        rows = table[table < len(level)].tolist()
        assert sorted(rows) == list(range(len(level)))
        assert level[rows].tolist() == sorted(level.tolist())
    # Across groups, too: a batch holds one level.
    steps = len(batches[0])
    now = -1
    for step in range(steps):
        here = {
            int(level[row])
            for level, table in zip(arrays, batches, strict=True)
            for row in table[step]
            if row < len(level)
        }
        assert len(here) <= 1
        if here:
            assert here >= {now} or min(here) > now
            now = min(here)


@pytest.mark.parametrize(
    ("scopes", "forest"),
    [
        ([(0, 1), (1, 2), (2, 3)], True),
        ([(0, 1, 2), (2, 3), (0,), (0,)], True),
        ([], True),
        ([(0, 1), (1, 2), (2, 0)], False),
        ([(0, 1), (1, 0)], False),  # two factors on one pair make a cycle of length two
        ([(0, 1, 2), (1, 3, 2)], False),
    ],
)
def test_forests(scopes, forest):
    graph = FactorGraph([2] * 4, scopes)
    assert is_forest(graph) == forest
    if not forest:
        with pytest.raises(
            ValueError, match=r"TreeSweep needs a graph without cycles, but variable \d is on one"
        ):
            TreeSweep().batches(graph)


def test_without_factors_there_is_nothing_to_order():
    graph = FactorGraph([2, 2], [])
    assert Sequential().batches(graph) is TreeSweep().batches(graph) is None
    assert Flooding().batches(graph) is Residual().batches(graph) is None


# -- effect ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match=r"Residual threshold is .*; it must be in \(0, 1\]"):
        Residual(threshold)


def frustrated():
    """A 4 x 4 spin glass on which flooding oscillates and the other schedules settle."""
    n = 4
    index = np.arange(n * n).reshape(n, n)
    rows = np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1),
        ]
    )
    # Repulsive couplings: flooding from uniform messages with a field flips all spins each step.
    table = -1.5 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    graph = FactorGraph([2] * n * n, [rows, np.arange(n * n)[:, None]])
    field = np.array([0.3, -0.3])
    return graph, graph.pack([table, field])


def test_schedules_that_settle_where_flooding_oscillates():
    graph, log_potentials = frustrated()
    solutions = {
        name: infer(
            graph,
            log_potentials,
            BeliefPropagation(schedule=schedule, tolerance=1e-6),
            max_steps=400,
            throw=False,
        )
        for name, schedule in (
            ("flooding", Flooding()),
            ("sequential", Sequential()),
            ("residual", Residual(1.0)),
        )
    }
    assert not bool(solutions["flooding"].converged)
    assert bool(solutions["sequential"].converged)
    assert bool(solutions["residual"].converged)


def test_sequential_takes_fewer_steps_than_flooding_on_a_path():
    n = 40
    graph = path(n)
    rng = np.random.default_rng(0)
    log_potentials = graph.pack([rng.normal(size=(n - 1, 2, 2))])
    steps = {
        type(schedule): int(
            infer(
                graph, log_potentials, BeliefPropagation(schedule=schedule, tolerance=1e-12)
            ).steps
        )
        for schedule in (Flooding(), Sequential())
    }
    # Two colours: information crosses two factors a step instead of one.
    assert steps[Sequential] < 0.75 * steps[Flooding]


def test_residual_moves_only_the_messages_that_change_most():
    graph = path(6)
    rng = np.random.default_rng(1)
    log_potentials = graph.pack([rng.normal(size=(5, 2, 2))])
    everything = BeliefPropagation()
    state = jax.jit(everything.init)(graph, log_potentials)
    new = jax.jit(everything.step)(graph, log_potentials, state)
    for threshold in (1.0, 0.5, 0.01):
        solver = BeliefPropagation(schedule=Residual(threshold))
        kept = jax.jit(solver.step)(graph, log_potentials, state)
        for before, proposed, got in zip(state.messages, new.messages, kept.messages, strict=True):
            change = jnp.max(jnp.abs(jnp.exp(proposed) - jnp.exp(before)), axis=1)
            moved = change >= threshold * new.residual
            np.testing.assert_array_equal(got, jnp.where(moved[:, None], proposed, before))
            assert 1 <= int(moved.sum()) < (len(moved) if threshold > 0.1 else 11)


@pytest.mark.parametrize("schedule", [Flooding(), Sequential(), TreeSweep()])
def test_a_hub_with_hundreds_of_factors(schedule):
    rng = np.random.default_rng(3)
    n = 300
    rows = np.array([[0, v] for v in range(1, n + 1)])
    graph = FactorGraph([3] * (n + 1), [rows])
    table = rng.normal(size=(n, 3, 3))
    solution = infer(graph, graph.pack([table]), BeliefPropagation(schedule=schedule))
    at_hub = np.logaddexp.reduce(table, axis=2).sum(axis=0)
    log_partition = np.logaddexp.reduce(at_hub)
    beliefs = graph.unpack_variables(solution.beliefs)
    # Sums of 300 terms of size 1: 1e-13 absolute.
    np.testing.assert_allclose(beliefs[0], np.exp(at_hub - log_partition), atol=1e-11)
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=1e-12)
