"""The region tables of section 4.3 read literally, as a documented counterexample.

One table per node, ``q_n(x_R) ∝ S_n(x_R) λ_R(x_R)``; consensus makes one table per scope, the
geometric mean of its nodes' tables; the right projection onto the product family replaces it by
products of marginals. A sum node and its product children have one scope, and consensus averages
components that should be mixed, so the result is not the exact marginals. `t_spn` is the
reading that is.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float

from ._circuit import Circuit
from ._kinds import require_explicit
from ._structure import LEAF, PRODUCT, is_indicator

_MOST_ENTRIES = 2**16


def scope_table_marginals(
    circuit: Circuit, log_weights: Any, log_evidence: Any = None
) -> list[Float[np.ndarray, " states"]]:
    """Compute the variable marginals of the literal scope-table reading, by enumeration.

    They differ from the exact ones; a demonstration, for circuits of indicators with a handful of
    variables, structured so that one scope is always split in one way.

    Args:
        circuit: a small circuit of indicators.
        log_weights: one per edge out of a sum node, nats.
        log_evidence: as for `sweep`, finite.

    Returns:
        One table ``[states]`` a variable, linear space.

    Raises:
        ValueError: other leaves than indicators, too many joint states, a scope split in two ways.

    Reference: section 4.3, "Two-step KL operator".
    """
    require_explicit(circuit, "scope_table_marginals")
    s = circuit.structure
    cards = circuit.cardinalities
    if not all(map(is_indicator, s.groups)):
        raise ValueError("scope_table_marginals needs a circuit whose leaves are all indicators.")
    if np.prod(np.asarray(cards, float)) > _MOST_ENTRIES:
        raise ValueError(
            f"The circuit has more than {_MOST_ENTRIES} joint states, too many to enumerate; use "
            "t_spn for exact marginals."
        )
    evidence = circuit.log_evidence(dtype=np.float64) if log_evidence is None else log_evidence
    log_lambda = [np.asarray(t, np.float64) for t in circuit.unpack_variables(evidence)]
    tables = _node_tables(circuit, np.asarray(log_weights, np.float64), log_lambda)
    scopes: dict[tuple[int, ...], list[int]] = {}
    for node in range(s.num_nodes):
        if s.kinds[node] != LEAF:
            scopes.setdefault(s.scope_of(node), []).append(node)
    for v in range(len(cards)):
        scopes.setdefault((v,), [])
    agreed = {}
    for scope, nodes in scopes.items():
        # Indicator leaves are points on the boundary; the variable's own table is its evidence.
        logs = [np.log(tables[node]) for node in nodes]
        if not logs:
            logs = [log_lambda[scope[0]]]
        mean = np.mean([log - np.log(np.exp(log).sum()) for log in logs], axis=0)
        agreed[scope] = np.exp(mean) / np.exp(mean).sum()
    # Right projection: free tables are averages of the marginals of all tables built from them.
    split = _splits(circuit)
    free: dict[tuple[int, ...], list[np.ndarray]] = {}
    for scope, nodes in scopes.items():
        for part in _parts(scope, split):
            axes = tuple(k for k, v in enumerate(scope) if v not in part)
            marginal = agreed[scope].sum(axis=axes)
            free.setdefault(part, []).extend([marginal] * max(len(nodes), 1))
    out: list[Any] = [None] * len(cards)
    for part, marginals in free.items():
        table = np.mean(marginals, axis=0)
        for k, v in enumerate(part):
            out[v] = table.sum(axis=tuple(j for j in range(len(part)) if j != k))
    return out


def _node_tables(circuit: Circuit, log_weights: np.ndarray, log_lambda: list) -> dict:
    """``S_n(x_R) λ_R(x_R)`` of every node, one axis a variable of its scope."""
    s = circuit.structure
    tables: dict[int, np.ndarray] = {}
    for group in s.groups:
        for node, v, t in zip(*(part.tolist() for part in group[1:]), strict=True):
            tables[node] = np.zeros(circuit.cardinalities[v])
            tables[node][t] = np.exp(log_lambda[v][t])
    for nodes in s.ranks:
        for node in nodes.tolist():
            edges = range(s.offsets[node], s.offsets[node + 1])
            scope = s.scope_of(node)
            below = []
            for edge in edges:
                child = int(s.children[edge])
                shape = [circuit.cardinalities[v] if v in s.scope_of(child) else 1 for v in scope]
                below.append(tables[child].reshape(shape))
            if s.kinds[node] == PRODUCT:
                tables[node] = np.prod(np.broadcast_arrays(*below), axis=0)
            else:
                weights = np.exp(log_weights[s.weight_of_edge[list(edges)]])
                parts = [w * t for w, t in zip(weights, below, strict=True)]
                tables[node] = np.sum(np.broadcast_arrays(*parts), axis=0)
    return tables


def _splits(circuit: Circuit) -> dict[tuple[int, ...], frozenset]:
    s = circuit.structure
    split: dict[tuple[int, ...], frozenset] = {}
    for node in np.flatnonzero(s.kinds == PRODUCT).tolist():
        children = s.children[s.offsets[node] : s.offsets[node + 1]]
        parts = frozenset(s.scope_of(int(c)) for c in children)
        scope = s.scope_of(node)
        if len(parts) > 1 and split.setdefault(scope, parts) != parts:
            raise ValueError(
                f"The scope {scope} is split in two ways; scope_table_marginals needs a structured "
                "circuit."
            )
    return split


def _parts(scope: tuple[int, ...], split: dict) -> list[tuple[int, ...]]:
    parts, stack = [], [scope]
    while stack:
        one = stack.pop()
        if one in split:
            stack += sorted(split[one])
        else:
            parts.append(one)
    assert sorted(itertools.chain(*parts)) == sorted(scope)
    return parts
