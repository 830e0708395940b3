"""Parses by a backward pass: the best one, or a random one.

The derivative of a log-sum shares a unit's probability among its terms. Here a term takes all of
it, the largest or one drawn with these shares, so what arrives at the log-evidence is the 1 of the
states that the parse selects. A parse visits a vector once, in one unit.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._evaluate import Noise, evaluate
from ._leaf import Evidence
from ._log_matmul import exact_log_matmul, finite_max
from ._parameters import TensorParameters
from ._structure import TensorStructure


@jax.custom_vjp
def _largest(log_weights: Array, log_values: Array, noise: Array | None) -> Array:
    """Maxima in the place of sums; ties go to the first term."""
    return _largest_forward(log_weights, log_values, noise)[0]


def _largest_forward(log_weights, log_values, noise):
    nodes, outs, terms = log_weights.shape
    shape = (nodes, outs, log_values.shape[2])

    # Term by term: all terms at once would take as much memory as there are terms.
    def step(carry, x):
        best, chosen = carry
        weight, value, term = x
        new = weight[:, :, None] + value[:, None, :]
        better = new > best
        return (jnp.where(better, new, best), jnp.where(better, term, chosen)), None

    start = (jnp.full(shape, -jnp.inf, log_values.dtype), jnp.zeros(shape, jnp.int32))
    xs = (
        log_weights.transpose(2, 0, 1),
        log_values.transpose(1, 0, 2),
        jnp.arange(terms, dtype=jnp.int32),
    )
    (best, chosen), _ = lax.scan(step, start, xs)
    return best, (chosen, log_weights, noise)


def _largest_backward(residual, visited):
    chosen, log_weights, noise = residual

    def step(_, term):
        return None, jnp.sum(jnp.where(chosen == term, visited, jnp.zeros_like(visited)), axis=1)

    terms = jnp.arange(log_weights.shape[2], dtype=jnp.int32)
    _, below = lax.scan(step, None, terms)
    return jnp.zeros_like(log_weights), below.transpose(1, 0, 2), _nothing(noise)


_largest.defvjp(_largest_forward, _largest_backward)


@jax.custom_vjp
def _drawn(log_weights: Array, log_values: Array, noise: Array | None) -> Array:
    """Sums, whose derivative is a random term."""
    del noise
    return exact_log_matmul(log_weights, log_values)


def _drawn_forward(log_weights, log_values, noise):
    return exact_log_matmul(log_weights, log_values), (log_weights, log_values, noise)


def _drawn_backward(residual, visited):
    log_weights, log_values, noise = residual
    # One unit is visited or none; where none is, what is found counts for nothing.
    unit = jnp.argmax(visited, axis=1)
    row = jnp.take_along_axis(log_weights, unit[:, :, None], axis=1).transpose(0, 2, 1)
    scores = row + log_values
    shares = jnp.exp(scores - finite_max(scores, 1))
    upto = jnp.cumsum(shares, axis=1)
    # The first term whose sum so far exceeds the threshold; terms of share 0 are never that.
    term = jnp.sum(upto <= noise[:, None, :] * upto[:, -1:], axis=1, keepdims=True)
    terms = jnp.arange(log_values.shape[1])[None, :, None]
    any_unit = jnp.sum(visited, axis=1, keepdims=True)
    below = jnp.where(terms == term, any_unit, jnp.zeros_like(any_unit))
    return jnp.zeros_like(log_weights), below, _nothing(noise)


_drawn.defvjp(_drawn_forward, _drawn_backward)


def _nothing(noise: Array | None) -> Array | None:
    return None if noise is None else jnp.zeros_like(noise)


def best_parse(structure: TensorStructure, parameters: TensorParameters, table: Array) -> Array:
    """States ``[variables, batch]`` of the parse of largest weight.

    Args:
        structure, parameters: the circuit.
        table: log-evidence ``[variables, states, batch]``.
    """

    def value(table):
        return jnp.sum(evaluate(structure, parameters, Evidence(None, table), total=_largest))

    return jnp.argmax(jax.grad(value)(table), axis=1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1))
def draw_states(
    structure: TensorStructure, count: int, parameters: TensorParameters, table: Array, key: Array
) -> Array:
    """Draw ``count`` joint states for each column of the evidence, ``[variables, count, batch]``.

    Args:
        structure, parameters: the circuit.
        count: how many.
        table: log-evidence ``[variables, states, batch]``.
        key: a random key.
    """
    variables, _, batch = table.shape
    rows = count * batch
    table = jnp.tile(table, (1, 1, count))
    sizes = (structure.num_inputs, len(structure.weights_of), 1)
    keys = jax.random.split(key, 3)
    noise = Noise(
        *(jax.random.uniform(k, (n, rows), table.dtype) for k, n in zip(keys, sizes, strict=True))
    )

    def value(table):
        evidence = Evidence(None, table)
        return jnp.sum(evaluate(structure, parameters, evidence, total=_drawn, noise=noise))

    states = jnp.argmax(jax.grad(value)(table), axis=1).astype(jnp.int32)
    return states.reshape(variables, count, batch)
