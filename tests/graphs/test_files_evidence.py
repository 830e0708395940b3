"""Evidence files in both UAI layouts and as JSON."""

import gzip
import json

import numpy as np
import pytest

from klprojax.graphs._files import ModelFileError, read_evidence, write_uai_evidence
from klprojax.graphs._model import DiscreteModel

MODEL = DiscreteModel(
    cardinalities=(2, 3, 2),
    scopes=(),
    log_tables=(),
    variable_names=("rain", "wind", "größe"),
    state_names=(("yes", "no"), ("low", "mid", "high"), ("0", "1")),
)


def write(tmp_path, text, name="seen.evid"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("\ufeff \n# nothing was seen\n", {}),
        ("\ufeff1 # sample\r# remark: 7\r\n1 1 2", {1: 2}),
        ("0", {}),
        ("0\n\n", {}),
        ("1\n0\n", {}),
        ("1 1 2", {1: 2}),
        ("1\n1 1 2\n", {1: 2}),
        ("2 2 0 0 1", {2: 0, 0: 1}),
        ("1\n2 2 0 0 1", {2: 0, 0: 1}),
        ("3\n2 0\n0 1\n1 1", {2: 0, 0: 1, 1: 1}),
        ('{"rain": "no", "wind": 2}', {0: 1, 1: 2}),
        ('\n {"gr\\u00f6\\u00dfe": "1"}', {2: 1}),
        ('{"größe": 0}', {2: 0}),
        ("{}", {}),
    ],
)
def test_layouts(tmp_path, text, expected):
    assert read_evidence(write(tmp_path, text), MODEL) == expected
    packed = write(tmp_path, gzip.compress(text.encode()), "seen.evid.gz")
    assert read_evidence(packed, MODEL) == expected


def test_round_trip(tmp_path):
    for evidence in ({}, {2: 1}, {1: 2, 0: 0}):
        for name in ("seen.evid", "seen.evid.gz"):
            write_uai_evidence(tmp_path / name, evidence)
            assert read_evidence(tmp_path / name, MODEL) == evidence
    with pytest.raises(ValueError, match="indices >= 0, got 0: -1"):
        write_uai_evidence(tmp_path / "seen.evid", {0: -1})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x", ":1: expected an integer >= 0: the number of observed variables, got 'x'"),
        ("2\n0 1", r":1: expected 2 \(variable, state\) pairs, got 1"),
        ("1\n0 1\n1 0", ":3: expected the end of the file after 3 tokens, got '1'"),
        ("2\n1 0 1", ":1: expected 4 numbers after the 2 promised, or 1 sample, got 3"),
        ("1\n2 0 1", r":2: expected 2 \(variable, state\) pairs, got 1"),
        ("1\n1\n3 0", ":3: expected a variable from 0 to 2, got '3'"),
        ("2\n0 0\n1 3", ":3: expected a state of variable 1 from 0 to 2, got '3'"),
        ("2\n0 0\n0 0", ":3: expected each variable once, got '0'"),
        ("2\n0 0\n1 -1", ":3: expected an integer >= 0: a variable and its state, got '-1'"),
        ('{"rain": "no",\n "wnd": 1}', r":2: expected a variable of the model, got 'wnd' \(Known"),
        ('{"rain":\n "maybe"}', r":1: expected a state of variable 'rain', got 'maybe' \(Known: "),
        ('{"rain": 2}', ":1: expected a state of variable 'rain', got '2'"),
        ('{"rain": 1,\n\n "rain": 0}', ":3: expected each variable once, got 'rain' twice"),
        (
            '{"rain": true}',
            "state name or index, or weights, for 'rain', got true or false",
        ),
        ('{"rain": 1.0}', "state name or index, or weights, for 'rain', got a fraction"),
        ('{"rain": null}', "state name or index, or weights, for 'rain', got null"),
        (
            '{"rain": {"a": 1}}',
            "state name or index, or weights, for 'rain', got an array or obj",
        ),
        ('{"rain": NaN}', "expected JSON, got 'NaN is no JSON'"),
        ('{"rain": ' + "9" * 5000 + "}", "expected JSON, got 'Exceeds the limit"),
        ('{"rain": 1\n,}', ":2: expected JSON, got .* at column 2"),
        ('{"rain": 1} x', ":1: expected JSON, got 'Extra data' at column 13"),
        ('{"a":' * 100_000, ":1: expected an object .*, got JSON nested too deeply"),
        ('{"\\ud800": 1}', r"expected a variable of the model, got '\\\\ud800'"),
        (b'{"rain":\n "\xff"}', ":2: expected UTF-8 text"),
    ],
)
def test_errors(tmp_path, text, match):
    with pytest.raises(ModelFileError, match=match):
        read_evidence(write(tmp_path, text), MODEL)


@pytest.mark.parametrize("text", ["[]", "3", '[{"rain": 1}]', '"rain"', "null"])
def test_json_must_be_an_object(tmp_path, text):
    with pytest.raises(ModelFileError, match=r"seen.json:1: expected an object .*, got a JSON "):
        read_evidence(write(tmp_path, text, "seen.json"), MODEL)


def test_json_is_read_by_content_not_only_by_name(tmp_path):
    text = json.dumps({"wind": "mid"})
    for name in ("a.json", "a.json.gz", "a.evid", "a"):
        data = gzip.compress(text.encode()) if name.endswith("gz") else text
        assert read_evidence(write(tmp_path, data, name), MODEL) == {1: 1}


def test_names_that_look_like_numbers_are_names(tmp_path):
    model = DiscreteModel((2, 2), (), (), variable_names=("1", "0"))
    assert read_evidence(write(tmp_path, '{"1": "0"}'), model) == {0: 0}
    assert read_evidence(write(tmp_path, "1 1 0"), model) == {1: 0}


def test_size_limit(tmp_path):
    path = write(tmp_path, "0" + "\n" * 100)
    with pytest.raises(ModelFileError, match="at most 50 bytes"):
        read_evidence(path, MODEL, max_bytes=50)


def test_written_numbers_may_be_numpy_integers(tmp_path):
    write_uai_evidence(tmp_path / "a.evid", {1: int(np.int64(2))})
    assert (tmp_path / "a.evid").read_text() == "1 1 2\n"


def test_evidence_in_another_encoding(tmp_path):
    path = write(tmp_path, '{"größe": 1}'.encode("latin-1"), "seen.json")
    assert read_evidence(path, MODEL, encoding="latin-1") == {2: 1}
    with pytest.raises(ModelFileError, match="expected ascii text"):
        read_evidence(path, MODEL, encoding="ascii")


def test_an_empty_json_file_is_none(tmp_path):
    with pytest.raises(ModelFileError, match="expected JSON"):
        read_evidence(write(tmp_path, "", "seen.json"), MODEL)
