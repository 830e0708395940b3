"""Random circuits and answers by enumeration, in plain numpy.

A circuit is evaluated on one joint state at a time by the plain sweep of ``tests/reference``, which
shares nothing with the package but the arrays of the structure.
"""

import itertools
from typing import NamedTuple

import numpy as np

from klprojax.circuits import CircuitBuilder, CircuitModel, Indicator
from tests.reference.circuit_sweep import upward
from tests.reference.em import row_evidence


def random_circuit(seed, cards=(2, 3, 2, 2), *, dag=True, leaf=None, width=3) -> CircuitModel:
    """A random smooth decomposable circuit; with ``dag``, subcircuits are shared."""
    rng = np.random.default_rng(seed)
    b = CircuitBuilder(cards)
    pool: dict[tuple[int, ...], list[int]] = {}

    def indicator(v, t):
        return b.indicator(v, t) if dag else b._add(0, [], None, (Indicator(), v, t, None), "")

    def node(scope, depth=0):
        if dag and scope in pool and rng.random() < 0.5:
            return int(rng.choice(pool[scope]))
        if len(scope) == 1:
            (v,) = scope
            if leaf is not None and rng.random() < 0.5:
                made = leaf(b, rng, v)
            else:
                states = rng.permutation(cards[v])
                made = b.sum([indicator(v, int(t)) for t in states], rng.normal(size=cards[v]))
        elif depth % 2 == 0:
            k = int(rng.integers(2, width + 1))
            made = b.sum([node(scope, depth + 1) for _ in range(k)], rng.normal(size=k))
        else:
            order = rng.permutation(scope)
            cuts = int(rng.integers(1, len(scope)))
            parts = [order[:cuts], order[cuts:]]
            if len(parts[1]) > 1 and rng.random() < 0.3:
                parts[1:] = [parts[1][:1], parts[1][1:]]
            made = b.product([node(tuple(sorted(map(int, p))), depth + 1) for p in parts])
        pool.setdefault(scope, []).append(made)
        return made

    return b.build(node(tuple(range(len(cards)))))


class Parses(NamedTuple):
    """Weights of all pairs (joint state, parse), and what each visits."""

    states: np.ndarray
    log_weights: np.ndarray
    nodes: list
    edges: list


def leaf_tables(model):
    """Per leaf node, its variable and log-table over the states, without evidence."""
    out = {}
    cards = model.circuit.cardinalities
    for group, parameters in zip(model.circuit.groups, model.leaf_parameters, strict=True):
        for k, (n, v) in enumerate(
            zip(group.nodes.tolist(), group.variables.tolist(), strict=True)
        ):
            if isinstance(group.family, Indicator):
                table = np.full(cards[v], -np.inf)
                table[group.states[k]] = 0.0
            else:
                table = np.asarray(group.family.log_table(parameters[k : k + 1], cards[v]))[0]
            out[n] = (v, table)
    return out


def as_nodes(model):
    """Nodes and parameters as in ``tests/reference/circuit_sweep.py``, up to the root."""
    s, tables, nodes, parameters = model.circuit.structure, leaf_tables(model), [], []
    weights = np.exp(np.asarray(model.log_weights, np.float64))
    for n in range(s.root + 1):
        edges = slice(s.offsets[n], s.offsets[n + 1])
        below = s.children[edges].tolist()
        assert all(child < n for child in below)
        if n not in tables and s.kinds[n] == 1:
            nodes.append(("product", below))
            continue
        kind, what = ("leaf", tables[n][0]) if n in tables else ("sum", below)
        nodes.append((kind, what, len(parameters)))
        parameters.append(np.exp(tables[n][1]) if n in tables else weights[s.weight_of_edge[edges]])
    return nodes, parameters


def enumerate_joint(model, log_evidence=None):
    """Unnormalised joint table of the root, one axis a variable."""
    cards = model.circuit.cardinalities
    if log_evidence is None:
        log_evidence = [np.zeros(c) for c in cards]
    nodes, parameters = as_nodes(model)
    joint = np.zeros(cards)
    for state in itertools.product(*map(range, cards)):
        evidence = [
            hard * np.exp(soft)
            for hard, soft in zip(row_evidence(state, cards), log_evidence, strict=True)
        ]
        joint[state] = upward(nodes, parameters, evidence)[-1]
    return joint


def parses(model, state, log_evidence):
    """All parses at one joint state: (weight, visited nodes, chosen edges)."""
    s = model.circuit.structure
    tables = leaf_tables(model)
    weights = np.asarray(model.log_weights, np.float64)

    def below(n):
        lo, hi = int(s.offsets[n]), int(s.offsets[n + 1])
        if n in tables:
            v, table = tables[n]
            w = np.exp(table[state[v]] + log_evidence[v][state[v]])
            return [(w, (n,), ())] if w > 0 else []
        if s.kinds[n] == 1:
            out = [(1.0, (n,), ())]
            for c in s.children[lo:hi].tolist():
                out = [
                    (w1 * w2, n1 + n2, e1 + e2)
                    for (w1, n1, e1), (w2, n2, e2) in itertools.product(out, below(c))
                ]
            return out
        out = []
        for e in range(lo, hi):
            w = np.exp(weights[s.weight_of_edge[e]])
            out += [
                (w * w2, (n, *n2), (s.weight_of_edge[e], *e2))
                for w2, n2, e2 in below(int(s.children[e]))
            ]
        return out

    return below(s.root)


class Exact(NamedTuple):
    """Answers by enumeration."""

    log_partition: float
    marginals: list
    visits: np.ndarray
    edge_probs: np.ndarray


def enumerate_exact(model, log_evidence=None) -> Exact:
    """Sum over all joint states and all parses."""
    cards = model.circuit.cardinalities
    if log_evidence is None:
        log_evidence = [np.zeros(c) for c in cards]
    log_evidence = [np.asarray(t, np.float64) for t in log_evidence]
    marginals = [np.zeros(c) for c in cards]
    visits = np.zeros(model.circuit.num_nodes)
    edges = np.zeros(model.circuit.num_weights)
    total = 0.0
    for state in itertools.product(*map(range, cards)):
        for weight, nodes, chosen in parses(model, state, log_evidence):
            total += weight
            for v, t in enumerate(state):
                marginals[v][t] += weight
            visits[list(nodes)] += weight
            edges[list(chosen)] += weight
    return Exact(np.log(total), [m / total for m in marginals], visits / total, edges / total)


def random_evidence(seed, cards, *, zeros=0.0):
    """Soft evidence, a share of it ``-inf`` (never all states of a variable)."""
    rng = np.random.default_rng(seed)
    out = []
    for c in cards:
        table = rng.normal(size=c)
        gone = rng.random(c) < zeros
        gone[rng.integers(c)] = False
        table[gone] = -np.inf
        out.append(table)
    return out
