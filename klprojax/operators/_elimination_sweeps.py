"""The two sweeps of variable elimination over one flat buffer, and their derivatives to any order.

The log-partition is a function ``F`` of the buffer, the marginals ``p`` are its gradient, and
their k-th directional derivative ``D^k p`` is a symmetric multilinear form of F's (k+1)-th
derivative: the cumulants of the distribution. Logarithms of marginals need it divided by ``p``
itself, so one of its k+1 slots is in units of ``p``: the result, or one direction. Transposing
swaps the two, so one primitive with these rules is closed under ``jvp``, ``vjp`` and ``vmap``.
Without it, reverse mode would transpose the scans, which touches the whole buffer at every step.
"""

from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .._adjoint import everywhere
from .._types import Scalar
from ..geometry import finite_part, safe_log, safe_logsumexp
from ._elimination_plan import EliminationPlan

Route: TypeAlias = Literal["linear", "log", "either"]


class Marginals(NamedTuple):
    """Result of the two sweeps.

    log_partition: log Z in nats. log_marginals: logarithm of its derivative in each given number,
    which is a marginal probability. units: logarithms of the units in which derivatives are
    computed. lost: whether the sweep in linear space underflowed where that matters.
    """

    log_partition: Scalar
    log_marginals: Float[Array, " cells"]
    units: Float[Array, " all"]
    lost: Any  # Bool[Array, ""], its tangent float0


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def sweep(
    plan: EliminationPlan, flat: Float[Array, " cells"], first: int, route: Route
) -> Marginals:
    """Upward and downward sweep.

    The downward sweep is one in linear space, ``"linear"``, or in the log domain, ``"log"``, at
    several times the cost. ``"either"`` compiles both and takes the second where the first is
    ``lost``. Derivatives are for this route.

    Args:
        flat: all potentials, then all evidence, each table flattened (nats).
        first: the first entry whose marginal is wanted with all digits however small it is.
    """
    log_partition, cells = _upward(plan, flat)
    if route == "log":
        units = _log_marginals(plan, cells)
        return Marginals(log_partition, _given(plan, units), units, jnp.bool_(True))
    marginals = _marginals(plan, cells)
    info = jnp.finfo(flat.dtype)
    # Below this, what was lost to underflow could be more than rounding.
    low = float(info.tiny) / float(info.eps) ** 2
    some = marginals[first:]
    lost = everywhere(jnp.any((some > 0.0) & (some < low)))
    log_marginals = safe_log(marginals)
    if route == "linear":
        return Marginals(log_partition, log_marginals, jnp.zeros(0, flat.dtype), lost)
    units = lax.cond(lost, partial(_log_marginals, plan), jnp.zeros_like, cells)
    log_marginals = jnp.where(lost, _given(plan, units), log_marginals)
    return Marginals(log_partition, log_marginals, units, lost)


@sweep.defjvp
def _derivatives(first, route, primals, tangents):
    plan, flat = primals
    _, d_flat = tangents
    out = sweep(plan, flat, first, route)
    units = lax.stop_gradient(out.units)
    arrays, structure = jax.tree.flatten(plan)
    covariance = _cumulant.bind(*arrays, flat, units, d_flat, structure=structure, unit=_RESULT)
    # The logarithm's slope 1/p in these units. It is 0 where p is, and its own derivative no power
    # of 1/p, which overflows long before p underflows.
    gone = jnp.isneginf(out.log_marginals)
    ratio = finite_part(_given(plan, units)) - jnp.where(gone, 0.0, out.log_marginals)
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    slope = jnp.dot(jnp.exp(out.log_marginals), d_flat, precision=lax.Precision.HIGHEST)
    return out, Marginals(
        slope,
        jnp.where(gone, 0.0, jnp.exp(ratio)) * covariance,
        jnp.zeros_like(units),
        np.zeros(out.lost.shape, jax.dtypes.float0),
    )


