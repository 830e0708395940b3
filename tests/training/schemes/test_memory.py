"""Copies are never formed: memory of one update of a wide layer, compiled and not run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from klprojax.projections import DouglasRachford
from klprojax.training import (
    AlternatingProjections,
    CrossEntropy,
    CyclicProjections,
    Precisions,
    ProjectionStep,
    Relaxed,
)

INPUTS, UNITS, BATCH = 784, 512, 256
COPIES = BATCH * INPUTS * UNITS * 4  # bytes of one array of copies in float32


class Layer(eqx.Module):
    """One wide layer, summed over groups to a few outputs."""

    linear: eqx.nn.Linear

    def __call__(self, x):
        return jnp.sum(jax.nn.relu(self.linear(x)).reshape(8, -1), axis=1)


@pytest.mark.parametrize(
    ("scheme", "consensus", "share"),
    [
        (CyclicProjections(), "slope", 20),
        (AlternatingProjections(), "average", 20),
        (DouglasRachford(), "average", 8),
    ],
)
def test_temporaries_stay_far_below_one_array_of_copies(scheme, consensus, share):
    linear = eqx.filter_eval_shape(eqx.nn.Linear, INPUTS, UNITS, key=jax.random.key(0))
    linear = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), linear)
    step = ProjectionStep(scheme, 2, Precisions(), consensus, Relaxed())
    arrays, static = eqx.partition(
        Layer(linear), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )

    def update(arrays, x, y, weights):
        model = eqx.combine(arrays, static)
        return step.update(model, step.init(model), x, y, weights, CrossEntropy())[0].linear

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    lowered = jax.jit(update).lower(
        arrays, like(BATCH, INPUTS), like(BATCH, dtype=jnp.int32), like(BATCH)
    )
    analysis: Any = lowered.compile().memory_analysis()
    used = analysis.temp_size_in_bytes
    assert 0 < used < COPIES / share
