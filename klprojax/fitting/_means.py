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

    def __init__(
        self,
        data: PyTree,
        rows: int,
        batch_size: int | None,
        where: Placement = HERE,
        apart: bool = False,
    ):
        size = rows if batch_size is None else min(batch_size, rows)
        order = Batches(rows, size, where.devices, shuffle=False).epoch(0)
        self.real = order.reshape(-1) >= 0
        self.where, self.data = where, where.put(data)
        # Padding is the batch's own rows in turn: a network may take statistics of the batch.
        order = np.stack([np.resize(batch[batch >= 0], len(batch)) for batch in order])
        self.order = where.put(jnp.asarray(order), 1)
        # One call per batch, or one for all; see `slow_in_loops`.
        self.parts = [slice(k, k + 1) for k in range(len(order))] if apart else [slice(None)]

    def __call__(self, values: Callable[..., Any], model: PyTree) -> list[Any]:
        """Means of `values(model, *data)`, a tuple of arrays `[batch]`; None of None.

        Args:
            values: a function, or an `eqx.Partial` of one.
            model: its first argument.
        """
        model = self.where.put(model)
        orders = [self.order[part] for part in self.parts]
        found = [_map(values, model, self.data, order, self.where) for order in orders]
        return [None if v[0] is None else self._mean(v) for v in zip(*found, strict=True)]

    def _mean(self, values: tuple[Array, ...]) -> float:
        rows = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in values])
        return float(rows[self.real].mean())


@eqx.filter_jit
def _map(values, model, data, order, where):
    def one(rows: Array) -> Any:
        part = where.constrain(jax.tree.map(lambda leaf: leaf[rows], data), 0)
        return values(model, *part)

    return one(order[0]) if len(order) == 1 else jax.lax.map(one, order)
