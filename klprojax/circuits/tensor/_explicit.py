"""The explicit circuit of a tensor circuit."""

import numpy as np

from .._builder import CircuitBuilder, CircuitModel
from ._parameters import TensorParameters
from ._structure import Node, TensorStructure


def explicit(s: TensorStructure, parameters: TensorParameters) -> CircuitModel:
    """Build node by node; see `TensorCircuit.to_circuit`."""
    b = CircuitBuilder(s.cardinalities)
    tables = np.asarray(parameters.log_inputs, np.float64)
    units = range(s.units)
    vectors = [
        [b.leaf(v, parameters=tables[block, k, : s.cardinalities[v]]) for k in units]
        for v, block in zip(s.variables, s.input_blocks, strict=True)
    ]

    def products(children: Node) -> list[int]:
        if len(children) == 1:
            return vectors[children[0]]
        return [b.product([vectors[child][k] for child in children]) for k in units]

    def total(children: list[int], log_weights: np.ndarray) -> int:
        kept = np.flatnonzero(log_weights > -np.inf)
        return b.sum([children[k] for k in kept], log_weights[kept])

    weights = np.asarray(parameters.log_weights, np.float64)
    row = iter(s.weights_of.tolist())
    for number, level in enumerate(s.levels):
        for children in level:
            if number in s.mixing:
                assert parameters.log_mixing is not None  # checked by the caller
                own = np.asarray(parameters.log_mixing, np.float64)[next(row)]
                each = [[vectors[child][j] for child in children] for j in units]
                vectors.append([total(each[j], own[j, : len(children)]) for j in units])
            else:
                own, below = weights[next(row)], products(children)
                vectors.append([total(below, own[j]) for j in units])
    top = [node for children in s.roots for node in products(children)]
    root = total(top, np.asarray(parameters.log_root, np.float64).reshape(-1))
    return b.build(root, dtype=parameters.log_root.dtype)
