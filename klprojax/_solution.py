"""What every inference call returns: beliefs, log-partition, a verdict and a certificate."""

from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ._types import FactorTables, Scalar, VariableTables
from ._variables import on_this_cpu, put_all


class RESULTS(eqx.Enumeration):
    """Outcome of an inference call; each message says what to do next."""

    successful = ""
    not_converged = (
        "The messages were still changing by more than the tolerance after max_steps. Raise "
        "max_steps, add damping, or try another schedule; throw=False returns what there is."
    )
    limited_by_rounding = (
        "The messages change by rounding alone, but the tolerance is below that: the result is as "
        "good as this float type allows. Raise the tolerance, or use float64."
    )
    diverged = (
        "The messages grow without bound: zeros among the factors let the iteration amplify them "
        "from step to step. Add damping, or use the Sequential schedule or an exact solver; "
        "throw=False returns what there is."
    )
    contradiction = (
        "Every joint state has probability zero: the zeros of the factors, and the evidence if "
        "there is any, exclude all states of some variable. Remove or soften an observation; "
        "without evidence, correct the factors."
    )
    out_of_range = (
        "engine='fast' met potentials beyond its range (-inf, or too large for this float type). "
        "Use engine='auto' or 'log'."
    )
    nonfinite = (
        "A NaN or an infinite positive value appeared. Check the log-potentials: -inf is allowed, "
        "NaN and +inf are not."
    )


class Solution(eqx.Module):
    """Result of `infer`, the same for every solver.

    Attributes:
        log_beliefs: log-probabilities of every variable, one array per cardinality
            (see `FactorGraph.unpack_variables`). Exact log-marginals when ``exact``.
        log_partition: log Z in nats: exact, or the Bethe approximation when not ``exact``.
            For max-product, the value of the maximum (exact on trees).
        factor_log_beliefs: log-probabilities of every factor's scope, laid out like
            ``log_potentials``; None unless asked for.
        result: a `RESULTS` member.
        residual: largest change of a message in the last step; 0 when exact, infinite when the
            messages diverged.
        steps: iterations done; 0 for a direct method.
        converged: whether the residual met the tolerance; always true for exact solvers.
        state: solver state, accepted by `infer(..., init=)` as a warm start; None if there is none.
        exact: whether the numbers are exact (up to rounding) by construction.
        stats: further figures, by name.
    """

    log_beliefs: VariableTables
    log_partition: Scalar
    factor_log_beliefs: FactorTables | None
    result: RESULTS
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    state: Any = None
    exact: bool = eqx.field(static=True, default=False)
    stats: dict[str, Any] = eqx.field(default_factory=dict)

    def __repr__(self) -> str:
        """The verdict in words, its figures, and the sizes of what else is there."""
        lines = [
            _verdict(self.result),
            f"log_partition: {_figure(self.log_partition)} nats",
            f"exact: {self.exact}, converged: {_figure(self.converged)}, "
            f"steps: {_figure(self.steps)}, residual: {_figure(self.residual)}",
            f"log_beliefs: {_sizes(self.log_beliefs)}",
        ]
        if self.factor_log_beliefs is not None:
            lines.append(f"factor_log_beliefs: {_sizes(self.factor_log_beliefs)}")
        lines += [f"{name}: {_figure(value)}" for name, value in self.stats.items()]
        return "Solution(\n  " + "\n  ".join(lines) + "\n)"

    @property
    def beliefs(self) -> tuple[Float[Array, "..."], ...]:
        """Probabilities of every variable (linear space), one array per cardinality."""
        return _exp(self.log_beliefs)

    @property
    def marginals(self) -> tuple[Float[Array, "..."], ...]:
        """Exact marginals; a ValueError when the solver only approximates (use ``beliefs``)."""
        if not self.exact:
            raise ValueError(
                "These are approximate beliefs, not marginals: read `solution.beliefs`, or use an "
                "exact solver (Elimination(), or BeliefPropagation(schedule=TreeSweep()) on a tree)"
            )
        return self.beliefs

    @property
    def factor_beliefs(self) -> tuple[Float[Array, "..."], ...]:
        """Probabilities of every factor's scope (linear space); needs ``factor_beliefs=True``."""
        if self.factor_log_beliefs is None:
            raise ValueError("Ask for them: infer(..., factor_beliefs=True).")
        return _exp(self.factor_log_beliefs)


def _exp(log_tables: tuple[Any, ...]) -> tuple[Array, ...]:
    """Out of the log domain; by numpy where that can, as a program per shape takes long to make."""
    if all(map(on_this_cpu, log_tables)):
        return put_all(tuple(np.exp(np.asarray(table)) for table in log_tables))
    return tuple(jnp.exp(table) for table in log_tables)


def _verdict(result: Any) -> str:
    """The name of the result and its advice; of a batch, how often each occurs."""
    codes = _known(getattr(result, "_value", None))
    if codes is None:
        return "result: not known yet"
    kinds = {int(np.asarray(item._value)): name for name, item in RESULTS._name_to_item.items()}
    if codes.ndim == 0:
        message = RESULTS[result]
        return f"result: {kinds[int(codes)]}" + (f" ({message})" if message else "")
    found = Counter(kinds[int(code)] for code in codes.reshape(-1))
    return "results: " + ", ".join(f"{count} {name}" for name, count in found.most_common())


def _figure(value: Any) -> str:
    """A number, or the dtype and shape of what is no single known number."""
    known = _known(value)
    if known is not None and known.ndim == 0:
        return f"{known.item():.6g}" if known.dtype.kind == "f" else str(known.item())
    return _sizes(value)


def _sizes(tables: Any) -> str:
    return ", ".join(
        f"{array.dtype}[{','.join(map(str, array.shape))}]"
        if hasattr(array, "shape") and hasattr(array, "dtype")
        else type(array).__name__
        for array in jax.tree.leaves(tables)
    )


def _known(value: Any) -> np.ndarray | None:
    """The numbers of an array that has them here and now."""
    if isinstance(value, Tracer) or not isinstance(value, jax.Array | np.ndarray | np.generic):
        return None
    return np.asarray(value)
