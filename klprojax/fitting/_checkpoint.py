"""Checkpoints of a training run: any kill leaves the last one whole."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from types import CellType, FunctionType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..graphs._files._archive import read_arrays, write_arrays
from ..graphs._files._errors import ModelFileError

_FORMAT = "klprojax-run"
# Two runs with the same settings agree on their first update to rounding, also on another machine;
# another learning rate or loss shows at once.
_FINGERPRINT_TOLERANCE = 1e-3
# Compared otherwise than by equality; `Loop.refuse` decides about another length of the run.
_COMPARED_ELSEWHERE = ("first_update", "epochs")


def describe(thing: Any, above: tuple[Any, ...] = ()) -> Any:
    """Settings as JSON: fields by name, arrays by hash, functions by what they hold.

    Args:
        thing: a step, a loss, or a part of one.
        above: what it is a part of; a function may hold itself.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if eqx.is_array(thing) or isinstance(thing, np.ndarray | np.generic):
        return digest(thing)
    if any(thing is part for part in above):
        return "itself"
    above = (*above, thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: getattr(thing, f.name, None) for f in dataclasses.fields(thing)}
        return [type(thing).__name__, describe(fields, above)]
    if isinstance(thing, tuple | list):
        return [type(thing).__name__, [describe(part, above) for part in thing]]
    if isinstance(thing, dict):
        return {str(key): describe(value, above) for key, value in thing.items()}
    if isinstance(thing, partial):
        return ["function", describe((thing.func, thing.args, thing.keywords), above)]
    if isinstance(thing, FunctionType):  # a schedule keeps its numbers in its closure
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_set(cell)]
        held = [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        return ["function", [describe(part, above) for part in held]]
    return "function" if callable(thing) else type(thing).__name__


def _is_set(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def digest(tree: PyTree) -> str:
    """Hash of the arrays of a tree, with their places, dtypes and shapes."""
    out = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic):
            array = _numbers(leaf)
            place = jax.tree_util.keystr(path)
            out.update(f"{place}{leaf.dtype}{array.shape}".encode())
            out.update(np.ascontiguousarray(array).tobytes())
    return out.hexdigest()


def same_fingerprint(found: Any, wanted: Sequence[float] | None) -> bool:
    """Say whether two lists of numbers of a first update are of one run; None is of any."""
    if found is None or wanted is None:
        return True
    try:
        a, b = np.asarray(found, float), np.asarray(wanted, float)
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and bool(np.allclose(a, b, _FINGERPRINT_TOLERANCE, 0.0))


def save(
    path: str | os.PathLike[str], run: dict[str, Any], at: dict[str, Any], trees: dict[str, PyTree]
) -> None:
    """Write a checkpoint: to a temporary file, synced, then renamed.

    Args:
        path: the file.
        run: what the run is, as JSON.
        at: how far it is, as JSON.
        trees: model, state and so on; only their arrays are stored.
    """
    arrays = {}
    for name, tree in trees.items():
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
        arrays.update({f"{name}_{n}": _storable(leaf) for n, leaf in enumerate(leaves)})
    write_arrays(path, _FORMAT, {"run": run, "at": at}, arrays)


def load(
    path: str | os.PathLike[str], run: dict[str, Any], max_bytes: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Read a checkpoint of this run: what it is, how far it is, and its arrays for `fill`.

    Raises:
        ModelFileError: a damaged file.
        ValueError: a checkpoint of a run with other data or settings.
    """
    name = os.fspath(path)
    fix = "a checkpoint of an earlier version cannot be gone on from; give another file"
    header, arrays = read_arrays(path, _FORMAT, max_bytes, fix)
    found, wanted = header.get("run"), json.loads(json.dumps(run))
    if not isinstance(found, dict):
        found = {}
    keys = [k for k in wanted if k not in _COMPARED_ELSEWHERE and found.get(k) != wanted[k]]
    if not keys and not same_fingerprint(found.get("first_update"), wanted["first_update"]):
        keys = ["the first update (another optimiser, learning rate or loss?)"]
    if keys:
        raise ValueError(
            f"The checkpoint {name} is of another run; it differs in {', '.join(keys)}. Give the "
            "same data and settings, or another file."
        )
    at = header.get("at")
    if not isinstance(at, dict):
        raise ModelFileError(name, None, "the numbers of a run", "none")
    return found, at, arrays


def fill(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], prefix: str, like: PyTree
) -> PyTree:
    """Put stored arrays into a tree of the same form.

    Raises:
        ModelFileError: an array is missing or of another form.
    """
    wanted, rest = eqx.partition(like, eqx.is_array)
    leaves, tree = jax.tree.flatten(wanted)
    out = []
    for n, leaf in enumerate(leaves):
        array, form = arrays.get(f"{prefix}_{n}"), _storable(leaf)
        if array is None or array.shape != form.shape or array.dtype != form.dtype:
            name = os.fspath(path)
            raise ModelFileError(name, None, f"an array {prefix}_{n} of this run", "another")
        out.append(_restored(array, leaf))
    return eqx.combine(jax.tree.unflatten(tree, out), rest)


def tree_bytes(tree: PyTree) -> int:
    """Bytes that the arrays of a tree take."""
    return sum(_numbers(leaf).nbytes for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _storable(leaf: Any) -> np.ndarray:
    # Types that numpy does not know, bfloat16 and the like, are stored as their bytes.
    array = _numbers(leaf)
    if array.dtype.isbuiltin == 1:
        return array
    return np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, array.dtype.itemsize)


def _restored(array: np.ndarray, like: Any) -> jax.Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    dtype = np.dtype(like.dtype)
    if dtype.isbuiltin != 1:
        array = np.frombuffer(array.tobytes(), dtype).reshape(like.shape)
    return jnp.asarray(array)
