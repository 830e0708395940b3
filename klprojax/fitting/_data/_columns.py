"""Columns of a table as numbers."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._dataset import read_targets

MOST_CLASSES = 20  # values of whole numbers that are classes unless told otherwise
_MOST_TEXTS, _MOST_MIXED = 256, 20
# As pandas reads them, and the question mark of the UCI tables.
_MISSING = {"#n/a", "#na", "<na>", "?", "n/a", "na", "nan", "-nan", "none", "null"}
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_TRUTH = {"true": 1.0, "false": 0.0}


def is_missing(cell: str) -> bool:
    """Whether a cell says that its value is not known."""
    return not cell or cell.lower() in _MISSING


def number(cell: str) -> float:
    """The number that a cell holds, NaN if it holds none; infinity is one."""
    # Python also reads 1_000.
    if "_" in cell:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return math.nan


class Column:
    """The cells of one column over all parts.

    Attributes:
        numbers: by part; NaN where there is none.
        missing: by part, whether a cell is missing.
        texts: how often each text that is no number stands there.
    """

    def __init__(self, name: str, tables: Mapping[str, Any]):
        self.name = name
        self.cells = {part: table.columns[name] for part, table in tables.items()}
        self.tables = tables
        self.missing = {p: np.array([is_missing(c) for c in cs]) for p, cs in self.cells.items()}
        self.numbers = {
            p: np.array(
                [math.nan if m else number(c) for c, m in zip(cs, self.missing[p], strict=True)]
            )
            for p, cs in self.cells.items()
        }
        self.texts = Counter(
            cell
            for p, cs in self.cells.items()
            for cell, value, gone in zip(cs, self.numbers[p], self.missing[p], strict=True)
            if math.isnan(value) and not gone
        )
        for part, values in self.numbers.items():
            if np.isinf(values).any():
                row = int(np.argmax(np.isinf(values)))
                cell = self.cells[part][row]
                raise ValueError(f"{self.place(part, row)} holds {cell}, no number to learn from.")

    def place(self, part: str, row: int) -> str:
        """A cell, for an error."""
        table = self.tables[part]
        return f"{table.label}: column {self.name!r}, line {table.lines[row]},"

    @property
    def has_numbers(self) -> bool:
        """Whether some cell is a number."""
        return any(not np.isnan(values).all() for values in self.numbers.values())

    def refuse_mixture(self, advice: str) -> None:
        """Raise an error on a column of numbers in which some cells are text."""
        text = min(self.texts, key=lambda t: (self.texts[t], t))
        part, row = next((p, cells.index(text)) for p, cells in self.cells.items() if text in cells)
        comma = " with a comma for a point" if _DECIMAL_COMMA.fullmatch(text) else ""
        raise ValueError(
            f"{self.place(part, row)} holds the text {text[:60]!r}{comma} among numbers; mend it, "
            f"or {advice}."
        )


class TargetColumns:
    """What is predicted.

    Args:
        tables: by part.
        names: of the columns.
        task: if it is given.
    """

    def __init__(self, tables: Mapping[str, Any], names: Sequence[str], task: str | None):
        self.columns = [Column(name, tables) for name in dict.fromkeys(names)]
        self.tables, self.task = tables, task
        self.label = tables["train"].label
        for column in self.columns:
            for part, gone in column.missing.items():
                if gone.any():
                    row = int(np.argmax(gone))
                    raise ValueError(
                        f"{column.place(part, row)} has no target ({int(gone.sum())} such rows); "
                        "remove them or fill them in."
                    )

    def read(self) -> tuple[str, dict[str, np.ndarray], tuple[str, ...], str]:
        """The task, the targets by part, names of the outputs and a note."""
        names = ", ".join(repr(column.name) for column in self.columns)
        if len(self.columns) > 1:
            return self._several(names)
        (column,) = self.columns
        if self.task == "multi-label":
            raise ValueError(
                f"{self.label}: several labels per row need several target columns of 0 and 1; "
                f"{column.name!r} is one."
            )
        task = self.task
        if column.texts and column.has_numbers and task != "classification":
            column.refuse_mixture("give the task classification if every value is a class")
        if task is None:
            values = np.concatenate([*column.numbers.values()])
            few = len(np.unique(values)) <= MOST_CLASSES and not (values % 1 != 0).any()
            task = "classification" if column.texts or few else "regression"
        if task == "regression":
            if column.texts:
                text = min(column.texts)
                raise ValueError(
                    f"{self.label}: the target {column.name!r} holds text such as {text[:60]!r}; a "
                    "regression needs numbers."
                )
            note = f"Target {names}: numbers, a regression."
            return task, {p: v[:, None] for p, v in column.numbers.items()}, (column.name,), note
        return self._classes(column)

    def _classes(self, column: Column) -> tuple[str, dict[str, np.ndarray], tuple[str, ...], str]:
        # Numbers by value: 1 and 1.0 are one class.
        def spelt(cell: str, value: float) -> str:
            return cell if math.isnan(value) else repr(value if value % 1 else int(value))

        labels = {
            part: [spelt(c, v) for c, v in zip(cells, column.numbers[part].tolist(), strict=True)]
            for part, cells in column.cells.items()
        }
        seen = set().union(*labels.values())
        values = sorted(seen) if column.texts else sorted(seen, key=float)
        rows = sum(map(len, labels.values()))
        if len(values) > max(MOST_CLASSES, rows // 2):
            raise ValueError(
                f"{self.label}: the target {column.name!r} has {len(values)} different values in "
                f"{rows} rows; expected classes that come again. Name another column as the target."
            )
        places = {value: place for place, value in enumerate(values)}
        y = {p: np.array([places[v] for v in cells], np.int32) for p, cells in labels.items()}
        shown = ", ".join(values[:6]) + (", ..." if len(values) > 6 else "")
        note = f"Target {column.name!r}: {len(values)} classes ({shown})."
        return "classification", y, tuple(values), note

    def _several(self, names: str) -> tuple[str, dict[str, np.ndarray], tuple[str, ...], str]:
        y = {}
        for column in self.columns:
            if (
                column.texts
                and not column.has_numbers
                and set(map(str.lower, column.texts)) <= set(_TRUTH)
            ):
                column.numbers = {
                    p: np.array([_TRUTH[c.lower()] for c in cells])
                    for p, cells in column.cells.items()
                }
            elif column.texts:
                column.refuse_mixture("name one column; several targets are numbers, or 0 and 1")
        for part in self.tables:
            y[part] = np.stack([column.numbers[part] for column in self.columns], 1)
        ends = np.cumsum([len(rows) for rows in y.values()])[:-1]
        task, every, notes = read_targets(self.label, np.concatenate([*y.values()]), self.task)
        note = notes[0] if notes else "Numbers, a regression."
        outputs = tuple(column.name for column in self.columns)
        found = dict(zip(y, np.split(every, ends), strict=True))
        return task, found, outputs, f"Targets {names}: {note}"


def encode_features(
    names: Sequence[str], tables: Mapping[str, Any], parts: Mapping[str, tuple[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Features of the columns.

    Args:
        names: of the columns.
        tables: the tables by name.
        parts: by part the name of its table, and the numbers of its rows there.

    Returns:
        Features ``[rows, features]`` by part, their names, and notes.

    Raises:
        ValueError: a column without values, with a stray text, or of texts that are all different.
    """
    columns: dict[str, list[np.ndarray]] = {part: [] for part in parts}
    labels: list[str] = []
    kinds: dict[str, list[str]] = {"numbers": [], "text": [], "filled": []}
    for name in names:
        column = Column(name, tables)
        numbers = {p: column.numbers[table][rows] for p, (table, rows) in parts.items()}
        missing = {p: column.missing[table][rows] for p, (table, rows) in parts.items()}
        if missing["train"].all():
            raise ValueError(
                f"{tables['train'].label}: column {name!r} has no value in the training rows; "
                "leave it out (drop)."
            )
        gaps = sum(int(m.sum()) for m in missing.values())
        if column.texts:
            different = len(np.unique(np.concatenate([*column.numbers.values()])))
            if column.has_numbers and len(column.texts) + different > _MOST_MIXED:
                column.refuse_mixture("leave the column out (drop)")
            cells = {
                p: [
                    "" if gone else column.cells[table][row]
                    for row, gone in zip(rows, missing[p], strict=True)
                ]
                for p, (table, rows) in parts.items()
            }
            values = sorted(set(cells["train"]) | ({""} if gaps else set()))
            if len(values) > _MOST_TEXTS:
                raise ValueError(
                    f"{tables['train'].label}: column {name!r} has {len(values)} different texts "
                    f"in the training rows; more than {_MOST_TEXTS} are no categories: leave it "
                    "out (drop)."
                )
            kinds["text"].append(f"{name} ({len(values)})")
            labels += [f"{name}={value or 'missing'}" for value in values]
            for part, found in cells.items():
                columns[part].append(np.array(found)[:, None] == np.array(values))
            continue
        known = numbers["train"][~missing["train"]]
        mean, deviation = known.mean(), known.std()
        kinds["numbers"].append(name)
        labels.append(name)
        if gaps:
            labels.append(f"{name} missing")
            kinds["filled"].append(f"{name} ({gaps})")
        for part, values in numbers.items():
            scaled = (np.where(missing[part], mean, values) - mean) / (deviation or 1.0)
            columns[part].append(scaled[:, None])
            if gaps:
                columns[part].append(missing[part][:, None])
    texts = {
        "numbers": "Columns of numbers, scaled: {}.",
        "text": "Columns of text (values): {}.",
        "filled": "Missing numbers (cells), set to the mean and marked: {}.",
    }
    notes = [texts[kind].format(", ".join(found)) for kind, found in kinds.items() if found]
    x = {part: np.concatenate(found, 1).astype(np.float64) for part, found in columns.items()}
    return x, labels, notes
