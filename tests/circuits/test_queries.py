"""Queries on the explicit circuit, each against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax
from klprojax.circuits import (
    Bernoulli,
    Binomial,
    Categorical,
    CircuitBuilder,
    CircuitModel,
    Gaussian,
    _properties,
    compile_model,
    entropy,
    expected_values,
    is_deterministic,
    is_structured,
    kl_divergence,
    log_inner_product,
    log_likelihood,
    log_partition,
    mpe,
    multiply,
    sample,
    sweep,
)

from ._circuits import enumerate_joint, random_circuit, random_evidence

EXACT = {"rtol": 0.0, "atol": 1e-12}  # sums of a few hundred terms


def table_leaf(b, rng, v):
    c = b.cardinalities[v]
    if c == 2 and rng.random() < 0.5:
        return b.leaf(v, Bernoulli(), rng.normal())
    if rng.random() < 0.5:
        return b.leaf(v, Binomial(), rng.normal())
    return b.leaf(v, Categorical(), rng.normal(size=c))


LEAFY = random_circuit(6, (2, 3, 2), leaf=table_leaf)
FAMILIES = {type(g.family) for g in LEAFY.circuit.groups}


def compiled(seed, cards=(2, 3, 2, 2)):
    """A deterministic circuit: a random loopy model, compiled."""
    rng = np.random.default_rng(seed)
    n = len(cards)
    scopes = tuple((v, (v + 1) % n) for v in range(n))
    tables = tuple(rng.normal(size=tuple(cards[u] for u in s)) for s in scopes)
    return compile_model(
        klprojax.DiscreteModel(cardinalities=cards, scopes=scopes, log_tables=tables)
    )


def once(query, circuit, *arrays, **options):
    """A query, compiled."""
    return jax.jit(lambda *arrays: query(circuit, *arrays, **options))(*arrays)


def test_log_likelihood():
    circuit, log_weights, parameters = LEAFY
    joint = enumerate_joint(LEAFY)
    joint /= joint.sum()
    rows = np.array(list(itertools.product(*(range(-1, c) for c in (2, 3, 2)))))

    def probability(row):
        index = tuple(slice(None) if t < 0 else t for t in row)
        return joint[index].sum()

    wanted = np.log([probability(row) for row in rows])
    for size in (5, 1024):  # in pieces, the last one short, and at once
        got = log_likelihood(
            circuit, log_weights, rows, leaf_parameters=parameters, batch_size=size
        )
        np.testing.assert_allclose(got, wanted, **EXACT)
    given = np.array([-1, 2, -1])
    free = rows[:, 1] < 0
    both = np.where(rows[free] < 0, given, rows[free])
    wanted = np.log([probability(row) for row in both]) - np.log(probability(given))
    got = log_likelihood(circuit, log_weights, rows[free], given=given, leaf_parameters=parameters)
    np.testing.assert_allclose(got, wanted, **EXACT)


def test_log_likelihood_gradient():
    circuit, log_weights, _ = random_circuit(1)
    rows = np.array([[0, 1, -1, 1], [1, -1, 0, 0]])

    def total(w):
        return jnp.sum(log_likelihood(circuit, w, rows))

    tables, _ = circuit.evidence_from_data(rows)
    uses = jax.jit(jax.vmap(lambda e: sweep(circuit, log_weights, e).edge_probs))
    wanted = np.asarray(uses(tables)).sum(0)
    wanted -= 2 * np.asarray(once(sweep, circuit, log_weights).edge_probs)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(log_weights), wanted, **EXACT)


def test_log_likelihood_refusals_and_zeros():
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    circuit, log_weights, _ = b.build(b.sum([b.product([x[0][t], x[1][t]]) for t in (0, 1)]))
    got = log_likelihood(circuit, log_weights, np.array([[0, 1], [1, 1]]))
    np.testing.assert_allclose(np.exp(got), [0.0, 0.5], **EXACT)
    got = log_likelihood(circuit, log_weights, np.array([[-1, 0]]), given=np.array([1, -1]))
    assert got[0] == -np.inf
    with pytest.raises(ValueError, match="states 0 for variable 0, but given states 1"):
        log_likelihood(circuit, log_weights, np.array([[0, 0]]), given=np.array([1, -1]))
    with pytest.raises(ValueError, match=r"expected \[rows, variables\]"):
        log_likelihood(circuit, log_weights, np.array([0, 0]))
    with pytest.raises(ValueError, match="batch_size is 0"):
        log_likelihood(circuit, log_weights, np.array([[0, 0]]), batch_size=0)


def test_leaf_families():
    assert {Bernoulli, Binomial, Categorical} <= FAMILIES
    # tables of the families, by their definitions
    theta = 0.7
    p = 1 / (1 + np.exp(-theta))
    parameters = jnp.asarray([theta])
    np.testing.assert_allclose(np.exp(Bernoulli().log_table(parameters, 2)), [[1 - p, p]], **EXACT)
    np.testing.assert_allclose(
        np.exp(Binomial().log_table(parameters, 4)),
        [[(1 - p) ** 3, 3 * p * (1 - p) ** 2, 3 * p**2 * (1 - p), p**3]],
        **EXACT,
    )
    natural = Gaussian.natural(jnp.asarray([1.5]), jnp.asarray([0.5]))
    density = Gaussian().log_density(natural, jnp.asarray([0.8]))
    wanted = -((0.8 - 1.5) ** 2) / (2 * 0.25) - np.log(0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, [wanted], **EXACT)
    np.testing.assert_allclose(Gaussian().mean(natural), [1.5], **EXACT)
    np.testing.assert_allclose(
        Gaussian().entropy(natural), [np.log(0.5 * np.sqrt(2 * np.pi * np.e))], **EXACT
    )


def test_determinism():
    assert is_deterministic(compiled(0).circuit)
    assert not is_deterministic(random_circuit(0).circuit)
    assert not is_deterministic(LEAFY.circuit)
    # parity of two variables against its complement: no single variable tells them apart
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    even = b.sum([b.product([x[0][t], x[1][t]]) for t in (0, 1)])
    odd = b.sum([b.product([x[0][t], x[1][1 - t]]) for t in (0, 1)])
    assert is_deterministic(b.build(b.sum([even, odd])).circuit)
    assert not is_deterministic(b.build(b.sum([even, b.sum([odd, even])])).circuit)
    # products of one child on the way, on one side only
    wrapped = b.sum([b.product([b.product([x[0][t]]), x[1][t]]) for t in (0, 1)])
    assert is_deterministic(b.build(b.sum([wrapped, odd])).circuit)
    assert not is_deterministic(b.build(b.sum([wrapped, even])).circuit)
    # products that split three variables differently are not compared: undecided
    b = CircuitBuilder([2, 2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1, 2)]

    def parity(u, v, odd):
        return b.sum([b.product([x[u][t], x[v][t ^ odd]]) for t in (0, 1)])

    one = b.product([parity(0, 1, 0), b.sum(x[2])])
    other = b.product([b.sum(x[0]), parity(1, 2, 1)])
    assert not is_deterministic(b.build(b.sum([one, other])).circuit)


@pytest.mark.parametrize("limit", ["_MOST_PAIRS", "_MOST_JOINT"])
def test_determinism_is_not_claimed_beyond_the_work_it_may_take(monkeypatch, limit):
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    even, odd = (b.sum([b.product([x[0][t], x[1][t ^ s]]) for t in (0, 1)]) for s in (0, 1))
    circuit = b.build(b.sum([even, odd])).circuit
    assert is_deterministic(circuit)
    monkeypatch.setattr(_properties, limit, 0)
    assert not is_deterministic(circuit)


def test_structured():
    assert is_structured(compiled(0).circuit)
    b = CircuitBuilder([2, 2, 2])
    s = [b.sum([b.indicator(v, t) for t in (0, 1)]) for v in range(3)]
    left = b.product([s[0], b.product([s[1], s[2]])])
    right = b.product([b.product([s[0], s[1]]), s[2]])
    assert is_structured(b.build(left).circuit)
    assert not is_structured(b.build(b.sum([left, right])).circuit)


def test_mpe_of_deterministic_circuits():
    circuit, log_weights, parameters = compiled(0)
    find = jax.jit(lambda w, e: mpe(circuit, w, e))
    for seed in range(18):
        rng = np.random.default_rng(seed)
        weights = log_weights * 0 + rng.normal(size=circuit.num_weights) / 2
        evidence = random_evidence(seed, circuit.cardinalities, zeros=0.2)
        if seed % 2:  # without evidence greedy choices by sums fail on some of these
            evidence = [0 * np.maximum(table, 0) for table in evidence]
        joint = enumerate_joint(CircuitModel(circuit, weights, parameters), evidence)
        got = find(weights, circuit.pack_variables(evidence))
        assert got.exact
        assert tuple(got.states.tolist()) == np.unravel_index(np.argmax(joint), joint.shape)
        np.testing.assert_allclose(got.log_value, np.log(joint.max()), **EXACT)


def test_mpe_of_other_circuits():
    circuit, log_weights, parameters = random_circuit(1)
    find = jax.jit(lambda w: mpe(circuit, w))
    found, climbed = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        weights = log_weights * 0 + rng.normal(size=circuit.num_weights) * rng.choice([0.3, 1, 2])
        joint = enumerate_joint(CircuitModel(circuit, weights, parameters))
        got = find(weights)
        assert not got.exact
        states = tuple(got.states.tolist())
        # the value is that of the state, and no single change improves it
        np.testing.assert_allclose(got.log_value, np.log(joint[states]), **EXACT)
        for v, c in enumerate(circuit.cardinalities):
            for t in range(c):
                assert joint[(*states[:v], t, *states[v + 1 :])] <= joint[states] * (1 + 1e-12)
        found.append(joint[states] >= joint.max() * (1 - 1e-12))
        climbed.append(int(got.steps) > 0)
    # a search, not a promise; these thirty are fixed, and several need the climb
    assert sum(found) >= 28
    assert sum(climbed) >= 3
    start = once(mpe, circuit, weights, max_steps=0)
    assert int(start.steps) == 0


def test_mpe_of_a_mixture():
    # The heaviest parse is not the answer: light components agree on state (1, 1).
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    pure = b.product([x[0][0], x[1][0]])
    mixed = [
        b.product([b.sum(x[0], np.log([0.25, 0.75])), b.sum(x[1], np.log([0.25, 0.75]))])
        for _ in range(4)
    ]
    model = b.build(b.sum([pure, *mixed], np.log([0.28, 0.18, 0.18, 0.18, 0.18])))
    joint = enumerate_joint(model)
    assert joint.argmax() == 3
    got = once(mpe, model.circuit, model.log_weights)
    assert got.states.tolist() == [1, 1]
    with pytest.raises(ValueError, match="max_steps is -1"):
        mpe(model.circuit, model.log_weights, max_steps=-1)


def test_samples():
    circuit, log_weights, parameters = LEAFY
    evidence = random_evidence(2, circuit.cardinalities, zeros=0.3)
    joint = enumerate_joint(LEAFY, evidence)
    joint /= joint.sum()
    count = 5000
    rows = sample(
        circuit,
        log_weights,
        jax.random.key(0),
        count,
        circuit.pack_variables(evidence),
        leaf_parameters=parameters,
    )
    assert rows.dtype == jnp.int32
    seen = np.zeros(joint.shape)
    np.add.at(seen, tuple(np.asarray(rows).T), 1)
    assert (seen[joint == 0] == 0).all()
    # five standard deviations of a frequency, for each of 12 cells
    spread = 5 * np.sqrt(joint * (1 - joint) / count)
    assert (np.abs(seen / count - joint) <= spread).all()
    fixed = circuit.log_evidence({1: 2})
    rows = sample(circuit, log_weights, jax.random.key(1), count, fixed, leaf_parameters=parameters)
    assert (np.asarray(rows)[:, 1] == 2).all()
    with pytest.raises(ValueError, match="num_samples is 0"):
        sample(circuit, log_weights, jax.random.key(1), 0)


def gaussians():
    b = CircuitBuilder([2, 0])
    parts = [
        b.product([b.indicator(0, t), b.leaf(1, Gaussian(), Gaussian.natural(
            jnp.asarray([mean]), jnp.asarray([deviation]))[0])])
        for t, (mean, deviation) in enumerate(((-1.0, 0.5), (2.0, 1.5)))
    ]  # fmt: skip
    return b.build(b.sum(parts, np.log([0.4, 0.6])))


def test_continuous_variables():
    circuit, log_weights, parameters = gaussians()
    rows = np.array([[np.nan, 0.3], [1.0, np.nan], [0.0, -0.7], [np.nan, np.nan]])

    def density(x, mean, deviation):
        return np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))

    parts = [0.4 * density(0.3, -1.0, 0.5), 0.6 * density(0.3, 2.0, 1.5)]
    wanted = [sum(parts), 0.6, 0.4 * density(-0.7, -1.0, 0.5), 1.0]
    got = log_likelihood(circuit, log_weights, rows, leaf_parameters=parameters)
    np.testing.assert_allclose(np.exp(got), wanted, **EXACT)
    swept = once(sweep, circuit, log_weights, leaf_parameters=parameters, values=jnp.asarray([0.3]))
    np.testing.assert_allclose(swept.marginals[0][0], np.array(parts) / sum(parts), **EXACT)
    means = once(expected_values, circuit, log_weights, leaf_parameters=parameters)
    np.testing.assert_allclose(means, [0.6, 0.4 * -1.0 + 0.6 * 2.0], **EXACT)
    seen = once(
        expected_values,
        circuit,
        log_weights,
        leaf_parameters=parameters,
        values=jnp.asarray([0.3]),
    )
    np.testing.assert_allclose(seen, [parts[1] / sum(parts), 0.3], **EXACT)
    total = once(entropy, circuit, log_weights, leaf_parameters=parameters)
    by_hand = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))
    by_hand += np.log(np.sqrt(2 * np.pi * np.e)) + 0.4 * np.log(0.5) + 0.6 * np.log(1.5)
    np.testing.assert_allclose(total, by_hand, **EXACT)
    best = once(mpe, circuit, log_weights, leaf_parameters=parameters)
    assert (best.states.tolist(), best.values.tolist()) == ([0, 0], [-1.0])
    drawn = jax.jit(lambda w, k: sample(circuit, w, k, 4000, leaf_parameters=parameters))
    draws = np.asarray(drawn(log_weights, jax.random.key(0)))
    for t, mean, deviation in ((0, -1.0, 0.5), (1, 2.0, 1.5)):
        own = draws[draws[:, 0] == t, 1]
        # five standard errors
        assert abs(own.mean() - mean) < 5 * deviation / np.sqrt(len(own))
    slope = jax.grad(
        lambda v: log_partition(circuit, log_weights, leaf_parameters=parameters, values=v)
    )
    gradient = jax.jit(slope)(jnp.asarray([jnp.nan]))
    assert (np.asarray(gradient) == 0).all()  # a missing value has no slope, and no NaN


def test_entropy_and_divergence():
    one, two = compiled(0), compiled(1)
    circuit = one.circuit
    assert two.circuit == circuit
    p, q = (enumerate_joint(m) for m in (one, two))
    p, q = p / p.sum(), q / q.sum()
    found = once(entropy, circuit, one.log_weights)
    np.testing.assert_allclose(found, -np.sum(p * np.log(p)), **EXACT)
    np.testing.assert_allclose(
        once(kl_divergence, circuit, one.log_weights, two.log_weights),
        np.sum(p * np.log(p / q)),
        **EXACT,
    )
    evidence = random_evidence(0, circuit.cardinalities, zeros=0.3)
    r = enumerate_joint(one, evidence)
    r = r[r > 0] / r.sum()
    np.testing.assert_allclose(
        once(entropy, circuit, one.log_weights, circuit.pack_variables(evidence)),
        -np.sum(r * np.log(r)),
        **EXACT,
    )
    for query in (entropy, lambda c, w: kl_divergence(c, w, w)):
        with pytest.raises(ValueError, match="not shown to be deterministic"):
            query(LEAFY.circuit, LEAFY.log_weights)


def test_information_of_table_leaves():
    b = CircuitBuilder([2, 3])
    parts = [b.product([b.indicator(0, t), b.leaf(1)]) for t in (0, 1)]
    circuit, log_weights, _ = b.build(b.sum(parts, np.log([0.3, 0.7])))
    rng = np.random.default_rng(0)
    ours, theirs = (
        tuple(jnp.asarray(rng.normal(size=s)) for s in circuit.parameter_shapes) for _ in range(2)
    )
    p, q = (
        enumerate_joint(CircuitModel(circuit, w, t))
        for w, t in ((log_weights, ours), (log_weights * 0, theirs))
    )
    p, q = p / p.sum(), q / q.sum()
    np.testing.assert_allclose(
        once(entropy, circuit, log_weights, leaf_parameters=ours),
        -np.sum(p * np.log(p)),
        **EXACT,
    )
    got = once(
        kl_divergence,
        circuit,
        log_weights,
        log_weights * 0,
        leaf_parameters=ours,
        other_leaf_parameters=theirs,
    )
    np.testing.assert_allclose(got, np.sum(p * np.log(p / q)), **EXACT)
    means = once(expected_values, circuit, log_weights, leaf_parameters=ours)
    np.testing.assert_allclose(means, [p[1].sum(), p.sum(axis=0) @ [0, 1, 2]], **EXACT)


def test_products():
    one, two = compiled(0), compiled(1)
    both = multiply(one, two)
    wanted = enumerate_joint(one) * enumerate_joint(two)
    np.testing.assert_allclose(enumerate_joint(both), wanted, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_inner_product(one, two)), wanted.sum(), rtol=1e-12)
    # leaves of several families, and sums on one side only
    b = CircuitBuilder([2, 3])
    pair = b.product([b.leaf(0, Bernoulli(), 0.3), b.leaf(1, Categorical(), [0.1, -np.inf, 0.5])])
    leafy = b.build(pair)
    b = CircuitBuilder([2, 3])
    parts = [
        b.product([b.indicator(0, t), b.sum([b.indicator(1, s) for s in range(3)])]) for t in (0, 1)
    ]
    flat = b.build(b.sum(parts, np.log([0.2, 1.7])))
    for first, second in ((leafy, flat), (flat, leafy), (leafy, leafy)):
        np.testing.assert_allclose(
            enumerate_joint(multiply(first, second)),
            enumerate_joint(first) * enumerate_joint(second),
            rtol=1e-12,
        )


def test_product_refusals():
    one = compiled(0)
    with pytest.raises(ValueError, match="they must have the same variables"):
        multiply(one, compiled(0, (2, 2, 2)))
    with pytest.raises(ValueError, match="more than max_nodes=10"):
        multiply(one, one, max_nodes=10)
    with pytest.raises(ValueError, match="Leaf node 1 is continuous"):
        multiply(gaussians(), gaussians())

    def nested(left):
        b = CircuitBuilder([2, 2, 2])
        s = [b.sum([b.indicator(v, t) for t in (0, 1)]) for v in range(3)]
        inner = b.product([s[0], s[1]]) if left else b.product([s[1], s[2]])
        return b.build(b.product([inner, s[2]] if left else [s[0], inner]))

    with pytest.raises(ValueError, match="not compatible: product node"):
        multiply(nested(True), nested(False))

    def point(t):
        b = CircuitBuilder([2])
        return b.build(b.indicator(0, t))

    with pytest.raises(ValueError, match="zero at every joint state"):
        multiply(point(0), point(1))
