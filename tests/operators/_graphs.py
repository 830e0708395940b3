"""Small loopy graphs, one for each fast engine of belief propagation."""

import numpy as np

import klprojax as kp


def loopy_binary(seed=0, scale=0.5, n=5):
    """All pairs of five binary variables, axes in random order, and two unary factors."""
    rng = np.random.default_rng(seed)
    pairs = [(i, j) if rng.random() < 0.5 else (j, i) for i in range(n) for j in range(i)]
    graph = kp.FactorGraph([2] * n, [*pairs, (0,), (3,)])
    tables = [rng.normal(scale=scale, size=(2, 2)) for _ in pairs]
    return graph, graph.pack([*tables, rng.normal(size=2), rng.normal(size=2)])


def loopy_mixed(seed=0, scale=0.5):
    """Cycles over cardinalities 2 and 3 and arities 1 to 3."""
    rng = np.random.default_rng(seed)
    cards = [2, 3, 2, 3]
    scopes = [(0, 1), (3, 2, 1), (3, 0), (3,)]
    graph = kp.FactorGraph(cards, scopes)
    sizes = [[cards[v] for v in scope] for scope in scopes]
    return graph, graph.pack([rng.normal(scale=scale, size=size) for size in sizes])
