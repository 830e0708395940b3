"""Reference answers by enumeration, in plain numpy, and random models to compare on.

A model is a dict of plain values, ``{"cardinalities", "scopes", "log_tables"}`` and, where asked
for, ``"log_evidence"``: one table per variable.
"""

import math
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from klprojax import FactorGraph
from tests.reference import elimination


class Exact(NamedTuple):
    """Answers by summing over all assignments."""

    log_partition: float
    marginals: list
    factor_marginals: list


def joint_log_table(cardinalities, scopes, log_tables, log_evidence=None):
    """The unnormalised log-joint, one axis a variable."""
    if log_evidence is not None:
        scopes = [*scopes, *((v,) for v in range(len(cardinalities)))]
        log_tables = [*log_tables, *log_evidence]
    return elimination.eliminate(cardinalities, scopes, log_tables, range(len(cardinalities)))


def log_sum(log_table):
    """``log sum exp`` of a whole table."""
    top = np.max(log_table, initial=-np.inf)
    return top + math.log(np.sum(np.exp(log_table - top))) if np.isfinite(top) else -math.inf


def enumerate_exact(cardinalities, scopes, log_tables, log_evidence=None) -> Exact:
    """Log-partition, marginals of all variables, marginals of all factors' scopes."""
    joint = joint_log_table(cardinalities, scopes, log_tables, log_evidence)
    log_partition = log_sum(joint)
    probs = np.exp(joint - log_partition)

    def marginal(scope):
        others = tuple(v for v in range(len(cardinalities)) if v not in scope)
        return np.transpose(probs.sum(axis=others), np.argsort(np.argsort(scope, kind="stable")))

    return Exact(
        log_partition,
        [marginal((v,)) for v in range(len(cardinalities))],
        [marginal(scope) for scope in scopes],
    )


def build(model):
    """The `FactorGraph` and packed potentials of a model, and its evidence if it has any."""
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    evidence = model.get("log_evidence")
    return (
        graph,
        graph.pack(model["log_tables"], np.float64),
        None if evidence is None else graph.pack_variables(evidence, np.float64),
    )


def by_variable(graph, tables):
    """Rearrange tables by cardinality to one numpy array per variable."""
    out = [np.empty(0)] * graph.num_variables
    for ids, table in zip(graph.wiring.variables, tables, strict=True):
        for row, v in enumerate(np.asarray(ids)):
            out[v] = np.asarray(table)[row]
    return out


def by_edge(graph, messages):
    """Rearrange messages ``[edges, states]`` by cardinality to ``out[k][a]``, scopes as given."""
    out = [{} for _ in range(graph.num_items)]
    for items, axes, blocks in zip(
        graph.wiring.items, graph.wiring.axes, graph.edge_blocks, strict=True
    ):
        for stored, (cls, start) in enumerate(blocks):
            for row, item in enumerate(np.asarray(items)):
                out[item][int(axes[row][stored])] = np.asarray(messages[cls])[start + row]
    return [[row[a] for a in sorted(row)] for row in out]


def random_tables(rng, cardinalities, scopes, zeros, scale=1.0):
    """Normal log-tables with `-inf` entries, and one assignment that stays possible in all."""
    kept = [int(rng.integers(n)) for n in cardinalities]
    tables = []
    for scope in scopes:
        shape = tuple(cardinalities[v] for v in scope)
        table = np.asarray(rng.normal(scale=scale, size=shape))
        table = np.where(rng.random(shape) < zeros, -np.inf, table)
        table[tuple(kept[v] for v in scope)] = rng.normal(scale=scale)
        tables.append(table)
    return tables, kept


@st.composite
def models(
    draw,
    *,
    max_variables=5,
    max_factors=6,
    max_cardinality=4,
    max_arity=4,
    max_edges=99,
    max_entries=None,
    zeros=0.2,
    evidence=False,
    forest=False,
):
    """Random models: loops, several factors on one scope, arity 0, isolated variables, zeros.

    Args:
        max_edges: most edges; max_entries: most entries of the replicated joint table.
        zeros: chance of a `-inf` entry; drawn as this or 0.
        evidence: also draw ``log_evidence``, with `-inf` entries too.
        forest: no cycles.
    """
    cards = draw(st.lists(st.integers(1, max_cardinality), min_size=1, max_size=max_variables))
    count = draw(st.integers(1, max_factors))
    scopes, edges, entries = [], 0, math.prod(cards) if evidence else 1
    component = list(range(len(cards)))
    for _ in range(count):
        if scopes and not forest and draw(st.integers(0, 5)) == 0:
            scope = draw(st.permutations(draw(st.sampled_from(scopes))))
        else:
            scope = draw(
                st.lists(
                    st.integers(0, len(cards) - 1), max_size=min(max_arity, len(cards)), unique=True
                )
            )
        if forest:
            # At most one variable of each tree so far.
            scope = list({component[v]: v for v in scope}.values())
        if edges + len(scope) > max_edges:
            break
        size = math.prod(cards[v] for v in scope)
        if max_entries is not None and entries * size > max_entries:
            break
        edges, entries = edges + len(scope), entries * size
        joined = {component[v] for v in scope}
        component = [min(joined) if c in joined else c for c in component]
        scopes.append(tuple(scope))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rate = draw(st.sampled_from([0.0, zeros]))
    unary = [(v,) for v in range(len(cards))] if evidence else []
    tables, _ = random_tables(rng, cards, scopes + unary, rate)
    model = {
        "cardinalities": cards,
        "scopes": scopes,
        "log_tables": tables[: len(scopes)],
    }
    if evidence:
        model["log_evidence"] = tables[len(scopes) :]
    return model
