"""`infer` under jit, vmap, jvp and grad, with the graph closed over and as an argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import (
    BeliefPropagation,
    Elimination,
    FactorGraph,
    Residual,
    Sequential,
    TreeSweep,
    UnrolledAdjoint,
    infer,
)

# Central differences with h = 1e-5 err by h^2 times a third derivative of size 1..10, and by
# rounding 1e-15 / h: both about 1e-10, on derivatives of size 1e-1 and up.
H = 1e-5
RELATIVE = 1e-6


def problem(mixed=True, cycle=True):
    cards = [2, 3, 2, 3] if mixed else [2] * 4
    scopes = [(0, 1), (1, 2), (2, 3), (0,)] + ([(3, 0)] if cycle else [])
    graph = FactorGraph(cards, scopes)
    rng = np.random.default_rng(11)
    tables = graph.pack([rng.normal(size=[cards[v] for v in s]) for s in scopes])
    evidence = graph.log_evidence({2: rng.normal(size=2)})
    direction = jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), (tables, evidence))
    return graph, (tables, evidence), direction


def loss_of(solver, max_steps=12):
    def loss(graph, point):
        tables, evidence = point
        solution = infer(
            graph, tables, solver, log_evidence=evidence, max_steps=max_steps, throw=False
        )
        weights = [
            jnp.cos(jnp.arange(b.size, dtype=b.dtype)).reshape(b.shape) for b in solution.beliefs
        ]
        return solution.log_partition + sum(
            jnp.sum(w * b) for w, b in zip(weights, solution.beliefs, strict=True)
        )

    return loss


def along(point, direction, size):
    return jax.tree.map(lambda p, d: p + size * d, point, direction)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Tolerance 0, so that the number of steps, part of the function, is the same nearby. Four steps
# are not enough to converge: the derivative is that of the iterate returned.
CASES = {
    "flooding": (BeliefPropagation(tolerance=0.0), {}),
    "log": (BeliefPropagation(tolerance=0.0, engine="log", damping=0.3), {}),
    "binary": (BeliefPropagation(tolerance=0.0), {"mixed": False}),
    "sequential": (BeliefPropagation(tolerance=0.0, schedule=Sequential()), {}),
    "residual": (BeliefPropagation(tolerance=0.0, schedule=Residual()), {}),
    "sweep": (BeliefPropagation(schedule=TreeSweep()), {"cycle": False}),
    "elimination": (Elimination(), {}),
}


@pytest.mark.parametrize(
    "name",
    [
        "flooding",
        "binary",
        "sweep",
        "elimination",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("log", "sequential", "residual")),
    ],
)
def test_jvp_grad_and_vmap_match_finite_differences(name):
    solver, shape = CASES[name]
    graph, point, direction = problem(**shape)
    loss = loss_of(solver, max_steps=4)
    both = jax.jit(jax.value_and_grad(lambda p: loss(graph, p)))
    value, gradient = both(point)
    high, _ = both(along(point, direction, H))
    low, _ = both(along(point, direction, -H))
    slope = dot(gradient, direction)
    assert abs(slope) > 0.1  # a slope of zero would match anything
    np.testing.assert_allclose(slope, (high - low) / (2 * H), rtol=RELATIVE)
    primal, forward = jax.jit(lambda p, d: jax.jvp(lambda q: loss(graph, q), (p,), (d,)))(
        point, direction
    )
    np.testing.assert_allclose(primal, value, rtol=1e-13)  # the same iterate, another program
    np.testing.assert_allclose(forward, slope, rtol=1e-10)
    if name not in ("flooding", "binary", "elimination"):
        return
    # All at once, over potentials and evidence.
    points = [along(point, direction, size) for size in (-1.0, 0.0, 0.5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    batch = jax.jit(jax.vmap(jax.grad(lambda p: loss(graph, p))))(stacked)
    for k, one in enumerate(points):
        for got, wanted in zip(jax.tree.leaves(batch), jax.tree.leaves(both(one)[1]), strict=True):
            np.testing.assert_allclose(got[k], wanted, atol=1e-12)  # a few roundings


def test_the_graph_as_an_argument_of_jit_and_grad():
    graph, point, direction = problem()
    loss = loss_of(BeliefPropagation(tolerance=0.0), max_steps=4)
    through = jax.jit(jax.value_and_grad(loss, argnums=1))
    value, gradient = through(graph, point)
    np.testing.assert_allclose(value, loss(graph, point), rtol=1e-13)
    high, _ = through(graph, along(point, direction, H))
    low, _ = through(graph, along(point, direction, -H))
    np.testing.assert_allclose(dot(gradient, direction), (high - low) / (2 * H), rtol=RELATIVE)


def test_the_default_adjoint_unrolls():
    graph, (tables, _), _ = problem()
    solver = BeliefPropagation(tolerance=0.0, engine="log")
    plain, named = (
        jax.jit(
            jax.grad(
                lambda t, adjoint=adjoint: infer(
                    graph, t, solver, max_steps=4, adjoint=adjoint
                ).log_beliefs[0][0, 0]
            )
        )(tables)
        for adjoint in (None, UnrolledAdjoint())
    )
    for got, wanted in zip(plain, named, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_max_steps_must_be_positive():
    graph, (tables, _), _ = problem()
    with pytest.raises(ValueError, match="max_steps is 0; it must be at least 1"):
        infer(graph, tables, BeliefPropagation(), max_steps=0)


@pytest.mark.parametrize("solver", [Elimination(), BeliefPropagation()], ids=type)
def test_tables_that_a_compiled_function_closes_over(solver):
    # The solvers look at numbers they know; inside `jit` they cannot, whatever the numbers are.
    graph, (tables, evidence), _ = problem(cycle=False)

    def scaled(x):
        return x * infer(graph, tables, solver, log_evidence=evidence, throw=False).log_partition

    # Another engine, the same sums: a few roundings.
    np.testing.assert_allclose(jax.jit(scaled)(2.0), scaled(2.0), rtol=1e-13)
