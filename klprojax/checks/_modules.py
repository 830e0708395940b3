"""Corollary 3.4 on modules of every kind: shared weights, lookups, sets as targets."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..training import Margin, Precisions, projection_slopes
from ._measure import as_given, at_least, by_precision, relative_difference
from ._registry import statement


class _Tokens(eqx.Module):
    """The mean of embedded tokens, three times through one matrix."""

    table: Any
    matrix: Any

    def __call__(self, tokens: Any) -> Any:
        out = jnp.mean(self.table[tokens], axis=0)
        out = jnp.tanh(self.matrix @ out)
        return self.matrix @ jnp.tanh(self.matrix @ out)


@statement(
    "Corollary 3.4, modules",
    "projection_slopes of an embedding and a shared matrix, small ρ, vs jax.grad",
    reading="projections at small ρ",
)
def corollary_3_4_modules(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check slopes where a matrix is used three times, rows of a table are looked up, samples have
    weights and the target is a set.

    Source: Corollary 3.4; messages into a value that several constraints share multiply. `size` is
    the width.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    table, matrix = rng.normal(size=(6, size)), rng.normal(size=(size, size)) / np.sqrt(size)
    table, matrix = as_given(table, dtype), as_given(matrix, dtype)
    model = _Tokens(jnp.asarray(table, dtype), jnp.asarray(matrix, dtype))
    tokens, classes = rng.integers(6, size=(5, 3)), rng.integers(size, size=5)
    weights = jnp.asarray([1.0, 0.5, 2.0, 0.0, 1.0], dtype)

    def mean_loss(model: Any) -> Any:
        # Half the squared distance to the set: at least 1 for the class, at most 0 for others.
        out = jax.vmap(model)(tokens)
        right = jnp.arange(size)[None] == classes[:, None]
        away = jnp.where(right, jnp.maximum(1 - out, 0), jnp.maximum(out, 0))
        return jnp.sum(weights * jnp.sum(away**2, axis=1)) / (2 * jnp.sum(weights))

    want = jax.tree.map(jnp.negative, jax.grad(mean_loss)(model))
    # Stiff inputs at a large ratio are plain ones at a small ratio.
    ratio, stiff = by_precision(dtype, 1e-5, 1e-3), 1e3
    precisions = Precisions(weight=stiff, activation=stiff, unit=stiff, bias=stiff, output=stiff)
    found, _, _ = projection_slopes(
        model,
        jnp.asarray(tokens),
        jnp.asarray(classes),
        weights,
        Margin(),
        ratio=jnp.asarray(ratio * stiff, dtype),
        precisions=precisions,
    )
    # First order in ρ, with a constant of some tens; single precision adds rounding 1e-7 / ρ.
    return relative_difference(found, want), 50 * ratio
