"""Parameters of bfloat16: sums in float32, and no update is lost to rounding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from klprojax.training import (
    CrossEntropy,
    GradientStep,
    ProjectionDirection,
    ProjectionStep,
    SquaredError,
    evaluate,
    fit,
    projection_slopes,
    scan_fit,
)

from ._networks import quick_jit
from ._runs import blobs, network, weights_of


def cast(model, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, model)


HALF = cast(network(dtype=jnp.float32), jnp.bfloat16)


def test_small_updates_add_up():
    model = eqx.nn.Linear(1, 1, use_bias=False, key=jax.random.key(0), dtype=jnp.bfloat16)
    model = eqx.tree_at(lambda m: m.weight, model, jnp.ones((1, 1), jnp.bfloat16))
    data = np.ones((1, 1), jnp.bfloat16), np.zeros((1, 1), np.float32)
    order = np.zeros((60, 1), int)
    # The slope is 1 all the way; 1e-4 is a fortieth of the distance of 1 from the next number.
    linear = lambda outputs, y: outputs[:, 0]  # noqa: E731
    for count in (60, 10):
        found, losses = scan_fit(
            model, GradientStep(optax.sgd(1e-4)), data, order[:count], loss=linear
        )
        wanted = jnp.asarray(1 - 1e-4 * count, jnp.bfloat16)
        assert found.weight.dtype == jnp.bfloat16
        assert found.weight[0, 0] == wanted
        assert losses.dtype == jnp.float32
    # The slopes of projections too: 1, and .996 once the weight is that.
    step = ProjectionDirection(optax.sgd(1e-4), ratio=1e-6)
    found, _ = scan_fit(model, step, data, order[:40], loss=SquaredError())
    assert found.weight[0, 0] == jnp.asarray(1 - 4e-3, jnp.bfloat16)


def test_local_projections_and_losses_are_in_single_precision():
    x, y = map(jnp.asarray, blobs(12, dtype=np.float32))
    x = x.astype(jnp.bfloat16)

    def slopes(model, x, dtype):
        return projection_slopes(model, x, y, jnp.ones(12, dtype), CrossEntropy(), ratio=1e-3)[:2]

    @quick_jit
    def both():
        model = cast(HALF, jnp.float32)
        return slopes(HALF, x, jnp.bfloat16), slopes(model, x.astype(jnp.float32), jnp.float32)

    half, single = both()
    np.testing.assert_array_equal(weights_of(half), weights_of(single))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"float32"}


def test_a_projection_step_trains():
    train, test = blobs(120, 0, dtype=np.float32), blobs(90, 1, dtype=np.float32)
    model = cast(eqx.nn.MLP(2, 3, 16, 1, key=jax.random.key(0), dtype=jnp.float32), jnp.bfloat16)
    found = fit(model, ProjectionStep(), train, epochs=10, batch_size=30, windows=(1,))
    for leaf in jax.tree.leaves(eqx.filter(found.model, eqx.is_inexact_array)):
        assert leaf.dtype == jnp.bfloat16
    # The best rule is right for .89 of the rows.
    assert evaluate(found.model, test).metric > 0.8
