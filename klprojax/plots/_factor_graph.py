"""Factor graphs: variables as circles, factors as squares."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..graphs import FactorGraph
from ._axes import make_axes

_FACTOR_COLOR, _EDGE_COLOR = "0.25", "0.6"
# Beyond this the picture is a blot, and the layout's work, quadratic in the nodes, a wait.
_MOST_NODES = 2000


def factor_graph(
    graph: FactorGraph,
    beliefs: Sequence[Any] | None = None,
    ax: Any = None,
    *,
    names: Sequence[str] | None = None,
    positions: Any = None,
    seed: int = 0,
) -> Any:
    """Draw a factor graph: variables as circles, factors as squares, an edge where they meet.

    With beliefs, a variable's colour is the probability of its last state if it has two states, and
    of its most probable state otherwise.

    Args:
        graph: the structure.
        beliefs: probabilities of every variable, one array per cardinality, as in
            ``solution.beliefs``; plain circles if None.
        ax: axes to draw on; a new figure if None.
        names: of the variables, written beside them; their numbers if None, for graphs of at most
            60 variables.
        positions: places of the variables ``[variables, 2]``; factors are put in the middle of
            theirs. If None, a layout in which edges pull and nodes push.
        seed: of the layout.

    Returns:
        The figure.

    Raises:
        ImportError: no matplotlib.
        ValueError: too many nodes to show, or beliefs, names or positions that do not fit the
            graph.
    """
    variables, scopes = graph.num_variables, _scopes(graph)
    if variables + len(scopes) > _MOST_NODES:
        raise ValueError(
            f"The graph has {variables + len(scopes)} nodes; at most {_MOST_NODES} can be shown."
        )
    if names is not None and len(names) != variables:
        raise ValueError(f"Got {len(names)} names for {variables} variables; expected one each.")
    shades = None if beliefs is None else _shades(graph, beliefs)
    edges = [(v, variables + f) for f, scope in enumerate(scopes) for v in scope]
    if positions is None:
        places = _layout(variables + len(scopes), edges, seed)
    else:
        places = _with_factors(np.asarray(positions, float), variables, scopes)
    (axis,) = make_axes(ax, 1, (5.5, 4.5))
    for a, b in edges:
        axis.plot(*places[[a, b]].T, color=_EDGE_COLOR, linewidth=0.8, zorder=1)
    size = float(np.clip(6000 / max(variables + len(scopes), 1), 12, 160))
    circles = axis.scatter(
        *places[:variables].T,
        s=size,
        c="white" if shades is None else shades,
        cmap=None if shades is None else "viridis",
        vmin=None if shades is None else 0.0,
        vmax=None if shades is None else 1.0,
        edgecolors="black",
        zorder=3,
        label="variables",
    )
    axis.scatter(
        *places[variables:].T, s=size / 3, marker="s", c=_FACTOR_COLOR, zorder=2, label="factors"
    )
    if names is None and variables <= 60:
        names = [str(v) for v in range(variables)]
    for place, name in zip(places, names or (), strict=False):
        axis.annotate(name, place, xytext=(5, 5), textcoords="offset points", fontsize="x-small")
    if shades is not None:
        two = set(graph.cardinalities) == {2}
        axis.figure.colorbar(
            circles, ax=axis, label="belief in state 1" if two else "belief in the likeliest state"
        )
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_axis_off()
    return axis.figure


def _scopes(graph: FactorGraph) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for group in graph.group_scopes for row in np.asarray(group)]


def _shades(graph: FactorGraph, beliefs: Sequence[Any]) -> np.ndarray:
    shapes = [
        (count, states)
        for count, states in zip(graph.signature.counts, graph.signature.cardinalities, strict=True)
    ]
    found = [np.shape(table) for table in beliefs]
    if found != shapes:
        raise ValueError(
            f"Got beliefs of shapes {found}; expected {shapes}, one array a cardinality, such as "
            "solution.beliefs of one problem."
        )
    binary = set(graph.cardinalities) == {2}
    shades = np.zeros(graph.num_variables)
    for members, table in zip(graph.wiring.variables, beliefs, strict=True):
        rows = np.asarray(table, float)
        shades[np.asarray(members)] = rows[:, 1] if binary else rows.max(axis=1)
    return shades


def _with_factors(
    positions: np.ndarray, variables: int, scopes: list[tuple[int, ...]]
) -> np.ndarray:
    if positions.shape != (variables, 2):
        raise ValueError(
            f"Got positions of shape {positions.shape}; expected {(variables, 2)}, one row a "
            "variable."
        )
    scale = float(np.ptp(positions, axis=0).max()) if variables > 1 else 1.0
    seen: dict[tuple[int, ...], int] = {}
    rows = []
    for scope in scopes:
        middle = positions[list(scope)].mean(axis=0) if scope else positions.mean(axis=0)
        if len(scope) == 1:
            middle = middle + np.array([0.0, -0.06 * scale])
        # Several factors on one scope would cover each other.
        repeat = seen[scope] = seen.get(scope, -1) + 1
        rows.append(middle + np.array([0.04 * scale * repeat, 0.0]))
    return np.concatenate([positions, np.asarray(rows, float).reshape(-1, 2)])


def _layout(nodes: int, edges: list[tuple[int, int]], seed: int) -> np.ndarray:
    """Fruchterman and Reingold's forces: `d²/k` along edges, `k²/d` between all nodes."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-1, 1, size=(nodes, 2))
    if nodes < 2:
        return places
    ends = np.asarray(edges, int).reshape(-1, 2)
    k = np.sqrt(4.0 / nodes)
    for temperature in np.linspace(0.2, 0.005, 120):
        apart = places[:, None] - places[None]
        distance = np.maximum(np.linalg.norm(apart, axis=-1), 1e-3)
        force = np.einsum("ijk,ij->ik", apart, (k / distance) ** 2)
        along = places[ends[:, 0]] - places[ends[:, 1]]
        pull = along * (np.linalg.norm(along, axis=1, keepdims=True) / k)
        np.add.at(force, ends[:, 0], -pull)
        np.add.at(force, ends[:, 1], pull)
        # Gravity keeps the parts of a graph that are not connected in one picture.
        force -= 0.3 * places
        length = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-9)
        places = places + force / length * np.minimum(length, temperature)
    return places
