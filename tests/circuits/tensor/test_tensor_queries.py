"""Queries on tensor circuits against enumeration of the explicit circuit."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import log_likelihood
from klprojax.circuits.tensor import (
    TensorParameters,
    classify,
    factorised_mixture,
    hidden_markov,
    rat_spn,
)
from klprojax.circuits.tensor._parses import _drawn
from klprojax.circuits.tensor._plan import make_plan

from ._models import circuits, region_circuits

ALL = {
    "mixture": circuits()["mixture"],
    "shared": circuits()["shared"],
    "scanned": hidden_markov(11, 2, homogeneous=False),
    "braided": circuits()["braided"],
    "ragged": circuits()["ragged"],
    "uneven": region_circuits()["uneven"],
    "rat": region_circuits()["rat"],
}
# A few hundred roundings of numbers of size 10.
EXACT = {"rtol": 0.0, "atol": 1e-12}


def joint(circuit, parameters):
    """All joint states and their probabilities, by the explicit circuit."""
    states = np.array(list(itertools.product(*map(range, circuit.cardinalities))))
    model = circuit.to_circuit(parameters)
    log_p = log_likelihood(
        model.circuit, model.log_weights, states, leaf_parameters=model.leaf_parameters
    )
    return states, np.exp(np.asarray(log_p))


@functools.cache
def known(name):
    """A circuit, its parameters, all joint states and their probabilities."""
    parameters = ALL[name].init(4)
    return ALL[name], parameters, *joint(ALL[name], parameters)


def masks(circuit, seed=0, count=4):
    """Rows of evidence: nothing, everything and some."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, np.asarray(circuit.cardinalities), (count, circuit.num_variables))
    rows[rng.random(rows.shape) < 0.5] = -1
    rows[0] = -1
    rows[1] = rng.integers(0, np.asarray(circuit.cardinalities))
    return rows


def fits(states, row):
    """Which joint states agree with the known entries of a row."""
    return ((row < 0) | (states == row)).all(axis=1)


def test_what_is_scanned():
    def scan(name):
        (found,) = [s.scan for s in make_plan(ALL[name].structure).steps if s.scan is not None]
        return found

    assert scan("scanned").below is None
    assert scan("scanned").tables is None
    assert scan("braided").below is not None
    assert not scan("braided").in_order
    ragged = scan("ragged")
    assert ragged.tables is not None
    assert ragged.below is not None
    assert ragged.in_order
    # Padding: edges whose parent is past the last node, of both kinds.
    assert (ragged.tables.parents == 6).any()
    assert (ragged.below.parents == 6).any()


@pytest.mark.parametrize(
    "name",
    ["scanned", "uneven", *(pytest.param(n, marks=pytest.mark.slow) for n in ("shared", "ragged"))],
)
def test_likelihoods_of_any_kind(name):
    circuit, p, states, probs = known(name)
    rows = masks(circuit)
    wanted = [np.log(probs[fits(states, row)].sum()) for row in rows]
    np.testing.assert_allclose(circuit.log_likelihood(p, rows, batch_size=3), wanted, **EXACT)
    # Conditional: a variable asked for given what else the row knows.
    given = rows.copy()
    given[:, 1] = -1
    asked = np.full_like(rows, -1)
    asked[:, 1] = 1
    wanted = [
        np.log(probs[fits(states, a) & fits(states, g)].sum() / probs[fits(states, g)].sum())
        for a, g in zip(asked, given, strict=True)
    ]
    found = circuit.log_likelihood(p, asked, given=given)
    np.testing.assert_allclose(found, wanted, **EXACT)
    one = circuit.log_likelihood(p, asked, given=given[2])
    np.testing.assert_allclose(one, [wanted[2]] * len(rows), **EXACT)


def test_posteriors_and_expectations():
    circuit, p, states, probs = known("mixture")
    rows = masks(circuit, 1)
    means, tables = circuit.expected_values(p, rows), circuit.marginals(p, rows)
    for r, row in enumerate(rows):
        weight = probs * fits(states, row)
        weight = weight / weight.sum()
        np.testing.assert_allclose(means[r], weight @ states, **EXACT)
        for ids, table in zip(circuit.variables.members, tables, strict=True):
            for i, v in enumerate(ids):
                own = np.bincount(states[:, v], weights=weight, minlength=table.shape[2])
                np.testing.assert_allclose(table[r, i], own, **EXACT)
    soft = tuple(
        jnp.asarray(np.random.default_rng(3).normal(size=shape))
        for shape in circuit.variables.shapes((1,))
    )
    weight = probs.copy()
    for ids, table in zip(circuit.variables.members, soft, strict=True):
        for i, v in enumerate(ids):
            weight *= np.exp(np.asarray(table)[0, i])[states[:, v]]
    weight /= weight.sum()
    means = circuit.expected_values(p, log_evidence=soft)
    np.testing.assert_allclose(means[0], weight @ states, **EXACT)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixture", np.float64),
        ("uneven", np.float32),
        pytest.param("scanned", np.float64, marks=pytest.mark.slow),
    ],
)
def test_samples_follow_the_posterior(name, dtype):
    circuit, p, states, probs = known(name)
    p = jax.tree.map(lambda x: x.astype(dtype), p)
    rows = masks(circuit, 2)
    count = 4000
    drawn = np.asarray(circuit.sample(p, jax.random.key(0), count, rows))
    assert drawn.shape == (count, *rows.shape)
    for r, row in enumerate(rows):
        assert ((row < 0) | (drawn[:, r] == row)).all()
        weight = probs * fits(states, row)
        weight /= weight.sum()
        # Single variables and neighbouring pairs; five standard deviations of 4,000 draws.
        for v in range(circuit.num_variables - 1):
            for a, b in itertools.product(*map(range, circuit.cardinalities[v : v + 2])):
                here = (states[:, v] == a) & (states[:, v + 1] == b)
                share = (weight * here).sum()
                found = ((drawn[:, r, v] == a) & (drawn[:, r, v + 1] == b)).mean()
                assert abs(found - share) <= 5 * np.sqrt(share * (1 - share) / count) + 1e-12


