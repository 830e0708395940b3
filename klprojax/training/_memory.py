"""How much memory an update takes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..fitting._network import needs_key
from ..fitting._step import AbstractStep
from ..fitting._updates import update_key, weight_dtype
from ._inputs import to_arrays


def update_memory(
    model: PyTree,
    step: AbstractStep,
    data: Any,
    loss: Callable[[Any, Any], Array],
    *,
    batch_size: int,
) -> int | None:
    """Bytes that one compiled update needs: arguments, results and temporaries.

    The figure is the compiler's own plan for a batch of that size, so it does not depend on what
    else the process holds; None on a backend without one.
    """
    state = step.init(model)
    arrays, static = eqx.partition((model, state), eqx.is_array)
    x, y = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype),
        to_arrays(jax.tree.map(lambda leaf: leaf[:1], tuple(data)), model),
    )
    weights = jax.ShapeDtypeStruct((batch_size,), jnp.dtype(weight_dtype(model)))
    key = jax.random.key(0) if needs_key(model, x) else None

    def update(arrays: PyTree, x: PyTree, y: PyTree, weights: Array) -> PyTree:
        model, state = eqx.combine(arrays, static)
        model, state, info = step.update(model, state, x, y, weights, loss, **update_key(key, 0))
        return eqx.filter((model, state, info), eqx.is_array)

    plan = jax.jit(update).lower(arrays, x, y, weights).compile().memory_analysis()
    if plan is None:
        return None
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
