"""What is decided, or laid out, for all elements of a `vmap` at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_batching.custom_vmap
def everywhere(flag: Any) -> Any:
    """A flag; under `vmap`, whether it is set in the whole batch."""
    return flag


@everywhere.def_vmap
def _everywhere_in_batch(axis_size, in_batched, flag):
    del axis_size, in_batched
    return everywhere(jnp.all(flag, axis=0)), False  # again, for a `vmap` around this one


@jax.custom_batching.custom_vmap
def any_of(flags: Any) -> Any:
    """Whether any flag is set, of all elements of a `vmap`: a branch on it stays a branch."""
    return jnp.any(flags)


@any_of.def_vmap
def _any_of_in_batch(axis_size, in_batched, flags):
    del axis_size, in_batched
    return any_of(flags), False


def batch_last(function: Callable[[Any, Any], Any], fixed: Any, array: Any) -> Any:
    """``function(fixed, array)`` for a function that takes batch axes at the end of its array.

    Under `vmap` the batch goes there, so that lookups in the array are contiguous. What the
    function returns without batch axes, such as a flag about all elements, has none.

    Args:
        function: each of its results has the array's batch axes at its end, or no axes.
        fixed: a pytree that is the same for all elements; what it traces is not closed over.
        array: without batch axes.
    """

    @jax.custom_batching.custom_vmap
    def apply(fixed, array):
        return function(fixed, array)

    @apply.def_vmap
    def _in_batch(axis_size, in_batched, fixed, array):
        del axis_size
        if any(jax.tree.leaves(in_batched[0])):
            raise ValueError("A plan cannot be mapped over; close over the graph.")
        found = batch_last(function, fixed, jnp.moveaxis(array, 0, -1))
        mapped = jax.tree.map(lambda x: x.ndim > 0, found)
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0) if x.ndim else x, found), mapped

    return apply(fixed, array)
