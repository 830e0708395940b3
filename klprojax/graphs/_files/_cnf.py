"""DIMACS CNF with literal weights: a formula in clauses as a factor graph."""

import os
from array import array
from typing import NamedTuple

import numpy as np

from klprojax.graphs._files._errors import ModelFileError
from klprojax.graphs._files._text import (
    MAX_BYTES,
    SPARE_STATES,
    BadNumber,
    parse_integers,
    parse_numbers,
    read_bytes,
    recode,
    show,
    stem,
    text_lines,
)
from klprojax.graphs._model import DiscreteModel

_WIDEST = 8  # variables of one table: longer clauses are split
_COUNTED = "counts are over all variables; delete the line if they are what you want"


class CnfFormula(NamedTuple):
    """What a CNF file says.

    Attributes:
        variables: their number.
        literals: of all clauses, one after the other, from 1, negative for a negated variable.
        ends: where each clause ends in them.
        log_weights: per variable of the negative and the positive literal, nats; None without
            weights.
        notes: what was read in one of several ways.
    """

    variables: int
    literals: np.ndarray
    ends: np.ndarray
    log_weights: np.ndarray | None
    notes: tuple[str, ...]


def read_cnf(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, encoding: str | None = None
) -> DiscreteModel:
    """Read a formula in clauses (DIMACS `.cnf`, `.cnf.gz`) as a model of its weighted models.

    Every clause is a factor, 1 where it holds and 0 elsewhere; every weighted variable has a
    factor of its own. So the log-partition is the logarithm of the (weighted) model count, and
    ``-inf`` for a formula without models. Variable 1 of the file is variable 0, named "1"; state 1
    is true. A clause of more than 8 literals is split by auxiliary variables that are functions of
    the others, which come last and leave the count as it is.

    Weights are read in three forms. ``c p weight literal w 0`` (model counting competitions since
    2021) and ``w variable w`` (Cachet) give a literal's weight; its negation, if it has no line,
    weighs ``1 - w``, and ``w variable -1`` sets both to 1. ``c weights ...`` (miniC2D) lists the
    positive and the negative literal of every variable. Variables without weights weigh 1 either
    way. Weights may be fractions, ``1/3``; their logarithms are kept, so ``1e-400`` is no zero.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.
        encoding: of a file that is not UTF-8.

    Returns:
        The model; ``notes`` say what was assumed.

    Raises:
        ModelFileError: naming file and line: what breaks the format, negative weights, and
            projected counting (``c p show`` of a part of the variables), which a factor graph
            cannot express.
    """
    formula = read_formula(path, max_bytes=max_bytes, encoding=encoding)
    factors = _Factors(formula.variables)
    start = 0
    literals = formula.literals.tolist()
    for end in formula.ends.tolist():
        factors.add_clause(list(dict.fromkeys(literals[start:end])))
        start = end
    if formula.log_weights is not None:
        weighted = np.flatnonzero((formula.log_weights != 0.0).any(axis=1)).tolist()
        factors.scopes += [(v,) for v in weighted]
        factors.tables += list(formula.log_weights[weighted])
    notes = formula.notes
    if factors.split:
        notes += (
            f"Clauses of more than {_WIDEST} literals ({factors.split}) are split by "
            f"{len(factors.names) - formula.variables} auxiliary variables, the last ones.",
        )
    return DiscreteModel(
        cardinalities=(2,) * len(factors.names),
        scopes=tuple(factors.scopes),
        log_tables=tuple(factors.tables),
        variable_names=tuple(factors.names),
        name=stem(path),
        notes=notes,
    )