# Operands: the plan's arrays, the buffer, the units, then k >= 1 directions, all these with the
# same leading batch axes. Result: D^k of the marginals. Either it is divided by ``exp(units)``, or
# the first direction is.
_cumulant = Primitive("marginal_cumulant")
_RESULT, _DIRECTION = "result", "direction"


@partial(jax.jit, static_argnames=("structure", "unit"))
def _evaluate(*operands, structure, unit):
    arrays, (flat, units, *directions) = _halves(operands, structure)
    plan = jax.tree.unflatten(structure, arrays)
    known = int(unit == _DIRECTION)

    def derivative(order):
        if order == known:
            return partial(_in_units_of_direction if known else _in_units_of_result, plan)
        lower = derivative(order - 1)
        return lambda flat, *rest: jax.jvp(
            lambda f: lower(f, *rest[:order]), (flat,), (rest[order],)
        )[1]

    function = derivative(len(directions))
    for _ in range(flat.ndim - 1):
        function = jax.vmap(function)
    return function(flat, units, *directions)


def _halves(operands, structure) -> tuple[tuple, tuple]:
    """The plan's arrays, and the rest."""
    return operands[: structure.num_leaves], operands[structure.num_leaves :]


def _derivative_rule(primals, tangents, *, structure, unit):
    arrays, (flat, units, *directions) = _halves(primals, structure)
    _, (d_flat, _, *d_directions) = _halves(tangents, structure)
    bind = partial(_cumulant.bind, *arrays, flat, units, structure=structure, unit=unit)
    terms = [
        bind(*directions[:k], d_direction, *directions[k + 1 :])
        for k, d_direction in enumerate(d_directions)
        if type(d_direction) is not ad.Zero
    ]
    if type(d_flat) is not ad.Zero:
        terms.append(bind(*directions, d_flat))
    return bind(*directions), sum(terms[1:], terms[0])


def _transpose_rule(cotangent, *operands, structure, unit):
    unknown = [k for k, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    (k,) = unknown  # linear in each direction alone, so only one can be unknown
    result: list[Any] = [None] * len(operands)
    if type(cotangent) is ad.Zero:
        result[k] = ad.Zero(operands[k].aval)
        return result
    start = structure.num_leaves + 2
    others = (*operands[start:k], *operands[k + 1 :])
    if unit == _DIRECTION and k > start:
        # The direction in units of p stays where it is, the first.
        filled = (others[0], cotangent, *others[1:])
    else:
        # In units of p: the result before, the cotangent now; or the other way round.
        filled = (cotangent, *others)
        unit = _DIRECTION if unit == _RESULT else _RESULT
    result[k] = _cumulant.bind(*operands[:start], *filled, structure=structure, unit=unit)
    return result


def _batching_rule(operands, axes, *, structure, unit):
    plan, arrays = _halves(operands, structure)
    plan_axes, array_axes = _halves(axes, structure)
    if any(axis is not None for axis in plan_axes):
        raise ValueError("An elimination plan cannot be mapped over; close over the graph.")
    size = next(
        array.shape[axis]
        for array, axis in zip(arrays, array_axes, strict=True)
        if axis is not None
    )
    moved = [
        jnp.broadcast_to(array, (size, *array.shape))
        if axis is None
        else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, array_axes, strict=True)
    ]
    return _cumulant.bind(*plan, *moved, structure=structure, unit=unit), 0


def _shape_rule(*operands, structure, unit):
    del unit
    return operands[structure.num_leaves]


_cumulant.def_impl(_evaluate)
_cumulant.def_abstract_eval(_shape_rule)
ad.primitive_jvps[_cumulant] = _derivative_rule
ad.primitive_transposes[_cumulant] = _transpose_rule
batching.primitive_batchers[_cumulant] = _batching_rule
mlir.register_lowering(_cumulant, mlir.lower_fun(_evaluate, multiple_results=False))


