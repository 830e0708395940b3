"""DIMACS CNF as factor graphs: model counts by brute force, weights, long clauses, faults."""

import gzip

import numpy as np
import pytest

from klprojax import BeliefPropagation, Elimination, ModelFileError, infer, read_model
from klprojax.circuits import compile_model, log_partition
from klprojax.graphs import read_cnf
from tests.circuits._formulas import cnf_text, random_clauses, truth_table

TEXT = """c a comment
p cnf 4 3
c p weight 1 0.25 0
1 -2
 0 2 3 0
c p weight -1 2 0
-4 0
"""


@pytest.fixture
def write(tmp_path):
    def writer(text, name="a.cnf"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def joint(model):
    """The product of all factors, one axis per variable."""
    n = len(model.cardinalities)
    total = np.zeros((2,) * n)
    for scope, table in zip(model.scopes, model.log_tables, strict=True):
        order = np.argsort(scope)
        shape = [2 if v in scope else 1 for v in range(n)]
        total = total + np.transpose(table, order).reshape(shape)
    return np.exp(total)


def test_a_weighted_formula(write, tmp_path):
    model = read_model(write(TEXT))
    wanted = truth_table(4, [[1, -2], [2, 3], [-4]])
    wanted = wanted * np.array([2.0, 0.25]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(joint(model), wanted, rtol=1e-14)
    assert model.variable_names == ("1", "2", "3", "4")
    assert (model.kind, model.name, model.notes) == ("MARKOV", "a", ())
    (tmp_path / "b.cnf.gz").write_bytes(gzip.compress(TEXT.replace("\n", "\r\n").encode()))
    assert read_model(tmp_path / "b.cnf.gz").scopes == model.scopes
    graph, tables = model.to_graph()
    got = infer(graph, tables, Elimination())
    np.testing.assert_allclose(got.log_partition, np.log(wanted.sum()), rtol=1e-14)
    circuit, log_weights, _ = compile_model(model)
    np.testing.assert_allclose(
        log_partition(circuit, log_weights), np.log(wanted.sum()), rtol=1e-14
    )


def test_random_formulas(write):
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(2, 7))
        clauses = random_clauses(rng, n, int(rng.integers(1, 9)), min(n, 4))
        clauses.append(clauses[0] + clauses[0][:1])  # a literal twice
        clauses.append([1, -1])  # always holds
        model = read_cnf(write(cnf_text(n, clauses)))
        np.testing.assert_array_equal(joint(model), truth_table(n, clauses))


@pytest.mark.parametrize(
    ("weights", "wanted", "note"),
    [
        ("c p weight 1 0.25 0\nc p weight -1 3 0\n", (3, 0.25), None),
        ("c p weight 1 0.25 0\n", (0.75, 0.25), "weigh 1 less"),
        ("c p weight -1 1 0\n", (1, 0), "weigh 1 less"),
        ("w 1 0.25\n", (0.75, 0.25), "weigh 1 less"),
        ("w 1 -1\n", (1, 1), None),
        ("w 1 0.5 0\nw -1 0.125 0\n", (0.125, 0.5), None),
        ("c weights 0.25 3 1 1\n", (3, 0.25), None),
        ("c p weight 1 1/4 0\nc p weight -1 1/3 0\n", (1 / 3, 0.25), None),
        ("", (1, 1), None),
    ],
)
def test_weights(write, weights, wanted, note):
    for text in (f"{weights}p cnf 2 1\n1 2 0\n", f"p cnf 2 1\n1 2 0\n{weights}"):
        model = read_cnf(write(text))
        expected = truth_table(2, [[1, 2]]) * np.reshape(wanted, (2, 1))
        np.testing.assert_allclose(joint(model), expected, rtol=1e-15)
        assert (note or "") in "".join(model.notes)
        assert bool(model.notes) == (note is not None)


def test_weights_beyond_the_range_of_floats(write):
    model = read_cnf(write("p cnf 1 0\nc p weight 1 1e-400 0\nc p weight -1 1e400 0\n"))
    np.testing.assert_allclose(model.log_tables[0], 400 * np.log(10) * np.array([1, -1]))


def test_no_models_and_no_clauses(write):
    nothing = read_cnf(write("p cnf 2 1\n0\n"))
    assert nothing.scopes == ((),)
    assert float(nothing.log_tables[0]) == -np.inf
    assert read_cnf(write("p cnf 3 0\n")).scopes == ()
    # what ends the files of SATLIB
    assert read_cnf(write("p cnf 2 1\n1 2 0\n%\n0\n")).scopes == ((0, 1),)


def test_long_clauses(write):
    # 30 literals in one table would be 2^30 entries; split, the count stays 2^30 - 1.
    literals = [v if v % 3 else -v for v in range(1, 31)]
    path = write(f"p cnf 30 1\n{' '.join(map(str, literals))} 0\nc p weight 1 0.25 0\n")
    model = read_cnf(path)
    assert max(map(len, model.scopes)) <= 8
    assert "more than 8 literals" in "".join(model.notes)
    assert model.variable_names[30] == "part 1 of clause 1"
    graph, tables = model.to_graph()
    wanted = 29 * np.log(2.0) + np.log1p(-0.75 * 0.5**29)
    exact = infer(graph, tables, Elimination())
    np.testing.assert_allclose(exact.log_partition, wanted, rtol=1e-14)
    # the parts are a tree, on which belief propagation is exact
    bp = infer(graph, tables, BeliefPropagation())
    np.testing.assert_allclose(bp.log_partition, wanted, rtol=1e-12)
    assert float(log_partition(*compile_model(model)[:2])) == pytest.approx(wanted, rel=1e-13)
    # nine literals, all states: auxiliary variables are functions of the others
    nine = read_cnf(write("p cnf 9 1\n1 -2 3 4 5 6 7 8 9 0\n"))
    table = joint(nine)
    np.testing.assert_array_equal(
        table.sum(axis=tuple(range(9, table.ndim))), truth_table(9, [[1, -2, *range(3, 10)]])
    )


@pytest.mark.parametrize(
    ("change", "line", "match"),
    [
        (("p cnf 4 3", "c p cnf 4 3"), 4, "the header, p cnf variables clauses"),
        (("p cnf 4 3", "p cnf 4"), 2, "the header, p cnf variables clauses"),
        (("p cnf 4 3", "p wcnf 4 3"), 2, "MaxSAT"),
        (("p cnf 4 3", "p cnf four 3"), 2, "an integer >= 0"),
        (("p cnf 4 3", "p cnf 4 4"), 2, "4 clauses, as the header says"),
        (("p cnf 4 3", "p cnf 3 3"), 7, "a literal, 1 to 3"),
        (("p cnf 4 3", "p cnf 999999999999 3"), 2, "a number of variables that fits"),
        (("1 -2", "p cnf 4 3"), 4, "one header .line 2"),
        (("1 -2", "1 --2"), 4, "a literal, 1 to 4"),
        (("1 -2", "1 2_0"), 4, "a literal, 1 to 4"),
        (("1 -2", "x1 -2"), 4, "another format"),
        (("-4 0", "-4"), 7, "is the file cut off"),
        (("weight 1 0.25 0", "weight 1 0.25"), 3, "c p weight literal weight 0"),
        (("weight 1 0.25 0", "weight 0 0.25 0"), 3, "a literal, a variable from 1"),
        (("weight 1 0.25 0", "weight 9 0.25 0"), 3, "a variable from 1 to 4"),
        (("weight 1 0.25 0", "weight 1 -0.25 0"), 3, "none may be negative"),
        (("weight 1 0.25 0", "weight 1 nan 0"), 3, "a weight"),
        (("weight 1 0.25 0", "weight 1 1/0 0"), 3, "a number or a fraction"),
        (("weight 1 0.25 0", "weight 1 1/2/3 0"), 3, "a number or a fraction"),
        (("weight 1 0.25 0", "weight -1 1 0"), 6, "one weight per literal .line 3"),
        (("weight 1 0.25 0", "weight 2 1.5 0"), 3, "a weight up to 1 where only one is given"),
        (("c p weight 1 0.25 0", "c weights 1 2 3"), 3, "8 weights, two per variable"),
        (("c p weight 1 0.25 0", "c p show 1 2 0"), 3, "a count over all variables"),
        (("c p weight 1 0.25 0", "c p show 1 2"), 3, "is the line cut off"),
        (("c p weight 1 0.25 0", "c p show 1 x 0"), 3, "an integer >= 0"),
        (("c p weight 1 0.25 0", "w 1"), 3, "w variable weight"),
    ],
)
def test_faults(write, change, line, match):
    assert change[0] in TEXT
    with pytest.raises(ModelFileError, match=match) as error:
        read_cnf(write(TEXT.replace(*change, 1)))
    assert error.value.line == line


def test_projections(write):
    # all variables shown is no projection; a sampling set is noted
    model = read_cnf(write("p cnf 2 1\nc p show 1 0\nc p show 2 0\n1 2 0\n"))
    assert model.notes == ()
    assert "c ind" in read_cnf(write("c ind 1 0\np cnf 2 1\n1 2 0\n")).notes[0]
    with pytest.raises(ModelFileError, match="the end of the file"):
        read_cnf(write("c nothing\n"))


def test_a_line_too_long(tmp_path):
    path = tmp_path / "a.cnf.gz"
    path.write_bytes(gzip.compress(b"p cnf 1 1\n" + b"1 " * 2**23 + b"0\n"))
    with pytest.raises(ModelFileError, match="lines of at most 16777216 bytes"):
        read_cnf(path)
