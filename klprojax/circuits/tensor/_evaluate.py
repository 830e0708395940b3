"""The upward pass of a tensor circuit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._leaf import Evidence, leaf_tables, leaf_values
from ._log_matmul import log_matmul
from ._parameters import TensorParameters
from ._plan import INPUTS, TABLES, Plan, Product, Step, make_plan
from ._rows import rows_of
from ._structure import TensorStructure


def evaluate(
    structure: TensorStructure,
    parameters: TensorParameters,
    evidence: Evidence,
    softening: float = 0.0,
) -> Array:
    """Log-values of the root, ``[batch]``.

    Level by level: children are summed in log space, then all sums of the level are one batched
    matrix product. Long chains are one scan, so what is compiled grows with the number of
    differently shaped levels.
    """
    plan = make_plan(structure)
    tables = leaf_tables(structure, parameters.log_inputs, evidence, softening)
    variables = np.asarray(structure.variables)
    blocks = np.asarray(structure.input_blocks)
    sum_blocks = np.asarray(structure.sum_blocks)
    levels: dict[int, Array] = {}

    def weights(nodes: np.ndarray) -> Array:
        return rows_of(parameters.log_weights, sum_blocks[nodes])

    read = {INPUTS: (tables, blocks, variables)}
    if len(plan.table_nodes):
        below = plan.table_inputs
        own = rows_of(tables, blocks[below])
        if evidence.states is None:
            levels[TABLES] = log_matmul(
                weights(plan.table_nodes), leaf_values(own, evidence.of(variables[below]))
            )
        else:
            mixed = log_matmul(weights(plan.table_nodes), own)
            read[TABLES] = (mixed, np.arange(len(below)), variables[below])

    def values(source: int, rows: np.ndarray) -> Array:
        if source not in read:
            return rows_of(levels[source], rows)
        table, numbers, owners = read[source]
        return leaf_values(rows_of(table, numbers[rows]), evidence.of(owners[rows]))

    for step in plan.steps:
        product = plan.products[step.first]
        carry = log_matmul(weights(product.nodes), _product(product, values))
        if step.last > step.first:
            carry = _scan(structure, plan, step, carry, tables, parameters.log_weights, evidence)
        levels[step.last] = carry
    top = _product(plan.root, values)
    top = top.reshape(1, -1, top.shape[2])
    out = log_matmul(parameters.log_root.reshape(1, 1, -1), top)
    return out[0, 0]


def _product(product: Product, values: Callable[[int, np.ndarray], Array]) -> Array:
    groups = []
    for group in product.groups:
        total = None
        for part in group:
            nodes, count = part.rows.shape
            if part.source < 0 and count <= 8:
                # One by one: each is read from a table, and XLA fuses the additions.
                for child in range(count):
                    own = values(part.source, part.rows[:, child])
                    total = own if total is None else total + own
                continue
            below = values(part.source, part.rows.reshape(-1))
            if count > 1:
                below = below.reshape(nodes, count, *below.shape[1:]).sum(axis=1)
            total = below if total is None else total + below
        assert total is not None
        groups.append(total)
    return groups[0] if len(groups) == 1 else jnp.concatenate(groups)


def _scan(
    structure: TensorStructure,
    plan: Plan,
    step: Step,
    carry: Array,
    tables: Array,
    log_weights: Array,
    evidence: Evidence,
) -> Array:
    """Levels ``first + 1`` to ``last``: each multiplies its inputs into the carry, then sums."""
    span = range(step.first + 1, step.last + 1)
    rows = np.stack([plan.products[level].groups[0][0].rows for level in span])
    count = rows.shape[2]
    length, flat = len(rows), rows.reshape(-1)
    nodes = np.concatenate([plan.products[level].nodes for level in span])

    def stacked(array: Array) -> Array:
        return array.reshape(length, -1, *array.shape[1:])

    # Slices of the tables, not the tables, go through the scan: the derivative of a table read at
    # every step would be as large as the table at every step.
    own = evidence.of(np.asarray(structure.variables)[flat])
    xs = (
        stacked(rows_of(log_weights, np.asarray(structure.sum_blocks)[nodes])),
        stacked(rows_of(tables, np.asarray(structure.input_blocks)[flat])),
        jax.tree.map(stacked, own),
    )

    def body(values: Array, x: Any) -> tuple[Array, None]:
        weights, table, seen = x
        leaves = leaf_values(table, seen)
        if count > 1:
            leaves = leaves.reshape(-1, count, *leaves.shape[1:]).sum(axis=1)
        return log_matmul(weights, values + leaves), None

    return jax.lax.scan(body, carry, xs)[0]
