"""Lemmas 4.3 to 4.5 on random numbers: the unfolding and its merging identities."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klprojax.circuits import CircuitBuilder, sweep, unfold

from ._circuits import random_circuit, random_evidence

# A fixed structure, so that only numbers vary and compiled code is used again.
MODEL = random_circuit(1, (2, 3, 2), width=2)
UNFOLDING = unfold(MODEL.circuit)
SWEEPS = [jax.jit(lambda w, e, c=c: sweep(c, w, e)) for c in (MODEL.circuit, UNFOLDING.tree)]
# sums of at most a few hundred positive terms, in another order
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), zeros=st.sampled_from([0.0, 0.4]))
def test_lemmas(seed, zeros):
    circuit = MODEL.circuit
    log_weights = np.random.default_rng(seed).normal(size=circuit.num_weights) * 3
    log_weights = MODEL.log_weights * 0 + log_weights
    evidence = circuit.pack_variables(random_evidence(seed, circuit.cardinalities, zeros=zeros))
    unfolding = UNFOLDING
    tree_weights = unfolding.log_weights(log_weights)
    graph = SWEEPS[0](log_weights, evidence)
    tree = SWEEPS[1](tree_weights, evidence)
    # Lemma 4.3
    np.testing.assert_allclose(tree.log_partition, graph.log_partition, **CLOSE)
    np.testing.assert_allclose(tree.log_values, unfolding.spread(graph.log_values), **CLOSE)
    # Lemma 4.4
    merged = unfolding.merge_log(tree.log_derivatives)
    np.testing.assert_allclose(np.exp(merged), np.exp(graph.log_derivatives), **CLOSE)
    # Lemma 4.5
    for a, b in zip(tree.marginals, graph.marginals, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)
    np.testing.assert_allclose(unfolding.merge_edges(tree.edge_probs), graph.edge_probs, **CLOSE)
    np.testing.assert_allclose(unfolding.merge(tree.visits), graph.visits, **CLOSE)
    np.testing.assert_allclose(tree.gates, graph.gates[unfolding.weight_of], **CLOSE)


def test_the_tree_is_a_tree_and_the_graph_was_none():
    for seed in range(5):
        circuit = random_circuit(seed).circuit
        s = circuit.structure
        assert np.bincount(s.children).max() > 1
        unfolding = unfold(circuit)
        tree = unfolding.tree.structure
        assert np.bincount(tree.children, minlength=tree.num_nodes).max() == 1
        assert tree.num_edges == tree.num_nodes - 1
        tree_scopes = [tree.scope_of(n) for n in range(tree.num_nodes)]
        assert tree_scopes == [s.scope_of(int(n)) for n in unfolding.copy_of]


def test_merge_log_of_many_copies():
    b = CircuitBuilder([2])
    x = [b.indicator(0, t) for t in (0, 1)]
    node = b.sum(x)
    for _ in range(7):
        node = b.sum([node, node])
    check_merge_log(b.build(node).circuit)


def test_merge_log_of_one_node_with_many_copies_among_nodes_with_one():
    # a row of 100 for every node would be far too much
    b = CircuitBuilder([2])
    shared = b.sum([b.indicator(0, t) for t in (0, 1)])
    check_merge_log(b.build(b.sum([b.sum([shared]) for _ in range(100)])).circuit)


def check_merge_log(circuit):
    """Against a loop over nodes."""
    unfolding = unfold(circuit)
    values = np.linspace(-3.0, 2.0, unfolding.tree.num_nodes)
    values[::5] = -np.inf
    values[unfolding.copy_of == 1] = -np.inf
    got = unfolding.merge_log(circuit.uniform_weights()[:1] * 0 + values)
    for n in range(circuit.num_nodes):
        total = np.exp(values[unfolding.copy_of == n]).sum()
        np.testing.assert_allclose(np.exp(got[n]), total, rtol=1e-12)


def test_size_limit():
    b = CircuitBuilder([2])
    node = b.sum([b.indicator(0, t) for t in (0, 1)])
    for _ in range(60):
        node = b.sum([node, node])
    circuit = b.build(node).circuit
    with pytest.raises(ValueError, match=r"Unfolded, the circuit has 4\.612e\+18 nodes"):
        unfold(circuit)
    with pytest.raises(ValueError, match="more than max_nodes=10"):
        unfold(MODEL.circuit, max_nodes=10)
