"""Writers of circuit files: what is read back has the same value at every joint state."""

import numpy as np
import pytest

import klprojax
from klprojax.circuits import (
    Bernoulli,
    Categorical,
    CircuitBuilder,
    compile_model,
    is_deterministic,
    is_structured,
    read_nnf,
    read_psdd,
    read_sdd,
    read_spn,
    read_vtree,
    write_nnf,
    write_psdd,
    write_spn,
    write_vtree,
)
from tests.circuits._formulas import c2d_text, compile_tree, random_clauses, truth_table

from ._circuits import enumerate_joint, random_circuit
from .test_files import PSDD, SDD, SDD_VTREE, SPN, VTREE


@pytest.fixture
def read(tmp_path):
    """Read a text with a reader, through a file."""

    def reader(function, text, *more):
        path = tmp_path / "source"
        path.write_text(text)
        return function(path, *more)

    return reader


def mixture():
    """Two components over shared leaves of several families."""
    b = CircuitBuilder([2, 2, 2])
    odd = b.leaf(0, Bernoulli(), 0.3)
    flat = b.leaf(1, Categorical(), [0.5, -np.inf])
    parts = [b.product([odd, flat, b.indicator(2, 0)]), b.product([odd, b.leaf(1), b.leaf(2)])]
    return b.build(b.sum(parts, [-1.0, 2.5]))


def small_network():
    """A model of three binary variables with a zero, as a circuit."""
    rng = np.random.default_rng(3)
    tables = [rng.normal(size=2), rng.normal(size=(2, 2)), rng.normal(size=(2, 2))]
    tables[1][0, 1] = -np.inf
    return compile_model(klprojax.DiscreteModel((2, 2, 2), ((0,), (0, 1), (1, 2)), tuple(tables)))


def test_spn(read, tmp_path):
    models = [mixture(), small_network(), read(read_spn, SPN), read(read_psdd, PSDD)]
    models.append(random_circuit(1, (2, 2, 2, 2)))
    for model in models:
        for name in ("a.spn.txt", "a.spn.txt.gz"):
            write_spn(tmp_path / name, model)
            back = read_spn(tmp_path / name)
            # numbers are printed to the last digit; exp and log round by an ulp each
            np.testing.assert_allclose(enumerate_joint(back), enumerate_joint(model), rtol=1e-13)
            assert (back.circuit.num_nodes, back.circuit.num_edges) == (
                model.circuit.num_nodes,
                model.circuit.num_edges,
            )
    # weights that no float64 holds
    b = CircuitBuilder([2])
    far = b.build(b.sum([b.indicator(0, 0), b.indicator(0, 1)], [-2000.0, 1000.0]))
    write_spn(tmp_path / "far.spn", far)
    np.testing.assert_allclose(read_spn(tmp_path / "far.spn").log_weights, far.log_weights)


def test_nnf(read, tmp_path):
    rng = np.random.default_rng(4)
    done = 0
    while done < 8:
        n = int(rng.integers(2, 6))
        clauses = random_clauses(rng, n, int(rng.integers(1, 5)), min(n, 3))
        wanted = truth_table(n, clauses)
        if not wanted.any():
            continue
        done += 1
        model = read(read_nnf, c2d_text(n, compile_tree(clauses)))
        for name in ("a.nnf", "a.nnf.gz"):
            write_nnf(tmp_path / name, model)
            back = read_nnf(tmp_path / name)
            np.testing.assert_allclose(enumerate_joint(back), wanted, atol=1e-14)
        # written a second time, and by way of a compiled model
        factors = [truth_table(n, [clause]) for clause in clauses]
        with np.errstate(divide="ignore"):
            tables = tuple(np.log(table) for table in factors)
        scopes = tuple(tuple(range(n)) for _ in clauses)
        compiled = compile_model(klprojax.DiscreteModel((2,) * n, scopes, tables))
        write_nnf(tmp_path / "b.nnf", compiled)
        back = read_nnf(tmp_path / "b.nnf")
        np.testing.assert_allclose(enumerate_joint(back), wanted, atol=1e-14)
    (tmp_path / "t.vtree").write_text(SDD_VTREE)
    sdd = read(read_sdd, SDD, tmp_path / "t.vtree")
    write_nnf(tmp_path / "c.nnf", sdd)
    np.testing.assert_allclose(enumerate_joint(read_nnf(tmp_path / "c.nnf")), enumerate_joint(sdd))
    # decisions are named where branches begin with their literals
    assert "\nO 2 2 " in (tmp_path / "c.nnf").read_text()
    tables = CircuitBuilder([2, 2])
    both = [tables.leaf(0, Categorical(), [0.0, 0.0]), tables.leaf(1, Categorical(), [-np.inf, 0])]
    write_nnf(tmp_path / "d.nnf", tables.build(tables.product(both)))
    np.testing.assert_allclose(enumerate_joint(read_nnf(tmp_path / "d.nnf")), [[0, 1], [0, 1]])


