"""SDD files: logical circuits, made complete along their vtree."""

import os

import numpy as np

from ...graphs._files._text import MAX_BYTES
from .._builder import CircuitBuilder, CircuitModel
from ._lines import LineFile
from ._vtree import Vtree, read_vtree


def read_sdd(
    path: str | os.PathLike[str],
    vtree: str | os.PathLike[str] | Vtree,
    *,
    max_bytes: int = MAX_BYTES,
) -> CircuitModel:
    """Read a sentential decision diagram; its network polynomial counts models.

    Lines are ``F id``, ``T id``, ``L id vtree literal`` and ``D id vtree size {prime sub}``,
    children first; the last line is the root. Variables that a branch leaves free are multiplied
    in as sums of both indicators, so the circuit is complete. All weights are 1: the log-partition
    is the logarithm of the model count, and of a weighted count with evidence as literal weights.

    Args:
        path: the file. vtree: the vtree or its file.
        max_bytes: limit on the unpacked size.

    Returns:
        Structure, weights and leaf parameters.

    Raises:
        ModelFileError: naming file and line; also for the constant false, which has no circuit
            with positive weights.
    """
    file = LineFile(path, max_bytes, comment=b"c")
    tree = read_vtree(vtree) if isinstance(vtree, str | os.PathLike) else vtree
    smoother = _Smoother(tree)
    # id -> (node, vtree id); None is false, vtree id -1 is the constant true.
    made: dict[int, tuple[int, int] | None] = {}
    header = False
    name = None
    for line, words in file:
        if not header:
            if words[0] != b"sdd" or len(words) != 2:
                raise file.error(line, "the header, sdd and a count", b" ".join(words))
            file.integers(line, words[1:], "the number of nodes")
            header = True
            continue
        kind = words[0]
        sizes = {b"F": 2, b"T": 2, b"L": 4, b"D": len(words) if len(words) > 4 else 0}
        if sizes.get(kind) != len(words):
            expected = "F id, T id, L id vtree literal or D id vtree size ..."
            raise file.error(line, expected, b" ".join(words))
        (name,) = file.integers(line, words[1:2], "the id of a node")
        if name in made:
            raise file.error(line, "a new id", words[1], "two lines have this id")
        if kind == b"F":
            made[name] = None
        elif kind == b"T":
            made[name] = (-1, -1)
        else:
            (at,) = file.integers(line, words[2:3], "the id of a vtree node")
            if kind == b"L":
                variable, state = file.literal(line, words[3])
                if tree.variable.get(at) != variable:
                    raise file.error(line, f"the variable of vtree leaf {at}", words[3])
                node = smoother.builder.indicator(variable, state)
                made[name] = (node, at)
            else:
                made[name] = _decision(file, line, words, tree, smoother, made, at)
            part = made[name]
            if part is not None:
                smoother.line_of.setdefault(part[0], line)
    if name is None:
        raise file.error(None, "sdd nodes", "none before the file ends", "is it cut off?")
    top = made[name]
    if top is None:
        raise file.error(None, "a formula with a model", "the constant false")
    root = smoother.fill(top, tree.root)
    return file.build(smoother.builder, root, smoother.line_of)


def _decision(file, line, words, tree, smoother, made, at) -> tuple[int, int] | None:
    (size,) = file.integers(line, words[3:4], "the number of elements")
    if size < 1 or len(words) != 4 + 2 * size:
        raise file.error(line, f"two words for each of {size} elements", f"{len(words) - 4} words")
    if at not in tree.children:
        raise file.error(line, "an inner vtree node for a decision", words[2])
    sides = tree.children[at]
    products = []
    for k in range(4, len(words), 2):
        pair = file.integers(line, words[k : k + 2], "the ids of prime and sub")
        parts = []
        for name, word, side in zip(pair, words[k : k + 2], sides, strict=True):
            if name not in made:
                raise file.error(line, "the id of an earlier line", word)
            part = made[name]
            if part is not None and part[1] >= 0 and not tree.below(part[1], side):
                raise file.error(line, f"a node below vtree node {side}", word)
            parts.append(part)
        if None in parts:
            continue
        filled = [smoother.fill(part, side) for part, side in zip(parts, sides, strict=True)]
        product = smoother.builder.product(filled)
        smoother.line_of[product] = line
        products.append(product)
    if not products:
        return None
    return smoother.builder.sum(products, np.zeros(len(products))), at


class _Smoother:
    """Multiply nodes by full sums over the variables that they lack, along the vtree."""

    def __init__(self, tree: Vtree):
        self.builder = CircuitBuilder([2] * len(tree.variable))
        self.line_of: dict[int, int] = {}
        self._tree = tree
        self._parent = {c: p for p, pair in tree.children.items() for c in pair}
        self._filled: dict[tuple[int, int], int] = {}
        self._full: dict[int, int] = {}
        for node in sorted(tree.first, key=lambda n: tree.last[n] - tree.first[n]):
            if node in tree.children:
                self._full[node] = self.builder.product(
                    [self._full[c] for c in tree.children[node]]
                )
            else:
                v = tree.variable[node]
                both = [self.builder.indicator(v, t) for t in (0, 1)]
                self._full[node] = self.builder.sum(both, np.zeros(2))

    def fill(self, part: tuple[int, int], to: int) -> int:
        """Level by level, so that every product splits its scope as the vtree does."""
        node, at = part
        if at < 0:
            return self._full[to]
        while at != to:
            above = self._parent[at]
            if (node, above) not in self._filled:
                left, right = self._tree.children[above]
                pair = [node, self._full[right]] if at == left else [self._full[left], node]
                self._filled[node, above] = self.builder.product(pair)
            node, at = self._filled[node, above], above
        return node
