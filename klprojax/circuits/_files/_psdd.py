"""PSDD files: probabilistic sentential decision diagrams as circuits."""

import math
import os

import numpy as np

from ...graphs._files._text import MAX_BYTES
from .._builder import CircuitBuilder, CircuitModel
from .._leaves import CATEGORICAL
from ._lines import LineFile
from ._vtree import Vtree, read_vtree


def read_psdd(
    path: str | os.PathLike[str],
    vtree: str | os.PathLike[str] | Vtree | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> CircuitModel:
    """Read a PSDD (`.psdd`, `.psdd.gz`).

    Lines are ``L id vtree literal``, ``T id vtree variable log(P(variable true))`` and
    ``D id vtree size {prime sub log(weight)}``, children first; the last line is the root. A
    decision node becomes a sum of products, a true node a categorical leaf. Variables are counted
    from 0; state 1 is true.

    Args:
        path: the file.
        vtree: the vtree or its file; with it, every node is checked to follow the vtree.
        max_bytes: limit on the unpacked size.

    Returns:
        Structure, weights and leaf parameters.

    Raises:
        ModelFileError: naming file and line.
    """
    file = LineFile(path, max_bytes, comment=b"c")
    tree = read_vtree(vtree) if isinstance(vtree, str | os.PathLike) else vtree
    builder = CircuitBuilder([])
    node_of: dict[int, int] = {}
    place: dict[int, int] = {}
    line_of: dict[int, int] = {}
    leaves, largest, largest_line = 0, 0, 0
    header = False
    last = None
    for line, words in file:
        if not header:
            if words[0] != b"psdd" or len(words) != 2:
                raise file.error(line, "the header, psdd and a count", b" ".join(words))
            file.integers(line, words[1:], "the number of nodes")
            header = True
            continue
        kind = words[0]
        sizes = {b"L": 4, b"T": 5, b"D": len(words) if len(words) > 4 else 0}
        if sizes.get(kind) != len(words):
            expected = "L id vtree literal, T id vtree variable log-weight or D id vtree size ..."
            raise file.error(line, expected, b" ".join(words))
        name, at = file.integers(line, words[1:3], "the id of a node and of its vtree node")
        if name in node_of:
            raise file.error(line, "a new id", words[1], "two lines have this id")
        if tree is not None and at not in tree.first:
            raise file.error(line, "the id of a vtree node", words[2])
        if kind == b"D":
            node = _decision(file, line, words, builder, node_of, place, tree, at, line_of)
        else:
            variable, state = file.literal(line, words[3])
            leaves += 1
            if variable >= largest:
                largest, largest_line = variable + 1, line
            if tree is not None and tree.variable.get(at) != variable:
                expected = f"the variable of vtree leaf {at}"
                raise file.error(line, expected, words[3], "is it the right vtree?")
            if kind == b"L":
                node = builder.indicator(variable, state)
            else:
                if not state:
                    raise file.error(line, "a variable from 1", words[3])
                log_true = file.number(line, words[4], "log P(variable true)")
                if log_true > 0:
                    raise file.error(line, "the logarithm of a probability, at most 0", words[4])
                log_false = math.log(-math.expm1(log_true)) if log_true < 0 else -math.inf
                node = builder.leaf(variable, CATEGORICAL, np.asarray([log_false, log_true]))
        line_of.setdefault(node, line)
        node_of[name] = node
        place[name] = at
        last = node
    if last is None:
        raise file.error(None, "psdd nodes", "none before the file ends", "is it cut off?")
    file.check_variables(largest, leaves, largest_line)
    count = largest if tree is None else len(tree.variable)
    builder.cardinalities = [2] * count
    return file.build(builder, last, line_of)


def _decision(file, line, words, builder, node_of, place, tree, at, line_of) -> int:
    (size,) = file.integers(line, words[3:4], "the number of elements")
    if size < 1 or len(words) != 4 + 3 * size:
        expected = f"at least one element and three words for each of {size}"
        raise file.error(line, expected, f"{len(words) - 4} words")
    if tree is not None and at not in tree.children:
        raise file.error(line, "an inner vtree node for a decision", words[2])
    products, weights = [], []
    for k in range(4, len(words), 3):
        pair = file.integers(line, words[k : k + 2], "the ids of prime and sub")
        for name, word, side in zip(pair, words[k : k + 2], (0, 1), strict=True):
            if name not in node_of:
                raise file.error(line, "the id of an earlier line", word)
            if tree is not None and not tree.below(place[name], tree.children[at][side]):
                where = "left" if side == 0 else "right"
                expected = f"a node in the {where} subtree of vtree node {at}"
                raise file.error(line, expected, word, "is it the right vtree?")
        product = builder.product([node_of[name] for name in pair])
        line_of[product] = line
        products.append(product)
        weights.append(file.number(line, words[k + 2], "the logarithm of a weight"))
    return builder.sum(products, np.asarray(weights))
