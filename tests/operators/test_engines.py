"""Every engine of belief propagation computes the same iterates, in range and out of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax as kp
from klprojax.operators._messages import batched
from klprojax.operators._odds_engine import OddsFlooding
from tests.operators._graphs import loopy_binary, loopy_mixed


def run(graph, log_potentials, steps, **options):
    solver = kp.BeliefPropagation(tolerance=0.0, **options)
    return kp.infer(graph, log_potentials, solver, max_steps=steps, throw=False)


@functools.cache
def run_by_logs(make, steps, damping, semiring):
    graph, log_potentials = make(scale=2.0)
    return run(graph, log_potentials, steps, engine="log", damping=damping, semiring=semiring)


@pytest.mark.parametrize(
    ("make", "damping", "semiring"),
    [(loopy_binary, 0.0, "sum"), (loopy_binary, 0.4, "max"), (loopy_mixed, 0.4, "sum")],
)
@pytest.mark.parametrize("engine", ["fast", "auto"])
# Three steps: not yet settled, so that a fault of any of them shows.
@pytest.mark.parametrize("steps", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_every_engine_computes_the_same_iterates(make, damping, semiring, steps, engine):
    graph, log_potentials = make(scale=2.0)
    options = {"damping": damping, "semiring": semiring}
    slow = run_by_logs(make, steps, **options)
    # "auto" takes odds in the first case, what "fast" takes in the others.
    fast = run(graph, log_potentials, steps, engine=engine, **options)
    # Different order of the same float64 operations, a few steps.
    for a, b in zip(slow.state.messages, fast.state.messages, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    np.testing.assert_allclose(slow.log_partition, fast.log_partition, atol=1e-11)
    np.testing.assert_allclose(slow.residual, fast.residual, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 5.0, 50.0, 500.0])
@pytest.mark.parametrize("observed", [False, True])
def test_odds_are_used_where_they_fit(scale, observed):
    graph, log_potentials = loopy_binary(scale=scale)
    evidence = graph.log_evidence({0: 1}) if observed else graph.log_evidence()
    safe = bool(OddsFlooding().is_safe(graph, batched(graph, log_potentials), evidence))
    # float64 holds odds up to e^709, here a product of ten factors of about thrice the scale.
    # Observed variables have infinite odds.
    assert safe == (scale < 50.0 and not observed)
    solver = kp.BeliefPropagation(tolerance=0.0)
    auto, slow = (
        kp.infer(graph, log_potentials, s, log_evidence=evidence, max_steps=7)
        for s in (solver, kp.BeliefPropagation(tolerance=0.0, engine="log"))
    )
    for got, wanted in zip(auto.beliefs, slow.beliefs, strict=True):
        # Seven steps of numbers of size `scale` and their rounding.
        np.testing.assert_allclose(got, wanted, atol=1e-13 * scale)


@pytest.mark.parametrize("make", [loopy_binary, loopy_mixed])
@pytest.mark.parametrize("traced", [False, True])
def test_large_potentials_do_not_underflow_to_wrong_answers(make, traced):
    graph, log_potentials = make(scale=1e4)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), log_potentials)
    # The same rounded numbers in float64 and the log domain.
    rounded = jax.tree.map(lambda x: x.astype(jnp.float64), single)
    wanted = run(graph, rounded, 3, engine="log")
    call = lambda tables: run(graph, tables, 3)  # noqa: E731
    solution = (jax.jit(call) if traced else call)(single)
    for got, exact in zip(solution.beliefs, wanted.beliefs, strict=True):
        assert got.dtype == jnp.float32
        # Log-messages near 1e4 have a float32 spacing of 1e-3; a few of them add up.
        np.testing.assert_allclose(got, exact, atol=2e-2)


def test_shared_tables_are_broadcast_in_every_engine():
    pairs = np.array([[0, 1], [1, 2], [2, 0]])
    for card in (2, 3):
        graph = kp.FactorGraph([card] * 3, [pairs, (0,)])
        rng = np.random.default_rng(0)
        table, unary = rng.normal(size=(card, card)), rng.normal(size=card)
        shared = graph.pack([table, unary])
        copied = graph.pack([np.stack([table] * 3), unary])
        assert shared[0].shape == (card, card)
        many = run(graph, copied, 4, engine="log")
        for engine in ("log", "fast", "auto"):
            one = run(graph, shared, 4, engine=engine)
            for a, b in zip(one.state.messages, many.state.messages, strict=True):
                # Four steps of float64.
                np.testing.assert_allclose(a, b, atol=1e-12)


def test_no_wiring_is_baked_into_the_compiled_program():
    n = 4000
    graph = kp.FactorGraph([2] * n, [np.stack([np.arange(n), (np.arange(n) + 1) % n], 1)])
    tables = graph.pack([np.random.default_rng(0).normal(size=(n, 2, 2))])
    solver = kp.BeliefPropagation(tolerance=0.0, engine="fast")
    call = jax.jit(lambda g, t: kp.infer(g, t, solver, max_steps=5, throw=False).beliefs)
    text = call.lower(graph, tables).as_text()
    # Constants of n numbers would make the text grow by several times n characters.
    assert len(text) < 20 * n
