"""Our own circuit files: one zip of arrays with a JSON header, no pickle."""

import io
import json
import math
import os
import zipfile
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import MAX_BYTES, read_bytes, show, write_bytes
from .._builder import CircuitModel
from .._circuit import Circuit
from .._leaves import AbstractLeaf, Bernoulli, Binomial, Categorical, Gaussian, Indicator
from .._structure import LeafGroup
from ._lines import MAX_SCOPE_BYTES

_FORMAT = "klprojax-circuit"
_VERSION = 1
_FAMILIES: dict[str, type[AbstractLeaf]] = {
    family.__name__: family for family in (Indicator, Categorical, Bernoulli, Binomial, Gaussian)
}
_HEADER = "header.json"


def save_circuit(path: str | os.PathLike[str], model: CircuitModel) -> None:
    """Write a circuit with its numbers to one `.npz` file, in one step.

    Args:
        path: the file; numpy's ``load`` reads its arrays too.
        model: circuit, log-weights and leaf parameters.

    Raises:
        ValueError: numbers that do not fit the circuit, or a leaf family of your own.
    """
    s = model.circuit.structure
    model.circuit.check(model.log_weights, None, model.leaf_parameters)
    families = [type(group.family).__name__ for group in s.groups]
    for group, name in zip(s.groups, families, strict=True):
        if _FAMILIES.get(name) is not type(group.family):
            raise ValueError(
                f"Leaves of family {name} cannot be saved; the file format knows "
                f"{', '.join(_FAMILIES)}."
            )
    arrays = {
        "cardinalities": s.cardinalities,
        "kinds": s.kinds,
        "offsets": s.offsets,
        "children": s.children,
        "log_weights": np.asarray(model.log_weights),
    }
    for g, (group, parameters) in enumerate(zip(s.groups, model.leaf_parameters, strict=True)):
        arrays[f"nodes_{g}"] = group.nodes
        arrays[f"variables_{g}"] = group.variables
        arrays[f"states_{g}"] = group.states
        arrays[f"parameters_{g}"] = np.asarray(parameters)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "root": s.root,
        "families": families,
        "names": None if s.names is None else list(s.names),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date: equal circuits give equal bytes.
        archive.writestr(_member(_HEADER), json.dumps(header))
        for name, array in arrays.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), part.getvalue())
    write_bytes(path, buffer.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def load_circuit(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, dtype: Any = None
) -> CircuitModel:
    """Read a circuit written by `save_circuit`; it is validated like any other.

    Args:
        path: the file.
        max_bytes: limit on its unpacked size.
        dtype: floating dtype of the numbers; as saved if None.

    Raises:
        ModelFileError: damaged, too large, of another format, or no valid circuit.
    """
    name = os.fspath(path)
    parts = _unpack(name, read_bytes(path, max_bytes), max_bytes)
    header = _header(name, parts)
    arrays = {key[:-4]: _array(name, key, data) for key, data in parts.items() if key != _HEADER}

    def get(key: str, kind: str, ndim: int = 1) -> np.ndarray:
        array = arrays.get(key)
        if array is None or array.dtype.kind not in kind or (ndim and array.ndim != ndim):
            got = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            expected = f"an array {key} of {'numbers' if 'f' in kind else 'integers'}"
            raise ModelFileError(name, None, expected, got, "was it written by save_circuit?")
        return array

    groups, parameters = [], []
    for g, family in enumerate(header["families"]):
        nodes, variables, states = (
            get(f"{part}_{g}", "iu") for part in ("nodes", "variables", "states")
        )
        indicator = family == "Indicator"
        if not len(nodes) == len(variables) == (len(states) if indicator else len(nodes)):
            raise ModelFileError(name, None, f"leaf arrays {g} of one length", "several lengths")
        if not len(nodes) or (len(states) and not indicator):
            raise ModelFileError(name, None, f"leaves in group {g}, states of indicators", "none")
        groups.append(LeafGroup(_FAMILIES[family](), nodes, variables, states))
        parameters.append(get(f"parameters_{g}", "f", ndim=0))
    weights = get("log_weights", "f")
    kinds, cardinalities = get("kinds", "iu"), get("cardinalities", "iu")
    for array in (kinds, cardinalities, get("offsets", "iu"), get("children", "iu")):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**31:
            raise ModelFileError(name, None, "integers from 0 to 2^31 - 1", "others")
    if len(kinds) * len(cardinalities) > 8 * MAX_SCOPE_BYTES:
        expected = f"a circuit whose scopes take at most {MAX_SCOPE_BYTES} bytes"
        raise ModelFileError(name, None, expected, f"{len(kinds)} nodes")
    for array in (weights, *parameters):
        if not (array < np.inf).all() or (array is weights and np.isneginf(array).any()):
            raise ModelFileError(name, None, "finite numbers", "NaN or an infinity")
    dtype = weights.dtype if dtype is None else dtype
    try:
        circuit = Circuit(
            cardinalities,
            kinds,
            get("offsets", "iu"),
            get("children", "iu"),
            groups,
            header["root"],
            names=header["names"],
        )
        model = CircuitModel(
            circuit, jnp.asarray(weights, dtype), tuple(jnp.asarray(p, dtype) for p in parameters)
        )
        circuit.check(model.log_weights, None, model.leaf_parameters)
    except ValueError as error:
        expected = "a valid circuit"
        raise ModelFileError(name, None, expected, f"a fault: {str(error)[:600]}") from None
    return model


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
        fix = "the file is damaged or not one of save_circuit"
        raise ModelFileError(name, None, "a zip archive of arrays", show(str(error)), fix) from None
    return parts


def _header(name: str, parts: dict[str, bytes]) -> dict[str, Any]:
    try:
        header = json.loads(parts.get(_HEADER, b"null"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ModelFileError(name, None, f"a header with format {_FORMAT}", "another or none")
    if header.get("version") != _VERSION:
        got = show(repr(header.get("version")))
        fix = "update the package to read newer files"
        raise ModelFileError(name, None, f"version {_VERSION} of the format", got, fix)
    families, root, names = (header.get(key) for key in ("families", "root", "names"))
    if not isinstance(families, list) or any(
        not isinstance(f, str) or f not in _FAMILIES for f in families
    ):
        raise ModelFileError(name, None, f"families among {', '.join(_FAMILIES)}", "others")
    if not families:
        raise ModelFileError(name, None, "at least one leaf group", "none")
    if not isinstance(root, int) or isinstance(root, bool) or not 0 <= root < 2**31:
        raise ModelFileError(name, None, "a root, an integer from 0", show(repr(root)))
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ModelFileError(name, None, "names, a list of strings or null", "something else")
        header["names"] = tuple(names)
    return header


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
