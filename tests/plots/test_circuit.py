"""The picture of a circuit: kinds, layers, edges, thicknesses."""

import numpy as np
import pytest

from klprojax.circuits import CircuitBuilder
from klprojax.plots import circuit as draw


@pytest.fixture(autouse=True)
def _matplotlib():
    pytest.importorskip("matplotlib", reason="needs matplotlib")


@pytest.fixture
def model():
    """A mixture of two products of two binary variables that share the second leaf."""
    b = CircuitBuilder([2, 2])

    def leaf(v, p):
        return b.sum([b.indicator(v, t) for t in (0, 1)], np.log(p))

    shared = leaf(1, [0.25, 0.75])
    parts = [b.product([leaf(0, p), shared]) for p in ([0.9, 0.1], [0.5, 0.5])]
    return b.build(b.sum(parts, np.log([0.8, 0.2])))


def places_by_kind(axis):
    # White discs beneath the nodes have no label of their own.
    return {
        c.get_label(): np.asarray(c.get_offsets())
        for c in axis.collections
        if not c.get_label().startswith("_")
    }


def test_draws_every_node_in_its_layer_and_every_edge(model):
    circuit, log_weights, _ = model
    axis = draw(circuit, log_weights).axes[0]
    places = places_by_kind(axis)
    kinds = circuit.structure.kinds
    assert {k: len(v) for k, v in places.items()} == {
        "sums": int((kinds == 2).sum()),
        "products": int((kinds == 1).sum()),
        "leaves": int((kinds == 0).sum()),
    }
    assert set(places["leaves"][:, 1]) == {0.0}
    assert set(places["products"][:, 1]) == {2.0}
    assert sorted(places["sums"][:, 1]) == [1.0, 1.0, 1.0, 3.0]
    assert len(axis.lines) == circuit.num_edges
    # Every edge goes down.
    assert all(line.get_ydata()[0] > line.get_ydata()[1] for line in axis.lines)
    nodes = np.concatenate(list(places.values()))
    assert len(np.unique(nodes, axis=0)) == circuit.num_nodes


def test_weights_are_thicknesses_relative_to_the_sum(model):
    circuit, log_weights, _ = model
    structure = circuit.structure
    lines = draw(circuit, log_weights).axes[0].lines
    widths = np.array([line.get_linewidth() for line in lines])
    weights = np.exp(np.asarray(log_weights, float))
    for edge, weight in zip(structure.sum_edges, weights, strict=True):
        same = structure.parents[structure.sum_edges] == structure.parents[edge]
        # 0.2 for a weight of zero, 2.5 for the largest; float32 weights.
        np.testing.assert_allclose(
            widths[edge], 0.2 + 2.3 * weight / weights[same].max(), rtol=1e-5
        )
    rest = np.setdiff1d(np.arange(circuit.num_edges), structure.sum_edges)
    assert set(widths[rest]) == {1.0}
    assert {line.get_linewidth() for line in draw(circuit).axes[0].lines} == {1.0}


def test_a_sum_without_any_weight_is_thin(model):
    circuit, log_weights, _ = model
    lines = draw(circuit, np.full(log_weights.shape, -np.inf)).axes[0].lines
    assert {lines[e].get_linewidth() for e in circuit.structure.sum_edges} == {0.2}


def test_labels_name_signs_and_indicators(model):
    circuit, *_ = model
    texts = [t.get_text() for t in draw(circuit).axes[0].texts]
    assert texts.count("+") == 4
    assert texts.count("×") == 2
    leaves = [t for t in texts if "=" in t]
    assert set(leaves) == {"0=0", "0=1", "1=0", "1=1"}
    assert not draw(circuit, labels=False).axes[0].texts


def test_node_values_are_opacity(model):
    circuit, *_ = model
    values = np.linspace(0.1, 1.0, circuit.num_nodes)
    axis = draw(circuit, node_values=values).axes[0]
    shown = next(c for c in axis.collections if c.get_label() == "products")
    at = np.flatnonzero(circuit.structure.kinds == 1)
    np.testing.assert_allclose(shown.get_alpha(), values[at])
    assert [handle.get_alpha() for handle in axis.get_legend().legend_handles] == [None] * 3


def test_draws_on_given_axes(model):
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    assert draw(model[0], ax=axis) is axis.figure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_weights": np.zeros(3)}, r"log_weights of shape \(3,\)"),
        ({"node_values": np.zeros(3)}, "one per node"),
        ({"node_values": np.full(10, 2.0)}, r"in \[0, 1\]"),
    ],
)
def test_refuses_numbers_that_do_not_fit(model, options, message):
    with pytest.raises(ValueError, match=message):
        draw(model[0], **options)


def test_refuses_circuits_too_large_to_show():
    b = CircuitBuilder([2001])
    root = b.sum([b.indicator(0, t) for t in range(2001)])
    with pytest.raises(ValueError, match="2002 nodes; at most 2000"):
        draw(b.build(root).circuit)
