"""Log-probabilities far below the float range, and their derivatives: `-inf` is for the impossible.

The oracle enumerates all joint states in float64 and works on logarithms throughout.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import BeliefPropagation, Elimination, FactorGraph, TreeSweep, infer, t_proj
from klprojax.graphs import Structured
from klprojax.operators import DykstraHybrid, Or, Parity
from klprojax.operators._messages import batched

INF = np.inf
SWEEP = BeliefPropagation(schedule=TreeSweep())


def star(dtype, children):
    """A fair coin with children that all say state 1: log p(0) = -children log 9."""
    edges = np.array([[0, v] for v in range(1, children + 1)])
    graph = FactorGraph([2] * (children + 1), [(0,), edges])
    tables = [np.log([0.5, 0.5]), np.log([[0.9, 0.1], [0.1, 0.9]])]
    evidence = graph.log_evidence(dict.fromkeys(range(1, children + 1), 1), dtype)
    return graph, graph.pack(tables, dtype), evidence


@pytest.mark.parametrize(
    ("solver", "dtype", "children"),
    [
        (Elimination(), np.float32, 60),
        (Elimination(), np.float64, 400),
        (BeliefPropagation(), np.float32, 60),
    ],
)
def test_an_improbable_hub_keeps_its_log_probability_and_its_slope(solver, dtype, children):
    graph, log_potentials, evidence = star(dtype, children)

    def log_p(log_potentials):
        return infer(graph, log_potentials, solver, log_evidence=evidence).log_beliefs[0][0, 0]

    value, slope = jax.jit(jax.value_and_grad(log_p))(log_potentials)
    # Sums of `children` numbers of size 2, each rounded to eps of the sum at worst.
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, -children * np.log(9), rtol=children * eps)
    # In closed form: log p(0) = log prior(0) + ... - log(prior(1) ... + e^-131).
    np.testing.assert_allclose(slope[0], [[1.0, -1.0]], atol=children * eps)


@pytest.mark.parametrize("nested", [False, True])
def test_an_improbable_hub_beside_a_probable_one_in_a_batch(nested):
    graph, log_potentials, evidence = star(np.float32, 60)
    free = graph.log_evidence(dtype=np.float32)
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), free, evidence, free)

    def log_p(log_evidence):
        return infer(
            graph, log_potentials, Elimination(), log_evidence=log_evidence, throw=False
        ).log_beliefs[0][0, 0]

    run = jax.vmap(log_p)
    if nested:
        run, batch = jax.vmap(run), jax.tree.map(lambda rows: rows[None], batch)
    found = jax.jit(run)(batch).reshape(-1)
    # As above; without evidence the coin is fair.
    wanted = [np.log(0.5), -60 * np.log(9), np.log(0.5)]
    np.testing.assert_allclose(found, wanted, rtol=60 * float(np.finfo(np.float32).eps))


def improbable(dtype, depth, pairs=((0, 1), (1, 2), (2, 0), (2, 3), (3,))):
    """A 3-cycle and a pendant. State 1 of variable 0 is ``depth`` nats below state 0, state 2 of
    variable 1 excluded by a factor, state 0 of variable 3 by evidence."""
    rng = np.random.default_rng(4)
    cards = [2, 3, 2, 3]
    scopes = [(0,), *pairs]
    tables = [rng.normal(size=[cards[v] for v in scope]) for scope in scopes]
    tables[0] = np.array([0.3, -depth])
    tables[1][:, 2] = -INF
    graph = FactorGraph(cards, scopes)
    evidence = graph.log_evidence({3: np.array([-INF, 0.2, -0.4])}, dtype)
    return graph, graph.pack(tables, dtype), evidence


def enumerated(graph, log_potentials, log_evidence):
    """All log-marginals, of variables and of factors' scopes."""
    scopes = [(v,) for v in range(len(graph.cardinalities))]
    tables = graph.unpack_variables(log_evidence)
    for group, table in zip(graph.group_scopes, log_potentials, strict=True):
        scopes += [tuple(scope) for scope in group.tolist()]
        tables += list(jnp.broadcast_to(table, (len(group), *table.shape[-group.shape[1] :])))
    joint = jnp.zeros(graph.cardinalities)
    axes = range(joint.ndim)
    for scope, table in zip(scopes, tables, strict=True):
        order = np.argsort(scope)
        shape = [graph.cardinalities[v] if v in scope else 1 for v in axes]
        joint = joint + jnp.transpose(table, order).reshape(shape)

    def log_sum(table, axis):
        top = jax.lax.stop_gradient(jnp.max(table, axis=axis, keepdims=True))
        top = jnp.where(jnp.isneginf(top), 0.0, top)
        total = jnp.sum(jnp.exp(table - top), axis=axis)
        gone = total == 0
        value = jnp.log(jnp.where(gone, 1.0, total)) + top.reshape(total.shape)
        return jnp.where(gone, -jnp.inf, value)

    out = []
    for scope in scopes:
        table = log_sum(joint, tuple(v for v in axes if v not in scope)) - log_sum(joint, None)
        out.append(jnp.transpose(table, np.argsort(np.argsort(scope))))
    return out


def solved(graph, log_potentials, log_evidence, solver=Elimination()):  # noqa: B008
    found = infer(
        graph, log_potentials, solver, log_evidence=log_evidence, factor_beliefs=True, throw=False
    )
    out = graph.unpack_variables(found.log_beliefs)
    for table in found.factor_log_beliefs:
        out += list(table)
    return out