def test_samples_are_independent_and_typed():
    circuit, p, _, probs = known("uneven")
    key = jax.random.key(1)
    free = circuit.sample(p, key, 500)
    assert free.shape == (500, 3)
    assert free.dtype == jnp.int32
    np.testing.assert_array_equal(free, circuit.sample(p, key, 500))
    assert (np.asarray(free) != np.asarray(circuit.sample(p, jax.random.key(2), 500))).any()
    # Draws of one row do not depend on each other: successive equal pairs are as rare as they
    # should be, within five standard deviations.
    share = (probs**2).sum()
    same = (np.asarray(free[1:]) == np.asarray(free[:-1])).all(1).mean()
    assert abs(same - share) < 5 * np.sqrt(share * (1 - share) / 499)
    soft = tuple(
        jnp.full(shape, -jnp.inf).at[:, :, -1].set(0.0) for shape in circuit.variables.shapes((2,))
    )
    last = circuit.sample(p, key, 500, log_evidence=soft)
    assert (np.asarray(last) == np.asarray(circuit.cardinalities) - 1).all()


def test_samples_never_use_zero_weights():
    circuit = ALL["mixture"]
    p = circuit.init(0)
    block = circuit.structure.input_blocks[circuit.structure.variables.index(1)]
    p = TensorParameters(
        p.log_weights.at[:, 0, 1].set(-jnp.inf),
        p.log_inputs.at[block, :, 1].set(-jnp.inf),
        p.log_root,
    ).normalize()
    drawn = np.asarray(circuit.sample(p, jax.random.key(0), 4000, np.full((4, 6), -1)))
    log_p = np.asarray(circuit.log_likelihood(p, drawn.reshape(-1, 6)))
    assert np.isfinite(log_p).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixture", np.float64),
        ("uneven", np.float32),
        pytest.param("scanned", np.float64, marks=pytest.mark.slow),
    ],
)
def test_explanations(name, dtype):
    circuit, p, states, probs = known(name)
    p = jax.tree.map(lambda x: x.astype(dtype), p)
    rows = masks(circuit, 3, count=40)
    got = circuit.mpe(p, rows)
    assert not got.exact
    assert got.log_value.dtype == dtype
    # Numbers of size 15, a dozen roundings.
    close = {"rtol": 0, "atol": 1e-12 if dtype == np.float64 else 2e-5}
    index = {tuple(s): i for i, s in enumerate(states.tolist())}
    best, answers, values = 0, np.asarray(got.states), np.asarray(got.log_value)
    for r, row in enumerate(rows):
        found = answers[r]
        assert fits(found[None], row).all()
        here = probs[index[tuple(found.tolist())]]
        np.testing.assert_allclose(values[r], np.log(here), **close)
        # No change of one variable that the evidence leaves free is better.
        for v in np.flatnonzero(row < 0):
            for t in range(circuit.cardinalities[v]):
                other = found.copy()
                other[v] = t
                assert probs[index[tuple(other.tolist())]] <= here * (1 + 1e-5)
        best += here >= (probs * fits(states, row)).max() * (1 - 1e-5)
    # Not promised, but of these rows most are found.
    assert best >= 36


def test_explanations_where_they_are_exact():
    circuit = rat_spn((2, 3, 2, 4), 1, depth=1, repetitions=1)
    p = circuit.init(0)
    states, probs = joint(circuit, p)
    rows = masks(circuit, 5)
    got = circuit.mpe(p, rows)
    assert got.exact
    assert not got.steps.any()
    for r, row in enumerate(rows):
        allowed = probs * fits(states, row)
        np.testing.assert_array_equal(got.states[r], states[allowed.argmax()])
        np.testing.assert_allclose(got.log_value[r], np.log(allowed.max()), **EXACT)


