"""Sums over the rows of a batch: the one operation that lets rows see each other."""

import jax.numpy as jnp
from jaxtyping import Array

from ._constraints import AbstractLocalConstraint, Projected


class RowSums(AbstractLocalConstraint):
    """`z_i = Σ_j a_j` over all rows j of the batch, the same for every row i.

    Every row has one copy of its own a. The nearest point minimises
    `Σ_j ω/2 |a_j* - a_j|² + Σ_i ρ_i/2 (z_i - S*)²` with `S* = Σ_j a_j*`, so all copies move alike:
    `ω (a_j* - a_j) = (ω/n) / (ω/n + Σ_i ρ_i) * Σ_i ρ_i (z_i - S)`.

    Args:
        rows: n, the number of rows.
    """

    def __init__(self, rows: int):
        self.rows = rows

    def _total(self, a: Array) -> Array:
        return jnp.sum(jnp.broadcast_to(a, (self.rows, *a.shape[1:])), axis=0, keepdims=True)

    def apply(self, a):
        """The sum, for every row."""
        total = self._total(a)
        return jnp.broadcast_to(total, (self.rows, *a.shape[1:]))

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project all rows at once; see the class."""
        (a,) = inputs
        total = self._total(a)
        omega = jnp.asarray(precisions[0], a.dtype) / self.rows
        rho = jnp.broadcast_to(jnp.asarray(output_precision, a.dtype), target.shape)
        joint = jnp.sum(rho, axis=0, keepdims=True)
        pull = jnp.sum(rho * (target - total), axis=0, keepdims=True)
        slope = omega / (omega + joint) * pull
        output = jnp.broadcast_to(total + slope / omega, target.shape)
        slopes = jnp.broadcast_to(slope, target.shape) if wanted[0] else None
        return Projected((slopes,), output, jnp.zeros((), a.dtype))
