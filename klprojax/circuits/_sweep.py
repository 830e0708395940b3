"""Theorem 4.1: one upward and one downward pass give all marginals of a circuit.

Upward, ``log S(n)``; downward, ``log D(n) = log ∂S(root)/∂S(n)``. The probability that the parse
visits a node is ``D(n) S(n) / S(e)``, the slope of ``log S(e)`` with respect to ``log S(n)``; it is
computed in linear space as a flow from the root, so it keeps its accuracy where ``log S`` is large.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._sharding import on_any_mesh
from .._types import Scalar, VariableTables
from ..geometry import safe_log
from ._circuit import Circuit
from ._flow import (
    Flow,
    accurate_values,
    edge_slopes,
    evaluate,
    propagate_back,
    segment_sum,
    split_values,
)
from ._kinds import explicit_or_method, require_explicit
from ._leaves import AbstractContinuousLeaf, Indicator, table_value
from ._small import small_log_partition
from ._structure import CircuitWiring, Shape


class Sweep(eqx.Module):
    """What one upward-downward sweep returns.

    Attributes:
        log_partition: ``log S(e)``, nats; ``-inf`` if the evidence is impossible.
        log_values: ``log S(n)`` of every node.
        log_derivatives: ``log D(n)``, ``D(n) = ∂S(root)/∂S(n)``, of every node.
        visits: ``Pr(visit n | e) = D(n) S(n) / S(e)`` of every node.
        edge_probs: ``Pr(visit s, select c | e)`` of every edge out of a sum node, in the order of
            ``log_weights``.
        gates: ``Pr(select c | e, visit s) = w_sc S(c) / S(s)`` of the same edges.
        marginals: ``Pr(X_i = t | e)`` of every discrete variable, one array per cardinality.
        log_marginals: their logarithms, nats; finite where a probability is below the range of
            floating-point numbers, ``-inf`` where it is 0.

    With impossible evidence all probabilities are 0.
    """

    log_partition: Scalar
    log_values: Float[Array, " nodes"]
    log_derivatives: Float[Array, " nodes"]
    visits: Float[Array, " nodes"]
    edge_probs: Float[Array, " weights"]
    gates: Float[Array, " weights"]
    marginals: VariableTables
    log_marginals: VariableTables

    @property
    def possible(self) -> Bool[Array, ""]:
        """Whether the evidence has positive probability."""
        return jnp.logical_not(jnp.isneginf(self.log_partition))


@on_any_mesh()
def sweep(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
) -> Sweep:
    """Compute all values, derivatives and marginals of Theorem 4.1.

    Named fused implementation of one step of ``Cyclic`` with ``compose(right(P), left(Q))`` on the
    replicated lift of the circuit's `activation_lift`: P the products over all copies of the
    activations, Q the face on which the copies agree. Plain numpy version:
    tests/reference/circuit_sweep.py.

    Args:
        circuit: the structure.
        log_weights: one per edge out of a sum node, nats, normalised or not.
        log_evidence: soft or hard evidence λ (see `Circuit.log_evidence`); none if left out.
        leaf_parameters: one array per leaf group; only for circuits with parametric leaves.
        values: values of the continuous variables, NaN where missing (all missing if left out).

    Returns:
        A `Sweep`. Everything keeps the dtype of the weights. For impossible evidence values are
        ``-inf`` and marginals 0 (see `Sweep.possible`).

    Differentiation:
        ``jvp``, ``grad``, ``vmap`` and their compositions, to any order; entries of ``-inf`` give
        finite derivatives. The gradient of ``log_partition`` is the marginals, by Theorem 4.1.

    Raises:
        ValueError: numbers that do not fit the circuit.

    Reference: Theorem 4.1.

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits import CircuitBuilder, sweep
        >>> b = CircuitBuilder([3])
        >>> root = b.sum([b.indicator(0, t) for t in range(3)], np.log([0.2, 0.3, 0.5]))
        >>> circuit, log_weights, _ = b.build(root)
        >>> evidence = circuit.log_evidence({0: np.array([0.0, 0.0, -np.inf])})
        >>> [round(float(p), 6) for p in sweep(circuit, log_weights, evidence).gates]
        [0.4, 0.6, 0.0]
    """
    require_explicit(circuit, "sweep")
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    s = circuit.structure
    return _sweep(s.shape, s.wiring, log_weights, log_evidence, parameters, values)


@explicit_or_method
@on_any_mesh()
def log_partition(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
) -> Scalar:
    """Compute ``log S(e)`` alone, the logarithm of the network polynomial, by one upward pass.

    Outside any transformation, the first values of a small circuit are computed without compiling
    a program; they are equal to rounding.

    Args and differentiation as for `sweep`; the gradient costs one downward pass.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters in place of
            ``log_weights`` alone.
        log_weights: one per edge out of a sum node, nats.
        log_evidence: soft or hard evidence (see `Circuit.log_evidence`).
        leaf_parameters: one array per leaf group.
        values: values of continuous variables, NaN where missing.

    Returns:
        A scalar, nats; `-inf` if the evidence is impossible.
    """
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    s = circuit.structure
    if values is None:
        small = small_log_partition(s, log_weights, log_evidence, parameters)
        if small is not None:
            return jnp.asarray(small, log_weights.dtype)
    return _log_partition(s.shape, s.wiring, log_weights, log_evidence, parameters, values)


@explicit_or_method
def marginals(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
) -> VariableTables:
    """Compute the marginals of all discrete variables; `sweep` returns them with all else.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters and rows (see
            `TensorCircuit.marginals`).
        log_weights: one per edge out of a sum node, nats.
        log_evidence: soft or hard evidence (see `Circuit.log_evidence`).
        leaf_parameters: one array per leaf group.
        values: values of continuous variables, NaN where missing.

    Returns:
        Probabilities (linear space), one array per cardinality; zeros if the evidence is
        impossible.
    """
    numbers = {"leaf_parameters": leaf_parameters, "values": values}
    return sweep(circuit, log_weights, log_evidence, **numbers).marginals


def leaf_log_values(
    shape: Shape, leaves: Any, log_evidence: Any, parameters: Any, values: Any
) -> Array:
    """``log S`` of the leaves, group after group, ``[leaves, *batch]``.

    Evidence has its variable axis first, then states, then any batch.
    """
    parts = []
    for (family, group_class), wires, theta in zip(shape.groups, leaves, parameters, strict=True):
        if isinstance(family, AbstractContinuousLeaf):
            parts.append(_density(family, theta, wires.rows, values))
        elif not isinstance(family, Indicator):
            card = shape.classes[group_class]
            table = family.log_table(theta, card)
            parts.append(table_value(table, log_evidence[group_class][wires.rows]))
        else:
            parts.append(log_evidence[group_class][wires.rows, wires.states])
    return jnp.concatenate(parts)


def _density(family, theta, rows, values) -> Array:
    if values is None:
        return jnp.zeros(rows.shape, theta.dtype)
    own = values[rows]
    missing = jnp.isnan(own)
    known = jnp.where(missing, jnp.zeros_like(own), own)
    return jnp.where(missing, jnp.zeros_like(own), family.log_density(theta, known))


def edge_log_weights(wiring: CircuitWiring, log_weights: Array) -> Array:
    """Log-weights of all edges, 0 below products, ``[edges, *batch]``."""
    none = jnp.zeros((1, *log_weights.shape[1:]), log_weights.dtype)
    return jnp.concatenate([log_weights, none])[wiring.weight_of_edge]


def finite_or_stuck(log_root: Array) -> Array:
    """The log-partition; where it is ``-inf`` no derivative passes."""
    return jnp.where(jnp.isneginf(log_root), -jnp.inf, log_root)


@partial(jax.jit, static_argnums=0)
def _log_partition(shape, wiring, log_weights, log_evidence, parameters, values):
    given = leaf_log_values(shape, wiring.leaves, log_evidence, parameters, values)
    log_values = accurate_values(wiring.flow, given, edge_log_weights(wiring, log_weights))
    return finite_or_stuck(log_values[shape.root])


@partial(jax.jit, static_argnums=0)
def _sweep(shape, wiring, log_weights, log_evidence, parameters, values):
    flow = wiring.flow

    def leaves(evidence):
        return leaf_log_values(shape, wiring.leaves, evidence, parameters, values)

    given, to_evidence = jax.vjp(leaves, log_evidence)
    weights = edge_log_weights(wiring, log_weights)
    gauge, rest, moved = split_values(flow, given, evaluate(flow, given, weights), weights)
    log_values = gauge + rest
    log_root = finite_or_stuck(log_values[shape.root])
    gates = edge_slopes(flow, rest, moved)
    seed = jnp.where(jnp.isneginf(log_root), jnp.zeros_like(log_root), jnp.ones_like(log_root))
    start = jnp.zeros_like(log_values).at[shape.root].set(seed)
    visits = propagate_back(flow, gates, start)
    (marginals,) = to_evidence(visits[flow.given])
    gates = gates[wiring.sum_edges]
    log_derivatives = _log_derivatives(flow, shape.root, log_values, weights)
    log_joint = log_neighbours(shape, wiring, log_derivatives, parameters, log_evidence)
    log_marginals = tuple(
        _log_probabilities(table, joint, log_root)
        for table, joint in zip(marginals, log_joint, strict=True)
    )
    return Sweep(
        log_partition=log_root,
        log_values=log_values,
        log_derivatives=log_derivatives,
        visits=visits,
        edge_probs=visits[flow.target[wiring.sum_edges]] * gates,
        gates=gates,
        marginals=marginals,
        log_marginals=log_marginals,
    )


def _log_probabilities(table: Array, log_joint: Array, log_total: Array) -> Array:
    """Logarithms of probabilities, also of those below the range of the format.

    Others are more accurate as they are: they do not depend on the size of the log-values.
    """
    info = jnp.finfo(table.dtype)
    tiny = table < float(info.tiny) ** 0.5
    impossible = jnp.isneginf(log_total)
    low = log_joint - jnp.where(impossible, jnp.zeros_like(log_total), log_total)
    return jnp.where(tiny, low, jnp.log(jnp.where(tiny, 1.0, table)))


def log_neighbours(shape, wiring, log_derivatives, parameters, log_evidence):
    """``log S`` after setting one variable to one state, per class ``[variables, states]``."""
    down = log_derivatives[wiring.flow.given]
    parts: dict[int, list] = {}
    at = 0
    for (family, group_class), wires, theta in zip(
        shape.groups, wiring.leaves, parameters, strict=True
    ):
        count = wires.rows.shape[0]
        own = down[at : at + count]
        at += count
        if group_class < 0:
            continue
        card = shape.classes[group_class]
        if isinstance(family, Indicator):
            entry = (wires.rows * card + wires.states, own)
        else:
            cells = wires.rows[:, None] * card + jnp.arange(card, dtype=wires.rows.dtype)[None]
            table = family.log_table(theta, card) + own[:, None]
            entry = (cells.reshape(-1), table.reshape(-1))
        parts.setdefault(group_class, []).append(entry)
    out = []
    for c, card in enumerate(shape.classes):
        if c not in parts:  # no leaf is over these variables
            out.append(jnp.full((shape.counts[c], card), -jnp.inf, down.dtype))
            continue
        cells = jnp.concatenate([cells for cells, _ in parts[c]])
        terms = jnp.concatenate([terms for _, terms in parts[c]])
        size = shape.counts[c] * card
        top = jnp.full(size, -jnp.inf, terms.dtype).at[cells].max(terms)
        shift = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
        total = jnp.zeros(size, terms.dtype).at[cells].add(jnp.exp(terms - shift[cells]))
        out.append((safe_log(total) + shift).reshape(-1, card) + log_evidence[c])
    return tuple(out)


def _log_derivatives(flow: Flow, root: int, log_values: Array, log_weights: Array) -> Array:
    """``log D`` of all nodes, by the same evaluation along the reversed graph.

    An edge out of a product multiplies by the siblings' values; zeros among them are counted, not
    divided out.
    """
    own = log_values[flow.source]
    zero = jnp.isneginf(own)
    below = jnp.where(jnp.logical_or(zero, flow.sum_edge), jnp.zeros_like(own), own)
    zeros = jnp.where(flow.sum_edge, 0, zero.astype(jnp.int32))
    total = segment_sum(below, flow.target, flow.num_nodes)[flow.target]
    others = segment_sum(zeros, flow.target, flow.num_nodes)[flow.target] - zeros
    siblings = jnp.where(others > 0, -jnp.inf, total - below)
    weights = jnp.where(flow.sum_edge, log_weights, siblings)
    down = flow.reversed(jnp.full(1, root, jnp.int32))
    return evaluate(down, jnp.zeros(1, log_values.dtype), weights)
