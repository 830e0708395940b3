"""Many updates in one compiled loop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._network import parameters
from ._precision import wide


@eqx.filter_jit
def run_updates(model, state, step, loss, data, order, count, where, good, key=None, first=0):
    """Run `count` updates, the first rows of `order`; stop after one whose loss is not `good`.

    With a key, update k draws from `fold_in(key, first + k)`.

    Returns:
        Model and state; losses `[len(order)]`, the stats of the last update, the updates done.
    """
    arrays, static = eqx.partition((model, state), eqx.is_array)
    dtype = weight_dtype(model)

    def one(arrays: PyTree, rows: Array, number: Any) -> tuple[PyTree, Any]:
        model, state = eqx.combine(arrays, static)
        if rows.shape[0] == 0:
            x, y, *given = data
            rows = jax.tree.leaves(x)[0].shape[0]
            weights = given[0].astype(dtype) if given else jnp.ones(rows, dtype)
        else:
            x, y, weights = rows_of(data, rows, dtype)
        x, y, weights = where.constrain((x, y, weights), 0)
        more = update_key(key, first + number)
        model, state, info = step.update(model, state, x, y, weights, loss, **more)
        arrays, after = eqx.partition((model, state), eqx.is_array)
        if not eqx.tree_equal(after, static):
            raise ValueError(
                f"{type(step).__name__}.update changed something that is not an array; keep in "
                "the state only arrays that change."
            )
        return where.constrain(arrays), info

    _, info = jax.eval_shape(one, arrays, order[0], 0)
    losses = jnp.zeros(order.shape[0], info.loss.dtype)
    stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info.stats)

    def going(carry: Any) -> Array:
        done, _, losses, _ = carry
        return (done < count) & good(losses[jnp.maximum(done - 1, 0)])

    def body(carry: Any) -> Any:
        done, arrays, losses, _ = carry
        arrays, info = one(arrays, order[done], done)
        return done + 1, arrays, losses.at[done].set(info.loss), info.stats

    start = (jnp.asarray(0, jnp.int32), arrays, losses, stats)
    # A single update is no loop; see `slow_in_loops`.
    alone = order.shape[0] == 1
    done, arrays, losses, stats = body(start) if alone else jax.lax.while_loop(going, body, start)
    model, state = eqx.combine(arrays, static)
    return model, state, losses, stats, done


def update_key(key: Any, number: Any) -> dict[str, Array]:
    """What an update is given beside the batch: its key, if the run has one."""
    return {} if key is None else {"key": jax.random.fold_in(key, number)}


def rows_of(data: Any, rows: Array, dtype: Any) -> tuple[PyTree, PyTree, Array]:
    """The batch of some rows of (x, y) or (x, y, weights), and its weights; 0 where the row is -1.

    Weights that are not given are 1.
    """
    index = jnp.maximum(rows, 0)
    x, y, *given = jax.tree.map(lambda leaf: leaf[index], data)
    weights = (rows >= 0).astype(dtype)
    return x, y, weights * given[0].astype(dtype) if given else weights


def float_dtype(model: PyTree) -> np.dtype:
    """Floating-point type of a model: that of its first floating parameter."""
    for leaf in jax.tree.leaves(parameters(model)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.dtype(leaf.dtype)
    return np.dtype(jnp.zeros(()).dtype)


def weight_dtype(model: PyTree) -> np.dtype:
    """Type of weights and sums of rows: that of the model, single precision at least."""
    dtype = float_dtype(model)
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype


def strong(tree: PyTree) -> PyTree:
    """A tree without weak types, which the first update would make strong: compiled twice."""

    def convert(leaf: Any) -> Any:
        weak = getattr(leaf, "weak_type", False)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if weak else leaf

    return jax.tree.map(convert, tree)


@jax.jit
def relative_distance(now: PyTree, past: PyTree) -> Array:
    """Norm of the difference of two trees of arrays over that of the first."""

    def norm(tree: PyTree) -> Array:
        squares = [jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(wide(tree))]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    return norm(jax.tree.map(jnp.subtract, wide(now), wide(past))) / norm(now)
