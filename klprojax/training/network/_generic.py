"""Any differentiable operation as one constraint: the damped Gauss-Newton projection."""

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array

from ...lifting.local._descent import descend
from ._constraints import AbstractLocalConstraint, Projected

# Steps at most. Near the graph a step leaves a share of the error of the size of its curvature.
_MAX_STEPS = 60


class Generic(AbstractLocalConstraint):
    """`z = ψ(a_1, ..., a_m)` for any ψ with derivatives, one copy of every input per sample.

    The nearest point in the precisions minimises `Σ ω_k/2 |a_k* - a_k|² + ρ/2 |z - ψ(a*)|²`.
    Gauss-Newton steps linearise ψ by its own jvp and vjp and solve for the move by conjugate
    gradients; they are halved until the objective falls. Loops (`scan`), products of many values,
    sorting and pooling by windows take this way.

    Args:
        function: ψ on arrays of one sample.
        movable: for every input whether it has copies; the others are data.
    """

    def __init__(self, function: Callable[..., Array], movable: tuple[bool, ...]):
        self.function, self.movable = function, movable

    def apply(self, *inputs):
        """ψ, sample by sample."""
        return jax.vmap(self.function)(*_same_rows(inputs))

    def of_copies(self, inputs: Sequence[Any], copies: Sequence[Any]) -> Array:
        """ψ of one sample: the copies in place of the inputs that move."""
        moved = iter(copies)
        pairs = zip(inputs, self.movable, strict=True)
        return self.function(*(next(moved) if moves else x for x, moves in pairs))

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the copies of every sample; see the class."""
        rho = jnp.broadcast_to(jnp.asarray(output_precision, target.dtype), target.shape)
        omegas = tuple(jnp.asarray(p, target.dtype) for p in precisions)
        *rows, target, rho = _same_rows((*inputs, target, rho))
        found, output = jax.vmap(lambda z, r, *a: self._nearest(a, z, omegas, r))(
            target, rho, *rows
        )
        moved = iter(found)
        # Data stay where they are.
        slopes = [
            next(moved) if free else jnp.zeros(row.shape, target.dtype)
            for free, row in zip(self.movable, rows, strict=True)
        ]
        slopes = [slope if want else None for slope, want in zip(slopes, wanted, strict=True)]
        return Projected(tuple(slopes), output, jnp.zeros((), target.dtype))

    def _nearest(self, inputs: Any, target: Array, omegas: Any, rho: Array) -> tuple[Any, Array]:
        """Slopes of the inputs that move, and the output, of one sample."""
        problem = _NearestPoint(self, inputs, target, omegas, rho)
        fixed = _NearestPoint(self, *lax.stop_gradient((inputs, target, omegas, rho)))
        x = descend(fixed.objective, fixed.gradient, fixed.step, fixed.start, _MAX_STEPS)
        # The implicit function theorem: one Newton step, of which only the derivative counts.
        newton = cg(lambda v: jax.jvp(fixed.gradient, (x,), (v,))[1], problem.gradient(x))[0]
        copies = problem.point(x - (newton - lax.stop_gradient(newton)))
        output, pull = jax.vjp(problem.value, copies)
        steep = pull(rho * (target - output))[0]
        # Both are the slope at a stationary point. A precision multiplies the rounding of its
        # difference, so the smaller one is right.
        soft = jnp.max(rho, initial=0)
        known = zip(problem.bases, problem.omegas, copies, steep, strict=True)
        slopes = [
            jnp.where(soft < omega, slope, omega * (copy - base))
            for base, omega, copy, slope in known
        ]
        return slopes, output


class _NearestPoint:
    """`|x - start|²/2 + Σ ρ/2 |z - ψ|²` in units in which every copy has precision 1."""

    def __init__(self, rule: Generic, inputs: Any, target: Array, omegas: Any, rho: Array):
        self.rule, self.inputs, self.target, self.rho = rule, inputs, target, rho
        self.bases = list(compress(inputs, rule.movable))
        self.omegas = list(compress(omegas, rule.movable))
        self.roots = list(map(jnp.sqrt, self.omegas))
        scaled = [root * base for root, base in zip(self.roots, self.bases, strict=True)]
        self.start, self.unravel = ravel_pytree(scaled)

    def point(self, x: Array) -> list[Array]:
        """The copies."""
        return [part / root for part, root in zip(self.unravel(x), self.roots, strict=True)]

    def value(self, copies: list[Array]) -> Array:
        """ψ of the copies and the data."""
        return self.rule.of_copies(self.inputs, copies)

    def _at(self, x: Array) -> Array:
        return self.value(self.point(x))

    def objective(self, x: Array) -> Array:
        """What is least at the nearest point."""
        off = self.rho * jnp.square(self.target - self._at(x))
        return (jnp.sum(jnp.square(x - self.start)) + jnp.sum(off)) / 2

    def gradient(self, x: Array) -> Array:
        """Its derivative."""
        output, pull = jax.vjp(self._at, x)
        return x - self.start - pull(self.rho * (self.target - output))[0]

    def step(self, x: Array, gradient: Array) -> Array:
        """The Gauss-Newton step."""
        _, push = jax.linearize(self._at, x)
        pull = jax.linear_transpose(push, x)

        def normal(v: Array) -> Array:
            return v + pull(self.rho * push(v))[0]

        tolerance = 16 * float(jnp.finfo(x.dtype).eps)
        return cg(normal, -gradient, tol=tolerance, maxiter=x.size)[0]


def _same_rows(arrays: tuple[Array, ...]) -> list[Array]:
    """Arrays of one row repeated for all samples."""
    rows = max(len(array) for array in arrays)
    return [jnp.broadcast_to(array, (rows, *array.shape[1:])) for array in arrays]
