"""Theorem 4.1 against enumeration of all parses, its derivatives, and the numerical extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import CircuitBuilder, log_partition, sweep, t_spn
from tests.reference import circuit_sweep

from ._circuits import as_nodes, enumerate_exact, enumerate_joint, random_circuit, random_evidence

# The sums have at most a few hundred terms; each rounding is 1e-16.
EXACT = {"rtol": 0.0, "atol": 1e-12}
CASES = [(0, True), (1, True), (0, False)]


def numbers(seed, dag, zeros):
    model = random_circuit(seed, dag=dag)
    evidence = random_evidence(seed, model.circuit.cardinalities, zeros=zeros)
    return model, evidence, model.circuit.pack_variables(evidence)


@pytest.mark.parametrize(("seed", "dag"), CASES)
def test_marginals_and_gates(seed, dag):
    for zeros in (0.0, 0.3):
        model, evidence, log_evidence = numbers(seed, dag, zeros)
        circuit = model.circuit
        exact = enumerate_exact(model, evidence)
        got = sweep(circuit, model.log_weights, log_evidence)
        np.testing.assert_allclose(got.log_partition, exact.log_partition, **EXACT)
        for a, b in zip(circuit.unpack_variables(got.marginals), exact.marginals, strict=True):
            np.testing.assert_allclose(a, b, **EXACT)  # (a)
        np.testing.assert_allclose(got.edge_probs, exact.edge_probs, **EXACT)  # (b)
        np.testing.assert_allclose(got.visits, exact.visits, **EXACT)
        visit = exact.visits[circuit.structure.parents[circuit.structure.sum_edges]]
        seen = visit > 0
        np.testing.assert_allclose(
            np.asarray(got.gates)[seen],
            (exact.edge_probs / np.where(seen, visit, 1))[seen],
            **EXACT,
        )
        # D(n) S(n) / S(e), in logarithms
        flow = got.log_values + got.log_derivatives - got.log_partition
        np.testing.assert_allclose(np.exp(flow), exact.visits, **EXACT)


def test_float32():
    model, evidence, _ = numbers(1, True, 0.3)
    exact = enumerate_exact(model, evidence)
    log_evidence = model.circuit.pack_variables(evidence, np.float32)
    got = sweep(model.circuit, model.log_weights.astype(jnp.float32), log_evidence)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(got)} == {"float32"}
    # rounding 6e-8, logarithms of size 10, some ten levels
    tolerance = {"rtol": 0.0, "atol": 1e-5}
    np.testing.assert_allclose(got.log_partition, exact.log_partition, **tolerance)
    np.testing.assert_allclose(got.visits, exact.visits, **tolerance)
    np.testing.assert_allclose(got.edge_probs, exact.edge_probs, **tolerance)


def test_downward_values_are_derivatives():
    # D(n) by finite change of one node's value, products of zero children included: with hard
    # evidence many S(n) are 0 while their D(n) is not.
    model, _, log_evidence = numbers(1, True, 0.4)
    s = model.circuit.structure
    got = sweep(model.circuit, model.log_weights, log_evidence)
    weights = np.exp(np.asarray(model.log_weights))
    values = np.exp(np.asarray(got.log_values))
    assert (values == 0).any()

    def root_with(node, value):
        out = values.copy()
        out[node] = value
        for nodes in s.ranks:
            for n in nodes.tolist():
                if n != node:
                    edges = np.arange(s.offsets[n], s.offsets[n + 1])
                    below = out[s.children[edges]]
                    if s.kinds[n] == 1:
                        out[n] = np.prod(below)
                    else:
                        out[n] = np.sum(weights[s.weight_of_edge[edges]] * below)
        return out[s.root]

    # S(root) is affine in the value of one node, so any two points give its slope
    slopes = np.array([root_with(n, 1.0) - root_with(n, 0.0) for n in range(s.num_nodes)])
    np.testing.assert_allclose(np.exp(got.log_derivatives), slopes, rtol=1e-11, atol=1e-12)
    assert ((values == 0) & (slopes > 0)).any()


def test_gradient_is_the_sweep():
    model, _, log_evidence = numbers(1, True, 0.3)
    got = sweep(model.circuit, model.log_weights, log_evidence)

    def value(log_weights, evidence):
        return log_partition(model.circuit, log_weights, evidence)

    by_weight, by_evidence = jax.grad(value, (0, 1))(model.log_weights, log_evidence)
    np.testing.assert_allclose(by_weight, got.edge_probs, **EXACT)
    for a, b in zip(by_evidence, got.marginals, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)
    # forward mode
    tangent = jnp.linspace(-1.0, 1.0, model.circuit.num_weights)
    _, slope = jax.jvp(lambda w: value(w, log_evidence), (model.log_weights,), (tangent,))
    np.testing.assert_allclose(slope, jnp.dot(tangent, got.edge_probs), **EXACT)


def test_against_plain_automatic_differentiation():
    # The network polynomial written out node by node, differentiated by JAX alone.
    model, _, log_evidence = numbers(1, True, 0.0)
    s = model.circuit.structure

    def naive(log_weights, table):
        memory = {}
        for g, c in zip(s.groups, s.group_class, strict=True):
            for n, v, t in zip(
                g.nodes.tolist(), g.variables.tolist(), g.states.tolist(), strict=True
            ):
                memory[n] = jnp.exp(table[c][s.variables.row_of[v], t])
        for nodes in s.ranks:
            for n in nodes.tolist():
                edges = range(s.offsets[n], s.offsets[n + 1])
                below = [memory[int(s.children[e])] for e in edges]
                if s.kinds[n] == 1:
                    memory[n] = jnp.prod(jnp.stack(below))
                else:
                    w = jnp.exp(log_weights[s.weight_of_edge[list(edges)]])
                    memory[n] = jnp.sum(w * jnp.stack(below))
        return jnp.log(memory[s.root])

    wanted = jax.jit(jax.grad(naive, (0, 1)))(model.log_weights, log_evidence)
    got = jax.grad(lambda w, e: log_partition(model.circuit, w, e), (0, 1))(
        model.log_weights, log_evidence
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


def test_second_derivatives():
    model, _, log_evidence = numbers(0, True, 0.3)
    circuit = model.circuit
    direction = jnp.cos(jnp.arange(float(circuit.num_weights)))
    slopes = jax.jit(jax.grad(lambda w: log_partition(circuit, w, log_evidence)))

    @jax.jit
    def along(log_weights):
        forward = jax.jvp(slopes, (log_weights,), (direction,))[1]
        backward = jax.grad(lambda w: jnp.dot(slopes(w), direction))(log_weights)
        return forward, backward

    forward, backward = along(model.log_weights)
    np.testing.assert_allclose(forward, backward, **EXACT)
    step = 1e-5
    ends = [slopes(model.log_weights + sign * step * direction) for sign in (1, -1)]
    # central difference: error step^2 plus 1e-16 / step
    np.testing.assert_allclose(forward, (ends[0] - ends[1]) / (2 * step), rtol=0, atol=1e-9)


def test_all_outputs_differentiate():
    model, _, log_evidence = numbers(0, True, 0.3)

    def loss(log_weights, evidence):
        got = sweep(model.circuit, log_weights, evidence)
        finite = [jnp.where(jnp.isfinite(x), x, 0.0) for x in jax.tree.leaves(got)]
        return sum(jnp.sum(jnp.sin(x)) for x in finite)

    weights = model.log_weights
    grad, by_evidence = jax.jit(jax.grad(loss, (0, 1)))(weights, log_evidence)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((grad, by_evidence)))
    direction = jnp.sin(jnp.arange(float(len(weights))))
    step = 1e-5
    value = jax.jit(loss)
    ends = [value(weights + sign * step * direction, log_evidence) for sign in (1, -1)]
    # central difference of a sum of about 200 terms
    np.testing.assert_allclose(grad @ direction, (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


def test_vmap():
    model = random_circuit(1)
    circuit = model.circuit
    rows = np.array([[0, 1, -1, 1], [1, -1, 0, 0], [-1, -1, -1, -1]])
    tables, _ = circuit.evidence_from_data(rows)
    batched = jax.jit(jax.vmap(lambda e: sweep(circuit, model.log_weights, e)))(tables)
    single = jax.jit(lambda e: sweep(circuit, model.log_weights, e))
    for k in range(3):
        one = single(tuple(t[k] for t in tables))
        for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[k], b, **EXACT)
    slopes = jax.grad(lambda w, e: log_partition(circuit, w, e))
    grads = jax.jit(jax.vmap(slopes, (None, 0)))(model.log_weights, tables)
    np.testing.assert_allclose(grads, batched.edge_probs, **EXACT)


def test_impossible_evidence():
    model = random_circuit(1)
    circuit = model.circuit
    impossible = circuit.log_evidence({1: np.full(3, -np.inf)})
    got = sweep(circuit, model.log_weights, impossible)
    assert got.log_partition == -np.inf
    assert not got.possible
    for part in (got.visits, got.edge_probs, *got.marginals):
        assert (np.asarray(part) == 0).all()
    for leaf in jax.tree.leaves(got):
        assert not np.isnan(leaf).any()
    grads = jax.grad(lambda w, e: log_partition(circuit, w, e), (0, 1))(
        model.log_weights, impossible
    )
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))
    with pytest.raises(RuntimeError, match="probability zero"):
        t_spn(circuit, model.log_weights, impossible)


def test_product_at_the_root_of_impossible_evidence():
    b = CircuitBuilder([2, 2])
    parts = [b.sum([b.indicator(v, t) for t in (0, 1)], np.log([0.5, 0.5])) for v in (0, 1)]
    circuit, log_weights, _ = b.build(b.product(parts))
    none = circuit.log_evidence({0: np.full(2, -np.inf), 1: np.full(2, -np.inf)})
    got = sweep(circuit, log_weights, none)
    assert (np.asarray(got.visits) == 0).all()
    # two zero children: no sibling product is positive
    assert (np.asarray(got.log_derivatives)[: circuit.num_nodes - 1] == -np.inf).all()
    one = circuit.log_evidence({0: np.full(2, -np.inf)})
    # the other variable's sum is positive, and still nothing flows from an impossible root
    grad = jax.grad(lambda w, e: log_partition(circuit, w, e), (0, 1))(log_weights, one)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grad))


def deep_chain(layers, dtype):
    """Sums of products, 1,000 layers and more, over a chain of binary variables."""
    variables = layers // 2
    b = CircuitBuilder([2] * variables)
    rng = np.random.default_rng(0)
    below = None
    for v in range(variables):
        nodes = []
        for _ in range(2):
            leaf = b.sum([b.indicator(v, t) for t in (0, 1)], np.log(rng.dirichlet([1, 1])))
            nodes.append(leaf)
        if below is None:
            below = nodes
            continue
        products = [b.product([nodes[k], below[k]]) for k in range(2)]
        below = [b.sum(products, np.log(rng.dirichlet([1, 1]))) for _ in range(2)]
    return b.build(b.sum(below, np.log([0.5, 0.5])), dtype=dtype)


def test_thousand_layers_in_float32():
    wide, narrow = (deep_chain(1010, dtype) for dtype in (jnp.float64, jnp.float32))
    circuit = wide.circuit
    assert circuit.depth >= 1000
    rows = np.random.default_rng(1).integers(-1, 2, circuit.num_variables)
    results = []
    swept = jax.jit(lambda w, e: sweep(circuit, w, e))
    for model, dtype in ((wide, np.float64), (narrow, np.float32)):
        evidence, _ = circuit.evidence_from_data(rows, dtype)
        results.append(swept(model.log_weights, evidence))
        assert np.isfinite(results[-1].log_partition)
    exact, rough = results
    # 1,000 sums of numbers of size 300, rounded to 3e-5 each
    np.testing.assert_allclose(rough.log_partition, exact.log_partition, rtol=1e-5)
    # Each visit is a product of up to 1,010 gates, right to a few roundings of 6e-8; errors of
    # either sign, and the chain forgets them.
    np.testing.assert_allclose(rough.visits, exact.visits, rtol=1e-5)
    np.testing.assert_allclose(rough.gates, exact.gates, rtol=1e-5)
    uses = jax.jit(jax.grad(lambda w: log_partition(circuit, w, evidence)))(narrow.log_weights)
    assert np.isfinite(uses).all()
    np.testing.assert_allclose(uses, exact.edge_probs, rtol=2e-5)


def test_fifteen_hundred_variables_in_float32():
    variables = 1500
    b = CircuitBuilder([2] * variables)
    rng = np.random.default_rng(0)
    parts = [
        b.product(
            [
                b.sum([b.indicator(v, t) for t in (0, 1)], np.log(rng.dirichlet([1, 1])))
                for v in range(variables)
            ]
        )
        for _ in range(4)
    ]
    model = b.build(b.sum(parts), dtype=jnp.float32)
    rows = rng.integers(0, 2, variables)
    evidence, _ = model.circuit.evidence_from_data(rows, np.float32)
    got = sweep(model.circuit, model.log_weights, evidence)
    # the probability itself is far below the smallest float
    assert -3000 < float(got.log_partition) < -500
    # by hand: a mixture of four products
    weights = np.asarray(model.log_weights, np.float64)[:-4].reshape(4, variables, 2)
    parts = weights[:, np.arange(variables), rows].sum(axis=1) - np.log(4)
    wanted = parts.max() + np.log(np.exp(parts - parts.max()).sum())
    np.testing.assert_allclose(got.log_partition, wanted, rtol=1e-6)
    seen = np.asarray(got.marginals[0])[np.arange(variables), rows]
    # Shares of numbers below 20, the sums of what is left of 1,500 logarithms without integers.
    np.testing.assert_allclose(seen, 1.0, atol=1e-5)


def test_shares_of_large_numbers_in_float32():
    # Two products of 400 factors, each of size 3, that differ little: 1,200 nats and a share of
    # one half, which numbers of that size, 1e-4 apart, would not give to five digits.
    rng = np.random.default_rng(2)
    b = CircuitBuilder([2] * 400)
    steps = rng.uniform(2.5, 3.5, (2, 400)).astype(np.float32)
    steps[1, 0] += np.float32(steps[0].astype(float).sum() - steps[1].astype(float).sum() + 0.3)
    parts = [
        b.product([b.sum([b.indicator(v, t) for t in (0, 1)], [w, w]) for v, w in enumerate(row)])
        for row in steps
    ]
    circuit, log_weights, _ = b.build(b.sum(parts, [0.0, 0.0]), dtype=jnp.float32)
    evidence = circuit.log_evidence(dtype=np.float32)
    got = jax.jit(lambda w: sweep(circuit, w, evidence))(log_weights)
    assert got.log_partition > 1000
    gap = np.diff(steps.astype(np.float64).sum(axis=1))[0]
    share = 1 / (1 + np.exp(gap))
    # Sums of 400 numbers below 1/2 in 32 bits: errors of a few 1e-6.
    np.testing.assert_allclose(got.gates[-2:], [share, 1 - share], rtol=1e-5)
    grad = jax.jit(jax.grad(lambda w: log_partition(circuit, w, evidence)))(log_weights)
    np.testing.assert_allclose(grad[-2:], [share, 1 - share], rtol=1e-5)
    # The second derivative of the log-partition is the variance of the choice.
    hessian = jax.hessian(lambda x: log_partition(circuit, log_weights.at[-1].add(x), evidence))
    zero = jnp.float32(0)
    np.testing.assert_allclose(jax.jit(hessian)(zero), share * (1 - share), rtol=1e-5)


def test_enumeration_agrees_with_the_plain_sweep():
    # the oracles themselves: parses against node values
    model = random_circuit(0)
    evidence = random_evidence(3, model.circuit.cardinalities)
    exact, joint = enumerate_exact(model, evidence), enumerate_joint(model, evidence)
    np.testing.assert_allclose(np.log(joint.sum()), exact.log_partition, atol=1e-12)
    nodes, parameters = as_nodes(model)
    got = circuit_sweep.marginals(nodes, parameters, [np.exp(e) for e in evidence])
    for a, b in zip(got, exact.marginals, strict=True):
        np.testing.assert_allclose(a, b, **EXACT)
