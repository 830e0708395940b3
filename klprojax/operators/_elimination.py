"""Variable elimination: T_Proj wherever the treewidth allows, in the log domain.

One upward sweep gives the log-partition, one downward sweep the marginals of all variables and
factors: the downward values are the derivatives of the upward one (as in section 4.2, here for any
factor graph). The derivative of the marginals is their covariance, a symmetric matrix, so the same
forward-mode sweep serves jvp and vjp.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from .._adjoint import AbstractAdjoint
from .._solution import Solution
from .._types import FactorTables, Scalar, VariableTables
from ..geometry import safe_logsumexp
from ..graphs import FactorGraph
from ._elimination_plan import EliminationPlan, plan_elimination
from ._messages import batched, dense
from ._solver import AbstractSolver, verdict


class Elimination(AbstractSolver):
    """Compute the exact log-partition and all exact marginals by variable elimination.

    Cost and memory are the tables of the best elimination order found: exponential in the
    treewidth, independent of loops as such. The order is found once per graph structure, on the
    host, so the graph must be closed over, not passed through ``jit`` as an argument.

    Args:
        memory_limit: bytes that the program and its buffers may take.

    Raises (when used):
        ValueError: the predicted size exceeds ``memory_limit``; the message says by how much.

    Differentiation:
        Forward and reverse, to any order. Derivatives of the log-partition are the marginals,
        derivatives of the marginals one forward-mode sweep.

    Reference: section 3.1 (T_Proj on every graph), Theorem 4.1 (derivatives equal marginals).
    """

    memory_limit: int = eqx.field(static=True, default=4 * 2**30)

    def solve(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        *,
        max_steps: int,
        adjoint: AbstractAdjoint,
        init: Any,
        factor_beliefs: bool,
    ) -> Solution:
        """See `infer`; ``max_steps``, ``adjoint`` and ``init`` play no part."""
        if log_evidence is None:
            dtype = log_potentials[0].dtype if log_potentials else None
            log_evidence = graph.log_evidence(dtype=dtype)
        if any(group.rule is not None for group in graph.signature.groups):
            log_potentials = dense(graph, batched(graph, log_potentials))
            log_potentials = tuple(
                jnp.broadcast_to(table, (group.count, *group.shape))
                for table, group in zip(log_potentials, graph.signature.groups, strict=True)
            )
        if factor_beliefs:
            # A shared table's gradient sums over its factors; beliefs are wanted for each.
            log_potentials = tuple(
                jnp.broadcast_to(table, (group.count, *group.shape))
                for table, group in zip(log_potentials, graph.signature.groups, strict=True)
            )
        return _solve(
            self.plan(graph, log_potentials), log_potentials, log_evidence, factor_beliefs
        )

    def plan(self, graph: FactorGraph, log_potentials: FactorTables) -> EliminationPlan:
        """The program and its size: ``plan.total_entries``, ``plan.largest_entries``."""
        shared = tuple(
            group.rule is None and table.ndim == len(group.shape)
            for table, group in zip(log_potentials, graph.signature.groups, strict=True)
        )
        itemsize = log_potentials[0].dtype.itemsize if log_potentials else 8
        return plan_elimination(graph, shared, itemsize, self.memory_limit)


@eqx.filter_jit
def _solve(
    plan: EliminationPlan,
    log_potentials: FactorTables,
    log_evidence: VariableTables,
    factor_beliefs: bool,
) -> Solution:
    tables = (*log_potentials, *log_evidence)
    flat = jnp.concatenate([table.reshape(-1) for table in tables])
    log_partition, marginals = log_partition_and_marginals(plan, flat)
    ends = np.cumsum([math.prod(table.shape) for table in tables])[:-1]
    log_marginals = [
        _safe_log(part.reshape(table.shape))
        for part, table in zip(jnp.split(marginals, ends), tables, strict=True)
    ]
    beliefs = tuple(log_marginals[len(log_potentials) :])
    return Solution(
        log_beliefs=beliefs,
        log_partition=log_partition,
        factor_log_beliefs=tuple(log_marginals[: len(log_potentials)]) if factor_beliefs else None,
        result=verdict(beliefs, True),
        residual=jnp.zeros_like(log_partition),
        steps=jnp.int32(0),
        converged=jnp.bool_(True),
        exact=True,
    )


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
    return (log_partition, marginals), (
        jnp.dot(marginals, d_flat),
        _covariance(plan, flat, d_flat),
    )


log_partition_and_marginals.defjvp(_derivatives)


@jax.custom_jvp
def _covariance(plan: EliminationPlan, flat: Array, direction: Array) -> Array:
    """Derivative of the marginals in a direction; linear and symmetric in it."""
    # The wrapper tells JAX how to transpose the map: it is its own transpose. Transposing the
    # scans instead would touch the whole buffer at every step.
    return lax.custom_linear_solve(
        lambda x: x,
        direction,
        solve=lambda _, b: _forward_covariance(plan, flat, b),
        symmetric=True,
    )


def _covariance_derivatives(primals, tangents):
    plan, flat, direction = primals
    _, d_flat, d_direction = tangents
    value = _covariance(plan, flat, direction)
    out = jnp.zeros_like(value)
    if not isinstance(d_direction, SymbolicZero):
        out = out + _covariance(plan, flat, d_direction)
    if not isinstance(d_flat, SymbolicZero):
        out = (
            out + jax.jvp(lambda f: _forward_covariance(plan, f, direction), (flat,), (d_flat,))[1]
        )
    return value, out


_covariance.defjvp(_covariance_derivatives, symbolic_zeros=True)


def _forward_covariance(plan: EliminationPlan, flat: Array, direction: Array) -> Array:
    return jax.jvp(lambda f: _sweeps(plan, f), (flat,), (direction,))[1][1]


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


def _safe_log(probabilities: Array) -> Array:
    positive = probabilities > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1.0)), -jnp.inf)
