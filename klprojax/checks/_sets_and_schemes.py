"""Sets of section 2 beyond consensus and products, and the schemes that iterate projections."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._adjoint import ImplicitAdjoint
from ..geometry import (
    ExponentialFamily,
    FixedPrecisionGaussian,
    GaussianConsensus,
    MomentConstraints,
    bregman_divergence,
    i_projection,
    right_projection,
)
from ..lifting.local import cross_entropy_proximal, project_abs, project_identity, project_relu
from ..projections import (
    ADMM,
    Cyclic,
    DifferenceMap,
    DouglasRachford,
    Gaussians,
    iterate,
)
from ._measure import at_least, by_precision, largest_difference, normalized, relative_difference
from ._registry import statement

_STEPS = 5


def _rounded(value: Any, dtype: Any) -> np.ndarray:
    """Numbers as the package gets them."""
    return np.array(jnp.asarray(value, dtype), np.float64)


@statement("Section 2, Gaussian generator", "D_f, duals and consensus vs weighted squares in numpy")
def section_2_gaussian(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that with `f(v) = Σ λ v²/2` the divergence is a weighted square and consensus a mean.

    Copies of precision 0 have no say; where no copy has one, the plain mean is taken.

    Source: section 2, "Bregman divergences"; consensus sets.
    """
    at_least(size, 3)
    rng = np.random.default_rng(seed)
    r, q = _rounded(rng.normal(size=(2, size)), dtype)
    precision = _rounded(rng.uniform(0.5, 2, size), dtype)
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

    means = _rounded(rng.normal(size=(3, size)), dtype)
    weights = rng.uniform(0.5, 2, (3, size))
    weights[0, 1] = 0.0
    weights[:, 2] = 0.0
    weights = _rounded(weights, dtype)
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
    statistic = _rounded(rng.normal(size=(size, 2)), dtype)
    base, log_q = _rounded(rng.normal(size=(2, size)), dtype)
    base[0] = -np.inf
    log_q[0] = -np.inf
    direction = _rounded(rng.normal(size=size), dtype)
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


