"""Files of tensor circuits: one zip of arrays with a JSON header, no pickle."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import MAX_BYTES, read_bytes, write_bytes
from .._files._saved import _array, _member, _unpack
from ._circuit import TensorCircuit
from ._parameters import TensorParameters
from ._structure import TensorStructure

_FORMAT = "klprojax-tensor-circuit"
_HEADER = "header.json"
_TABLES = ("log_weights", "log_inputs", "log_root")


class TensorModel(NamedTuple):
    """A tensor circuit with its numbers."""

    circuit: TensorCircuit
    parameters: TensorParameters


def save_tensor_circuit(
    path: str | os.PathLike[str], circuit: TensorCircuit, parameters: TensorParameters
) -> None:
    """Write a tensor circuit with its numbers to one `.npz` file, in one step.

    Args:
        path: the file; numpy's ``load`` reads its arrays too.
        circuit: the structure.
        parameters: the numbers.

    Raises:
        ValueError: numbers that do not fit the circuit.
    """
    circuit.check(parameters)
    header = {"format": _FORMAT, "version": 1, "circuit": describe(circuit)}
    arrays = {name: np.asarray(getattr(parameters, name)) for name in _TABLES}
    write_arrays(path, header, arrays)


def load_tensor_circuit(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> TensorModel:
    """Read a tensor circuit written by `save_tensor_circuit`; it is validated like any other.

    Raises:
        ModelFileError: damaged, too large, of another format, or no valid circuit.
    """
    name = os.fspath(path)
    header, arrays = read_arrays(path, _FORMAT, max_bytes)
    try:
        circuit = restore(header["circuit"])
        tables = [arrays[key] for key in _TABLES]
        for key, table in zip(_TABLES, tables, strict=True):
            if table.dtype.kind != "f" or not (table < np.inf).all():
                raise ValueError(f"{key} must hold logarithms, no NaN and no +inf")
        parameters = TensorParameters(*map(jnp.asarray, tables))
        circuit.check(parameters)
    except (KeyError, TypeError, ValueError) as error:
        got = f"a fault: {type(error).__name__}: {str(error)[:600]}"
        raise ModelFileError(name, None, "a valid tensor circuit", got) from None
    return TensorModel(circuit, parameters)


def describe(circuit: TensorCircuit) -> dict[str, Any]:
    """The structure as JSON."""
    s = circuit.structure
    return {
        "cardinalities": list(s.cardinalities),
        "units": s.units,
        "variables": list(s.variables),
        "input_blocks": list(s.input_blocks),
        "levels": [[list(node) for node in level] for level in s.levels],
        "sum_blocks": list(s.sum_blocks),
        "roots": [list(node) for node in s.roots],
    }


def restore(content: Mapping[str, Any]) -> TensorCircuit:
    """Undo `describe`."""
    return TensorCircuit(**{key: content[key] for key in TensorStructure.__dataclass_fields__})


def write_arrays(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a header and arrays to a temporary file, sync it, rename it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(_HEADER), json.dumps(header))
        for name, array in arrays.items():
            part = io.BytesIO()
            # Not ascontiguousarray, which would make a scalar a vector.
            np.lib.format.write_array(part, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), part.getvalue())
    write_bytes(path, buffer.getvalue())


def read_arrays(
    path: str | os.PathLike[str], form: str, max_bytes: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Undo `write_arrays`.

    Raises:
        ModelFileError: damaged, too large or of another format.
    """
    name = os.fspath(path)
    parts = _unpack(name, read_bytes(path, max_bytes), max_bytes)
    try:
        header = json.loads(parts.pop(_HEADER, b"null"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != form or header.get("version") != 1:
        raise ModelFileError(name, None, f"a header with format {form}, version 1", "another")
    return header, {key[:-4]: _array(name, key, data) for key, data in parts.items()}
