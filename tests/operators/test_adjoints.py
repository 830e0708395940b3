"""Derivatives through belief propagation: implicit, unrolled and finite differences agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax as kp
from tests.operators._graphs import loopy_binary, loopy_mixed

CASES = {
    "binary": (loopy_binary, {"engine": "fast"}),
    "binary, damped, max": (loopy_binary, {"semiring": "max", "damping": 0.3}),
    "mixed": (loopy_mixed, {"engine": "fast"}),
    "mixed, damped, log": (loopy_mixed, {"engine": "log", "damping": 0.2}),
    "mixed, sequential": (loopy_mixed, {"schedule": kp.Sequential()}),
}


def objective(case, adjoint):
    make, options = CASES[case]
    graph, log_potentials = make()
    rng = np.random.default_rng(1)
    evidence = graph.log_evidence({1: 1, 2: rng.normal(size=graph.cardinalities[2])})
    weights = [jnp.asarray(rng.normal(size=e.shape)) for e in evidence]
    solver = kp.BeliefPropagation(tolerance=1e-14, **options)

    def value(log_potentials):
        solution = kp.infer(
            graph,
            log_potentials,
            solver,
            log_evidence=evidence,
            adjoint=adjoint,
            max_steps=200,
            throw=False,
        )
        weighted = [jnp.sum(w * b) for w, b in zip(weights, solution.beliefs, strict=True)]
        return sum(weighted) + 0.1 * solution.log_partition

    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), log_potentials)
    return value, log_potentials, direction


def move(tables, direction, h):
    return jax.tree.map(lambda x, d: x + h * d, tables, direction)


def dot(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("case", "adjoint"),
    [
        ("binary, damped, max", "implicit"),
        ("mixed", "implicit"),
        ("mixed, damped, log", "implicit"),
        ("binary", "unrolled"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("binary", "implicit"),
                ("mixed, sequential", "implicit"),
                ("mixed", "unrolled"),
            )
        ),
    ],
)
def test_derivatives_match_finite_differences(case, adjoint):
    chosen = kp.ImplicitAdjoint() if adjoint == "implicit" else kp.UnrolledAdjoint()
    value, tables, direction = objective(case, chosen)
    h = 1e-5
    both = jax.jit(jax.value_and_grad(value))
    ahead, behind = (both(move(tables, direction, s * h))[0] for s in (1, -1))
    difference = (ahead - behind) / (2 * h)
    forward = jax.jit(lambda t, d: jax.jvp(value, (t,), (d,))[1])(tables, direction)
    reverse = dot(both(tables)[1], direction)
    # Central differences: h^2 = 1e-10 of curvature and 1e-16 / h = 1e-11 of rounding.
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(reverse, difference, rtol=1e-6, atol=1e-9)
    # Two ways to the same number: rounding and the linear solve's 2e-12.
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


@pytest.mark.parametrize("case", ["binary", pytest.param("mixed", marks=pytest.mark.slow)])
def test_second_order_matches_finite_differences(case):
    value, tables, direction = objective(case, kp.ImplicitAdjoint())
    both = jax.jit(lambda t: jax.jvp(jax.grad(value), (t,), (direction,)))
    _, second = both(tables)
    h = 1e-5
    ahead, behind = (both(move(tables, direction, s * h))[0] for s in (1, -1))
    for got, a, b in zip(second, ahead, behind, strict=True):
        # As above, with the gradient's own error of 1e-14 / h on top.
        np.testing.assert_allclose(got, (a - b) / (2 * h), rtol=1e-5, atol=1e-8)


def test_implicit_derivatives_report_and_refuse():
    graph, log_potentials = loopy_binary()
    reports = []

    def gradient(adjoint, steps):
        def value(tables):
            solver = kp.BeliefPropagation(tolerance=0.0, engine="fast")
            solution = kp.infer(graph, tables, solver, adjoint=adjoint, max_steps=steps)
            return solution.beliefs[0][0, 0]

        out = jax.block_until_ready(jax.jit(jax.grad(value))(log_potentials))
        jax.effects_barrier()
        return out

    gradient(kp.ImplicitAdjoint(report=reports.append), 200)
    (report,) = reports
    assert report.trusted
    assert report.mode == "reverse"
    # eps^0.75 = 2e-12 is asked of the linear solve, and the loop has long settled.
    assert report.linear_residual < 2e-11
    assert report.fixed_point_residual < 1e-13
    gradient(kp.ImplicitAdjoint(throw=False, report=reports.append), 2)
    assert not reports[-1].trusted
    with pytest.raises(Exception, match="had not converged where its derivative"):
        gradient(kp.ImplicitAdjoint(), 2)
    with pytest.raises(Exception, match="linear solve of the implicit derivative"):
        gradient(kp.ImplicitAdjoint(max_steps=1), 200)


def test_the_default_stop_is_enough_for_the_default_derivative():
    # The solver stops at a change of 1e-6, the derivative asks for 1.5e-8: the loop must go on.
    graph, tables = loopy_mixed()

    def gradient(solver):
        def value(tables):
            solution = kp.infer(graph, tables, solver, adjoint=kp.ImplicitAdjoint())
            return solution.beliefs[0][0, 0]

        return jax.jit(jax.grad(value))(tables)

    loose = gradient(kp.BeliefPropagation(engine="log"))
    tight = gradient(kp.BeliefPropagation(engine="log", tolerance=1e-14))
    for got, want in zip(loose, tight, strict=True):
        # A change of 1.5e-8 at a rate below 0.9 is 1.5e-7 from the fixed point; slopes follow.
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_implicit_memory_does_not_grow_with_the_iterations():
    side = 40
    index = np.arange(side * side).reshape(side, side)
    right = np.stack([index, np.roll(index, -1, 1)], -1).reshape(-1, 2)
    down = np.stack([index, np.roll(index, -1, 0)], -1).reshape(-1, 2)
    graph = kp.FactorGraph([2] * side**2, [np.concatenate([right, down])])
    tables = graph.pack([np.random.default_rng(0).normal(scale=0.1, size=(2 * side**2, 2, 2))])

    def temporaries(adjoint, steps):
        def value(tables):
            solver = kp.BeliefPropagation(tolerance=0.0, engine="fast")
            solution = kp.infer(
                graph, tables, solver, adjoint=adjoint, max_steps=steps, throw=False
            )
            return jnp.sum(solution.beliefs[0][:, 0] ** 2)

        compiled = jax.jit(jax.value_and_grad(value)).lower(tables).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    flat = [temporaries(kp.ImplicitAdjoint(throw=False), steps) for steps in (50, 800)]
    # Nothing is stored per step, so the sizes agree up to constants.
    assert abs(flat[1] - flat[0]) < 0.1 * flat[0]
    unrolled = [temporaries(kp.UnrolledAdjoint(), steps) for steps in (50, 800)]
    assert unrolled[1] > 1.5 * unrolled[0]


def test_vmap_over_evidence_and_over_potentials():
    graph, log_potentials = loopy_mixed()
    solver = kp.BeliefPropagation(tolerance=0.0)
    rng = np.random.default_rng(0)
    evidence = tuple(jnp.asarray(rng.normal(size=(3, *e.shape))) for e in graph.log_evidence())
    tables = tuple(jnp.asarray(rng.normal(size=(3, *t.shape))) for t in log_potentials)

    @jax.jit
    def beliefs(tables, evidence):
        return kp.infer(graph, tables, solver, log_evidence=evidence, max_steps=6).beliefs

    batch = jax.vmap(beliefs)(tables, evidence)
    shared = jax.vmap(lambda e: beliefs(log_potentials, e))(evidence)
    for k in range(3):
        one = tuple(e[k] for e in evidence)
        for got, wanted in zip(batch, beliefs(tuple(t[k] for t in tables), one), strict=True):
            # Six steps of float64, possibly in two engines.
            np.testing.assert_allclose(got[k], wanted, atol=1e-12)
        for got, wanted in zip(shared, beliefs(log_potentials, one), strict=True):
            np.testing.assert_allclose(got[k], wanted, atol=1e-12)


def test_reverse_mode_of_batches_that_stop_at_different_steps():
    graph, log_potentials = loopy_mixed()
    solver = kp.BeliefPropagation(tolerance=1e-9, engine="log")
    scales = jnp.array([[0.1, 1.0], [0.5, 1.3]])

    def solve(scale):
        return kp.infer(graph, tuple(scale * t for t in log_potentials), solver)

    def sum_and_steps(scale):
        solution = solve(scale)
        return sum(jnp.sum(b**2) for b in solution.beliefs), solution.steps

    alone = jax.jit(jax.vmap(jax.vmap(jax.grad(sum_and_steps, has_aux=True))))
    wanted, steps = alone(scales)
    steps = np.asarray(steps)
    assert len(set(steps.ravel().tolist())) > 2
    batch = jax.vmap(jax.vmap(lambda scale: sum_and_steps(scale)[0]))
    got = jax.jit(jax.grad(lambda s: jnp.sum(batch(s))))(scales)
    np.testing.assert_allclose(got, wanted, rtol=1e-11)  # the same steps, in another program
    # By differences: a fixed point to 1e-9, a step of 1e-4 and its square.
    moved = [solve(scales[1, 1] + step) for step in (-1e-4, 1e-4)]
    low, high = (sum(float(jnp.sum(b**2)) for b in one.beliefs) for one in moved)
    np.testing.assert_allclose(got[1, 1], (high - low) / 2e-4, atol=1e-4)
