"""Formulas in clauses by brute force, and a small compiler to d-DNNF that writes files."""

import itertools

import numpy as np


def random_clauses(rng, variables: int, clauses: int, longest: int = 3) -> list[list[int]]:
    """Clauses of distinct variables; the last variable may occur in none."""
    out = []
    for _ in range(clauses):
        size = int(rng.integers(1 if rng.random() < 0.1 else 2, longest + 1))
        chosen = rng.choice(variables, size, replace=False) + 1
        out.append([int(v) * int(rng.choice([-1, 1])) for v in chosen])
    return out


def truth_table(variables: int, clauses: list[list[int]]) -> np.ndarray:
    """1 where all clauses hold, one axis of two states per variable."""
    holds = np.ones((2,) * variables, bool)
    states = np.indices((2,) * variables).astype(bool)
    for clause in clauses:
        some = np.zeros_like(holds)
        for literal in clause:
            some |= states[abs(literal) - 1] == (literal > 0)
        holds &= some
    return holds.astype(float)


def cnf_text(variables: int, clauses: list[list[int]], comments: str = "") -> str:
    """The DIMACS file."""
    lines = [" ".join(map(str, [*clause, 0])) for clause in clauses]
    return "\n".join([f"{comments}p cnf {variables} {len(clauses)}", *lines, ""])


def _condition(clauses, literal):
    return [[x for x in c if x != -literal] for c in clauses if literal not in c]


def _components(clauses):
    left, out = list(clauses), []
    while left:
        mine, variables = [left.pop()], set()
        grown = True
        while grown:
            variables = {abs(x) for c in mine for x in c}
            joined = [c for c in left if not variables.isdisjoint(map(abs, c))]
            left = [c for c in left if c not in joined]
            mine += joined
            grown = bool(joined)
        out.append(mine)
    return out


def compile_tree(clauses):
    """Decide variables and split components: ("t"), ("f"), ("a", parts), ("o", v, false, true)."""
    if not clauses:
        return ("t",)
    if [] in clauses:
        return ("f",)
    parts = _components(clauses)
    if len(parts) > 1:
        return ("a", [compile_tree(part) for part in parts])
    v = min(abs(x) for c in clauses for x in c)
    return ("o", v, *(compile_tree(_condition(clauses, s * v)) for s in (-1, 1)))


def c2d_text(variables: int, tree) -> str:
    """The tree as c2d writes it, equal nodes shared."""
    lines: list[str] = []
    known: dict[str, int] = {}

    def put(line: str) -> int:
        if line not in known:
            known[line] = len(lines)
            lines.append(line)
        return known[line]

    def walk(node) -> int:
        if node[0] == "t":
            return put("A 0")
        if node[0] == "f":
            return put("O 0 0")
        if node[0] == "a":
            below = [walk(part) for part in node[1]]
            return put(" ".join(map(str, ["A", len(below), *below])))
        v = node[1]
        branches = []
        for literal, child in zip((-v, v), node[2:], strict=True):
            pair = walk(child), put(f"L {literal}")
            branches.append(put(f"A 2 {pair[0]} {pair[1]}"))
        return put(f"O {v} 2 {branches[0]} {branches[1]}")

    root = walk(tree)
    if root != len(lines) - 1:
        lines.append(f"A 1 {root}")
    edges = sum(len(line.split()) - (3 if line[0] == "O" else 2) for line in lines)
    return "\n".join([f"nnf {len(lines)} {edges} {variables}", *lines, ""])


def d4_text(tree) -> str:
    """The tree as d4 writes it: chains of forced literals go onto edges."""
    lines: list[str] = []
    ids = itertools.count(1)

    def walk(node) -> int:
        name = next(ids)
        lines.append(f"{node[0]} {name} 0")
        if node[0] == "a":
            for part in node[1]:
                lines.append(f"{name} {walk(part)} 0")
        elif node[0] == "o":
            for literal, child in zip((-node[1], node[1]), node[2:], strict=True):
                literals = [literal]
                while child[0] == "o" and ("f",) in child[2:]:
                    forced = 1 if child[2] == ("f",) else -1
                    literals.append(forced * child[1])
                    child = child[3] if forced > 0 else child[2]
                if child != ("f",):
                    lines.append(" ".join(map(str, [name, walk(child), *literals, 0])))
        return name

    walk(tree)
    return "\n".join([*lines, ""])
