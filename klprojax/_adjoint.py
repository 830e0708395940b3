"""How derivatives pass through an iterative operator: an object handed to `infer` at call time.

Solvers carry no derivative rules of their own; an adjoint wraps the loop.
"""

import abc
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ._batching import everywhere
from ._linear_solve import bicgstab

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
        if max_steps == 1:
            return step(inputs, carry)[0], jnp.int32(1)

        @jax.custom_jvp
        def run(inputs, carry):
            return _while_loop(step, inputs, carry, max_steps)

        @run.defjvp
        def run_jvp(primals, tangents):
            return jax.jvp(lambda i, c: _nested_scan(step, i, c, max_steps), primals, tangents)

        return run(inputs, carry)


def _check_real(carry: Any) -> None:
    other = {str(x.dtype) for x in jax.tree.leaves(carry) if not _is_real(x)}
    if other:
        raise ValueError(
            f"The carry has arrays of {' and '.join(sorted(other))}; ImplicitAdjoint "
            "differentiates fixed points of real floating-point numbers. Carry real and "
            "imaginary parts as two arrays and no integers, or use UnrolledAdjoint()."
        )


class ImplicitAdjoint(AbstractAdjoint):
    """Differentiate the fixed point the loop ends in, not the way there.

    At ``x = F(inputs, x)`` the tangent solves ``(1 - dF/dx) dx = dF/dinputs . dinputs``; reverse
    mode solves the transposed system. Memory does not depend on the number of iterations. Both
    systems are solved by BiCGSTAB on products with ``dF/dx``.

    The derivative is that of the fixed point, so where one is asked for the loop goes on, up to its
    ``max_steps``, until its last step changed the result by no more than ``fixed_point_tolerance``
    (relative). If one more step would still change it by more, or the linear solve leaves more than
    ``tolerance``, the derivative raises (``throw=True``) or goes through with the report as the
    only sign.

    Args:
        tolerance: relative residual asked of the linear solve; default ``eps^0.75``, 2e-12 in
            float64: BiCGSTAB stagnates a few digits above rounding.
        max_steps: most BiCGSTAB steps in each of three rounds.
        fixed_point_tolerance: default ``sqrt(eps)``.
        throw: raise when the derivative should not be trusted.
        report: called on the host, whenever a derivative is computed, with a `GradientReport`.

    Raises:
        ValueError: when differentiated, a carry that is not all real floating-point numbers.

    Raises (at run time, with ``throw``):
        RuntimeError: the forward pass had not converged, or the linear solve did not.
    """

    tolerance: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=1000)
    fixed_point_tolerance: float | None = eqx.field(static=True, default=None)
    throw: bool = eqx.field(static=True, default=True)
    report: Callable[["GradientReport"], None] | None = eqx.field(static=True, default=None)

    def loop(self, step: Step, inputs: Any, carry: Any, max_steps: int) -> tuple[Any, Any]:
        """See `AbstractAdjoint.loop`."""

        def settle(inputs, carry):
            # A solver's own stop may be looser than what its derivative needs.
            new, done = step(inputs, carry)
            old, after = (ravel_pytree(lax.stop_gradient(tree))[0] for tree in (carry, new))
            return new, done & ~(_gap(old, after) > self._allowed(old))

        @jax.custom_jvp
        def run(inputs, carry):
            return _while_loop(step, inputs, carry, max_steps)

        @run.defjvp
        def run_jvp(primals, tangents):
            inputs, start = primals
            _check_real(start)
            d_inputs, _ = tangents  # the fixed point does not depend on where the loop started
            carry, steps = self.loop(settle, inputs, start, max_steps)
            d_carry = self._tangent(lambda i, c: step(i, c)[0], inputs, carry, d_inputs)
            return (carry, steps), (d_carry, np.zeros(jnp.shape(steps), jax.dtypes.float0))

        return run(inputs, carry)

    def _allowed(self, x: Any) -> float:
        root = math.sqrt(float(jnp.finfo(x.dtype).eps))
        return root if self.fixed_point_tolerance is None else self.fixed_point_tolerance

    def _tangent(self, function: Any, inputs: Any, carry: Any, d_inputs: Any) -> Any:
        flat, unflatten = ravel_pytree(carry)
        eps = float(jnp.finfo(flat.dtype).eps)

        def flat_function(inputs, x):
            return ravel_pytree(function(inputs, unflatten(x)))[0]

        after, right = jax.jvp(lambda i: flat_function(i, flat), (inputs,), (d_inputs,))
        # Elements that never settle to a number (infinite log-odds of hard evidence) are constant.
        free = jnp.isfinite(lax.stop_gradient(flat))
        gap = lax.stop_gradient(_gap(flat, after))

        def matvec(dx):
            dx = jnp.where(free, dx, 0.0)
            through = jax.jvp(lambda x: flat_function(inputs, x), (flat,), (dx,))[1]
            return dx - jnp.where(free, through, 0.0)

        solve = lambda mode: lambda a, b: self._solve(a, b, gap, eps, mode)  # noqa: E731
        d_flat = lax.custom_linear_solve(
            matvec,
            jnp.where(free, right, 0.0),
            solve=solve("forward"),
            transpose_solve=solve("reverse"),
        )
        return unflatten(d_flat)

    def _solve(self, matvec: Any, right: Any, gap: Any, eps: float, mode: str) -> Any:
        tolerance = eps**0.75 if self.tolerance is None else self.tolerance
        x, linear = bicgstab(matvec, right, tolerance=tolerance, max_steps=self.max_steps)
        # BiCGSTAB stops on its running residual; the true one may be somewhat larger.
        solved = linear <= 10 * tolerance
        settled = gap <= self._allowed(right)
        if self.report is not None:
            report = self.report

            def tell(linear, gap, solved, settled):
                report(
                    GradientReport(mode, float(linear), float(gap), bool(solved) and bool(settled))
                )

            jax.debug.callback(tell, linear, gap, solved, settled)
        if self.throw:
            x = eqx.error_if(
                x,
                ~settled,
                "The iteration had not converged where its derivative was asked for, so an "
                "implicit derivative would be wrong. Raise max_steps, add damping, or use "
                "UnrolledAdjoint().",
            )
            x = eqx.error_if(
                x,
                ~solved,
                "The linear solve of the implicit derivative did not reach its tolerance. Raise "
                "ImplicitAdjoint(max_steps=...) or its tolerance, or use UnrolledAdjoint().",
            )
        return x


