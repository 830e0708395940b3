"""Negation normal forms: files of c2d and d4, checks, smoothing, and the way back."""

import gzip
import time

import jax
import numpy as np
import pytest

from klprojax import ModelFileError
from klprojax.circuits import is_deterministic, log_partition, read_nnf, sweep
from klprojax.circuits._files import _nnf as reader
from klprojax.circuits._files import _smoothing as smoothing
from klprojax.circuits._validation import check_semantics
from tests.circuits._formulas import (
    c2d_text,
    cnf_text,
    compile_tree,
    d4_text,
    random_clauses,
    truth_table,
)

from ._circuits import enumerate_joint

# Written by hand from the descriptions of both formats: x1 or not x1 and (x2 or not x2 and x3).
C2D = """nnf 11 9 4
L 1
L 2
L -2
L 3
A 2 2 3
O 2 2 1 4
L -1
c a remark
A 2 6 5
O 1 2 0 7
A 0
A 1 8
"""
C2D = C2D.replace("A 1 8", "A 2 8 9").replace("nnf 11 9", "nnf 11 10")
D4 = """o 10 0
o 2 0
t 3 0
c a remark
10 3 1 0
2 3 2 0
2 3 -2 3 0
10 2 -1 0
"""
WANTED = truth_table(4, [[1, 2, 3]])


@pytest.fixture
def write(tmp_path):
    def writer(text, name="a.nnf"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


@pytest.mark.parametrize("text", [C2D, D4])
def test_both_formats(write, tmp_path, text):
    model = read_nnf(write(text), num_variables=4)
    check_semantics(model.circuit.structure)
    assert is_deterministic(model.circuit)
    np.testing.assert_allclose(enumerate_joint(model), WANTED, atol=1e-15)
    (tmp_path / "b.nnf.gz").write_bytes(gzip.compress(text.encode()))
    assert read_nnf(tmp_path / "b.nnf.gz", num_variables=4).circuit == model.circuit
    assert read_nnf(write("\ufeff" + text), num_variables=4).circuit == model.circuit
    # a d4 file does not say that there is a fourth variable
    few = read_nnf(write(text))
    assert few.circuit.num_variables == (3 if text is D4 else 4)


def test_random_formulas(write):
    rng = np.random.default_rng(0)
    satisfiable = 0
    for _ in range(25):
        n = int(rng.integers(2, 7))
        clauses = random_clauses(rng, n, int(rng.integers(1, 2 * n)), min(n, 3))
        wanted = truth_table(n, clauses)
        tree = compile_tree(clauses)
        for text in (c2d_text(n, tree), d4_text(tree)):
            if not wanted.any():
                with pytest.raises(ModelFileError, match="a formula with a model"):
                    read_nnf(write(text), num_variables=n)
                continue
            satisfiable += 1
            model = read_nnf(write(text), num_variables=n)
            check_semantics(model.circuit.structure)
            # sums of exponentials of nearly 0
            np.testing.assert_allclose(enumerate_joint(model), wanted, atol=1e-14, err_msg=text)
    assert 20 < satisfiable < 50


def test_literal_weights(write, tmp_path):
    clauses = [[1, 2, 3], [-1, 4], [-2, -4, 5]]
    tree = compile_tree(clauses)
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.1, 2.0, (6, 2))
    weights[3, 0] = 0.0  # variable 4 is true
    table = truth_table(6, clauses)
    for v in range(6):
        table = table * weights[v].reshape([2 if u == v else 1 for u in range(6)])
    lines = "".join(
        f"c p weight {s * (v + 1)} {weights[v, int(s > 0)]!r} 0\n".replace("np.float64", "")
        for v in range(6)
        for s in (-1, 1)
    )
    lines = lines.replace("(", "").replace(")", "")
    cnf = write(cnf_text(6, clauses, lines), "a.cnf")
    path = write(d4_text(tree))
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    total = np.log(table.sum())
    given = {"num_variables": 6, "log_literal_weights": logs}
    for model in (read_nnf(path, cnf=cnf), read_nnf(path, **given)):
        check_semantics(model.circuit.structure)
        np.testing.assert_allclose(enumerate_joint(model), table, rtol=1e-13, atol=1e-15)
    assert read_nnf(path, cnf=cnf, log_literal_weights=np.zeros((6, 2))).circuit.num_variables == 6
    # the same numbers as evidence, where they have a gradient: the marginals
    model = read_nnf(path, num_variables=6)
    evidence = model.circuit.pack_variables(list(logs))
    got = sweep(model.circuit, model.log_weights, evidence)
    np.testing.assert_allclose(got.log_partition, total, rtol=1e-13)
    true = [table.take(1, axis=v).sum() / table.sum() for v in range(6)]
    np.testing.assert_allclose(got.marginals[0][:, 1], true, rtol=1e-12)
    slope = jax.grad(lambda e: log_partition(model.circuit, model.log_weights, e))(evidence)
    np.testing.assert_allclose(slope[0][:, 1], true, rtol=1e-12)


