"""The one door to data sets."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from ._dataset import TASKS, Dataset, Rows, Wanted
from ._digits import read_digits
from ._files import open_files
from ._images import IMAGES, read_images
from ._npz import read_arrays
from ._table import TABLES, read_table
from ._text import TEXTS, read_text

# What each kind of source can be asked for beside the seed.
_OPTIONS = {
    "the digits": (),
    "arrays": ("task",),
    "a table": ("target", "task", "drop", "weights"),
    "images": ("image_size",),
    "text": ("window",),
}


def load_dataset(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    standardise: bool = False,
    dtype: str | type[np.floating] = "float32",
    target: str | Sequence[str] | None = None,
    task: str | None = None,
    drop: str | Sequence[str] = (),
    window: int | None = None,
    image_size: int | None = None,
    weights: str | None = None,
) -> Dataset:
    """Load a data set: arrays, a table, images or text.

    What has no test rows gives a seeded fifth of its training rows for test, and what has no
    validation rows a seeded fifth of the rest; of text it is the last fifth each time, of tables
    and images a fifth of every class.

    - ``"digits"``: scikit-learn's 1797 images of 8 by 8 pixels.
    - An ``.npz`` file with arrays `x_train`, `y_train`, `x_test`, `y_test` (or `train_x` and so
      on), and perhaps `x_validation`, `y_validation`, and `w_train`, weights of the rows. Integers
      are labels, rows of 0 and 1 are several labels each (one 1 per row: classes), other numbers
      are targets of a regression.
    - A ``.csv`` or ``.tsv`` file with a line of names. Columns of numbers become features of mean 0
      and deviation 1 in the training rows; missing ones (empty, ``NA``, ``?`` and the like) become
      0, the mean, with one more feature that marks them. Columns of text become one feature per
      value in the training rows, missing being a value too. Text, or whole numbers of at most 20
      values, are classes as the target; other numbers are a regression.
    - A folder of images, one folder per class, perhaps within folders `train`, `validation` and
      `test`; needs Pillow. RGB unless all are grey.
    - A ``.txt`` file: the task is to predict every next character.
    - A folder, or a ``.zip`` file, with one table or one text, or with those of the parts, named
      `train`, `validation` and `test`.

    Rows of x are flattened; `Dataset.shape` is what they were. Bytes are divided by 255 and digits
    by their largest value, 16, so both lie in [0, 1]. Nothing is unpacked to the disk.

    Args:
        source: ``"digits"`` or a path.
        seed: of the splits.
        standardise: subtract the mean of the training rows from each feature and divide by their
            standard deviation; features that never vary there are only centred.
        dtype: floating type of x, and of targets that are no labels.
        target: the column of a table to predict, its last one if left out; several for several
            labels or numbers.
        task: `"classification"`, `"multi-label"` or `"regression"`; inferred if None.
        drop: columns of a table to leave out.
        window: characters of text per row; 64 if None.
        image_size: make images squares of that many pixels; needed if they differ in size.
        weights: the column of a table with the weights of its training rows, at least 0.

    Returns:
        A `Dataset`; its `notes` say what was read and inferred.

    Raises:
        ValueError: an unknown name, a file that is damaged or not of this form, or options that are
            for another kind of data.
        ImportError: `"digits"` without scikit-learn, images without Pillow.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}.")
    for name, value in (("window", window), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    targets, left_out = ((x,) if isinstance(x, str) else tuple(x or ()) for x in (target, drop))
    wanted = Wanted(seed, targets, task, left_out, window, image_size, weights)
    data = _read(os.fspath(source), wanted)
    kind = np.dtype(dtype)
    scale = None
    if standardise and data.task == "text":
        raise ValueError("standardise is for numbers; characters are none.")
    if standardise:
        x = _floats(data.train[0], np.dtype(np.float64))
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation == 0] = 1.0
        scale = mean, deviation

    def convert(rows: Rows) -> Rows:
        x, y = rows
        if data.task == "text":
            return x.astype(np.int32), y.astype(np.int32)
        if scale is not None:
            x = (_floats(x, np.dtype(np.float64)) - scale[0]) / scale[1]
        labels = data.task == "classification"
        return _floats(x, kind), y.astype(np.int32 if labels else kind)

    train, validation, test = map(convert, data[:3])
    return data._replace(train=train, validation=validation, test=test)


def _floats(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bytes as shares of 255, rounded once; other numbers as they are."""
    if x.dtype == np.uint8:
        return (np.arange(256) / 255.0).astype(dtype)[x]
    return x.astype(dtype)


def _read(source: str, wanted: Wanted) -> Dataset:
    suffix = os.path.splitext(source)[1].lower()

    def check(kind: str) -> None:
        given = {k for names in _OPTIONS.values() for k in names if getattr(wanted, k)}
        extra = sorted(given - set(_OPTIONS[kind]))
        if extra:
            of = next(k for k, names in _OPTIONS.items() if extra[0] in names and k != "arrays")
            raise ValueError(f"{source}: {extra[0]} is for {of}; this is {kind}.")

    if source == "digits":
        check("the digits")
        return read_digits(wanted.seed)
    if suffix == ".npz":
        check("arrays")
        return read_arrays(source, wanted)
    if not (os.path.isdir(source) or suffix in (".zip", *TABLES, *TEXTS)):
        raise ValueError(
            f"{source!r} is no data set; expected 'digits' or the path of an .npz, .csv, .tsv, "
            ".txt or .zip file, or of a folder."
        )
    readers: dict[str, tuple[tuple[str, ...], Callable[..., Dataset]]] = {
        "images": (IMAGES, read_images),
        "a table": (TABLES, read_table),
        "text": (TEXTS, read_text),
    }
    with open_files(source) as files:
        for kind, (suffixes, reader) in readers.items():
            if files.having(suffixes):
                check(kind)
                return reader(files, wanted)
        raise ValueError(
            f"{source}: {files.describe()}; expected images in one folder per class, or .csv, .tsv "
            "or .txt files."
        )
