"""T_SPN: T_Proj on the activation lift against the sweep; the readings that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import Elimination, infer, t_proj
from klprojax.circuits import (
    Categorical,
    CircuitBuilder,
    activation_lift,
    scope_table_marginals,
    sweep,
    t_spn,
)

from ._circuits import enumerate_exact, random_circuit, random_evidence

EXACT = {"rtol": 0.0, "atol": 1e-12}  # a few hundred roundings of numbers below 1


def close(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.exp(a), np.exp(b), **EXACT)


def projected(circuit, *args, **options):
    return jax.jit(lambda *args: t_spn(circuit, *args, **options))(*args)


def leaf(b, rng, v):
    return b.leaf(v, Categorical(), rng.normal(size=b.cardinalities[v]))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("elimination", {"seed": 5, "leaf": leaf, "cards": (2, 3, 2)}),
        ("tree", {"seed": 0, "dag": False, "cards": (2, 2)}),
    ],
)
def test_projection_equals_sweep(method, options):
    model = random_circuit(width=2, **options)
    circuit, log_weights, parameters = model
    s = circuit.structure
    assert (np.bincount(s.children).max() > 1) == options.get("dag", True)
    assert any(isinstance(g.family, Categorical) for g in circuit.groups) == ("leaf" in options)
    evidence = random_evidence(1, circuit.cardinalities, zeros=0.2)
    log_evidence = circuit.pack_variables(evidence)
    wanted = t_spn(circuit, log_weights, log_evidence, leaf_parameters=parameters)
    got = projected(circuit, log_weights, log_evidence, leaf_parameters=parameters, method=method)
    close(got, wanted)
    exact = enumerate_exact(model, evidence)
    for a, b in zip(circuit.unpack_variables(wanted), exact.marginals, strict=True):
        np.testing.assert_allclose(np.exp(a), b, **EXACT)


def test_dense_projection():
    # the two projections carried out on the replicated joint table
    b = CircuitBuilder([2])
    x = [b.indicator(0, t) for t in (0, 1)]
    circuit, log_weights, _ = b.build(b.sum(x, np.log([0.3, 0.9])))
    evidence = circuit.log_evidence({0: np.array([0.2, -0.4])})
    got = projected(circuit, log_weights, evidence, method="dense")
    close(got, t_spn(circuit, log_weights, evidence))


def test_activation_marginals_are_visits():
    model = random_circuit(1, (2, 3, 2), width=2)
    circuit, log_weights, _ = model
    lift = activation_lift(circuit)
    log_evidence = circuit.log_evidence({1: np.array([0.3, -0.2, 0.9])})
    got = sweep(circuit, log_weights, log_evidence)
    tables = lift.log_potentials(log_weights, got.log_values[lift.leaf_order])
    solution = jax.jit(lambda tables: infer(lift.graph, tables, Elimination()))(tables)
    np.testing.assert_allclose(solution.log_partition, got.log_partition, **EXACT)
    (active,) = solution.marginals
    np.testing.assert_allclose(active[lift.node_variables, 1], got.visits, **EXACT)
    np.testing.assert_allclose(active[lift.edge_variables, 1], got.edge_probs, **EXACT)


def test_derivatives_agree():
    circuit, log_weights, _ = random_circuit(0, (2, 2), dag=False, width=2)

    def loss(log_weights, method):
        (table,) = t_spn(circuit, log_weights, method=method)
        return jnp.sum(jnp.sin(3 * jnp.exp(table)) * jnp.asarray([[1.0, 2.0], [3.0, 5.0]]))

    by_sweep, by_projection = (
        jax.jit(jax.grad(loss), static_argnums=1)(log_weights, method)
        for method in ("sweep", "elimination")
    )
    assert float(jnp.abs(by_sweep).max()) > 1e-3
    np.testing.assert_allclose(by_sweep, by_projection, **EXACT)


def test_refusals():
    circuit, log_weights, _ = random_circuit(0, (2, 2), dag=False, width=2)
    with pytest.raises(ValueError, match="method is 'magic'; use 'sweep'"):
        _untyped(circuit, log_weights)
    impossible = circuit.log_evidence({0: np.full(2, -np.inf)})
    with pytest.raises(RuntimeError, match="probability zero"):
        t_spn(circuit, log_weights, impossible)


def _untyped(circuit, log_weights):
    # past the run-time type check of the tests, as a user without it would
    function = t_spn
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function(circuit, log_weights, method="magic")


def mixture_of_products():
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    tables = (([0.9, 0.1], [0.8, 0.2]), ([0.2, 0.8], [0.3, 0.7]))
    parts = [
        b.product([b.sum(x[v], np.log(table)) for v, table in enumerate(pair)]) for pair in tables
    ]
    return b.build(b.sum(parts, np.log([0.3, 0.7])))


def test_scope_tables_read_literally_are_not_exact():
    circuit, log_weights, _ = mixture_of_products()
    exact = np.array([[0.41, 0.59], [0.45, 0.55]])
    np.testing.assert_allclose(np.exp(t_spn(circuit, log_weights)[0]), exact, **EXACT)
    literal = np.asarray(scope_table_marginals(circuit, log_weights))
    np.testing.assert_allclose(literal.sum(axis=1), 1.0, **EXACT)
    # far beyond rounding: the counterexample
    assert np.abs(literal - exact).max() > 1e-2
    # the same by hand: geometric means over the root and its two products, and over two sums
    first, second = np.outer([0.9, 0.1], [0.8, 0.2]), np.outer([0.2, 0.8], [0.3, 0.7])
    joint = (first * second * (0.3 * first + 0.7 * second)) ** (1 / 3)
    joint /= joint.sum()
    for v, (a, c) in enumerate((([0.9, 0.1], [0.2, 0.8]), ([0.8, 0.2], [0.3, 0.7]))):
        single = np.sqrt(np.multiply(a, c))
        single /= single.sum()
        # five tables hold the variable: three of the pair, two of its own
        wanted = (3 * joint.sum(axis=1 - v) + 2 * single) / 5
        np.testing.assert_allclose(literal[v], wanted, **EXACT)


def test_scope_tables_are_exact_without_sums_over_products():
    # where no scope holds components to be mixed, both readings agree
    b = CircuitBuilder([2, 3])
    parts = [
        b.sum([b.indicator(v, t) for t in range(c)], np.log(np.arange(1.0, c + 1)))
        for v, c in enumerate((2, 3))
    ]
    circuit, log_weights, _ = b.build(b.product(parts))
    evidence = circuit.log_evidence({1: np.array([0.5, 0.0, -0.7])})
    literal = scope_table_marginals(circuit, log_weights, evidence)
    exact = circuit.unpack_variables(sweep(circuit, log_weights, evidence).marginals)
    # one node a scope, besides the evidence's own table at single variables
    for a, b in zip(literal, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_scope_table_refusals():
    b = CircuitBuilder([2])
    leafy = b.build(b.sum([b.leaf(0), b.leaf(0)]))
    with pytest.raises(ValueError, match="leaves are all indicators"):
        scope_table_marginals(leafy.circuit, leafy.log_weights)
    b = CircuitBuilder([2] * 20)
    wide = b.build(b.product([b.sum([b.indicator(v, t) for t in (0, 1)]) for v in range(20)]))
    with pytest.raises(ValueError, match="joint states, too many to enumerate"):
        scope_table_marginals(wide.circuit, wide.log_weights)
    b = CircuitBuilder([2, 2, 2])
    s = [b.sum([b.indicator(v, t) for t in (0, 1)]) for v in range(3)]
    left = b.product([s[0], b.product([s[1], s[2]])])
    right = b.product([b.product([s[0], s[1]]), s[2]])
    split = b.build(b.sum([left, right]))
    with pytest.raises(ValueError, match="split in two ways"):
        scope_table_marginals(split.circuit, split.log_weights)


def test_remark_4_7_without_decomposability_derivatives_are_no_marginals():
    # (sum over x) * (another sum over x) * (sum over y): x occurs twice in every parse.
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    twice = [b.sum(x[0], np.log(w)) for w in ([0.9, 0.1], [0.3, 0.7])]
    root = b.product([*twice, b.sum(x[1], np.log([0.6, 0.4]))], name="square")
    with pytest.raises(ValueError, match="'square' is not decomposable"):
        b.build(root)
    circuit, log_weights, _ = b.build(root, validate=False)
    got = sweep(circuit, log_weights)
    # what the product means: the parts agree on x, p(x) ∝ w1(x) w2(x)
    true = np.array([0.9 * 0.3, 0.1 * 0.7])
    true /= true.sum()
    log_slopes = np.asarray(got.marginals[0])[0]
    assert abs(log_slopes.sum() - 2.0) < 1e-12  # no distribution: x counts twice
    assert np.abs(log_slopes / log_slopes.sum() - true).max() > 0.1
    # the lift excludes parses that reach an indicator of x in two ways, or never: not it either
    lift = activation_lift(circuit)
    tables = lift.log_potentials(log_weights, got.log_values[lift.leaf_order])
    (found,) = jax.jit(lambda tables: t_proj(lift.graph, tables))(tables)
    active = np.exp(found[lift.node_variables[:2], 1])
    assert np.abs(active - log_slopes).max() > 0.1
