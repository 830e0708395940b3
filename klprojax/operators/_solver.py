"""Contract of the inference operators, and the loop that every iterative one shares."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._adjoint import AbstractAdjoint
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from ..graphs import FactorGraph


class AbstractSolver(eqx.Module):
    """An inference operator: log-potentials and evidence in, `Solution` out."""

    @abc.abstractmethod
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
        """Solve; see `infer` for the meaning of the arguments."""


def verdict(
    log_beliefs: VariableTables,
    log_partition: Float[Array, ""],
    converged: Bool[Array, ""] | bool,
    residual: Float[Array, ""] | None = None,
) -> RESULTS:
    """Judge the final numbers: contradiction, non-finite, not converged or successful.

    A `residual` of a few roundings that still does not meet the tolerance never will.
    """
    empty = jnp.isneginf(log_partition)
    broken = jnp.bool_(False)
    for table in log_beliefs:
        empty = empty | jnp.any(jnp.all(jnp.isneginf(table), axis=-1))
        broken = broken | jnp.any(jnp.isnan(table) | jnp.isposinf(table))
    result = RESULTS.where(jnp.asarray(converged), RESULTS.successful, RESULTS.not_converged)
    if residual is not None:
        rounding = ~jnp.asarray(converged) & (residual <= 4 * jnp.finfo(residual.dtype).eps)
        result = RESULTS.where(rounding, RESULTS.limited_by_rounding, result)
    result = RESULTS.where(empty, RESULTS.contradiction, result)
    return RESULTS.where(broken, RESULTS.nonfinite, result)
