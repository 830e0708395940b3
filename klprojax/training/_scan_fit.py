"""A whole run as one pure function, to be mapped over seeds and settings."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..fitting._batches import Batches
from ..fitting._step import AbstractStep
from ..fitting._updates import rows_of, strong, update_key, weight_dtype
from ._evaluate import find_loss


def batch_order(rows: int, batch_size: int, epochs: int, seed: int = 0) -> np.ndarray:
    """The rows that each update of a run of `fit` sees.

    Args:
        rows: number of rows of the data.
        batch_size: rows per update.
        epochs: passes over the rows.
        seed: of the order.

    Returns:
        Row indices `[updates, batch_size]`; -1 fills the last batch of an epoch.

    Example:
        >>> from klprojax.training import batch_order
        >>> batch_order(5, 2, epochs=1).shape
        (3, 2)
    """
    batches = Batches(rows, min(batch_size, rows), seed=seed)
    return batches.updates(0, epochs * batches.count)


def scan_fit(
    model: PyTree,
    step: AbstractStep,
    train: Any,
    order: Int[Array | np.ndarray, "updates batch"],
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    key: Any = None,
    weights: Any = None,
) -> tuple[PyTree, Float[Array, " updates"]]:
    """Run all updates in one `scan`: pure, for `jit`, and for `vmap` over seeds and settings.

    The updates are those of `fit` with the same rows. Nothing is checked, evaluated or kept on the
    way; `fit` does that. On a CPU, convolutions are many times slower inside a `scan`; `fit` calls
    such updates one by one.

    Args:
        model: a callable on one sample, or a pair (network, state); its arrays may be mapped.
        step: the step; its settings may be traced.
        train: the pair (x, y) of arrays, leading axis the rows.
        order: rows of every update, of `batch_order` for example; -1 is padding.
        loss: an output factor (default: `CrossEntropy()`).
        key: for a network that takes one; `jax.random.key(seed)` gives the numbers of `fit`.
        weights: of the rows, as for `fit`; 1 if None.

    Returns:
        The model after the last update, and the mean loss of every batch before its update, nats.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp
        >>> from klprojax.training import ProjectionStep, Spectral, batch_order, scan_fit
        >>> x = jax.random.normal(jax.random.key(0), (64, 2))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> model = eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(1))
        >>> order = batch_order(64, 16, epochs=5)
        >>> def last_loss(share):
        ...     return scan_fit(model, ProjectionStep(move=Spectral(share)), (x, y), order)[1][-1]
        >>> jax.vmap(last_loss)(jnp.array([0.001, 0.1])).shape
        (2,)
    """
    loss = find_loss(loss)
    arrays, static = eqx.partition(strong((model, step.init(model))), eqx.is_array)
    dtype, train = weight_dtype(model), jax.tree.map(jnp.asarray, tuple(train))
    train = train if weights is None else (*train, jnp.asarray(weights))

    def one(arrays: PyTree, at: tuple[Array, Array]) -> tuple[PyTree, Array]:
        model, state = eqx.combine(arrays, static)
        x, y, weights = rows_of(train, at[0], dtype)
        more = update_key(key, at[1])
        model, state, info = step.update(model, state, x, y, weights, loss, **more)
        return eqx.filter(strong((model, state)), eqx.is_array), info.loss

    numbers = jnp.arange(len(order), dtype=jnp.int32)
    arrays, losses = jax.lax.scan(one, arrays, (jnp.asarray(order), numbers))
    return eqx.combine(arrays, static)[0], losses
