"""Small problems of known numbers run in numpy: the same iteration, nothing compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klprojax import RESULTS, BeliefPropagation, FactorGraph, infer
from klprojax.operators import _belief_propagation
from klprojax.operators._eager_flooding import EagerFlooding, is_small
from klprojax.operators._messages import batched
from tests.operators._enumeration import enumerate_exact
from tests.reference import bp_sweep

CARDS = [2, 3, 2, 3]
SCOPES = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 1, 2), (3,), ()]
GRAPH = FactorGraph(CARDS, SCOPES)


def draw(seed, size=1.0, zeros=0.0):
    rng = np.random.default_rng(seed)
    tables = [rng.uniform(-size, size, [CARDS[v] for v in scope]) for scope in SCOPES]
    return [np.where(rng.random(t.shape) < zeros, -np.inf, t) for t in tables]


@pytest.fixture(autouse=True)
def _first_calls():
    _belief_propagation._eager_calls.clear()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2]), st.sampled_from(["sum", "max"]))
def test_every_iterate_is_that_of_the_reference(seed, zeros, semiring):
    tables = draw(seed, 3.0, zeros)
    pool = np.sum if semiring == "sum" else np.max
    flooding = EagerFlooding(
        GRAPH, batched(GRAPH, GRAPH.pack(tables, np.float64)), None, semiring, 0.0
    )
    linear, messages = [np.exp(t) for t in tables], bp_sweep.uniform(CARDS, SCOPES)
    start = [
        np.full((len(e), c), -np.log(c)) for e, c in zip(GRAPH.wiring.edges, (2, 3), strict=True)
    ]
    for steps in range(1, 5):
        messages = bp_sweep.sweep(CARDS, SCOPES, linear, messages, pool)
        found = flooding.run(start, 0.0, steps, False)
        wanted = [bp_sweep.into_variable(CARDS, SCOPES, messages, v) for v in range(4)]
        if any(w.sum() == 0 for w in wanted):
            return  # no possible state: the reference has no convention for the messages after
        for got, want in zip(GRAPH.unpack_variables(found.log_beliefs), wanted, strict=True):
            # Sums of a few products, rounded.
            np.testing.assert_allclose(np.exp(got), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (jnp.float32, {}),
        (jnp.float64, {"damping": 0.4}),
        (jnp.float64, {"semiring": "max"}),
        (jnp.float32, {"tolerance": 0.0}),
    ],
    ids=str,
)
def test_the_same_solution_as_compiled(dtype, options):
    compiled = jax.jit(
        lambda tables, evidence, init: infer(
            GRAPH,
            tables,
            BeliefPropagation(engine="log", **options),
            log_evidence=evidence,
            init=init,
            max_steps=40,
            factor_beliefs=True,
            throw=False,
        )
    )
    eps = float(jnp.finfo(dtype).eps)
    for seed, size, zeros in ((0, 1.0, 0.0), (1, 5.0, 0.0), (2, 300.0, 0.0), (3, 2.0, 0.1)):
        _belief_propagation._eager_calls.clear()
        tables = GRAPH.pack(draw(seed, size, zeros), dtype)
        evidence = GRAPH.log_evidence({0: 1, 3: np.array([0.0, -2.0, -np.inf])}, dtype)
        init = infer(GRAPH, tables, BeliefPropagation(**options), max_steps=3, throw=False).state
        got = infer(
            GRAPH,
            tables,
            BeliefPropagation(**options),
            log_evidence=evidence,
            init=init,
            max_steps=40,
            factor_beliefs=True,
            throw=False,
        )
        want = compiled(tables, evidence, init)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert int(got.steps) == int(want.steps)
        assert RESULTS[got.result] == RESULTS[want.result]
        for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert (one.dtype, one.shape) == (two.dtype, two.shape)
            # Forty steps of sums of a few numbers of this size.
            atol = 100 * eps * (1 + size)
            np.testing.assert_allclose(one, two, rtol=0, atol=atol)


def test_verdicts():
    ring = FactorGraph([2, 2, 2], [(0, 1), (1, 2), (2, 0)])
    odd = np.array([[-np.inf, 0.0], [0.0, -np.inf]])
    none = ring.pack([np.full((2, 2), -np.inf)] * 3)
    tables = ring.pack([np.log([[0.9, 0.1], [0.2, 0.8]])] * 3)

    def verdict(tables, tolerance=1e-6, steps=200):
        solver = BeliefPropagation(tolerance=tolerance)
        return infer(ring, tables, solver, max_steps=steps, throw=False).result

    assert verdict(none) == RESULTS.contradiction
    assert verdict(tables) == RESULTS.successful
    assert verdict(tables, steps=1) == RESULTS.not_converged
    assert verdict(tuple(t.at[0, 0, 0].set(jnp.nan) for t in tables)) == RESULTS.nonfinite
    assert verdict(ring.pack([odd] * 3)) == RESULTS.successful  # messages stay uniform


def test_nothing_is_compiled_at_first_and_a_program_is_after_some_calls():
    graph = FactorGraph([3, 3, 3], [(0, 1), (1, 2)])
    rng = np.random.default_rng(0)
    numbers = [rng.normal(size=(3, 3)) for _ in range(2)]
    tables = graph.pack(numbers)
    exact = enumerate_exact([3, 3, 3], [(0, 1), (1, 2)], numbers)
    seen = []
    for _ in range(_belief_propagation._EAGER_CALLS + 1):
        before = _belief_propagation._solve._cached._cache_size()
        solution = infer(graph, tables, BeliefPropagation())
        seen.append(_belief_propagation._solve._cached._cache_size() - before)
        # A tree, to rounding.
        np.testing.assert_allclose(solution.log_partition, exact.log_partition, atol=1e-12)
    assert seen == [0] * _belief_propagation._EAGER_CALLS + [1]


def test_large_problems_are_compiled():
    assert is_small(GRAPH, 1000)
    assert not is_small(GRAPH, 1001)
    pairs = np.stack([np.arange(2**13), np.arange(1, 2**13 + 1)], axis=1)
    assert not is_small(FactorGraph([3] * (2**13 + 1), [pairs]), 10)
