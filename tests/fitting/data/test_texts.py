"""Text for models of the next character."""

import numpy as np
import pytest

from klprojax.fitting import load_dataset


def test_windows_and_their_next_characters(tmp_path):
    text = "".join(chr(97 + n * n % 7) for n in range(99)) + "é"
    path = tmp_path / "data.txt"
    path.write_text(text, encoding="utf-8-sig")
    data = load_dataset(path, window=4)
    assert (data.task, data.shape, data.classes) == ("text", (4,), len(set(text)))
    assert data.names == tuple(sorted(set(text)))
    # Contiguous: 64, 16 and 20 characters, each with one more than its windows hold.
    start = 0
    for (x, y), length in zip(data[:3], (64, 16, 20), strict=True):
        piece = text[start : start + length]
        assert x.dtype == y.dtype == np.int32
        for rows, shift in ((x, 0), (y, 1)):
            found = "".join(data.names[c] for c in rows.reshape(-1))
            assert found == piece[shift : shift + len(x) * 4]
        assert len(x) == (length - 1) // 4
        start += length
    assert load_dataset(path, window=4, dtype="float64").train[0].dtype == np.int32


def test_texts_by_parts(tmp_path):
    for name, text in (("train", "abcabcabc"), ("valid", "abab"), ("test", "cbaz")):
        (tmp_path / f"{name}.txt").write_text(text)
    data = load_dataset(tmp_path, window=3)
    assert [len(x) for x, _ in data[:3]] == [2, 1, 1]
    assert data.names == ("a", "b", "c", "z")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "an empty file"),
        (b"  \n ", {}, "an empty file"),
        (b"aaaaaaaaaa" * 99, {}, "one character, 'a'"),
        (b"ab" * 99, {}, "39 characters are too few for test rows of 64"),
        (b"ab\xff" * 99, {}, "not UTF-8 text: the byte 0xff in line 1"),
        (b"ab\0" * 99, {}, "holds characters of number 0"),
        (b"ab" * 99, {"target": "y"}, "target is for a table; this is text"),
        (b"ab" * 999, {"standardise": True}, "standardise is for numbers"),
    ],
)
def test_broken_texts_end_in_one_clear_error(tmp_path, content, options, message):
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_dataset(path, **options)
