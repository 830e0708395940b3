"""The upward pass of a tensor circuit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ._leaf import IMPOSSIBLE, Evidence, leaf_tables, leaf_values
from ._log_matmul import (
    Shifted,
    any_of,
    exact_log_matmul,
    finite_max,
    log_matmul,
    log_sums,
    weight_range,
)
from ._node_by_node import values_node_by_node
from ._parameters import TensorParameters
from ._plan import INPUTS, TABLES, Plan, Product, Scan, make_plan
from ._rows import rows_of
from ._structure import TensorStructure

# Rows evaluated together where sums are checked and it is not known whether they must be.
BLOCK = 128


class Noise(NamedTuple):
    """Uniform numbers, one per row for every vector: ``[inputs or nodes or 1, batch]``."""

    inputs: Array
    nodes: Array
    root: Array


# From log-weights ``[nodes, out, in]``, log-values ``[nodes, in, batch]`` whose largest is 0, and
# perhaps noise ``[nodes, batch]`` to ``[nodes, out, batch]``: sums, or what a query has instead.
Total = Callable[[Array, Array, Array | None], Array]


def product_sum(log_weights: Array, log_values: Array, noise: Array | None) -> Array:
    """Sums of weights that are not `wide`; needs no noise."""
    del noise
    return log_matmul(log_weights, log_values)


def exact_sum(log_weights: Array, log_values: Array, noise: Array | None) -> Array:
    """Sums of any weights; needs no noise."""
    del noise
    return exact_log_matmul(log_weights, log_values)


def evaluate(
    structure: TensorStructure,
    parameters: TensorParameters,
    evidence: Evidence,
    softening: float = 0.0,
    total: Total | None = None,
    noise: Noise | None = None,
    exact: bool | None = None,
) -> Array:
    """Log-values of the root, ``[batch]``.

    Level by level: children are summed in log space, then all sums of the level are one batched
    matrix product; a mixture is a sum of one unit's values. Long chains are one scan, so what is
    compiled grows with the number of differently shaped levels.

    Weights that are zero or nearly so need sums that check what they lose (see `wide`). Where it
    is not known whether there are any, the numbers choose between two ways: dense layers, and
    `values_node_by_node`, which takes little to compile.

    Args:
        structure, parameters, evidence: the circuit.
        softening: see `TensorCircuit.log_values`.
        total: what takes the place of a sum; needs log-evidence, no states.
        noise: numbers for ``total``.
        exact: whether sums check what they lose; chosen when it runs if None.
    """
    if total is None and exact is not None:
        total = exact_sum if exact else product_sum
    plan = make_plan(structure)
    if total is not None:
        return _evaluate(structure, plan, softening, total, parameters, evidence, noise)
    check = wide(structure, parameters, evidence.states is None)
    # Of wide weights no derivative may come out as zero times infinity.
    tame = jax.tree.map(lambda x: jnp.where(check, jnp.zeros_like(x), x), parameters)
    usual = _evaluate(structure, plan, softening, product_sum, tame, evidence, None)

    # Rarely taken: compiled in as few pieces as possible, in little memory, and nothing is kept for
    # the derivative.
    def checked(_, parameters, evidence):
        @jax.checkpoint
        def values(evidence):
            tables = leaf_tables(structure, parameters.log_inputs, evidence, softening)
            rows = np.arange(structure.num_inputs)
            given = _inputs(structure, tables, evidence, rows, lambda w, v, _: log_sums(w, v))
            return values_node_by_node(
                structure,
                parameters.log_weights,
                parameters.log_mixing,
                parameters.log_root,
                given,
            )

        batch = usual.shape[0]
        if batch <= BLOCK:
            return values(evidence)

        def blocks(table):
            table = jnp.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, -batch % BLOCK)])
            return jnp.moveaxis(table.reshape(*table.shape[:-1], -1, BLOCK), -2, 0)

        return jax.lax.map(values, jax.tree.map(blocks, evidence)).reshape(-1)[:batch]

    return jax.lax.cond(check, checked, lambda usual, *_: usual, usual, parameters, evidence)


@partial(jax.jit, static_argnums=(0, 2))
def wide(structure: TensorStructure, parameters: TensorParameters, leaves: bool) -> Array:
    """Whether some weight is too far below the largest of its sum for `log_matmul`.

    Args:
        structure, parameters: the circuit.
        leaves: whether the leaves are sums, over the states of soft evidence.
    """
    s = structure
    tables: list[tuple[Array, np.ndarray | None]] = [
        (parameters.log_weights, None),
        (parameters.log_root.reshape(1, 1, -1), None),
    ]
    if parameters.log_mixing is not None:
        counts = s.partitions[:, None, None]
        tables.append((parameters.log_mixing, np.arange(s.max_partitions) < counts))
    if leaves:
        cards = s.input_cardinalities[:, None, None]
        tables.append((parameters.log_inputs, np.arange(s.max_states) < cards))
    found = []
    for table, inside in tables:
        table = jax.lax.stop_gradient(table)
        top = finite_max(table, 2)
        own = table if inside is None else jnp.where(inside, table, top)
        low = own < top + weight_range(table.shape[2], table.dtype)
        found.append(jnp.any(low))
    return any_of(jnp.stack(found))


@partial(jax.jit, static_argnums=(0, 1, 2))
def root_values(
    structure: TensorStructure,
    softening: float,
    exact: bool | None,
    parameters: TensorParameters,
    evidence: Evidence,
) -> Array:
    """`evaluate`, compiled, ``-inf`` for rows with an `IMPOSSIBLE` entry."""
    values = evaluate(structure, parameters, evidence, softening, exact=exact)
    if evidence.states is None:
        return values
    return jnp.where(jnp.any(evidence.states == IMPOSSIBLE, axis=0), -jnp.inf, values)


@partial(jax.jit, static_argnums=(0, 1))
def state_flows(
    structure: TensorStructure, exact: bool | None, parameters: TensorParameters, table: Array
) -> Array:
    """Marginals of all states ``[variables, states, batch]`` given log-evidence of that shape."""

    def total(table):
        return jnp.sum(evaluate(structure, parameters, Evidence(None, table), exact=exact))

    return jax.grad(total)(table)


# What is known of numbers while they are traced; see `assume_wide`.
_ASSUMED: ContextVar[bool | None] = ContextVar("assumed", default=None)


def known_wide(
    structure: TensorStructure, parameters: TensorParameters, leaves: bool
) -> bool | None:
    """`wide` of concrete numbers; of traced ones what is assumed of them, or None."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(parameters)):
        return _ASSUMED.get()
    with jax.ensure_compile_time_eval():
        return bool(wide(structure, parameters, leaves))