@statement("One operator, schemes", "iterate on two planes vs projection matrices in numpy")
def one_operator_schemes(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check Cyclic, Douglas-Rachford, the difference map and ADMM, and where Cyclic comes to rest.

    Two planes meet in one point, whose derivative in their offsets is a linear solve.

    Source: section 2, projections; each scheme's reference. `size` is the dimension.
    """
    at_least(size, 3)
    rng = np.random.default_rng(seed)
    dims = size // 2, size - size // 2
    # Rows of an orthogonal matrix, turned a little: the planes meet well.
    turned = np.linalg.qr(rng.normal(size=(size, size)))[0] + 0.1 * rng.normal(size=(size, size))
    planes = [_rounded(part, dtype) for part in np.split(turned, [dims[0]])]
    offsets = [_rounded(rng.normal(size=d), dtype) for d in dims]
    start = _rounded(rng.normal(size=size), dtype)

    def onto(k: int) -> Any:
        inverse = np.linalg.pinv(planes[k])
        return lambda x: x - inverse @ (planes[k] @ x - offsets[k])

    def ours(offsets: Any) -> Any:
        def plane(k: int) -> Any:
            matrix = jnp.asarray(planes[k], dtype)
            inverse = jnp.asarray(np.linalg.pinv(planes[k]), dtype)
            return lambda x: x - inverse @ (matrix @ x - offsets[k])

        return plane(0), plane(1)

    p, q = onto(0), onto(1)
    given = [jnp.asarray(offset, dtype) for offset in offsets]
    gaps = []
    for scheme in (
        Cyclic(),
        DouglasRachford(0.4),
        DifferenceMap(0.7),
        DifferenceMap(1.0),
        ADMM(),
    ):
        x, z, u = start, start, np.zeros(size)
        for _ in range(_STEPS):
            if isinstance(scheme, Cyclic):
                x = q(p(x))
            elif isinstance(scheme, DouglasRachford):
                mirrored = 2 * p(x) - x
                x = 0.6 * x + 0.4 * (2 * q(mirrored) - mirrored)
            elif isinstance(scheme, DifferenceMap):
                beta = scheme.beta
                to_p = p(q(x) + (q(x) - x) / beta)
                x = x + beta * (to_p - q(p(x) - (p(x) - x) / beta))
            else:
                x = p(z - u)
                z = q(x + u)
                u = u + x - z
        found = iterate(
            scheme,
            ours(given),
            jnp.asarray(start, dtype),
            space=Gaussians(),
            max_steps=_STEPS,
            tolerance=0,
        )
        gaps.append(relative_difference(found.value, z if isinstance(scheme, ADMM) else x))

    meeting = np.linalg.inv(np.concatenate(planes))
    settled = iterate(Cyclic(), ours(given), jnp.asarray(start, dtype), space=Gaussians())
    rest = float(jnp.finfo(settled.value.dtype).eps) ** (2 / 3)
    x, steps, change = start, 0, np.inf
    while change > rest:
        new = q(p(x))
        change = np.abs(new - x).max() / np.abs(new).max()
        x, steps = new, steps + 1
    # A step more or less where rounding decides.
    gaps.append(float(abs(int(settled.steps) - steps) > 1))

    def limit(offsets: Any) -> Any:
        solution = iterate(
            Cyclic(),
            ours(offsets),
            jnp.asarray(start, dtype),
            space=Gaussians(),
            adjoint=ImplicitAdjoint(),
        )
        return solution.value

    slopes = jnp.concatenate(jax.jacobian(limit)(given), axis=1)
    gaps.append(relative_difference(slopes, meeting) / 10)
    # Five steps of products of matrices; the slope's solve is right to ten times that.
    return float(np.max(gaps)), by_precision(dtype, 1e-9, 1e-4)


@statement("Section 3.2, local projections", "nearest points vs a grid and Newton in numpy")
def section_3_2_nearest_points(seed: int = 0, size: int = 6, dtype: Any = None) -> Any:
    """Check the nearest points on the graphs of units, and the proximal step of the cross-entropy.

    Units by a fine grid that is halved around its best point; the cross-entropy by Newton's method.

    Source: section 3.2, delta factors; section 5. `size` is the number of units.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    s, z = _rounded(rng.normal(size=(2, size)), dtype)
    before, after = 0.6, 1.7

    def nearest(unit: Any) -> np.ndarray:
        low, high = np.full(size, -8.0), np.full(size, 8.0)
        for _ in range(30):
            grid = np.linspace(low, high, 41)
            cost = before * (grid - s) ** 2 + after * (unit(grid) - z) ** 2
            best = grid[cost.argmin(axis=0), np.arange(size)]
            width = (high - low) / 8
            low, high = best - width, best + width
        return best

    given = [jnp.asarray(x, dtype) for x in (s, z)]
    units = [
        (project_identity, lambda x: x),
        (project_relu, lambda x: np.maximum(x, 0)),
        (project_abs, np.abs),
    ]
    gaps = []
    for project, unit in units:
        found = _rounded(project(*given, before, after), dtype)
        cost, least = (
            before * (x - s) ** 2 + after * (unit(x) - z) ** 2 for x in (found, nearest(unit))
        )
        # Costs: two points may be equally near.
        gaps.append(np.abs(cost - least).max())

    logits = _rounded(rng.normal(size=(3, size)), dtype)
    probs = _rounded(normalized(rng.uniform(size=(3, size))), dtype)
    probs = probs / probs.sum(axis=1, keepdims=True)
    x = logits.copy()
    for _ in range(50):
        p = np.exp(x - x.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True)
        slope = after * (x - logits) + p - probs
        for k in range(3):
            x[k] -= np.linalg.solve(np.diag(after + p[k]) - np.outer(p[k], p[k]), slope[k])
    rows = jnp.asarray(logits, dtype), jnp.asarray(probs, dtype)
    gaps.append(largest_difference(cross_entropy_proximal(*rows, after), x))
    # A grid of width 1e-12 at the end; a handful of roundings.
    return float(np.max(gaps)), by_precision(dtype, 1e-10, 1e-5)
