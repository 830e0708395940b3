"""EM is the alternating KL projection: monotone, with a closed form, the same in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits.learning import AdamStep, EMStep, em_step, maximize
from klprojax.circuits.tensor import (
    TensorModel,
    TensorParameters,
    factorised_mixture,
    hclt,
    hidden_markov,
)

CARDS = (2, 3, 2, 2)


def data(seed=0, rows=60, missing=0.0):
    """Dependent columns, some entries missing."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 3, size=(rows, 1))
    out = (hidden + rng.integers(0, 2, size=(rows, len(CARDS)))) % np.asarray(CARDS)
    out[rng.random(out.shape) < missing] = -1
    return out


@pytest.mark.parametrize(
    "circuit",
    [hclt(data(), 3, components=2, cardinalities=CARDS), hidden_markov(4, 3, cardinality=3)],
    ids=["hclt", "chain"],
)
def test_full_batch_em_never_falls(circuit):
    rows = jnp.asarray(data(missing=0.2))
    step = jax.jit(lambda p: em_step(circuit, p, rows))
    p, values = circuit.init(0), []
    for _ in range(25):
        p, value = step(p)
        values.append(float(value))
    # Rounding of a mean of numbers of size 3.
    assert (np.diff(values) > -1e-13).all()
    assert values[-1] > values[0] + 0.05
    assert abs(float(circuit.log_partition(p))) < 1e-12


def test_one_unit_is_fitted_in_one_step():
    rows = data(missing=0.3)
    circuit = factorised_mixture(CARDS, 1)
    p, _ = em_step(circuit, circuit.init(0), jnp.asarray(rows))
    p, _ = em_step(circuit, p, jnp.asarray(rows))
    for v, card in enumerate(CARDS):
        seen = rows[:, v][rows[:, v] >= 0]
        share = np.bincount(seen, minlength=card) / len(seen)
        gap = np.abs(np.exp(p.log_inputs[v, 0, :card]) - share).max()
        # Two steps: the missing entries (30%) contract the error by that much a step.
        assert gap < 0.3**2
        complete = rows[(rows >= 0).all(1)]
    q, _ = em_step(circuit, circuit.init(0), jnp.asarray(complete))
    for v, card in enumerate(CARDS):
        share = np.bincount(complete[:, v], minlength=card) / len(complete)
        np.testing.assert_allclose(np.exp(q.log_inputs[v, 0, :card]), share, rtol=0, atol=1e-14)


def test_maximize_by_hand():
    circuit = hidden_markov(2, 2, cardinality=2)
    old = circuit.init(0)
    flows = TensorParameters(
        jnp.array([[[3.0, 1.0], [0.0, 0.0]]]), jnp.array([[[2.0, 0.0], [5.0, 5.0]]]),
        jnp.array([[0.5, 1.5]]),
    )  # fmt: skip
    new = maximize(circuit, flows, old)
    np.testing.assert_allclose(np.exp(new.log_weights[0, 0]), [0.75, 0.25], rtol=1e-15)
    # Nothing reached the second sum: it stays.
    np.testing.assert_array_equal(new.log_weights[0, 1], old.log_weights[0, 1])
    assert np.isneginf(new.log_inputs[0, 0, 1])
    np.testing.assert_allclose(np.exp(new.log_root[0]), [0.25, 0.75], rtol=1e-15)
    soft = maximize(circuit, flows, old, pseudocount=2.0)
    np.testing.assert_allclose(
        np.exp(soft.log_weights[0]), [[4 / 6, 2 / 6], [0.5, 0.5]], rtol=1e-15
    )
    np.testing.assert_allclose(np.exp(soft.log_inputs[0, 0]), [0.75, 0.25], rtol=1e-15)
    np.testing.assert_allclose(np.exp(soft.log_root[0]), [1.5 / 4, 2.5 / 4], rtol=1e-15)


def test_states_that_do_not_exist_get_no_pseudocount():
    circuit = hclt(data(), 2, cardinalities=CARDS)
    p, _ = em_step(circuit, circuit.init(0), jnp.asarray(data()), pseudocount=1.0)
    for block, card in enumerate(circuit.structure.input_cardinalities):
        assert np.isneginf(p.log_inputs[block, :, card:]).all()
        assert np.isfinite(p.log_inputs[block, :, :card]).all()


def test_running_average_of_flows():
    circuit = hclt(data(), 2, cardinalities=CARDS)
    step = EMStep(step_size=0.25, final_step_size=0.25, pseudocount=0.5, softening=0.0)
    first, second = jnp.asarray(data(1, rows=20)), jnp.asarray(data(2, rows=20))
    weights = jnp.r_[jnp.ones(15), jnp.zeros(5)]
    step = step.at(0, 1, 60)
    model = TensorModel(circuit, circuit.init(0))
    state = step.init(model)
    _, f1 = circuit.flows(model.parameters, first[:15])
    model, state, _ = step.update(model, state, first, None, weights, None)
    _, f2 = circuit.flows(model.parameters, second)
    model, state, info = step.update(model, state, second, None, jnp.ones(20), None)
    # Flows are scaled to 60 rows; a plain mean over rows so far: 20/35 is more than 0.25.
    wanted = jax.tree.map(lambda a, b: (a + b) * (60 / 35), f1, f2)
    for a, b in zip(jax.tree.leaves(state.flows), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        model.parameters.log_root,
        maximize(circuit, wanted, model.parameters, 0.5).log_root,
        rtol=0, atol=1e-13,
    )  # fmt: skip
    # From then on the step size decides; 5 of 20 rows have a quarter of it.
    state = state._replace(seen=jnp.asarray(1e6))
    values, f3 = circuit.flows(model.parameters, second[:5])
    before = state.flows
    few = jnp.r_[jnp.ones(5), jnp.zeros(15)]
    _, state, info = step.update(model, state, second, None, few, None)
    np.testing.assert_allclose(info.loss, -np.mean(values), rtol=1e-14)
    wanted = jax.tree.map(lambda a, b: a * (15 / 16) + b * (12 / 16), before, f3)
    for a, b in zip(jax.tree.leaves(state.flows), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_schedules():
    em = EMStep(step_size=0.8, final_step_size=0.2)
    np.testing.assert_allclose([em.size(e, 3) for e in range(3)], [0.8, 0.4, 0.2])
    adam = AdamStep(learning_rate=0.1, final_learning_rate=0.001)
    np.testing.assert_allclose([adam.size(e, 3) for e in range(3)], [0.1, 0.01, 0.001])
    assert em.size(0, 1) == 0.8


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: EMStep(step_size=0.0), "step_size is 0.0"),
        (lambda: EMStep(final_step_size=1.5), "final_step_size is 1.5"),
        (lambda: EMStep(pseudocount=-1.0), "pseudocount is -1.0"),
        (lambda: AdamStep(learning_rate=0.0), "learning_rate is 0.0"),
    ],
)
def test_faulty_settings(make, match):
    with pytest.raises(ValueError, match=match):
        make()
