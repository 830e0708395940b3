"""The upward pass of a tensor circuit."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._leaf import Evidence, leaf_tables, leaf_values
from ._log_matmul import log_matmul
from ._parameters import TensorParameters
from ._plan import INPUTS, TABLES, Product, Scan, make_plan
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

    def reader(product: Product) -> Callable[[int, np.ndarray], Array]:
        if not product.pool:
            return values
        pool = jnp.concatenate([values(source, rows) for source, rows in product.pool])
        return lambda _, rows: rows_of(pool, rows)

    def levels_of(scan: Scan) -> _Levels:
        table_values = table_parents = None
        if scan.tables is not None:
            if evidence.states is None:
                table_values = stacked(partial(rows_of, levels[TABLES]), scan.tables.rows)
            else:
                seen = variables[plan.table_inputs[scan.tables.rows]]
                table_values = (
                    stacked(partial(rows_of, mixed), scan.tables.rows),
                    stacked(partial(rows_of, evidence.states), seen),
                )
            table_parents = jnp.asarray(scan.tables.parents)
        return _Levels(
            stacked(weights, scan.nodes),
            stacked(lambda rows: rows_of(tables, blocks[rows]), scan.inputs),
            jax.tree.map(
                lambda part: stacked(partial(rows_of, part), variables[scan.inputs]), evidence
            ),
            table_values,
            table_parents,
            None if scan.below is None or scan.in_order else jnp.asarray(scan.below.rows),
            None if scan.below is None else jnp.asarray(scan.below.parents),
            None if noise is None else stacked(partial(rows_of, noise.inputs), scan.inputs),
            None if noise is None else stacked(partial(rows_of, noise.nodes), scan.nodes),
        )

    for step in plan.steps:
        product = plan.products[step.first]
        read = reader(product)
        if step.first in structure.mixing:
            assert parameters.log_mixing is not None  # checked by the caller
            own = rows_of(parameters.log_mixing, weights_of[product.nodes])
            levels[step.last] = _mix(product, read, own, total, own_noise(product.nodes))
            continue
        carry = total(weights(product.nodes), _product(product, read), own_noise(product.nodes))
        if step.scan is not None:
            carry = _scan(carry, levels_of(step.scan), total)
            carry = carry[: len(plan.products[step.last].nodes)]
        levels[step.last] = carry
    top = _product(plan.root, reader(plan.root))
    top = top.reshape(1, -1, top.shape[2])
    log_root = rows_of(parameters.log_root, plan.root.nodes).reshape(1, 1, -1)
    return total(log_root, top, None if noise is None else noise.root)[0, 0]


def _product(product: Product, values: Callable[[int, np.ndarray], Array]) -> Array:
    total = None
    for part in product.parts:
        if part.parents is not None:
            below = values(part.source, part.rows)
            if total is None:
                total = jnp.zeros((len(product.nodes), *below.shape[1:]), below.dtype)
            total = _add(total, jnp.asarray(part.parents), below)
            continue
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
    return total


def _mix(
    product: Product,
    values: Callable[[int, np.ndarray], Array],
    log_mixing: Array,
    total: Total,
    noise: Array | None,
) -> Array:
    """Mixtures ``[nodes, units, batch]``: every unit a sum over the children's same unit."""
    out, start = [], 0
    for part in product.parts:
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


class _Levels(NamedTuple):
    """What a scan meets, stacked over its levels; see `Scan`.

    Slices of the tables, not the tables, go through the scan: the derivative of a table read at
    every step would be as large as the table at every step.
    """

    weights: Array
    inputs: Array
    evidence: Evidence
    tables: Any
    table_parents: Array | None
    below_rows: Array | None
    below_parents: Array | None
    input_noise: Array | None
    node_noise: Array | None


def stacked(read: Callable[[np.ndarray], Array], index: np.ndarray) -> Array:
    """What is read at an array of positions, ``[*positions, ...]``."""
    found = read(index.reshape(-1))
    return found.reshape(*index.shape, *found.shape[1:])


def _scan(carry: Array, xs: _Levels, total: Total) -> Array:
    """Evaluate levels one after the other, from the values of the level below the first."""
    width = xs.weights.shape[1]
    carry = jnp.pad(carry, ((0, width - len(carry)), (0, 0), (0, 0)))  # rows that nothing reads

    def body(values: Array, x: _Levels) -> tuple[Array, None]:
        count = x.inputs.shape[1]
        own = jnp.zeros_like(values)
        if count:
            table, seen, noise = jax.tree.map(
                lambda part: part.reshape(-1, *part.shape[2:]),
                (x.inputs, x.evidence, x.input_noise),
            )
            if seen.log_evidence is None:
                own = leaf_values(table, seen)
            else:
                own = total(table, seen.log_evidence, noise)
            if count > 1:
                own = own.reshape(width, count, *own.shape[1:]).sum(axis=1)
        if x.table_parents is not None:
            found = x.tables
            if isinstance(found, tuple):
                found = leaf_values(found[0], Evidence(found[1], None))
            own = _add(own, x.table_parents, found)
        if x.below_parents is None:
            own = own + values
        elif x.below_rows is None:
            own = _add(own, x.below_parents, values[: len(x.below_parents)])
        else:
            read = values.at[x.below_rows].get(mode="promise_in_bounds")
            own = _add(own, x.below_parents, read)
        return total(x.weights, own, x.node_noise), None

    return jax.lax.scan(body, carry, xs)[0]


def _add(values: Array, parents: Array, children: Array) -> Array:
    """Add children to their parents; those whose parent is past the last go nowhere."""
    return values.at[parents].add(children, indices_are_sorted=True, mode="drop")
