"""The lifted graph as a table, as Graphviz text, and as a NetworkX graph."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ._structure import Structure


def as_table(structure: Structure, values: tuple[Any, ...]) -> str:
    """Return one line a delta factor: index, place, ψ, scope and forward value."""
    rows = [("equation", "path", "factor", "scope: outputs | inputs", "forward value")]
    for factor in structure.factors:
        outputs = ", ".join(_variable(structure, i) for i in factor.outputs)
        inputs = ", ".join(
            _variable(structure, i) + ("" if position in factor.active else "*")
            for position, i in enumerate(factor.inputs)
        )
        forward = ", ".join(_summary(values[i]) for i in factor.outputs)
        rows.append(
            (str(factor.index), factor.path, factor.primitive, f"{outputs} | {inputs}", forward)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append("* clamped: no downward message into this argument")
    return "\n".join(lines)


def as_dot(structure: Structure) -> str:
    """Return Graphviz text: ellipses are variables, boxes delta factors."""
    lines = ["graph delta_lift {", "  rankdir=TB;"]
    for variable in structure.variables:
        if variable.kind == "literal":
            continue
        shape = "x".join(map(str, variable.shape)) or "scalar"
        style = ' style=filled fillcolor="#dddddd"' if variable.kind != "intermediate" else ""
        text = _escape(f"{variable.name}\\n{variable.dtype} {shape}")
        lines.append(f'  v{variable.index} [shape=ellipse label="{text}"{style}];')
    for factor in structure.factors:
        lines.append(f'  g{factor.index} [shape=box label="{_escape(factor.label)}"];')
        for index in factor.scope:
            if structure.variables[index].kind != "literal":
                lines.append(f"  g{factor.index} -- v{index};")
    lines.append("}")
    return "\n".join(lines)


def as_networkx(structure: Structure) -> Any:
    """Return a bipartite `networkx.MultiGraph` of variables `("v", i)` and factors `("g", k)`."""
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs the package networkx: pip install networkx") from error
    graph = networkx.MultiGraph()
    for variable in structure.variables:
        graph.add_node(
            ("v", variable.index),
            bipartite=0,
            kind=variable.kind,
            name=variable.name,
            shape=variable.shape,
            dtype=variable.dtype,
        )
    for factor in structure.factors:
        node = ("g", factor.index)
        graph.add_node(node, bipartite=1, primitive=factor.primitive, path=factor.path)
        for index in factor.outputs:
            graph.add_edge(node, ("v", index), role="output", position=None)
        for position, index in enumerate(factor.inputs):
            graph.add_edge(node, ("v", index), role="input", position=position)
    return graph


def _variable(structure: Structure, index: int) -> str:
    variable = structure.variables[index]
    if variable.kind == "literal":
        return variable.name
    return f"{variable.name}[{','.join(map(str, variable.shape))}]"


def _summary(value: Any) -> str:
    if isinstance(value, Tracer) or not hasattr(value, "dtype"):
        return "(traced)" if isinstance(value, Tracer) else str(value)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return "(key)"
    array = np.asarray(value)
    if array.size == 1:
        return f"{array.reshape(()):.6g}"
    if array.size == 0:
        return "(empty)"
    if not np.issubdtype(array.dtype, np.number):
        return f"{array.size} values"
    return f"mean {array.mean():.4g}, max |.| {np.abs(array).max():.4g}"


def _escape(text: str) -> str:
    return text.replace('"', '\\"')
