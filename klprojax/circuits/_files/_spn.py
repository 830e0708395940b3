"""SPN text files: ``##NODES##``, ``##EDGES##``, binary variables."""

import os

import numpy as np

from ...graphs._files._text import MAX_BYTES, BadNumber, format_numbers, parse_numbers
from .._builder import CircuitBuilder, CircuitModel
from .._leaves import CATEGORICAL
from .._structure import LEAF, SUM
from ._binary import binary_circuit
from ._lines import LineFile, write_lines


def read_spn(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> CircuitModel:
    """Read a sum-product network in text form (`.spn.txt`, also `.gz`).

    After ``##NODES##`` come ``id,SUM``, ``id,PRD`` and ``id,LEAVE,variable,P(0),P(1)``, after
    ``##EDGES##`` ``parent,child,weight`` below sums and ``parent,child`` below products, all in any
    order. The root is the one node without a parent. Variables are counted from 0.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.

    Returns:
        Structure, weights and leaf parameters.

    Raises:
        ModelFileError: naming file and line.
    """
    file = LineFile(path, max_bytes, separator=b",")
    kinds: dict[int, bytes] = {}
    line_of: dict[int, int] = {}
    leaves: dict[int, tuple[int, np.ndarray]] = {}
    edges: dict[int, list[tuple[int, float]]] = {}
    section = b""
    largest, largest_line = 0, 0
    for line, words in file:
        if words[0] in (b"##NODES##", b"##EDGES##") and len(words) == 1:
            if (section, words[0]) not in ((b"", b"##NODES##"), (b"##NODES##", b"##EDGES##")):
                raise file.error(line, "##NODES## once, then ##EDGES## once", words[0])
            section = words[0]
        elif section == b"##NODES##":
            (name,) = file.integers(line, words[:1], "the id of a node")
            if name in kinds:
                raise file.error(line, f"a new id (line {line_of[name]} has it)", words[0])
            kind = words[1] if len(words) > 1 else b""
            if {b"SUM": 2, b"PRD": 2, b"LEAVE": 5}.get(kind) != len(words):
                expected = "id,SUM or id,PRD or id,LEAVE,variable,P(0),P(1)"
                raise file.error(line, expected, b",".join(words))
            kinds[name], line_of[name] = kind, line
            if kind == b"LEAVE":
                (variable,) = file.integers(line, words[2:3], "the variable of a leaf")
                leaves[name] = (variable, _logs(file, line, words[3:]))
                if variable >= largest:
                    largest, largest_line = variable + 1, line
            else:
                edges[name] = []
        elif section == b"##EDGES##":
            pair = file.integers(line, words[:2], "the ids of parent and child")
            for name, word in zip(pair, words, strict=False):
                if name not in kinds:
                    raise file.error(line, "the id of a node listed above", word)
            parent = pair[0]
            wanted = {b"SUM": 3, b"PRD": 2}.get(kinds[parent])
            if wanted is None:
                raise file.error(line, "a parent that is a SUM or PRD", words[0])
            if len(words) != wanted or len(pair) != 2:
                expected = "parent,child,weight" if wanted == 3 else "parent,child"
                raise file.error(line, expected, b",".join(words))
            weight = float(_logs(file, line, words[2:])[0]) if wanted == 3 else 0.0
            if weight == -np.inf:
                raise file.error(line, "a weight above 0", words[2], "leave the edge out")
            edges[parent].append((pair[1], weight))
        else:
            raise file.error(line, "##NODES##", b",".join(words))
    if section != b"##EDGES##":
        raise file.error(None, "##NODES## and ##EDGES##", "the end of the file", "is it cut off?")
    file.check_variables(largest, len(leaves), largest_line)
    return _build(file, kinds, line_of, leaves, edges, largest)


def _logs(file: LineFile, line: int, words: list[bytes]) -> np.ndarray:
    try:
        return parse_numbers(words)[1]
    except BadNumber as bad:
        raise file.error(line, bad.expected, words[bad.index]) from None


def _build(file, kinds, line_of, leaves, edges, variables) -> CircuitModel:
    parents: dict[int, list[int]] = {name: [] for name in kinds}
    waiting = {name: len(below) for name, below in edges.items()}
    for parent, below in edges.items():
        if not below:
            raise file.error(line_of[parent], "a node with children", str(parent))
        for child, _ in below:
            parents[child].append(parent)
    roots = [name for name, above in parents.items() if not above]
    if len(roots) != 1:
        line = line_of[roots[1]] if roots else None
        raise file.error(line, "exactly one node without a parent, the root", str(len(roots)))
    builder = CircuitBuilder([2] * variables)
    node_of: dict[int, int] = {}
    ready = list(leaves)
    while ready:
        name = ready.pop()
        if name in leaves:
            variable, table = leaves[name]
            node_of[name] = builder.leaf(variable, CATEGORICAL, table)
        else:
            below = [node_of[child] for child, _ in edges[name]]
            if kinds[name] == b"SUM":
                node_of[name] = builder.sum(below, np.asarray([w for _, w in edges[name]]))
            else:
                node_of[name] = builder.product(below)
        for parent in parents[name]:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    if len(node_of) < len(kinds):
        name = next(name for name in kinds if name not in node_of)
        raise file.error(line_of[name], "a node not on or above a cycle", str(name))
    lines = {node: line_of[name] for name, node in node_of.items()}
    return file.build(builder, node_of[roots[0]], lines)


def write_spn(path: str | os.PathLike[str], model: CircuitModel) -> None:
    """Write a circuit as a sum-product network in text form, which `read_spn` reads.

    Args:
        path: the file (`.spn.txt`), compressed if it ends in `.gz`.
        model: circuit, log-weights and leaf parameters.

    Raises:
        ValueError: numbers that do not fit the circuit, or a variable that is not binary.
    """
    c = binary_circuit(model, "SPN")
    nodes, edges = ["##NODES##"], ["##EDGES##"]
    for node in range(c.s.num_nodes):
        if c.s.kinds[node] == LEAF:
            numbers = ",".join(format_numbers(np.asarray(c.table[node])))
            nodes.append(f"{node},LEAVE,{c.variable[node]},{numbers}")
        elif c.s.kinds[node] == SUM:
            nodes.append(f"{node},SUM")
            weights = format_numbers(np.asarray(c.weights(node)))
            pairs = zip(c.children(node), weights, strict=True)
            edges += [f"{node},{child},{weight}" for child, weight in pairs]
        else:
            nodes.append(f"{node},PRD")
            edges += [f"{node},{child}" for child in c.children(node)]
    write_lines(path, nodes + edges)
