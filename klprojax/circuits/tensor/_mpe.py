"""Most probable explanations of many rows at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._evaluate import evaluate, known_wide
from ._leaf import Evidence
from ._parameters import TensorParameters
from ._parses import best_parse
from ._structure import TensorStructure


def is_exact(structure: TensorStructure) -> bool:
    """Whether every sum has one term, so that the best parse is the best joint state."""
    s = structure
    return s.units == 1 and len(s.roots) == 1 and s.max_partitions <= 1


def explain(
    structure: TensorStructure, max_steps: Array, parameters: TensorParameters, table: Array
) -> tuple[Array, Array, Array]:
    """States ``[variables, batch]``, their log-values and the numbers of changes ``[batch]``.

    From the best parse and from the states of largest marginal probability every row climbs by its
    best change of one variable; the better end is returned.
    """
    exact = known_wide(structure, parameters, True)
    return _explain(structure, exact, max_steps, parameters, table)


@partial(jax.jit, static_argnums=(0, 1))
def _explain(structure, exact, max_steps, parameters, table):
    columns = jnp.arange(table.shape[1], dtype=jnp.int32)[None, :, None]
    dtype = table.dtype
    # Other states keep this share of their evidence: the derivative then is the value with one
    # variable changed, and two changes at once count for nothing.
    drop = 300.0 if dtype == jnp.float64 else 55.0

    def values(table: Array) -> Array:
        return evaluate(structure, parameters, Evidence(None, table), exact=exact)

    def kept(states: Array, table: Array, other: float) -> Array:
        return jnp.where(columns == states[:, None, :], table, table + other)

    start = best_parse(structure, parameters, table)
    if is_exact(structure):
        return start, values(kept(start, table, -jnp.inf)), jnp.zeros(table.shape[2], jnp.int32)
    gradient = jax.grad(lambda table: jnp.sum(values(table)))
    likely = jnp.argmax(gradient(table), axis=1).astype(jnp.int32)
    doubled = jnp.concatenate([table, table], axis=2)

    def unfinished(carry):
        _, _, active, steps = carry
        return jnp.any(jnp.logical_and(active, steps < max_steps))

    def step(carry):
        states, value, active, steps = carry
        scores = gradient(kept(states, doubled, -drop))
        scores = jnp.where(columns == states[:, None, :], -jnp.inf, scores)
        flat = jnp.argmax(scores.reshape(-1, scores.shape[2]), axis=0)
        variable, state = flat // scores.shape[1], flat % scores.shape[1]
        here = jnp.arange(states.shape[0])[:, None] == variable[None]
        new = jnp.where(here, state[None].astype(jnp.int32), states)
        found = values(kept(new, doubled, -jnp.inf))
        # Rounding must not drive a cycle: an improvement is larger than it.
        slack = 8 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(value), 1.0)
        slack = jnp.where(jnp.isfinite(slack), slack, jnp.zeros_like(slack))
        gain = jnp.logical_and(active, jnp.logical_and(found > value + slack, steps < max_steps))
        states = jnp.where(gain[None], new, states)
        value = jnp.where(gain, found, value)
        return states, value, gain, steps + gain.astype(jnp.int32)

    states = jnp.concatenate([start, likely], axis=1)
    value = values(kept(states, doubled, -jnp.inf))
    active = jnp.ones(value.shape, bool)
    carry = (states, value, active, jnp.zeros(value.shape, jnp.int32))
    states, value, _, steps = lax.while_loop(unfinished, step, carry)
    rows = table.shape[2]
    second = value[rows:] > value[:rows]
    return (
        jnp.where(second[None], states[:, rows:], states[:, :rows]),
        jnp.where(second, value[rows:], value[:rows]),
        jnp.where(second, steps[rows:], steps[:rows]),
    )