def _upward(plan: EliminationPlan, flat: Array) -> tuple[Array, Array]:
    """Log-partition, and the buffer with the entries of all messages."""
    log_partition, cells, _ = _upward_along(plan, flat, None)
    return log_partition, cells


def _upward_along(
    plan: EliminationPlan, flat: Array, along: tuple[Array, Array] | None
) -> tuple[Array, Array, Any]:
    """Also the tangents of the buffer along ``(direction, units)``, times ``exp(units)``."""
    _, _, steps, width = plan.index.shape
    slots = plan.slots
    given = jnp.concatenate([jnp.asarray([0.0, -jnp.inf], flat.dtype), flat])
    cells = jnp.zeros(plan.inputs + steps * width, flat.dtype).at[: plan.inputs].set(given)
    tangents = None if along is None else jnp.zeros_like(cells).at[2 : plan.inputs].set(along[0])
    # The largest entry of each table leaves the sums that read it, so numbers keep the size of
    # one table's range however many are chained. It is a gauge: no derivative passes through it.
    tops = jnp.full(plan.sources.shape[0], -jnp.inf, flat.dtype)

    def up(carry, step):
        cells, tops, tangents = carry
        owner = plan.owner[step]
        start = plan.first[step]
        sources = lax.dynamic_slice_in_dim(plan.sources, start, slots)
        level = jnp.sum(finite_part(tops[sources]), axis=1)
        index, terms = _terms(plan, cells, step)
        sums = safe_logsumexp(terms, axis=0)
        if along is not None:
            parts = _parts(plan, index, terms - finite_part(sums)[None], along[1], step)
            tangent = jnp.sum(parts * tangents[index], axis=(0, 1))
            tangents = _write(plan, tangents, tangent, step)
        rows = sums - level[owner]
        cells = _write(plan, cells, rows, step)
        here = lax.dynamic_slice_in_dim(tops, start, slots)
        here = here.at[owner].max(lax.stop_gradient(rows))
        tops = lax.dynamic_update_slice_in_dim(tops, here, start, axis=0)
        return (cells, tops, tangents), None

    (cells, tops, tangents), _ = lax.scan(up, (cells, tops, tangents), _counter(plan))
    gauge = jnp.sum(finite_part(tops)) - jnp.sum(finite_part(tops[plan.root_tables]))
    return jnp.sum(cells[plan.roots]) + gauge, cells, tangents


def _marginals(plan: EliminationPlan, cells: Array) -> Array:
    """Downward sweep in linear space; what is possible is never 0."""
    least = float(jnp.finfo(cells.dtype).tiny)

    def down(slopes, step):
        slope = _rows(plan, slopes, step)
        index, terms = _terms(plan, cells, step)
        top = finite_part(jnp.max(terms, axis=0))
        weights = jnp.exp(terms - top[None])
        total = jnp.sum(weights, axis=0)
        share = weights * (slope / jnp.where(total == 0.0, 1.0, total))[None]
        share = jnp.where(share < least, least, share)
        share = jnp.where(jnp.isneginf(terms) | (slope == 0.0)[None], 0.0, share)
        return slopes.at[index].add(jnp.broadcast_to(share, index.shape)), None

    slopes, _ = lax.scan(down, _at_roots(plan, cells), _counter(plan), reverse=True)
    return _given(plan, slopes)


def _log_marginals(plan: EliminationPlan, cells: Array) -> Array:
    """Downward sweep in the log domain; of all entries, the messages' too."""

    def down(carry, step):
        # A sum of exponentials that grows: its largest term, and the sum relative to that.
        tops, sums = carry
        index, shares = _log_shares(plan, cells, step)
        shares = shares + (safe_log(_rows(plan, sums, step)) + _rows(plan, tops, step))[None]
        before = tops[index]
        tops = tops.at[index].max(jnp.broadcast_to(shares, index.shape))
        after = finite_part(tops[index])
        # Written, not multiplied: a cell that several rows read is scaled once.
        sums = sums.at[index].set(sums[index] * jnp.exp(before - after))
        return (tops, sums.at[index].add(jnp.exp(shares[None] - after))), None

    roots = _at_roots(plan, cells)
    start = jnp.where(roots > 0.0, jnp.zeros_like(roots), -jnp.inf), roots
    (tops, sums), _ = lax.scan(down, start, _counter(plan), reverse=True)
    return safe_log(sums) + tops


