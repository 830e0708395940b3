"""Nearest points of the graphs of elementwise functions, against grids; their derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klprojax.lifting.local import (
    project_abs,
    project_elementwise,
    project_identity,
    project_quantise,
    project_relu,
    quantise,
)

from ._brute import scalar_minimum

numbers = st.floats(-4, 4, width=32)
precisions = st.sampled_from([0.05, 0.5, 1.0, 8.0])
LEVELS = 4


def rounded(x):
    """`quantise` at four levels and scale 1.5, by comparing distances."""
    levels = np.linspace(-1.5, 1.5, LEVELS)
    return levels[np.abs(np.asarray(x)[..., None] - levels).argmin(-1)]


CASES = {
    "identity": (project_identity, lambda x: x, (0.0,)),
    "relu": (project_relu, lambda x: np.maximum(x, 0), (0.0,)),
    "abs": (project_abs, np.abs, (0.0,)),
    "quantise": (partial(project_quantise, levels=LEVELS, scale=1.5), rounded, (-1.0, 0.0, 1.0)),
    "tanh": (partial(project_elementwise, jnp.tanh), np.tanh, (0.0,)),
    "sigmoid": (
        partial(project_elementwise, jax.nn.sigmoid),
        lambda x: 1 / (1 + np.exp(-x)),
        (0.0,),
    ),
}
COMPILED = {name: jax.jit(case[0]) for name, case in CASES.items()}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", ["identity", "relu", "abs", "quantise"])
@given(
    pairs=st.lists(st.tuples(numbers, numbers), min_size=6, max_size=6),
    os=precisions,
    oz=precisions,
)
@example(pairs=[(-1, -1), (-1, 3), (1, -3), (0, 0), (2, 0.5), (-0.5, 0.25)], os=1.0, oz=1.0)
@example(pairs=[(-1, 1), (0, -2), (0, 2), (1, -1), (-2, 2), (3, -4)], os=0.5, oz=8.0)
def test_the_point_costs_no_more_than_the_best_of_a_grid(name, dtype, pairs, os, oz):
    s, z = (jnp.asarray(side, dtype) for side in zip(*pairs, strict=True))
    found = COMPILED[name](s, z, os, oz)
    assert found.dtype == dtype
    function, extra = CASES[name][1:]
    x, s, z = (np.asarray(v, np.float64) for v in (found, s, z))
    cost = os / 2 * (x - s) ** 2 + oz / 2 * (function(x) - z) ** 2
    eps = float(jnp.finfo(dtype).eps)
    # Quantise stays sqrt(eps) inside its step, at a cost of ω |x - s| sqrt(eps); the grid itself is
    # right to 1e-6 of the step, squared, and for quantise's infimum to that of its edges.
    room = 60 * (eps**0.5 if name == "quantise" else eps) + 1e-10
    room += 1e-6 if name == "quantise" else 0
    for k in range(len(s)):
        best = scalar_minimum(function, s[k], z[k], os, oz, extra)
        assert cost[k] <= best + room * (1 + best)


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
@given(s=st.lists(numbers, min_size=4, max_size=4), os=precisions, oz=precisions)
@example(s=[0.0, 0.1, -3.9, 2.0], os=0.05, oz=8.0)
def test_smooth_functions_reach_a_stationary_point_no_worse_than_the_start(name, s, os, oz):
    # Several local minima are possible at small ω_s/ω_z; the one reached is downhill of s.
    s = jnp.asarray(s)
    z = jnp.asarray([0.7, -0.4, 1.5, -2.0])
    x = COMPILED[name](s, z, os, oz)
    f = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[name]
    slope = jax.vmap(jax.grad(f))(x)
    # Rounding of terms near 10.
    np.testing.assert_allclose(os * (x - s) + oz * slope * (f(x) - z), 0, atol=1e-12)
    cost = os / 2 * (x - s) ** 2 + oz / 2 * (f(x) - z) ** 2
    start = oz / 2 * (f(s) - z) ** 2
    assert bool(jnp.all(cost <= start + 1e-13))
    if os >= oz:  # then the problem is nearly convex: the minimum is global
        for k in range(4):
            best = scalar_minimum(CASES[name][1], float(s[k]), float(z[k]), os, oz)
            assert float(cost[k]) <= best + 1e-10


@pytest.mark.parametrize("name", ["identity", "relu", "abs", "quantise", "tanh"])
def test_a_point_of_the_graph_stays(name):
    s = jnp.asarray([-2.3, -0.6, 0.4, 1.2, 3.0])
    function = CASES[name][1]
    found = COMPILED[name](s, jnp.asarray(function(np.asarray(s))), 1.0, 1.0)
    np.testing.assert_allclose(found, s, rtol=1e-15)  # rounding of one mean


def test_relu_chooses_the_nearer_piece_where_both_targets_are_negative():
    s = jnp.asarray([-1.0, -0.1, -3.0, 0.5])
    z = jnp.asarray([-1.0, -2.0, -0.1, -0.2])
    # Dead units stay where they are; the live one has mean 0.15, cost .1225 + .1225, against 0.25
    # for moving s to 0 and .04 for z.
    np.testing.assert_allclose(project_relu(s, z), [-1.0, -0.1, -3.0, 0.15], atol=1e-15)


def test_ties_keep_a_unit_as_it_was():
    # At equal precisions and s < 0 the pieces of relu tie where z² = (s - z)²/2.
    s, z = jnp.asarray([-1.0]), jnp.asarray([1.0 + 2**0.5])
    off, on = project_relu(s, z - 1e-9), project_relu(s, z + 1e-9)
    assert float(off[0]) == -1.0
    assert float(on[0]) > 0.5
    # z = 0 and s > 0: on the right of the corner; |s| with s = 0 and z > 0: the right piece.
    np.testing.assert_allclose(project_abs(jnp.zeros(1), jnp.ones(1)), [0.5])
    np.testing.assert_allclose(project_abs(jnp.asarray([-1e-9]), jnp.ones(1)), [-0.5], atol=1e-8)
    # Exactly on a tie of relu, at ω_s = 1, ω_z = 3 and z = 1: on costs 3/4 (z - s)², off 3 z²,
    # equal at s = -1, where the unit was dead.
    assert float(project_relu(jnp.asarray([-1.0]), jnp.ones(1), 1.0, 3.0)[0]) == -1.0


@pytest.mark.parametrize("name", list(CASES))
def test_derivatives_match_finite_differences_away_from_kinks(name):
    s, z = jnp.asarray([-1.1, 0.4, 2.0, -0.2]), jnp.asarray([-0.9, 0.7, 0.3, 1.4])
    ds, dz = jnp.asarray([0.3, -1.0, 0.5, 0.2]), jnp.asarray([1.0, 0.4, -0.6, 0.1])

    def move(h):
        return CASES[name][0](s + h * ds, z + h * dz, 1.3 + h * 0.2, 0.8 - h * 0.1)

    zero = jnp.zeros(())
    slope = jax.jit(lambda: jax.jvp(move, (zero,), (jnp.ones(()),))[1])()
    back = jax.jit(jax.jacrev(move))(zero)
    h = 1e-6
    compiled = jax.jit(move)
    finite = (compiled(jnp.asarray(h)) - compiled(jnp.asarray(-h))) / (2 * h)
    # Central differences: rounding eps/h and h².
    np.testing.assert_allclose(slope, finite, atol=2e-9)
    np.testing.assert_allclose(back, slope, atol=1e-13)


def test_quantise_rounds_to_the_nearest_level_and_its_point_gives_the_level_chosen():
    x = jnp.asarray([-9.0, -1.1, -0.2, 0.3, 0.99, 1.01, 7.0])
    np.testing.assert_allclose(quantise(x, levels=LEVELS, scale=1.5), rounded(x), atol=1e-15)
    np.testing.assert_allclose(
        jax.vmap(partial(quantise, levels=LEVELS, scale=1.5))(x), rounded(x), atol=1e-15
    )
    assert float(jnp.sum(jnp.abs(jax.grad(lambda x: quantise(x).sum())(x)))) == 0
    for dtype in (jnp.float64, jnp.float32):
        s = jnp.linspace(-2, 2, 41).astype(dtype)
        z = jnp.flip(s)
        found = COMPILED["quantise"](s, z, 0.05, 8.0)
        # z decides: the level nearest to it, wherever that is not a tie.
        near = rounded(z)
        gap = np.abs(np.abs(np.asarray(z)[:, None] - np.array([-1.0, 0.0, 1.0]))).min(-1)
        clear = gap > 0.4
        np.testing.assert_allclose(
            np.asarray(quantise(found, levels=LEVELS, scale=1.5))[clear], near[clear], atol=1e-6
        )


@pytest.mark.parametrize("options", [{"levels": 1}, {"scale": 0.0}, {"scale": float("nan")}])
def test_quantise_says_what_it_needs(options):
    with pytest.raises(ValueError, match="expected >= 2 and > 0"):
        quantise(jnp.zeros(2), **options)


def test_nan_does_not_hang():
    s = jnp.asarray([jnp.nan, 0.3, -0.4, 1.0])
    found = COMPILED["tanh"](s, jnp.zeros(4), 1.0, 1.0)
    assert bool(jnp.isnan(found[0]))


def test_vmap_and_precisions_by_unit():
    s, z = jnp.asarray([[-1.0, 0.5], [2.0, 0.3]]), jnp.asarray([[1.0, 0.2], [-0.4, 2.0]])
    omega = jnp.asarray([[0.5, 1.0], [2.0, 4.0]])
    for name in ("relu", "abs", "identity", "tanh", "quantise"):
        whole = CASES[name][0](s, z, 1.0, omega)
        rows = jax.vmap(lambda s, z, o, f=CASES[name][0]: f(s, z, 1.0, o))(s, z, omega)
        np.testing.assert_allclose(whole, rows, rtol=1e-14)
