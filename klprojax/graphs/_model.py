"""A discrete model as files describe it: variables, their states and one log-table per factor."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index as as_index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .._types import FactorTables
    from ._factor_graph import FactorGraph

_KINDS = ("BAYES", "MARKOV")
_MAX_SCOPE = 64  # numpy arrays have at most 64 axes


@dataclass(frozen=True, eq=False)
class DiscreteModel:
    """Hold a factored function of discrete variables, p(x) proportional to prod_a psi_a(x_a).

    This is what the readers of model files return and the writers take: plain numpy, no JAX.

    A scope may be empty (a constant factor with a 0-d table), several factors may have one
    scope, a variable may be in no factor and may have a single state.

    Args:
        cardinalities: number of states of each variable, at least 1.
        scopes: variables of each factor, as indices; the axes of its table in this order.
        log_tables: natural logarithm of each factor, float64, -inf where the factor is 0; its
            shape is the cardinalities of the scope. Stored read-only and in C order.
        variable_names: one distinct name a variable; "0", "1", ... if left out.
        state_names: distinct names of the states of each variable, or None.
        kind: "BAYES" (each factor is a conditional table whose last axis is the child) or
            "MARKOV" (any non-negative factors).
        notes: what a reader changed, e.g. rows it renormalised.
        name: name of the model.

    Raises:
        ValueError: if the parts contradict each other.
    """

    cardinalities: tuple[int, ...]
    scopes: tuple[tuple[int, ...], ...]
    log_tables: tuple[np.ndarray, ...]
    variable_names: tuple[str, ...] = ()
    state_names: tuple[tuple[str, ...], ...] | None = None
    kind: str = "MARKOV"
    notes: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self):
        put = lambda field, value: object.__setattr__(self, field, value)  # noqa: E731
        put("cardinalities", tuple(as_index(c) for c in self.cardinalities))
        put("scopes", tuple(tuple(map(as_index, scope)) for scope in self.scopes))
        put("log_tables", tuple(_freeze(table) for table in self.log_tables))
        names = self.variable_names or (str(i) for i in range(len(self.cardinalities)))
        put("variable_names", tuple(names))
        if self.state_names is not None:
            put("state_names", tuple(tuple(states) for states in self.state_names))
        put("notes", tuple(self.notes))
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}.")
        self._check_variables()
        self._check_factors()

    def _check_variables(self) -> None:
        for variable, cardinality in enumerate(self.cardinalities):
            if cardinality < 1:
                raise ValueError(
                    f"Variable {variable} has {cardinality} states; every variable needs at "
                    "least one."
                )
        if len(self.variable_names) != len(self.cardinalities):
            raise ValueError(
                f"Got {len(self.variable_names)} variable names for {len(self.cardinalities)} "
                "variables; give one name a variable or none at all."
            )
        _check_distinct(self.variable_names, "variable names")
        if self.state_names is None:
            return
        if len(self.state_names) != len(self.cardinalities):
            raise ValueError(
                f"Got state names of {len(self.state_names)} variables for "
                f"{len(self.cardinalities)} variables; give them for all or pass None."
            )
        for name, states, cardinality in zip(
            self.variable_names, self.state_names, self.cardinalities, strict=True
        ):
            if len(states) != cardinality:
                raise ValueError(
                    f"Variable {name!r} has {cardinality} states but {len(states)} state names."
                )
            _check_distinct(states, f"state names of variable {name!r}")

    def _check_factors(self) -> None:
        if len(self.scopes) != len(self.log_tables):
            raise ValueError(
                f"Got {len(self.scopes)} scopes but {len(self.log_tables)} log-tables; every "
                "factor needs one of each."
            )
        count = len(self.cardinalities)
        for index, (scope, table) in enumerate(zip(self.scopes, self.log_tables, strict=True)):
            if scope and not 0 <= min(scope) <= max(scope) < count:
                raise ValueError(
                    f"Factor {index} has scope {scope}, but the variables are 0 to {count - 1}."
                )
            if len(set(scope)) != len(scope):
                raise ValueError(
                    f"Factor {index} has scope {scope}, which repeats a variable; merge the "
                    "repeated axes into one."
                )
            if len(scope) > _MAX_SCOPE:
                raise ValueError(
                    f"Factor {index} has {len(scope)} variables; an array has at most "
                    f"{_MAX_SCOPE} axes."
                )
            shape = tuple(self.cardinalities[variable] for variable in scope)
            if table.shape != shape:
                raise ValueError(
                    f"Factor {index} has a log-table of shape {table.shape}, but the "
                    f"cardinalities of its scope {scope} are {shape}."
                )
            # NaN compares false, so one test finds NaN and +inf
            if not (table < np.inf).all():
                raise ValueError(
                    f"Factor {index} has a NaN or +inf log-table entry; entries are natural "
                    "logarithms, finite or -inf."
                )

    @cached_property
    def _variable_positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.variable_names)}

    def variable_index(self, variable: str | int | np.integer) -> int:
        """Return the index of a variable given by name or index.

        A string is always a name: "3" is the variable named "3", not the one with index 3.

        Args:
            variable: name or index.

        Returns:
            The index, from 0.

        Raises:
            ValueError: if there is no such variable; close names are listed.
        """
        if isinstance(variable, str):
            index = self._variable_positions.get(variable)
            if index is None:
                close = close_matches(variable, self.variable_names)
                raise ValueError(f"No variable is named {variable!r}.{close}")
            return index
        index = as_index(variable)
        if isinstance(variable, bool) or not 0 <= index < len(self.cardinalities):
            raise ValueError(
                f"No variable has index {variable!r}; there are {len(self.cardinalities)} "
                "variables, counted from 0."
            )
        return index

    def state_index(self, variable: str | int | np.integer, state: str | int | np.integer) -> int:
        """Return the index of a state given by name or index.

        A string is a name; without state names the names are "0", "1", ...

        Args:
            variable: name or index of the variable.
            state: name or index of the state.

        Returns:
            The index, from 0.

        Raises:
            ValueError: if there is no such variable or state; close names are listed.
        """
        position = self.variable_index(variable)
        name = self.variable_names[position]
        cardinality = self.cardinalities[position]
        if isinstance(state, str):
            if self.state_names is not None:
                states = self.state_names[position]
                if state in states:
                    return states.index(state)
                raise ValueError(
                    f"Variable {name!r} has no state {state!r}.{close_matches(state, states)}"
                )
            if state.isascii() and state.isdigit() and len(state) < 20 and str(int(state)) == state:
                state = int(state)
            else:
                raise ValueError(
                    f"Variable {name!r} has no state {state!r}; its states are 0 to "
                    f"{cardinality - 1}."
                )
        index = as_index(state)
        if isinstance(state, bool) or not 0 <= index < cardinality:
            raise ValueError(
                f"Variable {name!r} has no state {state!r}; its states are 0 to {cardinality - 1}."
            )
        return index

    def evidence(self, observed: Mapping[Any, Any]) -> dict[int, Any]:
        """Turn observations by name or index into a dictionary of indices.

        Args:
            observed: of each observed variable (name or index) its state (name or index), or a
                log-table ``[states]`` in nats (soft evidence).

        Returns:
            State index or log-table of each observed variable index, in the order given: what
            `FactorGraph.log_evidence` takes.

        Raises:
            ValueError: for an unknown variable or state, one variable given twice, or a table of
                the wrong length or with NaN or +inf.
        """
        indices: dict[int, Any] = {}
        for variable, state in observed.items():
            position = self.variable_index(variable)
            if position in indices:
                raise ValueError(
                    f"Variable {self.variable_names[position]!r} is observed twice; once by name "
                    "and once by index."
                )
            if np.ndim(state):
                indices[position] = self._soft(position, state)
            else:
                indices[position] = self.state_index(position, state)
        return indices

    def _soft(self, position: int, log_table: Any) -> np.ndarray:
        table = np.asarray(log_table, np.float64)
        if table.shape != (self.cardinalities[position],) or not (table < np.inf).all():
            raise ValueError(
                f"Soft evidence on {self.variable_names[position]!r} is {log_table!r}; expected "
                f"{self.cardinalities[position]} logarithms, one per state, none NaN or +inf."
            )
        return table

    def to_graph(self, dtype: Any = None) -> tuple["FactorGraph", "FactorTables"]:
        """Split the model into structure and numbers.

        Args:
            dtype: floating dtype of the potentials (default: JAX's default float).

        Returns:
            The `FactorGraph` and its log-potentials, nats, one array per factor group.
        """
        # Imported here so that reading files needs numpy only.
        from ._factor_graph import FactorGraph

        graph = FactorGraph(self.cardinalities, self.scopes)
        return graph, graph.pack(self.log_tables, dtype)


def close_matches(name: str, known: Sequence[str]) -> str:
    """Return a sentence with the known names that resemble `name`; empty if none does."""
    # the comparison is quadratic in the lengths, so only short names and lists are worth it
    if len(name) > 64 or len(known) > 5_000:
        return ""
    if len(known) <= 8 and all(len(other) <= 64 for other in known):
        return f" Known: {', '.join(known)}."
    close = difflib.get_close_matches(name, [k for k in known if len(k) <= 64], n=3, cutoff=0.6)
    return f" Close matches: {', '.join(close)}." if close else ""


def _check_distinct(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise ValueError(f"The {what} must be distinct, but {twice!r} occurs twice.")


def _freeze(table) -> np.ndarray:
    array = np.asarray(table, dtype=np.float64)
    if array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
        array.flags.writeable = False
    return array


def check_model(model: Any) -> None:
    """Raise a ValueError unless this is a model."""
    if not isinstance(model, DiscreteModel):
        raise ValueError(
            f"model is of type {type(model).__name__}; expected a DiscreteModel, which has tables "
            "as well as scopes. Make one: DiscreteModel(cardinalities, scopes, log_tables)."
        )