def test_psdd(read, tmp_path):
    (tmp_path / "t.vtree").write_text(SDD_VTREE)
    models = {
        "psdd": read(read_psdd, PSDD),
        "network": small_network(),
        "asia": compile_model(klprojax.load_model("asia")),
        "sdd": read(read_sdd, SDD, tmp_path / "t.vtree"),
        "crossed": crossed(),
        "chain": read(read_nnf, c2d_text(4, compile_tree([[1, 2, 3, 4]]))),
    }
    for name, model in models.items():
        tree = write_psdd(tmp_path / "a.psdd.gz", model, tmp_path / "a.vtree")
        assert read_vtree(tmp_path / "a.vtree") == tree
        # read with the vtree, every node is checked to follow it
        back = read_psdd(tmp_path / "a.psdd.gz", tmp_path / "a.vtree")
        wanted = enumerate_joint(model)
        # weights and totals are rounded some ten times on the way from the root
        np.testing.assert_allclose(
            enumerate_joint(back), wanted / wanted.sum(), rtol=1e-12, err_msg=name
        )
        assert is_structured(back.circuit)
        assert is_deterministic(back.circuit)
        if name == "crossed":  # others would compile as much again
            assert back.circuit.is_normalized(back.log_weights, back.leaf_parameters)


def test_psdd_of_one_variable(tmp_path):
    for entries, line in (([0.0, -np.inf], "L 0 0 -1"), ([0.0, 0.0], "T 0 0 1 -0.693147")):
        b = CircuitBuilder([2])
        write_psdd(tmp_path / "a.psdd", b.build(b.leaf(0, Categorical(), entries)))
        assert line in (tmp_path / "a.psdd").read_text()


def test_vtree(read, tmp_path):
    tree = read(read_vtree, VTREE)
    write_vtree(tmp_path / "a.vtree", tree)
    assert read_vtree(tmp_path / "a.vtree") == tree


def xor_of_two_splits():
    """Structured in no way: {0, 1} {2} beside {0} {1, 2}."""
    b = CircuitBuilder([2, 2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in range(3)]
    one = b.product([b.product([x[0][0], x[1][0]]), x[2][0]])
    two = b.product([x[0][1], b.product([x[1][1], x[2][1]])])
    return b.build(b.sum([one, two], [0.0, 0.0]))


def crossed():
    """Deterministic, but no side of its vtree tells all elements apart."""
    b = CircuitBuilder([2, 2, 2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in range(4)]
    pairs = [b.product([x[2][t], x[3][u]]) for t in (0, 1) for u in (0, 1)]
    free = b.sum(pairs, np.zeros(4))
    low, high = b.product([x[0][0], x[1][0]]), b.product([x[0][1], x[1][1]])
    left, right = b.product([x[2][0], x[3][0]]), b.product([x[2][1], x[3][1]])
    parts = [b.product([low, free]), b.product([high, left]), b.product([high, right])]
    return b.build(b.sum(parts, np.zeros(3)))


@pytest.mark.parametrize(
    ("writer", "make", "match"),
    [
        (write_spn, lambda: random_circuit(0), "variable 1 has 3 states"),
        (write_nnf, lambda: random_circuit(0), "NNF files hold binary variables only"),
        (write_psdd, lambda: random_circuit(0), "PSDD files hold binary variables only"),
        (write_nnf, small_network, "An NNF file has no weights, but sum node"),
        (write_nnf, mixture, "An NNF file has no weights, but sum node"),
        (write_psdd, xor_of_two_splits, "split one scope in several ways"),
        (write_psdd, mixture, "may be positive together"),
    ],
)
def test_what_cannot_be_written(tmp_path, writer, make, match):
    with pytest.raises(ValueError, match=match):
        writer(tmp_path / "a", make())
    assert not (tmp_path / "a").exists()


def test_what_numbers_cannot_be_written(tmp_path):
    b = CircuitBuilder([2])
    same = b.build(b.sum([b.indicator(0, 0), b.indicator(0, 0)], np.zeros(2)))
    with pytest.raises(ValueError, match="models would count twice"):
        write_nnf(tmp_path / "a", same)
    b = CircuitBuilder([2])
    with pytest.raises(ValueError, match="has some other than 1"):
        write_nnf(tmp_path / "a", b.build(b.leaf(0, Categorical(), [0.0, 1.0])))
    with pytest.raises(ValueError, match=r"P\(true\) only, to which that is lost"):
        write_psdd(tmp_path / "a", b.build(b.leaf(0, Categorical(), [-800.0, 0.0])))
    nothing = [-np.inf, -np.inf]
    with pytest.raises(ValueError, match="gives every state weight zero"):
        write_psdd(tmp_path / "a", b.build(b.leaf(0, Categorical(), nothing)))
