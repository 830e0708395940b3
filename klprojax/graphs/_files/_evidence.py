"""Evidence: UAI `.evid` files in both layouts, JSON objects, `NAME=STATE`."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from klprojax.graphs._files._errors import ModelFileError
from klprojax.graphs._files._text import (
    TokenStream,
    format_suffix,
    line_at,
    make_stream,
    read_bytes,
    recode,
    show,
    write_bytes,
)
from klprojax.graphs._model import DiscreteModel

_MAX_BYTES = 2**24  # 16 MiB of evidence is some million observations


def read_evidence(
    path: str | os.PathLike[str],
    model: DiscreteModel,
    *,
    max_bytes: int = _MAX_BYTES,
    encoding: str | None = None,
) -> dict[int, Any]:
    """Read evidence for a model.

    Three layouts are told apart by their content: the UAI layouts `k v x v x ...` and `1`,
    newline, `k v x v x ...` (one sample), and a JSON object `{variable: state}` with variable
    names as keys and, as values, state names or indices (hard evidence) or lists of weights >= 0,
    one per state (soft evidence, linear space). `.gz` of each opens directly. In the UAI layouts
    text after `#` is a remark, and an empty file observes nothing.

    Args:
        path: the file.
        model: the model that the evidence speaks about.
        max_bytes: limit on the unpacked size.
        encoding: of a file that is not UTF-8, `"latin-1"` for example.

    Returns:
        Of each observed variable index its state index, or its log-table in nats: what `condition`
        and `FactorGraph.log_evidence` take.

    Raises:
        ModelFileError: if the file breaks the format, names an unknown variable or state, or
            observes a variable twice, with the line.
    """
    data = recode(path, read_bytes(path, max_bytes), encoding)
    if format_suffix(path) == ".json" or data.lstrip()[:1] == b"{":
        return _read_json(path, data, model)
    return _read_uai(make_stream(path, data), model)


def _read_uai(stream: TokenStream, model: DiscreteModel) -> dict[int, int]:
    if not stream.total:
        return {}
    what = "the number of observed variables"
    count = stream.integer(what)
    if stream.total % 2 == 0:
        # pairs after one count make an odd number of tokens; after two counts an even number
        if count != 1:
            expected = f"{2 * count} numbers after the {count} promised, or 1 sample"
            got = f"{stream.left} numbers after {show(str(count))}"
            fix = "write k v x v x ..., or 1, newline, k v x v x ..."
            raise stream.error_at_line(stream.line_of(0), expected, got, fix)
        count = stream.integer(what)
    if 2 * count > stream.left:
        expected = f"{count} (variable, state) pairs"
        raise stream.error_at_line(
            stream.line_of(stream.used - 1), expected, f"{stream.left // 2}", "is it cut off?"
        )
    evidence: dict[int, int] = {}
    variables = len(model.cardinalities)
    for _ in range(count):
        variable, state = stream.integers(2, "a variable and its state")
        if variable >= variables:
            raise stream.error(-2, f"a variable from 0 to {variables - 1}")
        if state >= model.cardinalities[variable]:
            last = model.cardinalities[variable] - 1
            raise stream.error(-1, f"a state of variable {variable} from 0 to {last}")
        if variable in evidence:
            raise stream.error(-2, "each variable once", "drop one of its observations")
        evidence[variable] = state
    stream.expect_end("the file promises fewer observations")
    return evidence


def parse_evidence(text: str, model: DiscreteModel) -> dict[int, Any]:
    """Read evidence from text: `NAME=STATE`, or a JSON object as `read_evidence` takes it.

    Args:
        text: names or indices of a variable and a state around the first `=`, or the object.
        model: the model that the evidence speaks about.

    Returns:
        As `read_evidence`.

    Raises:
        ValueError: for anything else, or an unknown variable or state; close names are listed.
    """
    if text.lstrip()[:1] == "{":
        return _read_json("evidence", text.encode(), model)
    variable, mark, state = (part.strip() for part in text.partition("="))
    if not mark:
        raise ValueError(
            f"The evidence {text!r} is no file; expected NAME=STATE, or "
            '{"NAME": "STATE", "OTHER": [weight, ...]}.'
        )
    return model.evidence({_name(model, variable): state})


def _name(model: DiscreteModel, variable: str) -> str | int:
    """A variable's name, or its number if none has that name."""
    if variable not in model.variable_names and variable.isascii() and variable.isdigit():
        return int(variable)
    return variable


