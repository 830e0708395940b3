"""The projection's slopes in the gradient's place: Adam's updates, optax chains, errors."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.training import (
    CrossEntropy,
    GradientStep,
    Precisions,
    ProjectionDirection,
    projection_direction,
    projection_slopes,
)

from ._networks import BATCH, build, labels, quick_jit
from ._runs import weights_of

MODEL, X = build("tanh")
Y, ONES = labels(), jnp.ones(BATCH)
LOSS = CrossEntropy()
ARRAYS, STATIC = eqx.partition(MODEL, eqx.is_inexact_array)


def trajectory(step, count=5):
    """Weights after each update, the last figures, and the number of traces."""
    traces = []

    @quick_jit
    def run(arrays, state):
        traces.append(1)
        model = eqx.combine(arrays, STATIC)
        new, state, info = step.update(model, state, X, Y, ONES, LOSS)
        return eqx.filter(new, eqx.is_inexact_array), state, info

    arrays, state, out = ARRAYS, step.init(MODEL), [weights_of(MODEL)]
    info: Any = None
    for _ in range(count):
        arrays, state, info = run(arrays, state)
        out.append(weights_of(arrays))
    return out, info, len(traces)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_at_a_small_ratio_it_is_adam():
    adam, _, _ = trajectory(GradientStep(optax.adam(1e-2)))
    mine, info, traces = trajectory(ProjectionDirection(optax.adam(1e-2), ratio=1e-4))
    assert traces == 1
    for k in range(5):
        assert cosine(mine[k + 1] - mine[k], adam[k + 1] - adam[k]) >= 0.9999
    # Five steps of 1e-2; Adam divides by the slope, so where that is near 0 its error counts whole.
    np.testing.assert_allclose(mine[-1], adam[-1], atol=5e-3)
    assert info.stats["sensitivity_norm"].shape == (2,)
    assert info.stats["displacement_norm"].shape == (2,)


def test_at_a_large_ratio_it_is_not():
    adam, _, _ = trajectory(GradientStep(optax.sgd(1e-2)), 1)
    mine, _, _ = trajectory(ProjectionDirection(optax.sgd(1e-2), ratio=1.0), 1)
    direction = cosine(mine[1] - mine[0], adam[1] - adam[0])
    assert 0.5 < direction < 0.9999


def test_the_loss_falls_and_weight_decay_reaches_the_parameters():
    step = ProjectionDirection(optax.adamw(3e-2, weight_decay=0.1), ratio=0.05)
    _, info, _ = trajectory(step, 30)
    before = jnp.mean(LOSS(jax.vmap(MODEL)(X), Y))
    assert float(info.loss) < 0.5 * float(before)


def test_as_a_link_of_an_optax_chain_it_is_the_same():
    chain = optax.chain(projection_direction(STATIC, LOSS, ratio=0.1), optax.scale(-0.3))

    @quick_jit
    def run(arrays):
        state = chain.init(arrays)
        zeros = jax.tree.map(jnp.zeros_like, arrays)
        return chain.update(zeros, state, arrays, x=X, y=Y, weights=ONES)[0]

    @quick_jit
    def unweighted(arrays):
        link = projection_direction(STATIC, LOSS, ratio=0.1)
        return link.update(arrays, link.init(arrays), arrays, x=X, y=Y)[0]

    slopes, _, _ = quick_jit(lambda: projection_slopes(MODEL, X, Y, ONES, LOSS, ratio=0.1))()
    for a, b, c in zip(
        *map(jax.tree.leaves, (run(ARRAYS), slopes, unweighted(ARRAYS))), strict=True
    ):
        np.testing.assert_allclose(a, 0.3 * b, rtol=1e-12)
        np.testing.assert_allclose(c, -b, rtol=1e-12)


def test_it_says_that_it_needs_the_batch():
    link = projection_direction(STATIC, LOSS)
    state = link.init(ARRAYS)
    with pytest.raises(ValueError, match="needs the parameters and the batch"):
        link.update(ARRAYS, state, ARRAYS)
    with pytest.raises(ValueError, match="needs the parameters and the batch"):
        link.update(ARRAYS, state, x=X, y=Y)


def test_precisions_multiply_the_ratio():
    def slopes(**options):
        return quick_jit(lambda: projection_slopes(MODEL, X, Y, ONES, LOSS, **options)[0])()

    # All inputs ten times as stiff is a tenth of the ratio; so are tuples, layer by layer.
    ten = Precisions(
        weight=(10.0, 10.0), activation=(10.0, 10.0), unit=10.0, bias=10.0, output=10.0
    )
    a, b = slopes(ratio=0.3, precisions=ten), slopes(ratio=0.03)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)
    # Stiff weights: their slopes lose less; another direction.
    c = slopes(ratio=0.3, precisions=Precisions(weight=(10.0, 1.0)))
    assert float(jnp.max(jnp.abs(c.layers[0].weight - b.layers[0].weight))) > 1e-6


def test_derivatives_go_through_the_slopes():
    def size(ratio):
        slopes, _, _ = projection_slopes(MODEL, X, Y, ONES, LOSS, ratio=ratio)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(slopes))

    at, h = jnp.asarray(0.2), 1e-5
    value = quick_jit(size)
    finite = (value(at + h) - value(at - h)) / (2 * h)
    np.testing.assert_allclose(quick_jit(jax.grad(size))(at), finite, rtol=1e-7)  # eps/h, and h²
    np.testing.assert_allclose(quick_jit(jax.jacfwd(size))(at), finite, rtol=1e-7)
    many = quick_jit(jax.vmap(size))(jnp.asarray([0.1, 0.2]))
    np.testing.assert_allclose(many[1], value(at), rtol=1e-12)
