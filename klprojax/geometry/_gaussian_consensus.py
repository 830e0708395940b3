"""Consensus of Gaussian copies: the consensus set of section 2 under the fixed-precision generator.

With `D_f(r, q) = sum of precision / 2 * (r - q)^2` the projection onto agreement is the
precision-weighted mean. `D_f` is symmetric, so left and right projections coincide.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._generators import FixedPrecisionGaussian
from ._log_table import default_tolerance
from ._projection import AbstractLeftConstraint, AbstractRightConstraint, ProjectionResult, finish


class GaussianConsensus(AbstractLeftConstraint, AbstractRightConstraint):
    """The subspace on which copies of a real variable agree, with a fixed precision for each copy.

    Args:
        precisions: inverse variances, non-negative and finite: one for each copy `[copies]`, or of
            the shape of the means `[copies, *shape]`. A copy with precision zero has no say.

    Reference:
        Section 2, consensus sets, with the generator `FixedPrecisionGaussian`.
    """

    precisions: Float[Array, "copies ..."]

    @property
    def generator(self) -> FixedPrecisionGaussian:
        """The generator whose divergence is minimised, for means of the shape of `precisions`."""
        return FixedPrecisionGaussian(self.precisions)

    def mean(self, means: Float[Array, "copies *shape"]) -> Float[Array, "*shape"]:
        """Return the consensus, `sum_k w_k m_k / sum_k w_k`.

        Args:
            means: the mean of every copy.

        Returns:
            The precision-weighted mean. Where every copy has precision zero all values are equally
            near, and the plain mean is returned.

        Raises:
            ValueError: the precisions fit neither the number of copies nor the means' shape.
        """
        weights = self._weights(means)
        # Offsets from one copy: copies that agree then stay exactly where they are.
        offsets = means - means[:1]
        total = jnp.sum(weights, axis=0)
        silent = total == 0
        weighted = jnp.sum(weights * offsets, axis=0) / jnp.where(
            silent, jnp.ones_like(total), total
        )
        return means[0] + jnp.where(silent, jnp.mean(offsets, axis=0), weighted)

    def left_projection(
        self,
        means: Float[Array, "copies *shape"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Replace every copy by the precision-weighted mean.

        Args:
            means: the mean of every copy.
            tolerance: largest residual counted as converged.
            max_steps: not used: closed form.
            throw: raise at run time unless converged.

        Returns:
            The copies, all equal, in the shape of `means`. The residual is the weighted sum of the
            displacements, which vanishes at the projection, relative to the sum of their sizes.
        """
        value = jnp.broadcast_to(self.mean(means)[None], means.shape)
        pulls = self._weights(means) * (means - value)
        # Copies agreed to rounding displace by rounding alone: scale by the means themselves.
        scale = jnp.sum(jnp.abs(self._weights(means) * means)) + jnp.sum(jnp.abs(pulls))
        defect = jnp.sum(jnp.abs(jnp.sum(pulls, axis=0)))
        residual = defect / jnp.where(scale == 0, jnp.ones_like(scale), scale)
        tolerance = default_tolerance(means.dtype) if tolerance is None else tolerance
        return finish(
            value,
            residual,
            jnp.asarray(0),
            None,
            tolerance,
            throw,
            "The weighted mean is not finite: precisions must be finite and non-negative.",
        )

    def right_projection(
        self,
        means: Float[Array, "copies *shape"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Project from the right: the same point, since the divergence is symmetric.

        Args:
            means: the mean of every copy.
            tolerance: as in `left_projection`.
            max_steps: not used: closed form.
            throw: raise at run time unless converged.

        Returns:
            As `left_projection`.
        """
        return self.left_projection(means, tolerance=tolerance, max_steps=max_steps, throw=throw)

    def _weights(self, means: Float[Array, "copies *shape"]) -> Float[Array, "copies *shape"]:
        precisions = self.precisions
        if precisions.shape == means.shape:
            return precisions
        if precisions.shape == means.shape[:1]:
            trailing = tuple(range(1, means.ndim))
            return jnp.broadcast_to(jnp.expand_dims(precisions, trailing), means.shape)
        raise ValueError(
            f"Got precisions of shape {precisions.shape} for means of shape {means.shape}; "
            f"expected one precision for each copy, {means.shape[:1]}, or one for each entry."
        )
