"""Values of a tensor circuit for any weights, one node after the other: little to compile.

Every sum is taken term by term, so nothing is lost however far apart weights are. The whole circuit
is one loop over its nodes, and its derivative one more: a triangular linear system, solved
forward or backward. Ten to twenty times slower than dense layers where vectors are long.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ...geometry import finite_part, safe_logsumexp
from ._log_matmul import Shifted, finite_max
from ._structure import TensorStructure


class _Layout(NamedTuple):
    """Nodes in order, then one per component of the root; hashes by identity.

    Attributes:
        children: of each node, ``[nodes, most]``, padded with the number of all vectors.
        weights: the sum's matrix or the mixture's row.
        mixed: whether it is a mixture.
    """

    children: np.ndarray
    weights: np.ndarray
    mixed: np.ndarray

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Tables(NamedTuple):
    """Numbers by node: matrices ``[nodes, out, in]``, mixing ``[nodes, children, units]``."""

    matrices: Array
    mixing: Array | None


@lru_cache(maxsize=64)
def _layout(s: TensorStructure) -> _Layout:
    nodes = [*(node for level in s.levels for node in level), *s.roots]
    children = np.full((len(nodes), max(map(len, nodes))), s.num_inputs + len(nodes), np.int32)
    for row, node in zip(children, nodes, strict=True):
        row[: len(node)] = node
    mixed = [number in s.mixing for number, level in enumerate(s.levels) for _ in level]
    roots = np.arange(len(s.roots))
    weights = np.concatenate([s.weights_of, s.num_sum_blocks + roots])
    return _Layout(children, weights, np.asarray([*mixed, *[False] * len(roots)]))


def values_node_by_node(
    structure: TensorStructure,
    log_weights: Float[Array, "blocks out in"],
    log_mixing: Float[Array, "mixtures units children"] | None,
    log_root: Float[Array, "components units"],
    inputs: Float[Array, "inputs units batch"],
) -> Float[Array, " batch"]:
    """Log-values of the root.

    Args:
        structure: the circuit.
        log_weights, log_mixing, log_root: its numbers.
        inputs: log-values of the input vectors.
    """
    layout = _layout(structure)
    # A component of the root is a node of one unit, the first.
    roots = jnp.full((len(log_root), *log_weights.shape[1:]), -jnp.inf, log_root.dtype)
    matrices = jnp.concatenate([log_weights, roots.at[:, 0].set(log_root)])
    mixing = None
    if log_mixing is not None:
        own = np.where(layout.mixed, layout.weights, 0)
        mixing = log_mixing.transpose(0, 2, 1)[own]
        more = layout.children.shape[1] - mixing.shape[1]
        mixing = jnp.pad(mixing, ((0, 0), (0, more), (0, 0)), constant_values=-jnp.inf)
    tables = _Tables(matrices[np.where(layout.mixed, 0, layout.weights)], mixing)
    values = _all_values(layout, tables, inputs)
    count = len(structure.roots)
    if count == 1:
        return (values.rest[-1, 0] + values.rounded[-1]) + values.shift[-1]
    tops = values.rest[-count:, 0] + (values.rounded[-count:] + values.shift[-count:])
    return safe_logsumexp(tops, axis=0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _all_values(layout: _Layout, tables: _Tables, inputs: Array) -> Shifted:
    """Values of inputs and nodes, ``[vectors, units, batch]``; shifts are ``[vectors, batch]``."""
    first, count = len(inputs), len(layout.weights)
    empty = jnp.zeros((first + count, inputs.shape[2]), inputs.dtype)
    start = Shifted(
        jnp.concatenate([inputs, jnp.zeros((count, *inputs.shape[1:]), inputs.dtype)]), empty, empty
    )

    def body(values: Shifted, at: tuple[_Place, _Tables]) -> tuple[Shifted, None]:
        new = _by_kind(layout, (_sum_value, _mixture_value), *at, values)
        return jax.tree.map(lambda old, one: old.at[at[0].node].set(one), values, new), None

    return lax.scan(body, start, (_places(layout, first), tables))[0]


@_all_values.defjvp
def _all_values_jvp(layout, primals, tangents):
    tables, inputs = primals
    d_tables, d_inputs = tangents
    values, first = _all_values(layout, tables, inputs), len(inputs)
    places = _places(layout, first)

    @partial(jax.checkpoint, prevent_cse=False)  # the shares of all terms are not kept
    def by_weights(x):
        place, own, moved = x
        return _by_kind(layout, (_sum_by_weights, _mixture_by_weights), place, own, values, moved)

    right = jnp.concatenate([d_inputs, lax.map(by_weights, (places, tables, d_tables))])

    def below(x, at):
        return _by_kind(layout, (_sum_below, _mixture_below), *at, values, x)

    def matvec(x):
        return x.at[first:].add(-lax.map(partial(below, x), (places, tables)))

    def solve(_, right):
        def body(x, at):
            return x.at[at[0].node].add(below(x, at)), None

        return lax.scan(body, right, (places, tables))[0]

    def transpose_solve(_, right):
        def body(x, at):
            own = x[at[0].node]
            parts = _by_kind(layout, (_sum_above, _mixture_above), *at, values, own)
            return x.at[at[0].children].add(parts, mode="drop"), None

        return lax.scan(body, right, (places, tables), reverse=True)[0]

    moved = lax.custom_linear_solve(matvec, right, solve, transpose_solve)
    return values, Shifted(moved, jnp.zeros_like(values.shift), jnp.zeros_like(values.rounded))


class _Place(NamedTuple):
    """A node: its number among all vectors, those of its children, whether it is a mixture."""

    node: Array
    children: Array
    mixed: Array


def _places(layout: _Layout, first: int) -> _Place:
    nodes = first + np.arange(len(layout.weights), dtype=np.int32)
    return _Place(*(jnp.asarray(part) for part in (nodes, layout.children, layout.mixed)))


def _by_kind(layout: _Layout, ways: tuple, place: _Place, *given):
    """What a sum does, or a mixture; compiled for the kinds that there are."""
    if not layout.mixed.any():
        return ways[0](place, *given)
    return lax.cond(place.mixed, ways[1], ways[0], place, *given)


def _children(place: _Place, array: Array) -> Array:
    """Children's rows ``[most, ...]``, 0 for those that are none."""
    return array.at[place.children].get(mode="fill", fill_value=0)


