"""libDAI factor graphs: the first variable runs fastest, and zeros are left out."""

import numpy as np
import pytest

from klprojax.graphs._files import ModelFileError, read_fg, read_model

SMALL = """# a comment
3

2
7 2   # labels need not be contiguous
2 3
5
0 1
1 2
2 3
3 4
5 6

1
2
3
0

0


1
0 2.5
"""


def write(tmp_path, text, name="model.fg"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_first_variable_runs_fastest(tmp_path):
    model = read_model(write(tmp_path, SMALL))
    assert model.variable_names == ("2", "7")
    assert model.cardinalities == (3, 2)
    assert model.scopes == ((1, 0), (0,), ())
    assert model.kind == "MARKOV"
    with np.errstate(divide="ignore"):
        # entry i has state i % 2 of variable 7 and state i // 2 of variable 2; 4 is left out
        expected = np.log([[1.0, 3.0, 0.0], [2.0, 4.0, 6.0]])
    np.testing.assert_array_equal(model.log_tables[0], expected)
    np.testing.assert_array_equal(model.log_tables[1], [-np.inf] * 3)
    assert model.log_tables[2] == np.log(2.5)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("3\n\n2\n7", "x\n\n2\n7", ":2: expected an integer >= 0: the number of factors, got 'x'"),
        ("3\n\n2\n7", "30\n\n2\n7", ":2: expected a number of factors that fits the"),
        ("3\n\n2\n7", "2\n\n2\n7", ":19: expected the end of the file after .* got '0'"),
        ("3\n\n2\n7", "3\n\n65\n7", ":4: expected at most 64 variables in factor 0, got '65'"),
        ("7 2 ", "7 7 ", ":5: expected distinct variables in factor 0, got '7'"),
        ("7 2 ", "7 -2 ", ":5: expected an integer >= 0: the variables of factor 0, got '-2'"),
        ("2 3\n5", "2 0\n5", ":6: expected at least 1 state, got '0'"),
        ("2\n3\n0", "2\n4\n0", ":16: expected 3 states of variable 2, as before, got '4'"),
        ("5\n0 1", "7\n0 1", ":7: expected at most 6 listed entries of factor 0, got '7'"),
        ("5 6\n", "6 6\n", ":12: expected an entry index from 0 to 5 in factor 0, got '6'"),
        ("5 6\n", "0 6\n", ":12: expected distinct entry indices in factor 0, got '0'"),
        ("5 6\n", "x 6\n", ":12: expected an entry index of factor 0, .* got 'x'"),
        ("5 6\n", "5 -6\n", ":12: expected a number >= 0, got '-6'"),
        ("5 6\n", "5 nan\n", ":12: expected a number >= 0, got 'nan'"),
        ("0 2.5\n", "0\n", r":23: expected 2 token\(s\): the 1 \(index, value\) entries"),
    ],
)
def test_errors(tmp_path, old, new, match):
    assert SMALL.count(old) == 1
    with pytest.raises(ModelFileError, match=match):
        read_fg(write(tmp_path, SMALL.replace(old, new)))


def test_labels_have_a_limit(tmp_path):
    with pytest.raises(ModelFileError, match="an integer below 10"):
        read_fg(write(tmp_path, "1\n\n1\n9999999999999999999\n2\n0\n"))
    huge = "1\n\n1\n999999999999999999\n2\n0\n"
    assert read_fg(write(tmp_path, huge)).cardinalities == (2,)


def test_zeros_left_out_have_a_limit(tmp_path):
    text = "2\n\n2\n0 1\n100 100\n0\n\n1\n0\n100\n0\n"
    assert len(read_fg(write(tmp_path, text), max_entries=10_100).scopes) == 2
    with pytest.raises(ModelFileError, match=":10: expected at most 99 table entries left"):
        read_fg(write(tmp_path, text), max_entries=10_099)


def test_a_byte_order_mark_and_remarks_do_not_matter(tmp_path):
    path = tmp_path / "m.fg"
    text = "1 # factor\r\r1\r0 # variable\r2\r1\r1 3\r"
    for encoding, name in (("utf-8-sig", None), ("utf-16", "utf-16")):
        path.write_bytes(text.encode(encoding))
        model = read_fg(path, encoding=name)
        np.testing.assert_array_equal(model.log_tables[0], [-np.inf, np.log(3.0)])
        assert read_model(path, encoding=name).cardinalities == (2,)
