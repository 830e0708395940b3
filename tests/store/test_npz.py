"""Arrays from ``.npz`` files, and one clear answer to every other file."""

import gzip

import numpy as np
import pytest

from klprojax._store import read_npz


def test_arrays_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.arange(3), other=np.zeros(2))
    arrays, found = read_npz(tmp_path / "a.npz", ("train", "test"))
    assert sorted(found) == ["other", "train"]
    assert list(arrays) == ["train"]
    np.testing.assert_array_equal(arrays["train"], [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n0,1\n", r"text that begins 'a,b'. Convert a table with np\.savez\("),
        (b"\xef\xbb\xbfa;b\r\n0;1\r\n", r"text that begins 'a;b'"),
        (b"", "an empty file"),
        (b"\x80\x04\x95pickled", "another kind of file"),
        (gzip.compress(b"0 1", mtime=0), "gzip-compressed data: unpack it first"),
        (b"PK\x03\x04 cut off", "damaged: File is not a zip file"),
        (None, "no such file"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"x\.npz: (not an \.npz file of numbers: )?{message}"
    ) as e:
        read_npz(path, ("train",))
    # Loading pickled data runs whatever code is in it.
    assert "pickle" not in str(e.value)


def test_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", train=np.array(["a", None], object))
    with pytest.raises(ValueError, match="train holds Python objects") as error:
        read_npz(tmp_path / "x.npz", ("train",))
    assert "pickle" not in str(error.value)
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(ValueError, match=r"a single array without a name; np\.savez"):
        read_npz(tmp_path / "x.npy", ("train",))
    with pytest.raises(ValueError, match="directory"):
        read_npz(tmp_path, ("train",))
