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
    tree_circuit,
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
        "ragged": ragged_trees(),
        "braided": braided_chains(),
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


def ragged_trees():
    """Three random trees whose levels have 5, 6, 6 and 6 nodes and leaves in between."""
    rng = np.random.default_rng(4)
    trees = []
    for _ in range(3):
        neighbours = [[] for _ in range(13)]
        for v in range(1, 13):
            u = int(rng.integers(max(0, v - 2), v))
            neighbours[u].append(v)
            neighbours[v].append(u)
        trees.append(neighbours)
    return tree_circuit(trees, (2,) * 13, 2)


def braided_chains(length=8):
    """Two chains over the same variables, from either end, that change places at every level."""
    inputs, levels, below = range(2 * length), [], [(), ()]
    for t in range(length - 1):
        nodes = [(t, *below[0]), (2 * length - 1 - t, *below[1])]
        first = 2 * length + 2 * t
        levels.append(nodes[::-1] if t % 2 else nodes)
        below = [(first + 1,), (first,)] if t % 2 else [(first,), (first + 1,)]
    roots = [(length - 1, *below[0]), (length, *below[1])]
    return TensorCircuit((2,) * length, 2, [v % length for v in inputs], levels, roots)


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


def as_nodes(circuit):
    """The circuit as in ``tests/reference/circuit_sweep.py``.

    Returns:
        The nodes, and a function from `TensorParameters` to the list of their parameters.
    """
    s, units, numbers, nodes = circuit.structure, range(circuit.structure.units), {}, []

    def add(kind, below, key, size):
        return node(kind, below, numbers.setdefault((*key, size), len(numbers)))

    def node(*parts):
        nodes.append(parts)
        return len(nodes) - 1

    vectors = [
        [add("leaf", v, ("log_inputs", (block, k)), s.cardinalities[v]) for k in units]
        for v, block in zip(s.variables, s.input_blocks, strict=True)
    ]

    def products(children):
        if len(children) == 1:
            return vectors[children[0]]
        return [node("product", [vectors[child][k] for child in children]) for k in units]

    row = iter(s.weights_of.tolist())
    for number, level in enumerate(s.levels):
        for children in level:
            block, mixed = next(row), number in s.mixing
            name = "log_mixing" if mixed else "log_weights"
            below = None if mixed else products(children)
            vectors.append([])
            for k in units:
                summed = [vectors[child][k] for child in children] if mixed else below
                vectors[-1].append(add("sum", summed, (name, (block, k)), len(summed)))
    top = [n for children in s.roots for n in products(children)]
    add("sum", top, ("log_root", ()), len(top))

    def parameters(tables):
        return [
            np.exp(np.asarray(getattr(tables, name)[index], np.float64)).reshape(-1)[:size]
            for name, index, size in numbers
        ]

    return nodes, parameters
