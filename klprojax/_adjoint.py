"""How derivatives pass through an iterative operator: an object handed to `infer` at call time.

Solvers carry no derivative rules of their own; an adjoint wraps the loop.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

# (step, initial carry, inputs, max_steps) -> (final carry, steps taken). `step` maps
# (inputs, carry) to (carry, done).
Step = Callable[[Any, Any], tuple[Any, Any]]


class AbstractAdjoint(eqx.Module):
    """Contract of an adjoint: run a loop so that derivatives are those the adjoint promises."""

    @abc.abstractmethod
    def loop(self, step: Step, inputs: Any, carry: Any, max_steps: int) -> tuple[Any, Any]:
        """Iterate ``carry, done = step(inputs, carry)`` until done or ``max_steps``.

        Args:
            step: a pure function of ``(inputs, carry)``, both pytrees; all that derivatives are
                wanted for must be in ``inputs`` or ``carry``, not closed over.

        Returns:
            The final carry and the number of steps taken (a 0-d int32 array).
        """


class UnrolledAdjoint(AbstractAdjoint):
    """Differentiate through every iteration, storing about ``2 sqrt(max_steps)`` carries.

    Without differentiation the loop stops as soon as it is done. Under ``jvp``, ``grad`` or any
    composition of them, it runs as nested scans with recomputation of the inner one, so reverse
    mode keeps O(sqrt(max_steps)) carries rather than one per step; iterations after the stop are
    skipped. Derivatives are exact for the iterate returned, converged or not.
    """

    def loop(self, step: Step, inputs: Any, carry: Any, max_steps: int) -> tuple[Any, Any]:
        """See `AbstractAdjoint.loop`."""

        @jax.custom_jvp
        def run(inputs, carry):
            return _while_loop(step, inputs, carry, max_steps)

        @run.defjvp
        def run_jvp(primals, tangents):
            return jax.jvp(lambda i, c: _nested_scan(step, i, c, max_steps), primals, tangents)

        return run(inputs, carry)


def _while_loop(step: Step, inputs: Any, carry: Any, max_steps: int) -> tuple[Any, Any]:
    def cond(state):
        _, steps, done = state
        return ~done & (steps < max_steps)

    def body(state):
        carry, steps, _ = state
        carry, done = step(inputs, carry)
        return carry, steps + jnp.int32(1), done

    carry, steps, _ = lax.while_loop(cond, body, (carry, jnp.int32(0), jnp.bool_(False)))
    return carry, steps


def _nested_scan(step: Step, inputs: Any, carry: Any, max_steps: int) -> tuple[Any, Any]:
    inner = max(1, math.isqrt(max_steps))
    outer = -(-max_steps // inner)

    def advance(state):
        carry, steps, _ = state
        carry, done = step(inputs, carry)
        return carry, steps + jnp.int32(1), done

    def one(state, _):
        _, steps, done = state
        return lax.cond(done | (steps >= max_steps), lambda s: s, advance, state), None

    @jax.checkpoint
    def block(state, _):
        return lax.scan(one, state, None, length=inner)

    state = (carry, jnp.int32(0), jnp.bool_(False))
    (carry, steps, _), _ = lax.scan(block, state, None, length=outer)
    return carry, steps
