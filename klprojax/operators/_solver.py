"""Contract of the inference operators, and the loop that every iterative one shares."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._adjoint import AbstractAdjoint
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from .._variables import put_all
from ..graphs import DiscreteModel, FactorGraph


class TooLargeError(ValueError):
    """Exact inference would take more memory than it may; the message says how much."""


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


class AbstractIterativeSolver(AbstractSolver):
    """A solver that repeats one step. `infer` stops it by `terminate`, as a loop by hand would:

    state = solver.init(graph, log_potentials)
    while not solver.terminate(state)[0]:
        state = solver.step(graph, log_potentials, state, log_evidence)
    """

    tolerance: eqx.AbstractVar[float]

    @abc.abstractmethod
    def init(self, graph: FactorGraph, log_potentials: FactorTables) -> Any:
        """The state before the first step; its ``residual`` is infinite."""

    @abc.abstractmethod
    def step(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        state: Any,
        log_evidence: VariableTables | None = None,
    ) -> Any:
        """The state after one more step, whose ``residual`` is its largest change."""

    def terminate(self, state: Any) -> tuple[Bool[Array, ""], RESULTS]:
        """Whether the last step met the tolerance, and what the result is if the loop ends here.

        With tolerance 0 the loop never ends by itself, and ends well wherever it is ended.

        Args:
            state: what `init` or `step` returned.
        """
        done = jnp.asarray(state.residual < self.tolerance)
        met = done | (self.tolerance == 0.0)
        return done, RESULTS.where(met, RESULTS.successful, RESULTS.not_converged)


def check_problem(graph: Any, log_potentials: Any, log_evidence: Any) -> None:
    """Raise a ValueError unless these are a graph, tables that fit it, and evidence tables."""
    if not isinstance(graph, FactorGraph):
        advice = (
            "take graph and tables out of the model: graph, log_potentials = model.to_graph()"
            if isinstance(graph, DiscreteModel)
            else "make one from cardinalities and scopes: FactorGraph([2, 2], [(0, 1)])"
        )
        raise ValueError(f"graph is {_said(graph)}; expected a FactorGraph: {advice}.")
    for name, tables in (("log_potentials", log_potentials), ("log_evidence", log_evidence)):
        if tables is None and name == "log_evidence":
            continue
        if isinstance(tables, tuple | list) and all(hasattr(t, "dtype") for t in tables):
            continue
        maker = "graph.pack(tables)" if name == "log_potentials" else "graph.log_evidence({0: 1})"
        names = "; model.evidence({...}) turns names into numbers" * isinstance(tables, Mapping)
        raise ValueError(
            f"{name} is {_said(tables)}; expected a tuple of arrays in nats, as {maker} makes them"
            f"{names}."
        )
    graph.check(tuple(log_potentials), None if log_evidence is None else tuple(log_evidence))


def check_object(name: str, got: Any, kind: type, examples: str) -> None:
    """Raise a ValueError unless an option is an object of its kind: no name, no class."""
    if not isinstance(got, kind):
        instead = f"{got.__name__}()" if isinstance(got, type) else examples
        raise ValueError(
            f"{name} is {_said(got)}; expected an object with its settings. Write {instead}."
        )


def _said(got: Any) -> str:
    if isinstance(got, type):
        return f"the class {got.__name__}"
    return repr(got) if isinstance(got, str) else f"of type {type(got).__name__}"


# A residual of so many roundings will not become smaller.
_FEW_ROUNDINGS = 4


def verdict(
    log_beliefs: VariableTables,
    log_partition: Float[Array, ""],
    result: RESULTS = RESULTS.successful,
    residual: Float[Array, ""] | None = None,
) -> RESULTS:
    """Judge the final numbers: contradiction or non-finite, or else how the loop ended.

    A `residual` of a few roundings that still does not meet the tolerance never will.
    """
    empty = jnp.isneginf(log_partition)
    broken = jnp.bool_(False)
    for table in log_beliefs:
        empty = empty | jnp.any(jnp.all(jnp.isneginf(table), axis=-1))
        broken = broken | jnp.any(jnp.isnan(table) | jnp.isposinf(table))
    if residual is not None:
        few = residual <= _FEW_ROUNDINGS * jnp.finfo(residual.dtype).eps
        rounding = few & (result == RESULTS.not_converged)
        result = RESULTS.where(rounding, RESULTS.limited_by_rounding, result)
    result = RESULTS.where(empty, RESULTS.contradiction, result)
    return RESULTS.where(broken, RESULTS.nonfinite, result)


def known_solution(
    dtype: Any,
    log_beliefs: Sequence[np.ndarray],
    log_partition: float,
    factor_log_beliefs: Sequence[np.ndarray] | None,
    *,
    met: bool = True,
    residual: float = 0.0,
    steps: int = 0,
    diverged: bool = False,
    state: Any = None,
    exact: bool = False,
) -> Solution:
    """The solution of numpy's numbers, judged as by `verdict`; nothing is compiled.

    Args:
        dtype: of the tables.
        log_beliefs: by cardinality.
        log_partition: nats.
        factor_log_beliefs: by group, or None.
        met: whether the tolerance was met.
        residual: of the last step.
        steps: how many were made.
        diverged: whether messages grew without bound.
        state: for a warm start.
        exact: whether the numbers are exact.
    """
    result = RESULTS.successful
    if not met:
        few = residual <= _FEW_ROUNDINGS * float(jnp.finfo(dtype).eps)
        result = RESULTS.limited_by_rounding if few else RESULTS.not_converged
    empty = (np.isneginf(table).all(axis=-1).any() for table in log_beliefs)
    if log_partition == -np.inf or any(empty):
        result = RESULTS.contradiction
    if any((np.isnan(table) | (table == np.inf)).any() for table in log_beliefs):
        result = RESULTS.nonfinite
    if diverged:
        result = RESULTS.diverged
    factors = None if factor_log_beliefs is None else tuple(factor_log_beliefs)
    floats = {
        "log_beliefs": tuple(log_beliefs),
        "log_partition": log_partition,
        "factor_log_beliefs": factors,
        "residual": residual,
    }
    known = jax.tree.map(lambda number: np.asarray(number, dtype), floats)
    known |= {"steps": np.int32(steps), "converged": np.bool_(met)}
    return Solution(**put_all(known), result=result, state=state, exact=exact)


def size_in_words(size: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
