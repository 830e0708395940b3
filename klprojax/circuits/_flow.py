"""Values along a directed acyclic graph of log-sums and products, with all their derivatives.

`evaluate` computes ``y_n = log sum_e exp(w_e + y_source(e))`` or ``sum_e (w_e + y_source(e))``
from the numbers of the graph's inputs. Its derivative is a linear recurrence along the same graph,
``dy = (I - A(r))^{-1} (dx + ...)`` with the slope ``r_e`` of each edge, and the transpose of that
recurrence runs along the reversed graph. So both are `jax.lax.custom_linear_solve` problems, whose
``jvp``, ``vjp`` and ``vmap`` rules close the system; no scan is ever transposed.

Arrays are indexed by node or edge first; any further axes are a batch.
"""

from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from ._layered_plan import LayeredPlan

# Scans of fewer steps round too little to be worth a second pass.
_LONG = 64


class Flow(eqx.Module):
    """A graph, its edges and its two scans.

    Attributes:
        forward: scan along the edges. backward: scan against them.
        source, target: nodes at the two ends of each edge.
        sum_edge: whether the edge ends in a summing node.
        given: nodes whose numbers come from outside (no edge ends in them).
    """

    forward: LayeredPlan
    backward: LayeredPlan
    source: Int[Array | np.ndarray, " edges"]
    target: Int[Array | np.ndarray, " edges"]
    sum_edge: Bool[Array | np.ndarray, " edges"]
    given: Int[Array | np.ndarray, " given"]

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.forward.node_cell.shape[0]

    def reversed(self, given: Int[Array | np.ndarray, " given"]) -> "Flow":
        """The graph with all edges turned, every node summing."""
        return Flow(
            self.backward,
            self.forward,
            self.target,
            self.source,
            np.ones(self.source.shape, bool),
            given,
        )


@jax.custom_jvp
def evaluate(flow: Flow, given: Array, log_weights: Array) -> Array:
    """Values of all nodes.

    Args:
        given: values of ``flow.given`` ``[given, *batch]``.
        log_weights: one per edge ``[edges, *batch]`` (or batch axes of size 1).

    Returns:
        ``[nodes, *batch]``.
    """
    return scan_values(flow, given, log_weights)


@evaluate.defjvp
def _evaluate_jvp(primals, tangents):
    flow, given, log_weights = primals
    _, d_given, d_weights = tangents
    values = evaluate(flow, given, log_weights)
    slopes = accurate_slopes(flow, given, values, log_weights)
    change = segment_sum(slopes * d_weights, flow.target, flow.num_nodes)
    change = change.at[flow.given].add(d_given)
    return values, propagate(flow, slopes, change)


def scan_values(flow: Flow, given: Array, log_weights: Array, maximum: bool = False) -> Array:
    """`evaluate` without derivative; with ``maximum``, log-sums become maxima."""
    plan, batch = flow.forward, given.shape[1:]
    start = jnp.zeros((flow.num_nodes + 1, *batch), given.dtype).at[flow.given].set(given)
    cells = jnp.asarray(start[plan.cell_source]).at[1].set(-jnp.inf)
    spare = jnp.zeros((2, *log_weights.shape[1:]), log_weights.dtype)
    weights = jnp.concatenate([log_weights, spare])
    steps, _, width = plan.index.shape
    begin = cells.shape[0] - steps * width

    def log_sum(terms):
        top = reduce(jnp.maximum, terms)
        if maximum:
            return top
        shift = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
        return jnp.log(reduce(jnp.add, [jnp.exp(term - shift) for term in terms])) + shift

    def step(cells, row):
        index, edge, is_sum, number = row

        # One gather an input: XLA runs these an order of magnitude faster than one for all.
        def terms():
            pairs = zip(_unstack(index), _unstack(edge), strict=True)
            return [cells[i] + weights[e] for i, e in pairs]

        rows = lax.cond(is_sum, lambda: log_sum(terms()), lambda: reduce(jnp.add, terms()))
        return lax.dynamic_update_slice_in_dim(cells, rows, begin + number * width, 0), None

    rows = (plan.index, plan.edge, plan.is_sum, np.arange(steps, dtype=np.int32))
    cells, _ = lax.scan(step, cells, jax.tree.map(jnp.asarray, rows))
    return cells[plan.node_cell]


def edge_slopes(flow: Flow, values: Array, log_weights: Array) -> Array:
    """``∂y_target / ∂y_source`` along each edge: a softmax below a sum, 1 below a product.

    Below a sum whose value is ``-inf`` all slopes are 0.
    """
    total = values[flow.target]
    # A sum of -inf has only terms of -inf, so any finite stand-in gives shares of 0, not NaN.
    total = jnp.where(jnp.isneginf(total), jnp.zeros_like(total), total)
    share = jnp.exp(log_weights + values[flow.source] - total)
    ones = (1,) * (share.ndim - 1)
    return jnp.where(jnp.asarray(flow.sum_edge).reshape(-1, *ones), share, jnp.ones_like(share))


