"""Expectation maximisation on a sum-product network: one full-batch step.

    E: uses_s(c) = sum over rows of D(s) w_sc S(c) / S(root)     below a sum node s
       uses_n(t) = sum over rows of D(n) table_n(t) λ(t) / S(root)  at a leaf n
    M: w = uses / sum of uses, every distribution by itself

The E-step is the left projection onto the joint tables of rows and parses whose marginal over rows
is the data, the M-step the right projection onto the circuit's distributions: alternating
projections. Nodes that share parameters add up their uses. The circuit is laid out as in
`circuit_sweep.py`.

Reference: Csiszár and Tusnády, "Information geometry and alternating minimization procedures"
(1984). Fast code: `klprojax.circuits.em_step`.
"""

import numpy as np

from .circuit_sweep import downward, upward


def row_evidence(row, cardinalities):
    """Hard evidence of one row; -1 is a missing entry."""
    return [np.ones(n) if t < 0 else np.eye(n)[t] for t, n in zip(row, cardinalities, strict=True)]


def expected_uses(nodes, parameters, rows, cardinalities):
    """How often each weight and each entry of a leaf is used, summed over the rows."""
    uses = [np.zeros_like(p) for p in parameters]
    for row in rows:
        evidence = row_evidence(row, cardinalities)
        values = upward(nodes, parameters, evidence)
        derivatives = downward(nodes, parameters, values)
        for (kind, below, *k), slope in zip(nodes, derivatives / values[-1], strict=True):
            if kind == "leaf":
                uses[k[0]] += slope * parameters[k[0]] * evidence[below]
            elif kind == "sum":
                uses[k[0]] += slope * parameters[k[0]] * values[list(below)]
    return uses


def normalized(uses, parameters):
    """The distributions that the uses stand for; those that nothing uses stay as they are."""
    return [u / u.sum() if u.sum() > 0 else p for u, p in zip(uses, parameters, strict=True)]


def em_step(nodes, parameters, rows, cardinalities):
    """New parameters; the likelihood of the rows does not fall."""
    return normalized(expected_uses(nodes, parameters, rows, cardinalities), parameters)