def score(tables):
    """A smooth function of all log-probabilities of possible states."""
    total = 0.0
    for k, table in enumerate(tables):
        weights = jnp.cos(jnp.arange(table.size, dtype=table.dtype) + k).reshape(table.shape)
        table = jnp.where(jnp.isneginf(table), 0.0, table)
        total = total + jnp.sum(weights * (table + table**2 / 1000))
    return total


def derivatives(log_marginals, graph, evidence):
    """Value, gradient, its derivative along a direction in both modes."""

    def compute(log_potentials, direction):
        def value(log_potentials):
            tables = log_marginals(graph, log_potentials, evidence)
            return score(tables), tables

        def along(log_potentials):
            slopes, tables = jax.grad(value, has_aux=True)(log_potentials)
            inner = sum(jnp.vdot(a, b) for a, b in zip(slopes, direction, strict=True))
            return inner, (tables, slopes)

        gradient = jax.grad(value, has_aux=True)
        _, (forward, _) = jax.jvp(gradient, (log_potentials,), (direction,))
        reverse, (tables, slope) = jax.grad(along, has_aux=True)(log_potentials)
        return tables, slope, forward, reverse

    return jax.jit(compute)


def test_elimination_equals_enumeration_to_second_order():
    dtype, depth = np.float32, 200.0
    graph, log_potentials, evidence = improbable(dtype, depth)
    direction = jax.tree.map(lambda t: jnp.cos(jnp.arange(t.size).reshape(t.shape)), log_potentials)
    double = jax.tree.map(lambda t: t.astype(np.float64), (log_potentials, evidence))
    got = derivatives(solved, graph, evidence)(
        log_potentials, jax.tree.map(lambda d: d.astype(dtype), direction)
    )
    wanted = derivatives(enumerated, graph, double[1])(double[0], direction)
    # Numbers of size `depth` rounded in a dozen additions, here and in the score's derivatives.
    tolerance = 30 * depth * float(np.finfo(dtype).eps)
    lowest = min(float(np.min(t, where=np.isfinite(t), initial=0.0)) for t in wanted[0])
    assert lowest < -0.9 * depth
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    for a, b in leaves:
        np.testing.assert_allclose(np.squeeze(a), np.squeeze(b), rtol=0, atol=tolerance)


def forest(dtype, depth, rule=None):
    """Binary variables, or with 3 states in the middle; state 1 of variable 0 is ``depth`` down."""
    rng = np.random.default_rng(5)
    cards = [2, 2 if rule else 3, 2, 2]
    tables = [np.array([0.3, -depth]), rng.normal(size=(2, cards[1]))]
    if rule is None:
        graph = FactorGraph(cards, [(0,), (0, 1), (1, 2), (2, 3)])
        tables += [rng.normal(size=(3, 2)), rng.normal(size=(2, 2))]
    else:
        graph = FactorGraph(cards, [(0,), (0, 1), Structured([(1, 2, 3)], rule)])
        tables += [rng.normal(size=rule.parameter_shape((2, 2, 2)))]
    return graph, graph.pack(tables, dtype), graph.log_evidence({3: np.array([0.2, -0.4])}, dtype)


def tables_of(graph, log_potentials):
    """One table per factor, in place of rules too."""
    return [
        one
        for group, table in zip(graph.signature.groups, batched(graph, log_potentials), strict=True)
        for one in (group.rule.log_table(table, group.shape) if group.rule else table)
    ]


@pytest.mark.parametrize(
    ("rule", "solver"),
    [
        (None, DykstraHybrid()),
        (Or(), SWEEP),
        pytest.param(None, BeliefPropagation(), marks=pytest.mark.slow),
        pytest.param(Parity(), BeliefPropagation(), marks=pytest.mark.slow),
    ],
)
def test_other_operators_keep_them_too(rule, solver):
    # Float32 below e^-87: what a detour over probabilities would lose.
    graph, log_potentials, evidence = forest(np.float32, 200.0, rule)

    def value(tables):
        out = solved(graph, tables, evidence, solver)[: len(graph.cardinalities)]
        return score(out), out

    plain = FactorGraph(
        graph.cardinalities, [tuple(s) for scopes in graph.group_scopes for s in scopes.tolist()]
    )

    def oracle(tables):
        out = enumerated(plain, plain.pack(tables_of(graph, tables)), double)
        return score(out[: len(graph.cardinalities)]), out[: len(graph.cardinalities)]

    tables, double = jax.tree.map(lambda t: t.astype(np.float64), (log_potentials, evidence))
    got = jax.jit(jax.grad(value, has_aux=True))(log_potentials)
    wanted = jax.jit(jax.grad(oracle, has_aux=True))(tables)
    # Numbers of size 200 rounded in a dozen additions; BP's tolerance is 1e-6 of them.
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["dense", "elimination"])
def test_t_proj_keeps_them_whatever_the_method(method):
    graph, log_potentials, evidence = forest(np.float32, 200.0)

    def log_p(log_potentials):
        log_marginals = t_proj(graph, log_potentials, evidence, method=method)
        return graph.unpack_variables(log_marginals)[0][1]

    value, slopes = jax.jit(jax.value_and_grad(log_p))(log_potentials)
    double = jax.tree.map(lambda t: t.astype(np.float64), (log_potentials, evidence))
    wanted, wanted_slopes = jax.jit(
        jax.value_and_grad(lambda tables: enumerated(graph, tables, double[1])[0][1])
    )(double[0])
    np.testing.assert_allclose(value, wanted, rtol=1e-6)  # a dozen roundings of 6e-8
    for a, b in zip(slopes, wanted_slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # of exponentials of numbers of size 200
