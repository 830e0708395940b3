"""Messages through the delta factor of one primitive (Lemma 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._tracing import CALLBACKS, LiftError, Psi, Replay, output_activity


def _pullback(
    psi: Psi,
    active: tuple[int, ...],
    sends: tuple[bool, ...],
    inputs: tuple[Any, ...],
    slopes: tuple[Any, ...],
) -> tuple[Any, ...]:
    def substitute(*values: Any) -> tuple[Any, ...]:
        full = list(inputs)
        for position, value in zip(active, values, strict=True):
            full[position] = value
        return tuple(y for y, flag in zip(psi(*full), sends, strict=True) if flag)

    # log m_{g->x}(x) = log m_{y->g}(psi(x)): the slope of one log-message of one primitive.
    _, pullback = jax.vjp(substitute, *(inputs[position] for position in active))
    return pullback(slopes)


_cached_pullback = partial(jax.jit, static_argnums=(0, 1, 2), inline=True)(_pullback)


def _pullback_by_rule(
    psi: Psi,
    active: tuple[int, ...],
    sends: tuple[bool, ...],
    inputs: tuple[Any, ...],
    slopes: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Apply a rule that a user or JAX itself gave; None for a message that is constant.

    A rule may ignore some of its inputs. The message into such an input is constant, which further
    factors must learn: some of them refuse every message but a constant one.
    """
    closed = jax.make_jaxpr(lambda *given: _pullback(psi, active, sends, inputs, given))(*slopes)
    varies = output_activity(closed.jaxpr, [True] * len(slopes))
    results = Replay(closed, varies)(*slopes)
    return tuple(result if flag else None for result, flag in zip(results, varies, strict=True))


class PrimitiveRule:
    """Substitution into one primitive: `log m_{g->x_j}(x_j) = log m_{y->g}(ψ(x_j, x*_{-j}))`."""

    def __init__(self, equation: Any, active: tuple[int, ...], sends: tuple[bool, ...], place: str):
        self.psi = Psi(equation)
        self.active = active
        self.sends = sends
        self.place = place
        if active and equation.primitive.name in CALLBACKS:
            raise LiftError(
                "a callback has no derivative rule; wrap the function that calls it in"
                " jax.custom_vjp or jax.custom_jvp",
                place,
            )

    def upward(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Evaluate ψ at the forward values; nothing is saved."""
        return self.psi(*inputs), ()

    def downward(
        self, inputs: Sequence[Any], outputs: Sequence[Any], saved: Any, slopes: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Return the slope of the log-message into every active input, None if constant."""
        del saved
        given = tuple(
            jnp.zeros_like(y) if s is None else s
            for y, s, flag in zip(outputs, slopes, self.sends, strict=True)
            if flag
        )
        pullback = _cached_pullback if self.psi.is_cacheable else _pullback_by_rule
        try:
            return pullback(self.psi, self.active, self.sends, tuple(inputs), given)
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise LiftError(
                f"the primitive has no slope at this point of the trace ({error})", self.place
            ) from error
