"""A step function with equal steps, as a primitive that local projections know."""

from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

quantise_primitive = Primitive("quantise")


def quantise(
    x: Float[Array, "*units"], *, levels: int = 2, scale: float = 1.0
) -> Float[Array, "*units"]:
    """Round to the nearest of equally spaced levels in `[-scale, scale]`.

    The derivative is zero wherever it exists, so a gradient step cannot train through it; the
    projection onto its graph can (`project_quantise`).

    Args:
        x: any real numbers.
        levels: number of levels, at least 2.
        scale: largest level.

    Raises:
        ValueError: fewer than two levels, or a scale that is not positive.
    """
    if levels < 2 or not scale > 0:
        raise ValueError(f"quantise got levels={levels}, scale={scale}; expected >= 2 and > 0.")
    return quantise_primitive.bind(jnp.asarray(x), levels=int(levels), scale=float(scale))


def level_values(levels: int, scale: float, dtype: Any) -> Float[Array, " levels"]:
    """The levels, ascending."""
    return jnp.linspace(-scale, scale, levels, dtype=dtype)


def _nearest(x: Any, *, levels: int, scale: float) -> Any:
    step = 2 * scale / (levels - 1)
    index = jnp.clip(jnp.round((x + scale) / step), 0, levels - 1)
    return index * step - scale


quantise_primitive.def_impl(_nearest)
quantise_primitive.def_abstract_eval(lambda x, **_: x)
mlir.register_lowering(quantise_primitive, mlir.lower_fun(_nearest, multiple_results=False))
batching.primitive_batchers[quantise_primitive] = lambda args, dims, **params: (
    quantise_primitive.bind(*args, **params),
    dims[0],
)
ad.primitive_jvps[quantise_primitive] = lambda primals, tangents, **params: (
    quantise_primitive.bind(*primals, **params),
    jnp.zeros_like(primals[0]),
)
