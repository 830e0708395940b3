"""Contraction trees that took a search, kept on disk from run to run.

The folder is ``$KLPROJAX_TREES``, or ``klprojax/trees`` in the user's cache; set to nothing it
turns this off. A file holds pairs of numbers as JSON, under a digest of what was searched for.
Whatever is wrong with a file or the folder, the search is made again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._store import write_file

_VARIABLE = "KLPROJAX_TREES"
# Pairs of numbers of a million tables take less.
_MOST_BYTES = 32 * 2**20


def digest(*parts: Any) -> str:
    """Name of the file for these arguments of a search."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stored_pairs(name: str, tables: int) -> list[tuple[int, int]] | None:
    """The pairs kept under a name, if they are a path over so many tables."""
    path = _path(name)
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return None
        found = json.loads(path.read_bytes())
        left = set(range(tables))
        for one, two in found:
            left.remove(one)
            left.remove(two)
            left.add(tables)
            tables += 1
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return [(one, two) for one, two in found]


def keep_pairs(name: str, pairs: Sequence[Sequence[int]]) -> None:
    """Write the pairs, if that is possible."""
    path = _path(name)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps([[int(k) for k in pair] for pair in pairs]).encode())
    except (OSError, ValueError):
        return


def _path(name: str) -> Path | None:
    folder = os.environ.get(_VARIABLE)
    if folder is None:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # no home
            return None
        return cache / "klprojax" / "trees" / f"{name}.json"
    return Path(folder) / f"{name}.json" if folder else None
