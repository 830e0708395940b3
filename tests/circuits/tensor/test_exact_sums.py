"""Zeros and tiny terms in tensor circuits, and rounding along long chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import log_likelihood, sweep
from klprojax.circuits.learning import EMStep, em_step, fit
from klprojax.circuits.tensor import (
    TensorParameters,
    factorised_mixture,
    hclt,
    hidden_markov,
)
from klprojax.circuits.tensor._evaluate import wide
from klprojax.circuits.tensor._log_matmul import exact_log_matmul, log_matmul, weight_range

from ._models import CARDS, circuits, data, region_circuits

STEPS = {jnp.float32: 80, jnp.float64: 700}


def logs(table, dtype):
    """Logarithms of probabilities, -inf of 0."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(table)), dtype)


def left_to_right(dtype, steps=80):
    """A chain that may leave state 1 but not state 0, where it starts."""
    transition = [[1, 0], [0.5, 0.5]]
    emission = [[0.1, 0.9], [0.9, 0.1]]
    parameters = TensorParameters(
        *(logs(table, dtype) for table in ([transition], [emission], [[1, 0]]))
    )
    return hidden_markov(steps, 2), parameters


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
def test_left_to_right_chain(dtype):
    steps = STEPS[dtype]
    circuit, p = left_to_right(dtype, steps)
    rows = np.zeros((2, steps), np.int8)
    rows[1, 3] = -1
    # The chain stays in state 0, which emits 0 with probability .1. State 1 is more and more
    # likely beside it, so each step rounds a number that grows to the size of the result.
    eps = float(jnp.finfo(dtype).eps)
    total = steps * np.log(0.1)
    atol = steps * abs(total) * eps / 2
    values, flows = circuit.flows(p, rows)
    np.testing.assert_allclose(values, [total, total - np.log(0.1)], rtol=0, atol=atol)
    # Sums of as many flows as there are steps, each within `steps` roundings of 1.
    flow = {"rtol": 0, "atol": 4 * steps**2 * eps}
    np.testing.assert_allclose(flows.log_weights, [[[2 * steps - 2, 0], [0, 0]]], **flow)
    np.testing.assert_allclose(flows.log_inputs, [[[2 * steps - 0.9, 0.9], [0, 0]]], **flow)
    np.testing.assert_allclose(flows.log_root, [[2, 0]], **flow)
    (marginals,) = circuit.marginals(p, rows)
    seen = np.zeros((2, steps, 2))
    seen[..., 0] = 1
    seen[1, 3] = [0.1, 0.9]
    np.testing.assert_allclose(marginals, seen, rtol=0, atol=4 * steps * eps)
    new, mean = em_step(circuit, p, rows[:1])
    np.testing.assert_allclose(mean, total, rtol=0, atol=atol)
    np.testing.assert_allclose(np.exp(new.log_weights[0, 0]), [1, 0], rtol=0, atol=eps)
    np.testing.assert_allclose(np.exp(new.log_inputs[0, 0]), [1, 0], rtol=0, atol=eps)
    # In these parameters the chain has seen no 1: the other rows are impossible.
    assert np.isneginf(circuit.log_values(new, 1 - rows[:1])).all()


