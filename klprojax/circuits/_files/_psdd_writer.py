"""Circuits as PSDD files, with their vtree."""

import math
import os

import numpy as np

from .._builder import CircuitModel
from .._properties import JointSupport, is_structured
from .._structure import LEAF, PRODUCT, SUM
from ._binary import BinaryCircuit, binary_circuit
from ._lines import write_lines
from ._vtree import Vtree, make_vtree, write_vtree

_OTHERS = "write_spn and save_circuit take any circuit over binary variables."


def write_psdd(
    path: str | os.PathLike[str],
    model: CircuitModel,
    vtree: str | os.PathLike[str] | None = None,
) -> Vtree:
    """Write a circuit's distribution as a PSDD (`.psdd`, `.psdd.gz`).

    A PSDD is normalised, so what is written is the circuit divided by its partition:
    log-likelihoods are the same, the log-partition of the file is 0. Nested sums are merged, and
    products of more than two children become chains along the vtree.

    Args:
        path: the file.
        model: circuit, log-weights and leaf parameters.
        vtree: where to write the vtree that the file follows.

    Returns:
        The vtree.

    Raises:
        ValueError: what a PSDD cannot hold: variables that are not binary; products that split one
            scope in several ways (see `is_structured`); sums of products that may be positive
            together (mixtures, see `is_deterministic`); a partition of zero.
    """
    c = binary_circuit(model, "PSDD")
    if not is_structured(model.circuit):
        raise ValueError(
            "A PSDD follows one vtree, but products of this circuit split one scope in several "
            f"ways (is_structured is False). {_OTHERS}"
        )
    writer = _Writer(c)
    lines, tree = writer.write()
    write_lines(path, [f"psdd {len(lines)}", *lines])
    if vtree is not None:
        write_vtree(vtree, tree)
    return tree


class _Writer:
    """Parts of a node are the children of a product below it, in the order of its scope's split."""

    def __init__(self, c: BinaryCircuit):
        self.c = c
        self.lines: list[str] = []
        self._made: dict[tuple, int] = {}
        # Per node of one variable its table; per other node the log-weight of each tuple of parts.
        self._table: dict[int, tuple[float, float]] = {}
        self._elements: dict[int, dict[tuple[int, ...], float]] = {}
        self._log_total: dict[int, float] = {}
        self._split: dict[bytes, list[bytes]] = {}

    def write(self) -> tuple[list[str], Vtree]:
        s = self.c.s
        for node in self.c.order:
            self._add(node)
        if self._log_total[s.root] == -math.inf:
            raise ValueError("The circuit gives every state weight zero; a PSDD is a distribution.")
        self._choose_primes()
        single = {s.scopes[n].tobytes(): v for n, v in self.c.variable.items()}
        self.tree, self._place = make_vtree(s.scopes[s.root].tobytes(), self._split, single)
        self._number: dict[int, int] = {}
        parts = {p for elements in self._elements.values() for key in elements for p in key}
        parts.add(s.root)
        for node in self.c.order:
            # parts of nothing positive are left out
            if node in parts and self._log_total[node] > -math.inf:
                self._number[node] = self._line(node)
        return self.lines, self.tree

    def _add(self, node: int) -> None:
        """Tables or elements of a node, and the logarithm of its total."""
        c, s = self.c, self.c.s
        kind, below = s.kinds[node], c.children(node)
        if kind == LEAF:
            self._table[node] = c.table[node]
        elif below[0] in self._table and (kind == SUM or len(below) == 1):
            rows = np.asarray([self._table[child] for child in below])
            total = np.logaddexp.reduce(rows + np.asarray(c.weights(node))[:, None], axis=0)
            self._table[node] = (float(total[0]), float(total[1]))
        elif kind == PRODUCT and len(below) > 1:
            scope = s.scopes[node].tobytes()
            parts = {s.scopes[child].tobytes(): child for child in below}
            key = tuple(parts[part] for part in self._split.setdefault(scope, list(parts)))
            self._elements[node] = {key: sum(self._log_total[child] for child in below)}
        else:
            merged: dict[tuple[int, ...], float] = {}
            for child, weight in zip(below, c.weights(node), strict=True):
                for key, inner in self._elements[child].items():
                    before = merged.get(key, -math.inf)
                    merged[key] = float(np.logaddexp(before, inner + weight))
            self._elements[node] = merged
        values = self._table.get(node) or tuple(self._elements[node].values())
        self._log_total[node] = float(np.logaddexp.reduce(values))

    def _choose_primes(self) -> None:
        """Check that elements exclude one another; prefer splits whose first part tells them so."""
        s = self.c.s
        joint = JointSupport(s)
        candidates = {scope: set(range(len(split))) for scope, split in self._split.items()}
        for node, elements in self._elements.items():
            keys = list(elements)
            for n, one in enumerate(keys):
                for two in keys[:n]:
                    apart = {i for i in range(len(one)) if joint.overlap(one[i], two[i]) is False}
                    if not apart:
                        raise ValueError(
                            "The elements of a PSDD's decision node exclude one another, but two "
                            f"of {s.label(node)} may be positive together (is_deterministic is "
                            f"False). {_OTHERS}"
                        )
                    candidates[s.scopes[node].tobytes()] &= apart
        first = {scope: min(left, default=0) for scope, left in candidates.items()}
        for node, elements in self._elements.items():
            i = first[s.scopes[node].tobytes()]
            moved = {(k[i], *k[:i], *k[i + 1 :]): value for k, value in elements.items()}
            self._elements[node] = moved
        for scope, i in first.items():
            split = self._split[scope]
            split.insert(0, split.pop(i))

    def _line(self, node: int) -> int:
        s, total = self.c.s, self._log_total[node]
        if node in self._table:
            return self._leaf(node)
        elements = []
        place = self._place[s.scopes[node].tobytes()]
        for key, value in self._elements[node].items():
            if value > -math.inf:
                pair = self._number[key[0]], self._chain(key[1:], place)
                elements.append(f"{pair[0]} {pair[1]} {value - total!r}")
        return self._put("D", place, len(elements), *elements)

    def _chain(self, parts: tuple[int, ...], above: int) -> int:
        """Right-hand side: one part, or a decision with one element over the rest."""
        if len(parts) == 1:
            return self._number[parts[0]]
        places = []
        for _ in parts[1:]:
            above = self.tree.children[above][1]
            places.append(above)
        made = self._number[parts[-1]]
        for part, place in zip(parts[-2::-1], places[::-1], strict=True):
            made = self._put("D", place, 1, f"{self._number[part]} {made} 0.0")
        return made

    def _leaf(self, node: int) -> int:
        false, true = self._table[node]
        (variable,) = self.c.s.scope_of(node)
        place = self._place[self.c.s.scopes[node].tobytes()]
        if -math.inf in (false, true):
            return self._put("L", place, variable + 1 if true > -math.inf else -variable - 1)
        log_true = -float(np.logaddexp(0.0, false - true))
        if log_true == 0.0:
            raise ValueError(
                f"Variable {variable} is false with probability exp({false - true:.6g}) at "
                f"{self.c.s.label(node)}; a PSDD file gives P(true) only, to which that is lost."
            )
        return self._put("T", place, variable + 1, repr(log_true))

    def _put(self, kind: str, place: int, *rest) -> int:
        """A line, its number; equal lines are one."""
        key = (kind, place, *rest)
        if key not in self._made:
            self._made[key] = len(self.lines)
            words = [kind, len(self.lines), place, *rest]
            self.lines.append(" ".join(map(str, words)))
        return self._made[key]