def accurate_slopes(flow: Flow, given: Array, values: Array, log_weights: Array) -> Array:
    """`edge_slopes` from values near 0, so that the size of the values does not round them.

    Any numbers g may be taken out of the values if the weights of sums get ``g_source - g_target``
    in return, and one edge of a product ``sum g_source - g_target``. With the values rounded to
    integers as g these differences are exact, and a second pass finds what is left, numbers below
    1. Only in float32.
    """
    _, rest, weights = split_values(flow, given, values, log_weights)
    return edge_slopes(flow, rest, weights)


def accurate_values(flow: Flow, given: Array, log_weights: Array) -> Array:
    """`evaluate` without the rounding that adds up along a long chain.

    Every step rounds a sum to its own size, the same way if the steps are alike; where the graph
    has many, a second pass finds the numbers that `split_values` leaves. Only in float32.
    """
    values = evaluate(flow, given, log_weights)
    if flow.forward.index.shape[0] < _LONG:
        return values
    gauge, rest, _ = split_values(flow, given, values, log_weights)
    return gauge + rest


def split_values(
    flow: Flow, given: Array, values: Array, log_weights: Array
) -> tuple[Array, Array, Array]:
    """Values as integers and a rest, and the weights that the rest is the evaluation of.

    In float64 everything is the rest: the values would have to be a billion times larger.
    """
    if jnp.finfo(values.dtype).bits > 32:
        return jnp.zeros_like(values), values, log_weights
    gauge = lax.stop_gradient(
        jnp.round(jnp.where(jnp.isneginf(values), jnp.zeros_like(values), values))
    )
    below, above = gauge[flow.source], gauge[flow.target]
    ones = (1,) * (values.ndim - 1)
    is_sum = jnp.asarray(flow.sum_edge).reshape(-1, *ones)
    # Edges into a product follow each other.
    target = jnp.asarray(flow.target)
    first = jnp.concatenate([jnp.ones(1, bool), target[1:] != target[:-1]])[: len(target)]
    total = segment_sum(below, flow.target, flow.num_nodes)[flow.target]
    own = jnp.where(first.reshape(-1, *ones), total - above, jnp.zeros_like(total))
    weights = log_weights + jnp.where(is_sum, below - above, own)
    return gauge, evaluate(flow, given - gauge[flow.given], weights), weights


def propagate(flow: Flow, slopes: Array, change: Array) -> Array:
    """Solve ``y_n = change_n + sum over edges into n of slope_e y_source(e)``."""
    return _solve(
        slopes, change, flow.source, flow.target, flow.num_nodes, flow.forward, flow.backward
    )


def propagate_back(flow: Flow, slopes: Array, change: Array) -> Array:
    """Solve ``v_n = change_n + sum over edges out of n of slope_e v_target(e)``."""
    return _solve(
        slopes, change, flow.target, flow.source, flow.num_nodes, flow.backward, flow.forward
    )


def _solve(slopes, change, source, target, nodes, plan, transposed_plan) -> Array:
    return lax.custom_linear_solve(
        lambda y: y - segment_sum(slopes * y[source], target, nodes),
        change,
        lambda _, b: _scan_linear(plan, slopes, b),
        lambda _, b: _scan_linear(transposed_plan, slopes, b),
    )


def _scan_linear(plan: LayeredPlan, slopes: Array, change: Array) -> Array:
    batch = change.shape[1:]
    zero = jnp.zeros((1, *batch), change.dtype)
    cells = jnp.concatenate([change, zero])[plan.cell_source]
    spare = jnp.broadcast_to(
        jnp.asarray([1.0, 0.0], slopes.dtype).reshape(2, *(1 for _ in batch)),
        (2, *slopes.shape[1:]),
    )
    slopes = jnp.concatenate([slopes, spare])
    steps, _, width = plan.index.shape
    begin = cells.shape[0] - steps * width

    def step(cells, row):
        index, edge, number = row
        at = begin + number * width
        own = lax.dynamic_slice_in_dim(cells, at, width)
        terms = [cells[i] * slopes[e] for i, e in zip(_unstack(index), _unstack(edge), strict=True)]
        rows = reduce(jnp.add, terms, own)
        return lax.dynamic_update_slice_in_dim(cells, rows, at, 0), None

    rows = (plan.index, plan.edge, np.arange(steps, dtype=np.int32))
    cells, _ = lax.scan(step, cells, jax.tree.map(jnp.asarray, rows))
    return cells[plan.node_cell]


def _unstack(array: Array) -> list[Array]:
    return [array[k] for k in range(array.shape[0])]


def segment_sum(values: Array, segments: Array | np.ndarray, count: int) -> Array:
    """Sum rows by segment, batch axes kept."""
    return jnp.zeros((count, *values.shape[1:]), values.dtype).at[segments].add(values)
