"""Parity-check matrices in alist format: what is read, what is refused, damaged files."""

import gzip
import random

import numpy as np
import pytest

from klprojax.graphs import ModelFileError, ParityCheckMatrix, read_alist, write_alist

from ._mutations import mutants

# two columns in two rows; the lists of the second column and of the first row are shorter
PLAIN = """# a comment
3 2
2 3
2 1 1
2 2
1 2
1
2

1 2
1 3
"""
PADDED = PLAIN.replace("\n1\n2\n\n1 2\n1 3\n", "\n1 0\n2 0\n1 2 0\n1 3 0\n")


def write(tmp_path, text, name="code.alist"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [PLAIN, PADDED])
def test_lists_with_and_without_padding(tmp_path, text):
    matrix = read_alist(write(tmp_path, text))
    assert matrix == ParityCheckMatrix(3, ((0, 1), (0, 2)))
    np.testing.assert_array_equal(matrix.to_dense(), [[1, 1, 0], [1, 0, 1]])
    assert ParityCheckMatrix.from_dense(matrix.to_dense()) == matrix
    assert matrix.num_checks == 2


def test_the_order_of_a_list_is_kept(tmp_path):
    matrix = ParityCheckMatrix(4, ((3, 0, 2), (1,), ()))
    for name in ("a.alist", "a.alist.gz"):
        write_alist(tmp_path / name, matrix)
        assert read_alist(tmp_path / name) == matrix
    assert gzip.decompress((tmp_path / "a.alist.gz").read_bytes()).startswith(b"4 3\n1 3\n")


def test_empty_matrices(tmp_path):
    for matrix in (ParityCheckMatrix(2, ()), ParityCheckMatrix(0, ()), ParityCheckMatrix(1, ((),))):
        write_alist(tmp_path / "empty.alist", matrix)
        assert read_alist(tmp_path / "empty.alist") == matrix


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("3 2\n", "x 2\n", ":2: expected an integer >= 0: the numbers of variables and checks"),
        ("3 2\n", "300 2\n", ":2: expected numbers of variables and checks that fit the"),
        ("2 1 1\n", "3 1 1\n", ":4: expected a degree of at most 2 for variable 1, got '3'"),
        ("2 1 1\n", "2 1 2\n", ":5: expected degrees of the checks that add up to 5"),
        ("1 2\n1\n2\n", "1 2\n1\n", r":\d+: expected 8 tokens in the lists, or 12 padded"),
        ("1 2\n1\n2\n", "1 3\n1\n2\n", ":6: expected a number from 1 to 2 in the list of var"),
        ("1 2\n1\n2\n", "1 1\n1\n2\n", ":6: expected distinct numbers in the list of variable 1"),
        ("1 2\n1\n2\n", "1 -2\n1\n2\n", ":6: expected an integer >= 0: the lists of the var"),
        ("1 2\n1 3\n", "1 2\n1 2\n", ":11: expected check 2 to list variables that list it"),
        ("1 2\n1 3\n", "1 2\n1 0\n", ":11: expected a number from 1 to 3 in the list of check 2"),
        ("1 2\n1 3\n", "1 2\n1 3 4\n", ":11: expected 8 tokens in the lists"),
    ],
)
def test_errors(tmp_path, old, new, match):
    assert PLAIN.count(old) == 1
    with pytest.raises(ModelFileError, match=match):
        read_alist(write(tmp_path, PLAIN.replace(old, new)))


def test_padding_must_be_zero(tmp_path):
    with pytest.raises(ModelFileError, match=":7: expected the padding 0 after the list of var"):
        read_alist(write(tmp_path, PADDED.replace("\n1 0\n2 0\n", "\n1 2\n2 0\n")))


def test_limit_on_the_size(tmp_path):
    with pytest.raises(ModelFileError, match="at most 10 bytes of text"):
        read_alist(write(tmp_path, PLAIN), max_bytes=10)


@pytest.mark.parametrize("text", [PLAIN, PADDED])
def test_mutants(tmp_path, text):
    outcomes = set()
    for _kind, mutant in mutants(text.encode(), 400, seed=len(text)):
        path = tmp_path / "mutant.alist"
        path.write_bytes(mutant)
        try:
            read_alist(path)
            outcomes.add("matrix")
        except ModelFileError as error:
            outcomes.add("error")
            message = str(error)
            assert len(message) < 1000
            assert message.isprintable()
            assert ": expected " in message
    assert outcomes == {"matrix", "error"}


def test_random_matrices_survive_a_round_trip(tmp_path):
    rng = random.Random(0)
    for _ in range(20):
        variables = rng.randrange(1, 9)
        scopes = tuple(
            tuple(rng.sample(range(variables), rng.randrange(variables + 1)))
            for _ in range(rng.randrange(6))
        )
        matrix = ParityCheckMatrix(variables, scopes)
        write_alist(tmp_path / "code.alist", matrix)
        assert read_alist(tmp_path / "code.alist") == matrix


def test_reference_codes(data_dir):
    sizes = {
        "DEBUG_6_3": (3, 6, 8),
        "CCSDS_64_128": (64, 128, 512),
        "WRAN_360_480": (120, 480, 1700),
        "MACKAY_504_1008": (504, 1008, 3024),
        "10GBPS-ETHERNET_1723_2048": (384, 2048, 12288),
    }
    for name, (checks, variables, ones) in sizes.items():
        dense = read_alist(data_dir / "ldpc" / "alist" / f"{name}.alist").to_dense()
        assert dense.shape == (checks, variables)
        assert dense.sum() == ones


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ParityCheckMatrix(-1, ()), "num_variables is -1"),
        (lambda: ParityCheckMatrix(2, ((0, 0),)), r"Check 0 names a variable twice: \(0, 0\)"),
        (lambda: ParityCheckMatrix(2, ((0,), (0, 2))), r"Check 1 names variables \(0, 2\)"),
        (lambda: ParityCheckMatrix.from_dense([1, 0]), r"shape \(2,\); expected \[checks, var"),
        (lambda: ParityCheckMatrix.from_dense([[1, 2]]), "Got an entry .*2.*; a parity-check"),
    ],
)
def test_matrix_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path, end):
    path = tmp_path / "code.alist"
    path.write_bytes(b"\xef\xbb\xbf" + PLAIN.replace("\n", end).encode())
    assert read_alist(path) == ParityCheckMatrix(3, ((0, 1), (0, 2)))
