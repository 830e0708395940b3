"""Belief propagation: normalised flooding sweeps on any factor graph, in probabilities.

    m_{i→k}(x_i) ∝ prod_{h∋i, h≠k} m_{h→i}(x_i)
    m_{k→i}(x_i) ∝ sum_{x_j, j≠i} f_k(x) prod_{j∈k, j≠i} m_{j→k}(x_j)
    b_i(x_i)     ∝ prod_{k∋i} m_{k→i}(x_i)

`scopes[k]` lists the variables of factor k, one per axis of its table; `messages[k][a]` is the
message from factor k to the variable of its axis a. Max-product takes `pool=np.max`.

Reference: "Backpropagation from KL Projections", section 2 ("Messages and normalized BP") and
Proposition 3.1. Fast code: `klprojax.operators.BeliefPropagation`.
"""

import numpy as np


def normalized(table):
    total = table.sum()
    return table / total if total > 0 else table


def uniform(cardinalities, scopes):
    """The first messages."""
    return [[np.full(cardinalities[v], 1 / cardinalities[v]) for v in scope] for scope in scopes]


def into_variable(cardinalities, scopes, messages, v, but=None):
    """The normalised product of the messages into variable v, all but the one from factor `but`."""
    product = np.ones(cardinalities[v])
    for k, scope in enumerate(scopes):
        if k != but and v in scope:
            product = product * messages[k][scope.index(v)]
    return normalized(product)


def sweep(cardinalities, scopes, tables, messages, pool=np.sum):
    """New messages from every factor, all of them from the old ones."""
    new = []
    for k, (scope, table) in enumerate(zip(scopes, tables, strict=True)):
        incoming = [into_variable(cardinalities, scopes, messages, v, but=k) for v in scope]
        row = []
        for a in range(len(scope)):
            product = table
            for b in range(len(scope)):
                if b != a:
                    along_b = [-1 if axis == b else 1 for axis in range(len(scope))]
                    product = product * incoming[b].reshape(along_b)
            row.append(normalized(pool(product, axis=tuple(set(range(len(scope))) - {a}))))
        new.append(row)
    return new


def iterates(cardinalities, scopes, log_tables, steps):
    """Yield beliefs and messages after each sweep."""
    tables, messages = [np.exp(t) for t in log_tables], uniform(cardinalities, scopes)
    for _ in range(steps):
        messages = sweep(cardinalities, scopes, tables, messages)
        every = range(len(cardinalities))
        yield [into_variable(cardinalities, scopes, messages, v) for v in every], messages
