"""Our own circuit files: one zip of arrays with a JSON header, no pickle."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...graphs._files._archive import read_arrays, write_arrays
from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import MAX_BYTES, show
from .._builder import CircuitModel
from .._circuit import Circuit
from .._leaves import AbstractLeaf, Bernoulli, Binomial, Categorical, Gaussian, Indicator
from .._structure import LeafGroup
from ._lines import MAX_SCOPE_BYTES

_FORMAT = "klprojax-circuit"
_FAMILIES: dict[str, type[AbstractLeaf]] = {
    family.__name__: family for family in (Indicator, Categorical, Bernoulli, Binomial, Gaussian)
}


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
        "root": s.root,
        "families": families,
        "names": None if s.names is None else list(s.names),
    }
    write_arrays(path, _FORMAT, header, arrays)


def load_circuit(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, dtype: Any = None
) -> CircuitModel:
    """Read a circuit written by `save_circuit`; it is validated like any other.

    Args:
        path: the file.
        max_bytes: limit on its unpacked size.
        dtype: floating dtype of the numbers; as saved if None.

    Returns:
        Structure, weights and leaf parameters.

    Raises:
        ModelFileError: damaged, too large, of another format, or no valid circuit.
    """
    name = os.fspath(path)
    header, arrays = read_arrays(path, _FORMAT, max_bytes)
    _check_header(name, header)

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


def _check_header(name: str, header: dict[str, Any]) -> None:
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
