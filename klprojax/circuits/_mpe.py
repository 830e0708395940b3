"""Most probable explanations: exact in deterministic circuits, a local maximum elsewhere."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._sharding import on_any_mesh
from .._types import VariableTables
from ._circuit import Circuit
from ._flow import scan_values
from ._kinds import explicit_or_method
from ._leaves import AbstractContinuousLeaf, Indicator
from ._properties import is_deterministic
from ._selection import leaf_tables, reached, read_states, select_best
from ._sweep import _sweep, edge_log_weights, log_neighbours


class Explanation(eqx.Module):
    """A joint state and its value, or those of many rows.

    Attributes:
        states: state of each variable ``[variables]``; 0 for continuous variables.
        values: values of the continuous variables.
        log_value: ``log S`` at that state, evidence included (subtract the log-partition for the
            logarithm of its posterior probability).
        exact: whether no joint state has a larger value. Otherwise no change of a single discrete
            variable improves it, unless ``max_steps`` ended the search.
        steps: single-variable changes made by the search.
    """

    states: Int[Array, "*rows variables"]
    values: Float[Array, "*rows continuous"]
    log_value: Float[Array, "*rows"]
    steps: Int[Array, "*rows"]
    exact: bool = eqx.field(static=True)


@explicit_or_method
@on_any_mesh()
def mpe(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
    max_steps: int = 1000,
) -> Explanation:
    """Find a most probable joint state ``argmax_x p(x | e)``.

    In a deterministic circuit sums may be replaced by maxima and the maximising parse is the
    answer. Otherwise finding it is NP-hard: the search starts from the maximising parse and from
    the states of largest marginal probability, and climbs by the best change of one variable. One
    sweep gives the exact values of all such neighbours: ``S`` is linear in each variable's
    evidence, so they are its downward values. The better of the two ends is returned.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters for ``log_weights``
            and the other arguments of `TensorCircuit.mpe`.
        log_weights: one per edge out of a sum node, nats.
        log_evidence: soft or hard evidence.
        leaf_parameters: one array per leaf group.
        values: values of the continuous variables; missing ones are set to the mode of the leaf
            that the maximising parse reaches.
        max_steps: most changes of a variable.

    Returns:
        An `Explanation`; ``exact`` is true iff the circuit is shown to be deterministic.

    Raises:
        ValueError: numbers that do not fit the circuit, or ``max_steps`` below 0.
    """
    if max_steps < 0:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 0.")
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    s = circuit.structure
    if values is None:
        values = jnp.full(len(s.variables.continuous), jnp.nan, log_weights.dtype)
    exact = is_deterministic(circuit)
    classes, found, log_value, steps = _mpe(
        s.shape, exact, max_steps, s.wiring, log_weights, log_evidence, parameters, values
    )
    states = jnp.zeros(circuit.num_variables, jnp.int32)
    for ids, part in zip(s.variables.members, classes, strict=True):
        states = states.at[ids].set(part)
    return Explanation(states, found, log_value, steps, exact)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _mpe(shape, exact, max_steps, wiring, log_weights, log_evidence, parameters, values):
    start, values = _best_parse(shape, wiring, log_weights, log_evidence, parameters, values)

    def run(evidence):
        return _sweep(shape, wiring, log_weights, evidence, parameters, values)

    def at(states):
        return tuple(
            jnp.where(jnp.arange(card, dtype=jnp.int32)[None] == own[:, None], table, -jnp.inf)
            for card, own, table in zip(shape.classes, states, log_evidence, strict=True)
        )

    if exact or not shape.classes:
        return start, values, run(at(start)).log_partition, jnp.int32(0)
    likely = tuple(
        jnp.argmax(table, axis=1).astype(jnp.int32) for table in run(log_evidence).marginals
    )

    def climb(states):
        def neighbours(states):
            got = run(at(states))
            scores = log_neighbours(shape, wiring, got.log_derivatives, parameters, log_evidence)
            return got.log_partition, scores

        def unfinished(carry):
            _, _, _, gain, steps = carry
            return jnp.logical_and(gain, steps < max_steps)

        def step(carry):
            states, value, scores, _, steps = carry
            tops = jnp.stack([jnp.max(table) for table in scores])
            best = jnp.argmax(tops)
            # rounding must not drive a cycle: an improvement is larger than it
            slack = 8 * jnp.finfo(value.dtype).eps * jnp.maximum(jnp.abs(value), 1.0)
            gain = tops[best] > value + jnp.where(jnp.isfinite(slack), slack, 0.0)
            changed = []
            for c, (own, table) in enumerate(zip(states, scores, strict=True)):
                flat = jnp.argmax(table)
                row, state = flat // table.shape[1], flat % table.shape[1]
                new = own.at[row].set(state.astype(jnp.int32))
                changed.append(jnp.where(jnp.logical_and(gain, best == c), new, own))
            value, scores = neighbours(tuple(changed))
            return tuple(changed), value, scores, gain, steps + gain.astype(jnp.int32)

        value, scores = neighbours(states)
        carry = (states, value, scores, jnp.bool_(True), jnp.int32(0))
        states, value, _, _, steps = lax.while_loop(unfinished, step, carry)
        return states, value, steps

    starts = tuple(jnp.stack(pair) for pair in zip(start, likely, strict=True))
    ends, found, steps = jax.vmap(climb)(starts)
    best = jnp.argmax(found)
    return tuple(end[best] for end in ends), values, found[best], steps[best]


def _best_parse(shape, wiring, log_weights, log_evidence, parameters, values):
    """States of the parse of largest weight, and the continuous values it fixes."""
    tables = leaf_tables(shape, wiring, log_evidence, parameters)
    tops, states = [], []
    for (family, group_class), wires, theta, table in zip(
        shape.groups, wiring.leaves, parameters, tables, strict=True
    ):
        if isinstance(family, AbstractContinuousLeaf):
            own = values[wires.rows]
            own = jnp.where(jnp.isnan(own), family.mode(theta), own)
            tops.append(family.log_density(theta, own))
            states.append(own)
        elif isinstance(family, Indicator):
            tops.append(log_evidence[group_class][wires.rows, wires.states])
            states.append(wires.states.astype(log_weights.dtype))
        else:
            tops.append(jnp.max(table, axis=1))
            states.append(jnp.argmax(table, axis=1).astype(log_weights.dtype))
    flow = wiring.flow
    weights = edge_log_weights(wiring, log_weights)
    best = scan_values(flow, jnp.concatenate(tops), weights, maximum=True)
    chosen = select_best(flow, weights + best[flow.source])
    active = reached(flow, shape.root, chosen)[flow.given]
    classes, continuous = read_states(shape, wiring, active, states)
    values = values if continuous is None else continuous
    return tuple(part.astype(jnp.int32) for part in classes), values
