"""Questions beyond single marginals, answered exactly: one verb, one object per question."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, UInt32

from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from .._variables import put
from ..geometry import finite_part
from ..graphs import FactorGraph, GroupSignature, Structured
from ._elimination import Elimination, too_large
from ._infer import infer
from ._messages import batched, dense
from ._solver import check_object, check_problem, size_in_words
from .contraction import (
    BeyondLimits,
    Reduction,
    best_states,
    draw_states,
    reduce_graph,
)

# In the place of states: no joint state is possible, or a number is NaN or +inf.
_NONE, _NONFINITE = -1, -2
# Entries of a joint table that is asked for: 1 GiB in float64.
_MOST_ENTRIES = 2**27


class _Problem:
    """A factor graph with its numbers, and what answers need of them."""

    def __init__(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        memory_limit: float,
        throw: bool,
    ):
        self.throw = throw
        self.graph, self.log_potentials, self.log_evidence = graph, log_potentials, log_evidence
        self.memory_limit = memory_limit
        arrays = (*log_potentials, *(log_evidence or ()))
        self.dtype = arrays[0].dtype if arrays else jnp.zeros(0).dtype
        self.traced = any(isinstance(array, Tracer) for array in arrays)

    @property
    def solver(self) -> Elimination:
        """Exact inference within the limit."""
        return Elimination(memory_limit=int(self.memory_limit))

    @property
    def limits(self) -> str:
        """For messages."""
        return f"The limit is memory_limit = {size_in_words(self.memory_limit)}."

    def tables(self) -> FactorTables:
        """All factors as tables with a factor axis."""
        return dense(self.graph, batched(self.graph, self.log_potentials))

    def solution(self, log_evidence: VariableTables | None, **options: Any) -> Solution:
        """Exact inference."""
        return infer(
            self.graph, self.log_potentials, self.solver, log_evidence=log_evidence, **options
        )

    def log_marginals(self) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """Log-partition, and log-marginals by group and by cardinality: float64 if not traced."""
        if self.traced:
            solution = self.solution(self.log_evidence, factor_beliefs=True, throw=self.throw)
            assert solution.factor_log_beliefs is not None
            return solution.log_partition, solution.factor_log_beliefs, solution.log_beliefs
        found = self.solver.contracted(self.graph, self.tables(), self.evidence(), True)
        assert found.tables is not None
        self.check(found.log_partition == -np.inf, RESULTS.contradiction)
        self.check(np.isnan(found.log_partition), RESULTS.nonfinite)
        return found.log_partition, found.tables, found.variables

    def evidence(self) -> VariableTables:
        """The evidence, also if there is none."""
        given = self.log_evidence
        return self.graph.log_evidence(dtype=self.dtype) if given is None else given

    def states(
        self,
        find: Callable[[Reduction, Any], np.ndarray | None],
        shape: Sequence[int],
        words: Array | None = None,
    ) -> Int[Array, "rows variables"]:
        """States that ``find`` finds in numpy for the reduced problem; None if none is possible.

        Inside a transformation the host is called when the program runs.
        """

        def call(tables, evidence, words):
            tables, evidence = _doubles(tables), _doubles(evidence)
            reduced = reduce_graph(self.graph, tables, evidence)
            if reduced.broken:
                return np.full(shape, _NONFINITE, np.int32)
            try:
                found = find(reduced, words)
            except BeyondLimits as error:
                raise too_large(error, self.limits) from None
            return np.full(shape, _NONE, np.int32) if found is None else found.astype(np.int32)

        arguments = (self.tables(), self.evidence(), words)
        if not any(isinstance(array, Tracer) for array in jax.tree.leaves(arguments)):
            states = call(*arguments)
            self.check(bool(states.size) and (states == _NONE).all(), RESULTS.contradiction)
            self.check(bool(states.size) and (states == _NONFINITE).all(), RESULTS.nonfinite)
            return put(states)
        states = jax.pure_callback(
            call,
            jax.ShapeDtypeStruct(tuple(shape), np.int32),
            *lax.stop_gradient(arguments),
            vmap_method="sequential",
        )
        if self.throw and states.size:
            for code, result in (
                (_NONE, RESULTS.contradiction),
                (_NONFINITE, RESULTS.nonfinite),
            ):
                states = result.error_if(states, jnp.all(states == code))
        return states

    def check(self, failed: Any, result: RESULTS) -> None:
        """Raise, if errors are wanted."""
        if self.throw and failed:
            result.error_if(put(0), True)


def _doubles(tables: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(table, np.float64) for table in tables]


class AbstractQuestion(eqx.Module):
    """What `query` is asked."""

    @abc.abstractmethod
    def answer(self, problem: _Problem) -> Any:
        """See `query`."""


class BestStates(eqx.Module):
    """The most probable joint states.

    Attributes:
        states: one row per joint state, the most probable first, int32.
        log_weights: logarithm of their unnormalised weight, evidence included, nats: subtract the
            log-partition for their log-probability. -inf, with a row that means nothing, where
            fewer joint states are possible.
    """

    states: Int[Array, "best variables"]
    log_weights: Float[Array, " best"]


class MostProbable(AbstractQuestion):
    """The most probable joint states: MAP, marginal MAP, the ``best`` most probable.

    The states of a row belong together, ties included: each is found given those before it. The
    derivative of ``log_weights`` in the tables is the indicator of the state (of marginal MAP, the
    marginals given it): a subgradient where several are best.

    Args:
        best: how many; cost grows a little faster than linearly in it.
        over: variables to maximise over, the others summed out (marginal MAP): one column each, in
            this order. All if None. The widths met may be far larger than for all or for none.

    Returns (from `query`):
        `BestStates`.

    Raises:
        ValueError: fewer than one, or a variable that the graph does not have.
    """

    best: int = eqx.field(static=True, default=1)
    over: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def __init__(self, best: int = 1, over: Sequence[int] | None = None):
        if best < 1:
            raise ValueError(f"best is {best}; it must be at least 1.")
        self.best = best
        self.over = None if over is None else tuple(map(int, over))

    def answer(self, problem: _Problem) -> BestStates:
        """See `query`."""
        graph = problem.graph
        over = range(graph.num_variables) if self.over is None else self.over
        _check_variables(over, graph.num_variables)

        def find(reduced: Reduction, _: Any) -> np.ndarray | None:
            states, log_weights = best_states(
                reduced.cardinalities,
                reduced.scopes,
                reduced.log_tables,
                best=self.best,
                over=self.over,
                memory_limit=problem.memory_limit,
            )
            full = reduced.full_states(states)
            full[log_weights == -np.inf] = _NONE
            return full[:, list(over)]

        states = problem.states(find, (self.best, len(over)))
        if self.over is None:
            log_weights = -energies(problem, states)
        else:
            log_weights = jnp.stack([self._log_weight(problem, row) for row in states])
        return BestStates(states, log_weights)

    def _log_weight(self, problem: _Problem, states: Int[Array, " over"]) -> Float[Array, ""]:
        """Log-partition with these variables fixed."""
        assert self.over is not None
        return problem.solution(_fixed(problem, self.over, states), throw=False).log_partition


class Samples(AbstractQuestion):
    """Exact draws from the posterior.

    Args:
        key: a JAX random key.
        count: how many draws.

    Returns (from `query`):
        States ``[count, variables]``, int32.

    Raises:
        ValueError: fewer than one.
    """

    key: Key[Array, ""] | UInt32[Array, "2"]
    count: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.count < 1:
            raise ValueError(f"count is {self.count}; it must be at least 1.")

    def answer(self, problem: _Problem) -> Int[Array, "count variables"]:
        """See `query`."""

        def draw(reduced: Reduction, words: Any) -> np.ndarray | None:
            states = draw_states(
                reduced.cardinalities,
                reduced.scopes,
                reduced.log_tables,
                self.count,
                np.random.default_rng(np.asarray(words).ravel().tolist()),
                memory_limit=problem.memory_limit,
            )
            return None if states is None else reduced.full_states(states)

        typed = jnp.issubdtype(self.key.dtype, jax.dtypes.prng_key)
        words = jax.random.key_data(self.key) if typed else self.key
        return problem.states(draw, (self.count, problem.graph.num_variables), words)


class Joint(AbstractQuestion):
    """Joint marginal of any variables, in one factor or far apart.

    Args:
        variables: which, each once.

    Returns (from `query`):
        Log-probabilities ``[*states]``, one axis per variable in the order given.

    Raises:
        ValueError: a variable that the graph does not have or that is named twice, or a table of
            more than 2^27 entries.
    """

    variables: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, variables: Sequence[int]):
        self.variables = tuple(map(int, variables))

    def answer(self, problem: _Problem) -> Float[Array, "..."]:
        """See `query`."""
        graph = problem.graph
        _check_variables(self.variables, graph.num_variables)
        shape = tuple(graph.cardinalities[v] for v in self.variables)
        if math.prod(shape) > _MOST_ENTRIES:
            raise ValueError(
                f"The joint table of {len(shape)} variables has {math.prod(shape)} entries, more "
                f"than {_MOST_ENTRIES}. Ask for fewer variables, or for Samples(key, count)."
            )
        # One more factor, which says nothing: its belief is the answer.
        families: list[Any] = [
            scopes if group.rule is None else Structured(scopes, group.rule)
            for scopes, group in zip(graph.group_scopes, graph.signature.groups, strict=True)
        ]
        families.append(np.asarray([self.variables], np.int64).reshape(1, len(shape)))
        silent = put(np.zeros((1, *shape), problem.dtype))
        asked = _Problem(
            FactorGraph(graph.cardinalities, families),
            (*problem.log_potentials, silent),
            problem.log_evidence,
            problem.memory_limit,
            problem.throw,
        )
        solution = asked.solution(problem.log_evidence, factor_beliefs=True, throw=problem.throw)
        assert solution.factor_log_beliefs is not None
        return solution.factor_log_beliefs[-1][0]


class Entropy(AbstractQuestion):
    """Entropy of the posterior over all variables.

    Returns (from `query`):
        Nats.
    """

    def answer(self, problem: _Problem) -> Float[Array, ""]:
        """See `query`."""
        log_partition, *parts = problem.log_marginals()
        tables = (problem.tables(), problem.log_evidence or ())
        here = not problem.traced
        # H = log Z - E[log weight]; what cannot happen contributes nothing.
        mean = 0.0
        for log_marginals, log_tables in zip(parts, tables, strict=True):
            for log_p, log_table in zip(log_marginals, log_tables, strict=False):
                if here:
                    log_table = np.where(np.isneginf(log_table), 0.0, np.asarray(log_table, float))
                    mean += float((np.exp(log_p) * log_table).sum())
                else:
                    mean += jnp.sum(jnp.exp(log_p) * finite_part(log_table))
        entropy = log_partition - mean
        return put(entropy, problem.dtype) if here else entropy


class Energy(AbstractQuestion):
    """Energy of joint states, ``-sum_f log f(x) - log λ(x)``: minus their log-weight.

    Args:
        states: ``[..., variables]``, state numbers.

    Returns (from `query`):
        Nats ``[...]``, infinite for an impossible state. Log-probabilities are
        ``-energy - log_partition``.

    Raises:
        ValueError: another number of variables, or a state that a variable does not have.
    """

    states: Int[Array | np.ndarray, "... variables"]

    def answer(self, problem: _Problem) -> Float[Array, "..."]:
        """See `query`."""
        states = self.states
        count = problem.graph.num_variables
        if states.ndim == 0 or states.shape[-1] != count:
            raise ValueError(
                f"states has shape {states.shape}; its last axis must be the {count} variables."
            )
        if not isinstance(states, Tracer):
            states = np.asarray(states)
            wrong = (states < 0) | (states >= np.asarray(problem.graph.cardinalities))
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0].tolist())
                raise ValueError(
                    f"states{list(at)} is {states[at]}; variable {at[-1]} has states "
                    f"0..{problem.graph.cardinalities[at[-1]] - 1}."
                )
        return energies(problem, states)


def query(
    graph: FactorGraph,
    log_potentials: FactorTables,
    question: AbstractQuestion,
    *,
    log_evidence: VariableTables | None = None,
    memory_limit: float = 4 * 2**30,
    throw: bool = True,
) -> Any:
    """Answer a question about ``p(x) ∝ prod_f exp(log_potentials_f) exp(evidence)`` exactly.

    Questions are `MostProbable` (MAP, marginal MAP, the k best), `Samples`, `Joint`, `Entropy` and
    `Energy`. `infer` computes the log-partition and all single marginals.

    Args:
        graph: the structure, with concrete wiring: close over it, do not pass it through ``jit``.
        log_potentials: factor tables in nats (see `FactorGraph.pack`); `-inf` is a hard zero.
        question: what is asked.
        log_evidence: tables in nats (see `FactorGraph.log_evidence`); `-inf` excludes a state.
        memory_limit: bytes that tables may take.
        throw: raise if no joint state is possible or a number is NaN or +inf; otherwise states are
            -1 then.

    Returns:
        See each question.

    Differentiation:
        ``jit`` and ``vmap`` go through all questions; ``grad`` and ``jvp`` through the numbers that
        they return. States are found on the host, also inside of ``jit``: one call per run.

    Raises:
        ValueError: tables that do not fit the graph, variables or states that it does not have, or
            tables beyond ``memory_limit``.
        RuntimeError: with ``throw``, no joint state is possible, or a number is NaN or +inf.

    Reference: section 3.1 (T_Proj) for the sums; Dawid (1992) for maxima and draws on the same
    tree.

    Example:
        >>> import numpy as np, klprojax
        >>> graph = klprojax.FactorGraph([2, 2], [(0,), (0, 1)])
        >>> tables = graph.pack([np.log([0.25, 0.75]), np.log([[0.9, 0.1], [0.2, 0.8]])])
        >>> klprojax.query(graph, tables, klprojax.MostProbable()).states.tolist()
        [[1, 1]]
    """
    check_problem(graph, log_potentials, log_evidence)
    check_object("question", question, AbstractQuestion, "MostProbable() or Joint([0, 1])")
    problem = _Problem(graph, log_potentials, log_evidence, memory_limit, throw)
    return question.answer(problem)


def energies(problem: _Problem, states: Int[Array | np.ndarray, "... variables"]) -> Array:
    """Energies of joint states; infinite where a state is -1."""
    graph, tables = problem.graph, batched(problem.graph, problem.log_potentials)
    here = not problem.traced and not isinstance(states, Tracer)
    if here:
        # Summed in float64; nothing is compiled.
        states, tables = np.asarray(states), tuple(np.asarray(t, np.float64) for t in tables)
    xp: Any = np if here else jnp
    states = xp.asarray(states).astype(np.int32)
    none = (states < 0).any(-1)
    states = xp.maximum(states, 0)
    total = xp.zeros(states.shape[:-1], np.float64 if here else problem.dtype)
    for group, scopes, table in zip(
        graph.signature.groups, graph.group_scopes, tables, strict=True
    ):
        columns = tuple(states[..., scopes[:, axis]] for axis in range(scopes.shape[1]))
        if group.rule is None:
            rows = np.arange(group.count, dtype=np.int32) % table.shape[0]
            terms = table[(rows, *columns)]
        else:
            terms = _of_rule(group, jnp.asarray(table, problem.dtype), columns)
        total = total + xp.broadcast_to(terms, (*total.shape, group.count)).sum(-1)
    members = graph.variables.members
    for ids, table in zip(members, problem.log_evidence or (), strict=False):
        table = np.asarray(table, np.float64) if here else table
        total = total + table[np.arange(len(ids), dtype=np.int32), states[..., ids]].sum(-1)
    out = xp.where(none, np.inf, -total)
    return put(out, problem.dtype) if here else out


def _of_rule(group: GroupSignature, parameters: Array, columns: tuple[Any, ...]) -> Array:
    """Log-weights ``[..., factors]`` of a structured group at given states."""
    rule = group.rule
    assert rule is not None

    def one(states: Sequence[Array]) -> Array:
        known = [
            jnp.where(
                jnp.arange(card, dtype=jnp.int32)[None] == row[:, None], 0.0, -jnp.inf
            ).astype(parameters.dtype)
            for card, row in zip(group.shape, states, strict=True)
        ]
        return rule.log_mass(parameters, tuple(known), "sum")

    flat = [jnp.asarray(column).reshape(-1, group.count) for column in columns]
    return jax.vmap(one)(flat).reshape(columns[0].shape)


def _fixed(problem: _Problem, over: Sequence[int], states: Any) -> VariableTables:
    """The evidence with some variables in given states."""
    graph, dtype = problem.graph, problem.dtype
    rows = graph.unpack_variables(problem.evidence())
    states = states if isinstance(states, Tracer) else np.asarray(states)
    for v, state in zip(over, states, strict=True):
        here = not isinstance(state, Tracer) and not isinstance(rows[v], Tracer)
        xp: Any = np if here else jnp
        rows[v] = xp.where(xp.arange(len(rows[v]), dtype=np.int32) == state, rows[v], -np.inf)
    return graph.pack_variables(rows, dtype)


def _check_variables(variables: Sequence[int], count: int) -> None:
    for place, v in enumerate(variables):
        if not 0 <= v < count:
            raise ValueError(f"There is no variable {v}; the variables are 0..{count - 1}.")
        if v in variables[:place]:
            raise ValueError(f"Variable {v} is named twice.")