def _read_json(path: str | os.PathLike[str], data: bytes, model: DiscreteModel) -> dict[int, Any]:
    shape = 'an object {"variable": "state", ...}'
    pairs: list[tuple[str, object]] = []

    def collect(items: list[tuple[str, object]]):
        pairs[:] = items  # objects close inside out, so the outermost comes last
        return items

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        text = data.decode("utf-8")
        top = json.loads(text, object_pairs_hook=collect, parse_constant=refuse)
    except UnicodeDecodeError as error:
        line = line_at(data, error.start)
        raise ModelFileError(path, line, "UTF-8 text", show(data[error.start :][:4])) from None
    except json.JSONDecodeError as error:
        got = f"{show(error.msg)} at column {error.colno}"
        raise ModelFileError(path, error.lineno, "JSON", got) from None
    except RecursionError:
        raise ModelFileError(path, 1, shape, "JSON nested too deeply") from None
    except ValueError as error:  # a number with too many digits, or NaN
        raise ModelFileError(path, None, "JSON", show(str(error))) from None
    if not text.lstrip().startswith("{"):
        raise ModelFileError(path, 1, shape, f"a JSON {type(top).__name__}")

    def fail(key: str, expected: str, got: str, fix: str = "") -> ModelFileError:
        offset = text.rfind(json.dumps(key, ensure_ascii=key.isascii()))
        line = text.count("\n", 0, offset) + 1 if offset >= 0 else None
        return ModelFileError(path, line, expected, got, fix)

    evidence: dict[int, Any] = {}
    for key, state in pairs:
        try:
            variable = model.variable_index(key)
        except ValueError as error:
            raise fail(key, "a variable of the model", show(key), _hint(error)) from None
        if variable in evidence:
            raise fail(key, "each variable once", f"{show(key)} twice")
        if isinstance(state, list) and all(type(w) in (int, float) for w in state):
            count = model.cardinalities[variable]
            log_table = _logs(state, count)
            if log_table is None:
                raise fail(key, f"{count} finite weights >= 0, not all 0", show(str(state)))
            evidence[variable] = log_table
            continue
        if isinstance(state, bool) or not isinstance(state, str | int):
            kinds = "a state name or index, or weights,"
            raise fail(key, f"{kinds} for {show(key)}", _json_kind(state))
        try:
            evidence[variable] = model.state_index(variable, state)
        except ValueError as error:
            expected = f"a state of variable {show(key)}"
            raise fail(key, expected, show(str(state)), _hint(error)) from None
    return evidence


def _logs(weights: list[float], count: int) -> np.ndarray | None:
    """Logarithms of weights, if they are one per state and not all 0."""
    try:
        table = np.asarray(weights, np.float64)
    except OverflowError:
        return None
    if table.shape != (count,) or not (table >= 0).all() or not 0 < table.max() < np.inf:
        return None
    with np.errstate(divide="ignore"):
        return np.log(table)


def _json_kind(value: object) -> str:
    if isinstance(value, list):  # objects too, as lists of pairs
        return "an array or object"
    return {bool: "true or false", float: "a fraction"}.get(type(value), "null")


def _hint(error: ValueError) -> str:
    # the part of the message of the model after its first sentence lists close matches
    _, mark, matches = str(error).partition(" Close matches: ")
    if not mark:
        _, mark, matches = str(error).partition(" Known: ")
    text = (mark + matches).strip(" .")
    return text[:200].encode("ascii", "backslashreplace").decode("ascii")


def write_uai_evidence(path: str | os.PathLike[str], evidence: Mapping[int, int]) -> None:
    """Write hard evidence in the UAI layout `k v x v x ...` (`.evid`, `.evid.gz`).

    Args:
        path: the file to write; replaced if it exists.
        evidence: state index of each observed variable index.

    Raises:
        ValueError: for a negative index.
    """
    numbers = [len(evidence)]
    for variable, state in evidence.items():
        if variable < 0 or state < 0:
            raise ValueError(
                f"Evidence must map variable indices to state indices >= 0, got "
                f"{variable}: {state}."
            )
        numbers += [int(variable), int(state)]
    write_bytes(path, (" ".join(map(str, numbers)) + "\n").encode("ascii"))
