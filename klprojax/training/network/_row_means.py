"""Means over the rows of a batch: the one operation that lets rows see each other."""

import jax.numpy as jnp
from jaxtyping import Array

from ._constraints import AbstractLocalConstraint, Projected


class RowMeans(AbstractLocalConstraint):
    """`z_i = Σ_j a_j / n` over all n rows j of the batch, the same for every row i.

    Every row has one copy of its own a. The nearest point minimises
    `Σ_j ω/2 |a_j* - a_j|² + Σ_i ρ_i/2 (z_i - m*)²` with m* the mean of the copies, so all copies
    move alike: `ω (a_j* - a_j) = ω / (n ω + Σ_i ρ_i) * Σ_i ρ_i (z_i - m)`. A sum over rows is n
    times the mean; projected onto itself it would be damped n² times as much.

    Args:
        rows: n, the number of rows.
    """

    def __init__(self, rows: int):
        self.rows = rows

    def _mean(self, a: Array) -> Array:
        return jnp.mean(jnp.broadcast_to(a, (self.rows, *a.shape[1:])), axis=0, keepdims=True)

    def apply(self, a):
        """The mean, for every row."""
        return jnp.broadcast_to(self._mean(a), (self.rows, *a.shape[1:]))

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project all rows at once; see the class."""
        (a,) = inputs
        mean, omega = self._mean(a), jnp.asarray(precisions[0], a.dtype)
        rho = jnp.broadcast_to(jnp.asarray(output_precision, a.dtype), target.shape)
        pull = jnp.sum(rho * (target - mean), axis=0, keepdims=True)
        shift = pull / (self.rows * omega + jnp.sum(rho, axis=0, keepdims=True))
        output = jnp.broadcast_to(mean + shift, target.shape)
        slope = jnp.broadcast_to(omega * shift, target.shape) if wanted[0] else None
        return Projected((slope,), output, jnp.zeros((), a.dtype))
