"""BiCGSTAB with restarts, one copy of the matrix-vector product in the compiled program.

Library solvers call the product at five places of a restarted, checked solve, and each call is
compiled anew; where the product is the derivative of a user's loop, that is the user's wait.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Vector = Float[Array, " size"]

# What the next product is for: the direction's step, the stabilising step, the true residual.
_STEP, _STABILIZE, _CHECK, _DONE = range(4)


class _State(NamedTuple):
    phase: Array
    count: Array
    rounds: Array
    x: Array
    rest: Array
    shadow: Array
    direction: Array
    image: Array
    rho: Array
    alpha: Array
    best: Array
    error: Array


def bicgstab(
    matvec: Callable[[Vector], Vector],
    right: Vector,
    *,
    tolerance: float,
    max_steps: int,
    rounds: int = 3,
) -> tuple[Vector, Float[Array, ""]]:
    """Solve ``A x = right``, starting anew from the true residual when the recurrence breaks down.

    Args:
        matvec: ``x -> A x``.
        tolerance: relative residual to reach.
        max_steps: most steps (two products each) in each round.
        rounds: most starts.

    Returns:
        The best ``x`` seen and its true relative residual ``|A x - right| / |right|``.

    Reference: van der Vorst (1992).
    """
    size = jnp.linalg.norm(right)
    goal = tolerance * size
    zero = jnp.zeros_like(right)
    one = jnp.ones((), right.dtype)
    start = _State(
        phase=jnp.where(size == 0, _DONE, _STEP).astype(jnp.int32),
        count=jnp.int32(0),
        rounds=jnp.int32(1),
        x=zero,
        rest=right,
        shadow=right,
        direction=right,
        image=zero,
        rho=size**2,
        alpha=one,
        best=zero,
        error=jnp.where(size == 0, 0.0 * one, one),
    )

    def step(state: _State, product: Array) -> _State:
        denominator = _dot(state.shadow, product)
        broken = (denominator == 0) | ~jnp.isfinite(denominator)
        alpha = jnp.where(broken, 0.0, state.rho / jnp.where(broken, 1.0, denominator))
        x = state.x + alpha * state.direction
        rest = state.rest - alpha * product
        over = broken | (jnp.linalg.norm(rest) <= goal)
        phase = jnp.where(over, _CHECK, _STABILIZE).astype(jnp.int32)
        return state._replace(phase=phase, x=x, rest=rest, image=product, alpha=alpha)

    def stabilize(state: _State, product: Array) -> _State:
        square = _dot(product, product)
        omega = _dot(product, state.rest) / jnp.where(square == 0, 1.0, square)
        x = state.x + omega * state.rest
        rest = state.rest - omega * product
        rho = _dot(state.shadow, rest)
        scale = state.rho * omega
        broken = (scale == 0) | (rho == 0) | ~jnp.isfinite(scale) | ~jnp.isfinite(rho)
        beta = jnp.where(broken, 0.0, rho * state.alpha / jnp.where(broken, 1.0, scale))
        direction = rest + beta * (state.direction - omega * state.image)
        count = state.count + 1
        over = broken | (count >= max_steps) | (jnp.linalg.norm(rest) <= goal)
        phase = jnp.where(over, _CHECK, _STEP).astype(jnp.int32)
        return state._replace(
            phase=phase, count=count, x=x, rest=rest, direction=direction, rho=rho
        )

    def check(state: _State, product: Array) -> _State:
        error = jnp.linalg.norm(right - product) / size
        better = error < state.error  # false for NaN
        best = jnp.where(better, state.x, state.best)
        # Without progress the next round would repeat this one.
        over = ~better | (error <= tolerance) | (state.rounds >= rounds)
        rest = right - product
        return state._replace(
            phase=jnp.where(over, _DONE, _STEP).astype(jnp.int32),
            count=jnp.int32(0),
            rounds=state.rounds + 1,
            rest=rest,
            shadow=rest,
            direction=rest,
            rho=_dot(rest, rest),
            best=best,
            error=jnp.where(better, error, state.error),
        )

    def body(state: _State) -> _State:
        phase = jnp.minimum(state.phase, _CHECK)
        operand = jnp.where(
            phase == _STEP, state.direction, jnp.where(phase == _STABILIZE, state.rest, state.x)
        )
        return lax.switch(phase, (step, stabilize, check), state, matvec(operand))

    end = lax.while_loop(lambda state: state.phase != _DONE, body, start)
    return end.best, end.error


def _dot(a: Array, b: Array) -> Array:
    # HIGHEST: accelerators would otherwise round float32 to 10 bits.
    return jnp.vdot(a, b, precision=lax.Precision.HIGHEST)
