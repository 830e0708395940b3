"""Rows of weight 0 are left out, of weight 2 count twice, by every scheme and consensus."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.projections import DouglasRachford
from klprojax.training import (
    AlternatingProjections,
    CrossEntropy,
    CyclicProjections,
    Precisions,
    ProjectionStep,
    Relaxed,
    Splitting,
)

from .._networks import build, labels, quick_jit

WEIGHTS = jnp.asarray([2.0, 1.0, 0.0, 1.0])
# Each a model, a consensus and the schemes compiled together for it.
SETTINGS = [
    ("mlp", "slope", [CyclicProjections(), AlternatingProjections()]),
    pytest.param(
        *("mlp", "average", [CyclicProjections(), Splitting(DouglasRachford(), explicit_units=0)]),
        marks=pytest.mark.slow,
    ),
    ("mlp", "product", [AlternatingProjections(), Splitting(DouglasRachford(), explicit_units=8)]),
    ("recurrent", "slope", [CyclicProjections()]),
    (
        "convolution, reshape",
        "product",
        [CyclicProjections(), Splitting(DouglasRachford(), history=2)],
    ),
    pytest.param(
        *("embedding", "average", [CyclicProjections(), AlternatingProjections()]),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "consensus", "schemes"), SETTINGS)
def test_a_row_of_weight_k_is_k_rows(name, consensus, schemes):
    model, x = build(name)
    y = labels()

    precisions = Precisions()
    if name == "recurrent":  # units of the constraints' own sizes count rows too
        precisions = Precisions.with_ratio(0.1, relative=True)

    def moved(x, y, weights):
        out = []
        for scheme in schemes:
            step = ProjectionStep(scheme, 2, precisions, consensus, move=Relaxed())
            out.append(step.direction(model, x, y, weights, CrossEntropy())[0])
        return out

    keep = np.array([0, 0, 1, 3])
    alone = quick_jit(moved)(x[keep], y[keep], jnp.ones(4))
    # Whatever the padding holds: twice, with different rows.
    compiled = quick_jit(moved)
    for fill in (x[2], x[2] * 0 + (1 if name == "embedding" else 1e3)):
        padded = compiled(x.at[2].set(fill), y.at[2].set(1 - y[2]), WEIGHTS)
        for a, b in zip(alone, padded, strict=True):
            np.testing.assert_allclose(a.loss, b.loss, rtol=1e-14)
            for tree in (a.displacement, a.slopes):
                assert any(bool(jnp.any(p != 0)) for p in jax.tree.leaves(tree))
            for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                # Sums over four rows, or over three of which one is doubled.
                np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-15)
