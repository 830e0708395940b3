"""Rows of BIF tables: which are distributions, and what to do about the others."""

import re
from collections.abc import Sequence

import numpy as np

REPAIRS = ("normalise", "uniform")

# rows are printed with few digits; a row further from 1 than this is no rounded distribution
_ROW_TOLERANCE = 1e-4
_NAN = re.compile(rb"[+-]?nan", re.IGNORECASE)


class NoDistribution(Exception):
    """A row that is no distribution: its number, its sum, and what to do about it."""

    def __init__(self, row: int, total: float, fix: str):
        super().__init__(row, total, fix)
        self.row = row
        self.got = f"a sum of {total!r}"
        self.fix = fix


def advise(repair: str, what: str) -> str:
    """Name the option that accepts a fault."""
    return f'repair="{repair}" (--repair {repair}) {what}'


def check_repair(repair: str | None) -> None:
    """Check the name of a repair.

    Raises:
        ValueError: no such repair.
    """
    if repair is not None and repair not in REPAIRS:
        raise ValueError(f"repair is {repair!r}; expected None, {' or '.join(map(repr, REPAIRS))}.")


def is_nan(token: bytes) -> bool:
    """Say whether a token is how a program prints 0/0."""
    return _NAN.fullmatch(token) is not None


def blank_nans(tokens: list[bytes], rows: Sequence[slice]) -> list[bytes]:
    """Replace rows of nothing but NaN by zeros."""
    if not any(map(is_nan, tokens)):
        return tokens
    tokens = list(tokens)
    for row in rows:
        if all(map(is_nan, tokens[row])):
            tokens[row] = [b"0"] * len(tokens[row])
    return tokens


def normalise(
    values: np.ndarray, logs: np.ndarray, repair: str | None
) -> tuple[np.ndarray, list[str]]:
    """Make each row a distribution, as far as `repair` allows.

    Args:
        values: `[rows, states]`, linear.
        logs: their logarithms.
        repair: None for rounded rows only, "normalise" for any sum, "uniform" for no sum too.

    Returns:
        The logarithms, and notes on what was done.

    Raises:
        NoDistribution: a row that must not be mended.
    """
    sums = values.sum(axis=1)
    # a row of n correctly rounded numbers sums to 1 within n eps: leave such rows alone
    deviations = np.abs(sums - 1.0)
    off = ~(deviations <= values.shape[1] * np.finfo(np.float64).eps)
    if not off.any():
        return logs, []
    worst = int(deviations.argmax())
    if repair is None and not deviations[worst] <= _ROW_TOLERANCE:
        advice = advise("normalise", "divides rows by their sums")
        fix = f"rounded rows may be off by {_ROW_TOLERANCE:g}; {advice}"
        raise NoDistribution(worst, float(sums[worst]), fix)
    # by logarithms: numbers out of the range of float64 have a sum too
    totals = np.logaddexp.reduce(logs[off], axis=1)
    empty = totals == -np.inf
    if empty.any() and repair != "uniform":
        row = int(np.flatnonzero(off)[empty][0])
        fix = advise("uniform", "fills it with equal probabilities")
        raise NoDistribution(row, 0.0, fix)
    logs = np.array(logs)
    filled = np.where(empty, 0.0, totals)[:, None]
    logs[off] = np.where(empty[:, None], -np.log(logs.shape[1]), logs[off] - filled)
    notes = []
    if not empty.all():
        largest = float(deviations[off][~empty].max())
        count = int((~empty).sum())
        notes.append(f"renormalised {count} row(s), largest deviation from 1 {largest:.1e}")
    if empty.any():
        notes.append(f"filled {int(empty.sum())} row(s) without a sum with equal probabilities")
    return logs, notes
