"""Contract of the inference operators, and the loop that every iterative one shares."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._adjoint import AbstractAdjoint
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
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
        few = residual <= 4 * jnp.finfo(residual.dtype).eps
        rounding = few & (result == RESULTS.not_converged)
        result = RESULTS.where(rounding, RESULTS.limited_by_rounding, result)
    result = RESULTS.where(empty, RESULTS.contradiction, result)
    return RESULTS.where(broken, RESULTS.nonfinite, result)


def size_in_words(size: float) -> str:
    """Bytes in the unit that suits."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
