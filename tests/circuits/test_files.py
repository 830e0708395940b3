"""Readers and writers of circuit files: small files, their faults, and the way back."""

import gzip
import io
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import ModelFileError
from klprojax.circuits import (
    AbstractLeaf,
    Bernoulli,
    Binomial,
    Categorical,
    CircuitBuilder,
    CircuitModel,
    Gaussian,
    is_deterministic,
    is_structured,
    load_circuit,
    log_likelihood,
    log_partition,
    read_psdd,
    read_sdd,
    read_spn,
    read_vtree,
    save_circuit,
)

from ._circuits import enumerate_joint, random_circuit

VTREE = "c a tree\nvtree 7\nL 0 1\nL 1 2\nL 2 3\nL 3 4\nI 4 0 1\nI 5 2 3\nI 6 4 5\n"
# The four-variable example of the format's authors; the values below are theirs.
PSDD = """c comment
psdd 11
L 0 0 1
L 2 1 2
L 4 2 3
L 6 3 4
L 1 0 -1
L 3 1 -2
L 5 2 -3
L 7 3 -4
D 9 5 4 4 6 -1.6094379124341003 4 7 -1.2039728043259361 5 6 -0.916290731874155 5 7 -2.302585092994
D 8 4 4 0 2 -2.302585092994 0 3 -2.302585092994 1 2 -2.302585092994 1 3 -0.35667494393873245
D 10 6 1 8 9 0.0
"""
SPN = """##NODES##
10,SUM
11,PRD
12,PRD
1,LEAVE,0,0.25,0.75
2,LEAVE,1,0.5,0.5
3,LEAVE,0,1,0
4,LEAVE,1,0.125,0.875
##EDGES##
10,11,0.4
10,12,0.6
11,1
11,2
12,3
12,4
"""
# x1 and (x2 or not x3) over the vtree ((x1 x2) x3)
SDD_VTREE = "vtree 5\nL 0 1\nL 1 2\nI 2 0 1\nL 3 3\nI 4 2 3\n"
SDD = """sdd 9
F 0
T 1
L 2 0 1
L 3 1 2
L 4 1 -2
L 5 3 -3
L 10 0 -1
D 6 2 2 2 3 10 0
D 7 2 2 2 4 10 0
D 8 4 3 6 1 7 5 10 0
"""


@pytest.fixture
def write(tmp_path):
    def writer(text, name):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def test_psdd(write):
    path = write(PSDD, "a.psdd")
    for vtree in (None, write(VTREE, "a.vtree"), read_vtree(write(VTREE, "a.vtree"))):
        circuit, log_weights, parameters = read_psdd(path, vtree)
    assert circuit.cardinalities == (2, 2, 2, 2)
    rows = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    got = log_likelihood(circuit, log_weights, rows, leaf_parameters=parameters)
    # published to two digits; the weights are printed to 1e-13
    np.testing.assert_allclose(np.exp(got), [0.07, 0.03, 0.14], rtol=1e-11)


def test_psdd_true_nodes(write):
    text = "psdd 6\nL 0 0 1\nL 1 0 -1\nT 4 1 2 -1.6094379124341003\nL 2 1 2\n"
    text += "D 5 2 2 1 4 -0.6931471805599453 0 2 -0.6931471805599453\n"
    model = read_psdd(write(text, "t.psdd"))
    joint = enumerate_joint(model)
    np.testing.assert_allclose(joint, [[0.4, 0.1], [0.0, 0.5]], atol=1e-15)


def test_spn(write):
    model = read_spn(write(SPN, "a.spn.txt"))
    joint = enumerate_joint(model)
    first = 0.4 * np.outer([0.25, 0.75], [0.5, 0.5])
    second = 0.6 * np.outer([1, 0], [0.125, 0.875])
    np.testing.assert_allclose(joint, first + second, atol=1e-15)
    packed = write("", "b.spn.txt.gz")
    packed.write_bytes(gzip.compress(SPN.encode()))
    assert read_spn(packed).circuit == model.circuit


def test_sdd(write):
    model = read_sdd(write(SDD, "a.sdd"), write(SDD_VTREE, "a.vtree"))
    joint = enumerate_joint(model)
    wanted = np.zeros((2, 2, 2))
    wanted[1, 1] = 1
    wanted[1, 0, 0] = 1
    np.testing.assert_allclose(joint, wanted, atol=1e-15)
    total = log_partition(model.circuit, model.log_weights)
    np.testing.assert_allclose(np.exp(total), 3.0, rtol=1e-14)
    # x1 and not x3: a prime below its side of the vtree, x2 left free
    free = "sdd 6\nF 0\nL 2 0 1\nL 5 3 -3\nL 10 0 -1\nD 8 4 2 2 5 10 0\n"
    model = read_sdd(write(free, "f.sdd"), write(SDD_VTREE, "a.vtree"))
    wanted = np.zeros((2, 2, 2))
    wanted[1, :, 0] = 1
    np.testing.assert_allclose(enumerate_joint(model), wanted, atol=1e-15)
    true = read_sdd(write("sdd 1\nT 0\n", "t.sdd"), read_vtree(write(SDD_VTREE, "t.vtree")))
    np.testing.assert_allclose(
        np.exp(log_partition(true.circuit, true.log_weights)), 8.0, rtol=1e-14
    )


