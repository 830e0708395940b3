"""Section 2: Gaussians and exponential families, beyond consensus and products of tables."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..geometry import (
    ExponentialFamily,
    FixedPrecisionGaussian,
    GaussianConsensus,
    MomentConstraints,
    bregman_divergence,
    i_projection,
    right_projection,
)
from ._measure import as_given, at_least, by_precision, largest_difference, normalized
from ._registry import statement


@statement("Section 2, Gaussian generator", "D_f, duals and consensus vs weighted squares in numpy")
def section_2_gaussian(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that with `f(v) = Σ λ v²/2` the divergence is a weighted square and consensus a mean.

    Copies of precision 0 have no say; where no copy has one, the plain mean is taken.

    Source: section 2, "Bregman divergences"; consensus sets.
    """
    at_least(size, 3)
    rng = np.random.default_rng(seed)
    r, q = as_given(rng.normal(size=(2, size)), dtype)
    precision = as_given(rng.uniform(0.5, 2, size), dtype)
    generator = FixedPrecisionGaussian(jnp.asarray(precision, dtype))
    points = [jnp.asarray(point, dtype) for point in (r, q)]
    square = np.sum(precision * (r - q) ** 2) / 2
    duals = [generator.to_dual(point) for point in points]
    found = [
        generator.divergence(*points),
        bregman_divergence(generator.value, *points),
        generator.dual_divergence(*duals),
        generator.value(points[0]),
        generator.conjugate(duals[0]),
    ]
    want = [square, square, square, *[np.sum(precision * r**2) / 2] * 2]
    gaps = [largest_difference(found, want), largest_difference(duals[0], precision * r)]

    means = as_given(rng.normal(size=(3, size)), dtype)
    weights = rng.uniform(0.5, 2, (3, size))
    weights[0, 1] = 0.0
    weights[:, 2] = 0.0
    weights = as_given(weights, dtype)
    total = weights.sum(axis=0)
    mean = np.where(
        total > 0, (weights * means).sum(axis=0) / np.where(total > 0, total, 1), means.mean(axis=0)
    )
    consensus = GaussianConsensus(jnp.asarray(weights, dtype))
    agreed = consensus.left_projection(jnp.asarray(means, dtype)).value
    gaps.append(largest_difference(agreed, np.broadcast_to(mean, means.shape)))
    # Sums of a few numbers of size one.
    return float(np.max(gaps)), by_precision(dtype, 1e-14, 1e-5)


@statement("Section 2, exponential families", "moments and derivatives vs Newton in numpy")
def section_2_moments(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check both projections that match moments, and their derivatives in the table.

    Onto the family (right) and onto the tables with given moments (left), each by Newton's method
    in numpy; the derivative is that of the equation `E_p[T] = t`, solved in numpy.

    Source: section 2, left and right projections.
    """
    at_least(size, 4)
    rng = np.random.default_rng(seed)
    statistic = as_given(rng.normal(size=(size, 2)), dtype)
    base, log_q = as_given(rng.normal(size=(2, size)), dtype)
    base[0] = -np.inf
    log_q[0] = -np.inf
    direction = as_given(rng.normal(size=size), dtype)
    on_support = np.where(base > -np.inf, direction, 0.0)

    def tilted(base: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = np.zeros(2)
        for _ in range(50):
            p = normalized(np.exp(base + statistic @ theta))
            centred = statistic - p @ statistic
            covariance = centred.T @ (p[:, None] * centred)
            theta = theta + np.linalg.solve(covariance, moments - p @ statistic)
        return normalized(np.exp(base + statistic @ theta)), covariance

    q = normalized(np.exp(log_q))
    p, covariance = tilted(base, q @ statistic)
    dq = q * (on_support - q @ on_support)
    dtheta = np.linalg.solve(covariance, dq @ statistic)
    dp = p * ((statistic - p @ statistic) @ dtheta)
    r, covariance = tilted(log_q, p @ statistic)
    centred = statistic - r @ statistic
    dtheta = -np.linalg.solve(covariance, (r * on_support) @ centred)
    dr = r * (on_support - r @ on_support + centred @ dtheta)

    given = [jnp.asarray(x, dtype) for x in (statistic, base, log_q, direction, p @ statistic)]
    family = ExponentialFamily(given[0], given[1])
    moments = MomentConstraints(given[0], given[4])

    @eqx.filter_jit
    def both(log_table: Any) -> Any:
        return [
            jnp.exp(right_projection(family, log_table).value),
            jnp.exp(i_projection(moments, log_table).value),
        ]

    found = jax.jvp(both, (given[2],), (given[3],))
    gap = largest_difference(jax.tree.leaves(found), [p, r, dp, dr])
    # Newton's method ends where moments match to eps^(2/3): 4e-11, 2e-5.
    return gap, by_precision(dtype, 1e-9, 1e-4)
