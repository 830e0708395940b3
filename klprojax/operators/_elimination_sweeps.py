"""The two sweeps of variable elimination over one flat buffer, and their derivatives to any order.

The log-partition is a function ``F`` of the buffer, the marginals ``p`` are its gradient, and
their k-th directional derivative ``D^k p`` is a symmetric multilinear form of F's (k+1)-th
derivative: the cumulants of the distribution. Logarithms of marginals need it divided by ``p``
itself, so one of its k+1 slots is in units of ``p``: the result, or one direction. Transposing
swaps the two, so one primitive with these rules is closed under ``jvp``, ``vjp`` and ``vmap``.
Without it, reverse mode would transpose the scans, which touches the whole buffer at every step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .._batching import batch_last
from .._types import Scalar
from ..geometry import finite_part, safe_log
from ._elimination_plan import EliminationPlan
from ._elimination_steps import terms

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
    return batch_last(partial(_both_sweeps, first, route), plan, flat)


def _both_sweeps(first: int, route: Route, plan: EliminationPlan, flat: Array) -> Marginals:
    log_partition, up = _upward(plan, flat)
    if route == "log":
        units = _log_marginals(plan, up)
        return Marginals(log_partition, _given(plan, units), units, jnp.bool_(True))
    marginals = _marginals(plan, up)
    info = jnp.finfo(flat.dtype)
    # Below this, what was lost to underflow could be more than rounding.
    low = float(info.tiny) / float(info.eps) ** 2
    some = marginals[first:]
    lost = jnp.any((some > 0.0) & (some < low))  # in any element of a batch
    log_marginals = safe_log(marginals)
    if route == "linear":
        return Marginals(log_partition, log_marginals, jnp.zeros_like(flat[:0]), lost)
    units = lax.cond(lost, partial(_log_marginals, plan), lambda up: jnp.zeros_like(up.cells), up)
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

    last = [jnp.moveaxis(array, -1, 0) for array in (flat, units, *directions)]
    return jnp.moveaxis(derivative(len(directions))(*last), 0, -1)


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


class Upward(NamedTuple):
    """What the upward sweep leaves.

    cells: the buffer with the entries of all products. tops: the largest entry of each table.
    sources: which tables each is computed from. tangents: of the cells, see `_upward`.
    """

    cells: Float[Array, " all"]
    tops: Float[Array, " tables"]
    sources: Array
    tangents: Any


def _upward(
    plan: EliminationPlan, flat: Array, along: tuple[Array, Array] | None = None
) -> tuple[Array, Upward]:
    """Log-partition and the buffer, with tangents ``along = (direction, units)``.

    Tangents of the cells are for the direction times ``exp(units)``, and in these units.
    """
    batch = flat.shape[1:]
    constants = jnp.zeros((2, *batch), flat.dtype).at[1].set(-jnp.inf)
    given = jnp.concatenate([constants, flat])
    cells = jnp.zeros((plan.cells, *batch), flat.dtype).at[: plan.inputs].set(given)
    tangents = None if along is None else jnp.zeros_like(cells).at[2 : plan.inputs].set(along[0])
    # The largest entry of each table leaves the sums that read it, so numbers keep the size of
    # one table's range however many are chained. It is a gauge: no derivative passes through it.
    tops = jnp.full((plan.sources.shape[0], *batch), -jnp.inf, flat.dtype)

    def up(carry, step):
        cells, tops, tangents = carry
        values = step.read(cells)
        sums = step.log_sums(values)
        if along is not None:
            log_shares = terms(values) - finite_part(sums)[None]
            parts = _parts(step, log_shares, along[1])
            products = [p * t for p, t in zip(parts, step.read(tangents), strict=True)]
            tangent = sum(jnp.sum(product, axis=(0, 1)) for product in products)
            tangents = step.write(tangents, tangent)
        rows = sums - step.level(tops, plan.sources)
        cells = step.write(cells, rows)
        return cells, step.raise_tops(tops, lax.stop_gradient(rows)), tangents

    cells, tops, tangents = _swept(plan, up, (cells, tops, tangents))
    gauge = _total(finite_part(tops)) - _total(finite_part(tops[plan.root_tables]))
    log_partition = _total(cells[plan.roots]) + gauge
    return log_partition, Upward(cells, tops, plan.sources, tangents)


def _total(numbers: Array) -> Array:
    return jnp.sum(numbers, axis=0)


def _swept(plan: EliminationPlan, body: Callable, carry: Any, reverse: bool = False) -> Any:
    for phase in reversed(plan.phases) if reverse else plan.phases:
        carry = phase.sweep(body, carry, reverse)
    return carry


def _marginals(plan: EliminationPlan, up: Upward) -> Array:
    """Downward sweep in linear space; what is possible is never 0."""
    least = float(jnp.finfo(up.cells.dtype).tiny)

    def down(slopes, step):
        slope = step.own(slopes)
        values = step.read(up.cells)
        share = step.shares(values, _near(step, up)) * slope[None]
        share = jnp.where(share < least, least, share)
        share = jnp.where(jnp.isneginf(terms(values)) | (slope == 0.0)[None], 0.0, share)
        return step.add(slopes, step.each(share))

    return _given(plan, _swept(plan, down, _at_roots(plan, up.cells), reverse=True))


def _log_marginals(plan: EliminationPlan, up: Upward) -> Array:
    """Downward sweep in the log domain; of all entries, the products' too."""

    def down(carry, step):
        # A sum of exponentials that grows: its largest term, and the sum relative to that.
        tops, sums = carry
        log_slope = safe_log(step.own(sums)) + step.own(tops)
        shares = step.each(_log_shares(step, up) + log_slope[None])
        before = step.read(tops)
        tops = step.raised(tops, shares)
        after = [finite_part(top) for top in step.read(tops)]
        sums = step.put(
            sums,
            [s * jnp.exp(b - a) for s, b, a in zip(step.read(sums), before, after, strict=True)],
        )
        added = [jnp.exp(share - a) for share, a in zip(shares, after, strict=True)]
        return tops, step.add(sums, added)

    roots = _at_roots(plan, up.cells)
    start = jnp.where(roots > 0.0, jnp.zeros_like(roots), -jnp.inf), roots
    tops, sums = _swept(plan, down, start, reverse=True)
    return safe_log(sums) + tops


