"""Parity-check matrices as sparse text: MacKay's alist format."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from klprojax.graphs._files._text import (
    MAX_BYTES,
    BadNumber,
    TokenStream,
    line_at,
    parse_integers,
    read_tokens,
    write_bytes,
)

_BATCH = 2**16  # tokens turned into numbers at a time


@dataclass(frozen=True)
class ParityCheckMatrix:
    """Hold a sparse 0/1 matrix whose rows are parity checks on the columns' bits.

    Args:
        num_variables: number of columns.
        scopes: per check, the numbers of its columns, from 0.

    Raises:
        ValueError: a column number out of range, or twice in one check.
    """

    num_variables: int
    scopes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.num_variables < 0:
            raise ValueError(f"num_variables is {self.num_variables}; it must be at least 0.")
        for index, scope in enumerate(self.scopes):
            if len(set(scope)) != len(scope):
                raise ValueError(f"Check {index} names a variable twice: {scope}.")
            if scope and not 0 <= min(scope) <= max(scope) < self.num_variables:
                raise ValueError(
                    f"Check {index} names variables {scope}; the matrix has variables 0.."
                    f"{self.num_variables - 1}."
                )

    @property
    def num_checks(self) -> int:
        """Number of rows."""
        return len(self.scopes)

    def to_dense(self) -> np.ndarray:
        """The matrix as ``[checks, variables]``, 0 and 1 in uint8."""
        dense = np.zeros((self.num_checks, self.num_variables), np.uint8)
        for row, scope in zip(dense, self.scopes, strict=True):
            row[list(scope)] = 1
        return dense

    @classmethod
    def from_dense(cls, matrix: Any) -> "ParityCheckMatrix":
        """Take the ones of an array ``[checks, variables]``.

        Raises:
            ValueError: not two axes, or an entry that is neither 0 nor 1.
        """
        dense = np.asarray(matrix)
        if dense.ndim != 2:
            raise ValueError(f"Got an array of shape {dense.shape}; expected [checks, variables].")
        if not ((dense == 0) | (dense == 1)).all():
            bad = dense[(dense != 0) & (dense != 1)].flat[0]
            raise ValueError(f"Got an entry {bad!r}; a parity-check matrix has zeros and ones.")
        scopes = tuple(tuple(np.flatnonzero(row).tolist()) for row in dense)
        return cls(dense.shape[1], scopes)


def read_alist(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> ParityCheckMatrix:
    """Read a parity-check matrix in alist format (`.alist`, `.alist.gz`).

    Numbers of columns and rows, their largest degrees, all degrees, then per column its rows and
    per row its columns, counted from 1. Lists may be padded with zeros to the largest degree, or
    not. Text after `#` is a comment.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        The matrix; its checks list their variables in the order of the file.

    Raises:
        ModelFileError: if the file breaks the format, or its two halves differ, with the line.
    """
    stream = read_tokens(path, max_bytes)
    variables, checks = stream.integers(2, "the numbers of variables and checks")
    if variables + checks + 2 > stream.left:
        expected = f"numbers of variables and checks that fit the {stream.left} tokens after them"
        raise stream.error(-2, expected, "is the file cut off, or the header wrong?")
    widths = stream.integers(2, "the largest degrees of a variable and of a check")
    by_variable = _read_degrees(stream, variables, widths[0], checks, "variable")
    by_check = _read_degrees(stream, checks, widths[1], variables, "check")
    edges = int(by_variable.sum())
    if int(by_check.sum()) != edges:
        expected = f"degrees of the checks that add up to {edges}, like those of the variables"
        raise stream.error(-1, expected, f"they add up to {int(by_check.sum())}")
    padded = variables * widths[0] + checks * widths[1]
    if stream.left not in (2 * edges, padded):
        line = line_at(stream.data, len(stream.data.rstrip()))
        expected = f"{2 * edges} tokens in the lists, or {padded} padded with zeros"
        fix = "is the file cut off, or a degree wrong?"
        raise stream.error_at_line(line, expected, str(stream.left), fix)
    pads = widths if stream.left == padded else (None, None)
    first = _read_lists(stream, by_variable, pads[0], checks, "variable")
    at_lists_of_checks = stream.used
    second = _read_lists(stream, by_check, pads[1], variables, "check")
    # Each edge as one number, from both halves.
    ends = np.repeat(np.arange(variables, dtype=np.int64), by_variable)
    owners = np.repeat(np.arange(checks, dtype=np.int64), by_check)
    known = np.sort(first * variables + ends)
    place = np.searchsorted(known, owners * variables + second)
    found = known[np.minimum(place, max(edges - 1, 0))] == owners * variables + second
    if not found.all():
        edge = int(np.argmin(found))
        slot = _slots(by_check, pads[1])[edge]
        owner, variable = int(owners[edge]) + 1, int(second[edge]) + 1
        expected = f"check {owner} to list variables that list it"
        fix = f"variable {variable} does not list check {owner}"
        raise stream.error_about(at_lists_of_checks + int(slot), expected, fix)
    splits = np.split(second, np.cumsum(by_check)[:-1]) if checks else []
    return ParityCheckMatrix(variables, tuple(tuple(part.tolist()) for part in splits))


def _integers(stream: TokenStream, count: int, what: str) -> np.ndarray:
    # Batch by batch: a list of Python integers takes many times the memory of the array.
    parts = [np.zeros(0, np.int64)]
    while count > 0:
        batch = min(count, _BATCH)
        tokens = stream.take(batch, what)
        try:
            parts.append(np.asarray(parse_integers(tokens), np.int64))
        except BadNumber as bad:
            raise stream.error(bad.index - batch, f"{bad.expected}: {what}") from None
        count -= batch
    return np.concatenate(parts)


def _read_degrees(
    stream: TokenStream, count: int, largest: int, most: int, what: str
) -> np.ndarray:
    start = stream.used
    degrees = _integers(stream, count, f"the degrees of the {what}s")
    if count and int(degrees.max()) > min(largest, most):
        index = int(np.argmax(degrees > min(largest, most)))
        expected = f"a degree of at most {min(largest, most)} for {what} {index + 1}"
        raise stream.error_about(start + index, expected, "see the second line")
    return degrees


def _slots(degrees: np.ndarray, width: int | None) -> np.ndarray:
    """Places of the entries among the tokens of the lists."""
    edges = int(degrees.sum())
    if width is None:
        return np.arange(edges)
    starts = np.cumsum(degrees) - degrees
    rank = np.arange(edges) - np.repeat(starts, degrees)
    return np.repeat(np.arange(len(degrees)) * width, degrees) + rank


def _read_lists(
    stream: TokenStream, degrees: np.ndarray, width: int | None, most: int, what: str
) -> np.ndarray:
    """All lists one after the other, entries counted from 0, without padding."""
    start = stream.used
    total = int(degrees.sum()) if width is None else len(degrees) * width
    tokens = _integers(stream, total, f"the lists of the {what}s")
    slots = _slots(degrees, width)
    entries = tokens[slots]
    owners = np.repeat(np.arange(len(degrees)), degrees)
    bad = (entries < 1) | (entries > most)
    if bad.any():
        edge = int(np.argmax(bad))
        expected = f"a number from 1 to {most} in the list of {what} {owners[edge] + 1}"
        raise stream.error_about(start + int(slots[edge]), expected, "is a degree wrong?")
    padding = np.ones(total, bool)
    padding[slots] = False
    if tokens[padding].any():
        slot = int(np.flatnonzero(padding & (tokens != 0))[0])
        expected = f"the padding 0 after the list of {what} {slot // (width or 1) + 1}"
        raise stream.error_about(start + slot, expected, "is a degree wrong?")
    order = np.lexsort((entries, owners))
    repeat = (entries[order][1:] == entries[order][:-1]) & (owners[order][1:] == owners[order][:-1])
    if repeat.any():
        edge = int(order[1:][repeat].min())
        expected = f"distinct numbers in the list of {what} {owners[edge] + 1}"
        raise stream.error_about(start + int(slots[edge]), expected)
    return entries - 1


def write_alist(path: str | os.PathLike[str], matrix: ParityCheckMatrix) -> None:
    """Write a parity-check matrix in alist format (`.alist`, `.alist.gz`).

    Lists are padded with zeros, as in MacKay's files; a check keeps the order of its variables.

    Args:
        path: the file to write; replaced if it exists.
        matrix: the matrix.
    """
    columns: list[list[int]] = [[] for _ in range(matrix.num_variables)]
    for check, scope in enumerate(matrix.scopes):
        for variable in scope:
            columns[variable].append(check)
    widths = [max(map(len, lists), default=0) for lists in (columns, matrix.scopes)]
    lines = [f"{matrix.num_variables} {matrix.num_checks}", f"{widths[0]} {widths[1]}"]
    lines += [
        " ".join(str(len(entries)) for entries in lists) for lists in (columns, matrix.scopes)
    ]
    for lists, width in zip((columns, matrix.scopes), widths, strict=True):
        for entries in lists:
            numbers = [entry + 1 for entry in entries] + [0] * (width - len(entries))
            lines.append(" ".join(map(str, numbers)))
    write_bytes(path, ("\n".join(lines) + "\n").encode("ascii"))
