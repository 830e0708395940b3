"""Vtrees: the binary trees over variables that structured circuits follow."""

import os
from typing import NamedTuple

from ...graphs._files._text import MAX_BYTES
from ._lines import LineFile, write_lines


class Vtree(NamedTuple):
    """A binary tree whose leaves are variables.

    Attributes:
        root: id of the root.
        variable: variable, from 0, of each leaf id.
        children: the two children of each inner id.
        first, last: per id, the range of leaf positions below it (left to right).
    """

    root: int
    variable: dict[int, int]
    children: dict[int, tuple[int, int]]
    first: dict[int, int]
    last: dict[int, int]

    def below(self, node: int, ancestor: int) -> bool:
        """Whether ``node`` lies in the subtree of ``ancestor``, itself included."""
        return self.first[ancestor] <= self.first[node] and self.last[node] <= self.last[ancestor]


def read_vtree(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Vtree:
    """Read a vtree file: ``L id variable`` and ``I id left right``, children first.

    Args:
        path: the file, plain or `.gz`.
        max_bytes: limit on the unpacked size.

    Returns:
        The tree; variables are counted from 0.

    Raises:
        ModelFileError: naming file and line.
    """
    file = LineFile(path, max_bytes, comment=b"c")
    variable: dict[int, int] = {}
    children: dict[int, tuple[int, int]] = {}
    line_of: dict[int, int] = {}
    used: dict[int, int] = {}
    owner: dict[int, int] = {}
    header = False
    last = None
    for line, words in file:
        if not header:
            if words[0] != b"vtree" or len(words) != 2:
                raise file.error(line, "the header, vtree and a count", b" ".join(words))
            file.integers(line, words[1:], "the number of nodes")
            header = True
            continue
        size = {b"L": 3, b"I": 4}.get(words[0])
        if size is None or len(words) != size:
            expected = "L id variable, or I id left right"
            raise file.error(line, expected, b" ".join(words))
        node, *rest = file.integers(line, words[1:], "an id or a variable")
        if node in line_of:
            raise file.error(line, f"a new id (line {line_of[node]} has it)", words[1])
        line_of[node] = line
        if size == 3:
            if rest[0] == 0 or rest[0] in owner:
                raise file.error(line, "a variable from 1 that has no leaf yet", words[2])
            owner[rest[0]] = node
            variable[node] = rest[0] - 1
        else:
            for word, child in zip(words[2:], rest, strict=True):
                if child not in line_of or child == node:
                    raise file.error(line, "the id of an earlier line", word)
                if child in used:
                    raise file.error(line, f"a child not used in line {used[child]}", word)
                used[child] = line
            children[node] = (rest[0], rest[1])
        last = node
    if last is None:
        raise file.error(None, "vtree nodes", "none before the file ends", "is it cut off?")
    lost = [node for node in line_of if node not in used and node != last]
    if lost:
        raise file.error(
            line_of[lost[0]], f"a tree: every node but the last ({last}) has a parent", str(lost[0])
        )
    if sorted(owner) != list(range(1, len(owner) + 1)):
        raise file.error(None, "the variables 1 to the number of leaves", f"{sorted(owner)[-1]}")
    first, end = _positions(last, children)
    return Vtree(last, variable, children, first, end)


def _positions(root: int, children: dict[int, tuple[int, int]]):
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    position = 0
    stack = [root]
    while stack:
        node = stack.pop()
        if node < 0:
            left, right = children[~node]
            first[~node], last[~node] = first[left], last[right]
        elif node in children:
            left, right = children[node]
            stack += [~node, right, left]
        else:
            first[node] = last[node] = position
            position += 1
    return first, last


def make_vtree(
    root: bytes, splits: dict[bytes, list[bytes]], variables: dict[bytes, int]
) -> tuple[Vtree, dict[bytes, int]]:
    """Make the vtree of a tree of scopes; parts after the first go to the right, one by one.

    Args:
        root: a name of the scope of everything.
        splits: the parts of each scope.
        variables: the variable of each other scope.

    Returns:
        The vtree, its nodes numbered children first, and the node of each scope.
    """
    variable: dict[int, int] = {}
    children: dict[int, tuple[int, int]] = {}
    place: dict[bytes, int] = {}
    stack = [root]
    while stack:
        scope = stack[-1]
        waiting = [part for part in splits.get(scope, ()) if part not in place]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        node = len(variable) + len(children)
        if scope in variables:
            variable[node] = variables[scope]
        else:
            *parts, right = (place[part] for part in splits[scope])
            for left in reversed(parts):
                node = len(variable) + len(children)
                children[node] = (left, right)
                right = node
        place[scope] = node
    first, last = _positions(place[root], children)
    return Vtree(place[root], variable, children, first, last), place


def write_vtree(path: str | os.PathLike[str], vtree: Vtree) -> None:
    """Write a vtree file, which `read_vtree` reads.

    Args:
        path: the file, compressed if it ends in `.gz`.
        vtree: the tree.
    """
    lines = [f"L {node} {variable + 1}" for node, variable in vtree.variable.items()]
    size = {node: vtree.last[node] - vtree.first[node] for node in vtree.children}
    for node in sorted(vtree.children, key=size.__getitem__):
        left, right = vtree.children[node]
        lines.append(f"I {node} {left} {right}")
    write_lines(path, [f"vtree {len(lines)}", *lines])
