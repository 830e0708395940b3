"""Section 3.2: nearest points on the graphs of a network's units."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..lifting.local import cross_entropy_proximal, project_abs, project_identity, project_relu
from ._measure import as_given, at_least, by_precision, largest_difference, normalized
from ._registry import statement


@statement("Section 3.2, local projections", "nearest points vs a grid and Newton in numpy")
def section_3_2_nearest_points(seed: int = 0, size: int = 6, dtype: Any = None) -> Any:
    """Check the nearest points on the graphs of units, and the proximal step of the cross-entropy.

    Units by a fine grid that is halved around its best point; the cross-entropy by Newton's method.

    Source: section 3.2, delta factors; section 5. `size` is the number of units.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    s, z = as_given(rng.normal(size=(2, size)), dtype)
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
        found = as_given(project(*given, before, after), dtype)
        cost, least = (
            before * (x - s) ** 2 + after * (unit(x) - z) ** 2 for x in (found, nearest(unit))
        )
        # Costs: two points may be equally near.
        gaps.append(np.abs(cost - least).max())

    logits = as_given(rng.normal(size=(3, size)), dtype)
    probs = as_given(normalized(rng.uniform(size=(3, size))), dtype)
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
