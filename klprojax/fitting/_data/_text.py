"""Text, to predict its next characters."""

import numpy as np

from ._dataset import Dataset, Rows, Wanted, in_order
from ._files import Files
from ._parts import one_per_part

TEXTS = (".txt", ".text")
WINDOW = 64


def read_text(files: Files, wanted: Wanted) -> Dataset:
    """Cut texts into windows of characters; the targets are the characters that follow each.

    Raises:
        ValueError: no UTF-8 text, too short, or several files whose names say no parts.
    """
    window = wanted.window or WINDOW
    found = one_per_part(files, TEXTS, "texts")
    texts = {part: files.text(name) for part, name in found.items()}
    for part in ("test", "validation"):
        if part not in texts:
            cut = len(texts["train"]) - len(texts["train"]) // 5
            texts["train"], texts[part] = texts["train"][:cut], texts["train"][cut:]
    names = sorted(set().union(*texts.values()))
    if len(names) < 2:
        raise ValueError(f"{files.source}: one character, {names[0]!r}, again and again.")
    parts: dict[str, Rows] = {}
    points = np.array([ord(name) for name in names])
    for part, text in texts.items():
        if len(text) <= window:
            raise ValueError(
                f"{files.source}: {len(text)} characters are too few for {part} rows of {window} "
                "and one to predict; give more text or a smaller window."
            )
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        numbers = np.searchsorted(points, codes).astype(np.int32)
        rows = (len(numbers) - 1) // window
        x, y = (numbers[n : n + rows * window].reshape(rows, window) for n in (0, 1))
        parts[part] = (x, y)
    total = sum(map(len, texts.values()))
    note = f"Text of {total} characters, {len(names)} different ones, in windows of {window}."
    return Dataset(
        *in_order(parts),
        classes=len(names),
        task="text",
        shape=(window,),
        names=tuple(names),
        notes=(note,),
    )
