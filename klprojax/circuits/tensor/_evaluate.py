"""The upward pass of a tensor circuit."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Noise(NamedTuple):
    """Uniform numbers, one a row for every vector: ``[inputs or nodes or 1, batch]``."""

    inputs: Array
    nodes: Array
    root: Array


def log_sum(log_weights: Array, log_values: Array, noise: Array | None) -> Array:
    """Sums; needs no noise."""
    del noise
    return log_matmul(log_weights, log_values)


# From log-weights ``[nodes, out, in]``, log-values ``[nodes, in, batch]`` and perhaps noise
# ``[nodes, batch]`` to ``[nodes, out, batch]``: sums, or what a query has in their place.
Total = Callable[[Array, Array, Array | None], Array]


def evaluate(
    structure: TensorStructure,
    parameters: TensorParameters,
    evidence: Evidence,
    softening: float = 0.0,
    total: Total = log_sum,
    noise: Noise | None = None,
) -> Array:
    """Log-values of the root, ``[batch]``.

    Level by level: children are summed in log space, then all sums of the level are one batched
    matrix product; a mixture is a sum of one unit's values. Long chains are one scan, so what is
    compiled grows with the number of differently shaped levels.

    Args:
        structure, parameters, evidence: the circuit.
        softening: see `TensorCircuit.log_values`.
        total: what takes the place of a sum; others than `log_sum` need log-evidence, no states.
        noise: numbers for ``total``.
    """
    plan = make_plan(structure)
    tables = leaf_tables(structure, parameters.log_inputs, evidence, softening)
    variables = np.asarray(structure.variables)
    blocks = np.asarray(structure.input_blocks)
    weights_of = structure.weights_of
    levels: dict[int, Array] = {}

    def weights(nodes: np.ndarray) -> Array:
        return rows_of(parameters.log_weights, weights_of[nodes])

    def own_noise(nodes: np.ndarray) -> Array | None:
        return None if noise is None else rows_of(noise.nodes, nodes)

    def inputs(rows: np.ndarray) -> Array:
        own = rows_of(tables, blocks[rows])
        given = evidence.of(variables[rows])
        if given.log_evidence is None:
            return leaf_values(own, given)
        return total(
            own, given.log_evidence, None if noise is None else rows_of(noise.inputs, rows)
        )

    if len(plan.table_nodes) and evidence.states is None:
        levels[TABLES] = total(
            weights(plan.table_nodes), inputs(plan.table_inputs), own_noise(plan.table_nodes)
        )
    elif len(plan.table_nodes):
        below = plan.table_inputs
        mixed = log_matmul(weights(plan.table_nodes), rows_of(tables, blocks[below]))

    def values(source: int, rows: np.ndarray) -> Array:
        if source == INPUTS:
            return inputs(rows)
        if source == TABLES and evidence.states is not None:
            seen = evidence.of(variables[plan.table_inputs[rows]])
            return leaf_values(rows_of(mixed, rows), seen)
        return rows_of(levels[source], rows)

    def pooled(product: Product) -> Callable[[int, np.ndarray], Array]:
        if not product.pool:
            return values
        pool = jnp.concatenate([values(source, rows) for source, rows in product.pool])
        return lambda _, rows: rows_of(pool, rows)

    for step in plan.steps:
        product = plan.products[step.first]
        read = pooled(product)
        if step.first in structure.mixing:
            assert parameters.log_mixing is not None  # checked by the caller
            own = rows_of(parameters.log_mixing, weights_of[product.nodes])
            levels[step.last] = _mix(product, read, own, total, own_noise(product.nodes))
            continue
        carry = total(weights(product.nodes), _product(product, read), own_noise(product.nodes))
        if step.last > step.first:
            carry = _scan(
                structure, plan, step, carry, tables, parameters.log_weights, evidence, total, noise
            )
        levels[step.last] = carry
    top = _product(plan.root, pooled(plan.root))
    top = top.reshape(1, -1, top.shape[2])
    log_root = rows_of(parameters.log_root, plan.root.nodes).reshape(1, 1, -1)
    return total(log_root, top, None if noise is None else noise.root)[0, 0]


def _product(product: Product, values: Callable[[int, np.ndarray], Array]) -> Array:
    groups = []
    for group in product.groups:
        total = None
        for part in group:
            nodes, count = part.rows.shape
            if part.source in (INPUTS, TABLES) and count <= 8:
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


def _mix(
    product: Product,
    values: Callable[[int, np.ndarray], Array],
    log_mixing: Array,
    total: Total,
    noise: Array | None,
) -> Array:
    """Mixtures ``[nodes, units, batch]``: every unit a sum over the children's same unit."""
    out, start = [], 0
    for (part,) in product.groups:  # the plan gives the children of mixtures one source
        nodes, count = part.rows.shape
        below = values(part.source, part.rows.reshape(-1))
        units, batch = below.shape[1:]
        below = below.reshape(nodes, count, units, batch)
        weights = log_mixing[start : start + nodes, :, :count].reshape(-1, 1, count)
        below = below.transpose(0, 2, 1, 3).reshape(-1, count, batch)
        own_noise = None
        if noise is not None:  # a parse visits one unit, so all may have the same number
            own_noise = jnp.repeat(noise[start : start + nodes], units, axis=0)
        out.append(total(weights, below, own_noise).reshape(nodes, units, batch))
        start += nodes
    return out[0] if len(out) == 1 else jnp.concatenate(out)


def _scan(
    structure: TensorStructure,
    plan: Plan,
    step: Step,
    carry: Array,
    tables: Array,
    log_weights: Array,
    evidence: Evidence,
    total: Total,
    noise: Noise | None,
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
    random = None
    if noise is not None:
        random = (stacked(rows_of(noise.inputs, flat)), stacked(rows_of(noise.nodes, nodes)))
    xs = (
        stacked(rows_of(log_weights, structure.weights_of[nodes])),
        stacked(rows_of(tables, np.asarray(structure.input_blocks)[flat])),
        jax.tree.map(stacked, own),
        random,
    )

    def body(values: Array, x: Any) -> tuple[Array, None]:
        weights, table, seen, random = x
        for_leaves, for_sums = (None, None) if random is None else random
        if seen.log_evidence is None:
            leaves = leaf_values(table, seen)
        else:
            leaves = total(table, seen.log_evidence, for_leaves)
        if count > 1:
            leaves = leaves.reshape(-1, count, *leaves.shape[1:]).sum(axis=1)
        return total(weights, values + leaves, for_sums), None

    return jax.lax.scan(body, carry, xs)[0]
