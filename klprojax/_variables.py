"""Discrete variables and what is known of them: the same for factor graphs and for circuits.

Tables are kept by cardinality, one array per distinct one (`VariableTables`). What is known of a
variable may be a state (hard evidence), a log-table (soft evidence), or an entry of a row of data
that may be missing.
"""

import abc
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from ._types import VariableTables


class VariableLayout:
    """Where each variable is in arrays by cardinality; plain numpy.

    Attributes:
        cardinalities: states of each variable; 0 for a continuous one.
        classes: the distinct cardinalities of the discrete variables, ascending.
        members: the variables of each of these, ascending.
        continuous: the continuous variables.
    """

    def __init__(self, cardinalities: Any):
        self.cardinalities = np.asarray(cardinalities, np.int64).reshape(-1)
        order = np.argsort(self.cardinalities, kind="stable").astype(np.int32)
        found, starts = np.unique(self.cardinalities[order], return_index=True)
        parts = dict(zip(found.tolist(), np.split(order, starts[1:]), strict=False))
        self.continuous = parts.pop(0, order[:0])
        self.classes = found[found > 0]
        self.members = tuple(parts.values())

    @cached_property
    def row_of(self) -> Integer[np.ndarray, " variables"]:
        """Row of each variable among those of its cardinality."""
        row = np.zeros(len(self.cardinalities), np.int32)
        for members in (*self.members, self.continuous):
            row[members] = np.arange(len(members))
        return row

    def shapes(self, batch: tuple[int, ...] = ()) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tables of all discrete variables, with leading axes."""
        pairs = zip(self.members, self.classes.tolist(), strict=True)
        return tuple((*batch, len(ids), card) for ids, card in pairs)


class HasVariables(eqx.Module):
    """What has variables: evidence, and tables one by one or by cardinality."""

    @property
    @abc.abstractmethod
    def variables(self) -> VariableLayout:
        """The variables, as arrays by cardinality hold them."""

    def log_evidence(self, observed: Any = None, dtype: Any = None) -> VariableTables:
        """Build evidence log-tables: 0 where nothing is known, ``-inf`` where a state is excluded.

        Args:
            observed: maps a variable number to a state number (hard evidence) or to a log-table
                ``[states]`` in nats (soft evidence).
            dtype: floating dtype of the result (default: JAX's default float).

        Returns:
            The logarithm of the paper's λ: one array per distinct cardinality, ascending,
            ``[variables of that cardinality, states]``.

        Raises:
            ValueError: an unknown or continuous variable, a state out of range, a table of the
                wrong length.
        """
        layout = self.variables
        dtype = jnp.result_type(float) if dtype is None else np.dtype(dtype)
        tables = [np.zeros(shape, dtype) for shape in layout.shapes()]
        last = len(layout.cardinalities) - 1
        for v, value in dict(observed or {}).items():
            if not (isinstance(v, int | np.integer) and 0 <= v <= last):
                raise ValueError(f"Evidence names variable {v}; the variables are 0..{last}.")
            card = int(layout.cardinalities[v])
            if not card:
                raise ValueError(f"Variable {v} is continuous; pass its value in `values`.")
            row = tables[int(np.searchsorted(layout.classes, card))][layout.row_of[v]]
            if np.ndim(value) == 0:
                state = _state(value)
                if state is None or not 0 <= state < card:
                    raise ValueError(
                        f"Evidence sets variable {v} to state {value!s}; it has states "
                        f"0..{card - 1}."
                    )
                row[:] = -np.inf
                row[state] = 0.0
            elif np.shape(value) == (card,):
                row[:] = np.asarray(value)
            else:
                raise ValueError(
                    f"Soft evidence on variable {v} has shape {np.shape(value)}; expected "
                    f"({card},)."
                )
        return put_all(tuple(tables))

    def evidence_from_data(
        self, rows: Any, dtype: Any = None
    ) -> tuple[tuple[Float[Array, "..."], ...], Float[Array, "..."]]:
        """Turn data into evidence; missing entries are -1 or NaN (NaN for continuous variables).

        Args:
            rows: states or values ``[..., variables]``; leading axes are a batch.
            dtype: floating dtype of the result.

        Returns:
            ``log_evidence``, one array per cardinality ``[..., variables, states]``, and
            ``values`` ``[..., continuous variables]`` with NaN where missing.

        Raises:
            ValueError: another number of variables, or a state that a variable does not have.
        """
        layout = self.variables
        count = len(layout.cardinalities)
        dtype = jnp.zeros(0).dtype if dtype is None else np.dtype(dtype)
        rows = numeric_rows(rows)
        if rows.ndim == 0 or rows.shape[-1] != count:
            raise ValueError(
                f"The data has shape {rows.shape}; its last axis must be the {count} variables."
            )
        tables = []
        for ids, card in zip(layout.members, layout.classes.tolist(), strict=True):
            states = states_of(rows[..., ids], [card] * len(ids), ids)
            table = np.full((*states.shape, card), -np.inf, dtype)
            table[states < 0] = 0.0
            seen = states >= 0
            table[(*np.nonzero(seen), states[seen])] = 0.0
            tables.append(put(table))
        return tuple(tables), put(rows[..., layout.continuous].astype(dtype))

    def pack_variables(self, tables: Sequence[Any], dtype: Any = None) -> VariableTables:
        """Arrange one table per variable, ``[states]``, into arrays by cardinality.

        Args:
            tables: one log-table per variable, in the order of their numbers; those of continuous
                variables are not read.
            dtype: floating type of the result; that of the tables if None.

        Raises:
            ValueError: wrong number of tables, or a table whose length is not its variable's
                cardinality.
        """
        cards = self.variables.cardinalities.tolist()
        if len(tables) != len(cards):
            raise ValueError(f"Got {len(tables)} tables for {len(cards)} variables.")
        for v, (table, card) in enumerate(zip(tables, cards, strict=True)):
            if card and np.shape(table) != (card,):
                raise ValueError(
                    f"The table of variable {v} has shape {np.shape(table)}; its cardinality asks "
                    f"for ({card},)."
                )
        return put_all(
            tuple(stack([tables[v] for v in ids], dtype) for ids in self.variables.members)
        )

    def unpack_variables(self, tables: Sequence[Any]) -> list[Any]:
        """Undo `pack_variables`: one array ``[states]`` per variable; None if continuous.

        NumPy arrays for concrete tables, JAX arrays inside a transformation.

        Args:
            tables: one array per cardinality, ``[variables, states]``.
        """
        out: list[Any] = [None] * len(self.variables.cardinalities)
        for ids, table in zip(self.variables.members, tables, strict=True):
            rows = table if isinstance(table, Tracer) else np.asarray(table)
            for row, v in enumerate(ids.tolist()):
                out[v] = rows[row]
        return out


def _state(value: Any) -> int | None:
    """A state's number; None for what is no whole number."""
    if not isinstance(value, Tracer):
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        if not number.is_integer():
            return None
    return int(value)


def stack(tables: Sequence[Any], dtype: Any) -> Any:
    """Stack tables of equal shape; numpy's, for `put_all`, unless one of them is on a device."""
    if any(isinstance(table, jax.Array) for table in tables):
        return jnp.stack([jnp.asarray(table, dtype) for table in tables])
    return np.asarray(np.stack([np.asarray(table) for table in tables]), dtype)


def put(table: Any, dtype: Any = None) -> Array:
    """An array on the device, also while something is traced; nothing is compiled for it."""
    return put_all(np.asarray(table, dtype))


def put_all(arrays: Any) -> Any:
    """All numpy arrays of a tree, as `put` does it; one call for all is cheaper than one for each.

    Tracers and arrays that are on a device already stay as they are.
    """
    leaves, structure = jax.tree.flatten(arrays)
    here = [k for k, leaf in enumerate(leaves) if not isinstance(leaf, jax.Array)]
    with jax.ensure_compile_time_eval():
        there = jax.device_put([leaves[k] for k in here])
    for k, array in zip(here, there, strict=True):
        leaves[k] = array
    return jax.tree.unflatten(structure, leaves)


def on_this_cpu(array: Any) -> bool:
    """Whether numpy can read the numbers where they are."""
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
        return isinstance(array, np.ndarray)
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


# -- data rows as people have them -----------------------------------------------------------------


def numeric_rows(rows: Any) -> np.ndarray:
    """Rows as numbers on the host; NaN, None, NA and masked entries become NaN.

    Raises:
        ValueError: entries that are no numbers, with the first of them; traced rows.
    """
    if isinstance(rows, Tracer):
        raise ValueError(
            "Rows are read on the host, but these are traced; close over them, or pass them to a "
            "function that takes traced rows (log_values, flows) or log_evidence."
        )
    if isinstance(rows, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(rows), np.nan, np.ma.getdata(rows).astype(float))
    rows = np.asarray(rows)
    if rows.dtype.kind in "biuf":
        return rows
    out = np.empty(rows.shape)
    for place, entry in np.ndenumerate(rows):
        # pandas' NA by name: pandas need not be there. NaT and NaN differ from themselves.
        if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
            out[place] = np.nan
        elif isinstance(entry, bool | int | float | np.number | np.bool_) and np.isrealobj(entry):
            out[place] = entry
        else:
            raise ValueError(
                f"The data has {entry!r} at {place}; states are the numbers 0, 1, ... Number "
                "them column by column, for example by np.unique(column, return_inverse=True)."
            )
    return out


def missing_entries(rows: np.ndarray, continuous: Any = False) -> np.ndarray:
    """Which entries are missing: NaN, and -1 where the variable is not continuous.

    Args:
        rows: numbers ``[..., variables]``.
        continuous: per variable, whether -1 is a value.
    """
    missing = (rows == -1) & ~np.asarray(continuous)
    return missing | np.isnan(rows) if rows.dtype.kind == "f" else missing


def states_of(
    rows: np.ndarray, cardinalities: Any, names: Any = None
) -> Integer[np.ndarray, "..."]:
    """Check states and make them small integers; missing entries become -1.

    Args:
        rows: numbers ``[..., variables]``.
        cardinalities: states of each of these variables.
        names: numbers of the variables, for messages; 0, 1, ... if None.

    Raises:
        ValueError: a state that a variable does not have.
    """
    missing = missing_entries(rows)
    known = np.where(missing, -1, rows) if missing.any() else rows
    cards = np.asarray(cardinalities)
    wrong = (known < -1) | (known >= cards)
    if rows.dtype.kind == "f":
        wrong |= known != np.floor(known)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0].tolist())
        where = f" in row {', '.join(map(str, at[:-1]))}" if len(at) > 1 else ""
        column = at[len(at) - 1]
        v = column if names is None else names[column]
        raise ValueError(
            f"The data has {rows[at]} for variable {v}{where}; expected one of its states "
            f"0..{cards[column] - 1}, or -1 or NaN for a missing entry."
        )
    return known.astype(np.int8 if cards.max(initial=0) < 128 else np.int32)
