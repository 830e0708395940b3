"""One zip of arrays with a JSON header, no pickle: how whatever is saved is stored."""

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._errors import ModelFileError
from ._text import read_bytes, show, write_bytes

_HEADER = "header.json"
_VERSION = 1


def write_arrays(
    path: str | os.PathLike[str],
    form: str,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write a header and arrays to a temporary file, sync it, rename it.

    Args:
        path: the file; numpy's ``load`` reads its arrays too.
        form: name of the format.
        header: more entries of the header, for JSON.
        arrays: arrays of numbers, by name.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        content = {"format": form, "version": _VERSION, **header}
        archive.writestr(_member(_HEADER), json.dumps(content))
        for name, array in arrays.items():
            part = io.BytesIO()
            # Not ascontiguousarray, which would make a scalar a vector.
            np.lib.format.write_array(part, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), part.getvalue())
    write_bytes(path, buffer.getvalue())


def read_arrays(
    path: str | os.PathLike[str], form: str, max_bytes: int, fix: str = ""
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Undo `write_arrays`; `fix` says what to do about a file of another format.

    Raises:
        ModelFileError: damaged, too large or of another format.
    """
    name = os.fspath(path)
    parts = _unpack(name, read_bytes(path, max_bytes), max_bytes)
    try:
        header = json.loads(parts.pop(_HEADER, b"null"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != form:
        got = header.get("format") if isinstance(header, dict) else None
        got = "none" if got is None else show(str(got))
        raise ModelFileError(name, None, f"a header with format {form}", got, fix)
    if header.get("version") != _VERSION:
        got = show(repr(header.get("version")))
        fix = "update the package to read newer files"
        raise ModelFileError(name, None, f"version {_VERSION} of the format", got, fix)
    return header, {key[:-4]: _array(name, key, data) for key, data in parts.items()}


def _member(name: str) -> zipfile.ZipInfo:
    # A fixed date: equal contents give equal bytes.
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _unpack(name: str, data: bytes, max_bytes: int) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > 10_000:
                raise ModelFileError(name, None, "at most 10000 members", str(len(members)))
            left = max_bytes
            for member in members:
                with archive.open(member) as stream:
                    part = stream.read(left + 1)
                left -= len(part)
                if left < 0:
                    fix = "pass a larger max_bytes if the file is genuine"
                    expected = f"at most {max_bytes} bytes unpacked"
                    raise ModelFileError(name, None, expected, "more", fix)
                parts[member.filename] = part
    except ModelFileError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
        ValueError,
        OverflowError,
        ImportError,
    ) as error:
        fix = "the file is damaged or of another kind"
        raise ModelFileError(name, None, "a zip archive of arrays", show(str(error)), fix) from None
    return parts


def _array(name: str, key: str, data: bytes) -> np.ndarray:
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError("another version of the npy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        body = data[stream.tell() :]
        # Checked before anything is allocated: the header may promise any size.
        if dtype.hasobject or fortran or math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError("a header that does not fit the data")
        return np.frombuffer(body, dtype).reshape(shape)
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        got = show(str(error))
        raise ModelFileError(name, None, f"an array of numbers in {key}", got) from None
