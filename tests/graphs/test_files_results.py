"""UAI result files: marginals in linear space, the partition sum as log10."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klprojax.graphs._files import (
    ModelFileError,
    read_uai_mar,
    read_uai_mmap,
    read_uai_mpe,
    read_uai_pr,
    write_uai_mar,
    write_uai_mmap,
    write_uai_mpe,
    write_uai_pr,
)


def write(tmp_path, text, name="result"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_layout_of_marginals(tmp_path):
    marginals = [np.array([0.25, 0.75]), np.array([1.0]), np.array([0.1, 0.2, 0.7])]
    write_uai_mar(tmp_path / "a.MAR", marginals)
    text = (tmp_path / "a.MAR").read_text()
    assert text == "MAR\n3 2 0.25 0.75 1 1.0 3 0.1 0.2 0.7\n"


@given(
    marginals=st.lists(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), max_size=5),
    name=st.sampled_from(["a.MAR", "a.MAR.gz"]),
)
def test_marginals_round_trip_exactly(tmp_path, marginals, name):
    write_uai_mar(tmp_path / name, [np.array(m) for m in marginals])
    back = read_uai_mar(tmp_path / name)
    assert [m.tolist() for m in back] == marginals


@pytest.mark.parametrize(
    ("marginal", "match"),
    [
        (np.zeros((2, 2)), r"Marginal 0 must be a vector .* got shape \(2, 2\)"),
        (np.zeros(0), "Marginal 0 must be a vector"),
        (np.array([0.5, np.nan]), "Marginal 0 must hold probabilities"),
        (np.array([-0.5, 1.5]), "Marginal 0 must hold probabilities"),
        (np.array([np.inf]), "Marginal 0 must hold probabilities"),
    ],
)
def test_bad_marginals_are_not_written(tmp_path, marginal, match):
    with pytest.raises(ValueError, match=match):
        write_uai_mar(tmp_path / "a.MAR", [marginal])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("PR\n1", ":1: expected MAR, got 'PR'"),
        ("MAR\n5\n2 .5 .5", ":2: expected a number of variables that fits 3 tokens, got '5'"),
        ("MAR\n1\n0 1", ":3: expected at least 1 state, got '0'"),
        ("MAR\n1\n3 .5 .5", r":3: expected 3 token\(s\): the marginal of variable 0"),
        ("MAR\n1\n2 .5 -.5", ":3: expected a number >= 0, got '-.5'"),
        ("MAR\n1\n2 .5 x", ":3: expected a number, got 'x'"),
        ("MAR\n1\n2 1e999 0", ":3: expected a probability, got '1e999'"),
        ("MAR\n1\n2 .5 .5\n7", ":4: expected the end of the file after 5 tokens, got '7'"),
    ],
)
def test_errors_in_marginals(tmp_path, text, match):
    with pytest.raises(ModelFileError, match=match):
        read_uai_mar(write(tmp_path, text))


def test_the_file_holds_log10(tmp_path):
    write_uai_pr(tmp_path / "a.PR", math.log(1000.0))
    head, value = (tmp_path / "a.PR").read_text().split()
    assert head == "PR"
    # log(1000) is rounded to float64: relative error 1e-16
    assert abs(float(value) - 3.0) < 1e-15
    # six printed digits, as in the competition; exact up to rounding of one product
    expected = 97.4412776799 * math.log(10.0)
    assert abs(read_uai_pr(write(tmp_path, "PR\n97.4412776799\n")) - expected) < 1e-13


@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=-math.inf)
@example(value=5e-324)
@example(value=-1.7e308)
@example(value=0.0)
def test_partition_sums_round_trip_exactly(tmp_path, value):
    for name in ("a.PR", "a.PR.gz"):
        write_uai_pr(tmp_path / name, value)
        assert read_uai_pr(tmp_path / name) == value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_partition_sums_are_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="log_partition must be finite or -inf"):
        write_uai_pr(tmp_path / "a.PR", value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("MAR\n1", ":1: expected PR, got 'MAR'"),
        ("PR\n", r": log10 of the partition sum, got its end"),
        ("PR\nx", ":2: expected log10 of the partition sum, finite or -inf, got 'x'"),
        ("PR\n1_0", ":2: expected log10 of the partition sum, finite or -inf, got '1_0'"),
        ("PR\nnan", ":2: expected log10 of the partition sum, finite or -inf, got 'nan'"),
        ("PR\n1e999", ":2: expected log10 of the partition sum, finite or -inf, got '1e999'"),
        ("PR\n1\n2", ":3: expected the end of the file after 2 tokens, got '2'"),
    ],
)
def test_errors_in_partition_sums(tmp_path, text, match):
    with pytest.raises(ModelFileError, match=match):
        read_uai_pr(write(tmp_path, text))


def test_absurd_exponents_are_zero(tmp_path):
    assert read_uai_pr(write(tmp_path, "PR\n1e-99999999999999999999")) == 0.0


def test_remarks_marks_and_case_do_not_matter(tmp_path):
    marginals = read_uai_mar(write(tmp_path, "\ufeffmar # of asia\n1\n2 .25 .75 # x\n"))
    assert [m.tolist() for m in marginals] == [[0.25, 0.75]]
    assert read_uai_pr(write(tmp_path, "\ufeff# log10\nPr\n0 # exact\n")) == 0.0


@pytest.mark.parametrize("name", ["a.MPE", "a.MPE.gz"])
def test_best_states_round_trip(tmp_path, name):
    write_uai_mpe(tmp_path / name, np.array([0, 3, 1]))
    assert read_uai_mpe(tmp_path / name) == (0, 3, 1)
    write_uai_mmap(tmp_path / "a.MMAP", {4: 1, 0: 2})
    assert (tmp_path / "a.MMAP").read_text() == "MMAP\n2 4 1 0 2\n"
    assert read_uai_mmap(tmp_path / "a.MMAP") == {4: 1, 0: 2}
    with pytest.raises(ValueError, match=">= 0"):
        write_uai_mpe(tmp_path / name, [-1])


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_uai_mpe, "MAR\n1 0\n", "expected MPE"),
        (read_uai_mpe, "MPE\n9 0 1\n", "fits 2 tokens"),
        (read_uai_mpe, "MPE\n1 0 1\n", "fewer states"),
        (read_uai_mpe, "MPE\n1 x\n", "the state of each variable"),
        (read_uai_mmap, "MMAP\n2 0 1 0 1\n", "each variable once"),
        (read_uai_mmap, "MMAP\n1 0\n", "fits 1 tokens"),
    ],
)
def test_broken_files_of_best_states_are_told(tmp_path, reader, text, message):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ModelFileError, match=message):
        reader(tmp_path / "a")
