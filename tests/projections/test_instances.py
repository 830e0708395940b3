"""Every fused program on log-tables is an instance: iterate by iterate the generic scheme.

Numbers are drawn for a few structures, so that every program is compiled once. The schemes of
training are compared in ``tests/training/schemes``, the Dykstra hybrid in
``tests/operators/test_hybrid.py``.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klprojax import BeliefPropagation, FactorGraph, t_proj
from klprojax.circuits import (
    Categorical,
    CircuitBuilder,
    CircuitModel,
    activation_lift,
    em_step,
    sweep,
)
from klprojax.circuits.tensor import hidden_markov
from klprojax.geometry import MarginalConstraints, ProductFamily
from klprojax.graphs._replication import ReplicatedLift
from klprojax.operators._messages import batched, uniform_messages
from klprojax.operators._odds_engine import OddsFlooding
from klprojax.projections import Cyclic, Dykstra, LogTables, compose, iterate, left, right
from tests.circuits._circuits import as_nodes as plain_nodes
from tests.circuits.tensor._models import as_nodes, circuits, region_circuits
from tests.operators._enumeration import by_edge, by_variable, random_tables
from tests.reference import bp_sweep, circuit_sweep, elimination, em, ipf

# Probabilities, and logarithms of size ten: a few sweeps of sums of hundreds of terms.
ATOL = 1e-12
SEEDS = st.integers(0, 2**32 - 1)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ATOL)


def factorise_and_agree(lift):
    product = right(ProductFamily())
    return product, compose(product, left(lift.consensus))


# -- T_Proj and belief propagation ----------------------------------------------------------------

STEPS = 7
GRAPHS = {
    "cycle": ([2, 3, 2], [(0, 1), (1, 2), (2, 0)]),
    "twice, three at once": ([3, 2, 2], [(0, 1), (1, 0), (0, 2, 1), (2,)]),
    "binary": ([2, 2, 2, 2], [(0, 1), (2, 1), (2, 3), (0, 3), (0,)]),
}
ENGINES = {"cycle": ["log", "fast"], "twice, three at once": ["log", "fast"]}
ENGINES["binary"] = ["log", "fast", "odds"]


def engine_of(graph, name):
    """An engine of the solver; "fast" is matrix products, on binary graphs log-odds."""
    if name == "odds":
        return OddsFlooding()
    solver = BeliefPropagation()
    return solver._log_engine(graph) if name == "log" else solver._fast_engine(graph)


@functools.cache
def programs(name):
    """The graph, its lift, the generic operator and scheme, and one program per engine."""
    graph = FactorGraph(*GRAPHS[name])
    lift, space, scheme = ReplicatedLift(graph), LogTables(), Dykstra()
    projections = factorise_and_agree(lift)

    def scan(step, start):
        return jax.lax.scan(lambda x, _: (step(x),) * 2, start, None, length=STEPS)[1]

    def generic(tables):
        table = lift.log_table(tables)
        once = iterate(Cyclic(), projections[1:], table, max_steps=1, tolerance=0).value
        start = scheme.init(space, projections, table)
        return table, once, scan(lambda x: scheme.step(space, projections, x), start)

    def fused(engine, tables):
        inputs = engine.prepare(graph, batched(graph, tables), None)
        start = engine.load(graph, uniform_messages(graph, tables[0].dtype))
        states = scan(lambda x: engine.step(inputs, x), start)
        return jax.vmap(lambda x: engine.store(graph, x))(states)

    engines = {e: jax.jit(functools.partial(fused, engine_of(graph, e))) for e in ENGINES[name]}
    return graph, lift, jax.jit(generic), engines


def over_copies(lift, factor_axes, per_edge):
    """The sum over the axes of the lift of one table per edge, ``per_edge[k][a]``."""
    total = np.zeros(lift.shape)
    for k, axes in enumerate(factor_axes):
        for axis, table in zip(axes, per_edge[k], strict=True):
            total = total + table.reshape([-1 if a == axis else 1 for a in range(total.ndim)])
    return total


def draw(name, seed, zeros):
    graph = FactorGraph(*GRAPHS[name])
    tables, _ = random_tables(np.random.default_rng(seed), *GRAPHS[name], zeros)
    return tables, graph.pack(tables, np.float64)


@settings(max_examples=8)
@given(name=st.sampled_from(list(GRAPHS)[:2]), seed=SEEDS, zeros=st.sampled_from([0.0, 0.3]))
def test_t_proj_is_one_step_of_the_composed_projections(name, seed, zeros):
    graph, lift, generic, _ = programs(name)
    tables, packed = draw(name, seed, zeros)
    _, once, _ = generic(packed)
    got = lift.read_variables(ProductFamily().marginals(once))
    close(jax.tree.map(jnp.exp, got), jax.tree.map(jnp.exp, t_proj(graph, packed)))
    want = [elimination.marginal(*GRAPHS[name], tables, (v,)) for v in range(len(GRAPHS[name][0]))]
    close([np.exp(t) for t in by_variable(graph, got)], want)


@settings(max_examples=12)
@given(name=st.sampled_from(list(GRAPHS)), seed=SEEDS, zeros=st.sampled_from([0.0, 0.3]))
def test_belief_propagation_is_dykstra(name, seed, zeros):
    graph, lift, generic, engines = programs(name)
    tables, packed = draw(name, seed, zeros)
    table, _, states = jax.device_get(generic(packed))
    factor_axes = [axes for group in lift.factor_axes for axes in group]
    # Axes of the lift are those of the factors as stored, which may be another order than given.
    stored = [scope for group in graph.group_scopes for scope in group.tolist()]
    place = {item: n for n, item in enumerate(np.concatenate(graph.wiring.items).tolist())}
    for engine, program in engines.items():
        if zeros and engine != "log":
            continue  # the others take finite tables only
        found = jax.device_get(program(packed))
        for n, (beliefs, messages) in enumerate(bp_sweep.iterates(*GRAPHS[name], tables, STEPS)):
            mine = by_edge(graph, jax.tree.map(lambda m, n=n: np.exp(m[n]), found))
            q, sigma, tau = (s[n] for s in states)
            with np.errstate(divide="ignore", invalid="ignore"):
                to_variable, from_variable, copies = ([[]] * len(stored) for _ in range(3))
                for k, scope in enumerate(GRAPHS[name][1]):
                    order = [scope.index(v) for v in stored[place[k]]]
                    m = [np.log(mine[k][a]) for a in order]
                    b = [np.log(beliefs[scope[a]]) for a in order]
                    to_variable[place[k]], copies[place[k]] = m, b
                    from_variable[place[k]] = [x - y for x, y in zip(b, m, strict=True)]
                close(np.exp(q), np.exp(over_copies(lift, factor_axes, copies)))
            if zeros:
                continue
            close(mine, messages)
            # The corrections are messages: σ = log f - log m_{k→i}, τ = -log m_{i→k}.
            want = table - over_copies(lift, factor_axes, to_variable)
            close(sigma - sigma.mean(), want - want.mean())
            want = -over_copies(lift, factor_axes, from_variable)
            close(tau - tau.mean(), want - want.mean())


# -- T_SPN ----------------------------------------------------------------------------------------


def shared():
    """A mixture that has one of its leaves twice."""
    b = CircuitBuilder([3])
    first, second = (b.leaf(0, Categorical()) for _ in range(2))
    return b.build(b.sum([first, second, first]))


def tree():
    """A product of a mixture and a leaf."""
    b = CircuitBuilder([2, 3])
    mixture = b.sum([b.leaf(0, Categorical()) for _ in range(2)])
    return b.build(b.product([b.leaf(1, Categorical()), mixture]))


@functools.cache
def circuit_programs(make):
    model = make()
    lift = activation_lift(model.circuit)
    copies = ReplicatedLift(lift.graph)
    _, both = factorise_and_agree(copies)

    def generic(log_weights, leaf_values):
        table = copies.log_table(lift.log_potentials(log_weights, leaf_values))
        found = iterate(Cyclic(), (both,), table, max_steps=1, tolerance=0).value
        (active,) = copies.read_variables(ProductFamily().marginals(found))
        return jnp.exp(active[:, 1])

    def fused(log_weights, parameters, evidence):
        return sweep(model.circuit, log_weights, evidence, leaf_parameters=parameters)

    return model, lift, jax.jit(generic), jax.jit(fused)


@pytest.mark.parametrize("make", [shared, tree])
@settings(max_examples=2)  # of up to 2^20 entries
@given(seed=SEEDS)
def test_t_spn_is_one_step_on_the_activation_lift(make, seed):
    model, lift, generic, fused = circuit_programs(make)
    circuit, rng = model.circuit, np.random.default_rng(seed)
    log_weights = jnp.asarray(rng.normal(size=circuit.num_weights))
    parameters = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape)), model.leaf_parameters
    )
    evidence = [rng.normal(size=c) for c in circuit.cardinalities]
    got = fused(log_weights, parameters, circuit.pack_variables(evidence))
    active = generic(log_weights, got.log_values[lift.leaf_order])
    close(active[lift.node_variables], got.visits)
    close(active[lift.edge_variables], got.edge_probs)
    nodes, tables = plain_nodes(CircuitModel(circuit, log_weights, parameters))
    want = circuit_sweep.marginals(nodes, tables, [np.exp(e) for e in evidence])
    close(circuit.unpack_variables(got.marginals), want)


# -- EM -------------------------------------------------------------------------------------------

EM_CIRCUITS = {
    "shared": circuits()["shared"],
    "tied": hidden_markov(3, 2, cardinality=3),
    "mixtures": region_circuits()["uneven"],
}


def parses(nodes, sizes):
    """All parses of a plain circuit: the entries ``(k, i)`` of parameters used, and the states."""
    below = []
    for kind, what, *k in nodes:
        if kind == "leaf":
            below.append([([(k[0], t)], {what: t}) for t in range(sizes[k[0]])])
        elif kind == "sum":
            below.append([([(k[0], i), *u], x) for i, c in enumerate(what) for u, x in below[c]])
        else:
            joined = [([], {})]
            for c in what:
                joined = [(u + v, x | y) for (u, x), (v, y) in itertools.product(joined, below[c])]
            below.append(joined)
    return below[-1]


@functools.cache
def em_programs(name):
    """The generic step on tables ``[states, parses]``, and both ways to make such a table."""
    circuit = EM_CIRCUITS[name]
    nodes, parameters = as_nodes(circuit)
    sizes = [len(p) for p in parameters(circuit.init(0))]
    cards, starts = circuit.cardinalities, np.cumsum([0, *sizes])
    rows = [[] for _ in range(np.prod(cards))]
    for uses, states in parses(nodes, sizes):
        rows[np.ravel_multi_index([states[v] for v in range(len(cards))], cards)].append(uses)
    # How often each parse uses each entry; the places beyond the last parse of a state are empty.
    counts = np.zeros((len(rows), max(map(len, rows)), starts[-1]))
    empty = np.ones(counts.shape[:2], bool)
    for state, all_uses in enumerate(rows):
        for parse, uses in enumerate(all_uses):
            empty[state, parse] = False
            np.add.at(counts[state, parse], [starts[k] + i for k, i in uses], 1.0)
    owner = np.repeat(np.arange(len(sizes)), sizes)

    def table_of(probs):
        """The circuit's distribution over states and parses."""
        logs = jnp.where(counts > 0, counts * jnp.log(probs)[None, None], 0.0)
        return jnp.where(empty, -jnp.inf, jnp.sum(logs, axis=2))

    def family(log_table):
        """Right projection onto the circuit's distributions: shares of the expected uses."""
        uses = jnp.tensordot(jnp.exp(log_table), counts, 2)
        total = jax.ops.segment_sum(uses, owner, len(sizes))[owner]
        return table_of(uses / jnp.where(total > 0, total, 1.0))

    def step(log_table, log_data):
        data = left(MarginalConstraints([((0,), log_data)]))
        return Cyclic().step(LogTables(), (data, family), (log_table,))[0]

    fused = jax.jit(lambda p, rows: em_step(circuit, p, rows)[0])
    return nodes, parameters, jax.jit(table_of), jax.jit(step), fused


