"""Bytes in, bytes out, tokens and numbers: what all readers and writers of model files share.

Everything works on bytes. Whitespace-separated files are split block by block, so that a file
that promises more than it holds, or unpacks to more than it should, costs no more than its text.
"""

import gzip
import io
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from klprojax._store import write_file
from klprojax.graphs._files._errors import ModelFileError

MAX_BYTES = 2**28  # default limit on the unpacked size of a file: 256 MiB
MAX_ENTRIES = 2**24  # default limit on table entries that a file implies without listing them
MAX_SCOPE = 64  # numpy arrays have at most 64 axes
SPARE_STATES = 2**20  # states that variables without any factor may have, in total

_CHUNK = 2**20
_MOST_LINE = 2**24  # bytes of a line that is split into words at once
_MOST_LINES = 2**24
_TINY = float(np.finfo(np.float64).tiny)
_LN10 = math.log(10.0)
_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\x0b\x0c")] = True
_BLANK = re.compile(rb"\s")
_WORD = re.compile(rb"\S+")
_REMARK = re.compile(rb"#[^\r\n]*")
_BOM = b"\xef\xbb\xbf"


def show(token: bytes | str) -> str:
    """Quote a piece of a file for a message: printable and short."""
    text = token[:80].decode("utf-8", "replace") if isinstance(token, bytes) else token[:80]
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return repr(text if len(text) <= 40 else text[:37] + "...")


def is_gzip_name(path: str | os.PathLike[str]) -> bool:
    """Say whether the name of a file asks for gzip."""
    return os.fspath(path).lower().endswith(".gz")


def format_suffix(path: str | os.PathLike[str]) -> str:
    """Return the extension that names the format, without `.gz`, in lower case."""
    name = os.path.basename(os.fspath(path)).lower()
    return os.path.splitext(name.removesuffix(".gz"))[1]


def stem(path: str | os.PathLike[str]) -> str:
    """Return the file name without `.gz` and without the extension of the format."""
    name = os.path.basename(os.fspath(path))
    if name.lower().endswith(".gz"):
        name = name[:-3]
    return os.path.splitext(name)[0]


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a plain or gzip-compressed file of at most `max_bytes` bytes after unpacking.

    Args:
        path: the file; a name that ends in `.gz` is unpacked.
        max_bytes: limit on the unpacked size in bytes.

    Raises:
        ModelFileError: no such file, not a regular file, not readable, damaged or too large.
    """
    name = os.fspath(path)
    packed = is_gzip_name(name)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise ModelFileError(name, None, "a regular file", "a folder, pipe or device")
        with open(name, "rb") as raw:
            data = _read_limited(gzip.GzipFile(fileobj=raw) if packed else raw, max_bytes)
    except FileNotFoundError:
        raise ModelFileError(name, None, "a file", "no such file", "check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        if packed:
            fix = "the file is damaged or not compressed: fetch it again or rename it"
            got = show(str(error))
            raise ModelFileError(name, None, "gzip-compressed data", got, fix) from None
        raise ModelFileError(name, None, "a readable file", show(str(error))) from None
    except ValueError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(name, None, "the path of a file", show(str(error))) from None
    if data is None:
        fix = "pass a larger max_bytes if the file is genuine"
        got = f"more than {max_bytes} bytes"
        raise ModelFileError(name, None, f"at most {max_bytes} bytes of text", got, fix)
    if data[:2] == b"\x1f\x8b":
        fix = "give the file a name that ends in .gz, or unpack it"
        raise ModelFileError(name, 1, "plain text", "gzip-compressed data", fix)
    return data


def _read_limited(stream, max_bytes: int) -> bytes | None:
    chunks = []
    size = 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step; links, devices and pipes as `klprojax._store.write_file` does.

    A name that ends in `.gz` is compressed; equal contents give equal bytes (no time stamp).
    """
    if is_gzip_name(path):
        data = gzip.compress(data, compresslevel=9, mtime=0)
    write_file(path, data)


def recode(path: str | os.PathLike[str], data: bytes, encoding: str | None) -> bytes:
    """Turn text of an encoding into UTF-8 without a byte order mark; None: it is UTF-8.

    Raises:
        ModelFileError: it is not text of that encoding.
        ValueError: no such encoding.
    """
    if encoding is not None:
        try:
            data = data.decode(encoding).encode("utf-8")
        except LookupError:
            raise ValueError(
                f"encoding is {encoding!r}; expected one that Python knows, latin-1 for example."
            ) from None
        except UnicodeError as error:
            fix = "try another encoding"
            raise ModelFileError(path, None, f"{encoding} text", show(str(error)), fix) from None
    return data.removeprefix(_BOM)


