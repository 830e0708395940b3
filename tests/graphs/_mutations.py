"""Damage text files in the ways that files get damaged; fixed seeds give fixed mutants.

`mutants(data, count, seed)` works on the bytes of any text format: nothing here knows UAI or
BIF. The module imports the standard library only, so a bare subprocess can use it.
"""

import random
import re
from collections.abc import Callable, Iterator

_TOKENS = re.compile(rb"(\s+)")
_HUGE = (
    b"1000000000",
    b"1152921504606846976",  # 2^60
    b"99999999999999999999999999",
    b"9" * 5000,  # more digits than Python converts to an integer
    b"1e999",
    b"-1",
    b"0",
    b"nan",
    b"inf",
    b"1e-999999999999999999",
    b"1_0",
    b"0x10",
    "٣".encode(),  # a digit, but not an ASCII one
)
_GARBAGE = (
    b"\x00",
    b"\xff\xfe",
    b"\xc0\xc1\xf5",
    b"{",
    b"}",
    b"(",
    b";",
    b'"',
    b"/*",
    b"//",
    b"#",
    b"\xef\xbb\xbf",
    b"\x1f\x8b",
    b"(" * 3000,
    b"\n" * 3000,
)


def _split(data: bytes) -> list[bytes]:
    # tokens at even places, blanks between them at odd places
    return _TOKENS.split(data)


def _pick(rng: random.Random, pieces: list[bytes]) -> int:
    return 2 * rng.randrange((len(pieces) + 1) // 2)


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    """Replace some bytes by others."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Cut the file off."""
    return data[: rng.randrange(len(data))]


def duplicate_token(rng: random.Random, data: bytes) -> bytes:
    """Write a token twice."""
    pieces = _split(data)
    at = _pick(rng, pieces)
    pieces[at] += b" " + pieces[at]
    return b"".join(pieces)


def delete_token(rng: random.Random, data: bytes) -> bytes:
    """Leave a token out."""
    pieces = _split(data)
    pieces[_pick(rng, pieces)] = b""
    return b"".join(pieces)


def huge_number(rng: random.Random, data: bytes) -> bytes:
    """Put an extreme or strange number in the place of a number."""
    found = [match.span() for match in re.finditer(rb"[0-9][0-9.eE+-]*", data)]
    start, end = rng.choice(found or [(0, 0)])
    return data[:start] + rng.choice(_HUGE) + data[end:]


def header_lie(rng: random.Random, data: bytes) -> bytes:
    """Change one of the first numbers."""
    found = [match.span() for match in re.finditer(rb"[0-9]+", data[:200])]
    start, end = rng.choice(found[:4] or [(0, 0)])
    return data[:start] + rng.choice(_HUGE) + data[end:]


def shuffle_lines(rng: random.Random, data: bytes) -> bytes:
    """Swap two lines, or shuffle a run of lines."""
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.5:
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
    else:
        start = rng.randrange(len(lines))
        run = lines[start : start + 20]
        rng.shuffle(run)
        lines[start : start + 20] = run
    return b"".join(lines)


def swap_tokens(rng: random.Random, data: bytes) -> bytes:
    """Exchange two tokens."""
    pieces = _split(data)
    i, j = _pick(rng, pieces), _pick(rng, pieces)
    pieces[i], pieces[j] = pieces[j], pieces[i]
    return b"".join(pieces)


def insert_garbage(rng: random.Random, data: bytes) -> bytes:
    """Insert bytes that mean something somewhere else."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_GARBAGE) + data[at:]


def repeat_slice(rng: random.Random, data: bytes) -> bytes:
    """Paste a part of the file a second time, somewhere."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((10, 1000, 100_000))]
    at = rng.randrange(len(data) + 1)
    return data[:at] + part + data[at:]


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip_bytes,
    truncate,
    duplicate_token,
    delete_token,
    huge_number,
    header_lie,
    shuffle_lines,
    swap_tokens,
    insert_garbage,
    repeat_slice,
)


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged copies with the name of the damage, each kind in turn."""
    rng = random.Random(seed)
    for index in range(count):
        mutate = MUTATIONS[index % len(MUTATIONS)]
        yield mutate.__name__, mutate(rng, data)