@contextmanager
def assume_wide(known: bool | None) -> Iterator[None]:
    """While tracing, take it as known whether weights are `wide`; the caller checks that."""
    token = _ASSUMED.set(known)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def _evaluate(
    structure: TensorStructure,
    plan: Plan,
    softening: float,
    total: Total,
    parameters: TensorParameters,
    evidence: Evidence,
    noise: Noise | None,
) -> Array:
    tables = leaf_tables(structure, parameters.log_inputs, evidence, softening)
    variables = np.asarray(structure.variables)
    blocks = np.asarray(structure.input_blocks)
    weights_of = structure.weights_of
    levels: dict[int, Array] = {}

    def sums(weights: Array, values: Array, noise: Array | None = None) -> Array:
        rest, shift = _sums(total, weights, values, noise)
        return rest + shift

    def weights(nodes: np.ndarray) -> Array:
        return rows_of(parameters.log_weights, weights_of[nodes])

    def own_noise(nodes: np.ndarray) -> Array | None:
        return None if noise is None else rows_of(noise.nodes, nodes)

    def inputs(rows: np.ndarray) -> Array:
        own = None if noise is None else rows_of(noise.inputs, rows)
        return _inputs(structure, tables, evidence, rows, total, own)

    if len(plan.table_nodes) and evidence.states is None:
        levels[TABLES] = sums(
            weights(plan.table_nodes), inputs(plan.table_inputs), own_noise(plan.table_nodes)
        )
    elif len(plan.table_nodes):
        below = plan.table_inputs
        mixed = sums(weights(plan.table_nodes), rows_of(tables, blocks[below]))

    def values(source: int, rows: np.ndarray) -> Array:
        if source == INPUTS:
            return inputs(rows)
        if source == TABLES and evidence.states is not None:
            seen = rows_of(evidence.states, variables[plan.table_inputs[rows]])
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
            levels[step.last] = _mix(product, read, own, sums, own_noise(product.nodes))
            continue
        carry = sums(weights(product.nodes), _product(product, read), own_noise(product.nodes))
        if step.scan is not None:
            carry = _scan(carry, levels_of(step.scan), total)
            carry = carry[: len(plan.products[step.last].nodes)]
        levels[step.last] = carry
    top = _product(plan.root, reader(plan.root))
    top = top.reshape(1, -1, top.shape[2])
    log_root = rows_of(parameters.log_root, plan.root.nodes).reshape(1, 1, -1)
    return sums(log_root, top, None if noise is None else noise.root)[0, 0]


