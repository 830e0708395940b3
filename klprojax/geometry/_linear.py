"""Linear solves behind the implicit derivatives of projections (section 2).

The derivative of a projection with multipliers solves a symmetric, positive semi-definite system,
singular along the gauge directions that leave the projected table alone. Both solvers return a
solution of such a system when it has one and stay finite when it has none. `symmetric_solve` makes
either of them differentiable and transposable, so that forward mode, reverse mode and higher orders
all follow from one JVP rule.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

Tables = TypeVar("Tables")  # a pytree of arrays


def symmetric_solve(
    matvec: Callable[[Tables], Tables], rhs: Tables, solve: Callable[..., Tables]
) -> Tables:
    """Solve `matvec(x) = rhs` by `solve(matvec, rhs)`, differentiably in both."""
    # One vector: JAX transposes the solve only if all of the right-hand side depends on the input.
    flat, unflatten = ravel_pytree(rhs)
    found = jax.lax.custom_linear_solve(
        lambda x: ravel_pytree(matvec(unflatten(x)))[0],
        flat,
        lambda _, b: ravel_pytree(solve(matvec, unflatten(b)))[0],
        symmetric=True,
    )
    return unflatten(found)


def conjugate_gradient(
    matvec: Callable[[Tables], Tables], rhs: Tables, preconditioner: Tables
) -> Tables:
    """Solve a positive semi-definite system by preconditioned conjugate gradients from zero.

    Args:
        matvec: the linear map.
        rhs: right-hand side, in the range of the map if a solution is wanted.
        preconditioner: entries of a diagonal approximation of the inverse; a zero entry keeps the
            solution's entry at zero.

    Returns:
        The solution; after a number of steps proportional to the size, the best found.
    """
    leaves = jax.tree.leaves(rhs)
    eps = jnp.finfo(leaves[0].dtype).eps
    # Exact arithmetic needs as many steps as unknowns; rounding can ask for more.
    max_steps = 2 * sum(leaf.size for leaf in leaves) + 10

    def inner(a, b):
        products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
        return jax.tree.reduce(jnp.add, products)

    def precondition(tables):
        return jax.tree.map(jnp.multiply, preconditioner, tables)

    def unfinished(state):
        _, _, _, size, steps, stuck = state
        return (size > (10 * eps) ** 2 * size_0) & (steps < max_steps) & ~stuck

    def step(state):
        solution, residual, direction, size, steps, _ = state
        image = matvec(direction)
        curvature = inner(direction, image)
        stuck = ~(curvature > 0)
        # No curvature left: a gauge direction, reached by rounding or by an unsolvable system.
        length = jnp.where(stuck, jnp.zeros_like(size), size / jnp.where(stuck, 1, curvature))
        solution = jax.tree.map(lambda x, d: x + length * d, solution, direction)
        residual = jax.tree.map(lambda r, i: r - length * i, residual, image)
        scaled = precondition(residual)
        new_size = inner(residual, scaled)
        ratio = new_size / size
        direction = jax.tree.map(lambda z, d: z + ratio * d, scaled, direction)
        return solution, residual, direction, new_size, steps + 1, stuck

    start = jax.tree.map(jnp.zeros_like, rhs)
    scaled_0 = precondition(rhs)
    size_0 = inner(rhs, scaled_0)
    state = (start, rhs, scaled_0, size_0, jnp.asarray(0), jnp.asarray(False))
    return jax.lax.while_loop(unfinished, step, state)[0]


def pseudo_solve(
    matrix: Float[Array, "size size"], rhs: Float[Array, " size"]
) -> Float[Array, " size"]:
    """Solve a small dense positive semi-definite system in the least-squares sense.

    The matrix is first scaled to unit diagonal, so that the cut between zero and non-zero
    eigenvalues does not depend on the units of the unknowns.
    """
    diagonal = jnp.diagonal(matrix)
    flat = diagonal <= 0
    scale = jnp.where(flat, 0, jax.lax.rsqrt(jnp.where(flat, 1, diagonal)))
    values, vectors = jnp.linalg.eigh(matrix * jnp.outer(scale, scale))
    cut = values.size * 10 * jnp.finfo(matrix.dtype).eps
    null = values <= cut
    inverse = jnp.where(null, 0, 1 / jnp.where(null, 1, values))
    return scale * (vectors @ (inverse * (vectors.T @ (scale * rhs))))
