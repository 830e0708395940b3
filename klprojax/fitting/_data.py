"""Data sets: rows of numbers with class labels, or of states, split three ways."""

import os
from typing import NamedTuple

import numpy as np

from .._store import read_npz

Rows = tuple[np.ndarray, np.ndarray]

_NAMES = {
    "train": ("x_train", "y_train", "train_x", "train_y"),
    "validation": ("x_validation", "y_validation", "validation_x", "validation_y"),
    "test": ("x_test", "y_test", "test_x", "test_y"),
}


class Dataset(NamedTuple):
    """Rows for training, validation and test, each a pair (x, y).

    Attributes:
        train: x floats `[rows, features]`, y labels `[rows]`, int32.
        validation: rows to choose a model by.
        test: rows to report on.
        classes: number of classes; labels are 0 to classes - 1.
    """

    train: Rows
    validation: Rows
    test: Rows
    classes: int


def load_dataset(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    standardise: bool = False,
    dtype: str | type[np.floating] = "float32",
) -> Dataset:
    """Load a data set with class labels.

    ``"digits"`` is scikit-learn's 1797 images of 8 by 8 pixels: a seeded fifth is for test, a fifth
    of the rest for validation. A path names an ``.npz`` file with arrays `x_train`, `y_train`,
    `x_test`, `y_test` (or `train_x` and so on); without `x_validation`, `y_validation` a seeded
    fifth of the training rows is for validation.

    Images are flattened. Bytes are divided by 255 and digits by their largest value, 16, so both
    lie in [0, 1]; other numbers stay as they are.

    Args:
        source: ``"digits"`` or a path.
        seed: of the splits.
        standardise: subtract the mean of the training rows from each feature and divide by their
            standard deviation; features that never vary there are only centred.
        dtype: floating type of x.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: an unknown name, or a file that is damaged or not of this form.
        ImportError: `"digits"` without scikit-learn.
    """
    parts = _digits(seed) if os.fspath(source) == "digits" else _read_npz(os.fspath(source), seed)
    if standardise:
        x = parts["train"][0]
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation == 0] = 1.0
        parts = {name: ((x - mean) / deviation, y) for name, (x, y) in parts.items()}
    classes = 1 + max(int(y.max()) for _, y in parts.values())
    train, validation, test = (
        (parts[name][0].astype(dtype), parts[name][1].astype(np.int32)) for name in _NAMES
    )
    return Dataset(train, validation, test, classes)


def read_states(
    path: str | os.PathLike[str], needed: tuple[str, ...] = ("train",)
) -> dict[str, np.ndarray]:
    """The states ``[rows, variables]`` that circuits are fitted to, from an ``.npz`` file.

    Args:
        path: of a file with arrays train, valid and test, or some of them. With an array `n_vars`
            they hold packed bits.
        needed: arrays that must be there.

    Returns:
        The arrays by name; bits unpacked.

    Raises:
        ValueError: a file that is damaged or not of this form.
    """
    content, found = read_npz(path, ("train", "valid", "test", "n_vars"))
    count = content.pop("n_vars", None)
    for key in needed:
        if key not in content:
            raise ValueError(
                f"{path} has no array {key} of states [rows, variables]; it has "
                f"{', '.join(found) or 'none'}."
            )
    for key, rows in content.items():
        if rows.ndim != 2 or rows.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: {key} is {rows.dtype} of shape {rows.shape}; expected states "
                "[rows, variables]."
            )
        if count is not None:
            if rows.dtype != np.uint8 or count.shape != () or count > 8 * rows.shape[1]:
                raise ValueError(
                    f"{path}: with n_vars, {key} must be rows of that many packed bits."
                )
            content[key] = np.unpackbits(rows, axis=1, count=int(count))
        elif rows.dtype.kind == "b":
            content[key] = rows.astype(np.int8)
    return {key: content[key] for key in ("train", "valid", "test") if key in content}


def _digits(seed: int) -> dict[str, Rows]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("The digits need scikit-learn: pip install scikit-learn.") from None
    x, y = load_digits(return_X_y=True)
    rest, test = _split(np.asarray(x) / 16.0, np.asarray(y), seed)
    train, validation = _split(*rest, seed)
    return {"train": train, "validation": validation, "test": test}


def _split(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """Four fifths and a fifth of the rows, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(x))
    cut = len(x) - len(x) // 5
    return (x[order[:cut]], y[order[:cut]]), (x[order[cut:]], y[order[cut:]])


def _read_npz(path: str, seed: int) -> dict[str, Rows]:
    if not path.endswith(".npz"):
        raise ValueError(f"{path!r} is no data set; expected 'digits' or the path of an .npz file.")
    arrays, found = read_npz(path, sum(_NAMES.values(), ()))
    parts: dict[str, Rows] = {}
    for part, names in _NAMES.items():
        pair = next(
            ((arrays[a], arrays[b]) for a, b in (names[:2], names[2:]) if {a, b} <= set(arrays)),
            None,
        )
        if pair is not None:
            parts[part] = _rows(path, part, *pair)
        elif part != "validation":
            wanted = f"{names[0]} and {names[1]}"
            raise ValueError(f"{path}: expected arrays {wanted}, got {', '.join(found) or 'none'}.")
    if "validation" not in parts:
        if len(parts["train"][0]) < 5:
            raise ValueError(f"{path}: needs 5 training rows to take a validation row from them.")
        parts["train"], parts["validation"] = _split(*parts["train"], seed)
    widths = {part: x.shape[1] for part, (x, _) in parts.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"{path}: the parts have different numbers of features: {widths}.")
    return parts


def _rows(path: str, part: str, x: np.ndarray, y: np.ndarray) -> Rows:
    if x.dtype.kind not in "fiub" or x.ndim < 2 or x.size == 0:
        raise ValueError(
            f"{path}: {part} x must be numbers [rows, features...]; got {x.dtype} {x.shape}."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.dtype.kind not in "iu" or y.shape != (len(x),):
        raise ValueError(
            f"{path}: {part} y must be {len(x)} integer labels, one per row of x; got {y.dtype} "
            f"{y.shape}."
        )
    if y.min() < 0:
        raise ValueError(f"{path}: {part} y has the label {y.min()}; labels start at 0.")
    scaled = x / 255.0 if x.dtype == np.uint8 else x.astype(np.float64)
    if not np.isfinite(scaled).all():
        row = int(np.argmin(np.isfinite(scaled).reshape(len(x), -1).all(1)))
        raise ValueError(f"{path}: {part} x has a number that is not finite in row {row}.")
    return scaled.reshape(len(x), -1), y