def _inputs(
    structure: TensorStructure,
    tables: Array,
    evidence: Evidence,
    rows: np.ndarray,
    total: Total,
    noise: Array | None = None,
) -> Array:
    """Log-values of some input vectors, ``[rows, units, batch]``."""
    own = rows_of(tables, np.asarray(structure.input_blocks)[rows])
    given = evidence.of(np.asarray(structure.variables)[rows])
    if given.states is not None:
        return leaf_values(own, given.states)
    assert given.log_evidence is not None  # evidence has one of them
    rest, shift = _sums(total, own, given.log_evidence, noise)
    return rest + shift


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
    sums: Callable[[Array, Array, Array | None], Array],
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
        out.append(sums(weights, below, own_noise).reshape(nodes, units, batch))
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


def _sums(total: Total, weights: Array, values: Array, noise: Array | None) -> tuple[Array, Array]:
    """Sums of any values, as numbers of moderate size and shifts ``[nodes, 1, batch]`` to add."""
    shift = finite_max(values, 1)
    return total(weights, values - shift, noise), shift


def _scan(carry: Array, xs: _Levels, total: Total) -> Array:
    """Evaluate levels one after the other, from the values of the level below the first."""
    width = xs.weights.shape[1]
    carry = jnp.pad(carry, ((0, width - len(carry)), (0, 0), (0, 0)))  # rows that nothing reads
    none = jnp.zeros_like(carry[:, :1])

    def body(below: Shifted, x: _Levels) -> tuple[Shifted, None]:
        count = x.inputs.shape[1]
        own = jnp.zeros_like(below.rest)
        if count:
            table, seen, noise = jax.tree.map(
                lambda part: part.reshape(-1, *part.shape[2:]),
                (x.inputs, x.evidence, x.input_noise),
            )
            if seen.states is not None:
                own = leaf_values(table, seen.states)
            else:
                assert seen.log_evidence is not None  # evidence has one of them
                rest, shift = _sums(total, table, seen.log_evidence, noise)
                own = rest + shift
            if count > 1:
                own = own.reshape(width, count, *own.shape[1:]).sum(axis=1)
        if x.table_parents is not None:
            found = x.tables
            if isinstance(found, tuple):
                found = leaf_values(*found)
            own = _add(own, x.table_parents, found)
        if x.below_parents is None:
            shift, rounded = below.shift, below.rounded
            own = own + below.rest
        else:
            count = len(x.below_parents)
            if x.below_rows is None:
                below = jax.tree.map(lambda part: part[:count], below)
            else:
                below = jax.tree.map(
                    lambda part: part.at[x.below_rows].get(mode="promise_in_bounds"), below
                )
            own = _add(own, x.below_parents, below.rest)
            shift = _add(none, x.below_parents, below.shift)
            rounded = _add(none, x.below_parents, below.rounded)
        rest, more = _sums(total, x.weights, own, x.node_noise)
        return Shifted(own, shift, rounded).grown(rest, more), None

    end = jax.lax.scan(body, Shifted(carry, none, none), xs)[0]
    return (end.rest + end.rounded) + end.shift


def _add(values: Array, parents: Array, children: Array) -> Array:
    """Add children to their parents; those whose parent is past the last go nowhere."""
    return values.at[parents].add(children, indices_are_sorted=True, mode="drop")