def text_lines(path: str | os.PathLike[str], data: bytes) -> Iterator[tuple[int, bytes]]:
    """Hand out lines with their numbers, one at a time: a list of them is many times their size.

    Raises:
        ModelFileError: a line of more than 16 MiB, more than 2^24 lines.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if (lines := data.count(b"\n")) > _MOST_LINES:
        raise ModelFileError(path, None, f"at most {_MOST_LINES} lines", str(lines))
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) > _MOST_LINE:
            got = f"one of {len(line)} bytes"
            raise ModelFileError(path, number, f"lines of at most {_MOST_LINE} bytes", got)
        yield number, line


def read_tokens(
    path: str | os.PathLike[str], max_bytes: int, encoding: str | None = None
) -> "TokenStream":
    """Read a file of tokens and remarks."""
    return make_stream(path, recode(path, read_bytes(path, max_bytes), encoding))


def make_stream(path: str | os.PathLike[str], data: bytes) -> "TokenStream":
    """Hand out the tokens of a text; what stands after `#` in a line is a remark."""
    return TokenStream(_REMARK.sub(b"", data) if b"#" in data else data, path)


def line_at(data: bytes, offset: int) -> int:
    """Return the line number, from 1, of a byte offset."""
    return data.count(b"\n", 0, offset) + 1


def bounded_product(factors: Sequence[int], limit: int) -> int | None:
    """Multiply positive integers; None as soon as the product is above `limit`."""
    product = 1
    for factor in factors:
        product *= factor
        if product > limit:
            return None
    return product


class BadNumber(Exception):
    """A token that is no number of the kind asked for: its position and what was expected."""

    def __init__(self, index: int, expected: str):
        super().__init__(index, expected)
        self.index = index
        self.expected = expected


def parse_integers(tokens: Sequence[bytes]) -> list[int]:
    """Turn tokens into integers, all of them >= 0.

    Raises:
        BadNumber: for the first token that is no such integer.
    """
    try:
        values = list(map(int, tokens))
    except ValueError:  # also for more digits than Python converts
        values = [-1]
    if values and (not 0 <= min(values) <= max(values) < 10**18 or b"_" in b"".join(tokens)):
        for index, token in enumerate(tokens):
            if not token.removeprefix(b"+").isdigit():
                raise BadNumber(index, "an integer >= 0")
            if len(token.lstrip(b"+0")) > 18:
                raise BadNumber(index, "an integer below 10^18")
    return values


def parse_numbers(tokens: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Turn tokens into non-negative numbers and their natural logarithms.

    Decimal numbers outside the range of float64 (`1e-400`) still have an exact logarithm.

    Args:
        tokens: decimal numbers.

    Returns:
        The float64 values (0 or inf where out of range), and their natural logarithms; a true
        zero has -inf.

    Raises:
        BadNumber: for the first token that is not a finite number >= 0.
    """
    try:
        values = np.fromiter(map(float, tokens), np.float64, len(tokens))
    except ValueError:
        values = None
    if values is None or b"_" in b"".join(tokens):
        raise BadNumber(next(i for i, t in enumerate(tokens) if not _is_float(t)), "a number")
    if not (values >= 0.0).all():  # NaN compares false
        raise BadNumber(int(np.argmin(values >= 0.0)), "a number >= 0")
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    zeros = {b"0"}
    for index in np.flatnonzero((values < _TINY) | (values == np.inf)).tolist():
        token = tokens[index]
        if token in zeros:
            continue
        log = _log_of_decimal(token)
        if log is None:
            raise BadNumber(index, "a finite number >= 0")
        if log == -math.inf:
            zeros.add(token)
        logs[index] = log
    return values, logs


