"""The nearest point of the graph `{z = max_i a_i}`."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def project_maximum(
    a: Float[Array, "*rows n"],
    z: Float[Array, "*rows"],
    input_precision: Any = 1.0,
    output_precision: Any = 1.0,
) -> Float[Array, "*rows n"]:
    """Project onto `{z = max_i a_i}` along the last axis.

    Minimises `ω_a/2 |a* - a|² + ω_z/2 (max a* - z)²`. For a given maximum m at most the largest
    entry: every entry above m comes down to it, a convex problem in m, solved exactly by sorting.
    For a target above every entry only one of the largest rises.

    Args:
        a: entries.
        z: target of the maximum.
        input_precision: ω_a > 0, a scalar.
        output_precision: ω_z > 0, a scalar or `[*rows]`.

    Returns:
        The projected entries a*; the projected output is their maximum.
    """
    ratio = jnp.asarray(output_precision, a.dtype) / jnp.asarray(input_precision, a.dtype)
    ratio = jnp.broadcast_to(ratio, z.shape)
    descending = -jnp.sort(-a, axis=-1)
    counts = jnp.arange(1, a.shape[-1] + 1, dtype=a.dtype).reshape((1,) * z.ndim + (-1,))
    # With the k largest entries cut, the stationary level is their mean with the target.
    levels = (jnp.cumsum(descending, axis=-1) + (ratio * z)[..., None]) / (
        counts + ratio[..., None]
    )
    # The right k is the last whose k-th largest entry lies above its level.
    # A sum that overflows is of entries far below it.
    used = jnp.sum(((descending > levels) & jnp.isfinite(levels)).astype(jnp.int32), axis=-1)
    index = jnp.maximum(used - 1, 0)[..., None]
    level = jnp.take_along_axis(levels, index, axis=-1)
    lowered = jnp.minimum(a, level)
    top = jnp.argmax(a, axis=-1)[..., None]
    is_top = jnp.arange(a.shape[-1]).reshape((1,) * z.ndim + (-1,)) == top
    raised = jnp.where(is_top, level, a)
    return jnp.where((used == 0)[..., None], raised, lowered)
