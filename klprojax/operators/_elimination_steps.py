"""The two kinds of steps that elimination is made of, and what a sweep does with each.

Every number of the computation lives in one cell of a flat buffer, as a logarithm. A step computes
cells ``log sum_s exp sum_k input[k, s]`` from cells computed before: sums over states ``s`` of
products over ``k`` tables. In `RowStep` each summand is looked up by an index, so that one scan
computes any small tables whatever their shapes; in `DenseStep` one large product of two tables is
computed by broadcasting, and no index is stored. Sweeps are written once for both: a step gives
the cells that it reads as arrays ``[inputs, states, *rows]`` that broadcast against each other.
All arrays may have batch axes at their end, where lookups are contiguous.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from ..geometry import finite_part, safe_log, safe_logsumexp

Carry = TypeVar("Carry")
Parts = Sequence[Array]
# States whose terms are written out one by one; more are scanned over.
_WRITTEN_OUT = 8


class RowPhase(eqx.Module):
    """Small sums, one per row: a scan over steps of equal width.

    Attributes:
        index: cells to read; step ``t`` writes the ``rows`` cells after those of the step before.
        owner: which table a row belongs to, counted from the first table of its step.
        first: first table of each step. Tables are numbered as their cells are.
        start: the first cell.
        slots: most tables in one step.
    """

    index: Int[Array, "inputs states steps rows"]
    owner: Int[Array, "steps rows"]
    first: Int[Array, " steps"]
    start: int = eqx.field(static=True)
    slots: int = eqx.field(static=True)

    def sweep(
        self, body: Callable[[Carry, Any], Carry], carry: Carry, reverse: bool = False
    ) -> Carry:
        """Apply ``body(carry, step)`` to the steps one after the other."""
        numbers = jnp.arange(self.index.shape[2], dtype=jnp.int32)
        return lax.scan(
            lambda carry, n: (body(carry, RowStep(self, n)), None), carry, numbers, reverse=reverse
        )[0]


class RowStep:
    """One step of a `RowPhase`; see `DenseStep` for the methods."""

    def __init__(self, phase: RowPhase, number: Array):
        self.phase = phase
        self.index = lax.dynamic_index_in_dim(phase.index, number, axis=2, keepdims=False)
        self.width = phase.index.shape[3]
        self.at = phase.start + number * self.width
        self.owner = phase.owner[number]
        self.first = phase.first[number]

    def read(self, cells: Array) -> Parts:
        return [cells[self.index]]

    def log_sums(self, values: Parts) -> Array:
        return _log_sums(values) if values[0].ndim > 3 else safe_logsumexp(terms(values), axis=0)

    def log_shares(self, values: Parts, near: Array) -> Array:
        del near
        values = [lax.optimization_barrier(values[0])]  # not looked up twice
        return terms(values) - finite_part(self.log_sums(values))[None]

    def shares(self, values: Parts, near: Array) -> Array:
        del near
        logs = lax.optimization_barrier(terms(values))
        if logs.ndim > 2:
            weights = jnp.exp(logs - finite_part(reduce(jnp.maximum, [*logs]))[None])
            total = reduce(jnp.add, [*weights])
        else:
            weights = jnp.exp(logs - finite_part(jnp.max(logs, axis=0))[None])
            total = jnp.sum(weights, axis=0)
        return weights / jnp.where(total == 0.0, 1.0, total)[None]

    def own(self, cells: Array) -> Array:
        return lax.dynamic_slice_in_dim(cells, self.at, self.width)

    def write(self, cells: Array, rows: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(cells, rows, self.at, axis=0)

    def each(self, part: Array) -> Parts:
        return [part[None]]

    def add(self, cells: Array, parts: Parts) -> Array:
        return cells.at[self.index].add(self._whole(parts[0]))

    def raised(self, cells: Array, parts: Parts) -> Array:
        return cells.at[self.index].max(self._whole(parts[0]))

    def _whole(self, part: Array) -> Array:
        return jnp.broadcast_to(part, (*self.index.shape, *part.shape[3:]))

    def put(self, cells: Array, values: Parts) -> Array:
        # Written, not multiplied: a cell that several rows read is set once.
        return cells.at[self.index].set(values[0])

    def level(self, tops: Array, sources: Array) -> Array:
        inputs = lax.dynamic_slice_in_dim(sources, self.first, self.phase.slots)
        return jnp.sum(finite_part(tops[inputs]), axis=1)[self.owner]

    def raise_tops(self, tops: Array, rows: Array) -> Array:
        here = lax.dynamic_slice_in_dim(tops, self.first, self.phase.slots)
        here = here.at[self.owner].max(rows)
        return lax.dynamic_update_slice_in_dim(tops, here, self.first, axis=0)


class View(eqx.Module):
    """Where one of two tables that are multiplied lies, and how its axes meet the other's.

    Attributes:
        start: first cell.
        shape: of the table.
        order: its axes as (summed, in both, in this one only).
        sizes: of these three groups.
        axis: where the third group is among ``[inputs, summed, both, first, second]``.
    """

    start: int = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    order: tuple[int, ...] = eqx.field(static=True)
    sizes: tuple[int, int, int] = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    def read(self, cells: Array) -> Array:
        """The table as ``[1, summed, both, first, second]``, one of the last two of size one."""
        batch = cells.shape[1:]
        table = cells[self.start : self.start + math.prod(self.shape)]
        table = _transposed(table.reshape(*self.shape, *batch), self.order)
        return jnp.expand_dims(table.reshape(*self.sizes, *batch), (0, 7 - self.axis))

    def write(self, cells: Array, table: Array) -> Array:
        """Put such a table into its cells."""
        shape = [self.shape[axis] for axis in self.order]
        back = sorted(range(len(shape)), key=self.order.__getitem__)
        batch = cells.shape[1:]
        flat = _transposed(table.reshape(*shape, *batch), back).reshape(-1, *batch)
        return lax.dynamic_update_slice_in_dim(cells, flat, self.start, axis=0)


class DenseStep(eqx.Module):
    """A product of two tables, summed over some of the variables that both have.

    Attributes:
        views: the two tables.
        start: first cell of the result, whose axes are (in both, in the first, in the second).
        table: its number.
    """

    views: tuple[View, View]
    start: int = eqx.field(static=True)
    table: int = eqx.field(static=True)

    @property
    def rows(self) -> tuple[int, int, int]:
        """Shape of the result."""
        return self.views[0].sizes[1], self.views[0].sizes[2], self.views[1].sizes[2]

    def sweep(
        self, body: Callable[[Carry, Any], Carry], carry: Carry, reverse: bool = False
    ) -> Carry:
        """Apply ``body(carry, step)`` to this one step."""
        del reverse
        return body(carry, self)

    def read(self, cells: Array) -> Parts:
        """The cells that are read: arrays that broadcast to ``[inputs, states, *rows]``."""
        return [view.read(cells) for view in self.views]

    def log_sums(self, values: Parts) -> Array:
        """Logarithms of the sums over states of the products of what was read, ``[*rows]``."""
        return _log_sums(values)

    def log_shares(self, values: Parts, near: Array) -> Array:
        """Logarithms of the part that each summand has in its row's sum, ``[states, *rows]``.

        Args:
            values: what was read.
            near: logarithms of the sums, up to rounding.
        """
        near, total = _corrected(values, near)
        return terms(values) - (near + finite_part(safe_log(total)))[None]

    def shares(self, values: Parts, near: Array) -> Array:
        """The same, not as logarithms."""
        near, total = _corrected(values, near)
        scale = 1 / jnp.where(total == 0.0, 1.0, total)
        return jnp.exp(terms(values) - near[None]) * scale[None]

    def own(self, cells: Array) -> Array:
        """The cells that are computed, ``[*rows]``."""
        flat = cells[self.start : self.start + math.prod(self.rows)]
        return flat.reshape(*self.rows, *cells.shape[1:])

    def write(self, cells: Array, rows: Array) -> Array:
        """Put the cells that are computed into the buffer."""
        flat = rows.reshape(-1, *cells.shape[1:])
        return lax.dynamic_update_slice_in_dim(cells, flat, self.start, axis=0)

    def each(self, part: Array) -> Parts:
        """``[states, *rows]`` for every input."""
        return [part[None], part[None]]

    def add(self, cells: Array, parts: Parts) -> Array:
        """Add ``[inputs, states, *rows]`` to the cells that are read."""
        for view, part in zip(self.views, parts, strict=True):
            total = jnp.sum(part, axis=7 - view.axis, keepdims=True)
            cells = view.write(cells, view.read(cells) + total)
        return cells

    def raised(self, cells: Array, parts: Parts) -> Array:
        """The larger of both."""
        for view, part in zip(self.views, parts, strict=True):
            top = jnp.max(part, axis=7 - view.axis, keepdims=True)
            cells = view.write(cells, jnp.maximum(view.read(cells), top))
        return cells

    def put(self, cells: Array, values: Parts) -> Array:
        """Set the cells that are read, ``values`` as `read` gives them."""
        for view, value in zip(self.views, values, strict=True):
            cells = view.write(cells, value)
        return cells

    def level(self, tops: Array, sources: Array) -> Array:
        """What the largest entries of the tables that are read come to, per row."""
        return jnp.sum(finite_part(tops[sources[self.table]]), axis=0)[None, None, None]

    def raise_tops(self, tops: Array, rows: Array) -> Array:
        """Note the largest entry of each table that is computed."""
        return tops.at[self.table].set(jnp.max(rows, axis=(0, 1, 2)))


def _transposed(table: Array, order: Sequence[int]) -> Array:
    """Axes in this order, batch axes where they are."""
    return table.transpose(*order, *range(len(order), table.ndim))


def terms(values: Parts) -> Array:
    """Logarithms of the summands, ``[states, *rows]``."""
    inputs = [one for value in values for one in (value[k] for k in range(len(value)))]
    return sum(inputs[1:], inputs[0])


def _log_sums(values: Parts) -> Array:
    fixed = [lax.stop_gradient(value) for value in values]
    top = finite_part(_reduced(jnp.maximum, lambda term: term, fixed))
    return safe_log(_reduced(jnp.add, lambda term: jnp.exp(term - top), values)) + top


def _corrected(values: Parts, near: Array) -> tuple[Array, Array]:
    """Finite logarithms near those of the sums, and the sums over their exponentials."""
    near = lax.stop_gradient(finite_part(near))
    return near, _reduced(jnp.add, lambda term: jnp.exp(term - near), values)


def _reduced(
    join: Callable[[Array, Array], Array], function: Callable[[Array], Array], values: Parts
) -> Array:
    """Reduce a function of the summands' logarithms over the states.

    A compiled reduction over the first axis is several times slower on a CPU.
    """
    states = values[0].shape[1]
    total = function(terms([value[:, 0] for value in values]))
    if states <= _WRITTEN_OUT:
        for s in range(1, states):
            total = join(total, function(terms([value[:, s] for value in values])))
        return total
    rest = [jnp.moveaxis(value[:, 1:], 1, 0) for value in values]
    return lax.scan(lambda so_far, at: (join(so_far, function(terms(at))), None), total, rest)[0]
