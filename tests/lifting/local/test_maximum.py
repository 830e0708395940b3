"""The nearest point of `{z = max a}` against every choice of entries, and of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klprojax.lifting.local import project_maximum
from klprojax.training.network._constraints import EntrySums, Maximum

from ._brute import maximum_minimum

numbers = st.floats(-3, 3, width=32)
precisions = st.sampled_from([0.1, 1.0, 7.0])
solve = jax.jit(project_maximum)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@given(
    a=st.lists(numbers, min_size=4, max_size=4),
    z=st.floats(-8, 8, width=32),
    oa=precisions,
    oz=precisions,
)
@example(a=[1.0, 1.0, 1.0, 0.0], z=-2.0, oa=1.0, oz=1.0)
@example(a=[1.0, 1.0, 0.5, 0.5], z=4.0, oa=1.0, oz=7.0)
@example(a=[0.0, 0.0, 0.0, 0.0], z=0.0, oa=1.0, oz=1.0)
@example(a=[2.0, -1.0, 1.0, 1.0], z=2.0, oa=1.0, oz=1.0)
def test_the_point_costs_what_the_best_choice_costs(dtype, a, z, oa, oz):
    a, z = jnp.asarray(a, dtype), jnp.asarray(z, dtype)
    found = solve(a, z, jnp.asarray(oa, dtype), jnp.asarray(oz, dtype))
    assert found.dtype == dtype
    a, z, found = (np.asarray(x, np.float64) for x in (a, z, found))
    cost = oa / 2 * np.sum((found - a) ** 2) + oz / 2 * (found.max() - z) ** 2
    best = maximum_minimum(a, z, oa, oz)
    # Sums of four squares near 100: a few units of rounding.
    room = 30 * float(jnp.finfo(dtype).eps) * (100 + best)
    assert abs(cost - best) <= room


def test_a_high_target_lifts_one_of_the_largest_and_a_low_one_cuts_all_above():
    a = jnp.asarray([1.0, 3.0, 3.0, 2.0])
    high = project_maximum(a, jnp.asarray(5.0))
    np.testing.assert_allclose(high, [1.0, 4.0, 3.0, 2.0], rtol=1e-15)
    # Level m with three entries above: (3 + 3 + 2 - 4)/4 = 1.0, and 1.0 >= 1.0 stays.
    low = project_maximum(a, jnp.asarray(-4.0))
    np.testing.assert_allclose(low, [1.0, 1.0, 1.0, 1.0], rtol=1e-15)
    # Idempotent: the maximum asked for is the maximum.
    np.testing.assert_allclose(project_maximum(high, jnp.max(high)), high, rtol=1e-15)


def test_the_derivative_matches_finite_differences():
    a, z = jnp.asarray([0.2, 1.4, 1.1, -0.5]), jnp.asarray(0.3)
    direction = jnp.asarray([0.3, -0.2, 1.0, 0.5])

    def move(h):
        return project_maximum(a + h * direction, z - h, 1.0 + h, 2.0)

    slope = jax.jvp(move, (jnp.zeros(()),), (jnp.ones(()),))[1]
    h = 1e-6
    finite = (move(jnp.asarray(h)) - move(jnp.asarray(-h))) / (2 * h)
    np.testing.assert_allclose(slope, finite, atol=1e-9)  # eps/h
    np.testing.assert_allclose(jax.jacrev(move)(jnp.zeros(())), slope, atol=1e-14)


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2)])
def test_maxima_over_any_axes_move_the_right_entries(axes):
    rng = np.random.default_rng(3)
    a = np.round(rng.normal(size=(2, 2, 3, 2)), 1)  # ties happen
    rule = Maximum(axes, 3)
    top = rule.apply(jnp.asarray(a))
    np.testing.assert_array_equal(top, a.max(axis=tuple(k + 1 for k in axes)))
    target = np.asarray(top) + rng.choice([-1.0, 0.0, 2.0], size=top.shape)
    found = rule.project((jnp.asarray(a),), jnp.asarray(target), (2.0,), 3.0, jnp.ones(2), (True,))
    moved = a + np.asarray(found.slopes[0]) / 2.0
    np.testing.assert_allclose(found.output, rule.apply(jnp.asarray(moved)), atol=1e-14)
    # Each maximum by itself.
    order = [0] + [k + 1 for k in range(3) if k not in axes] + [k + 1 for k in axes]
    flat = np.transpose(a, order).reshape(-1, int(np.prod([a.shape[k + 1] for k in axes])))
    flat_moved = np.transpose(moved, order).reshape(flat.shape)
    for row, new, z in zip(flat, flat_moved, target.reshape(-1), strict=True):
        cost = np.sum((new - row) ** 2) + 1.5 * (new.max() - z) ** 2
        if len(row) <= 8:
            np.testing.assert_allclose(cost, maximum_minimum(row, z, 2.0, 3.0), atol=1e-13)


@pytest.mark.parametrize(
    "sums",
    [
        lambda a, np: np.sum(a, axis=0),
        lambda a, np: np.sum(a, axis=(1, 2)),
        lambda a, np: np.cumsum(a, axis=0),  # sums that overlap: each keeps copies of its own
    ],
)
def test_sums_of_entries_are_projected_onto(sums):
    rng = np.random.default_rng(4)
    a = rng.normal(size=(2, 3, 2, 2))
    matrix = np.stack([sums(e.reshape(3, 2, 2), np).reshape(-1) for e in np.eye(12)], axis=1)
    total = np.stack([sums(row, np) for row in a])
    z = total + rng.normal(size=total.shape)
    omega, rho = 0.7, 2.5
    rule = EntrySums(lambda row: sums(row, jnp), (3, 2, 2))
    np.testing.assert_array_equal(rule.counts(((3, 2, 2),))[0].reshape(-1), matrix.sum(axis=0))
    found = rule.project((jnp.asarray(a),), jnp.asarray(z), (omega,), rho, jnp.ones(2), (True,))
    # Every sum has the force f = ρ (z - u*) = ω (a* - a) on its own copies, so u* = u + n f/ω.
    force = (z - total).reshape(2, -1) / (1 / rho + matrix.sum(axis=1) / omega)
    np.testing.assert_allclose(found.slopes[0].reshape(2, -1), force @ matrix, atol=1e-13)
    moved = z - force.reshape(z.shape) / rho
    np.testing.assert_allclose(found.output, moved, atol=1e-13)
    assert rule.project(
        (jnp.asarray(a),), jnp.asarray(z), (omega,), rho, jnp.ones(2), (False,)
    ).slopes == (None,)


def test_the_largest_of_rows_with_huge_negative_entries():
    # Sums of two of them overflow.
    for low in (float(np.finfo(np.float32).min), -np.inf):
        a = jnp.asarray([[low, 1.0, low, low]], jnp.float32)
        found = project_maximum(a, jnp.asarray([2.0], jnp.float32))
        np.testing.assert_array_equal(found, [[low, 1.5, low, low]])