class _Factors:
    """Factors made from clauses; equal patterns of signs share a table."""

    def __init__(self, variables: int):
        self.names = [str(v) for v in range(1, variables + 1)]
        self.scopes: list[tuple[int, ...]] = []
        self.tables: list[np.ndarray] = []
        self.clauses = 0
        self.split = 0
        self._shared: dict[tuple[tuple[bool, ...], bool], np.ndarray] = {}

    def add_clause(self, literals: list[int]) -> None:
        """Demand that one of distinct literals holds."""
        self.clauses += 1
        if not {-literal for literal in literals}.isdisjoint(literals):
            return  # it always holds
        self.split += len(literals) > _WIDEST
        parts = 0
        while len(literals) > _WIDEST:
            groups = [literals[i : i + _WIDEST - 1] for i in range(0, len(literals), _WIDEST - 1)]
            literals = []
            for group in groups:
                if len(group) > 1:
                    parts += 1
                    self.names.append(f"part {parts} of clause {self.clauses}")
                    self._add([*group, len(self.names)], defined=True)
                    group = [len(self.names)]
                literals += group
        self._add(literals, defined=False)

    def _add(self, literals: list[int], defined: bool) -> None:
        """A clause; or, if ``defined``, that the last variable is whether another literal holds."""
        self.scopes.append(tuple([abs(literal) - 1 for literal in literals]))
        key = tuple([literal > 0 for literal in literals]), defined
        table = self._shared.get(key)
        if table is None:
            # A positive literal is false in state 0.
            signs = key[0][:-1] if defined else key[0]
            none = tuple(int(not positive) for positive in signs)
            holds = np.ones((2,) * len(signs), bool)
            holds[none] = False
            if defined:
                holds = np.stack([~holds, holds], axis=-1)
            table = self._shared[key] = np.where(holds, 0.0, -np.inf)
            table.flags.writeable = False
        self.tables.append(table)


# -- the file --------------------------------------------------------------------------------


def read_formula(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, encoding: str | None = None
) -> CnfFormula:
    """Read a CNF file; see `read_cnf`."""
    return _CnfReader(path, recode(path, read_bytes(path, max_bytes), encoding)).read()