# -- sums: weights ``[out, in]`` of the product of the children ------------------------------------


def _terms(place: _Place, own: _Tables, values: Shifted) -> tuple[Array, Array]:
    """Terms ``[out, in, batch]`` without the product's largest, which comes next."""
    product = jnp.sum(_children(place, values.rest), axis=0)
    top = finite_max(product, 0)
    return own.matrices[:, :, None] + (product - top)[None], top[0]


def _sum_value(place: _Place, own: _Tables, values: Shifted) -> Shifted:
    terms, top = _terms(place, own, values)
    shift, rounded = (jnp.sum(_children(place, part), axis=0) for part in values[1:])
    rest = safe_logsumexp(terms, axis=1)
    return Shifted(rest, shift, rounded).grown(rest, top)


def _shares(place: _Place, own: _Tables, values: Shifted) -> Array:
    terms, _ = _terms(place, own, values)
    return jnp.exp(terms - finite_part(values.rest[place.node])[:, None])


def _sum_by_weights(place: _Place, own: _Tables, values: Shifted, moved: _Tables) -> Array:
    return jnp.sum(_shares(place, own, values) * moved.matrices[:, :, None], axis=1)


def _sum_below(place: _Place, own: _Tables, values: Shifted, x: Array) -> Array:
    moved = jnp.sum(_children(place, x), axis=0)
    return jnp.sum(_shares(place, own, values) * moved[None], axis=1)


def _sum_above(place: _Place, own: _Tables, values: Shifted, x: Array) -> Array:
    part = jnp.sum(_shares(place, own, values) * x[:, None], axis=0)
    return jnp.broadcast_to(part, (*place.children.shape, *part.shape))


# -- mixtures: weights ``[children, units]``, unit by unit -----------------------------------------


def _unit_terms(place: _Place, own: _Tables, values: Shifted, to: Array) -> Array:
    """Terms ``[children, units, batch]``, in the shift of the vector ``to``."""
    assert own.mixing is not None  # a circuit with mixtures has them
    shifts, rounded = (_children(place, part) - part[to][None] for part in values[1:])
    there = place.children < len(values.rest)
    weights = jnp.where(there[:, None], own.mixing, -jnp.inf)
    return weights[:, :, None] + (_children(place, values.rest) + (shifts + rounded)[:, None])


def _mixture_value(place: _Place, own: _Tables, values: Shifted) -> Shifted:
    first = place.children[0]
    rest = safe_logsumexp(_unit_terms(place, own, values, first), axis=0)
    return Shifted(rest, values.shift[first], values.rounded[first])


def _unit_shares(place: _Place, own: _Tables, values: Shifted) -> Array:
    terms = _unit_terms(place, own, values, place.node)
    return jnp.exp(terms - finite_part(values.rest[place.node])[None])


def _mixture_by_weights(place: _Place, own: _Tables, values: Shifted, moved: _Tables) -> Array:
    assert moved.mixing is not None
    return jnp.sum(_unit_shares(place, own, values) * moved.mixing[:, :, None], axis=0)


def _mixture_below(place: _Place, own: _Tables, values: Shifted, x: Array) -> Array:
    return jnp.sum(_unit_shares(place, own, values) * _children(place, x), axis=0)


def _mixture_above(place: _Place, own: _Tables, values: Shifted, x: Array) -> Array:
    return _unit_shares(place, own, values) * x[None]
