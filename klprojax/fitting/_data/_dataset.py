"""What a data set is, and what is asked of its readers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Rows = tuple[np.ndarray, np.ndarray]
TASKS = ("classification", "multi-label", "regression")
# Names of the three parts in files and folders; the first is ours.
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


class Dataset(NamedTuple):
    """Rows for training, validation and test, each a pair (x, y).

    Attributes:
        train: x floats `[rows, features]` (text: character numbers `[rows, window]`, int32); y
            labels `[rows]`, int32; for `"multi-label"` 0 or 1 `[rows, labels]` and for
            `"regression"` numbers `[rows, targets]`, floats; for `"text"` the next characters
            `[rows, window]`, int32.
        validation: rows to choose a model by.
        test: rows to report on.
        classes: number of classes (labels, targets, characters): of outputs that a network needs;
            labels are 0 to classes - 1.
        task: `"classification"`, `"multi-label"`, `"regression"` or `"text"`.
        shape: of one row of x before it was flattened, (height, width, channels) for example.
        names: of the classes, labels, targets or characters; empty if they have none.
        features: names of the features; empty if they have none.
        scale: for `"regression"` the mean and the standard deviation of the targets in the training
            rows, each `[targets]`: y holds `(target - mean) / deviation`.
        notes: what was read and inferred, in sentences.
        weights: of the training rows, `[rows]`, for `fit(weights=)`; None if they have none.
    """

    train: Rows
    validation: Rows
    test: Rows
    classes: int
    task: str = "classification"
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    scale: Rows | None = None
    notes: tuple[str, ...] = ()
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Wanted:
    """How to read; see `load_dataset`."""

    seed: int = 0
    target: tuple[str, ...] = ()
    task: str | None = None
    drop: tuple[str, ...] = ()
    window: int | None = None
    image_size: int | None = None
    weights: str | None = None


def part_of(name: str) -> str | None:
    """The part that a file or folder of this name holds, if any."""
    return next((part for part, names in PARTS.items() if name.lower() in names), None)


def in_order(parts: dict[str, Rows]) -> tuple[Rows, Rows, Rows]:
    """The parts as a data set has them."""
    return parts["train"], parts["validation"], parts["test"]


def split(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """Four fifths and a fifth of the rows, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(x))
    cut = len(x) - len(x) // 5
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])


def fifths(y: np.ndarray, seed: int, *, classes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of four fifths and of a fifth of the rows, in a seeded order.

    Args:
        y: targets of the rows.
        seed: of the order.
        classes: y holds labels: every class has its share of both, and a row in the first.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    keys = np.zeros(len(y), int)
    if classes:
        order = order[np.argsort(y[order], kind="stable")]
        keys = y[order]
    first = np.r_[True, keys[1:] != keys[:-1]][: len(y)]
    held = np.zeros(len(y), bool)
    held[np.flatnonzero(~first)[3::5]] = True
    return np.sort(order[~held]), np.sort(order[held])


def complete(name: str, parts: dict[str, Rows], seed: int, *, classes: bool) -> dict[str, Rows]:
    """Take what is missing of validation and test rows from the training rows.

    Raises:
        ValueError: too few rows.
    """
    for part in ("test", "validation"):
        if part in parts:
            continue
        x, y = parts["train"]
        kept, held = fifths(y, seed, classes=classes)
        if not len(held):
            raise ValueError(
                f"{name}: {len(y)} row(s) are too few to take {part} rows from; give more, or a "
                f"{part} part."
            )
        parts["train"], parts[part] = (x[kept], y[kept]), (x[held], y[held])
    return parts


def check_classes(name: str, parts: dict[str, Rows], names: Sequence[str]) -> None:
    """Refuse classes that cannot be learned.

    Raises:
        ValueError: fewer than two, or one without training rows.
    """
    if len(names) < 2:
        raise ValueError(
            f"{name}: all rows are of one class{f', {names[0]!r}' if names else ''}; a classifier "
            "needs two."
        )
    seen = np.unique(parts["train"][1])
    for part, (_, y) in parts.items():
        new = np.setdiff1d(y, seen)
        if len(new):
            raise ValueError(
                f"{name}: the class {names[int(new[0])]!r} of the {part} rows has no training rows."
            )


def read_targets(
    name: str, y: np.ndarray, task: str | None
) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """What numbers in several columns are: the task, the targets and a note.

    Args:
        name: what an error calls them.
        y: `[rows, columns]`, numbers.
        task: if it is given.

    Raises:
        ValueError: they do not fit the task.
    """
    binary = bool(np.isin(y, (0, 1)).all())
    if task is None:
        one_hot = binary and y.shape[1] > 1 and bool((y.sum(1) == 1).all())
        task = "classification" if one_hot else "multi-label" if binary else "regression"
    if task == "classification":
        if not binary or not (y.sum(1) == 1).all() or y.shape[1] < 2:
            raise ValueError(
                f"{name}: several columns are classes only if every row has one 1 and else 0; give "
                "one column of labels, or another task."
            )
        return task, y.argmax(1).astype(np.int32), ("The targets are one-hot rows: classes.",)
    if task == "multi-label":
        if not binary:
            raise ValueError(f"{name}: labels of a multi-label task are 0 or 1.")
        return task, y.astype(np.float64), (f"{y.shape[1]} labels, each 0 or 1: multi-label.",)
    return task, y.astype(np.float64), ()


def scale_targets(name: str, parts: dict[str, Rows]) -> tuple[dict[str, Rows], Rows]:
    """Targets of mean 0 and deviation 1 in the training rows, and both before.

    Raises:
        ValueError: a target that never varies.
    """
    y = parts["train"][1]
    mean, deviation = y.mean(0), y.std(0)
    if not (deviation > 0).all():
        raise ValueError(f"{name}: a target does not vary in the training rows; nothing to learn.")
    return {p: (x, (y - mean) / deviation) for p, (x, y) in parts.items()}, (mean, deviation)
