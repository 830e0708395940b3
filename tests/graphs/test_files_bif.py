"""BIF networks: order of tables, grammar, rounding, round trips, and every way to be wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax.graphs._files import ModelFileError, load_model, read_bif, read_model, write_bif
from klprojax.graphs._model import DiscreteModel

SMALL = """network "two words" { property version = 1; }
variable Rain {
  type discrete [ 2 ] { yes, no };
}
variable Wind { // the middle one
  type discrete [ 3 ] { <5, Asy/Patch, 12+ };
  property position = (1, 2);
}
variable "the sea" { /* a comment
  over lines; with { } " */
  type discrete[2]{"calm; flat" "rough"};
}
probability ( Rain ) {
  table 0.25, 0.75;
}
probability ( Wind | Rain ) {
  (no) 0.1, 0.2, 0.7;
  (yes) .5 .25
    .25;
}
probability ( "the sea" | Wind, Rain ) {
  (<5, yes) 1.0, 0.0;
  (Asy/Patch, yes) 0.9, 0.1;
  (12+, yes) 0.8, 0.2;
  ("<5", "no") 0.7, 0.3;
  (Asy/Patch no) 0.6, 0.4;
  (12+, no) 5e-1, 0.5;
}
"""


def write(tmp_path, text, name="model.bif"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_order_and_grammar(tmp_path):
    model = read_bif(write(tmp_path, SMALL))
    assert model.name == "two words"
    assert model.kind == "BAYES"
    assert model.notes == ()
    assert model.variable_names == ("Rain", "Wind", "the sea")
    assert model.state_names == (
        ("yes", "no"),
        ("<5", "Asy/Patch", "12+"),
        ("calm; flat", "rough"),
    )
    assert model.scopes == ((0,), (0, 1), (1, 0, 2))
    rain, wind, sea = model.log_tables
    np.testing.assert_array_equal(rain, np.log([0.25, 0.75]))
    np.testing.assert_array_equal(wind, np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    with np.errstate(divide="ignore"):
        expected = np.log(
            [[[1.0, 0.0], [0.7, 0.3]], [[0.9, 0.1], [0.6, 0.4]], [[0.8, 0.2], [0.5, 0.5]]]
        )
    np.testing.assert_array_equal(sea, expected)


def head(child="a", parents="b c"):
    declared = "".join(
        f"variable {name} {{ type discrete [ {size} ] {{ {' '.join('xyz'[:size])} }}; }}\n"
        for name, size in (("a", 2), ("b", 2), ("c", 3))
    )
    roots = "probability ( b ) { table .5 .5; }\nprobability ( c ) { table .5 .25 .25; }\n"
    return f"network n {{\n}}\n{declared}{roots}probability ( {child} | {parents} ) {{\n"


def test_table_has_the_child_slowest_and_the_last_parent_fastest(tmp_path):
    # the order of the format: p(a=x | b, c) for all (b, c), then p(a=y | b, c)
    values = ".1 .2 .3 .4 .5 .6  .9 .8 .7 .6 .5 .4"
    table = read_bif(write(tmp_path, head() + f"table {values}; }}")).log_tables[0]
    np.testing.assert_array_equal(table[..., 0], np.log([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    np.testing.assert_array_equal(table[..., 1], np.log([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]))


def test_default_fills_the_rows_not_given(tmp_path):
    text = head() + "default .5 .5;\n property x;\n (y, z) .25 .75; }"
    table = read_bif(write(tmp_path, text)).log_tables[0]
    expected = np.full((2, 3, 2), 0.5)
    expected[1, 2] = [0.25, 0.75]
    np.testing.assert_array_equal(table, np.log(expected))


def test_a_bar_between_child_and_parents_is_optional(tmp_path):
    text = (head() + "default .5 .5; }").replace("a | b c", "a b, c")
    assert read_bif(write(tmp_path, text)).scopes[0] == (1, 2, 0)


def test_rounded_rows_are_renormalised_with_a_note(tmp_path):
    text = SMALL.replace(".5 .25\n    .25", "0.3333 0.3333 0.3333")
    model = read_bif(write(tmp_path, text))
    # equal numbers divided by their sum: one rounding each in sum, quotient and logarithm
    np.testing.assert_allclose(model.log_tables[1][0], np.log(1 / 3), rtol=4e-16)
    assert model.notes == ("Wind: renormalised 1 row(s), largest deviation from 1 1.0e-04",)
    np.testing.assert_array_equal(model.log_tables[1][1], np.log([0.1, 0.2, 0.7]))


names = st.text(st.characters(exclude_characters='"', exclude_categories=("Cc", "Cs")), max_size=6)


@st.composite
def networks(draw):
    count = draw(st.integers(1, 4))
    variable_names = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    states = [
        draw(st.lists(names, min_size=size, max_size=size, unique=True))
        for size in draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    ]
    order = draw(st.permutations(range(count)))
    scopes, tables = [], []
    for place, child in enumerate(order):
        parents = draw(st.lists(st.sampled_from(order[:place]), unique=True)) if place else []
        scope = (*parents, child)
        shape = tuple(len(states[v]) for v in scope)
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        weights = rng.exponential(size=shape) * (rng.random(shape) < 0.7)
        weights[..., 0] += 1e-300  # some row is then nearly all on one tiny weight
        scopes.append(scope)
        with np.errstate(divide="ignore"):
            tables.append(np.log(weights / weights.sum(axis=-1, keepdims=True)))
    return {
        "cardinalities": tuple(map(len, states)),
        "scopes": tuple(scopes),
        "log_tables": tuple(tables),
        "variable_names": tuple(variable_names),
        "state_names": tuple(map(tuple, states)),
        "kind": "BAYES",
        "name": draw(names),
    }


@given(parts=networks(), name=st.sampled_from(["m.bif", "m.bif.gz"]))
def test_round_trip(tmp_path, parts, name):
    model = DiscreteModel(**parts)
    path = tmp_path / name
    write_bif(path, model)
    back = read_model(path)
    assert back.variable_names == model.variable_names
    assert back.state_names == model.state_names
    assert back.notes == ()
    if model.name not in ("", "unknown"):
        assert back.name == model.name
    factors = {scope: table for scope, table in zip(model.scopes, model.log_tables, strict=True)}
    assert set(back.scopes) == set(factors)
    for scope, table in zip(back.scopes, back.log_tables, strict=True):
        expected = factors[scope]
        np.testing.assert_array_equal(table == -np.inf, expected == -np.inf)
        finite = expected > -np.inf
        # exp and log round once each, relative to a value of size |log|
        bound = 4 * np.finfo(np.float64).eps * np.maximum(1.0, np.abs(expected[finite]))
        assert (np.abs(table[finite] - expected[finite]) <= bound).all()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("network ", "netwrok ", ":1: expected network, variable or probability, got 'netwrok'"),
        ('"two words"', "two words", ":1: expected one name of the network, got 'words'"),
        ("property version", "version", ":1: expected a property, got 'version = 1'"),
        ("version = 1;", "version = 1", ":1: expected ; after a statement"),
        (
            "variable Rain",
            "network Rain {}\nvariable Rain",
            ":2: expected one network block, got 2",
        ),
        (
            "variable Rain {",
            "variable Rain Cats {",
            ":2: expected variable NAME {, got .*Rain Cats",
        ),
        ("variable Wind", "variable Rain", ":5: expected each variable once, got 'Rain' again"),
        ("discrete [ 2 ] { yes", "continuous [ 2 ] { yes", ":3: expected type discrete, got 'cont"),
        ("[ 2 ] { yes", "2 { yes", r":3: expected type discrete \[ N \]"),
        ("[ 2 ] { yes", "[ 3 ] { yes", ":3: expected as many state names .*'3', .*'Rain', got 2"),
        ("[ 2 ] { yes", "[ 2 ] { no", ":3: expected distinct state names, got 'no' twice"),
        ("  property position", "  prop position", ":7: expected one type and only properties"),
        (
            "  type discrete [ 2 ] { yes, no };\n",
            "",
            ":2: expected type discrete .* without a type",
        ),
        ('"the sea" {', '"the sea {', ':9: expected a closing quote ", got'),
        ("(no) 0.1, 0.2, 0.7;", "/* (no) 0.1;", r":17: expected the end \*/ of a comment"),
        ("0.2, 0.7;", "0.2;", ":17: expected 3 values in a row of 'Wind', got 2"),
        ("0.2, 0.7;", "0.2, 0.3, 0.4;", ":17: expected 3 values in a row of 'Wind', got more"),
        ("0.2, 0.7;", "0.2, 0.701;", ":17: expected probabilities of 'Wind' .* sum of 1.001"),
        ("0.2, 0.7;", "nan, 0.7;", ":17: expected a number >= 0 as a probability, got 'nan'"),
        ("0.2, 0.7;", "-0.2, 0.7;", ":17: expected a number >= 0 as a prob.* got '-0.2'"),
        ("0.2, 0.7;", "inf, 0.7;", ":17: expected a finite number >= 0 as a prob.* got 'inf'"),
        ("    .25;", "    .2x;", ":19: expected a number as a probability, got '.2x'"),
        ("table 0.25,", "table 0x2,", ":14: expected a number as a probability, got '0x2'"),
        ("table 0.25,", "table", ":14: expected 2 values in the table of 'Rain', got 1"),
        ("table 0.25,", "table 0.25, 0", ":14: expected 2 values in the table of 'Rain', got more"),
        ("table 0.25,", "tabel 0.25,", ":14: expected a row, table, default or property, got 'tab"),
        ("table 0.25,", "table 0.26,", ":14: expected probabilities of 'Rain' that sum to 1"),
        ("(no) 0.1", "(yes) 0.1", r":18: expected each row once, got another row for \(yes\)"),
        ("(no) 0.1", "(nope) 0.1", r":17: expected a state of variable 'Rain', got 'nope' \(Known"),
        ("(no) 0.1", "(no, no) 0.1", ":17: expected 1 parent states in a row of 'Wind', got 2"),
        ("(no) 0.1", "(no 0.1", r":17: expected a closing \) after the states"),
        ("  (no) 0.1, 0.2, 0.7;\n", "", r":16: expected a row for \(no\) .*got none \(1 of 2 rows"),
        ("(no) 0.1,", "table .1 .1 .1 .1 .1 .1; (no) 0.1,", ":17: expected one table, or rows"),
        ("(no) 0.1,", "{ (no) 0.1,", ":17: expected } at the end of the probability block"),
        ("( Wind | Rain )", "Wind | Rain", r":16: expected probability \( CHILD"),
        ("( Wind | Rain )", "( | Rain )", r":16: expected one child before the bar \|"),
        ("( Wind | Rain )", "( Wind Rain | Rain )", r":16: expected one child before the bar \|"),
        ("( Wind | Rain )", "( Wind | Rian )", ":16: expected a declared var.*'Rian' .*Rain"),
        ("( Wind | Rain )", "( Wind | Wind )", ":16: expected distinct variables, got 'Wind' tw"),
        ("( Wind | Rain )", "( Rain | Wind )", ":1[68]: expected"),
        ("5e-1, 0.5;\n}", "5e-1, 0.5;\n", ":21: expected } at the end of the probability block"),
        ("5e-1, 0.5;\n}", "5e-1, 0.5\n}", ":27: expected ; after a statement"),
        ("  (12+, no) 5e-1, 0.5;\n}\n", "", ":21: expected } at the end of the probability"),
        (
            "probability ( Rain ) {",
            "probability ( Rain )",
            r":13: expected one child before the bar \|, got 9 names",
        ),
    ],
)
def test_errors(tmp_path, old, new, match):
    assert SMALL.count(old) == 1
    path = write(tmp_path, SMALL.replace(old, new))
    with pytest.raises(ModelFileError, match=match) as caught:
        read_bif(path)
    assert str(caught.value).startswith(f"{path}:{caught.value.line}: expected ")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", ":1: expected one network block, got 0"),
        (b"network a", ":1: expected { after the keyword network"),
        (b"network a {}\n\xff", ":2: expected UTF-8 text"),
        (SMALL.encode().split(b"probability")[0], ":2: expected a probability block .*'Rain'"),
        (
            SMALL.encode() + b"probability ( Rain ) { table 0.25, 0.75; }",
            ":29: expected one probability block per variable, got another one for 'Rain'",
        ),
        (
            (head() + "default .5 .5; }").replace("( b ) { table", "( b | a ) { default").encode(),
            ":8: expected a network without cycles",
        ),
        ((head() + ";" * 2000 + "}").encode(), ":8: expected 6 rows .*got 2000 statements"),
    ],
)
def test_errors_of_whole_files(tmp_path, text, match):
    with pytest.raises(ModelFileError, match=match):
        read_bif(write(tmp_path, text))


def test_too_many_parents(tmp_path):
    text = head(parents=" ".join(["b"] * 70)) + "default .5 .5; }"
    with pytest.raises(ModelFileError, match="at most 64 variables"):
        read_bif(write(tmp_path, text))


def test_defaults_fill_a_limited_number_of_entries(tmp_path):
    path = write(tmp_path, head() + "default .5 .5; }")
    assert read_bif(path, max_entries=12).log_tables[0].size == 12
    with pytest.raises(ModelFileError, match="expected at most 11 table entries filled by defaul"):
        read_bif(path, max_entries=11)


def test_a_byte_order_mark_and_dos_lines_do_not_matter(tmp_path):
    text = b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode()
    model = read_bif(write(tmp_path, text))
    assert model.variable_names == ("Rain", "Wind", "the sea")
    with pytest.raises(ModelFileError, match=":17: expected 3 values"):
        read_bif(write(tmp_path, text.replace(b"0.2, 0.7", b"0.2")))


HALF = np.log([0.5, 0.5])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "MARKOV"}, "Bayesian networks only, got a model of kind 'MARKOV'"),
        ({"scopes": ((0,), (0,))}, r"Factor 1 has scope \(0,\); a Bayesian network"),
        ({"scopes": ((0,), ()), "log_tables": (HALF, np.array(0.0))}, r"Factor 1 has scope \(\)"),
        ({"log_tables": (HALF, np.zeros(2))}, "Factor 1 does not sum to 1 over its last axis"),
        ({"scopes": ((0,),), "log_tables": (HALF,)}, "Variable '1' has no conditional table"),
        ({"variable_names": ('say "a"', "b")}, "no way to write the name 'say \"a\"'"),
        ({"variable_names": ("a\nb", "b")}, "no way to write the name"),
    ],
)
def test_models_that_bif_cannot_hold(tmp_path, changes, match):
    parts = {
        "cardinalities": (2, 2),
        "scopes": ((0,), (1,)),
        "log_tables": (HALF, HALF),
        "kind": "BAYES",
    }
    with pytest.raises(ValueError, match=match):
        write_bif(tmp_path / "m.bif", DiscreteModel(**{**parts, **changes}))


def test_states_without_names_are_numbered(tmp_path):
    model = DiscreteModel((2,), ((0,),), (HALF,), kind="BAYES")
    write_bif(tmp_path / "m.bif", model)
    assert read_bif(tmp_path / "m.bif").state_names == (("0", "1"),)


# As programs print what they have counted: three digits, NaN where nothing was seen, rows left out.
COUNTED = """network counted { }
variable a { type discrete [ 3 ] { x, y, z }; }
variable b { type discrete [ 3 ] { k, l, m }; }
probability ( a ) { table .333 .333 .333; }
probability ( b | a ) {
  (x) .4 .3 .2;
  (y) NaN -nan nan;
  (z) 0 0 0;
}
"""
NORMALISED = COUNTED.replace("NaN -nan nan", "1 2 1").replace("0 0 0", "1e-400 0 3e-400")


def test_rows_are_divided_by_their_sums_when_asked(tmp_path):
    path = write(tmp_path, NORMALISED)
    with pytest.raises(
        ModelFileError,
        match=r":4: expected probabilities of .a. that sum to 1, got a sum of 0\.999\d* "
        r'\(rounded rows may be off by 0\.0001; repair="normalise" \(--repair normalise\) divides',
    ):
        read_bif(path)
    for repair in ("normalise", "uniform"):
        model = load_model(path, repair=repair)
        first, second = map(np.exp, model.log_tables)
        # sum, quotient, logarithm and exponential round once each; the exponent of 1e-400 is a
        # number of size 1000, known to 1e-13
        np.testing.assert_allclose(first, [1 / 3] * 3, rtol=1e-15)
        wanted = [[4 / 9, 3 / 9, 2 / 9], [1 / 4, 2 / 4, 1 / 4], [1 / 4, 0, 3 / 4]]
        np.testing.assert_allclose(second, wanted, rtol=3e-13)
        assert model.notes == (
            "a: renormalised 1 row(s), largest deviation from 1 1.0e-03",
            "b: renormalised 3 row(s), largest deviation from 1 3.0e+00",
        )


def test_rows_without_a_sum_are_filled_when_asked(tmp_path):
    advice = r'\(repair="uniform" \(--repair uniform\) fills '
    text = COUNTED.replace(".333 .333 .333", ".25 .5 .25").replace(".4 .3 .2", ".5 .25 .25")
    path = write(tmp_path, text)
    with pytest.raises(ModelFileError, match=f":7: .* got 'NaN' {advice}rows of NaN with equal"):
        read_bif(path)
    with pytest.raises(ModelFileError, match=f":7: .* got 'NaN' {advice}rows of NaN with equal"):
        read_bif(path, repair="normalise")
    zeros = write(tmp_path, text.replace("NaN -nan nan", "0 1 0"), "zeros.bif")
    with pytest.raises(ModelFileError, match=rf":8: .* got a sum of 0\.0 {advice}it with equal"):
        read_bif(zeros, repair="normalise")
    third = np.log(1 / 3)
    wanted = np.array([np.log([0.5, 0.25, 0.25]), [third] * 3, [third] * 3])
    model = read_bif(path, repair="uniform")
    # one rounding in the logarithm
    np.testing.assert_allclose(model.log_tables[1], wanted, rtol=1e-15)
    np.testing.assert_array_equal(model.log_tables[1][0], wanted[0])
    assert model.notes == ("b: filled 2 row(s) without a sum with equal probabilities",)
    # The same as one table, with the child slowest.
    table = "table .5 nan 0  .25 NAN 0  .25 +nan 0;"
    rows = text[text.index("  (x)") : text.rindex("}")]
    model = read_bif(write(tmp_path, text.replace(rows, table)), repair="uniform")
    np.testing.assert_allclose(model.log_tables[1], wanted, rtol=1e-15)
    # Left out, with and without a default.
    for left in ("", "  default nan nan nan;\n"):
        shorter = text.replace("  (y) NaN -nan nan;\n  (z) 0 0 0;\n", left)
        path = write(tmp_path, shorter)
        if not left:
            with pytest.raises(
                ModelFileError, match=rf"got none \(1 of 3 rows; {advice[2:]}rows left out with"
            ):
                read_bif(path, repair="normalise")
        model = read_bif(path, repair="uniform")
        np.testing.assert_allclose(model.log_tables[1], wanted, rtol=1e-15)
    assert read_bif(write(tmp_path, text), repair="uniform").notes
    # A limit holds for what is filled.
    path = write(tmp_path, text.replace("  (y) NaN -nan nan;\n  (z) 0 0 0;\n", ""))
    note = "b: filled 2 row(s) left out with equal probabilities"
    assert read_bif(path, repair="uniform", max_entries=9).notes == (note,)
    with pytest.raises(ModelFileError, match="at most 5 table entries"):
        read_bif(path, repair="uniform", max_entries=5)


@pytest.mark.parametrize("repair", ["normalise", "uniform"])
def test_a_repair_mends_nothing_else(tmp_path, repair):
    plain = read_bif(write(tmp_path, SMALL))
    same = read_bif(write(tmp_path, SMALL), repair=repair)
    for left, right in zip(plain.log_tables, same.log_tables, strict=True):
        np.testing.assert_array_equal(left, right)
    assert same.notes == ()
    for bad in (".4 nan .2", ".4 -.3 .2", ".4 inf .2", ".4 x .2", ".4 .2"):
        with pytest.raises(ModelFileError, match=":6: expected"):
            read_bif(write(tmp_path, NORMALISED.replace(".4 .3 .2", bad)), repair=repair)
    with pytest.raises(ValueError, match="repair is 'magic'; expected None, 'normalise' or 'unif"):
        read_bif(write(tmp_path, SMALL), repair="magic")


def test_other_encodings(tmp_path):
    path = write(tmp_path, SMALL.replace("rough", "größer").encode("latin-1"))
    with pytest.raises(ModelFileError, match=r":11: expected UTF-8 text, got .*\(--encoding\)"):
        read_bif(path)
    for encoding in ("latin-1", "cp1252"):
        assert load_model(path, encoding=encoding).state_names[2] == ("calm; flat", "größer")
    path = write(tmp_path, SMALL.encode("utf-16"))
    assert read_model(path, encoding="utf-16").variable_names == ("Rain", "Wind", "the sea")
