"""Chow-Liu trees and the structures built from them; files."""

import io
import itertools
import zipfile

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from klprojax.circuits.tensor import (
    TensorParameters,
    factorised_mixture,
    hclt,
    hidden_markov,
    load_tensor_circuit,
    mutual_information,
    save_tensor_circuit,
    tree_circuit,
)
from klprojax.circuits.tensor._chow_liu import center, spanning_tree

from ._models import CARDS, circuits, data


def test_mutual_information_by_hand():
    rows = data(0, rows=30, missing=True)
    found = mutual_information(rows, CARDS, pseudocount=2.0)
    for i, j in itertools.permutations(range(len(CARDS)), 2):
        table = np.full((CARDS[i], CARDS[j]), 2.0 / (CARDS[i] * CARDS[j]))
        for a, b in rows[:, [i, j]]:
            if a >= 0 and b >= 0:
                table[a, b] += 1
        table /= table.sum()
        outer = table.sum(1)[:, None] * table.sum(0)[None]
        wanted = (table * np.log(table / outer)).sum()
        np.testing.assert_allclose(found[i, j], wanted, rtol=0, atol=1e-12)  # sums of 9 terms


def test_spanning_tree_and_center():
    rng = np.random.default_rng(0)
    weights = rng.random((12, 12))
    weights = weights + weights.T
    neighbours = spanning_tree(weights)
    graph = nx.from_numpy_array(weights)
    best = nx.maximum_spanning_tree(graph)
    ours = {tuple(sorted((a, b))) for a, other in enumerate(neighbours) for b in other}
    assert ours == {tuple(sorted(edge)) for edge in best.edges}
    assert center(neighbours) in nx.center(best)
    path = [[1], [0, 2], [1, 3], [2, 4], [3]]
    assert center(path) == 2


def test_the_tree_is_that_of_the_data():
    rng = np.random.default_rng(0)
    # A Markov chain over variables 2, 0, 3, 1: each copies its neighbour nine times of ten.
    rows = np.zeros((2000, 4), int)
    rows[:, 2] = rng.integers(0, 2, 2000)
    for a, b in ((2, 0), (0, 3), (3, 1)):
        rows[:, b] = np.where(rng.random(2000) < 0.9, rows[:, a], 1 - rows[:, a])
    circuit = hclt(rows, 2)
    assert circuit.cardinalities == (2, 2, 2, 2)
    scopes = {}
    s = circuit.structure
    for node, v in enumerate(s.variables):
        scopes[node] = {v}
    edges = set()
    nodes = [c for level in s.levels for c in level] + list(s.roots)
    for n, children in enumerate(nodes):
        scopes[s.num_inputs + n] = set().union(*(scopes[c] for c in children))
        own = s.variables[children[0]]
        for child in children[1:]:
            below = s.variables[nodes[child - s.num_inputs][0]]
            edges.add(frozenset((own, below)))
    assert edges == {frozenset(e) for e in ((2, 0), (0, 3), (3, 1))}
    assert circuit.depth == 3


def test_components_of_bootstrap_samples_differ():
    rows = data(2, rows=12, cards=(2,) * 8)
    circuit = hclt(rows, 2, components=3, seed=4)
    assert circuit == hclt(rows, 2, components=3, seed=4)
    assert circuit != hclt(rows, 2, components=3, seed=5)
    assert circuit.components == 3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: hclt(np.zeros((0, 3))), "not empty"),
        (lambda: hclt(data(), 2, components=0), "components is 0"),
        (lambda: hclt(data(), 2, cardinalities=(2,) * 6), "for variable"),
        (lambda: hidden_markov(0, 2), "length is 0"),
        (lambda: tree_circuit([[[1], [0], []]], (2, 2, 2), 2), "3 nodes and 1 edges"),
        (lambda: tree_circuit([[[1, 2], [0, 2], [1, 0], []]], (2,) * 4, 2), "not connected"),
    ],
)
def test_faults(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_init_takes_a_number_or_a_key():
    circuit = factorised_mixture((2, 3), 4)
    for kind in (int, jax.random.key):
        first, again, other = (circuit.init(kind(n)).log_root for n in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.isclose(first, other).any()


def test_init_follows_the_data():
    rows = np.zeros((50, 2), int)
    rows[:5, 1] = 2
    circuit = factorised_mixture((2, 3), 4)
    p = circuit.init(0, rows=rows, scale=0.0)
    wanted = np.log(np.array([45 + 1 / 3, 1 / 3, 5 + 1 / 3]) / 51)
    np.testing.assert_allclose(p.log_inputs[1, 2], wanted, rtol=0, atol=1e-12)
    # The third state of the first variable does not exist.
    assert np.isneginf(p.log_inputs[0, :, 2]).all()
    assert abs(float(circuit.log_partition(p))) < 1e-12
    assert circuit.init(0, dtype=jnp.float32).log_root.dtype == jnp.float32


@pytest.mark.parametrize("name", circuits())
def test_files_keep_everything(tmp_path, name):
    circuit = circuits()[name]
    p = circuit.init(0, dtype=jnp.float32)
    file = tmp_path / "circuit.npz"
    save_tensor_circuit(file, circuit, p)
    model = load_tensor_circuit(file)
    assert model.circuit == circuit
    for a, b in zip(jax.tree.leaves(model.parameters), jax.tree.leaves(p), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.npz"]


def test_damaged_files(tmp_path):
    circuit = circuits()["chain"]
    p = circuit.init(0)
    file = tmp_path / "circuit.npz"
    with pytest.raises(ValueError, match="log_weights has shape"):
        save_tensor_circuit(file, circuit, circuits()["hclt"].init(0))
    save_tensor_circuit(file, circuit, p)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="zip archive"):
        load_tensor_circuit(file)
    file.write_bytes(good)
    with pytest.raises(ValueError, match="500"):
        load_tensor_circuit(file, max_bytes=500)

    def changed(member, edit):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, edit(content) if name == member else content)
        file.write_bytes(out.getvalue())

    changed("header.json", lambda b: b.replace(b"tensor-circuit", b"another"))
    with pytest.raises(ValueError, match="header with format"):
        load_tensor_circuit(file)
    changed("header.json", lambda b: b"{")
    with pytest.raises(ValueError, match="header with format"):
        load_tensor_circuit(file)
    changed("header.json", lambda b: b.replace(b'"units": 3', b'"units": 2'))
    with pytest.raises(ValueError, match="a valid tensor circuit"):
        load_tensor_circuit(file)
    bad = TensorParameters(p.log_weights * jnp.nan, p.log_inputs, p.log_root)
    save_tensor_circuit(file, circuit, bad)
    with pytest.raises(ValueError, match="no NaN"):
        load_tensor_circuit(file)
