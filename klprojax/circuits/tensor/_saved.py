"""Files of tensor circuits: one zip of arrays with a JSON header, no pickle."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ...graphs._files._archive import read_arrays, write_arrays
from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import MAX_BYTES
from ._circuit import TensorCircuit
from ._parameters import TensorParameters
from ._structure import TensorStructure

_FORMAT = "klprojax-tensor-circuit"
_TABLES = ("log_weights", "log_inputs", "log_root", "log_mixing")


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
    header = {"circuit": describe(circuit)}
    tables = {name: getattr(parameters, name) for name in _TABLES}
    arrays = {name: np.asarray(table) for name, table in tables.items() if table is not None}
    write_arrays(path, _FORMAT, header, arrays)


def load_tensor_circuit(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> TensorModel:
    """Read a tensor circuit written by `save_tensor_circuit`; it is validated like any other.

    Args:
        path: of the file.
        max_bytes: the most bytes that its arrays may take.

    Returns:
        Structure and parameters.

    Raises:
        ModelFileError: damaged, too large, of another format, or no valid circuit.
    """
    name = os.fspath(path)
    header, arrays = read_arrays(path, _FORMAT, max_bytes)
    try:
        circuit = restore(header["circuit"])
        names = _TABLES if circuit.structure.mixing else _TABLES[:-1]
        tables = [arrays[key] for key in names]
        for key, table in zip(names, tables, strict=True):
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
    out: dict[str, Any] = {
        "cardinalities": list(s.cardinalities),
        "units": s.units,
        "variables": list(s.variables),
        "input_blocks": list(s.input_blocks),
        "levels": [[list(node) for node in level] for level in s.levels],
        "sum_blocks": list(s.sum_blocks),
        "roots": [list(node) for node in s.roots],
    }
    if s.mixing:
        out["mixing"] = list(s.mixing)
    return out


def restore(content: Mapping[str, Any]) -> TensorCircuit:
    """Undo `describe`."""
    complete = {"mixing": (), **content}
    return TensorCircuit(**{key: complete[key] for key in TensorStructure.__dataclass_fields__})
