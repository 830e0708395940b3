"""Tables: what is made of their columns, and one clear error for each that is broken."""

import io
import zipfile

import numpy as np
import pytest

from klprojax.fitting import load_dataset

HEADER = "age,sex,score,kind"
ROWS = [
    f"{20 + n},{'fm'[n % 2]},{'' if n % 10 == 3 else n / 4},{('cat', 'dog', 'emu')[n % 3]}"
    for n in range(30)
]


def table(tmp_path, lines=(), name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes("\n".join(lines or (HEADER, *ROWS)).encode(encoding))
    return path


def test_columns_of_numbers_text_and_gaps(tmp_path):
    data = load_dataset(table(tmp_path), dtype="float64")
    assert data.task == "classification"
    assert data.names == ("cat", "dog", "emu")
    assert data.classes == 3
    assert data.features == ("age", "sex=f", "sex=m", "score", "score missing")
    assert data.shape == (5,)
    # A fifth of 30 rows less one per class, then of the rest.
    assert [len(y) for _, y in data[:3]] == [21, 4, 5]
    assert all((np.bincount(y, minlength=3) > 0).all() for _, y in data[:1])
    x, y = (np.concatenate([part[k] for part in data[:3]]) for k in (0, 1))
    train = data.train[0]
    known = train[:, 4] == 0
    # Roundings of 21 numbers of size 1.
    np.testing.assert_allclose(train[:, 0].mean(), 0, atol=1e-14)
    np.testing.assert_allclose(train[:, 0].std(), 1, rtol=1e-14)
    np.testing.assert_allclose(train[known, 3].mean(), 0, atol=1e-14)
    np.testing.assert_allclose(train[known, 3].std(), 1, rtol=1e-14)
    assert x[:, 4].sum() == 3
    assert not x[x[:, 4] == 1, 3].any()
    # Every row once, with its own label: ages order them.
    order = np.argsort(x[:, 0])
    np.testing.assert_array_equal(y[order], np.arange(30) % 3)
    np.testing.assert_array_equal(x[order][:, 1], np.arange(30) % 2 == 0)
    slope = np.diff(x[order][:, 0])
    np.testing.assert_allclose(slope, slope[0], rtol=1e-12)
    assert "'kind': 3 classes (cat, dog, emu)" in data.notes[0]
    assert any("score (3)" in note for note in data.notes)
    other = load_dataset(table(tmp_path), dtype="float64", seed=1)
    assert (other.train[0] != train).any()


def test_means_and_values_are_those_of_the_training_rows(tmp_path):
    for name, lines in {
        "train": ["a,b,y", *(f"{n},u,{n % 2}" for n in range(10))],
        "val": ["a,b,y", "100,w,1"],
        # In another order of columns.
        "test": ["b,y,a", "u,0,4.5", "v,1,NA"],
    }.items():
        table(tmp_path, lines, f"{name}.csv")
    data = load_dataset(tmp_path, dtype="float64")
    assert data.features == ("a", "a missing", "b=u")
    assert [len(y) for _, y in data[:3]] == [10, 1, 2]
    deviation = np.arange(10).std()
    np.testing.assert_allclose(data.validation[0], [[95.5 / deviation, 0, 0]], rtol=1e-14)
    np.testing.assert_array_equal(data.test[0], [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(data.test[1], [0, 1])


def test_regressions(tmp_path):
    lines = ["a;b;price", *(f"{n};{n % 3};{1000 + 7.5 * n}" for n in range(40))]
    path = table(tmp_path, lines)
    data = load_dataset(path, dtype="float64")
    assert (data.task, data.classes, data.names) == ("regression", 1, ("price",))
    mean, deviation = data.scale
    found = np.sort(np.concatenate([y for _, y in data[:3]]) * deviation + mean, axis=0)
    # Scaled and back: a rounding of numbers of size 1000 each.
    np.testing.assert_allclose(found[:, 0], 1000 + 7.5 * np.arange(40), rtol=1e-14)
    np.testing.assert_allclose(data.train[1].std(), 1, rtol=1e-13)
    two = load_dataset(path, target=["price", "a"], dtype="float64")
    assert two.train[1].shape[1] == two.classes == 2
    assert load_dataset(path, target="b").task == "classification"
    assert load_dataset(path, target="b", task="regression").task == "regression"
    assert load_dataset(path, drop="a").features == ("b",)
    with pytest.raises(ValueError, match="'a' has 40 different values"):
        load_dataset(path, target="a", task="classification")


@pytest.mark.parametrize("true", ["1", "True"])
def test_several_labels(tmp_path, true):
    false = "0" if true == "1" else "false"
    lines = [
        "x,red,big",
        *(f"{n},{true if n % 2 else false},{true if n % 3 else false}" for n in range(30)),
    ]
    data = load_dataset(table(tmp_path, lines), target=("red", "big"))
    assert (data.task, data.classes, data.names) == ("multi-label", 2, ("red", "big"))
    order = np.argsort(np.concatenate([x[:, 0] for x, _ in data[:3]]))
    y = np.concatenate([y for _, y in data[:3]])[order]
    np.testing.assert_array_equal(y, np.c_[np.arange(30) % 2 > 0, np.arange(30) % 3 > 0])


def test_one_hot_columns_are_classes(tmp_path):
    lines = ["x,a,b", *(f"{n},{n % 2},{1 - n % 2}" for n in range(30))]
    path = table(tmp_path, lines)
    data = load_dataset(path, target=["a", "b"])
    assert data.task == "classification"
    assert data.train[1].dtype == np.int32
    assert load_dataset(path, target=["a", "b"], task="multi-label").task == "multi-label"


def test_numbers_that_are_classes_go_by_their_value(tmp_path):
    lines = ["x,y", *(f"{n},{('10', '2', '2.0')[n % 3]}" for n in range(30))]
    data = load_dataset(table(tmp_path, lines))
    assert data.names == ("2", "10")


@pytest.mark.parametrize("change", ["bom", "quotes", "tabs", "blank lines", "crlf", "zip"])
def test_spellings_of_one_table(tmp_path, change):
    text = "\n".join((HEADER, *ROWS))
    path, wanted = tmp_path / "other.csv", load_dataset(table(tmp_path))
    if change == "bom":
        text = "\ufeff" + text
    elif change == "quotes":
        text = "\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in text.split("\n"))
    elif change == "tabs":
        path, text = tmp_path / "other.tsv", text.replace(",", "\t")
    elif change == "blank lines":
        text = "\n" + text.replace("\n", "\n\n") + "\n\n"
    elif change == "crlf":
        text = text.replace("\n", "\r\n")
    path.write_bytes(text.encode())
    if change == "zip":
        path = tmp_path / "other.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("export/data.csv", text)
            archive.writestr("__MACOSX/export/._data.csv", b"\xff")
    data = load_dataset(path)
    for found, other in zip(data[:3], wanted[:3], strict=True):
        np.testing.assert_array_equal(found[0], other[0])
        np.testing.assert_array_equal(found[1], other[1])


def corrupted(**lines):
    """The table with some lines replaced by their number."""
    out = [HEADER, *ROWS]
    for number, line in lines.items():
        out[int(number[1:]) - 1] = line
    return out


LONG = "x" * 200_000
BROKEN = {
    "empty": ([""], {}, "an empty file"),
    "no rows": ([HEADER], {}, "has a header and no rows"),
    "few rows": ([HEADER, *ROWS[:3]], {}, "3 row(s) are too few to take test rows from"),
    "ragged": (corrupted(_7="1,m,2"), {}, "line 7 has 3 cells, the header 4"),
    "long row": (corrupted(_7="1,m,2,cat,x"), {}, "line 7 has 5 cells, the header 4"),
    "one column": (["a", "1", "2"], {}, "the first line is the one cell 'a'"),
    "no header": (ROWS and ["1,2", "3,4"], {}, "the first line holds numbers only"),
    "index": ([",a,y", "0,1,2"], {}, "column 1 has no name"),
    "twice": (["a,a,y", "0,1,2"], {}, "two columns are named 'a'"),
    "no target": (None, {"target": "colour"}, "'colour', which is no column; columns are age, sex"),
    "no column to drop": (None, {"drop": "colour"}, "drop names 'colour'"),
    "dropped target": (None, {"drop": "kind"}, "'kind' is both a target and left out"),
    "nothing left": (None, {"drop": ["age", "sex", "score"]}, "no column is left to predict kind"),
    "gap in target": (corrupted(_7="1,m,2,"), {}, "column 'kind', line 7, has no target"),
    "mixed labels": (
        ["x,y", *(f"{n},{n % 2}" for n in range(20)), "20,dog"],
        {},
        "column 'y', line 22, holds the text 'dog' among numbers",
    ),
    "stray text": (corrupted(_9="2O,m,2,cat"), {}, "column 'age', line 9, holds the text '2O'"),
    "comma": (
        ["x;y", *(f"{n};a" for n in range(25)), "2,5;b"],
        {},
        "'2,5' with a comma for a point among numbers",
    ),
    "infinite": (corrupted(_9="inf,m,2,cat"), {}, "column 'age', line 9, holds inf"),
    "one class": (["x,y", *(f"{n},a" for n in range(20))], {}, "all rows are of one class, 'a'"),
    "text for numbers": (None, {"task": "regression"}, "holds text such as 'cat'"),
    "one label": (None, {"task": "multi-label"}, "several labels per row need several target"),
    "unknown task": (None, {"task": "sorting"}, "task is 'sorting'; expected one of"),
    "labels of 2": (
        ["x,a,b", *(f"{n},{n},{n % 2}" for n in range(20))],
        {"target": ["a", "b"], "task": "multi-label"},
        "labels of a multi-label task are 0 or 1",
    ),
    "constant target": (
        ["x,y", *(f"{n},1.5" for n in range(20))],
        {},
        "a target does not vary in the training rows",
    ),
    "names": (
        ["x,name,y", *(f"{n},n{n},{n % 2}" for n in range(500))],
        {},
        "column 'name' has 321 different texts in the training rows; more than 256",
    ),
    "empty column": (["x,e,y", *(f"{n},,{n % 2}" for n in range(20))], {}, "'e' has no value"),
    "huge cell": ([HEADER, f"1,m,2,{LONG}"], {}, "line 2 cannot be read: field larger than"),
    "open quote": ([HEADER, '1,"m,2,cat'], {}, "line 2 cannot be read: unexpected end of data"),
    "zeros": ([HEADER, "1,m\0,2,cat"], {}, "holds characters of number 0"),
    "window": (None, {"window": 3}, "window is for text; this is a table"),
    "image size": (None, {"image_size": 3}, "image_size is for images; this is a table"),
    "no window": (None, {"window": 0}, "window is 0; it must be at least 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tables_end_in_one_clear_error(tmp_path, case):
    lines, options, message = BROKEN[case]
    path = table(tmp_path, lines or ())
    with pytest.raises(ValueError, match=r"\S") as error:
        load_dataset(path, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if case not in ("unknown task", "no window"):
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).count("data.csv") == 1


def test_files_that_are_no_text(tmp_path):
    for encoding, byte in (("latin-1", "0xe9"), ("utf-16", "0xff")):
        path = table(tmp_path, [HEADER, "1,é,2,cat"], encoding=encoding)
        with pytest.raises(ValueError, match=f"not UTF-8 text: the byte {byte} in line"):
            load_dataset(path)


def test_parts_that_do_not_agree(tmp_path):
    table(tmp_path, name="train.csv")
    for lines, message in (
        (["age,sex,score", "1,m,2"], "its columns differ from those of .*train.csv: kind"),
        ([HEADER, "1,m,2,yak"], "the class 'yak' of the test rows has no training rows"),
    ):
        table(tmp_path, lines, "test.csv")
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path)
    (tmp_path / "test.csv").rename(tmp_path / "more.csv")
    with pytest.raises(ValueError, match=r"holds 2 tables: more.csv, train.csv; expected one, or"):
        load_dataset(tmp_path)


def archive(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


def test_archives_that_are_none_or_lead_out(tmp_path):
    path = tmp_path / "data.zip"
    text = "\n".join((HEADER, *ROWS))
    whole = archive(**{"data.csv": text})
    middle = whole.index(b"data.csv") + 20
    for content, message in (
        (b"", "not a .zip file, or damaged"),
        (whole[:-30], "not a .zip file, or damaged"),
        (whole[:middle] + b"XXXX" + whole[middle + 4 :], "damaged"),
        (archive(**{"../data.csv": text}), r"holds the name '\.\./data.csv', which leads out"),
        (archive(**{"/data.csv": text}), "holds the name '/data.csv', which leads out"),
        (archive(**{"C:\\data.csv": text}), "which leads out"),
        (archive(**{"inner.zip": whole}), "there are files such as inner.zip; expected images"),
        (archive(), "there are no files; expected"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load_dataset(path)
        assert str(error.value).startswith(str(path))
    # Marked as encrypted.
    path.write_bytes(whole.replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1"))
    with pytest.raises(ValueError, match=r"data\.csv is encrypted"):
        load_dataset(path)
    with pytest.raises(ValueError, match=r"none\.zip: no such file"):
        load_dataset(tmp_path / "none.zip")
    with pytest.raises(ValueError, match=r"none\.csv: no such file"):
        load_dataset(tmp_path / "none.csv")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="there are no files"):
        load_dataset(tmp_path / "folder")


def test_tables_with_cells_changed_at_random_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    cells = [
        "",
        "NA",
        "inf",
        "-1e400",
        "x",
        '"',
        "a\tb",
        "1,5",
        "\ufeff",
        "٣",
        "1_0",
        "'",
        "é",
        "\r",
    ]
    read, refused = 0, []
    for _ in range(150):
        lines = [line.split(",") for line in (HEADER, *ROWS)]
        for _ in range(rng.integers(1, 4)):
            row = lines[rng.integers(len(lines))]
            place = rng.integers(len(row))
            row[place : place + 1] = [str(rng.choice(cells))] * int(rng.choice([0, 1, 1, 1, 2]))
        path = table(tmp_path, [",".join(line) for line in lines])
        try:
            data = load_dataset(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            read += 1
            assert all(np.isfinite(x).all() for x, _ in data[:3])
            assert sum(len(y) for _, y in data[:3]) <= 30
    assert read > 0
    assert len(refused) > 0
    assert all(text.startswith(str(path)) and "\n" not in text for text in refused)


def test_a_column_of_weights_is_that_of_the_training_rows(tmp_path):
    lines = [HEADER + ",w", *(f"{row},{n / 8}" for n, row in enumerate(ROWS))]
    data = load_dataset(table(tmp_path, lines), dtype="float64", target="kind", weights="w")
    assert data.features == ("age", "sex=f", "sex=m", "score", "score missing")
    assert data.weights.shape == data.train[1].shape
    # Age grows by one per row, the weight by an eighth.
    ages = data.train[0][:, 0]
    line = np.polyfit(ages, data.weights, 1)
    np.testing.assert_allclose(np.polyval(line, ages), data.weights, atol=1e-12)
    assert load_dataset(table(tmp_path), target="kind").weights is None
    for value in ("-1", "x", "", "inf"):
        broken = table(tmp_path, [lines[0], *(f"{row},{value}" for row in ROWS)])
        with pytest.raises(ValueError, match=r"data.csv: line \d+ has the weight"):
            load_dataset(broken, target="kind", weights="w")
    with pytest.raises(ValueError, match="weights names 'v', which is no column"):
        load_dataset(table(tmp_path, lines), target="kind", weights="v")
    with pytest.raises(ValueError, match="'w' is a target or left out; it cannot weigh rows"):
        load_dataset(table(tmp_path, lines), weights="w")
    with pytest.raises(ValueError, match="weights is for a table; this is the digits"):
        load_dataset("digits", weights="w")
