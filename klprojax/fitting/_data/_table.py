"""Tables: comma-separated values with a line of names."""

import csv
import io
import math
from dataclasses import dataclass

import numpy as np

from ._columns import TargetColumns, encode_features, is_missing, number
from ._dataset import Dataset, Wanted, check_classes, complete, in_order, scale_targets
from ._files import Files
from ._parts import one_per_part

TABLES = (".csv", ".tsv")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class DataTable:
    """Cells of a file.

    Attributes:
        label: what an error calls the file.
        header: names of the columns.
        columns: cells by column name.
        lines: the line of every row.
    """

    label: str
    header: list[str]
    columns: dict[str, list[str]]
    lines: list[int]


def read_table(files: Files, wanted: Wanted) -> Dataset:
    """Read tables; features and targets are made of their columns.

    Raises:
        ValueError: anything that is no table, or not one to learn from.
    """
    found = one_per_part(files, TABLES, "tables")
    tables = {
        part: _parse(files.label(name), files.text(name), name.suffix.lower())
        for part, name in found.items()
    }
    first = tables["train"]
    for table in tables.values():
        if set(table.header) != set(first.header):
            odd = sorted(set(table.header) ^ set(first.header))
            raise ValueError(
                f"{table.label}: its columns differ from those of {first.label}: {', '.join(odd)}."
            )
    targets = wanted.target or (first.header[-1],)
    weights = () if wanted.weights is None else (wanted.weights,)
    for what, names in (("target", targets), ("drop", wanted.drop), ("weights", weights)):
        for name in names:
            if name not in first.header:
                raise ValueError(
                    f"{first.label}: {what} names {name!r}, which is no column; columns are "
                    f"{', '.join(first.header)}."
                )
    if set(targets) & set(wanted.drop):
        twice = (set(targets) & set(wanted.drop)).pop()
        raise ValueError(f"{first.label}: {twice!r} is both a target and left out.")
    if set(weights) & {*targets, *wanted.drop}:
        raise ValueError(
            f"{first.label}: {wanted.weights!r} is a target or left out; it cannot weigh rows. "
            "If it is the last column, name another target."
        )
    features = [n for n in first.header if n not in (*targets, *wanted.drop, *weights)]
    if not features:
        raise ValueError(f"{first.label}: no column is left to predict {', '.join(targets)} from.")
    task, y, names, note = TargetColumns(tables, targets, wanted.task).read()
    # Rows by number until the split is known: means are those of the training rows.
    rows = {part: (np.arange(len(y[part])), y[part]) for part in tables}
    parts = complete(files.source, rows, wanted.seed, classes=task == "classification")
    if task == "classification":
        check_classes(files.source, parts, names)
    chosen = {p: (p if p in tables else "train", rows) for p, (rows, _) in parts.items()}
    x, labels, notes = encode_features(features, tables, chosen)
    out = {part: (x[part], parts[part][1]) for part in parts}
    scale = None
    if task == "regression":
        out, scale = scale_targets(files.source, out)
    return Dataset(
        *in_order(out),
        classes=len(names),
        task=task,
        shape=(len(labels),),
        names=names,
        features=tuple(labels),
        scale=scale,
        notes=(note, *notes),
        weights=_weights(tables["train"], wanted.weights, chosen["train"][1]),
    )


def _weights(table: DataTable, name: str | None, rows: np.ndarray) -> np.ndarray | None:
    """Numbers of a column, in these rows; None without one."""
    if name is None:
        return None
    found = np.array([number(table.columns[name][row]) for row in rows])
    bad = ~(np.isfinite(found) & (found >= 0))
    if bad.any():
        row = rows[int(np.argmax(bad))]
        raise ValueError(
            f"{table.label}: line {table.lines[row]} has the weight {table.columns[name][row]!r}; "
            "expected a number of at least 0."
        )
    return found


def _parse(label: str, text: str, suffix: str) -> DataTable:
    delimiter = "\t" if suffix == ".tsv" else _find_delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            cells = [cell.strip() for cell in row]
            if not header:
                header = _check_header(label, cells)
            elif len(cells) != len(header):
                raise ValueError(
                    f"{label}: line {reader.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}."
                )
            else:
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{label}: line {reader.line_num} cannot be read: {error}.") from None
    if not rows:
        raise ValueError(f"{label}: has a header and no rows.")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    return DataTable(label, header, columns, lines)


def _find_delimiter(text: str) -> str:
    """What cuts the first line into most cells."""
    line = next(line for line in text.splitlines() if line.strip())
    counts = {}
    for delimiter in _DELIMITERS:
        try:
            counts[delimiter] = len(next(csv.reader([line], delimiter=delimiter)))
        except csv.Error:
            counts[delimiter] = 0
    return max(counts, key=lambda d: counts[d])


def _check_header(label: str, cells: list[str]) -> list[str]:
    if len(cells) < 2:
        raise ValueError(
            f"{label}: the first line is the one cell {cells[0][:60]!r}; expected names of columns "
            f"separated by {', '.join(_DELIMITERS.values())}."
        )
    for place, cell in enumerate(cells):
        if is_missing(cell):
            raise ValueError(
                f"{label}: column {place + 1} has no name in the first line. If it numbers the "
                "rows, write the table without it."
            )
        if cell in cells[:place]:
            raise ValueError(f"{label}: two columns are named {cell!r}.")
    if all(not math.isnan(number(cell)) for cell in cells):
        raise ValueError(f"{label}: the first line holds numbers only; it must name the columns.")
    return cells
