"""Damped Newton descent, for local projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

# Backtracking stops after this many halvings: a step below 2^-40 changes no digit that matters.
_HALVINGS = 40
# Fraction of the predicted decrease that a step must achieve (Armijo's rule).
_ARMIJO = 1e-4


def descend(
    objective: Callable[[Any], Any],
    gradient: Callable[[Any], Any],
    newton_step: Callable[[Any, Any], Any],
    start: Any,
    max_steps: int,
) -> Any:
    """Minimise by damped Newton steps; several objectives at once if `objective` is elementwise."""
    epsilon = jnp.finfo(start.dtype).eps

    def move(x: Any) -> tuple[Any, Any]:
        g = gradient(x)
        step = newton_step(x, g)
        before = objective(x)
        decrease = g * step if before.shape == x.shape else jnp.sum(g * step)

        def accepted(t: Any) -> Any:
            return objective(x + t * step) <= before + _ARMIJO * t * decrease

        def shrink(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            t, fine, count = state
            t = jnp.where(fine, t, t / 2)
            return t, fine | accepted(t), count + 1

        # The verdict is carried, not computed again in the condition: two compilations of one
        # comparison may round differently, and under vmap the loop would then never end.
        whole = jnp.ones_like(before)
        t, fine, _ = lax.while_loop(
            lambda state: ~jnp.all(state[1]) & (state[2] < _HALVINGS),
            shrink,
            (whole, accepted(whole), jnp.zeros((), jnp.int32)),
        )
        # A step that cannot lower the objective any more is rounding: the point has converged.
        t = jnp.where(fine, t, jnp.zeros_like(t))
        return x + t * step, t * step

    def body(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        x, _, count = state
        new, step = move(x)
        # Newton doubles the digits: a step of sqrt(eps)/16 leaves an error near eps, which the
        # caller's last step removes.
        moving = jnp.any(jnp.abs(step) > jnp.sqrt(epsilon) / 16 * (jnp.abs(new) + 1))
        return new, moving, count + 1

    state = (start, jnp.asarray(True), jnp.zeros((), jnp.int32))
    return lax.while_loop(lambda s: s[1] & (s[2] < max_steps), body, state)[0]