def test_an_sdd_follows_its_vtree(write):
    # x1 and x4, or not x1 and x3 and not x4, or not x1 and not x3; the first prime lacks two levels
    vtree = "vtree 7\nL 0 1\nL 1 2\nI 2 0 1\nL 3 3\nI 4 2 3\nL 5 4\nI 6 4 5\n"
    text = (
        "sdd 11\nF 0\nT 1\nL 2 0 1\nL 3 0 -1\nL 4 3 3\nL 5 3 -3\nL 6 5 4\nL 7 5 -4\n"
        "D 8 4 2 3 4 2 0\nD 9 4 2 3 5 2 0\nD 10 6 3 2 6 8 7 9 1\n"
    )
    model = read_sdd(write(text, "a.sdd"), write(vtree, "a.vtree"))
    x1, _, x3, x4 = np.indices((2, 2, 2, 2)) == 1
    wanted = np.where(x1, x4, ~x3 | ~x4)
    np.testing.assert_allclose(enumerate_joint(model), wanted, atol=1e-15)
    assert is_structured(model.circuit)
    assert is_deterministic(model.circuit)  # so that `mpe` is exact


def test_vtree(write):
    tree = read_vtree(write(VTREE, "a.vtree"))
    assert tree.root == 6
    assert tree.variable == {0: 0, 1: 1, 2: 2, 3: 3}
    assert tree.below(1, 4)
    assert not tree.below(1, 5)
    assert tree.below(6, 6)


PSDD_FAULTS = [
    (("psdd 11", "sdd 11"), 2, "the header, psdd and a count"),
    (("psdd 11", "psdd eleven"), 2, "an integer >= 0"),
    (("L 0 0 1", "L 0 0"), 3, "L id vtree literal"),
    (("L 0 0 1", "Q 0 0 1"), 3, "L id vtree literal"),
    (("L 0 0 1", "L 0 0 0"), 3, "a literal, a variable from 1"),
    (("L 0 0 1", "L 0 0 x"), 3, "an integer >= 0"),
    (("L 2 1 2", "L 0 1 2"), 4, "a new id"),
    (("L 6 3 4", "L 6 3 400"), 6, "a variable from 1 to 8"),
    (("D 9 5 4 4", "D 9 5 3 4"), 11, "three words for each of 3"),
    (("D 9 5 4 4", "D 9 5 4 44"), 11, "the id of an earlier line"),
    (("-1.6094379124341003", "nan"), 11, "a finite number"),
    (("-1.6094379124341003", "-1_0"), 11, "a finite number"),
    (("D 10 6 1 8 9", "D 10 6 1 8 8"), 13, "a complete, decomposable.*not decomposable"),
    (("D 9 5 4 4 6", "D 9 5 4 0 6"), 11, "a complete, decomposable.*not complete"),
]


@pytest.mark.parametrize(("change", "line", "match"), PSDD_FAULTS)
def test_psdd_faults(write, change, line, match):
    assert change[0] in PSDD
    path = write(PSDD.replace(*change, 1), "bad.psdd")
    with pytest.raises(ModelFileError, match=match) as error:
        read_psdd(path)
    assert error.value.line == line
    assert error.value.path == str(path)


@pytest.mark.parametrize(
    ("change", "line", "match"),
    [
        (("L 0 0 1", "L 0 17 1"), 3, "the id of a vtree node"),
        (("L 0 0 1", "L 0 1 1"), 3, "the variable of vtree leaf 1"),
        (("D 9 5 4", "D 9 4 4"), 11, "a node in the left subtree of vtree node 4"),
        (("D 9 5 4", "D 9 1 4"), 11, "an inner vtree node"),
        (("D 8 4 4 0 2", "D 8 4 4 2 0"), 12, "a node in the left subtree of vtree node 4"),
    ],
)
def test_psdd_against_its_vtree(write, change, line, match):
    vtree = write(VTREE, "a.vtree")
    with pytest.raises(ModelFileError, match=match) as error:
        read_psdd(write(PSDD.replace(*change, 1), "bad.psdd"), vtree)
    assert error.value.line == line


