"""The picture of a factor graph: nodes, edges, colours, places."""

import numpy as np
import pytest

import klprojax
from klprojax.plots import factor_graph

SCOPES = [(0,), (0, 1), (1, 2, 3)]


@pytest.fixture(autouse=True)
def _matplotlib():
    pytest.importorskip("matplotlib", reason="needs matplotlib")


def drawn(figure):
    """Places of variables and factors, and the ends of the edges."""
    axis = figure.axes[0]
    by_label = {c.get_label(): np.asarray(c.get_offsets()) for c in axis.collections}
    ends = [np.stack(line.get_data(), axis=1) for line in axis.lines]
    return by_label["variables"], by_label["factors"], ends


def meets(ends, variables, factors):
    """Which variable meets which factor, read off the picture."""
    found = []
    for a, b in ends:
        v = np.flatnonzero((variables == a).all(axis=1))
        f = np.flatnonzero((factors == b).all(axis=1))
        found.append((int(v[0]), int(f[0])))
    return sorted(found)


@pytest.mark.parametrize("cardinalities", [[2, 2, 2, 2], [2, 3, 2, 3]])
def test_every_variable_factor_and_edge_is_there(cardinalities):
    graph = klprojax.FactorGraph(cardinalities, SCOPES)
    variables, factors, ends = drawn(factor_graph(graph))
    assert len(variables) == 4
    assert len(factors) == 3
    # Factors stand group by group; which one is which is told by their scopes.
    order = [set(map(int, row)) for group in graph.group_scopes for row in group]
    wanted = sorted((v, f) for f, scope in enumerate(order) for v in scope)
    assert meets(ends, variables, factors) == wanted
    # No two nodes on one place.
    places = np.concatenate([variables, factors])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert apart[~np.eye(len(places), dtype=bool)].min() > 0.05


def test_layout_is_seeded():
    graph = klprojax.FactorGraph([2] * 4, SCOPES)
    first, again, other = (drawn(factor_graph(graph, seed=s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_given_positions_and_names():
    graph = klprojax.FactorGraph([2] * 4, [*SCOPES, (0, 1)])
    positions = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [5.0, 1.0]])
    figure = factor_graph(graph, positions=positions, names=["a", "b", "c", "d"])
    variables, factors, _ = drawn(figure)
    np.testing.assert_array_equal(variables, positions)
    texts = {t.get_text(): t.xy for t in figure.axes[0].texts}
    assert list(texts) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(np.array(list(texts.values())), positions)
    order = [tuple(map(int, row)) for group in graph.group_scopes for row in group]
    np.testing.assert_allclose(factors[order.index((1, 2, 3))], [3.0, 1.0])
    pair = [f for f, scope in enumerate(order) if scope == (0, 1)]
    # Two factors on one scope stand beside each other.
    assert np.linalg.norm(factors[pair[0]] - factors[pair[1]]) > 0.1


def test_colours_are_beliefs():
    graph = klprojax.FactorGraph([2] * 3, [(0,), (0, 1), (1, 2)])
    beliefs = (np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]),)
    figure = factor_graph(graph, beliefs)
    circles = next(c for c in figure.axes[0].collections if c.get_label() == "variables")
    np.testing.assert_allclose(circles.get_array(), [0.1, 0.5, 0.8])
    assert circles.get_clim() == (0.0, 1.0)
    assert figure.axes[1].get_ylabel() == "belief in state 1"

    mixed = klprojax.FactorGraph([3, 2], [(0, 1)])
    figure = factor_graph(mixed, (np.array([[0.3, 0.7]]), np.array([[0.2, 0.5, 0.3]])))
    circles = next(c for c in figure.axes[0].collections if c.get_label() == "variables")
    # Variable 0 has three states, whose beliefs come second.
    np.testing.assert_allclose(circles.get_array(), [0.5, 0.7])
    assert figure.axes[1].get_ylabel() == "belief in the likeliest state"


def test_draws_on_given_axes():
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    graph = klprojax.FactorGraph([2] * 4, SCOPES)
    assert factor_graph(graph, ax=axis) is axis.figure
    assert len(axis.lines) == 6


def test_graphs_without_factors_or_with_one_node():
    assert len(drawn(factor_graph(klprojax.FactorGraph([2], [])))[0]) == 1
    assert len(drawn(factor_graph(klprojax.FactorGraph([2, 2], [])))[1]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a"]}, "1 names for 4 variables"),
        ({"positions": np.zeros((3, 2))}, r"positions of shape \(3, 2\)"),
        ({"beliefs": (np.zeros((3, 2)),)}, "beliefs of shapes"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        factor_graph(klprojax.FactorGraph([2] * 4, SCOPES), **options)


def test_refuses_graphs_too_large_to_show():
    with pytest.raises(ValueError, match="3000 nodes; at most 2000"):
        factor_graph(klprojax.FactorGraph([2] * 3000, []))