@settings(max_examples=9)
@given(name=st.sampled_from(list(EM_CIRCUITS)), seed=SEEDS)
def test_em_alternates_projections_onto_data_and_circuit(name, seed):
    circuit, (nodes, parameters, table_of, step, fused) = EM_CIRCUITS[name], em_programs(name)
    cards, rng = circuit.cardinalities, np.random.default_rng(seed)
    rows = np.stack([rng.integers(card, size=25) for card in cards], axis=1)
    seen = np.bincount(np.ravel_multi_index(rows.T, cards), minlength=np.prod(cards))
    with np.errstate(divide="ignore"):
        log_data = jnp.log(seen / len(rows))  # most states are never seen
    ours = circuit.init(int(rng.integers(1000)), dtype=jnp.float64)
    plain = parameters(ours)
    table = table_of(np.concatenate(plain))
    for _ in range(4):
        table = step(table, log_data)
        ours = fused(ours, jnp.asarray(rows))
        plain = em.em_step(nodes, plain, rows, cards)
        close(parameters(ours), plain)
        close(jnp.exp(table), jnp.exp(table_of(np.concatenate(plain))))


# -- IPF and Sinkhorn -----------------------------------------------------------------------------

SWEEPS = (1, 2, 4)
MARGINALS = {
    "Sinkhorn": ((3, 5), [(0,), (1,)]),
    "three at once, overlapping": ((3, 2, 4), [(0, 1), (2, 1), (0, 2)]),
}