def test_psdd_true_node_faults(write):
    for line, match in (
        ("T 0 0 -1 -0.5", "a variable from 1"),
        ("T 0 0 1 0.5", "the logarithm of a probability"),
        ("T 0 0 1 x", "a finite number"),
    ):
        with pytest.raises(ModelFileError, match=match):
            read_psdd(write(f"psdd 1\n{line}\n", "bad.psdd"))
    with pytest.raises(ModelFileError, match="none before the file ends"):
        read_psdd(write("psdd 1\n", "bad.psdd"))


@pytest.mark.parametrize(
    ("change", "line", "match"),
    [
        (("##NODES##\n", ""), 1, "##NODES##"),
        (("##EDGES##", "##NODES##"), 9, "##NODES## once, then ##EDGES## once"),
        (("11,PRD", "11,MAX"), 3, "id,SUM or id,PRD"),
        (("12,PRD", "11,PRD"), 4, "a new id"),
        (("0.25,0.75", "0.25,-1"), 5, "a number >= 0"),
        (("1,LEAVE,0", "1,LEAVE,900"), 5, "a variable from 1 to 4"),
        (("10,11,0.4", "10,11"), 10, "parent,child,weight"),
        (("10,11,0.4", "10,77,0.4"), 10, "the id of a node listed above"),
        (("10,11,0.4", "1,11,0.4"), 10, "a parent that is a SUM or PRD"),
        (("10,11,0.4", "10,11,0"), 10, "a weight above 0"),
        (("11,1\n", "11,1,0.5\n"), 12, "parent,child"),
        (("11,1\n11,2\n", ""), 3, "a node with children"),
        (("10,11,0.4\n", ""), 3, "exactly one node without a parent"),
        (("11,1\n", "11,10\n"), 2, "a node not on or above a cycle"),
        (("12,4", "12,4\n12,2"), 4, "not decomposable"),
    ],
)
def test_spn_faults(write, change, line, match):
    assert change[0] in SPN
    with pytest.raises(ModelFileError, match=match) as error:
        read_spn(write(SPN.replace(*change, 1), "bad.spn.txt"))
    assert error.value.line == line


def test_spn_cut_off_or_cyclic(write):
    with pytest.raises(ModelFileError, match="is it cut off"):
        read_spn(write(SPN[: SPN.index("##EDGES")], "bad.spn.txt"))
    cyclic = SPN.replace("##EDGES##\n", "20,SUM\n21,SUM\n##EDGES##\n20,21,1\n21,20,1\n")
    with pytest.raises(ModelFileError, match="a node not on or above a cycle"):
        read_spn(write(cyclic, "bad.spn.txt"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("sdd 9", "psdd 9"), "the header, sdd"),
        (("L 2 0 1", "L 2 0 3"), "the variable of vtree leaf 0"),
        (("L 2 0 1", "L 3 0 1"), "a new id"),
        (("T 1", "T 1 1"), "F id, T id"),
        (("D 6 2 2", "D 6 2 3"), "two words for each of 3"),
        (("D 6 2 2 2 3", "D 6 2 2 2 33"), "the id of an earlier line"),
        (("D 6 2 2 2 3", "D 6 2 2 5 3"), "a node below vtree node 0"),
        (("D 6 2 2", "D 6 0 2"), "an inner vtree node"),
    ],
)
def test_sdd_faults(write, change, match):
    assert change[0] in SDD
    with pytest.raises(ModelFileError, match=match):
        read_sdd(write(SDD.replace(*change, 1), "bad.sdd"), write(SDD_VTREE, "a.vtree"))


def test_sdd_without_models(write):
    vtree = write(SDD_VTREE, "a.vtree")
    with pytest.raises(ModelFileError, match="a formula with a model"):
        read_sdd(write("sdd 1\nF 0\n", "bad.sdd"), vtree)
    with pytest.raises(ModelFileError, match="none before the file ends"):
        read_sdd(write("sdd 1\n", "bad.sdd"), vtree)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("vtree 7", "tree 7"), "the header, vtree"),
        (("L 1 2", "L 1"), "L id variable, or I id left right"),
        (("L 1 2", "L 0 2"), "a new id"),
        (("L 1 2", "L 1 1"), "a variable from 1 that has no leaf yet"),
        (("I 4 0 1", "I 4 0 9"), "the id of an earlier line"),
        (("I 5 2 3", "I 5 1 3"), "a child not used"),
        (("I 6 4 5\n", ""), "a tree: every node but the last"),
        (("L 1 2", "L 1 9"), "the variables 1 to the number of leaves"),
    ],
)
def test_vtree_faults(write, change, match):
    assert change[0] in VTREE
    with pytest.raises(ModelFileError, match=match):
        read_vtree(write(VTREE.replace(*change, 1), "bad.vtree"))
    with pytest.raises(ModelFileError, match="none before the file ends"):
        read_vtree(write("vtree 0\n", "bad.vtree"))


