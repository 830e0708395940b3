"""Arrays out of an ``.npz`` file, and what to say where it is none."""

import os
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_NPY = b"\x93NUMPY"


def read_npz(
    path: str | os.PathLike[str], wanted: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read arrays of numbers from an ``.npz`` file.

    Args:
        path: the file.
        wanted: names of arrays to read as far as they are there.

    Returns:
        The arrays by name, and the names of all arrays in the file.

    Raises:
        ValueError: no such file, or not one of arrays of numbers.
    """
    name = os.fspath(path)
    wrong = f"{name}: not an .npz file of numbers"
    try:
        # Opened here: numpy leaves a file open that turns out to be damaged.
        with open(name, "rb") as stream:
            start = stream.read(64)
            if start[:6] == _NPY:
                raise ValueError(
                    f"{wrong}: a single array without a name; "
                    "np.savez(FILE, NAME=np.load(...)) gives it one."
                )
            if start[:4] not in _ZIP:
                raise ValueError(f"{wrong}: {_describe(start)}")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {key: _load(wrong, file, key) for key in wanted if key in file}, file.files
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{wrong}: damaged: {reason}") from None


def _load(wrong: str, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = file[key]
    except ValueError:
        raise ValueError(
            f"{wrong}: {key} holds Python objects or is damaged; save an array made by "
            "np.asarray(..., dtype=...)."
        ) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{wrong}: {key} is no array.")
    return array


def _describe(start: bytes) -> str:
    """What a file seems to be, by its first bytes."""
    if not start:
        return "an empty file."
    if start[:2] == b"\x1f\x8b":
        return "gzip-compressed data: unpack it first."
    line = start.removeprefix(b"\xef\xbb\xbf").splitlines()[:1]
    text = line[0].decode("utf-8", "replace")[:40] if line else ""
    if text.isprintable() and "\ufffd" not in text:
        return (
            f"text that begins {text!r}. Convert a table with np.savez(FILE, "
            "NAME=np.loadtxt(TABLE, delimiter=','))."
        )
    return "another kind of file."