@functools.cache
def fitting(name):
    """The tables after some sweeps, by the generic scheme and by `MarginalConstraints`."""

    def generic(table, targets):
        sets = [
            left(MarginalConstraints([(axes, target)]))
            for axes, target in zip(MARGINALS[name][1], targets, strict=True)
        ]
        return [iterate(Cyclic(), sets, table, max_steps=n, tolerance=0).value for n in SWEEPS]

    def fused(table, targets):
        every = MarginalConstraints(list(zip(MARGINALS[name][1], targets, strict=True)))
        return [
            every.left_projection(table, tolerance=0.0, max_steps=n, throw=False).value
            for n in SWEEPS
        ]

    return jax.jit(generic), jax.jit(fused)


@pytest.mark.parametrize("name", MARGINALS)
@settings(max_examples=8)
@given(seed=SEEDS, zeros=st.sampled_from([0.0, 0.2]))
def test_proportional_fitting_is_cyclic_projection_onto_marginals(name, seed, zeros):
    (shape, scopes), rng = MARGINALS[name], np.random.default_rng(seed)
    start, goal = rng.dirichlet(np.ones(np.prod(shape)), 2).reshape(2, *shape)
    # Where the start has no mass, the targets' joint has none either: something is left to find.
    off = rng.random(shape) < zeros
    start, goal = np.where(off, 0, start), np.where(off, 0, goal)
    goal, every = goal / goal.sum(), list(range(goal.ndim))
    targets = [np.einsum(goal, every, list(scope)) for scope in scopes]
    with np.errstate(divide="ignore"):
        logs = jnp.log(start), [jnp.log(target) for target in targets]
    plain = ipf.sweeps(start, list(zip(scopes, targets, strict=True)))
    want = [table for n, table in zip(range(1, 5), plain, strict=False) if n in SWEEPS]
    for program in fitting(name):
        close([jnp.exp(table) for table in program(*logs)], want)
