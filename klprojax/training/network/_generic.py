"""Any differentiable operation as one constraint: the damped Gauss-Newton projection."""

from collections.abc import Callable
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

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the copies of every sample; see the class."""
        rho = jnp.broadcast_to(jnp.asarray(output_precision, target.dtype), target.shape)
        omegas = tuple(jnp.asarray(p, target.dtype) for p in precisions)
        *rows, target, rho = _same_rows((*inputs, target, rho))
        found, output = jax.vmap(lambda z, r, *a: self._nearest(a, z, omegas, r))(
            target, rho, *rows
        )
        slopes: list[Array | None] = [None] * len(inputs)
        for k, slope in zip((k for k, free in enumerate(self.movable) if free), found, strict=True):
            slopes[k] = slope if wanted[k] else None
        return Projected(tuple(slopes), output, jnp.zeros((), target.dtype))

    def _nearest(self, inputs: Any, target: Array, omegas: Any, rho: Array) -> tuple[Any, Array]:
        """Slopes of the inputs that move, and the output, of one sample."""
        free = [k for k, moves in enumerate(self.movable) if moves]
        # In units in which every copy has precision 1.
        roots = [jnp.sqrt(omegas[k]) for k in free]
        start, unravel = ravel_pytree(
            [root * inputs[k] for k, root in zip(free, roots, strict=True)]
        )

        def point(x: Array) -> list[Array]:
            return [part / root for part, root in zip(unravel(x), roots, strict=True)]

        def value(copies: list[Array]) -> Array:
            full = list(inputs)
            for k, copy in zip(free, copies, strict=True):
                full[k] = copy
            return self.function(*full)

        def at(x: Array) -> Array:
            return value(point(x))

        def objective(x: Array) -> Array:
            off = target - at(x)
            return (jnp.sum(jnp.square(x - start)) + jnp.sum(rho * jnp.square(off))) / 2

        def gradient(x: Array) -> Array:
            output, pull = jax.vjp(at, x)
            return x - start - pull(rho * (target - output))[0]

        def step(x: Array, g: Array) -> Array:
            _, push = jax.linearize(at, x)
            pull = jax.linear_transpose(push, x)
            tolerance = 16 * float(jnp.finfo(x.dtype).eps)
            return cg(lambda v: v + pull(rho * push(v))[0], -g, tol=tolerance, maxiter=x.size)[0]

        moved = lax.custom_root(
            gradient,
            start,
            lambda _, x: descend(objective, gradient, step, x, _MAX_STEPS),
            lambda hessian, y: cg(hessian, y, maxiter=y.size)[0],
        )
        output, pull = jax.vjp(value, point(moved))
        steep = pull(rho * (target - output))[0]
        # Both are the slope at a stationary point. A precision multiplies the rounding of its
        # difference, so the smaller one is right.
        soft = jnp.max(rho, initial=0)
        copies = zip(free, point(moved), steep, strict=True)
        slopes = [
            jnp.where(soft < omegas[k], s, omegas[k] * (copy - inputs[k])) for k, copy, s in copies
        ]
        return slopes, output


def _same_rows(arrays: tuple[Array, ...]) -> list[Array]:
    """Arrays of one row repeated for all samples."""
    rows = max(len(array) for array in arrays)
    return [jnp.broadcast_to(array, (rows, *array.shape[1:])) for array in arrays]
