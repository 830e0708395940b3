"""Open a model by path or by the name of a network that comes with the package."""

import difflib
import importlib.resources
import os

from klprojax.graphs._files._bif import read_bif
from klprojax.graphs._files._cnf import read_cnf
from klprojax.graphs._files._errors import ModelFileError
from klprojax.graphs._files._fg import read_fg
from klprojax.graphs._files._text import MAX_BYTES, MAX_ENTRIES, format_suffix, show
from klprojax.graphs._files._uai import read_uai
from klprojax.graphs._model import DiscreteModel

_SHIPPED = ("alarm", "asia", "child", "insurance")
_SUFFIXES = (".uai", ".bif", ".fg", ".cnf")


def read_model(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    repair: str | None = None,
    encoding: str | None = None,
) -> DiscreteModel:
    """Read a model file; its extension names the format.

    Args:
        path: a `.uai`, `.bif`, `.fg` or `.cnf` file, or `.gz` of one.
        max_bytes: limit on the unpacked size in bytes.
        max_entries: limit on table entries that a file implies without listing them.
        repair: how to mend tables of a BIF file, `"normalise"` or `"uniform"`; see `read_bif`.
        encoding: of a file that is not UTF-8, `"latin-1"` for example.

    Returns:
        The model.

    Raises:
        ModelFileError: if the extension is unknown or the file breaks its format.
        ValueError: an unknown encoding or repair, or a repair of another format than BIF.
    """
    suffix = format_suffix(path)
    if suffix == ".bif":
        return read_bif(
            path, max_bytes=max_bytes, max_entries=max_entries, repair=repair, encoding=encoding
        )
    if repair is not None and suffix in _SUFFIXES:
        raise ValueError(
            f"repair is {repair!r}, but only BIF files are mended; tables of a {suffix} file are "
            "taken as they stand. Leave repair out."
        )
    if suffix == ".uai":
        return read_uai(path, max_bytes=max_bytes, encoding=encoding)
    if suffix == ".cnf":
        return read_cnf(path, max_bytes=max_bytes, encoding=encoding)
    if suffix == ".fg":
        return read_fg(path, max_bytes=max_bytes, max_entries=max_entries, encoding=encoding)
    expected = f"a file that ends in {', '.join(_SUFFIXES)} or one of these with .gz"
    raise ModelFileError(path, None, expected, show(suffix or "no extension"))


def shipped_models() -> tuple[str, ...]:
    """Return the names of the networks that come with the package.

    >>> shipped_models()
    ('alarm', 'asia', 'child', 'insurance')
    """
    return _SHIPPED


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    repair: str | None = None,
    encoding: str | None = None,
) -> DiscreteModel:
    """Read a model file, or a network that comes with the package.

    Args:
        name_or_path: a name from `shipped_models()`, or the path of a model file.
        repair: how to mend tables of a BIF file, `"normalise"` or `"uniform"`; see `read_bif`.
        encoding: of a file that is not UTF-8, `"latin-1"` for example.

    Returns:
        The model.

    Raises:
        ModelFileError: if it is neither; the message lists the shipped names.
        ValueError: an unknown encoding or repair, or a repair of another format than BIF.

    >>> load_model("asia").variable_names[:3]
    ('asia', 'tub', 'smoke')
    """
    text = os.fspath(name_or_path)
    if text in _SHIPPED:
        resource = importlib.resources.files("klprojax.models") / f"{text}.bif.gz"
        with importlib.resources.as_file(resource) as path:
            return read_bif(path)
    if format_suffix(text) in _SUFFIXES:
        return read_model(text, repair=repair, encoding=encoding)
    close = difflib.get_close_matches(text[:64], _SHIPPED, n=1)
    fix = f"did you mean {close[0]}?" if close else "check the name or the extension"
    expected = f"a path that ends in {', '.join(_SUFFIXES)} or one of {', '.join(_SHIPPED)}"
    raise ModelFileError(text, None, expected, show(text), fix)
