"""Folders and archives of images."""

import builtins
import io
import shutil
import zipfile

import numpy as np
import pytest

from klprojax.fitting import load_dataset

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def picture(number, shape=(4, 5, 3)):
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def encoded(array, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Eight images of each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(8):
            path = tmp_path / "data" / name / f"{n}.png"
            path.write_bytes(encoded(picture(10 * label + n)))
    return tmp_path / "data"


def test_images_by_class(folder):
    data = load_dataset(folder, dtype="float64")
    assert (data.task, data.names, data.shape) == ("classification", ("cat", "dog"), (4, 5, 3))
    x, y = (np.concatenate([part[k] for part in data[:3]]) for k in (0, 1))
    assert [len(y) for _, y in data[:3]] == [11, 2, 3]  # fifths of 16 and of 13
    for row, label in zip(x, y, strict=True):
        known = [np.array_equal(row, picture(10 * label + n).reshape(-1) / 255) for n in range(8)]
        assert sum(known) == 1
    (folder / "readme.md").write_text("words")
    (folder / ".hidden").write_text("words")
    again = load_dataset(folder, dtype="float64")
    np.testing.assert_array_equal(again.train[0], data.train[0])
    assert "no images: readme.md." in again.notes[-1]


def test_parts_archives_and_grey_images(folder, tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, numbers in (("train", range(6)), ("val", (6,)), ("test", (7,))):
            for name in ("cat", "dog"):
                for n in numbers:
                    grey = encoded(picture(n, (3, 3)))
                    archive.writestr(f"images/{part}/{name}/{n}.png", grey)
    data = load_dataset(path)
    assert data.shape == (3, 3)
    assert [len(y) for _, y in data[:3]] == [12, 2, 2]
    np.testing.assert_array_equal(data.test[0][0], np.float32(picture(7, (3, 3)) / 255).reshape(-1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images/test/dog/8.png", encoded(picture(8, (3, 3, 3))))
    data = load_dataset(path, dtype="float64")
    assert data.shape == (3, 3, 3)
    row = data.train[0][0].reshape(3, 3, 3)
    np.testing.assert_array_equal(row[..., 0], row[..., 1])


def test_images_of_several_sizes(folder):
    (folder / "dog" / "9.png").write_bytes(encoded(picture(0, (6, 5, 3))))
    with pytest.raises(ValueError, match=r"dog/9\.png: has 6 x 5 pixels, images before it 4 x 5"):
        load_dataset(folder)
    assert load_dataset(folder, image_size=4).shape == (4, 4, 3)


def empty_class(folder):
    (folder / "emu").mkdir()


def broken(content, name="dog/9.png"):
    return lambda folder: (folder / name).write_bytes(content)


WHOLE = encoded(picture(0))
BOMB = (
    WHOLE[:16] + (60_000).to_bytes(4, "big") * 2 + WHOLE[24:]
)  # the width and height that the header says


def one_class(folder):
    shutil.rmtree(folder / "dog")
    # Or the folder of the one class would be taken for one around everything.
    (folder / "readme.md").write_text("words")


def only_in_test(folder):
    inside = folder / "train"
    inside.mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(inside / name)
    shutil.copytree(inside / "dog", folder / "test" / "emu")


def beside_parts(folder):
    shutil.copytree(folder, folder / "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty_class, "the class 'emu' has no images"),
        (broken(b""), r"dog/9\.png: cannot be read: it is no image that Pillow knows"),
        (broken(b"no picture"), r"dog/9\.png: cannot be read: it is no image that Pillow knows"),
        (broken(WHOLE[:60]), r"dog/9\.png: cannot be read"),
        (broken(WHOLE[:41] + b"\0\1\2\3" + WHOLE[45:]), r"dog/9\.png: cannot be read"),
        (broken(BOMB), r"dog/9\.png: cannot be read"),
        (broken(encoded(np.zeros((4, 5), np.uint16))), "has more than 8 bits per pixel"),
        (broken(b"words", "dog/notes.doc"), r"dog/notes\.doc stands among images and is none"),
        (broken(WHOLE, "9.png"), r"9\.png is in no class; expected one folder of images per class"),
        (one_class, "all rows are of one class, 'cat'"),
        (only_in_test, "the class 'emu' of the test rows has no training rows"),
        (beside_parts, "the folder cat stands beside a folder of training images"),
        (lambda folder: (folder / "dog" / "young").mkdir(), "dog/young is a folder within a class"),
    ],
)
def test_broken_folders_end_in_one_clear_error(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_without_pillow_the_package_is_named(folder, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"Images need Pillow: pip install pillow\.$"):
        load_dataset(folder)


def test_damaged_bytes_are_read_or_refused(folder):
    rng = np.random.default_rng(0)
    path = folder / "dog" / "9.jpg"
    whole, read, refused = np.frombuffer(encoded(picture(0), "JPEG"), np.uint8), 0, 0
    for _ in range(40):
        content = whole.copy()
        content[rng.integers(len(whole), size=6)] = rng.integers(0, 256, 6, np.uint8)
        path.write_bytes(content.tobytes()[: int(rng.integers(len(whole) // 2, len(whole) + 1))])
        try:
            read += load_dataset(folder).classes == 2
        except ValueError as error:
            refused += "9.jpg" in str(error)
    assert refused > 0
    assert read + refused == 40