def test_explanations_climb():
    circuit, p, *_ = known("mixture")
    rng = np.random.default_rng(3)
    rows = rng.integers(0, np.asarray(circuit.cardinalities), (40, circuit.num_variables))
    rows[rng.random(rows.shape) < 0.7] = -1
    got, still = circuit.mpe(p, rows), circuit.mpe(p, rows, max_steps=0)
    assert not still.steps.any()
    gains = np.asarray(got.log_value - still.log_value)
    # Some of these rows have neither start at a maximum; their gains are far above rounding.
    assert (gains > 0.01).sum() >= 2
    assert (gains >= 0).all()
    assert not gains[got.steps == 0].any()


def test_explanations_start_from_parse_and_marginals():
    # The best parse, of weight 0.2, is at (0, 0), which no single change improves; three
    # components of 0.12 agree on (1, 1).
    circuit = factorised_mixture((3, 3), 4)
    each = jnp.array([[0.9, 0.05, 0.05], *[[0.02, 0.7, 0.28]] * 3])
    p = TensorParameters(
        jnp.zeros((0, 4, 4)), jnp.log(jnp.stack([each, each])), jnp.full((1, 4), -np.log(4.0))
    )
    free = np.full((1, 2), -1)
    np.testing.assert_array_equal(circuit.mpe(p, free).states, [[1, 1]])
    # With 0.05 in the place of 0.7 for component 1 to 3 the parse is right, the marginals are not.
    each = jnp.array([[0.9, 0.05, 0.05], [0.02, 0.7, 0.28], [0.02, 0.6, 0.38], [0.02, 0.28, 0.7]])
    p = TensorParameters(p.log_weights, jnp.log(jnp.stack([each, each[::-1]])), p.log_root)
    states, probs = joint(circuit, p)
    got = circuit.mpe(p, free)
    np.testing.assert_array_equal(got.states[0], states[probs.argmax()])
    soft = (jnp.zeros((1, 2, 3)).at[0, 0, 0].set(50.0),)
    assert int(circuit.mpe(p, log_evidence=soft).states[0, 0]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "mixture",
        "scanned",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("ragged", "braided")),
        "rat",
    ],
)
def test_classification(name):
    circuit, p, states, probs = known(name)
    rows = masks(circuit, 6)
    for variable in (0, 1):
        found = classify(circuit, p, rows, variable, batch_size=3)
        assert found.shape == (len(rows), circuit.cardinalities[variable])
        for r, row in enumerate(rows):
            rest = row.copy()
            rest[variable] = -1
            weight = probs * fits(states, rest)
            own = np.bincount(states[:, variable], weights=weight)
            np.testing.assert_allclose(found[r], np.log(own / own.sum()), **EXACT)
    scaled = TensorParameters(p.log_weights, p.log_inputs, p.log_root + 5.0, p.log_mixing)
    np.testing.assert_allclose(classify(circuit, scaled, rows, 1), found, **EXACT)


def test_classification_of_impossible_rows_and_gradients():
    circuit = factorised_mixture((2, 2, 3), 2)
    p = circuit.init(0)
    p = TensorParameters(p.log_weights, p.log_inputs.at[0, :, 1].set(-jnp.inf), p.log_root)
    rows = np.array([[1, 0, 0], [0, 1, -1]])
    found = classify(circuit, p, rows, 2)
    assert np.isneginf(found[0]).all()
    np.testing.assert_allclose(np.exp(found[1]).sum(), 1.0, **EXACT)
    grad = jax.jit(jax.grad(lambda p: classify(circuit, p, rows, 2)[1, 0]))(p)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))
    assert np.isneginf(circuit.log_likelihood(p, rows[:1], given=np.array([1, -1, -1]))[0])
    assert not circuit.expected_values(p, rows)[0].any()


def test_faults():
    circuit = ALL["uneven"]
    p = circuit.init(0)
    rows = np.zeros((2, 3), int)
    for call, match in (
        (lambda: classify(circuit, p, rows, 3), "variable 3"),
        (lambda: classify(circuit, p, rows[:, :2], 0), "data has shape"),
        (lambda: circuit.sample(p, jax.random.key(0), 0), "num_samples is 0"),
        (lambda: circuit.mpe(p, rows, max_steps=-1), "max_steps is -1"),
        (lambda: circuit.mpe(p), "either rows or log_evidence"),
        (lambda: circuit.log_likelihood(p, rows, given=rows + 1), "leave one of them missing"),
        (lambda: circuit.log_likelihood(p, rows[:0], given=rows, batch_size=0), "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize("noise", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_a_draw_at_the_end_of_the_interval_is_a_possible_term(noise):
    """Uniform numbers may be 0: the first and the last term are impossible, and never drawn."""
    log_values = jnp.asarray([-np.inf, 0.0, -1.0, -np.inf]).reshape(1, 4, 1)
    log_weights = jnp.zeros((1, 1, 4))
    drawn = jax.grad(lambda values: jnp.sum(_drawn(log_weights, values, jnp.full((1, 1), noise))))(
        log_values
    )
    # Shares 1 and 0.37 of 1.37: a half falls on the first of them.
    assert np.flatnonzero(drawn).tolist() == [2 if noise > 0.9 else 1]