def mixed_model():
    b = CircuitBuilder([2, 3, 0, 2])
    parts = [
        b.product(
            [
                b.leaf(0, Bernoulli(), 0.3 * k),
                b.leaf(1, Binomial() if k else Categorical(), 0.5 if k else [0.0, -np.inf, 1.0]),
                b.leaf(2, Gaussian(), [0.5 * k, -0.5]),
                b.sum([b.indicator(3, t) for t in (0, 1)]),
            ],
            name=f"part {k}",
        )
        for k in (0, 1)
    ]
    return b.build(b.sum(parts, np.log([0.25, 0.75]), name="root"))


def test_save_and_load(tmp_path):
    for k, model in enumerate((mixed_model(), random_circuit(0))):
        path = tmp_path / f"{k}.npz"
        save_circuit(path, model)
        back = load_circuit(path)
        assert back.circuit == model.circuit
        for a, b in zip(
            (back.log_weights, *back.leaf_parameters),
            (model.log_weights, *model.leaf_parameters),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        assert load_circuit(path, dtype=np.float32).log_weights.dtype == jnp.float32
        first = path.read_bytes()
        save_circuit(path, back)
        assert path.read_bytes() == first
        with np.load(path, allow_pickle=False) as arrays:  # numpy reads it too
            assert arrays["log_weights"].shape == model.log_weights.shape


class Odd(AbstractLeaf):
    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        return ()


def test_what_cannot_be_saved(tmp_path):
    b = CircuitBuilder([2])
    with pytest.raises(ValueError, match="Leaves of family Odd cannot be saved"):
        save_circuit(tmp_path / "a.npz", b.build(b.leaf(0, Odd())))
    model = random_circuit(0)
    with pytest.raises(ValueError, match="log_weights has shape"):
        save_circuit(tmp_path / "a.npz", CircuitModel(model.circuit, model.log_weights[1:], ()))


def altered(path, change):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def set_array(name, array):
    def change(parts):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
        parts[f"{name}.npy"] = buffer.getvalue()

    return change


def set_header(**entries):
    def change(parts):
        header = json.loads(parts["header.json"])
        parts["header.json"] = json.dumps({**header, **entries}).encode()

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda parts: parts.pop("header.json"), "a header with format"),
        (lambda parts: parts.pop("kinds.npy"), "an array kinds of integers"),
        (set_header(version=2), "version 1 of the format"),
        (set_header(format="x"), "a header with format"),
        (set_header(root=True), "a root, an integer from 0"),
        (set_header(root=10**6), "The root is node 1000000"),
        (set_header(families=["Indicator", "Nobody"]), "families among"),
        (set_header(families=[]), "at least one leaf group"),
        (set_header(names=[1]), "names, a list of strings"),
        (set_array("kinds", np.zeros(3)), "an array kinds of integers"),
        (set_array("kinds", np.array([None])), "an array of numbers in kinds"),
        (set_array("children", np.array([-1])), r"integers from 0 to 2\^31"),
        (set_array("children", np.array([1, 2])), "offsets must run from 0"),
        (set_array("log_weights", np.array([np.nan])), "finite numbers"),
        (set_array("log_weights", np.zeros(3)), "log_weights has shape"),
        (set_array("states_0", np.zeros(1, int)), "leaf arrays 0 of one length"),
        (lambda parts: parts.update({"kinds.npy": parts["kinds.npy"][:-1]}), "in kinds"),
    ],
)
def test_saved_file_faults(tmp_path, change, match):
    path = tmp_path / "a.npz"
    save_circuit(path, random_circuit(0))
    altered(path, change)
    with pytest.raises(ModelFileError, match=match):
        load_circuit(path)


def test_not_a_saved_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(ModelFileError, match="a zip archive of arrays"):
        load_circuit(path)
    save_circuit(path, random_circuit(0))
    with pytest.raises(ModelFileError, match="at most 100 bytes"):
        load_circuit(path, max_bytes=100)
    # a bomb: small in the archive, large outside
    altered(path, lambda parts: parts.update(big=b"\0" * 10**6))
    with pytest.raises(ModelFileError, match="at most 500000 bytes unpacked"):
        load_circuit(path, max_bytes=500_000)


def test_a_byte_order_mark_does_not_matter(tmp_path):
    for name, text, read in (
        ("a.psdd", PSDD, read_psdd), ("a.spn.txt", SPN, read_spn), ("a.vtree", VTREE, read_vtree)
    ):  # fmt: skip
        path = tmp_path / name
        path.write_text(text)
        plain = read(path)
        path.write_text("\ufeff" + text, encoding="utf-8")
        assert repr(read(path)) == repr(plain)
