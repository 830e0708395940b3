"""Theorem 3.3: the upward and the downward pass over a lifted graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import jax.numpy as jnp

from ._structure import Structure


def upward(
    structure: Structure, constants: Sequence[Any], inputs: Sequence[Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Collapse every upward message to a Dirac mass at its forward value.

    Args:
        structure: the lifted graph.
        constants: captured arrays.
        inputs: one value a jaxpr input.

    Returns:
        The value of every variable, and what each factor keeps for the downward pass.
    """
    values: list[Any] = [None] * len(structure.variables)
    for index, value in structure.literals.items():
        values[index] = value
    for index, value in zip(structure.constants, constants, strict=True):
        values[index] = value
    for index, value in zip(structure.inputs, inputs, strict=True):
        values[index] = value
    saved = []
    for factor in structure.factors:
        outputs, kept = factor.rule.upward([values[index] for index in factor.inputs])
        for index, value in zip(factor.outputs, outputs, strict=True):
            values[index] = value
        saved.append(kept)
    return tuple(values), tuple(saved)


def or_zeros(slope: Any, value: Any) -> Any:
    """The slope of a log-message into a variable, zeros where it is constant."""
    return jnp.zeros_like(value) if slope is None else slope


def product_of_messages(slopes: Sequence[Any]) -> Any:
    """Multiply downward messages into a belief: log-messages add up, hence so do their slopes."""
    varying = [slope for slope in slopes if slope is not None]
    return reduce(add, varying) if varying else None


def downward(
    structure: Structure,
    values: Sequence[Any],
    saved: Sequence[Any],
    seeds: Sequence[Any],
) -> tuple[tuple[Any, ...], tuple[tuple[Any, ...], ...]]:
    """Send first-order jets of log-messages from the outputs down to every active variable.

    Args:
        structure: the lifted graph.
        values: the forward value of every variable.
        saved: what the factors kept in the upward pass.
        seeds: slope of the log-message into each jaxpr output, None where there is no message.

    Returns:
        `s(v) = ∂_v log b_↓(v)` of every variable (None where no message arrives), and the slopes of
        the messages into it, in the order of `structure.messages`.
    """
    messages: list[list[Any]] = [[] for _ in structure.variables]
    for index, seed in zip(structure.outputs, seeds, strict=True):
        messages[index].append(seed)
    beliefs: list[Any] = [None] * len(structure.variables)
    for factor in reversed(structure.factors):
        slopes = []
        for index in factor.outputs:
            beliefs[index] = product_of_messages(messages[index])
            slopes.append(beliefs[index])
        if not factor.active or all(slope is None for slope in slopes):
            for position in factor.active:
                messages[factor.inputs[position]].append(None)
            continue
        outgoing = factor.rule.downward(
            [values[index] for index in factor.inputs],
            [values[index] for index in factor.outputs],
            saved[factor.index],
            slopes,
        )
        for position, slope in zip(factor.active, outgoing, strict=True):
            messages[factor.inputs[position]].append(slope)
    for index in structure.inputs:
        beliefs[index] = product_of_messages(messages[index])
    return tuple(beliefs), tuple(tuple(column) for column in messages)