def test_constants_and_free_variables(write):
    for text in ("nnf 1 0 5\nA 0\n", "o 1 0\nt 2 0\n1 2 0\n", "t 1 0\n"):
        model = read_nnf(write(text), num_variables=5)
        check_semantics(model.circuit.structure)
        total = log_partition(model.circuit, model.log_weights)
        np.testing.assert_allclose(total, 5 * np.log(2.0), rtol=1e-14)
    one = read_nnf(write("nnf 1 0 1\nL -1\n"))
    np.testing.assert_allclose(enumerate_joint(one), [1.0, 0.0], atol=1e-15)
    # free literals weigh what they weigh; a forbidden one is left out
    logs = np.log([[0.25, 0.5], [1.0, 1.0]])
    logs[1, 0] = -np.inf
    model = read_nnf(write("t 1 0\n"), num_variables=2, log_literal_weights=logs)
    np.testing.assert_allclose(enumerate_joint(model), [[0, 0.25], [0, 0.5]], atol=1e-15)


def test_wide_gaps_cost_few_edges(write):
    # A chain of decisions, each of which leaves all later variables free in one branch: factor by
    # factor that is n^2 / 2 edges, by halves about 2 n log n.
    n = 400
    lines = ["o 1 0", f"t {n + 1} 0"]
    lines += [f"o {v} 0" for v in range(2, n + 1)]
    for v in range(1, n + 1):
        lines.append(f"{v} {n + 1} {v} 0")
        if v < n:
            lines.append(f"{v} {v + 1} {-v} 0")
    model = read_nnf(write("\n".join(lines) + "\n"))
    check_semantics(model.circuit.structure)
    total = log_partition(model.circuit, model.log_weights)
    # all but one assignment: 2^400 - 1
    np.testing.assert_allclose(total, n * np.log(2.0), rtol=1e-14)
    assert model.circuit.num_edges < 20 * n


C2D_FAULTS = [
    (("nnf 11 10 4", "nnf 11 10"), 1, "nnf nodes edges variables"),
    (("nnf 11 10 4", "nnf 11 x 4"), 1, "an integer >= 0"),
    (("nnf 11 10 4", "sdd 11"), 1, "nnf nodes edges variables .c2d."),
    (("nnf 11 10 4", "nnf 12 10 4"), 1, "12 nodes and 10 edges, as the header says"),
    (("nnf 11 10 4", "nnf 11 10 5"), 1, "at most 4 variables"),
    (("nnf 11 10 4", "nnf 11 10 2"), 5, "one literal, 1 to 2"),
    (("L 3", "L 0"), 5, "one literal, 1 to 4"),
    (("L 3", "L 3 4"), 5, "one literal"),
    (("L 3", "L"), 5, "L literal, A count"),
    (("L 3", "L --3"), 5, "an integer of at most 17 digits"),
    (("L 3", "L 1_0"), 5, "an integer of at most 17 digits"),
    (("L 3", "X 3"), 5, "L literal, A count"),
    (("A 2 2 3", "A 3 2 3"), 6, "3 children"),
    (("A 2 2 3", "A 2 2 5"), 6, "the number of an earlier node"),
    (("A 2 2 3", "A 2 2 -1"), 6, "the number of an earlier node"),
    (("O 2 2 1 4", "O 9 2 1 4"), 7, "a decision variable, 0 to 4"),
    (("A 2 2 3", "A 2 2 1"), 6, "without a common variable, got 'variable 2"),
    (("O 2 2 1 4", "O 3 2 1 4"), 7, "that variable 3 tells apart"),
    (("O 2 2 1 4", "O 2 2 1 3"), 7, "that variable 2 tells apart"),
    (("O 2 2 1 4", "O 2 3 1 4 1"), 7, "that variable 2 tells apart"),
    (("L 3\nA 2 2 3", "A 0\nA 1 3"), 7, "one that is always true"),
]


@pytest.mark.parametrize(("change", "line", "match"), C2D_FAULTS)
def test_c2d_faults(write, change, line, match):
    assert change[0] in C2D
    text = C2D.replace(*change, 1)
    if line > 4 and "nnf 11 10 4" in text:
        text = text.replace("nnf 11 10 4", "nnf 0 0 4")  # sizes unknown: the fault meant is met
    with pytest.raises(ModelFileError, match=match) as error:
        read_nnf(write(text), num_variables=4)
    assert error.value.line == line


