"""Decoding: belief propagation on a code's checks, many received words at once."""

import functools
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from .._sharding import on_any_mesh
from ..graphs import FactorGraph
from ._code import ParityCheckCode
from ._engine import satisfied, sums_at_variables, update

# Words worked on together: the messages of a code of a thousand bits then stay in a core's cache,
# and a row still fills several vector registers.
_LANES = 64


class Decoded(eqx.Module):
    """What `decode` found; the axis of words is absent if one word was given without it.

    Attributes:
        words: the bits, ``[variables, words]``; 0 where the beliefs are even.
        valid: whether all checks are satisfied (and no certain bits contradict each other).
        steps: iterations done on each word.
        log_odds: of the beliefs, ``log P(bit = 0) - log P(bit = 1)``; NaN on a contradiction.
    """

    words: UInt8[Array, "variables *words"]
    valid: Bool[Array, "*words"]
    steps: Int[Array, "*words"]
    log_odds: Float[Array, "variables *words"]


@on_any_mesh(batch=("log_odds",), axis=-1, out=-1)
def decode(
    code: ParityCheckCode,
    log_odds: Float[Array | np.ndarray, "variables *words"],
    max_steps: int = 50,
    *,
    early_stop: bool = True,
    semiring: Literal["sum", "max"] = "sum",
) -> Decoded:
    """Decode received words by belief propagation with the flooding schedule.

    The iterates are those of ``infer(code.graph, code.log_potentials, BeliefPropagation())`` with
    the evidence ``code.log_evidence(log_odds)``, word by word.

    Args:
        code: the code.
        log_odds: of each bit given what was received, ``log P(0) - log P(1)`` in nats (see
            `GaussianChannel.log_odds`): one word ``[variables]`` or many, words last. ±inf are bits
            known for certain, 0 are erased ones.
        max_steps: most iterations.
        early_stop: stop working on a word once its bits satisfy all checks. Words that are done
            make room for others, so a batch costs the sum of its words' iterations.
        semiring: ``"sum"``, or ``"max"`` (the min-sum decoder).

    Returns:
        `Decoded`. The dtype of ``log_odds`` is kept.

    Raises:
        ValueError: no `ParityCheckCode`, ``log_odds`` of the wrong shape, ``max_steps`` below 1,
            unknown semiring.

    Example:
        >>> import numpy as np
        >>> from klprojax.codes import ParityCheckCode, decode
        >>> code = ParityCheckCode([[1, 1, 0], [0, 1, 1]])  # three equal bits
        >>> decode(code, np.array([-2.0, -1.0, 0.5])).words.tolist()
        [1, 1, 1]
    """
    if not isinstance(code, ParityCheckCode):
        raise ValueError(
            f"code is of type {type(code).__name__}; expected a ParityCheckCode. Make one from the "
            "parity-check matrix: ParityCheckCode(matrix)."
        )
    shape = np.shape(log_odds)
    if len(shape) not in (1, 2) or shape[0] != code.num_variables:
        raise ValueError(
            f"log_odds has shape {shape}; expected ({code.num_variables},) or "
            f"({code.num_variables}, words)."
        )
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1.")
    if semiring not in ("sum", "max"):
        raise ValueError(f"semiring is {semiring!r}; use 'sum' or 'max'.")
    table = jnp.asarray(log_odds)
    table = table[:, None] if table.ndim == 1 else table
    if not table.shape[1]:
        none = jnp.zeros(0, jnp.int32)
        return Decoded(jnp.zeros(shape, jnp.uint8), none == 0, none, table)
    lanes = max(1, min(table.shape[1], _LANES))
    out = _decode(code.graph, table, max_steps, early_stop, semiring, lanes)
    return out if len(shape) == 2 else jax.tree.map(lambda x: x[..., 0], out)