def _is_float(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token


def _log_of_decimal(token: bytes) -> float | None:
    # The logarithm of a decimal number of any exponent; None for inf, for a negative number
    # and for absurd exponents.
    mantissa, _, exponent = token.lower().partition(b"e")
    whole, _, fraction = mantissa.removeprefix(b"+").partition(b".")
    digits = (whole + fraction).lstrip(b"0")
    if not digits and not mantissa.startswith(b"-"):
        return -math.inf
    if not digits.isdigit():
        # "inf", or a sign: only minus zero may carry one
        rest = digits.removeprefix(b"-")
        return -math.inf if digits[:1] == b"-" and not rest.strip(b"0") else None
    if len(exponent) > 12:
        return None
    power = len(digits) - len(fraction) + int(exponent or b"0")
    return math.log(float(b"0." + digits[:30])) + power * _LN10


def format_numbers(log_values: np.ndarray) -> list[str]:
    """Write exp of logarithms as decimal numbers that read back to the same logarithms.

    Values outside the normal range of float64 get a decimal exponent of their own, so nothing
    is rounded to 0 or to infinity.
    """
    logs = np.asarray(log_values, dtype=np.float64).reshape(-1)
    with np.errstate(over="ignore", under="ignore"):
        values = np.exp(logs)
    texts = list(map(repr, values.tolist()))
    outside = ((values < _TINY) & (logs > -np.inf)) | (values == np.inf)
    for index in np.flatnonzero(outside).tolist():
        log = float(logs[index])
        power = math.floor(log / _LN10)
        texts[index] = f"{math.exp(log - power * _LN10)!r}e{power}"
    return texts


def count_tokens(data: bytes) -> int:
    """Count whitespace-separated tokens in little memory."""
    total = 0
    after_space = True
    for start in range(0, len(data), _CHUNK):
        space = _SPACE[np.frombuffer(data, np.uint8, min(_CHUNK, len(data) - start), start)]
        total += int(np.count_nonzero(space[:-1] & ~space[1:]))
        total += int(after_space and not space[0])
        after_space = bool(space[-1])
    return total


class TokenStream:
    """The whitespace-separated tokens of a file, handed out in order.

    Args:
        data: the text.
        path: name of the file, for messages.
    """

    def __init__(self, data: bytes, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.data = data
        self.total = count_tokens(data)
        self.used = 0
        self._block: list[bytes] = []
        self._next = 0
        self._offset = 0

    @property
    def left(self) -> int:
        """Number of tokens not yet taken."""
        return self.total - self.used

    def take(self, count: int, what: str) -> list[bytes]:
        """Return the next `count` tokens; `what` names them should the file end before."""
        if count > self.left:
            got = f"the end of the file after {self.left} of them" if self.left else "its end"
            last = line_at(self.data, len(self.data.rstrip()))
            raise self.error_at_line(last, f"{count} token(s): {what}", got, "is it cut off?")
        end = self._next + count
        taken = self._block[self._next : end]
        while len(taken) < count and self._offset < len(self.data):
            self._block = self._split(self._offset)
            end = count - len(taken)
            taken += self._block[:end]
        self._next = end
        self.used += count
        return taken

    def skip(self, count: int) -> None:
        """Pass over tokens that exist."""
        while count:
            step = min(count, _CHUNK)
            self.take(step, "tokens")
            count -= step

    def integers(self, count: int, what: str) -> list[int]:
        """Return the next `count` tokens as integers >= 0."""
        tokens = self.take(count, what)
        try:
            return parse_integers(tokens)
        except BadNumber as bad:
            raise self.error(bad.index - count, f"{bad.expected}: {what}") from None

    def integer(self, what: str) -> int:
        """Return the next token as an integer >= 0."""
        return self.integers(1, what)[0]

    def error(self, position: int, expected: str, fix: str = "") -> ModelFileError:
        """Make an error about a token, counted from the tokens used: -1 is the last one taken."""
        return self.error_about(self.used + position, expected, fix)

    def error_about(self, ordinal: int, expected: str, fix: str = "") -> ModelFileError:
        """Make an error about a token given by its number in the file."""
        token, offset = self._locate(ordinal)
        line = line_at(self.data, offset)
        return ModelFileError(self.path, line, expected, show(token), fix)

    def error_at_line(
        self, line: int | None, expected: str, got: str, fix: str = ""
    ) -> ModelFileError:
        """Make an error about a line."""
        return ModelFileError(self.path, line, expected, got, fix)

    def line_of(self, ordinal: int) -> int:
        """Return the line of a token given by its number in the file."""
        return line_at(self.data, self._locate(ordinal)[1])

    def expect_end(self, fix: str) -> None:
        """Check that every token was taken."""
        if self.left:
            expected = f"the end of the file after {self.used} tokens"
            raise self.error(0, expected, fix)

    def _split(self, offset: int) -> list[bytes]:
        end = offset + _CHUNK
        if end < len(self.data):
            blank = _BLANK.search(self.data, end)
            end = blank.start() if blank else len(self.data)
        self._offset = end
        return self.data[offset:end].split()

    def _locate(self, ordinal: int) -> tuple[bytes, int]:
        # The token and its byte offset: only errors pay for this search.
        if not 0 <= ordinal < self.total:
            raise IndexError(f"token {ordinal} of {self.total}")
        resume = self._offset
        start = seen = 0
        while seen + (size := len(self._split(start))) <= ordinal:
            seen += size
            start = self._offset
        self._offset = resume
        words = islice(_WORD.finditer(self.data, start), ordinal - seen, None)
        word = next(words)
        return word.group(), word.start()
