"""Prescribed marginals: iterative proportional fitting and its implicit derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from klprojax.geometry import (
    MarginalConstraints,
    ProductFamily,
    i_projection,
    kl_divergence,
    log_marginal,
    log_normalize,
    right_projection,
)

INF = np.inf
SCOPES = [
    pytest.param((2, 3), ((0,), (1,)), id="sinkhorn"),
    pytest.param((2, 3, 2), ((0, 1), (1, 2)), id="overlapping"),
    pytest.param((2, 3, 2), ((2, 0), (1,), (0,)), id="three"),
    pytest.param((2, 3, 2), ((1,),), id="single"),
]


@eqx.filter_jit
def fit(axes, log_targets, log_table, tolerance=1e-13, throw=True, max_steps=5000):
    constraints = MarginalConstraints(list(zip(axes, log_targets, strict=True)))
    return constraints.left_projection(
        log_table, tolerance=tolerance, max_steps=max_steps, throw=throw
    )


def problem(seed, shape, axes, zeros=0.3):
    """A table with zeros and feasible targets: the marginals of another table with its support."""
    rng = np.random.default_rng(seed)
    support = rng.uniform(size=shape) >= zeros
    support.flat[0] = True
    table = jnp.asarray(np.where(support, rng.normal(size=shape), -INF))
    witness = jnp.asarray(np.where(support, rng.normal(size=shape), -INF))
    return table, tuple(log_marginal(log_normalize(witness), scope) for scope in axes)


def incidence(shape, axes):
    rows = []
    index = np.indices(shape).reshape(len(shape), -1)
    for scope in axes:
        for state in np.ndindex(*(shape[axis] for axis in scope)):
            rows.append(np.all(index[list(scope)] == np.array(state)[:, None], axis=0))
    return np.array(rows, float)


def random_members(rng, point, matrix):
    """Tables near `point` with the same `matrix @ table` and no larger support."""
    flat = point.reshape(-1)
    kernel = scipy.linalg.null_space(matrix[:, flat > 0]) if (flat > 0).any() else np.zeros((0, 0))
    for _ in range(5 if kernel.shape[1] else 0):
        move = np.zeros_like(flat)
        move[flat > 0] = kernel @ rng.normal(size=kernel.shape[1])
        falling = move < 0
        longest = np.min(flat[falling] / -move[falling])
        yield (flat + rng.uniform(0.1, 0.9) * longest * move).reshape(point.shape)


@pytest.mark.parametrize(("shape", "axes"), SCOPES)
@given(seed=st.integers(0, 2**32 - 1))
def test_projection_is_feasible_nearest_and_pythagorean(shape, axes, seed):
    table, targets = problem(seed, shape, axes)
    log_q = log_normalize(table)
    result = fit(axes, targets, table)
    assert bool(result.converged)
    assert float(result.residual) <= 1e-13
    probs = np.asarray(jnp.exp(result.value))
    assert np.all(probs[np.isneginf(table)] == 0)
    matrix = incidence(shape, axes)
    wanted = np.concatenate([np.exp(target).reshape(-1) for target in targets])
    # Twice the residual bounds each entry, plus rounding of twelve terms.
    np.testing.assert_allclose(matrix @ probs.reshape(-1), wanted, atol=1e-12)
    nearest = float(kl_divergence(result.value, log_q))
    for member in random_members(np.random.default_rng(seed), probs, matrix):
        assert np.allclose(matrix @ member.reshape(-1), wanted, atol=1e-12)
        with np.errstate(divide="ignore"):
            log_r = jnp.asarray(np.log(member))
        distance = float(kl_divergence(log_r, log_q))
        assert distance >= nearest - 1e-11
        # The multipliers, up to about 10, times the residual 1e-13, and rounding.
        split = float(kl_divergence(log_r, result.value)) + nearest
        assert distance == pytest.approx(split, abs=1e-11)
    again = fit(axes, targets, result.value)
    assert int(again.steps) <= 2  # one sweep, one more if rounding moved it
    np.testing.assert_allclose(np.exp(again.value), probs, atol=1e-12)  # the residual


def test_steps_and_multipliers_describe_the_solution():
    table, targets = problem(0, (2, 3), ((0,), (1,)), zeros=0.0)
    result = fit(((0,), (1,)), targets, table)
    assert 1 < int(result.steps) < 5000
    u, v = result.multipliers
    rebuilt = log_normalize(table) + u[:, None] + v[None, :]
    np.testing.assert_allclose(rebuilt, result.value, atol=1e-12)  # the residual


def test_axes_may_come_in_any_order():
    table, targets = problem(1, (2, 3, 2), ((0, 1), (2,)), zeros=0.0)
    swapped = fit(((1, 0), (2,)), (targets[0].T, targets[1]), table)
    want = fit(((0, 1), (2,)), targets, table).value
    np.testing.assert_allclose(swapped.value, want, atol=1e-13)  # compiled apart: rounding


def test_scales_do_not_matter_and_an_axis_may_be_a_number():
    table, (a, b) = problem(2, (2, 3), ((0,), (1,)), zeros=0.0)
    want = i_projection(MarginalConstraints([(0, a), (1, b)]), table, tolerance=1e-13).value
    got = i_projection(
        MarginalConstraints([(0, a + 3.0), (1, b - 2.0)]), table + 9.0, tolerance=1e-13
    )
    np.testing.assert_allclose(got.value, want, atol=1e-12)  # the residual


def test_uniform_table_projects_to_the_product_of_the_targets():
    a, b = jnp.log(jnp.array([0.2, 0.8])), jnp.log(jnp.array([0.5, 0.25, 0.25]))
    result = fit(((0,), (1,)), (a, b), jnp.zeros((2, 3)))
    want = right_projection(ProductFamily(), result.value).value
    np.testing.assert_allclose(result.value, a[:, None] + b[None, :], atol=1e-14)  # one sweep
    np.testing.assert_allclose(result.value, want, atol=1e-14)


def test_zero_targets_clear_rows():
    table = jnp.array([[0.0, 1.0], [2.0, 0.5], [0.3, 0.1]])
    targets = (jnp.array([-jnp.inf, 0.0, 0.0]), jnp.zeros(2))
    result = fit(((0,), (1,)), targets, table)
    probs = np.exp(result.value)
    assert probs[0].tolist() == [0, 0]
    np.testing.assert_allclose(probs.sum(axis=1), [0, 0.5, 0.5], atol=1e-13)  # the residual
    np.testing.assert_allclose(probs.sum(axis=0), [0.5, 0.5], atol=1e-13)


INFEASIBLE = [
    pytest.param(
        jnp.array([[-jnp.inf, -jnp.inf], [0.0, 0.0]]), (jnp.zeros(2), jnp.zeros(2)), id="empty row"
    ),
    pytest.param(
        # Row 0 wants 0.9 but reaches only column 0, which wants 0.5.
        jnp.array([[0.0, -jnp.inf], [0.0, 0.0]]),
        (jnp.log(jnp.array([0.9, 0.1])), jnp.zeros(2)),
        id="contradiction",
    ),
    pytest.param(jnp.full((2, 2), -jnp.inf), (jnp.zeros(2), jnp.zeros(2)), id="no mass"),
    pytest.param(
        jnp.zeros((2, 2)), (jnp.full(2, -jnp.inf), jnp.zeros(2)), id="target without mass"
    ),
]


@jax.jit
def slopes_of_sinkhorn(table, targets):
    def probs(table, targets):
        return jnp.exp(fit(((0,), (1,)), targets, table, throw=False, max_steps=50).value)

    return jax.jacrev(probs, (0, 1))(table, targets)


@pytest.mark.parametrize(("table", "targets"), INFEASIBLE)
def test_infeasible_targets_are_reported_and_never_nan(table, targets):
    result = fit(((0,), (1,)), targets, table, throw=False)
    assert not result.converged
    assert float(result.residual) > 0.05  # a real gap, not rounding
    for leaf in jax.tree.leaves((result, slopes_of_sinkhorn(table, targets))):
        assert not jnp.isnan(leaf).any()
    with pytest.raises(eqx.EquinoxRuntimeError, match="Iterative proportional fitting did not"):
        fit(((0,), (1,)), targets, table)


def test_too_few_steps_are_reported():
    table, targets = problem(3, (2, 3), ((0,), (1,)), zeros=0.0)
    constraints = MarginalConstraints([((0,), targets[0]), ((1,), targets[1])])
    result = i_projection(constraints, 3 * table, tolerance=1e-13, max_steps=1, throw=False)
    assert not result.converged
    assert int(result.steps) == 1
    assert float(result.residual) > 1e-13


def test_zeros_that_are_not_zeros_of_the_table_are_approached():
    # Only the diagonal is feasible, yet the table is positive above it: fitting converges like 1/n.
    half = jnp.zeros(2)
    result = i_projection(
        MarginalConstraints([(0, half), (1, half)]),
        jnp.array([[0.0, 0.0], [-jnp.inf, 0.0]]),
        tolerance=1e-3,
        max_steps=2000,
    )
    # The residual bounds the mass off the diagonal within a factor two.
    np.testing.assert_allclose(jnp.exp(result.value), [[0.5, 0.0], [0.0, 0.5]], atol=2e-3)


@pytest.mark.parametrize(("shape", "axes"), SCOPES[1:])  # that of two axes: in the tests below
def test_derivatives_match_finite_differences(shape, axes):
    table, targets = problem(10, shape, axes, zeros=0.25)
    assert bool(jnp.isneginf(table).any())
    targets = tuple(target + 0.5 for target in targets)  # off the gauge: scale must not matter

    def probs(table, targets):
        return jnp.exp(fit(axes, targets, table).value)

    # Only perturbations that stay feasible have derivatives: with zeros, move targets together.
    def moved(table, witness):
        return probs(table, tuple(log_marginal(witness, scope) for scope in axes))

    # Fixed point to 1e-13 over a step of 1e-4 gives 1e-9; truncation of order 1e-8.
    check_grads(jax.jit(moved), (table, table), order=1, rtol=1e-6, atol=1e-6)


def check_second_derivatives(function, inputs, tolerance):
    """Compare forward-over-reverse with differences of the exact gradient."""
    move = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), inputs
    )
    gradient = jax.jit(jax.grad(function))
    _, exact = jax.jit(lambda x, v: jax.jvp(jax.grad(function), (x,), (v,)))(inputs, move)
    step = 1e-4
    ahead, behind = (
        gradient(jax.tree.map(lambda x, v, s=s: x + s * v, inputs, move)) for s in (step, -step)
    )
    numeric = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(numeric), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_free_targets_and_second_order():
    table, targets = problem(9, (2, 3), ((0,), (1,)), zeros=0.0)
    weights = jnp.asarray(np.random.default_rng(9).normal(size=(2, 3)))

    def total(inputs):
        table, targets = inputs
        return jnp.sum(weights * jnp.exp(fit(((0,), (1,)), targets, table).value))

    check_grads(jax.jit(total), ((table, targets),), order=1, rtol=1e-6, atol=1e-6)
    # Differences of gradients good to 1e-11 over a step of 1e-4; truncation of order 1e-8.
    check_second_derivatives(total, (table, targets), 1e-6)


def test_derivatives_match_unrolled_sweeps():
    table, (a, b) = problem(10, (3, 4), ((0,), (1,)), zeros=0.0)
    a, b = log_normalize(a), log_normalize(b)

    def unrolled(table, a, b):
        def sweep(both, _):
            u = a - jax.nn.logsumexp(table + both[1][None], axis=1)
            return (u, b - jax.nn.logsumexp(table + u[:, None], axis=0)), None

        (u, v), _ = jax.lax.scan(sweep, (jnp.zeros(3), jnp.zeros(4)), None, length=60)
        return table + u[:, None] + v[None]

    def implicit(table, a, b):
        return fit(((0,), (1,)), (a, b), table).value

    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    want, got = (
        jax.jit(jax.grad(lambda *x, f=f: jnp.sum(weights * f(*x)), (0, 1, 2)))(table, a, b)
        for f in (unrolled, implicit)
    )
    # Gradients for targets differ by the gauge the implicit version removes by normalising.
    want = (want[0], want[1] - jnp.exp(a) * want[1].sum(), want[2] - jnp.exp(b) * want[2].sum())
    for x, y in zip(got, want, strict=True):
        # Residual 1e-13 through a system with condition number below 1e3.
        np.testing.assert_allclose(x, y, atol=1e-9)


def test_multipliers_carry_no_derivative():
    table, targets = problem(11, (2, 3), ((0,), (1,)), zeros=0.0)

    def total(table):
        return jnp.sum(fit(((0,), (1,)), targets, table).multipliers[0])

    assert not jax.grad(total)(table).any()


def test_vmap_over_tables_and_targets():
    problems = [problem(seed, (2, 3), ((0,), (1,)), zeros=0.0) for seed in range(4)]
    tables, targets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)

    def project(table, targets):
        return fit(((0,), (1,)), targets, table)

    batch = jax.vmap(project)(tables, targets)
    gradients = jax.vmap(jax.grad(lambda t, m: project(t, m).value[0, 0]))(tables, targets)
    for k, (table, target) in enumerate(problems):
        single = project(table, target)
        # Each element stops by itself: same steps, rounding apart.
        assert int(batch.steps[k]) == int(single.steps)
        np.testing.assert_allclose(batch.value[k], single.value, atol=1e-12)
        want = jax.grad(lambda t, m: project(t, m).value[0, 0])(table, target)
        np.testing.assert_allclose(gradients[k], want, atol=1e-10)  # linear solve to rounding


def test_zeros_pass_no_derivative():
    table, targets = problem(8, (2, 3), ((0,), (1,)), zeros=0.6)
    absent = jnp.isneginf(table)
    assert bool(absent.any())

    def value(table, targets):
        return fit(((0,), (1,)), targets, table).value

    result, pullback = jax.vjp(value, table, targets)
    # A cotangent on an entry that stays `-inf` must not reach the linear solve.
    ones = jnp.ones_like(result)
    everywhere, present = pullback(ones), pullback(jnp.where(absent, 0.0, ones))
    for x, y in zip(jax.tree.leaves(everywhere), jax.tree.leaves(present), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-11)  # linear solve to rounding
        assert bool(jnp.isfinite(x).all())


def test_second_call_does_not_compile():
    traces = []

    @jax.jit
    def project(table, target):
        traces.append(1)
        return i_projection(MarginalConstraints([(0, target), (1, target)]), table).value

    project(jnp.zeros((2, 2)), jnp.zeros(2))
    project(jnp.ones((2, 2)), jnp.ones(2))
    assert len(traces) == 1


def test_float32():
    table, targets = problem(12, (2, 3), ((0,), (1,)))
    want = fit(((0,), (1,)), targets, table).value
    single = MarginalConstraints(
        [((j,), target.astype(jnp.float32)) for j, target in enumerate(targets)]
    ).left_projection(table.astype(jnp.float32))
    assert single.value.dtype == single.residual.dtype == jnp.float32
    assert bool(single.converged)
    # The default float32 tolerance is 2.4e-5 in total variation.
    np.testing.assert_allclose(jnp.exp(single.value), jnp.exp(want), atol=2e-4)


def transport(seed, size, dtype, scale=0.02):
    """An entropic transport problem with uniform marginals."""
    cost = np.random.default_rng(seed).uniform(size=(size, size))
    return jnp.asarray(-cost / scale, dtype), jnp.zeros(size, dtype)


@pytest.mark.parametrize(
    ("dtype", "count", "size"),
    [
        ("float32", 60, 10),
        ("float64", 2, 100),
        pytest.param("float32", 2, 100, marks=pytest.mark.slow),
        pytest.param("float64", 6, 10, marks=pytest.mark.slow),
    ],
)
def test_the_loop_ends_on_the_residual_reported(dtype, count, size):
    tables, even = jax.tree.map(
        lambda *x: jnp.stack(x), *[transport(seed, size, dtype) for seed in range(count)]
    )
    tolerance = float(jnp.finfo(dtype).eps) ** (2 / 3)
    result = jax.jit(
        jax.vmap(lambda q, t: fit(((0,), (1,)), (t, t), q, None, throw=False, max_steps=50_000))
    )(tables, even)
    assert bool(result.converged.all())
    assert not result.limited_by_rounding.any()
    assert float(result.residual.max()) <= tolerance
    # By another way, in float64: what rounding of entries e^50 apart adds is 50 eps.
    probs = np.exp(np.asarray(result.value, np.float64))
    for axis in (1, 2):
        gap = np.abs(probs.sum(axis=axis) - 1 / size).sum(axis=1).max() / 2
        assert gap <= tolerance + 50 * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_is_recognised_and_named(dtype):
    table, even = transport(1, 10, dtype)
    eps = float(jnp.finfo(dtype).eps)

    def project(tolerance, throw):
        return fit(((0,), (1,)), (even, even), table, tolerance, throw=throw, max_steps=10**6)

    result = project(0.0, False)
    assert bool(result.limited_by_rounding)
    assert not result.converged
    assert int(result.steps) < 20_000  # rounding is reached after some 1000 to 5000 sweeps
    assert float(result.residual) < 50 * eps  # the table's entries are down to -50
    with pytest.raises(eqx.EquinoxRuntimeError, match="below what the floating type can reach"):
        project(0.0, True)


def test_the_default_tolerance_ends_where_rounding_does():
    # Multipliers of 1e4 nats: float32 rounds them to 1e-3, its default tolerance is 2.4e-5.
    rng = np.random.default_rng(0)
    steep = rng.uniform(-1e4, 1e4, size=(10, 1)) + rng.uniform(-1e4, 1e4, size=(1, 10))
    table = jnp.asarray(steep + rng.normal(size=(10, 10)), jnp.float32)
    even = jnp.zeros(10, jnp.float32)
    result = fit(((0,), (1,)), (even, even), table, None)
    assert bool(result.converged)
    assert bool(result.limited_by_rounding)
    assert int(result.steps) < 100  # some 10, and as many again plus 16
    assert 2.4e-5 < float(result.residual) < 2e4 * 1.2e-7  # what two multipliers' rounding adds


def test_misuse_is_refused():
    half = jnp.zeros(2)
    with pytest.raises(ValueError, match="Use the I-projection"):
        right_projection(MarginalConstraints([(0, half)]), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least one pair"):
        MarginalConstraints([])
    with pytest.raises(ValueError, match="expected one axis for each"):
        MarginalConstraints([((0, 1), half)])
    with pytest.raises(ValueError, match="distinct, non-negative"):
        MarginalConstraints([((-1,), half)])
    with pytest.raises(ValueError, match="expected shape"):
        i_projection(MarginalConstraints([(1, half)]), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="Name only axes the table has"):
        i_projection(MarginalConstraints([(2, half)]), jnp.zeros((2, 3)))
