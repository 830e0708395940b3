"""Dykstra's algorithm and the splittings of two sets, on vectors; each yields its iterates.

A set is given by its projection, a function from a vector to a vector.

Reference: as cited below each. Fast code: `klprojax.projections` (`Dykstra`, `DouglasRachford`,
`DifferenceMap`, `ADMM`), `klprojax.training.Splitting` on the copies of a network.
"""

import numpy as np


def dykstra(sets, x):
    """Boyle and Dykstra (1986): the increment of a set's last visit is taken out before the next.

    With convex sets the limit is the point of their intersection nearest to the start.
    """
    increments = [np.zeros_like(x) for _ in sets]
    while True:
        for i, project in enumerate(sets):
            shifted = x - increments[i]
            x = project(shifted)
            increments[i] = x - shifted
        yield x


def rrr(sets, x, beta):
    """Elser's relaxed reflect-reflect: Douglas-Rachford of relaxation β/2."""
    while True:
        first = sets[0](x)
        x = x + beta * (sets[1](2 * first - x) - first)
        yield x


def difference_map(sets, x, beta):
    """Elser (2003)."""
    while True:
        first, second = sets[0](x), sets[1](x)
        ahead = sets[0](second + (second - x) / beta)
        x = x + beta * (ahead - sets[1](first - (first - x) / beta))
        yield x


def admm(sets, z):
    """Boyd et al. (2011), section 5, with the multiplier of the other sign; yields z."""
    multiplier = np.zeros_like(z)
    while True:
        x = sets[0](z + multiplier)
        z = sets[1](x - multiplier)
        multiplier = multiplier - (x - z)
        yield z
