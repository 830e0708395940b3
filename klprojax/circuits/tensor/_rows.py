"""Rows of an array at positions known when the program is built."""

import numpy as np
from jaxtyping import Array


def rows_of(array: Array, rows: np.ndarray) -> Array:
    """Rows of an array; a slice where they follow each other."""
    rows = np.asarray(rows)
    if len(rows) and (np.diff(rows) == 1).all():
        return array[int(rows[0]) : int(rows[-1]) + 1]
    distinct = len(np.unique(rows)) == len(rows)
    return array.at[rows].get(unique_indices=distinct, mode="promise_in_bounds")