class _CnfReader:
    """A pass over the lines."""

    def __init__(self, path: str | os.PathLike[str], data: bytes):
        self.path = path
        self.data = data
        self.variables = -1
        self.clauses = 0
        self.header_line = 0
        self.weights: dict[int, tuple[int, float, float]] = {}  # line, value, logarithm
        self.listed: tuple[int, list[bytes]] | None = None
        self.shown: set[int] = set()
        self.shown_line: int | None = None
        self.notes: list[str] = []

    def error(self, line: int | None, expected: str, got: bytes | str, fix: str = ""):
        return ModelFileError(self.path, line, expected, show(got), fix)

    def read(self) -> CnfFormula:
        literals, ends = array("q"), array("q")
        opened = line = 0  # the line where the clause begins that has no 0 yet
        for line, text in text_lines(self.path, self.data):
            words = text.split()
            if not words or self._directive(line, words):
                continue
            if words[0] == b"%":  # what ends the files of a well-known collection
                break
            if self.variables < 0:
                raise self.error(line, "the header, p cnf variables clauses", b" ".join(words))
            for number in self._literals(line, words):
                if number:
                    opened = opened or line
                    literals.append(number)
                else:
                    ends.append(len(literals))
                    opened = 0
        if self.variables < 0:
            raise self.error(None, "the header, p cnf variables clauses", "the end of the file")
        if opened:
            raise self.error(opened, "0 at the end of the clause", "none", "is the file cut off?")
        if len(ends) != self.clauses:
            expected = f"{self.clauses} clauses, as the header says"
            fix = "is the file cut off, or the header wrong?"
            raise self.error(self.header_line, expected, str(len(ends)), fix)
        if self.shown_line is not None and len(self.shown) < self.variables:
            got = f"a projection onto {len(self.shown)} of {self.variables}"
            raise self.error(self.shown_line, "a count over all variables", got, _COUNTED)
        return CnfFormula(
            self.variables,
            np.asarray(literals),
            np.asarray(ends),
            self._log_weights(),
            tuple(self.notes),
        )

    def _literals(self, line: int, words: list[bytes]) -> list[int]:
        try:
            numbers = list(map(int, words))
            top = self.variables
            if -top <= min(numbers) <= max(numbers) <= top and b"_" not in b"".join(words):
                return numbers
        except ValueError:
            pass
        for word in words:
            digits = word.removeprefix(b"-")
            if not digits.isdigit() or len(digits) > 17 or int(digits) > self.variables:
                fix = "x begins a clause of another format" if word[:1] == b"x" else ""
                raise self.error(
                    line, f"a literal, 1 to {self.variables} or its negative", word, fix
                )
        raise AssertionError(words)  # one of them was at fault

    def _directive(self, line: int, words: list[bytes]) -> bool:
        """Take a line that is no clause."""
        if words[0] == b"p":
            self._header(line, words)
        elif words[0] == b"w":
            # w variable weight, in some files with 0 at the end
            if len(words) not in (3, 4) or words[3:] not in ([], [b"0"]):
                raise self.error(line, "w variable weight", b" ".join(words))
            self._weight(line, words[1], words[2], cachet=True)
        elif not words[0].startswith(b"c"):
            return False
        elif words[:3] == [b"c", b"p", b"weight"]:
            if len(words) != 6 or words[5] != b"0":
                raise self.error(line, "c p weight literal weight 0", b" ".join(words))
            self._weight(line, words[3], words[4], cachet=False)
        elif words[:2] == [b"c", b"weights"]:
            self.listed = (line, words[2:])
        elif words[:3] == [b"c", b"p", b"show"]:
            self._show(line, words[3:])
        elif words[:2] == [b"c", b"ind"]:
            note = "c ind lines (a sampling set) are passed over: " + _COUNTED.split(";")[0] + "."
            self.notes += [note] * (note not in self.notes)
        return True

    def _header(self, line: int, words: list[bytes]) -> None:
        if self.variables >= 0:
            expected = f"one header (line {self.header_line} has one)"
            raise self.error(line, expected, b" ".join(words))
        if words[1:2] != [b"cnf"] or len(words) != 4:
            fix = ""
            if words[1:2] == [b"wcnf"]:
                fix = "weights of clauses (MaxSAT) have no counterpart here"
            expected = "the header, p cnf variables clauses"
            raise self.error(line, expected, b" ".join(words), fix)
        try:
            variables, self.clauses = parse_integers(words[2:])
        except BadNumber as bad:
            raise self.error(line, bad.expected, words[2 + bad.index]) from None
        if 2 * variables > SPARE_STATES + len(self.data):
            expected = f"a number of variables that fits a file of {len(self.data)} bytes"
            raise self.error(line, expected, words[2], "is the header wrong?")
        self.variables, self.header_line = variables, line

    def _show(self, line: int, words: list[bytes]) -> None:
        if not words or words[-1] != b"0":
            raise self.error(line, "c p show variables 0", "no 0", "is the line cut off?")
        self.shown_line = line
        try:
            self.shown.update(parse_integers(words[:-1]))
        except BadNumber as bad:
            raise self.error(line, bad.expected, words[bad.index]) from None

    def _weight(self, line: int, literal: bytes, weight: bytes, cachet: bool) -> None:
        # the header may come later, so the largest variable is checked at the end
        digits = literal.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 17 or not int(digits):
            raise self.error(line, "a literal, a variable from 1 with or without minus", literal)
        number = int(literal)
        both = cachet and weight in (b"-1", b"-1.0")
        parsed = [(number, *self._number(line, b"1" if both else weight))]
        if both:
            parsed.append((-number, 1.0, 0.0))
        for lit, value, log in parsed:
            if lit in self.weights:
                expected = f"one weight per literal (line {self.weights[lit][0]} has one)"
                raise self.error(line, expected, literal)
            self.weights[lit] = (line, value, log)

    def _number(self, line: int, word: bytes) -> tuple[float, float]:
        """A weight and its logarithm; the word may be a fraction."""
        words = word.split(b"/")
        try:
            values, logs = parse_numbers(words)
        except BadNumber as bad:
            fix = "weights have logarithms here: none may be negative"
            raise self.error(line, f"{bad.expected}: a weight", word, fix) from None
        if len(words) > 2 or not (values[1:] > 0).all():
            raise self.error(line, "a weight, a number or a fraction", word)
        if len(words) == 1:
            return float(values[0]), float(logs[0])
        return float(values[0] / values[1]), float(logs[0] - logs[1])

    def _log_weights(self) -> np.ndarray | None:
        if not self.weights and self.listed is None:
            return None
        logs = np.zeros((self.variables, 2))
        if self.listed is not None:
            line, words = self.listed
            if len(words) != 2 * self.variables:
                expected = f"{2 * self.variables} weights, two per variable"
                raise self.error(line, expected, str(len(words)))
            # listed positive first
            flat = [self._number(line, word)[1] for word in words]
            logs[:] = np.asarray(flat).reshape(-1, 2)[:, ::-1]
        assumed = 0
        for literal, (line, value, log) in self.weights.items():
            if abs(literal) > self.variables:
                raise self.error(line, f"a variable from 1 to {self.variables}", str(literal))
            logs[abs(literal) - 1, int(literal > 0)] = log
            if -literal not in self.weights:
                if value > 1.0:
                    fix = "give the weight of both literals"
                    expected = "a weight up to 1 where only one is given"
                    raise self.error(line, expected, str(value), fix)
                with np.errstate(divide="ignore"):
                    logs[abs(literal) - 1, int(literal < 0)] = np.log1p(-value)
                assumed += 1
        if assumed:
            note = f"Literals without a weight ({assumed}) weigh 1 less that of the negation."
            self.notes.append(note)
        return logs