def test_left_to_right_chain_under_transformations():
    circuit, p = left_to_right(jnp.float32)
    rows = jnp.zeros((1, 80), jnp.int8)
    usual = circuit.init(0, dtype=jnp.float32)

    def value(p, rows=rows):
        return circuit.log_values(p, rows)[0]

    total = 80 * np.log(0.1)
    # 80 roundings of numbers up to 184, by at most 7.6e-6.
    rough = {"rtol": 0, "atol": 6e-4}
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), p, usual)
    mapped, grads = jax.jit(jax.vmap(jax.value_and_grad(value)))(both)
    np.testing.assert_allclose(mapped, [total, value(usual)], **rough)
    np.testing.assert_allclose(grads.log_weights[0], [[[79, 0], [0, 0]]], **rough)
    alone = jax.jit(jax.grad(value))(usual)
    np.testing.assert_allclose(grads.log_weights[1], alone.log_weights, **rough)
    ones = jax.tree.map(jnp.ones_like, p)
    _, slope = jax.jit(lambda p: jax.jvp(value, (p,), (ones,)))(p)
    np.testing.assert_allclose(slope, 160, **rough)  # 79 transitions, 80 emissions, one start
    # log S is linear where one parse is left: its second derivative is 0.
    second = jax.jit(lambda p: jax.jvp(jax.grad(value), (p,), (ones,))[1])
    for table in jax.tree.leaves(second(p)):
        np.testing.assert_allclose(table, 0, rtol=0, atol=1e-3)  # of numbers of 79


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)])
def test_soft_evidence_against_the_leaf(dtype):
    circuit = factorised_mixture((2, 2), 2)
    low = {jnp.float32: -80.0, jnp.float64: -1e4}[dtype]
    tables = np.zeros((2, 2, 2))
    tables[0] = [[0.0, 1.0], [0.5, 0.5]]  # variable 0: unit 0 allows state 1 only
    tables[1] = [[0.5, 0.5], [0.5, 0.5]]
    p = TensorParameters(jnp.zeros((0, 2, 2), dtype), logs(tables, dtype), logs([[1, 0]], dtype))
    soft = jnp.asarray([[[0.0, low], [0.0, 0.0]]], dtype)
    np.testing.assert_allclose(circuit.log_values(p, log_evidence=(soft,)), [low], rtol=1e-6)
    (marginals,) = circuit.marginals(p, log_evidence=(soft,))
    # A dozen roundings of numbers below 1.
    np.testing.assert_allclose(marginals[0], [[0, 1], [0.5, 0.5]], rtol=0, atol=1e-6)
    drawn = circuit.sample(p, jax.random.key(0), 5, log_evidence=(soft,))
    assert (drawn[:, 0, 0] == 1).all()
    best = circuit.mpe(p, log_evidence=(soft,))
    assert int(best.states[0, 0]) == 1
    # The other value is -log 2 more: variable 1 has two states.
    np.testing.assert_allclose(best.log_value, [low - np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("dtype", STEPS)
@pytest.mark.parametrize("size", [10.0, 300.0, 1e4])
def test_sums_of_any_range(dtype, size):
    rng = np.random.default_rng(3)
    weights = np.where(rng.random((3, 4, 5)) < 0.4, -np.inf, rng.normal(size=(3, 4, 5)) * size)
    weights[0, 0], weights[1, 1] = -np.inf, 0.0
    values = np.where(rng.random((3, 5, 6)) < 0.3, -np.inf, rng.normal(size=(3, 5, 6)) * size)
    values[2, :, 0] = -np.inf
    tops = np.max(values, axis=1, keepdims=True)
    values = values - np.where(np.isneginf(tops), 0, tops)
    weights, values = jnp.asarray(weights, dtype), jnp.asarray(values, dtype)
    both = np.asarray(weights, np.float64)[..., None] + np.asarray(values, np.float64)[:, None]
    wanted = np.logaddexp.reduce(both, axis=2)
    got = jax.jit(exact_log_matmul)(weights, values)
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(wanted))
    possible = np.isfinite(wanted)
    # A few roundings of the largest number that takes part.
    atol = 4 * float(jnp.finfo(dtype).eps) * (1 + np.abs(both[np.isfinite(both)]).max())
    np.testing.assert_allclose(got[possible], wanted[possible], rtol=0, atol=atol)
    slopes = jax.jit(
        jax.grad(lambda w: jnp.sum(jnp.where(possible, exact_log_matmul(w, values), 0.0)))
    )
    shares = np.exp(both - np.where(possible, wanted, 0)[:, :, None]).sum(axis=3)
    # Shares are exponentials of numbers rounded as above.
    np.testing.assert_allclose(slopes(weights), shares, rtol=0, atol=6 * atol)


def test_products_keep_what_is_in_range():
    # The largest value meets the smallest weight that is allowed, another value its opposite.
    low = weight_range(2, jnp.dtype(jnp.float32)) + 0.01
    weights = jnp.asarray([[[0.0, low], [low, 0.0]]], jnp.float32)
    values = jnp.asarray([[[-120.0, low], [0.0, 0.0]]], jnp.float32)
    wanted = np.logaddexp.reduce(
        np.asarray(weights, np.float64)[..., None] + np.asarray(values, np.float64)[:, None], axis=2
    )
    # A unit in the last place of 44.
    np.testing.assert_allclose(log_matmul(weights, values), wanted, rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", [pytest.param("braided", marks=pytest.mark.slow), "uneven"])
def test_zeros_equal_the_explicit_circuit(name):
    circuit = {**circuits(), **region_circuits()}[name]
    rng = np.random.default_rng(5)

    def holes(table):
        if table is None:
            return None
        # Half of the weights are 0, some tiny; every sum keeps one.
        low = jnp.where(rng.random(table.shape) < 0.5, -jnp.inf, table)
        low = jnp.where(rng.random(table.shape) < 0.2, table - 5000.0, low)
        return jnp.where(jnp.arange(table.shape[-1]) == 0, table, low)

    p = circuit.init(2)
    p = TensorParameters(
        holes(p.log_weights), holes(p.log_inputs), p.log_root, holes(p.log_mixing)
    ).normalize()
    rows = rng.integers(-1, np.asarray(circuit.cardinalities), size=(12, circuit.num_variables))
    model = circuit.to_circuit(p)
    explicit = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    assert np.isneginf(explicit).any() or (explicit < -5000).any()
    values, flows = circuit.flows(p, rows)
    # A few roundings of numbers of size 20000.
    np.testing.assert_allclose(values, explicit, rtol=0, atol=1e-10)

    def total(p):
        values = circuit.log_values(p, rows)
        return jnp.sum(jnp.where(np.isfinite(explicit), values, 0.0)), values

    # Traced, one node after the other; the flows are by dense layers that check their sums.
    slopes, traced = jax.jit(jax.grad(total, has_aux=True))(p)
    np.testing.assert_allclose(traced, explicit, rtol=0, atol=1e-10)
    for ours, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(flows), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    evidence = model.circuit.evidence_from_data(rows)[0]
    swept = jax.jit(
        jax.vmap(
            lambda e: sweep(
                model.circuit, model.log_weights, e, leaf_parameters=model.leaf_parameters
            )
        )
    )(evidence)
    for ours, theirs in zip(circuit.marginals(p, rows), swept.marginals, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        float(flows.log_root.sum()), float(np.isfinite(explicit).sum()), rtol=1e-12
    )


@pytest.mark.slow
def test_second_derivatives_through_zeros_forward_and_reverse():
    circuit = region_circuits()["uneven"]
    p = circuit.init(2)
    p = TensorParameters(
        p.log_weights.at[:, 0, 1].set(-jnp.inf), p.log_inputs, p.log_root, p.log_mixing
    )
    rows = np.random.default_rng(0).integers(0, 2, (3, circuit.num_variables))
    along = jax.tree.map(lambda t: jnp.cos(jnp.arange(t.size, dtype=t.dtype)).reshape(t.shape), p)

    def total(p):
        return jnp.sum(circuit.log_values(p, rows))

    def slope(p):
        return jax.jvp(total, (p,), (along,))[1]

    forward = jax.jit(lambda p: jax.jvp(jax.grad(total), (p,), (along,))[1])(p)
    step = 1e-5
    moved = [jax.tree.map(lambda t, a, h=h: t + h * a, p, along) for h in (step, -step)]
    above, below = (jax.jit(jax.grad(total))(q) for q in moved)
    for ours, other, one, two in zip(
        *map(jax.tree.leaves, (forward, jax.jit(jax.grad(slope))(p), above, below)), strict=True
    ):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-10)  # roundings of numbers of 10
        # Differences: step² = 1e-10 times third derivatives, and rounding 1e-15 over the step.
        np.testing.assert_allclose(ours, (one - two) / (2 * step), rtol=0, atol=1e-7)


def test_usual_weights_take_the_usual_way():
    rows = data()
    circuit = hclt(rows, 3, cardinalities=CARDS)
    p = circuit.init(0, rows=rows)
    assert not wide(circuit.structure, p, True)
    # A leaf's zero matters to soft evidence only, a state beyond the variable's to none.
    own = TensorParameters(p.log_weights, p.log_inputs.at[0, 0, 0].set(-jnp.inf), p.log_root)
    assert not wide(circuit.structure, own, False)
    assert wide(circuit.structure, own, True)
    for table in (p.log_weights.at[0, 0, 0].set(-jnp.inf), p.log_weights.at[0, 0, 0].add(-400.0)):
        own = TensorParameters(table, p.log_inputs, p.log_root)
        assert wide(circuit.structure, own, False)


def test_training_through_zeros():
    circuit, start = left_to_right(jnp.float32, 80)
    # Some rows leave no way but 80 emissions of .1, 120 nats below the best of the other state.
    rows = np.zeros((12, 80), np.int8)
    rows[6:] = np.random.default_rng(0).random((6, 80)) < 0.8
    exact = jax.tree.map(lambda t: t.astype(jnp.float64), start)
    settings = {"epochs": 2, "batch_size": 4, "step": EMStep(pseudocount=0.0)}
    single = fit(circuit, rows, rows, parameters=start, **settings)
    double = fit(circuit, rows, rows, parameters=exact, **settings)
    for ours, theirs in zip(single.history, double.history, strict=True):
        for name in ("train_log_likelihood", "valid_log_likelihood"):
            # Means of numbers of size 184 in single precision, after 6 updates.
            assert abs(ours[name] - theirs[name]) < 1e-3
    assert np.isfinite(single.history[-1]["valid_log_likelihood"])
    # Weights that become zero on the way: the first epoch is done again with sums that check.
    grown = circuit.init(0, dtype=jnp.float32)
    grown = TensorParameters(grown.log_weights, start.log_inputs, grown.log_root)
    found = fit(circuit, rows, parameters=grown, **settings)
    assert np.isfinite(found.history[-1]["train_log_likelihood"])


def test_long_chains_do_not_drift():
    rng = np.random.default_rng(0)
    start, transition = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), 4)
    emission = rng.dirichlet(np.ones(6), 4)
    steps = 2000
    rows = rng.integers(0, 6, size=(3, steps))
    rows[1], rows[2] = 0, 3  # steps that are alike round alike
    circuit = hidden_markov(steps, 4, cardinality=6)
    p = TensorParameters(*(logs(t, jnp.float32) for t in ([transition], [emission], [start])))
    message, wanted = start * emission[:, rows[:, 0]].T, np.zeros(3)
    for t in range(1, steps + 1):
        scale = message.sum(axis=1)
        wanted += np.log(scale)
        if t < steps:
            message = (message / scale[:, None]) @ transition * emission[:, rows[:, t]].T
    got = jax.jit(circuit.log_values)(p, rows.astype(np.int8))
    # The value itself is rounded by half a unit of 2.4e-4. A step's numbers are below 4 and
    # rounded some four times by at most 2.4e-7, and each of the 2000 steps may round alike; so
    # may the tables, by 6e-8 of theirs: 2e-3 at worst, and a tenth of it as errors mostly cancel.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=7e-4)
