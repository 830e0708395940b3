"""Small tensor circuits of every structure, and rows with missing entries."""

import numpy as np

from klprojax.circuits.tensor import (
    TensorCircuit,
    factorised_mixture,
    hclt,
    hidden_markov,
    poon_domingos,
    quad_tree,
    rat_spn,
)

CARDS = (2, 3, 2, 2, 3, 2)


def data(seed=0, rows=40, cards=CARDS, missing=False):
    """Rows with dependent columns."""
    rng = np.random.default_rng(seed)
    top = np.asarray(cards)
    hidden = rng.integers(0, 3, size=(rows, 1))
    out = (hidden + rng.integers(0, 2, size=(rows, len(cards)))) % top
    if missing:
        out[rng.random(out.shape) < 0.3] = -1
    return out


def circuits():
    """Name and circuit: trees of several shapes, chains short and scanned, a shared subcircuit."""
    return {
        "hclt": hclt(data(), 3, cardinalities=CARDS),
        "mixture": hclt(data(rows=15), 2, components=2, cardinalities=CARDS, seed=1),
        "chain": hidden_markov(5, 3, cardinality=3),
        "scanned": hidden_markov(14, 2),
        "untied": hidden_markov(14, 2, homogeneous=False),
        "factorised": factorised_mixture(CARDS, 4),
        # Sum node 4 is a child of two nodes; the nodes of a level alternate in kind.
        "shared": TensorCircuit(
            (2, 2, 2, 3),
            2,
            (0, 1, 2, 3),
            [[(1, 2)], [(4, 3), (0,), (4, 3)]],
            [(5, 6), (0, 7)],
        ),
    }


def region_circuits():
    """Circuits of region graphs, most with mixtures, one with children from many levels."""
    return {
        "rat": rat_spn(CARDS, 2, depth=3, repetitions=12, seed=3),
        "quad": quad_tree(3, 2, 3, cardinality=3),
        "images": poon_domingos(2, 3, 2, delta=1),
        "coarse": poon_domingos(3, 3, 2, delta=(2, 1)),
        # A mixture of a deep and a shallow way to split; it does not list them level by level.
        "uneven": TensorCircuit(
            (2, 3, 2),
            2,
            (0, 1, 2),
            [[(0, 1), (0, 1, 2), (1, 2)], [(3, 2), (0, 5)], [(7, 4, 6)]],
            [(8,), (4,)],
            mixing=(2,),
        ),
    }
