"""The files of a folder or of an archive, read one by one; nothing is unpacked."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

# What systems leave in folders.
_LEFT_BY_SYSTEMS = ("__macosx", "thumbs.db", "desktop.ini")
_MOST_BYTES = 2**31  # of one file in an archive


@dataclass(frozen=True)
class Files:
    """Files of one source.

    Attributes:
        source: the folder or file that was named.
        names: relative names, sorted.
        folders: relative names of all folders, sorted.
        read: gives the bytes of a file by its name.
    """

    source: str
    names: tuple[PurePosixPath, ...]
    folders: tuple[PurePosixPath, ...]
    read: Callable[[PurePosixPath], bytes]

    def having(self, suffixes: Sequence[str]) -> list[PurePosixPath]:
        """Files whose names end so."""
        return [name for name in self.names if name.suffix.lower() in suffixes]

    def label(self, name: PurePosixPath) -> str:
        """What an error calls a file."""
        alone = str(name) == os.path.basename(self.source)
        return self.source if alone else f"{self.source}: {name}"

    def describe(self) -> str:
        """What is there, for an error."""
        if not self.names:
            return "there are no files"
        first = ", ".join(map(str, self.names[:3]))
        return f"there are files such as {first}"

    def text(self, name: PurePosixPath) -> str:
        """A file as text, without a byte order mark.

        Raises:
            ValueError: it is not UTF-8 text.
        """
        content = self.read(name)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise ValueError(
                f"{self.label(name)}: not UTF-8 text: the byte 0x{content[error.start]:02x} in "
                f"line {line}; save it as UTF-8."
            ) from None
        if "\0" in text:
            raise ValueError(f"{self.label(name)}: holds characters of number 0; no text file.")
        if not text.strip():
            raise ValueError(f"{self.label(name)}: an empty file.")
        return text


@contextmanager
def open_files(source: str) -> Iterator[Files]:
    """The files of a folder, of a ``.zip`` archive, or a single file.

    Folders that hold nothing but one folder are entered. Hidden files are passed over.

    Raises:
        ValueError: no such file, a damaged archive, names that lead out of it.
    """
    try:
        if os.path.isdir(source):
            yield _strip(_folder(source))
        elif source.lower().endswith(".zip"):
            with zipfile.ZipFile(source) as archive:
                yield _strip(_archive(source, archive))
        else:
            yield Files(source, (PurePosixPath(os.path.basename(source)),), (), _reader(source))
    except FileNotFoundError:
        raise ValueError(f"{source}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{source}: {error.strerror or error}.") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source}: not a .zip file, or damaged: {error}") from None


def _reader(source: str) -> Callable[[PurePosixPath], bytes]:
    def read(name: PurePosixPath) -> bytes:
        del name
        with open(source, "rb") as stream:
            return stream.read()

    return read


def _folder(source: str) -> Files:
    names, folders = [], []
    for top, inner, found in os.walk(source, onerror=_raise):
        inside = PurePosixPath(os.path.relpath(top, source).replace(os.sep, "/"))
        names += [inside / name for name in found]
        folders += [inside / name for name in inner]

    def read(name: PurePosixPath) -> bytes:
        with open(os.path.join(source, *name.parts), "rb") as stream:
            return stream.read()

    return Files(source, tuple(names), tuple(folders), read)


def _raise(error: OSError) -> None:
    raise error


def _archive(source: str, archive: zipfile.ZipFile) -> Files:
    names, folders, entries = [], set(), {}
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0][:2]:
            raise ValueError(f"{source}: holds the name {entry.filename!r}, which leads out of it.")
        folders |= set(name.parents) - {PurePosixPath()}
        if entry.is_dir():
            folders.add(name)
        elif name in entries:
            raise ValueError(f"{source}: holds {name} twice.")
        else:
            names.append(name)
            entries[name] = entry

    def read(name: PurePosixPath) -> bytes:
        entry = entries[name]
        if entry.flag_bits & 1:
            raise ValueError(f"{source}: {name} is encrypted; unpack the archive.")
        if entry.file_size > _MOST_BYTES:
            raise ValueError(f"{source}: {name} is large; unpack the archive and give the folder.")
        try:
            return archive.read(entry)
        except (EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
            raise ValueError(f"{source}: {name} is damaged: {error}") from None

    return Files(source, tuple(names), tuple(folders), read)


def _strip(files: Files) -> Files:
    """Without hidden files and folders around everything."""

    def shown(names: Sequence[PurePosixPath]) -> list[PurePosixPath]:
        return sorted(
            name
            for name in names
            if not any(p.startswith(".") or p.lower() in _LEFT_BY_SYSTEMS for p in name.parts)
        )

    names, folders = shown(files.names), shown(files.folders)
    outside = PurePosixPath()
    while len({name.parts[0] for name in (*names, *folders)}) == 1 and folders:
        top = folders[0]
        # A folder of nothing but files may be a class or a part.
        if len(folders) == 1 and len(names) > 1:
            break
        outside /= top
        names = [name.relative_to(top) for name in names]
        folders = [name.relative_to(top) for name in folders if name != top]
    read = files.read
    return Files(files.source, tuple(names), tuple(folders), lambda name: read(outside / name))
