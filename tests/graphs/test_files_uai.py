"""UAI model files: axis order, round trips, and every way to be wrong."""

import gzip
import math
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax.graphs._files import ModelFileError, load_model, read_model, read_uai, write_uai
from klprojax.graphs._model import DiscreteModel

# two variables of 2 and 3 states; the LAST variable of a scope runs fastest
SMALL = """MARKOV
3
2 3 2
4
2 0 1
2 1 0
0
1 1

6
1 2 3
4 5 6
6
.1 .2   .3 4e-1
5E-1 0
1
2.5
3
0 1e-400 1e400
"""


def write(tmp_path, text, name="model.uai"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_axis_order(tmp_path):
    model = read_uai(write(tmp_path, SMALL))
    assert model.cardinalities == (2, 3, 2)
    assert model.scopes == ((0, 1), (1, 0), (), (1,))
    assert model.kind == "MARKOV"
    assert model.name == "model"
    assert model.variable_names == ("0", "1", "2")
    first, second, constant, third = model.log_tables
    np.testing.assert_array_equal(first, np.log([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert second.shape == (3, 2)
    assert second[2, 0] == np.log(0.5)
    assert second[2, 1] == -np.inf
    assert constant.shape == ()
    assert constant == np.log(2.5)
    # numbers out of the range of float64 keep their logarithm; 1 ulp of 921 is 1.1e-13
    np.testing.assert_allclose(third[1:], [-400 * math.log(10), 400 * math.log(10)], atol=2.3e-13)
    assert third[0] == -np.inf


@st.composite
def models(draw):
    cardinalities = draw(st.lists(st.integers(1, 4), max_size=5))
    indices = st.integers(0, max(len(cardinalities) - 1, 0))
    size = min(len(cardinalities), 3)
    scopes = draw(st.lists(st.lists(indices, unique=True, max_size=size), max_size=5))
    entries = st.floats(-2000.0, 2000.0) | st.just(-math.inf)
    tables = []
    for scope in scopes:
        shape = tuple(cardinalities[v] for v in scope)
        count = math.prod(shape)
        flat = draw(st.lists(entries, min_size=count, max_size=count))
        tables.append(np.array(flat).reshape(shape))
    return {
        "cardinalities": tuple(cardinalities),
        "scopes": tuple(map(tuple, scopes)),
        "log_tables": tuple(tables),
        "kind": draw(st.sampled_from(["BAYES", "MARKOV"])),
    }


def assert_same_tables(got, expected):
    for left, right in zip(got, expected, strict=True):
        assert left.shape == right.shape
        np.testing.assert_array_equal(left == -np.inf, right == -np.inf)
        finite = right > -np.inf
        # exp, decimal digits and log each round once, relative to a value of size |log|; the
        # exponent of numbers out of range adds a rounding of |log| / ln 10 and of its product
        bound = 4 * np.finfo(np.float64).eps * np.maximum(1.0, np.abs(right[finite]))
        assert (np.abs(left[finite] - right[finite]) <= bound).all()


@given(parts=models(), name=st.sampled_from(["m.uai", "m.uai.gz"]))
def test_round_trip(tmp_path, parts, name):
    model = DiscreteModel(**parts)
    path = tmp_path / name
    write_uai(path, model)
    back = read_model(path)
    assert back.cardinalities == model.cardinalities
    assert back.scopes == model.scopes
    assert back.kind == model.kind
    assert_same_tables(back.log_tables, model.log_tables)


def test_files_of_many_blocks(tmp_path):
    # more tokens than one block of the tokenizer, and tables across blocks and batches
    rng = np.random.default_rng(0)
    tables = tuple(rng.normal(size=(17, 1 + i)) for i in range(400))
    model = DiscreteModel(
        cardinalities=(17, *(1 + i for i in range(400))),
        scopes=tuple((0, 1 + i) for i in range(400)),
        log_tables=tables,
    )
    path = tmp_path / "big.uai"
    write_uai(path, model)
    assert path.stat().st_size > 20 * 2**20
    assert_same_tables(read_uai(path).log_tables, tables)
    # line numbers hold far inside the file
    lines = path.read_bytes().split(b"\n")
    lines[3000] = lines[3000].replace(b" ", b" x", 1)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ModelFileError, match=r"big.uai:3001: expected a number, got 'x"):
        read_uai(path)


def test_writing_is_reproducible_and_whole(tmp_path):
    model = read_uai(write(tmp_path, SMALL))
    write_uai(tmp_path / "a.uai.gz", model)
    write_uai(tmp_path / "b.uai.gz", model)
    assert (tmp_path / "a.uai.gz").read_bytes() == (tmp_path / "b.uai.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.uai.gz", "b.uai.gz", "model.uai"]
    with pytest.raises(FileNotFoundError):
        write_uai(tmp_path / "none" / "a.uai", model)


SIZE = "a wrong length"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("MARKOV", "MARKOW", ":1: expected BAYES or MARKOV, got 'MARKOW'"),
        ("MARKOV\n3", "MARKOV\nx", ":2: expected an integer >= 0: the number of var.*got 'x'"),
        ("2 3 2", "2 0 2", ":3: expected at least 1 state, got '0'"),
        ("2 3 2", "2 3_0 2", ":3: expected an integer >= 0: the card.* got '3_0'"),
        ("2 3 2", "2 -3 2", ":3: expected an integer >= 0: the card.* got '-3'"),
        ("\n4\n", "\n4000\n", ":4: expected a number of factors that fits the 29 tokens"),
        ("2 0 1", "2 0 3", ":5: expected a variable from 0 to 2 in the scope of factor 0, got '3'"),
        ("2 0 1", "2 1 1", ":5: expected distinct variables in the scope of factor 0, got '1'"),
        ("2 0 1", "4 0 1", ":5: expected at most 3 variables in the scope of factor 0, got '4'"),
        (
            "6\n1 2 3",
            "5\n1 2 3",
            f":10: expected the number of .* 6 by the card.* got '5' .*{SIZE}",
        ),
        ("1 2 3", "1 2 3 7 8", f":12: expected the number of entries of factor 1, .*{SIZE}"),
        ("1 2 3", "1 nan 3", ":11: expected a number >= 0, got 'nan'"),
        ("1 2 3", "1 -2 3", ":11: expected a number >= 0, got '-2'"),
        ("1 2 3", "1 inf 3", ":11: expected a finite number >= 0, got 'inf'"),
        ("1 2 3", "1 two 3", ":11: expected a number, got 'two'"),
        ("1 2 3", "1 2_0 3", ":11: expected a number, got '2_0'"),
        ("1 2 3", "1 ٣ 3", r":11: expected a number, got '\\\\u0663'"),
        ("1e400", "1e9999999999999", ":19: expected a finite number >= 0, got '1e99999"),
        ("1e-400", "-1e-400", ":19: expected a finite number >= 0, got '-1e-400'"),
        ("5E-1 0", "5E-1 -1", ":15: expected a number >= 0, got '-1'"),
        (" 1e400\n", "\n", r":19: expected 3 token\(s\): the entries of factor 3, got the end"),
        (" 1e400\n", " 1e400\n\n8 9\n", r":21: expected the end of the file after 35 .*got '8'"),
    ],
)
def test_errors(tmp_path, old, new, match):
    assert SMALL.count(old) == 1
    path = write(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ModelFileError, match=match) as caught:
        read_uai(path)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"{path}:{caught.value.line}: expected ")


