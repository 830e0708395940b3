"""Which file holds which part."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from ._dataset import PARTS, part_of
from ._files import Files


def one_per_part(files: Files, suffixes: Sequence[str], kind: str) -> dict[str, PurePosixPath]:
    """The one file of a kind, as the training part, or files by the parts that their names say.

    Raises:
        ValueError: several files, not named by parts.
    """
    found = files.having(suffixes)
    if len(found) == 1:
        return {"train": found[0]}
    parts = [part_of(name.stem) for name in found]
    if "train" not in parts or None in parts or len(set(parts)) < len(parts):
        names = ", ".join(map(str, found[:4])) + (", ..." if len(found) > 4 else "")
        raise ValueError(
            f"{files.source}: holds {len(found)} {kind}: {names}; expected one, or one for each of "
            f"{', '.join(PARTS)}, named so."
        )
    return {part: name for part, name in zip(parts, found, strict=True) if part is not None}
