"""Parameters of half precision: sums in single precision, and what rounding drops is kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class Kept(NamedTuple):
    """State of a step on parameters of half precision.

    Attributes:
        dropped: what the parameters lack of their values in single precision.
        state: of the move or optimiser, in single precision.
    """

    dropped: PyTree
    state: PyTree


def is_half(leaf: Any) -> bool:
    """Whether an array is of bfloat16, float16 or fewer bits."""
    return eqx.is_array(leaf) and (
        jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    )


def wide(tree: PyTree) -> PyTree:
    """A tree with its arrays of half precision in single precision."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if is_half(leaf) else leaf, tree)


def start(params: PyTree, init: Callable[[PyTree], PyTree]) -> PyTree:
    """The state of a step: of `init`, and nothing dropped yet."""
    full = wide(params)
    state = init(full)
    halves = any(map(is_half, jax.tree.leaves(params)))
    return Kept(jax.tree.map(jnp.zeros_like, full), state) if halves else state


def follow(
    params: PyTree, state: PyTree, move: Callable[[PyTree, PyTree], tuple[Any, PyTree]]
) -> tuple[PyTree, PyTree, PyTree]:
    """The next parameters and state, and what was added.

    Args:
        params: the parameters.
        state: of `start` or of the update before.
        move: what to add to parameters, and its next state, from parameters in single precision or
            more and its state.
    """
    if not isinstance(state, Kept):
        moves, state = move(params, state)
        return eqx.apply_updates(params, moves), state, moves
    full = jax.tree.map(jnp.add, wide(params), state.dropped)
    moves, inner = move(full, state.state)
    new = eqx.apply_updates(full, moves)
    rounded = narrow(new, params)
    dropped = jax.tree.map(jnp.subtract, new, wide(rounded))
    return rounded, Kept(dropped, inner), moves


def narrow(tree: PyTree, like: PyTree) -> PyTree:
    """A tree rounded to the types of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)