def _in_units_of_result(plan: EliminationPlan, flat: Array, units: Array) -> Array:
    """The marginals, each divided by ``exp(units)``: for its derivatives, to any order."""
    _, up = _upward(plan, flat)

    def down(ratios, step):
        parts = _parts(step, _log_shares(step, up), units)
        ratio = step.own(ratios)[None, None]
        return step.add(ratios, [part * ratio for part in parts])

    return _given(plan, _swept(plan, down, _at_roots(plan, up.cells), reverse=True))


def _in_units_of_direction(
    plan: EliminationPlan, flat: Array, units: Array, direction: Array
) -> Array:
    """Derivative of the marginals along ``direction / exp(units)``, however small the units."""
    _, up = _upward(plan, flat, (direction, units))

    def down(carry, step):
        ratios, slopes = carry
        log_shares = _log_shares(step, up)
        ratio = step.own(ratios)
        parts = [part * ratio[None, None] for part in _parts(step, log_shares, units)]
        # d(p share) = dp share + p share (d terms - d row)
        rest = step.own(slopes) - ratio * step.own(up.tangents)
        products = [p * t for p, t in zip(parts, step.read(up.tangents), strict=True)]
        slope = jnp.exp(log_shares) * rest[None] + terms(products)
        return step.add(ratios, parts), step.add(slopes, step.each(slope))

    start = _at_roots(plan, up.cells), jnp.zeros_like(up.cells)
    return _given(plan, _swept(plan, down, start, reverse=True)[1])


def _parts(step: Any, log_shares: Array, units: Array) -> list[Array]:
    """What each summand of a row adds to the cells it reads, both in their units."""
    own = step.own(units)[None, None]
    return [jnp.exp(log_shares[None] + (own - finite_part(u))) for u in step.read(units)]


def _log_shares(step: Any, up: Upward) -> Array:
    """Logarithms of the part that each summand has in its row's sum, ``[states, *rows]``."""
    return step.log_shares(step.read(up.cells), _near(step, up))


def _near(step: Any, up: Upward) -> Array:
    """The logarithms of the rows' sums as they were, up to rounding."""
    return step.own(up.cells) + step.level(up.tops, up.sources)


def _at_roots(plan: EliminationPlan, cells: Array) -> Array:
    return jnp.zeros_like(cells).at[plan.roots].add(1.0)


def _given(plan: EliminationPlan, cells: Array) -> Array:
    """The cells of potentials and evidence."""
    return cells[2 : plan.inputs]
