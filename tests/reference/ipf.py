"""Iterative proportional fitting; with two one-axis marginals, Sinkhorn's algorithm.

    p(x) ← p(x) t_j(x_{A_j}) / sum_{x outside A_j} p(x)     for one constraint j after the other

Each line is the left projection onto the tables whose marginal on the axes A_j is t_j, so a sweep
is one step of cyclic projections.

Reference: Csiszár, "I-divergence geometry of probability distributions and minimization problems"
(1975). Fast code: `klprojax.geometry.MarginalConstraints`.
"""

import numpy as np


def project(table, axes, target):
    """Scale a table to the marginal `target`, with one axis for each of `axes`, in their order."""
    every, axes = list(range(table.ndim)), list(axes)
    marginal = np.einsum(table, every, axes)
    scale = np.divide(target, marginal, out=np.zeros_like(marginal), where=marginal > 0)
    return np.einsum(table, every, scale, axes, every)


def sweeps(table, constraints):
    """Yield the table after each sweep over the constraints, pairs `(axes, target)`."""
    while True:
        for axes, target in constraints:
            table = project(table, axes, target)
        yield table
