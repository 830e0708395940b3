"""Write Bayesian networks in BIF format."""

import os
import re
from itertools import product

import numpy as np

from klprojax.graphs._files._text import format_numbers, write_bytes
from klprojax.graphs._model import DiscreteModel

_ROW_TOLERANCE = 1e-4  # what the reader accepts
_PLAIN = re.compile(r'[^\s,;(){}|\[\]"/]+(/[^\s,;(){}|\[\]"/*]+)*')


def write_bif(path: str | os.PathLike[str], model: DiscreteModel) -> None:
    """Write a Bayesian network in BIF format (`.bif`, `.bif.gz`).

    Args:
        path: the file to write; replaced if it exists.
        model: a model of kind "BAYES" with one factor per variable, that variable last in the
            scope. States without names are called "0", "1", ...

    Raises:
        ValueError: if the model is no Bayesian network or has a name that BIF cannot hold.
    """
    owner = _owners(model)
    states = model.state_names or tuple(
        tuple(map(str, range(cardinality))) for cardinality in model.cardinalities
    )
    variables = [_quote(name) for name in model.variable_names]
    labels = [[_quote(state) for state in names] for names in states]
    lines = [f"network {_quote(model.name or 'unknown')} {{", "}"]
    for name, names in zip(variables, labels, strict=True):
        lines += [
            f"variable {name} {{",
            f"  type discrete [ {len(names)} ] {{ {', '.join(names)} }};",
            "}",
        ]
    for factor in owner:
        *parents, child = model.scopes[factor]
        table = model.log_tables[factor].reshape(-1, model.cardinalities[child])
        rows = [", ".join(format_numbers(row)) for row in table]
        given = f" | {', '.join(variables[p] for p in parents)}" if parents else ""
        lines.append(f"probability ( {variables[child]}{given} ) {{")
        if parents:
            keys = product(*(labels[parent] for parent in parents))
            lines += [f"  ({', '.join(k)}) {row};" for k, row in zip(keys, rows, strict=True)]
        else:
            lines.append(f"  table {rows[0]};")
        lines.append("}")
    write_bytes(path, ("\n".join(lines) + "\n").encode("utf-8"))


def _owners(model: DiscreteModel) -> list[int]:
    """Return the factor of each variable."""
    if model.kind != "BAYES":
        raise ValueError(
            f"BIF holds Bayesian networks only, got a model of kind {model.kind!r}; write it "
            "with write_uai."
        )
    owner: dict[int, int] = {}
    for index, (scope, log_table) in enumerate(zip(model.scopes, model.log_tables, strict=True)):
        if not scope or scope[-1] in owner:
            raise ValueError(
                f"Factor {index} has scope {scope}; a Bayesian network has one factor a "
                "variable, with that variable last. Write the model with write_uai."
            )
        sums = np.exp(log_table).sum(axis=-1)
        if not (np.abs(sums - 1.0) <= _ROW_TOLERANCE).all():
            raise ValueError(
                f"Factor {index} does not sum to 1 over its last axis; BIF holds conditional "
                "probabilities only. Write the model with write_uai."
            )
        owner[scope[-1]] = index
    missing = set(range(len(model.cardinalities))) - owner.keys()
    if missing:
        raise ValueError(
            f"Variable {model.variable_names[min(missing)]!r} has no conditional table; every "
            "variable of a Bayesian network needs one. Write the model with write_uai."
        )
    return [owner[variable] for variable in range(len(owner))]


def _quote(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    if '"' in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise ValueError(f"BIF has no way to write the name {name!r}; rename it.")
    return f'"{name}"'
