"""Make mutants of the package's mathematics: ``python -m tests.mutation.generate``.

A mutant is one line with one change: a sign turned, an axis moved, a term dropped, two arguments
swapped, or a bound off by one. They are found in the syntax trees of six rooms, outside of
messages, checks of the input, signatures and class bodies, and drawn by a hash of their content
and a fixed seed: the list does not depend on line numbers, and most of it stays when other lines
change.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.json")
ROOMS = ("geometry", "projections", "operators", "lifting", "circuits", "training")
SEED, PER_ROOM = 20261127, 10
# Files, data, loops around steps, layouts, help: no mathematics of the paper.
SKIPPED = {
    *("_files", "_show.py", "_saved.py", "_checkpoint.py", "_data.py", "_history.py", "_memory.py"),
    *("_progress.py", "_batches.py", "_sharding.py", "_fit.py", "_rows.py", "_kinds.py"),
    *("_validation.py", "_classify.py", "_trace.py", "_plan.py", "_layered_plan.py", "_circuit.py"),
    *("_elimination_plan.py", "_elimination_order.py", "_properties.py", "_builder.py", "_step.py"),
    *("_builders.py", "_region_graphs.py", "_arguments.py", "_results.py", "_python_values.py"),
}
# Calls whose arguments do not change places: it would change nothing, or no number.
KEPT = {
    *("add", "multiply", "maximum", "minimum", "max", "min", "logaddexp", "dot", "vdot", "inner"),
    *("logical_and", "logical_or", "logical_xor", "equal", "zip", "isinstance", "getattr", "range"),
    *("asarray", "array", "astype", "full", "full_like", "broadcast_to", "reshape", "searchsorted"),
    *("combine", "partition", "partial", "replace", "take", "repeat", "iinfo", "finfo", "arange"),
}
# A bound on these decides when a loop ends, not what it computes.
LOOSE = ("tolerance", "eps", "rest", "limit", "max_steps", "stuck")
# Where a constant below 0 counts from the end.
PLACES = (b"axis", b"axes", b"shape", b"ndim", b"[-", b", -1]", b":-")
TURNED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}
BOUNDS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}


class Mutant(NamedTuple):
    """One change: the ``occurrence``-th line of the file that reads ``before`` reads ``after``."""

    room: str
    kind: str
    file: str
    line: int
    before: str
    after: str
    occurrence: int

    @property
    def key(self) -> str:
        """Its name: a hash of its content."""
        content = json.dumps([SEED, self.file, self.before, self.after, self.occurrence])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def _is_plain(node: ast.AST) -> bool:
    """Text, lists, tuples: what a ``+`` joins rather than adds."""
    kinds = (ast.Tuple, ast.List, ast.ListComp, ast.JoinedStr, ast.Dict, ast.Set, ast.GeneratorExp)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"tuple", "list", "str", "set"}
    if isinstance(node, ast.BinOp):
        return _is_plain(node.left) or _is_plain(node.right)
    return isinstance(node, kinds)


def _formulas(tree: ast.AST) -> Iterator[ast.expr]:
    """The nodes of all expressions in bodies of functions, but not those that check or tell."""

    def walk(node: ast.AST, inside: bool) -> Iterator[ast.expr]:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arguments):
            return
        if isinstance(node, ast.FunctionDef):
            name = node.name.lstrip("_")
            if name.startswith(("check", "validate", "refuse", "require")) or name in {
                *("repr__", "hash__", "eq__", "str__", "init_subclass__"),
            }:
                return
            for child in node.body:
                yield from walk(child, True)
            return
        if isinstance(node, ast.If) and any(isinstance(s, ast.Raise) for s in node.body):
            for child in node.orelse:
                yield from walk(child, inside)
            return
        if isinstance(node, ast.AnnAssign):
            children = [node.value] if node.value else []
        else:
            children = list(ast.iter_child_nodes(node))
        if inside and isinstance(node, ast.expr):
            yield node
        for child in children:
            yield from walk(child, inside)

    yield from walk(tree, False)


def _changes(node: ast.expr, line: bytes) -> Iterator[tuple[str, ast.expr, str]]:
    """Changes at a node of one line: the kind, the node that is replaced, and by what."""

    def source(part: ast.expr) -> str:
        return line[part.col_offset : part.end_col_offset].decode()

    def closed(part: ast.expr) -> str:
        whole = ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Constant
        return source(part) if isinstance(part, whole) else f"({source(part)})"

    if isinstance(node, ast.BinOp) and type(node.op) in TURNED and not _is_plain(node):
        turned = f"{closed(node.left)} {TURNED[type(node.op)]} {closed(node.right)}"
        yield "sign", node, f"({turned})"
        for kept in (node.left, node.right):
            yield "term", node, closed(kept)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        place = isinstance(node.operand, ast.Constant) and any(w in line for w in PLACES)
        if not place:
            yield "sign", node, closed(node.operand)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in BOUNDS:
        bound = BOUNDS[type(node.ops[0])]
        if not any(word in source(node) for word in LOOSE):
            yield "bound", node, f"{closed(node.left)} {bound} {closed(node.comparators[0])}"
    if isinstance(node, ast.Slice):
        for part in (node.lower, node.upper):
            if isinstance(part, ast.Constant) and isinstance(part.value, int):
                yield "bound", part, str(part.value + 1)
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "range" and node.args:
            yield "bound", node.args[-1], f"{closed(node.args[-1])} - 1"
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in ("axis", "axes") and isinstance(value, ast.Constant | ast.UnaryOp):
                axis = ast.literal_eval(value)
                if isinstance(axis, int):
                    yield "axis", value, str({0: 1, 1: 0, -1: -2, -2: -1}.get(axis, axis - 1))
        joined = any(isinstance(arg, ast.Starred) or _is_plain(arg) for arg in node.args)
        numbers = name[:1].islower() and name not in KEPT and not joined and not node.keywords
        if numbers and len(node.args) in (2, 3):
            *first, one, two = map(source, node.args)
            yield "swap", node, f"{source(node.func)}({', '.join([*first, two, one])})"


def mutants_of(text: str, room: str = "", file: str = "") -> list[Mutant]:
    """All mutants of a file.

    Args:
        text: its source.
        room: of the file.
        file: its path from the root of the project.
    """
    lines, out = text.split("\n"), {}
    for node in _formulas(ast.parse(text)):
        if node.lineno != node.end_lineno:
            continue
        before = lines[node.lineno - 1]
        line = before.encode()  # offsets of the syntax tree are those of bytes
        for kind, part, by in _changes(node, line):
            after = (line[: part.col_offset] + by.encode() + line[part.end_col_offset :]).decode()
            if after != before:
                occurrence = lines[: part.lineno - 1].count(before)
                found = Mutant(room, kind, file, part.lineno, before, after, occurrence)
                out.setdefault(found.key, found)
    return list(out.values())


def applied(mutant: Mutant, text: str) -> str | None:
    """The source with the change; None where the line is gone.

    Args:
        mutant: the change.
        text: source of its file.
    """
    lines = text.split("\n")
    places = [n for n, line in enumerate(lines) if line == mutant.before]
    if len(places) <= mutant.occurrence:
        return None
    lines[places[mutant.occurrence]] = mutant.after
    return "\n".join(lines)


def candidates(room: str, root: Path = ROOT) -> list[Mutant]:
    """All mutants of a room, in the order in which they are drawn.

    Args:
        room: a folder of the package.
        root: of the project.
    """
    found = []
    for path in sorted((root / "klprojax" / room).rglob("*.py")):
        if path.name != "__init__.py" and not SKIPPED & set(path.parts):
            file = path.relative_to(root).as_posix()
            found += mutants_of(path.read_text(encoding="utf-8"), room, file)
    return sorted(found, key=lambda mutant: mutant.key)


def drawn(room: str, root: Path = ROOT, count: int = PER_ROOM) -> list[Mutant]:
    """Some of a room's mutants: the kinds in turn, from as many files as there are.

    Args:
        room: a folder of the package.
        root: of the project.
        count: how many.
    """
    left, out = candidates(room, root), []
    kinds = sorted({mutant.kind for mutant in left})
    while len(out) < count:
        kind = kinds[len(out) % len(kinds)]
        used = [mutant.file for mutant in out]
        lines = {(mutant.file, mutant.before) for mutant in out}
        rest = [m for m in left if m.kind == kind and (m.file, m.before) not in lines]
        if not rest:
            kinds.remove(kind)
            continue
        chosen = min(rest, key=lambda m: (used.count(m.file), m.key))
        ast.parse(applied(chosen, (root / chosen.file).read_text(encoding="utf-8")) or "!")
        out.append(chosen)
    return out


def main() -> int:
    """Write the list."""
    found = [mutant for room in ROOMS for mutant in drawn(room)]
    rows = [{"key": mutant.key, **mutant._asdict()} for mutant in found]
    LIST.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(rows)} mutants in {LIST.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