def _is_real(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


class GradientReport(NamedTuple):
    """What `ImplicitAdjoint` measured while computing a derivative.

    mode: "forward" or "reverse". linear_residual: relative residual of the linear solve.
    fixed_point_residual: relative change that one more step would make. trusted: both are small.
    """

    mode: str
    linear_residual: float
    fixed_point_residual: float
    trusted: bool


def _gap(old: Any, new: Any) -> Any:
    """Largest change of an element that is a number, relative to the largest of them."""
    free = jnp.isfinite(old)
    scale = jnp.maximum(1.0, jnp.max(jnp.abs(jnp.where(free, old, 0.0)), initial=0.0))
    return jnp.max(jnp.abs(jnp.where(free, new - old, 0.0)), initial=0.0) / scale


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

    def stopped(state):
        _, steps, done = state
        return done | (steps >= max_steps)

    def advance(state):
        carry, steps, _ = state
        carry, done = step(inputs, carry)
        new = carry, steps + jnp.int32(1), done
        # In a batch some may have stopped before the others.
        return jax.tree.map(partial(jnp.where, stopped(state)), state, new)

    def one(state, _):
        # The predicate is one for the whole batch: a batched `cond` is a `select` whose transpose
        # JAX does not know, and would run every step.
        return lax.cond(everywhere(stopped(state)), lambda s: s, advance, state), None

    @jax.checkpoint
    def block(state, _):
        return lax.scan(one, state, None, length=inner)

    state = (carry, jnp.int32(0), jnp.bool_(False))
    (carry, steps, _), _ = lax.scan(block, state, None, length=outer)
    return carry, steps
