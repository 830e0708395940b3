"""The two sweeps of variable elimination over one flat buffer, and their derivatives to any order.

The log-partition is a function ``F`` of the buffer, the marginals are its gradient, and their k-th
directional derivative ``D^k`` is a symmetric multilinear form of F's (k+1)-th derivative: the
cumulants of the distribution. So each ``D^k`` is its own transpose in every direction, and one
primitive with these rules is closed under ``jvp``, ``vjp`` and ``vmap``. Without it, reverse mode
would transpose the scans, which touches the whole buffer at every step.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .._types import Scalar
from ..geometry import safe_logsumexp
from ._elimination_plan import EliminationPlan


@jax.custom_jvp
def log_partition_and_marginals(
    plan: EliminationPlan, flat: Float[Array, " cells"]
) -> tuple[Scalar, Float[Array, " cells"]]:
    """Upward and downward sweep.

    Args:
        flat: all potentials, then all evidence, each table flattened (nats).

    Returns:
        log Z in nats, and its derivative in ``flat``: the marginal probability of each entry.
    """
    return _sweeps(plan, flat)


def _derivatives(primals, tangents):
    plan, flat = primals
    _, d_flat = tangents
    log_partition, marginals = log_partition_and_marginals(plan, flat)
    arrays, structure = jax.tree.flatten(plan)
    covariance = _cumulant.bind(*arrays, flat, d_flat, structure=structure)
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    slope = jnp.dot(marginals, d_flat, precision=jax.lax.Precision.HIGHEST)
    return (log_partition, marginals), (slope, covariance)


log_partition_and_marginals.defjvp(_derivatives)

# Operands: the plan's arrays, the buffer, then k >= 1 directions, all these with the same leading
# batch axes. Result: D^k of the marginals.
_cumulant = Primitive("marginal_cumulant")


@partial(jax.jit, static_argnames="structure")
def _evaluate(*operands, structure):
    plan, flat, directions = _unpack(operands, structure)

    def derivative(order):
        if order == 0:
            return lambda flat, *_: _sweeps(plan, flat)[1]
        lower = derivative(order - 1)
        return lambda flat, *d: jax.jvp(lambda f: lower(f, *d), (flat,), (d[order - 1],))[1]

    function = derivative(len(directions))
    for _ in range(flat.ndim - 1):
        function = jax.vmap(function)
    return function(flat, *directions)


def _unpack(operands, structure) -> tuple[EliminationPlan, Any, tuple]:
    arrays, (flat, *directions) = _halves(operands, structure)
    return jax.tree.unflatten(structure, arrays), flat, tuple(directions)


def _halves(operands, structure) -> tuple[tuple, tuple]:
    """The plan's arrays, and the rest."""
    return operands[: structure.num_leaves], operands[structure.num_leaves :]


def _derivative_rule(primals, tangents, *, structure):
    arrays, (flat, *directions) = _halves(primals, structure)
    _, (d_flat, *d_directions) = _halves(tangents, structure)
    bind = partial(_cumulant.bind, *arrays, flat, structure=structure)
    terms = [
        bind(*directions[:k], d_direction, *directions[k + 1 :])
        for k, d_direction in enumerate(d_directions)
        if type(d_direction) is not ad.Zero
    ]
    if type(d_flat) is not ad.Zero:
        terms.append(bind(*directions, d_flat))
    return bind(*directions), sum(terms[1:], terms[0])


def _transpose_rule(cotangent, *operands, structure):
    unknown = [k for k, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    (k,) = unknown  # linear in each direction alone, so only one can be unknown
    result: list[Any] = [None] * len(operands)
    if type(cotangent) is ad.Zero:
        result[k] = ad.Zero(operands[k].aval)
    else:
        filled = (*operands[:k], cotangent, *operands[k + 1 :])
        result[k] = _cumulant.bind(*filled, structure=structure)
    return result


def _batching_rule(operands, axes, *, structure):
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
    return _cumulant.bind(*plan, *moved, structure=structure), 0


def _shape_rule(*operands, structure):
    return operands[structure.num_leaves]


_cumulant.def_impl(_evaluate)
_cumulant.def_abstract_eval(_shape_rule)
ad.primitive_jvps[_cumulant] = _derivative_rule
ad.primitive_transposes[_cumulant] = _transpose_rule
batching.primitive_batchers[_cumulant] = _batching_rule
mlir.register_lowering(_cumulant, mlir.lower_fun(_evaluate, multiple_results=False))


def _sweeps(plan: EliminationPlan, flat: Array) -> tuple[Array, Array]:
    _, _, steps, width = plan.index.shape
    slots = plan.slots
    given = jnp.concatenate([jnp.asarray([0.0, -jnp.inf], flat.dtype), flat])
    cells = jnp.zeros(plan.inputs + steps * width, flat.dtype).at[: plan.inputs].set(given)
    # The largest entry of each table leaves the sums that read it, so numbers keep the size of
    # one table's range however many are chained. It is a gauge: no derivative passes through it.
    tops = jnp.full(plan.sources.shape[0], -jnp.inf, flat.dtype)

    def terms_of(cells, step):
        index = lax.dynamic_index_in_dim(plan.index, step, axis=2, keepdims=False)
        return index, jnp.sum(cells[index], axis=0)

    def up(carry, step):
        cells, tops = carry
        owner = plan.owner[step]
        start = plan.first[step]
        sources = lax.dynamic_slice_in_dim(plan.sources, start, slots)
        level = jnp.sum(_finite(tops[sources]), axis=1)
        rows = safe_logsumexp(terms_of(cells, step)[1], axis=0) - level[owner]
        cells = lax.dynamic_update_slice(cells, rows, (plan.inputs + step * width,))
        here = lax.dynamic_slice_in_dim(tops, start, slots)
        here = here.at[owner].max(lax.stop_gradient(rows))
        return (cells, lax.dynamic_update_slice_in_dim(tops, here, start, axis=0)), None

    counter = jnp.arange(steps, dtype=jnp.int32)
    (cells, tops), _ = lax.scan(up, (cells, tops), counter)
    gauge = jnp.sum(_finite(tops)) - jnp.sum(_finite(tops[plan.root_tables]))
    log_partition = jnp.sum(cells[plan.roots]) + gauge

    def down(slopes, step):
        slope = lax.dynamic_slice(slopes, (plan.inputs + step * width,), (width,))
        index, terms = terms_of(cells, step)
        top = lax.stop_gradient(_finite(jnp.max(terms, axis=0)))
        weights = jnp.exp(terms - top[None])
        total = jnp.sum(weights, axis=0)
        share = weights * (slope / jnp.where(total == 0.0, 1.0, total))[None]
        return slopes.at[index].add(jnp.broadcast_to(share, index.shape)), None

    slopes = jnp.zeros_like(cells).at[plan.roots].add(1.0)
    slopes, _ = lax.scan(down, slopes, counter, reverse=True)
    return log_partition, slopes[2 : plan.inputs]


def _finite(log_values: Array) -> Array:
    """The numbers, 0 for `-inf`."""
    return jnp.where(jnp.isneginf(log_values), 0.0, log_values)
