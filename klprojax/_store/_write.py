"""The one writer of files: whole or not at all, and nothing replaced that is no regular file."""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that `write_file` could not write: to call before a long computation.

    In the folder of a regular file an empty temporary file is made and removed, since nothing else
    tells of read-only disks. Devices and pipes are not touched.

    Raises:
        OSError: no such folder, a folder in place of a file, no permission.
    """
    name, target, status = _resolve(path)
    if status is None or _is_plain(status):
        os.unlink(_make_temporary(name, target))


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file: a reader sees the old content or the whole new one.

    A symbolic link is kept, and what it points to written. A regular file is written beside its
    place, synced and renamed; the permission bits stay, other hard links keep the old content.
    Devices, pipes and this process's own standard output and error are written straight.

    Raises:
        OSError: no such folder, no permission, a device that is full.
    """
    name, target, status = _resolve(path)
    if status is not None and not _is_plain(status):
        with _named(name):
            _write_straight(name, status, data)
        return
    temporary = _make_temporary(name, target)
    try:
        with _named(name):
            _write_beside(temporary, status, data)
            os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the file that was asked for in what the system says."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{name} cannot be written: {error.strerror or error}.") from None


def _write_beside(temporary: str, status: os.stat_result | None, data: bytes) -> None:
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        if status is not None:
            with suppress(OSError):  # another owner's: only root may give it back
                os.chown(temporary, status.st_uid, status.st_gid)
            os.chmod(temporary, stat.S_IMODE(status.st_mode))
        os.fsync(file.fileno())


def _resolve(path: str | os.PathLike[str]) -> tuple[str, str, os.stat_result | None]:
    """The path as text, where it leads, and what is there; None for nothing yet."""
    name = os.fspath(path)
    try:
        status = os.stat(name)
    except FileNotFoundError:
        status = None  # or a link to what is not there yet
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name} is a folder; give the name of a file.")
    return name, os.path.realpath(name), status


def _is_plain(status: os.stat_result) -> bool:
    """Whether to write by renaming: a regular file that is not where our output goes."""
    return stat.S_ISREG(status.st_mode) and _stream(status) is None


def _stream(status: os.stat_result) -> int | None:
    """Descriptor of standard output or error, if the file is one of them."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), status):
                return number
    return None


def _write_straight(name: str, status: os.stat_result, data: bytes) -> None:
    # Through the descriptor where there is one: opened again, a regular file would start anew.
    number = _stream(status)
    if number is None:
        with open(name, "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    _write_all(number, data)


def _write_all(number: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(number, left) :]


def _make_temporary(name: str, target: str) -> str:
    """Make an empty file beside the target, with the permissions of a new file."""
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        shown = os.path.dirname(name) if target == os.path.abspath(name) else folder
        raise FileNotFoundError(f"{name}: the folder {shown} does not exist; make it first.")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"{name} is not writable; give another name or change its mode.")
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb"):
            return temporary
    except OSError as error:
        raise type(error)(
            f"{name}: the folder {folder} cannot be written: {error.strerror}."
        ) from None