def test_minus_zero_and_long_zeros_are_zero(tmp_path):
    path = write(tmp_path, "MARKOV 1 4 1 1 0 4  -0 0e5 +0.000 -0e-3")
    assert (read_uai(path).log_tables[0] == -np.inf).all()


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(ModelFileError, match="expected a file, got no such file") as caught:
        read_uai(tmp_path / "none.uai")
    assert caught.value.line is None
    (tmp_path / "folder.uai").mkdir()
    with pytest.raises(ModelFileError, match="expected a regular file"):
        read_uai(tmp_path / "folder.uai")
    with pytest.raises(ModelFileError, match="expected the path of a file"):
        read_uai("nul\0.uai")
    with pytest.raises(ModelFileError, match="expected a readable file"):
        read_uai(tmp_path / ("long" * 200 + ".uai"))
    with pytest.raises(ModelFileError, match=r"expected a file that ends in .uai.*got '.xml'"):
        read_model(tmp_path / "model.xml")
    with pytest.raises(ModelFileError, match=r": the kind of model, BAYES or MARKOV, got its end"):
        read_uai(write(tmp_path, ""))


def test_pipes_are_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.uai")
    with pytest.raises(ModelFileError, match="a folder, pipe or device"):
        read_uai(tmp_path / "pipe.uai")


