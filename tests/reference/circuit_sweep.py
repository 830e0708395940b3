"""The upward-downward sweep of a sum-product network, in probabilities.

    S(n) = sum_t table_n(t) λ_v(t)    for a leaf over variable v, with evidence λ
    S(n) = sum_c w_nc S(c)            for a sum node,  S(n) = prod_c S(c) for a product node
    D(root) = 1,  D(c) = sum over parents: w_pc D(p) below a sum p,
                                           D(p) prod_{other children} S below a product p

A circuit is a list of nodes, children before parents, the root last: `("leaf", variable, k)`,
`("sum", children, k)` or `("product", children)`. `parameters[k]` holds the table of a leaf or the
weights of a sum, in probabilities; nodes with the same k share them.

Reference: "Backpropagation from KL Projections", Theorem 4.1 and Theorem 4.6 (D(n) S(n) / S(root)
is the probability that n is visited). Fast code: `klprojax.circuits.sweep`.
"""

import numpy as np


def upward(nodes, parameters, evidence):
    """S of every node; `evidence[v]` is the table λ of variable v."""
    values = []
    for kind, below, *k in nodes:
        if kind == "leaf":
            values.append(parameters[k[0]] @ evidence[below])
        elif kind == "sum":
            values.append(parameters[k[0]] @ [values[c] for c in below])
        else:
            values.append(np.prod([values[c] for c in below]))
    return np.array(values)


def downward(nodes, parameters, values):
    """D of every node: the derivative of S(root) in S(n)."""
    derivatives = np.zeros(len(nodes))
    derivatives[-1] = 1.0
    for n in reversed(range(len(nodes))):
        kind, below, *k = nodes[n]
        if kind == "leaf":
            continue
        for position, child in enumerate(below):
            others = [values[c] for other, c in enumerate(below) if other != position]
            slope = parameters[k[0]][position] if kind == "sum" else np.prod(others)
            derivatives[child] += derivatives[n] * slope
    return derivatives


def marginals(nodes, parameters, evidence):
    """P(x_v = t) of every variable: the sum over its leaves of D(n) table_n(t) λ_v(t) / S(root)."""
    values = upward(nodes, parameters, evidence)
    out = [np.zeros(len(table)) for table in evidence]
    for node, slope in zip(nodes, downward(nodes, parameters, values), strict=True):
        if node[0] == "leaf":
            out[node[1]] += slope * parameters[node[2]] * evidence[node[1]] / values[-1]
    return out
