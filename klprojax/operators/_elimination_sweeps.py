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
    arrays = jnp.asarray(plan.index), jnp.asarray(plan.roots)
    covariance = _cumulant.bind(*arrays, flat, d_flat, inputs=plan.inputs)
    return (log_partition, marginals), (jnp.dot(marginals, d_flat), covariance)


log_partition_and_marginals.defjvp(_derivatives)

# Operands: the plan's index and roots, the buffer, then k >= 1 directions, all these with the same
# leading batch axes. Result: D^k of the marginals.
_cumulant = Primitive("marginal_cumulant")


@partial(jax.jit, static_argnames="inputs")
def _evaluate(index, roots, flat, *directions, inputs):
    plan = EliminationPlan(index, roots, inputs, 0, 0)

    def derivative(order):
        if order == 0:
            return lambda flat, *_: _sweeps(plan, flat)[1]
        lower = derivative(order - 1)
        return lambda flat, *d: jax.jvp(lambda f: lower(f, *d), (flat,), (d[order - 1],))[1]

    function = derivative(len(directions))
    for _ in range(flat.ndim - 1):
        function = jax.vmap(function)
    return function(flat, *directions)


def _derivative_rule(primals, tangents, *, inputs):
    index, roots, flat, *directions = primals
    _, _, d_flat, *d_directions = tangents
    bind = partial(_cumulant.bind, index, roots, flat, inputs=inputs)
    terms = [
        bind(*directions[:k], d_direction, *directions[k + 1 :])
        for k, d_direction in enumerate(d_directions)
        if type(d_direction) is not ad.Zero
    ]
    if type(d_flat) is not ad.Zero:
        terms.append(bind(*directions, d_flat))
    return bind(*directions), sum(terms[1:], terms[0])


def _transpose_rule(cotangent, *operands, inputs):
    unknown = [k for k, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    (k,) = unknown  # linear in each direction alone, so only one can be unknown
    result: list[Any] = [None] * len(operands)
    if type(cotangent) is ad.Zero:
        result[k] = ad.Zero(operands[k].aval)
    else:
        result[k] = _cumulant.bind(*operands[:k], cotangent, *operands[k + 1 :], inputs=inputs)
    return result


def _batching_rule(operands, axes, *, inputs):
    index, roots, *arrays = operands
    if axes[0] is not None or axes[1] is not None:
        raise ValueError("An elimination plan cannot be mapped over; close over the graph.")
    size = next(
        array.shape[axis] for array, axis in zip(arrays, axes[2:], strict=True) if axis is not None
    )
    moved = [
        jnp.broadcast_to(array, (size, *array.shape))
        if axis is None
        else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes[2:], strict=True)
    ]
    return _cumulant.bind(index, roots, *moved, inputs=inputs), 0


_cumulant.def_impl(_evaluate)
_cumulant.def_abstract_eval(lambda index, roots, flat, *directions, inputs: flat)
ad.primitive_jvps[_cumulant] = _derivative_rule
ad.primitive_transposes[_cumulant] = _transpose_rule
batching.primitive_batchers[_cumulant] = _batching_rule
mlir.register_lowering(_cumulant, mlir.lower_fun(_evaluate, multiple_results=False))


def _sweeps(plan: EliminationPlan, flat: Array) -> tuple[Array, Array]:
    _, _, steps, width = plan.index.shape
    given = jnp.concatenate([jnp.asarray([0.0, -jnp.inf], flat.dtype), flat])
    cells = jnp.zeros(plan.inputs + steps * width, flat.dtype).at[: plan.inputs].set(given)

    def up(cells, step):
        index = lax.dynamic_index_in_dim(plan.index, step, axis=2, keepdims=False)
        rows = safe_logsumexp(jnp.sum(cells[index], axis=0), axis=0)
        return lax.dynamic_update_slice(cells, rows, (plan.inputs + step * width,)), None

    counter = jnp.arange(steps, dtype=jnp.int32)
    cells, _ = lax.scan(up, cells, counter)
    log_partition = jnp.sum(cells[plan.roots])

    def down(slopes, step):
        index = lax.dynamic_index_in_dim(plan.index, step, axis=2, keepdims=False)
        start = (plan.inputs + step * width,)
        rows = lax.dynamic_slice(cells, start, (width,))
        slope = lax.dynamic_slice(slopes, start, (width,))
        terms = jnp.sum(cells[index], axis=0)
        live = ~jnp.isneginf(terms)
        exponent = jnp.where(live, terms - jnp.where(jnp.isneginf(rows), 0.0, rows)[None], 0.0)
        share = jnp.where(live, jnp.exp(exponent) * slope[None], 0.0)
        return slopes.at[index].add(jnp.broadcast_to(share, index.shape)), None

    slopes = jnp.zeros_like(cells).at[plan.roots].add(1.0)
    slopes, _ = lax.scan(down, slopes, counter, reverse=True)
    return log_partition, slopes[2 : plan.inputs]