class _Lanes(eqx.Module):
    """Words in work, one a lane. ``word`` is the number of words where a lane has none."""

    word: Int[Array, " lanes"]
    log_odds: Float[Array, "variables lanes"]
    totals: Float[Array, "variables lanes"]
    messages: Float[Array, "edges lanes"]
    steps: Int[Array, " lanes"]
    valid: Bool[Array, " lanes"]
    done: Bool[Array, " lanes"]


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _decode(
    graph: FactorGraph,
    log_odds: Float[Array, "variables words"],
    max_steps: int,
    early_stop: bool,
    semiring: Literal["sum", "max"],
    lanes: int,
) -> Decoded:
    variables, words = log_odds.shape
    edges = len(graph.wiring.edges[0]) if graph.signature.groups else 0

    def check(totals):
        return satisfied(graph, totals < 0) & ~jnp.any(jnp.isnan(totals), axis=0)

    valid = check(log_odds)
    # Words whose channel decisions are valid are done before the first step.
    finished = valid if early_stop and edges else jnp.full(words, not edges)
    queue = jnp.argsort(finished, stable=True).astype(jnp.int32)
    waiting = words - jnp.sum(finished, dtype=jnp.int32)

    def advance(now: _Lanes) -> _Lanes:
        messages = update(graph, now.log_odds, now.totals, now.messages, now.done, semiring)
        # Lanes that are done stay as they are until their words are taken out.
        messages = jnp.where(now.done[None], now.messages, messages)
        totals = now.log_odds + sums_at_variables(graph, messages)
        steps = now.steps + jnp.where(now.done, 0, 1).astype(jnp.int32)
        valid = check(totals)
        done = now.done | (steps >= max_steps)
        done = done | valid if early_stop else done
        return _Lanes(now.word, now.log_odds, totals, messages, steps, valid, done)

    def take(now: _Lanes, taken: Array) -> tuple[_Lanes, Array]:
        """Fill the lanes that are done with the next words of the queue."""
        place = taken + jnp.cumsum(now.done, dtype=jnp.int32) - 1
        fresh = now.done & (place < waiting)
        word = queue.at[place].get(mode="fill", fill_value=words)
        word = jnp.where(fresh, word, jnp.where(now.done, words, now.word))
        received = log_odds.at[:, word].get(mode="clip")
        own = jnp.where(now.done[None], received, now.log_odds)
        return _Lanes(
            word,
            own,
            jnp.where(now.done[None], own, now.totals),
            jnp.where(now.done[None], 0.0, now.messages),
            jnp.where(now.done, 0, now.steps),
            now.valid & ~now.done,
            now.done & ~fresh,
        ), taken + jnp.sum(fresh, dtype=jnp.int32)

    def round_(carry):
        now, taken, totals, valid, steps = carry
        # While words wait, gather a few lanes that are done before taking out and filling them.
        idle = jnp.sum(now.word == words, dtype=jnp.int32)
        enough = jnp.where(taken < waiting, idle + max(1, lanes // 8), lanes)
        now = lax.while_loop(lambda now: jnp.sum(now.done, dtype=jnp.int32) < enough, advance, now)
        out = jnp.where(now.done, now.word, words)
        totals = totals.at[out].set(now.totals.T, mode="drop")
        valid = valid.at[out].set(now.valid, mode="drop")
        steps = steps.at[out].set(now.steps, mode="drop")
        now, taken = take(now, taken)
        return now, taken, totals, valid, steps

    nothing = _Lanes(
        jnp.full(lanes, words, jnp.int32),
        jnp.zeros((variables, lanes), log_odds.dtype),
        jnp.zeros((variables, lanes), log_odds.dtype),
        jnp.zeros((edges, lanes), log_odds.dtype),
        jnp.zeros(lanes, jnp.int32),
        jnp.zeros(lanes, bool),
        jnp.ones(lanes, bool),
    )
    start, taken = take(nothing, jnp.int32(0))
    carry = (start, taken, log_odds.T, valid, jnp.zeros(words, jnp.int32))
    if edges:
        carry = lax.while_loop(lambda carry: jnp.any(carry[0].word < words), round_, carry)
    _, _, totals, valid, steps = carry
    totals = totals.T
    return Decoded((totals < 0).astype(jnp.uint8), valid, steps, totals)
