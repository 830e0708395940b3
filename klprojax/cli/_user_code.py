"""What users name as ``MODULE:NAME``: imported from the current folder, or from a file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load_named(option: str, spec: str, example: str) -> tuple[ModuleType, Any]:
    """Import ``MODULE:NAME`` or ``FILE.py:NAME``: the module, and what it calls so.

    Args:
        option: what an error calls the text.
        spec: the text.
        example: of such a text.

    Raises:
        ValueError: it cannot be had, or cannot be called.
    """
    where, colon, name = spec.rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"{option} is {spec!r}; it must be MODULE:NAME, as in {example}")
    try:
        module = _import(where)
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import {where}: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{where} has no function {name}")
    return module, found


def _import(where: str) -> ModuleType:
    """Import a module by name from the current folder, or a file by its path."""
    path = Path(where)
    is_file = path.suffix == ".py"
    folder = str(path.resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        if not is_file:
            return importlib.import_module(where)
        # A name of its own: a file called json.py must not take the place of a module.
        name = f"_verified_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)
