"""Result files of the UAI competitions: MAR (marginals), PR (log10 of the sum), MPE and MMAP."""

import decimal
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsInt

import numpy as np

from klprojax.graphs._files._text import (
    MAX_BYTES,
    BadNumber,
    TokenStream,
    parse_numbers,
    read_tokens,
    write_bytes,
)

# enough digits that nats -> log10 -> nats gives the same float64 back
_DECIMAL = decimal.Context(prec=40, traps=[])
_LN10 = _DECIMAL.ln(decimal.Decimal(10))


def write_uai_mar(path: str | os.PathLike[str], marginals: Iterable[Any]) -> None:
    """Write marginals as a UAI result file: `MAR`, then the count and each `states p p ...`.

    Args:
        path: the file to write (`.MAR`, `.gz` too); replaced if it exists.
        marginals: one vector of probabilities (linear space) a variable, in order.

    Raises:
        ValueError: if a marginal is no vector of finite numbers >= 0.
    """
    parts = []
    for index, marginal in enumerate(marginals):
        vector = np.asarray(marginal, dtype=np.float64)
        if vector.ndim != 1 or not vector.size:
            raise ValueError(
                f"Marginal {index} must be a vector with one entry per state, got shape "
                f"{vector.shape}."
            )
        if not ((vector >= 0.0) & (vector < np.inf)).all():
            raise ValueError(
                f"Marginal {index} must hold probabilities (linear space), finite and >= 0."
            )
        parts.append(" ".join([str(vector.size), *map(repr, vector.tolist())]))
    text = "MAR\n" + " ".join([str(len(parts)), *parts]) + "\n"
    write_bytes(path, text.encode("ascii"))


def read_uai_mar(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> tuple[np.ndarray, ...]:
    """Read marginals from a UAI result file (`.MAR`, `.gz` too).

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        One vector of probabilities (linear space) a variable, as they stand in the file.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
    """
    stream, count = _start(path, max_bytes, "MAR", 2)
    marginals = []
    for index in range(count):
        states = stream.integer(f"the number of states of variable {index}")
        if states < 1:
            raise stream.error(-1, "at least 1 state")
        tokens = stream.take(states, f"the marginal of variable {index}")
        try:
            values, _ = parse_numbers(tokens)
        except BadNumber as bad:
            raise stream.error(bad.index - states, bad.expected) from None
        if values.max() == np.inf:
            raise stream.error(int(values.argmax()) - states, "a probability")
        marginals.append(values)
    stream.expect_end("the count promises fewer variables")
    return tuple(marginals)


def write_uai_pr(path: str | os.PathLike[str], log_partition: SupportsFloat) -> None:
    """Write the partition sum as a UAI result file: `PR`, then log10 Z.

    Args:
        path: the file to write (`.PR`, `.gz` too); replaced if it exists.
        log_partition: log Z in nats (natural logarithm); -inf for Z = 0. The file holds
            log10 Z, with enough digits to read back the same float64.

    Raises:
        ValueError: for NaN or +inf.
    """
    value = float(log_partition)
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"log_partition must be finite or -inf, got {value}.")
    text = "-inf"
    if value > -math.inf:
        text = f"{_DECIMAL.divide(decimal.Decimal(value), _LN10):.25g}"
    write_bytes(path, f"PR\n{text}\n".encode("ascii"))


def read_uai_pr(path: str | os.PathLike[str], *, max_bytes: int = 2**20) -> float:
    """Read the partition sum from a UAI result file (`.PR`, `.gz` too).

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        log Z in nats (natural logarithm); the file holds log10 Z.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
    """
    stream = read_tokens(path, max_bytes)
    if stream.take(1, "PR")[0].upper() != b"PR":
        raise stream.error(-1, "PR", "is it another kind of result file?")
    token = stream.take(1, "log10 of the partition sum")[0]
    try:
        value = float(token) if b"_" not in token else math.nan
    except ValueError:
        value = math.nan
    if math.isnan(value) or value == math.inf:
        raise stream.error(-1, "log10 of the partition sum, finite or -inf")
    stream.expect_end("a PR file holds one number")
    if value == -math.inf:
        return value
    exact = _DECIMAL.create_decimal(token.decode("ascii"))
    # an exponent that Decimal cannot hold belongs to a number that float64 rounds to 0
    return float(_DECIMAL.multiply(exact, _LN10)) if exact.is_finite() else value


def write_uai_mpe(path: str | os.PathLike[str], states: Iterable[SupportsInt]) -> None:
    """Write a most probable assignment as a UAI result file: `MPE`, then the count and the states.

    Args:
        path: the file to write (`.MPE`, `.gz` too); replaced if it exists.
        states: state number of each variable, in order.

    Raises:
        ValueError: for a negative state.
    """
    numbers = [int(state) for state in states]
    _write_numbers(path, "MPE", [len(numbers), *numbers])


def read_uai_mpe(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> tuple[int, ...]:
    """Read a most probable assignment from a UAI result file (`.MPE`, `.gz` too).

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        State number of each variable.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
    """
    stream, count = _start(path, max_bytes, "MPE", 1)
    states = stream.integers(count, "the state of each variable")
    stream.expect_end("the count promises fewer states")
    return tuple(states)


def write_uai_mmap(path: str | os.PathLike[str], states: Mapping[int, int]) -> None:
    """Write a marginal MAP assignment as a UAI result file: `MMAP`, the count, `v x v x ...`.

    Args:
        path: the file to write (`.MMAP`, `.gz` too); replaced if it exists.
        states: state number of each variable number that was maximised over.

    Raises:
        ValueError: for a negative number.
    """
    pairs = [number for pair in states.items() for number in map(int, pair)]
    _write_numbers(path, "MMAP", [len(states), *pairs])


def read_uai_mmap(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[int, int]:
    """Read a marginal MAP assignment from a UAI result file (`.MMAP`, `.gz` too).

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        State number of each variable number.

    Raises:
        ModelFileError: if the file breaks the format, with the line, or has a variable twice.
    """
    stream, count = _start(path, max_bytes, "MMAP", 2)
    out: dict[int, int] = {}
    for _ in range(count):
        variable, state = stream.integers(2, "a variable and its state")
        if variable in out:
            raise stream.error(-2, "each variable once")
        out[variable] = state
    stream.expect_end("the count promises fewer variables")
    return out


def _write_numbers(path: str | os.PathLike[str], kind: str, numbers: list[int]) -> None:
    if min(numbers) < 0:
        raise ValueError(f"A {kind} file holds numbers >= 0, got {min(numbers)}.")
    write_bytes(path, f"{kind}\n{' '.join(map(str, numbers))}\n".encode("ascii"))


def _start(
    path: str | os.PathLike[str], max_bytes: int, kind: str, per_entry: int
) -> tuple[TokenStream, int]:
    """The numbers after the kind and the count."""
    stream = read_tokens(path, max_bytes)
    if stream.take(1, kind)[0].upper() != kind.encode():
        raise stream.error(-1, kind, "is it another kind of result file?")
    count = stream.integer("the number of variables")
    if per_entry * count > stream.left:
        raise stream.error(-1, f"a number of variables that fits {stream.left} tokens")
    return stream, count
