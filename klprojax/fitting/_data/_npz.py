"""Arrays with the names of the parts."""

import math

import numpy as np

from ..._store import read_npz
from ._dataset import PARTS, Dataset, Rows, Wanted, in_order, read_targets, scale_targets, split

_NAMES = {part: (f"x_{part}", f"y_{part}", f"{part}_x", f"{part}_y") for part in PARTS}


def read_arrays(path: str, wanted: Wanted) -> Dataset:
    """Read x and y of every part from an ``.npz`` file.

    Raises:
        ValueError: no such file, or not one of this form.
    """
    arrays, found = read_npz(path, (*sum(_NAMES.values(), ()), "w_train"))
    parts: dict[str, Rows] = {}
    for part, names in _NAMES.items():
        pair = next(
            ((arrays[a], arrays[b]) for a, b in (names[:2], names[2:]) if {a, b} <= set(arrays)),
            None,
        )
        if pair is not None:
            parts[part] = _rows(path, part, *pair)
        elif part != "validation":
            expected = f"{names[0]} and {names[1]}"
            raise ValueError(
                f"{path}: expected arrays {expected}, got {', '.join(found) or 'none'}."
            )
    shape = parts["train"][0].shape[1:]
    parts = {part: (x.reshape(len(x), -1), y) for part, (x, y) in parts.items()}
    for number, what in enumerate(("features", "targets")):
        widths = {part: math.prod(rows[number].shape[1:]) for part, rows in parts.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"{path}: the parts have different numbers of {what}: {widths}.")
    task, parts, notes = _interpret(path, parts, wanted.task)
    classes = parts["train"][1].shape[1] if task != "classification" else 0
    if task == "classification":
        classes, more = _count(path, parts)
        notes += more
    weights = arrays.get("w_train")
    if weights is not None and weights.shape != parts["train"][0].shape[:1]:
        raise ValueError(
            f"{path}: w_train is of shape {weights.shape}; expected one weight for each of the "
            f"{len(parts['train'][0])} training rows."
        )
    if "validation" not in parts:
        if len(parts["train"][0]) < 5:
            raise ValueError(f"{path}: needs 5 training rows to take a validation row from them.")
        if weights is not None:
            weights = split(weights, weights, wanted.seed)[0][0]
        parts["train"], parts["validation"] = split(*parts["train"], wanted.seed)
    scale = None
    if task == "regression":
        parts, scale = scale_targets(path, parts)
    return Dataset(
        *in_order(parts),
        classes=classes,
        task=task,
        shape=shape,
        scale=scale,
        notes=notes,
        weights=weights,
    )


def _rows(path: str, part: str, x: np.ndarray, y: np.ndarray) -> Rows:
    if x.dtype.kind not in "fiub" or x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{path}: {part} x must be numbers [rows, features...]; got {x.dtype} {x.shape}."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2) or len(y) != len(x) or not y.size:
        raise ValueError(
            f"{path}: {part} y must be {len(x)} integer labels, one per row of x, or as many rows "
            f"of numbers; got {y.dtype} {y.shape}."
        )
    for name, array in (("x", x), ("y", y)):
        good = np.isfinite(array).reshape(len(array), -1).all(1)
        if not good.all():
            row = int(np.argmin(good))
            raise ValueError(f"{path}: {part} {name} has a number that is not finite in row {row}.")
    return x if x.dtype == np.uint8 else x.astype(np.float64), y


def _interpret(
    path: str, parts: dict[str, Rows], task: str | None
) -> tuple[str, dict[str, Rows], tuple[str, ...]]:
    """The task, targets of its form, and notes."""
    if parts["train"][1].ndim == 2:
        every = np.concatenate([y for _, y in parts.values()])
        task, every, notes = read_targets(path, every, task)
        ends = np.cumsum([len(y) for _, y in parts.values()])[:-1]
        targets = np.split(every, ends)
        return task, {p: (parts[p][0], y) for p, y in zip(parts, targets, strict=True)}, notes
    fractions = any((y % 1 != 0).any() for _, y in parts.values())
    if task == "regression" or (task is None and fractions):
        return "regression", {p: (x, y[:, None].astype(float)) for p, (x, y) in parts.items()}, ()
    if task == "multi-label":
        raise ValueError(f"{path}: several labels per row need a y of several columns of 0 and 1.")
    for part, (x, y) in parts.items():
        if y.dtype.kind == "f":
            raise ValueError(
                f"{path}: {part} y must be {len(x)} integer labels, one per row of x; got "
                f"{y.dtype} {y.shape}. To take them as numbers give the task regression."
            )
        if y.min() < 0:
            raise ValueError(f"{path}: {part} y has the label {y.min()}; labels start at 0.")
    return "classification", {p: (x, y.astype(np.int64)) for p, (x, y) in parts.items()}, ()


def _count(path: str, parts: dict[str, Rows]) -> tuple[int, tuple[str, ...]]:
    """Number of classes, and a note on those without training rows."""
    seen = np.unique(np.concatenate([y for _, y in parts.values()]))
    gap = int(np.argmin(np.r_[seen, -1] == np.arange(len(seen) + 1)))
    if gap < len(seen):
        raise ValueError(
            f"{path}: no row has the label {gap}, but some have {int(seen[gap])}; number the "
            "classes from 0 without gaps."
        )
    if gap < 2:
        raise ValueError(f"{path}: all rows are of one class; a classifier needs two.")
    never = np.setdiff1d(seen, parts["train"][1])
    text = ", ".join(map(str, never))
    return gap, (f"Labels without training rows: {text}.",) if len(never) else ()
