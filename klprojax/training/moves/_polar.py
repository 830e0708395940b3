"""Polar factors of many matrices at once, by products of small Gram matrices."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Odd polynomials `aX + bX³ + cX⁵` of singular values in (0, 1]: five steps that carry small ones
# near 1 (Jordan et al. 2024), then three of Newton and Schulz, which converge there.
_STEPS = ((3.4445, -4.7750, 2.0315),) * 5 + ((1.875, -1.25, 0.375),) * 3


def polar_factors(arrays: Sequence[Array], group: int) -> list[Array]:
    """The nearest semi-orthogonal matrix of every group of rows, up to its length.

    Args:
        arrays: matrices `[units, ...]`, of at least two axes; the later ones count as one.
        group: rows that become orthonormal together; all of an array that has fewer.

    Returns:
        Arrays of the same shapes. With `X = U S Vᵀ` the rows of a group, theirs are `U Vᵀ`, which
        maximises `<X, O>` over matrices O of spectral norm at most 1. Singular values below 1e-3
        of the group's norm come out smaller than 1; 0 stays 0. The cost is that of `2 * group`
        products per number.
    """
    blocks = [_blocks(array, group) for array in arrays]
    if not blocks:
        return []
    size = max(min(block.shape[-2:]) for block in blocks)
    grams = [_gram(block, size) for block in blocks]
    roots = _inverse_roots(jnp.concatenate(grams))
    factors, at = [], 0
    for array, block in zip(arrays, blocks, strict=True):
        small = min(block.shape[-2:])
        root = roots[at : at + len(block), :small, :small]
        at += len(block)
        found = root @ block if small == block.shape[-2] else block @ root
        factors.append(found.reshape(-1, found.shape[-1])[: len(array)].reshape(array.shape))
    return factors


def _blocks(array: Array, group: int) -> Float[Array, "groups rows columns"]:
    """Groups of rows, of largest entry 1 so that squares neither overflow nor vanish."""
    rows = len(array)
    matrix = array.reshape(rows, math.prod(array.shape[1:]))
    group = min(group, rows)
    matrix = jnp.pad(matrix, ((0, -rows % group), (0, 0)))
    block = matrix.reshape(-1, group, matrix.shape[-1])
    largest = jnp.max(jnp.abs(block), axis=(-2, -1), keepdims=True)
    return block / jnp.where(largest > 0, largest, jnp.ones_like(largest))


def _gram(block: Array, size: int) -> Float[Array, "groups size size"]:
    """`X Xᵀ` or `Xᵀ X`, the smaller one, with zeros up to the size."""
    rows, columns = block.shape[-2:]
    subscripts = "gij,gkj->gik" if rows <= columns else "gji,gjk->gik"
    gram = jnp.einsum(subscripts, block, block)
    room = size - min(rows, columns)
    return jnp.pad(gram, ((0, 0), (0, room), (0, room)))


def _inverse_roots(grams: Float[Array, "groups n n"]) -> Float[Array, "groups n n"]:
    """`G^(-1/2)`: the product of the polynomials' factors, which commute with G."""
    trace = jnp.trace(grams, axis1=-2, axis2=-1)[:, None, None]
    trace = jnp.where(trace > 0, trace, jnp.ones_like(trace))
    unit = jnp.eye(grams.shape[-1], dtype=grams.dtype)[None]

    def step(carry: tuple[Array, Array], weights: Array) -> tuple[tuple[Array, Array], None]:
        gram, root = carry
        a, b, c = weights
        factor = a * unit + b * gram + c * (gram @ gram)
        return (gram @ (factor @ factor), factor @ root), None

    start = grams / trace, jnp.broadcast_to(unit, grams.shape) / jnp.sqrt(trace)
    (_, root), _ = jax.lax.scan(step, start, jnp.asarray(_STEPS, grams.dtype))
    return root
