"""Exact inference by variable elimination, in logarithms.

    log sum_{x_v} prod_k f_k(x)  =  log prod_{k∌v} f_k(x)  +  log sum_{x_v} prod_{k∋v} f_k(x)

One variable after the other is summed out: the factors that hold it are multiplied, summed over it,
and their place is taken by the result. What is left is the table of the variables kept; with no
variable kept it is log Z, with one kept it is log Z plus the log-marginal, and with all kept it is
the joint. `reduce=np.maximum` maximises instead of summing.

Reference: "Backpropagation from KL Projections", section 3.1: T_Proj is the product of the exact
marginals. Fast code: `klprojax.operators.Elimination`, `klprojax.operators.t_proj`.
"""

import numpy as np


def product(cardinalities, factors):
    """The product of factors `(scope, log_table)`: its scope, ascending, and its log-table."""
    scope = sorted({v for variables, _ in factors for v in variables})
    total = np.zeros([cardinalities[v] for v in scope])
    for variables, log_table in factors:
        shape = [cardinalities[v] if v in variables else 1 for v in scope]
        total = total + np.transpose(log_table, np.argsort(variables)).reshape(shape)
    return scope, total


def eliminate(cardinalities, scopes, log_tables, keep=(), reduce=np.logaddexp):
    """The log-table of the variables in `keep`, in that order, all others summed out.

    `scopes[k]` lists the variables of factor k, one per axis of `log_tables[k]`; -inf is a hard
    zero.
    """
    factors = [(tuple(s), np.asarray(t)) for s, t in zip(scopes, log_tables, strict=True)]
    # A variable that no factor holds counts its states.
    factors += [((v,), np.zeros(card)) for v, card in enumerate(cardinalities)]
    for v in range(len(cardinalities)):
        if v in keep:
            continue
        scope, table = product(cardinalities, [f for f in factors if v in f[0]])
        summed = reduce.reduce(table, axis=scope.index(v))
        rest = tuple(u for u in scope if u != v)
        factors = [f for f in factors if v not in f[0]] + [(rest, summed)]
    _, table = product(cardinalities, factors)
    return np.transpose(table, np.argsort(np.argsort(keep)))


def marginal(cardinalities, scopes, log_tables, keep):
    """Probabilities of the variables in `keep`."""
    log_z = eliminate(cardinalities, scopes, log_tables)
    return np.exp(eliminate(cardinalities, scopes, log_tables, keep) - log_z)