def test_compressed_files(tmp_path):
    packed = gzip.compress(SMALL.encode())
    assert read_model(write(tmp_path, packed, "m.uai.gz")).cardinalities == (2, 3, 2)
    with pytest.raises(ModelFileError, match="expected gzip-compressed data"):
        read_model(write(tmp_path, SMALL, "m.uai.gz"))
    with pytest.raises(ModelFileError, match="expected gzip-compressed data"):
        read_model(write(tmp_path, packed[:-12], "m.uai.gz"))
    with pytest.raises(ModelFileError, match="expected gzip-compressed data"):
        read_model(write(tmp_path, packed[:30] + b"abc" + packed[33:], "m.uai.gz"))
    with pytest.raises(ModelFileError, match="expected plain text, got gzip-compressed data"):
        read_model(write(tmp_path, packed, "m.uai"))
    for name in ("m.uai", "m.uai.gz"):
        text = packed if name.endswith("gz") else SMALL
        with pytest.raises(ModelFileError, match="expected at most 50 bytes of text"):
            read_model(write(tmp_path, text, name), max_bytes=50)


def test_errors_travel_between_processes():
    error = ModelFileError("a.uai", 3, "this", "that", "do so")
    back = pickle.loads(pickle.dumps(error))
    assert (back.path, back.line, str(back)) == (error.path, error.line, str(error))
    assert str(error) == "a.uai:3: expected this, got that (do so)"


# As pyAgrum writes it, with a name behind each scope.
REMARKS = """BAYES
2
2 3
2
1 0   # größe
2 0 1   # b

# tables
2
  0.25 0.75

6
  0.5 0.25 0.25#7 8
  0.125 0.125 0.75
"""


@pytest.mark.parametrize(
    "text",
    [
        REMARKS,
        REMARKS.encode("latin-1"),  # what is no UTF-8 in remarks does no harm
        b"\xef\xbb\xbf" + REMARKS.encode(),
        REMARKS.replace("\n", "\r\n"),
        REMARKS.replace("\n", "\r"),
        REMARKS.replace("BAYES", "bayes"),
        "# a remark first\n" + REMARKS.replace("BAYES", "Bayes"),
    ],
    ids=range(7),
)
def test_remarks_marks_and_case_do_not_matter(tmp_path, text):
    model = read_uai(write(tmp_path, text))
    assert (model.kind, model.cardinalities, model.scopes) == ("BAYES", (2, 3), ((0,), (0, 1)))
    np.testing.assert_array_equal(model.log_tables[0], np.log([0.25, 0.75]))
    expected = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    np.testing.assert_array_equal(model.log_tables[1], expected)
    assert read_uai(write(tmp_path, "markov 1 2 0")).kind == "MARKOV"


def test_remarks_keep_the_numbers_of_lines(tmp_path):
    path = write(
        tmp_path, REMARKS.replace("0.75\n\n6", "0.75\n# x\n6").replace("0.125 0.75", "x 1")
    )
    with pytest.raises(ModelFileError, match=r":14: expected a number, got 'x'"):
        read_uai(path)


def test_other_encodings_are_named(tmp_path):
    path = write(tmp_path, REMARKS.encode("utf-16"))
    with pytest.raises(ModelFileError, match=":1: expected BAYES or MARKOV"):
        read_uai(path)
    for read in (read_uai, read_model, load_model):
        assert read(path, encoding="utf-16").cardinalities == (2, 3)
        with pytest.raises(ModelFileError, match=r"expected ascii text, got .*codec can't decode"):
            read(path, encoding="ascii")
        for name in ("klingon", "rot13"):
            with pytest.raises(ValueError, match=f"encoding is '{name}'; expected one that Python"):
                read(path, encoding=name)
    with pytest.raises(ValueError, match="repair is 'uniform', but only BIF files are mended"):
        load_model(path, repair="uniform")
