"""Regular structures: hidden Chow-Liu trees, hidden Markov chains, factorised mixtures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._variables import missing_entries, numeric_rows
from ._chow_liu import center, chow_liu_trees
from ._circuit import TensorCircuit
from ._structure import Node


def hclt(
    rows: Any,
    units: int = 32,
    *,
    components: int = 1,
    cardinalities: Sequence[int] | None = None,
    seed: int = 0,
) -> TensorCircuit:
    """Build a hidden Chow-Liu tree, or a mixture of them, from data.

    The maximum spanning tree of the pairwise mutual information; every variable hangs on a latent
    variable with ``units`` states, and the latent variables form the tree, rooted at its centre.

    Args:
        rows: data ``[rows, variables]``; -1 or NaN where missing.
        units: states of every latent variable.
        components: number of trees; the first is that of the data, the others those of bootstrap
            samples of its rows.
        cardinalities: states of each variable; the largest state seen plus one, and at least 2,
            if None.
        seed: of the bootstrap.

    Returns:
        The circuit's structure; `init` makes parameters.

    Raises:
        ValueError: no rows, or states that do not fit.

    Reference:
        Liu and Van den Broeck, Tractable regularization of probabilistic circuits (2021);
        Chow and Liu, Approximating discrete probability distributions (1968).

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits.tensor import hclt
        >>> rows = np.random.default_rng(0).integers(0, 2, size=(50, 3))
        >>> circuit = hclt(rows, units=4)
        >>> parameters = circuit.init(seed=0)
        >>> circuit.log_likelihood(parameters, rows).shape
        (50,)
        >>> round(float(circuit.log_partition(parameters)), 5)
        0.0
    """
    if components < 1:
        raise ValueError(f"components is {components}; it must be at least 1.")
    cards = _cardinalities(rows, cardinalities)
    # Checks the rows against the cardinalities.
    states = factorised_mixture(cards, 1).states_from_data(rows)
    trees = chow_liu_trees(states, cards, components, seed)
    return tree_circuit(trees, cards, units)


def tree_circuit(
    trees: Sequence[Sequence[Sequence[int]]], cardinalities: Sequence[int], units: int
) -> TensorCircuit:
    """Build a mixture of latent trees of given shapes.

    Args:
        trees: per component the neighbours of every variable in its tree.
        cardinalities: states of each variable.
        units: states of every latent variable.

    Raises:
        ValueError: a component that is no tree over all variables.
    """
    cards = tuple(map(int, cardinalities))
    depth_first: list[list[tuple[int, int]]] = []  # per depth, (component, variable)
    children: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for c, neighbours in enumerate(trees):
        edges = sum(map(len, neighbours))
        if len(neighbours) != len(cards) or edges != 2 * (len(cards) - 1):
            raise ValueError(
                f"Component {c} has {len(neighbours)} nodes and {edges / 2:g} edges; a tree over "
                f"{len(cards)} variables has {len(cards) - 1} edges."
            )
        front, seen, depth = [center(list(map(list, neighbours)))], set(), 0
        while front:
            seen.update(front)
            below = []
            for v in front:
                own = [u for u in neighbours[v] if u not in seen]
                children[c, v] = [(c, u) for u in own]
                below += own
            if len(depth_first) == depth:
                depth_first.append([])
            depth_first[depth] += [(c, v) for v in front]
            front, depth = below, depth + 1
        if len(seen) != len(cards):
            raise ValueError(f"Component {c} is not connected.")
    order = depth_first[::-1]  # lowest level first; in a level, children of one node side by side
    inputs = [node for level in order for node in level]
    number = {node: n for n, node in enumerate(inputs)}
    identity: dict[tuple[int, int], int] = {}
    levels: list[list[Node]] = []
    for level in order[:-1]:
        new: list[Node] = [(number[n], *(identity[u] for u in children[n])) for n in level]
        start = len(inputs) + len(identity)
        identity |= {node: start + k for k, node in enumerate(level)}
        levels.append(new)
    roots = sorted(order[-1])
    return TensorCircuit(
        cards,
        units,
        [v for _, v in inputs],
        levels,
        [(number[n], *(identity[u] for u in children[n])) for n in roots],
    )


def hidden_markov(
    length: int, units: int, *, cardinality: int = 2, homogeneous: bool = True
) -> TensorCircuit:
    """Build a hidden Markov chain: variable t hangs on a latent state with ``units`` values.

    Args:
        length: number of steps, each one variable.
        units: number of hidden states.
        cardinality: states of every observed variable.
        homogeneous: share transition and emission tables among all steps.

    Returns:
        The circuit's structure; `init` makes parameters.
    """
    if length < 1:
        raise ValueError(f"length is {length}; a chain has at least 1 step.")
    levels: list[list[Node]] = []
    below: Node = ()
    for t in range(length - 1, 0, -1):
        levels.append([(t, *below)])
        below = (length + len(levels) - 1,)
    return TensorCircuit(
        (cardinality,) * length,
        units,
        range(length),
        levels,
        [(0, *below)],
        input_blocks=(0,) * length if homogeneous else None,
        sum_blocks=(0,) * (length - 1) if homogeneous else None,
    )


def factorised_mixture(cardinalities: Sequence[int], units: int) -> TensorCircuit:
    """Build a mixture of ``units`` fully factorised distributions.

    Args:
        cardinalities: states of each variable.
        units: number of components of the mixture.

    Returns:
        The circuit's structure; `init` makes parameters.
    """
    variables = range(len(cardinalities))
    return TensorCircuit(cardinalities, units, variables, (), [tuple(variables)])


def _cardinalities(rows: Any, cardinalities: Sequence[int] | None) -> tuple[int, ...]:
    rows = numeric_rows(rows)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"The data has shape {rows.shape}; expected [rows, variables], not empty.")
    if cardinalities is not None:
        return tuple(map(int, cardinalities))
    top = np.max(rows, axis=0, initial=0, where=~missing_entries(rows))
    return tuple(max(2, int(t) + 1) for t in top)
