"""Moves as projections; the referee is numpy's singular value decomposition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.training import (
    CrossEntropy,
    Direction,
    GradientStep,
    ProjectionDirection,
    ProjectionStep,
    Relaxed,
    Spectral,
    gradient_agreement,
)
from klprojax.training.moves._polar import polar_factors

from .._networks import BATCH, build, labels, quick_jit
from .._runs import weights_of

WIDE, TALL, STACKED = (37, 50), (40, 3), (20, 3, 2, 2)


def numbers(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def groups(array, group):
    matrix = np.asarray(array, np.float64).reshape(len(array), -1)
    return [matrix[k : k + group] for k in range(0, len(matrix), group)]


def polar(matrix):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u * (s > 1e-12 * s.max(initial=0))) @ v


def nuclear(matrix):
    return np.linalg.svd(matrix, compute_uv=False).sum()


# The root comes from the Gram matrix, whose condition is the square: of these matrices some 1e4.
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 3e-3)])
@pytest.mark.parametrize("group", [8, 100])
def test_polar_factors_are_those_of_singular_values(dtype, tolerance, group):
    arrays = [numbers(shape, seed, dtype) for seed, shape in enumerate((WIDE, TALL, STACKED))]
    # Sizes whose squares overflow or vanish in float32.
    arrays += [1e25 * arrays[0], 1e-30 * arrays[1]]
    found = quick_jit(lambda parts: polar_factors(parts, group))(list(map(jnp.asarray, arrays)))
    for array, factor in zip(arrays, found, strict=True):
        assert factor.shape == array.shape
        expected = np.concatenate([polar(part) for part in groups(array, group)])
        np.testing.assert_allclose(
            np.asarray(factor).reshape(expected.shape), expected, atol=tolerance
        )


def test_rows_of_zeros_stay_and_disturb_nothing():
    matrix = numbers((6, 9))
    matrix[2] = 0
    (factor,) = polar_factors([jnp.asarray(matrix)], 100)
    np.testing.assert_array_equal(factor[2], 0)
    np.testing.assert_allclose(factor, polar(matrix), atol=1e-9)  # as above
    (nothing,) = polar_factors([jnp.zeros((4, 4))], 2)
    np.testing.assert_array_equal(nothing, 0)


PARAMETERS = {"w": numbers(WIDE), "b": numbers((7,), 1), "k": numbers(STACKED, 2), "z": np.zeros(5)}
SLOPES = {name: numbers(np.shape(p), 7 + n) for n, (name, p) in enumerate(PARAMETERS.items())}


def moved(move, slopes=None, loss=2.0, parameters=None):
    slopes = jax.tree.map(jnp.asarray, SLOPES if slopes is None else slopes)
    parameters = jax.tree.map(jnp.asarray, PARAMETERS if parameters is None else parameters)
    said = Direction(slopes, slopes, jnp.asarray(loss))
    return move.move(said, move.init(parameters))[0]


def norms(moves, group):
    """Largest spectral norm of a group, in units in which a semi-orthogonal matrix has norm 1."""
    out = {}
    for name, value in moves.items():
        if np.ndim(value) == 1:
            out[name] = np.linalg.norm(value)
            continue
        parts = groups(value, group)
        rank = sum(min(part.shape) for part in parts)
        out[name] = np.sqrt(rank) * max(np.linalg.norm(part, 2) for part in parts)
    return out


SIZES = {name: np.linalg.norm(p) for name, p in PARAMETERS.items()} | {"z": 1.0}


@pytest.mark.parametrize("group", [8, 100])
def test_the_move_is_the_nearest_point_of_the_half_space(group):
    loss, decrease = 2.0, 0.3
    moves = moved(Spectral(share=1e3, inertia=0.0, decrease=decrease, group=group), loss=loss)
    # It lies on the boundary ...
    fall = sum(np.sum(SLOPES[name] * np.asarray(moves[name])) for name in moves)
    np.testing.assert_allclose(fall, decrease * loss, rtol=1e-9)  # polar factors
    # ... at the distance that duality gives: the level over the dual norm of the slopes.
    dual = 0.0
    for name, slope in SLOPES.items():
        if np.ndim(slope) == 1:
            dual += SIZES[name] * np.linalg.norm(slope)
            continue
        parts = groups(slope, group)
        rank = sum(min(part.shape) for part in parts)
        dual += SIZES[name] / np.sqrt(rank) * sum(map(nuclear, parts))
    for name, norm in norms(moves, group).items():
        np.testing.assert_allclose(norm / SIZES[name], decrease * loss / dual, rtol=1e-9)


def test_a_short_move_goes_the_share_of_every_size_whatever_the_slopes():
    move = Spectral(share=0.02, inertia=0.0, decrease=None, group=16)
    moves = moved(move)
    for name, norm in norms(moves, 16).items():
        np.testing.assert_allclose(norm, 0.02 / np.sqrt(2) * SIZES[name], rtol=1e-9)
    other = {**SLOPES, "w": 1e-20 * SLOPES["w"], "b": 1e9 * SLOPES["b"]}
    again = moved(move, other)
    for name in moves:
        np.testing.assert_allclose(moves[name], again[name], rtol=1e-9, atol=1e-12)


def test_no_slopes_no_move_and_a_negative_loss_has_no_level():
    nothing = moved(Spectral(), jax.tree.map(np.zeros_like, SLOPES))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(nothing))
    negative, free = moved(Spectral(decrease=1e-9), loss=-1.0), moved(Spectral(decrease=None))
    for a, b in zip(jax.tree.leaves(negative), jax.tree.leaves(free), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.all(np.isfinite(a))
    assert not np.any(np.asarray(moved(Spectral(), loss=0.0)["w"]))  # nothing to win


def test_running_means_start_at_nothing_and_forget():
    move = Spectral(inertia=0.75, decrease=None)
    state = move.init(jax.tree.map(jnp.asarray, PARAMETERS))
    slopes = jax.tree.map(jnp.asarray, SLOPES)
    for loss in (1.0, 3.0):
        _, state = move.move(Direction(slopes, slopes, jnp.asarray(loss)), state)
    assert float(state.loss) == 0.75 * 0.25 * 1.0 + 0.25 * 3.0
    np.testing.assert_allclose(state.slopes["w"], (1 - 0.75**2) * SLOPES["w"], rtol=1e-14)
    assert int(state.count) == 2


def test_a_decaying_share_rises_and_falls():
    share = Spectral.decaying(1000, 0.5).share
    found = [float(share(jnp.asarray(k))) for k in (0, 99, 500, 1000, 2000)]
    expected = (
        np.array([0.01, 1, 1, 1, 1]) * 0.25 * (1 + np.cos(np.pi * np.array([0, 0.099, 0.5, 1, 1])))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)  # float32 schedules


def test_settings_may_be_traced_and_differentiated():
    def total(share):
        return jnp.sum(moved(Spectral(share=share, decrease=None))["w"] ** 2)

    shares = jnp.asarray([0.01, 0.02])
    values = quick_jit(jax.vmap(total))(shares)
    np.testing.assert_allclose(values[1], 4 * values[0], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(total)(0.02), 2 * values[1] / 0.02, rtol=1e-9)
    with pytest.raises(ValueError, match="group is 0; expected at least 1"):
        Spectral(group=0)


@pytest.mark.parametrize("move", [Spectral(), Relaxed(0.5, 0.9)])
def test_a_move_is_an_optax_optimiser(move):
    model, x = build("mlp")
    y, ones, loss = labels(), jnp.ones(BATCH), CrossEntropy()

    def twice(step):
        def run():
            new, state, _ = step.update(model, step.init(model), x, y, ones, loss)
            return eqx.filter(step.update(new, state, x, y, ones, loss)[0], eqx.is_array)

        return weights_of(quick_jit(run)())

    gradient = twice(GradientStep(move.to_optax()))
    slopes = twice(ProjectionDirection(move.to_optax(), ratio=1e-7))
    # The slopes tend to the gradient with the ratio, times the growth of two updates.
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)
    optimiser = move.to_optax()
    parameters = jax.tree.map(jnp.asarray, PARAMETERS)
    state = optimiser.init(parameters)
    with pytest.raises(ValueError, match="needs the mean loss"):
        optimiser.update(parameters, state)


def test_small_slopes_keep_their_digits_in_single_precision():
    # Of the first layers they are 1e-6 of the weights: a difference of weights before and after an
    # update would have no digits of them.
    model = eqx.nn.MLP(4, 2, 16, 10, key=jax.random.key(0), dtype=np.float32)
    x, y = jnp.asarray(numbers((12, 4), dtype=np.float32)), jnp.zeros(12, jnp.int32)

    @quick_jit
    def measure():
        step, ones = ProjectionStep(), jnp.ones(12, np.float32)
        slopes = step.direction(model, x, y, ones, CrossEntropy())[0].slopes
        exact = ProjectionDirection(optax.sgd(1.0), ratio=1e-6)
        both = (gradient_agreement(one, model, x, y)[1:] for one in (step, exact))
        return jax.tree.leaves(slopes)[0], *both

    first, (cosines, distances), (_, exact) = measure()
    assert float(jnp.max(jnp.abs(first))) < 1e-4
    assert float(jnp.min(cosines)) > 0.999
    # The damping adds up over the layers: a few times the ratio of the precisions in each.
    assert 0 < float(jnp.max(distances)) < 0.2
    assert float(jnp.max(exact)) < 1e-3  # sums that nearly cancel, in single precision