def _in_units_of_result(plan: EliminationPlan, flat: Array, units: Array) -> Array:
    """The marginals, each divided by ``exp(units)``: for its derivatives, to any order."""
    _, cells = _upward(plan, flat)

    def down(ratios, step):
        index, log_shares = _log_shares(plan, cells, step)
        parts = _parts(plan, index, log_shares, units, step)
        return ratios.at[index].add(parts * _rows(plan, ratios, step)[None, None]), None

    ratios, _ = lax.scan(down, _at_roots(plan, cells), _counter(plan), reverse=True)
    return _given(plan, ratios)


def _in_units_of_direction(
    plan: EliminationPlan, flat: Array, units: Array, direction: Array
) -> Array:
    """Derivative of the marginals along ``direction / exp(units)``, however small the units."""
    _, cells, tangents = _upward_along(plan, flat, (direction, units))

    def down(carry, step):
        ratios, slopes = carry
        index, log_shares = _log_shares(plan, cells, step)
        parts = _parts(plan, index, log_shares, units, step)
        ratio = _rows(plan, ratios, step)
        # d(p share) = dp share + p share (d terms - d row)
        rest = _rows(plan, slopes, step) - ratio * _rows(plan, tangents, step)
        parts = parts * ratio[None, None]
        slope = jnp.exp(log_shares) * rest[None] + jnp.sum(parts * tangents[index], axis=0)
        slopes = slopes.at[index].add(jnp.broadcast_to(slope, index.shape))
        return (ratios.at[index].add(parts), slopes), None

    start = _at_roots(plan, cells), jnp.zeros_like(cells)
    (_, slopes), _ = lax.scan(down, start, _counter(plan), reverse=True)
    return _given(plan, slopes)


def _parts(plan: EliminationPlan, index: Array, log_shares: Array, units: Array, step: Array):
    """What each summand of a row adds to the cells it reads, both in their units."""
    apart = _rows(plan, units, step)[None, None] - finite_part(units[index])
    return jnp.exp(log_shares[None] + apart)


def _log_shares(plan: EliminationPlan, cells: Array, step: Array) -> tuple[Array, Array]:
    """Logarithms of the part that each summand has in its row's sum."""
    index, terms = _terms(plan, cells, step)
    return index, terms - finite_part(safe_logsumexp(terms, axis=0))[None]


def _terms(plan: EliminationPlan, cells: Array, step: Array) -> tuple[Array, Array]:
    """Which cells a step reads ``[inputs, states, rows]``, and the logarithms of its summands."""
    index = lax.dynamic_index_in_dim(plan.index, step, axis=2, keepdims=False)
    return index, jnp.sum(cells[index], axis=0)


def _counter(plan: EliminationPlan) -> Array:
    return jnp.arange(plan.index.shape[2], dtype=jnp.int32)


def _at_roots(plan: EliminationPlan, cells: Array) -> Array:
    return jnp.zeros_like(cells).at[plan.roots].add(1.0)


def _given(plan: EliminationPlan, cells: Array) -> Array:
    """The cells of potentials and evidence."""
    return cells[2 : plan.inputs]


def _rows(plan: EliminationPlan, cells: Array, step: Array) -> Array:
    """The cells that a step computes."""
    width = plan.index.shape[3]
    return lax.dynamic_slice(cells, (plan.inputs + step * width,), (width,))


def _write(plan: EliminationPlan, cells: Array, rows: Array, step: Array) -> Array:
    start = plan.inputs + step * plan.index.shape[3]
    return lax.dynamic_update_slice(cells, rows, (start,))
