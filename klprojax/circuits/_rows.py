"""Data rows as people have them: arrays and tables of any kind, with missing entries."""

from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Integer


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
