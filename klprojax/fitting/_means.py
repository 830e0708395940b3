"""Means over rows, summed in double precision."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._batches import Batches
from ._placement import HERE, Placement


class Means:
    """Rows on the devices, in batches, and means over them of what a function says of each."""

    def __init__(self, data: PyTree, rows: int, batch_size: int | None, where: Placement = HERE):
        size = rows if batch_size is None else min(batch_size, rows)
        order = Batches(rows, size, where.devices, shuffle=False).epoch(0)
        self.real = order.reshape(-1) >= 0
        self.where, self.data = where, where.put(data)
        # Padding is the batch's own rows in turn: a network may take statistics of the batch.
        order = np.stack([np.resize(batch[batch >= 0], len(batch)) for batch in order])
        self.order = where.put(jnp.asarray(order), 1)

    def __call__(self, values: Callable[..., Any], model: PyTree) -> list[Any]:
        """Means of `values(model, *data)`, a tuple of arrays `[batch]`; None of None.

        Args:
            values: a function, or an `eqx.Partial` of one.
            model: its first argument.
        """
        found = _map(values, self.where.put(model), self.data, self.order, self.where)
        return [None if v is None else self._mean(v) for v in found]

    def _mean(self, values: Array) -> float:
        return float(np.asarray(values, np.float64).reshape(-1)[self.real].mean())


@eqx.filter_jit
def _map(values, model, data, order, where):
    def one(rows: Array) -> Any:
        part = where.constrain(jax.tree.map(lambda leaf: leaf[rows], data), 0)
        return values(model, *part)

    return jax.lax.map(one, order)
