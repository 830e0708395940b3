"""Folders of images, one per class."""

import io
import warnings
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ._dataset import PARTS, Dataset, Rows, Wanted, check_classes, complete, in_order, part_of
from ._files import Files

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_NEEDED = "Images need Pillow: pip install pillow."


def read_images(files: Files, wanted: Wanted) -> Dataset:
    """Read every image, with its folder's name as the class.

    Raises:
        ValueError: folders of another form, a class without images, a broken image.
        ImportError: no Pillow.
    """
    grouped, ignored = _by_class(files)
    names = tuple(sorted(grouped["train"]))
    for part, classes in grouped.items():
        for name in classes:
            if name not in names:
                raise ValueError(
                    f"{files.source}: the class {name!r} of the {part} rows has no training rows."
                )
    opened = {
        part: [(path, label) for label, name in enumerate(names) for path in classes.get(name, ())]
        for part, classes in grouped.items()
    }
    pictures = {
        part: [_open(files, path, wanted.image_size) for path, _ in rows]
        for part, rows in opened.items()
    }
    colour = any(array.ndim == 3 for arrays in pictures.values() for array in arrays)
    shape = None
    parts: dict[str, Rows] = {}
    for part, arrays in pictures.items():
        out = []
        for array, (path, _) in zip(arrays, opened[part], strict=True):
            if shape is not None and array.shape[:2] != shape[:2]:
                raise ValueError(
                    f"{files.label(path)}: has {array.shape[0]} x {array.shape[1]} pixels, images "
                    f"before it {shape[0]} x {shape[1]}; an image size makes them equal."
                )
            if colour and array.ndim == 2:
                array = np.repeat(array[..., None], 3, -1)
            shape = array.shape
            out.append(array.reshape(-1))
        parts[part] = np.stack(out), np.array([label for _, label in opened[part]], np.int32)
    assert shape is not None
    parts = complete(files.source, parts, wanted.seed, classes=True)
    check_classes(files.source, parts, names)
    count = sum(map(len, pictures.values()))
    notes = [f"{count} images of {shape[0]} x {shape[1]} pixels, {'RGB' if colour else 'grey'}."]
    if ignored:
        notes.append(f"Not read, for they are no images: {', '.join(map(str, ignored[:5]))}.")
    return Dataset(
        *in_order(parts), classes=len(names), shape=shape, names=names, notes=tuple(notes)
    )


def _by_class(
    files: Files,
) -> tuple[dict[str, dict[str, list[PurePosixPath]]], list[PurePosixPath]]:
    """Images by part and class, and files beside the folders."""
    tops = {name.parts[0] for name in files.folders}
    in_parts = any(part_of(top) == "train" for top in tops)
    deep = 2 if in_parts else 1
    grouped: dict[str, dict[str, list[PurePosixPath]]] = {}
    ignored = []
    for folder in files.folders:
        part = part_of(folder.parts[0]) if in_parts else "train"
        if part is None:
            raise ValueError(
                f"{files.source}: the folder {folder.parts[0]} stands beside a folder of training "
                f"images; expected folders {', '.join(PARTS)}."
            )
        if len(folder.parts) > deep:
            raise ValueError(f"{files.source}: {folder} is a folder within a class.")
        if len(folder.parts) == deep:
            if folder.name in grouped.setdefault(part, {}):
                raise ValueError(f"{files.source}: two folders of {part} images of {folder.name}.")
            grouped[part][folder.name] = []
    for name in files.names:
        image = name.suffix.lower() in IMAGES
        if len(name.parts) <= deep and not image:
            ignored.append(name)
        elif len(name.parts) <= deep:
            raise ValueError(
                f"{files.source}: {name} is in no class; expected one folder of images per class."
            )
        elif not image:
            raise ValueError(f"{files.source}: {name} stands among images and is none.")
        else:
            part = part_of(name.parts[0]) if in_parts else "train"
            assert part is not None
            grouped[part][name.parts[-2]].append(name)
    for classes in grouped.values():
        for name, found in classes.items():
            if not found:
                raise ValueError(f"{files.source}: the class {name!r} has no images.")
    return grouped, ignored


def _open(files: Files, name: PurePosixPath, size: int | None) -> np.ndarray:
    """An image as bytes ``[height, width]`` or ``[height, width, 3]``."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError(_NEEDED) from None

    content = files.read(name)
    try:
        with warnings.catch_warnings():
            # Of images so large that they look like an attack, and of damaged metadata.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            image: Any = Image.open(io.BytesIO(content))
            image.load()
            image = ImageOps.exif_transpose(image)
    # Pillow's readers raise whatever damaged bytes lead to.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is no image that Pillow knows"
        raise ValueError(f"{files.label(name)}: cannot be read: {reason}.") from None
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{files.label(name)}: has more than 8 bits per pixel ({image.mode}); save it with 8."
        )
    image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)