@pytest.mark.parametrize(
    ("change", "line", "match"),
    [
        (("o 10 0", "o 10"), 1, "a node, o id 0, or an edge"),
        (("o 10 0", "q 10 0"), 1, "nnf nodes edges variables .c2d., or a node"),
        (("o 2 0", "o 10 0"), 2, "a new id"),
        (("o 2 0", "o 2 5 0"), 2, "one id and 0"),
        (("o 2 0", "o -2 0"), 2, "an integer >= 0"),
        (("10 3 1 0", "10 3 1"), 5, "is the line cut off"),
        (("10 3 1 0", "10 0"), 5, "a node, o id 0|parent child"),
        (("10 3 1 0", "10 3 0 1 0"), 5, "none of them 0"),
        (("10 3 1 0", "10 4 1 0"), 5, "the id of a node of the file"),
        (("10 3 1 0", "11 3 1 0"), 5, "the id of a node of the file"),
        (("10 3 1 0", "3 2 1 0"), 5, "a parent that is an o or a"),
        (("10 3 1 0", "10 3 5 0"), 5, "a variable from 1 to 4"),
        (("10 3 1 0", "10 3 99999999999999999999 0"), 5, "an integer of at most 17"),
        (("10 2 -1 0", "10 2 4 0"), 1, "that a literal tells apart"),
        (("10 2 -1 0", "10 2 -2 0"), 8, "without a common variable, got 'variable 2"),
        (("10 2 -1 0", "10 2 -1 0\n2 10 0"), 1, "not on or above a cycle"),
        (("10 3 1 0", "10 3 0"), 1, "one that is always true"),
    ],
)
def test_d4_faults(write, change, line, match):
    assert change[0] in D4
    with pytest.raises(ModelFileError, match=match) as error:
        read_nnf(write(D4.replace(*change, 1)), num_variables=4)
    assert error.value.line == line


def test_claims_that_are_not_checked(write):
    # An or-node of c2d's form with decision 0 claims nothing: SDD compilers write such.
    text = "nnf 7 8 2\nL 1\nL -1\nL 2\nL -2\nA 2 0 2\nA 2 1 3\nO 0 2 4 5\n"
    model = read_nnf(write(text.replace("nnf 7 8", "nnf 7 6")))
    np.testing.assert_allclose(enumerate_joint(model), np.eye(2), atol=1e-15)
    # Literals of nested and-nodes tell branches apart too.
    nested = "nnf 8 7 3\nL 1\nL -1\nL 2\nL 3\nA 2 0 2\nA 2 4 3\nA 2 1 2\nO 1 2 5 6\n"
    model = read_nnf(write(nested.replace("nnf 8 7", "nnf 8 8")))
    wanted = np.zeros((2, 2, 2))
    wanted[0, 1, :] = wanted[1, 1, 1] = 1
    np.testing.assert_allclose(enumerate_joint(model), wanted, atol=1e-15)


def test_wrong_weights(write):
    path = write(C2D)
    with pytest.raises(ValueError, match=r"log_literal_weights has shape \(3, 2\)"):
        read_nnf(path, log_literal_weights=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NaN or"):
        read_nnf(path, log_literal_weights=np.full((4, 2), np.nan))
    forbidden = np.zeros((4, 2))
    forbidden[:3, 1] = -np.inf
    with pytest.raises(ModelFileError, match="none of positive weight"):
        read_nnf(path, log_literal_weights=forbidden)
    forbidden = np.zeros((4, 2))
    forbidden[3] = -np.inf
    with pytest.raises(ModelFileError, match="both literals of variable 4"):
        read_nnf(path, log_literal_weights=forbidden)
    for text in ("", "c nothing\n", "nnf 0 0 0\n", "nnf 1 0 0\nA 0\n", "nnf 1 0 1\nO 0 0\n"):
        with pytest.raises(ModelFileError):
            read_nnf(write(text))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("nnf 1 0 100000000\nA 0\n", "at most 262"),
        ("o 1 0\nt 2 0\n1 2 100000000 0\n", "at most 262"),
        ("nnf 1 0 1\nA 100000000000 0\n", "100000000000 children"),
        ("nnf 1 0 1\nL " + "9" * 5000 + "\n", "an integer of at most 17 digits"),
        ("nnf 0 0 1\n" + "L 1\n" * 50_001, "at most 50000 nodes"),
        # scopes: 12,000 decisions on as many variables below one another
        (
            "o 1 0\nt 2 0\n"
            + "".join(f"o {v} 0\n{v} 2 {v} 0\n{v} {v + 1} {-v} 0\n" for v in range(3, 12_000))
            + "o 12000 0\n12000 2 1 0\n1 3 0\n",
            "whose scopes take at most",
        ),
    ],
    ids=["many free", "large literal", "many children", "digits", "nodes", "scopes"],
)
def test_hostile_files(write, text, match, monkeypatch):
    monkeypatch.setattr(reader, "_MOST_NODES", 50_000)
    monkeypatch.setattr(smoothing, "_MOST_SCOPE_BYTES", 2**26)
    path = write(text)
    start = time.process_time()
    with pytest.raises(ModelFileError, match=match):
        read_nnf(path)
    assert time.process_time() - start < 2.0
