"""Line-based circuit files: what their readers share."""

import math
import os
import re
from collections.abc import Iterator

from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import (
    BadNumber,
    parse_integers,
    read_bytes,
    recode,
    show,
    text_lines,
    write_bytes,
)
from .._builder import CircuitBuilder, CircuitModel
from .._validation import CircuitError

# Most bytes for the scopes of all nodes: what validation needs in one piece.
MAX_SCOPE_BYTES = 2**30
_INTEGER = re.compile(rb"[+-]?[0-9]{1,17}")


class LineFile:
    """The words of a text file line by line, and errors that name the line.

    Args:
        path: the file, plain or `.gz`.
        max_bytes: limit on the unpacked size.
        separator: what parts words; None for blanks.
        comment: lines whose first word is this are skipped.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int,
        separator: bytes | None = None,
        comment: bytes | None = None,
    ):
        self.path = os.fspath(path)
        self.data = recode(path, read_bytes(path, max_bytes), None)
        self.separator = separator
        self.comment = comment

    def raw_lines(self) -> Iterator[tuple[int, bytes]]:
        """All lines with their numbers."""
        return text_lines(self.path, self.data)

    def __iter__(self) -> Iterator[tuple[int, list[bytes]]]:
        for number, line in self.raw_lines():
            words = [word.strip() for word in line.split(self.separator)]
            if words and words != [b""] and words[0] != self.comment:
                yield number, words

    def error(self, line: int | None, expected: str, got: bytes | str, fix: str = ""):
        """Make an error about a line; ``got`` is quoted."""
        return ModelFileError(self.path, line, expected, show(got), fix)

    def integers(self, line: int, words: list[bytes], what: str) -> list[int]:
        """Integers >= 0."""
        try:
            return parse_integers(words)
        except BadNumber as bad:
            raise self.error(line, f"{bad.expected}: {what}", words[bad.index]) from None

    def signed(self, line: int, words: list[bytes], what: str) -> list[int]:
        """Integers of any sign and of at most 17 digits."""
        try:
            values = list(map(int, words))
            if max(map(len, words), default=0) < 18 and b"_" not in b"".join(words):
                return values
        except ValueError:
            pass
        for word in words:
            if not _INTEGER.fullmatch(word):
                raise self.error(line, f"an integer of at most 17 digits: {what}", word)
        return values

    def literal(self, line: int, word: bytes) -> tuple[int, int]:
        """Variable counted from 0, and the state of a literal: 1 positive, 0 negative."""
        negative = word.startswith(b"-")
        (variable,) = self.integers(line, [word[negative:]], "the variable of a literal")
        if variable == 0:
            raise self.error(line, "a literal, a variable from 1 with or without minus", word)
        return variable - 1, int(not negative)

    def number(self, line: int, word: bytes, what: str) -> float:
        """A finite number, of any sign."""
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or b"_" in word:
            raise self.error(line, f"a finite number: {what}", word)
        return value

    def build(self, builder: CircuitBuilder, root: int, line_of: dict[int, int]) -> CircuitModel:
        """Build the circuit; what is wrong with it becomes an error about a line."""
        if len(builder) * len(builder.cardinalities) > 8 * MAX_SCOPE_BYTES:
            expected = f"a circuit whose scopes take at most {MAX_SCOPE_BYTES} bytes"
            got = f"{len(builder)} nodes and {len(builder.cardinalities)} variables"
            raise ModelFileError(self.path, None, expected, got)
        try:
            return builder.build(root)
        except CircuitError as error:
            line = None if error.built_from is None else line_of.get(error.built_from)
            message = str(error)
            expected = "a complete, decomposable, rooted circuit"
            raise ModelFileError(self.path, line, expected, f"a fault: {message[:600]}") from None

    def check_variables(self, count: int, leaves: int, largest_line: int) -> None:
        """Refuse variable numbers that cannot all have a leaf."""
        if count > leaves:
            raise self.error(
                largest_line,
                f"a variable from 1 to {leaves}, as many as there are leaves",
                str(count),
                "every variable needs a leaf",
            )


def write_lines(path: str | os.PathLike[str], lines: list[str]) -> None:
    """Write lines of ASCII text, compressed if the name ends in `.gz`."""
    write_bytes(path, ("\n".join(lines) + "\n").encode("ascii"))
