"""Independent numpy minimisers for the tests of local projections."""

import numpy as np
from scipy import optimize


def bilinear_cost(a, w, z, omega_a, omega_w, rho, point_a, point_w):
    """The objective of the bilinear projection, output eliminated."""
    near_a = omega_a / 2 * np.sum((point_a - a) ** 2)
    near_w = omega_w / 2 * np.sum((point_w - w) ** 2)
    return near_a + near_w + rho / 2 * (point_a @ point_w - z) ** 2


def bilinear_minimum(a, w, z, omega_a, omega_w, rho, starts=12, seed=0):
    """Least cost over quasi-Newton descents from the targets and from random points."""
    n, rng = len(a), np.random.default_rng(seed)
    size = 1 + np.abs(a).max(initial=0) + np.abs(w).max(initial=0) + np.sqrt(abs(z))

    def cost(v):
        p, q = v[:n], v[n:]
        gap = p @ q - z
        value = bilinear_cost(a, w, z, omega_a, omega_w, rho, p, q)
        slope = np.concatenate(
            [omega_a * (p - a) + rho * gap * q, omega_w * (q - w) + rho * gap * p]
        )
        return value, slope

    best = np.inf
    for k in range(starts):
        start = np.concatenate([a, w]) if k == 0 else size * rng.normal(size=2 * n)
        found = optimize.minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-10})
        best = min(best, found.fun)
    return best


def scalar_minimum(function, s, z, omega_s, omega_z, extra=()):
    """Least cost of `ω_s/2 (x - s)² + ω_z/2 (f(x) - z)²` by a fine grid, refined three times.

    Args:
        function: f, on arrays.
        s: input target.
        z: output target.
        omega_s: precision of the input.
        omega_z: precision of the output.
        extra: points to try besides (kinks, edges).
    """

    def cost(x):
        return omega_s / 2 * (x - s) ** 2 + omega_z / 2 * (function(x) - z) ** 2

    # Every point better than s lies this close to it.
    reach = np.sqrt(omega_z / omega_s) * abs(function(np.float64(s)) - z) + 1e-9
    low, high = s - reach, s + reach
    best = min([cost(np.float64(s)), *(cost(np.float64(x)) for x in extra)])
    for _ in range(4):
        grid = np.linspace(low, high, 2001)
        values = cost(grid)
        k = int(np.argmin(values))
        best = min(best, values[k])
        low, high = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    return best


def maximum_minimum(a, z, omega_a, omega_z):
    """Least cost of the projection onto `{z = max a}`: every set of entries at the level tried."""
    n, best = len(a), np.inf
    for bits in range(1, 2**n):
        chosen = np.array([bool(bits >> k & 1) for k in range(n)])
        level = (omega_a * a[chosen].sum() + omega_z * z) / (omega_a * chosen.sum() + omega_z)
        point = np.where(chosen, level, a)
        # Feasible when the chosen entries are the largest: the graph asks for max = level.
        cost = omega_a / 2 * np.sum((point - a) ** 2) + omega_z / 2 * (point.max() - z) ** 2
        best = min(best, cost)
    return best
