"""Data rows as people have them, in both kinds of circuits."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax.circuits as C
from klprojax.circuits import CircuitBuilder, log_likelihood
from klprojax.circuits.learning import em_step
from klprojax.circuits.tensor import hclt, hidden_markov

ROWS = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1]])
CIRCUIT = hclt(ROWS, 2, cardinalities=(2, 2, 2))


class NAType:
    """Stands for pandas' NA, which has no truth value."""

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __eq__(self, other):
        return self

    __hash__ = object.__hash__


@pytest.mark.parametrize("wrong", [2, 9, -7])
def test_concrete_rows_are_checked_and_traced_ones_impossible(wrong):
    p = CIRCUIT.init(0)
    rows = ROWS.copy()
    rows[1, 2] = wrong
    message = f"has {wrong}.* for variable 2 in row 1; expected one of its states 0..1"
    calls = (
        lambda rows: CIRCUIT.log_values(p, rows),
        lambda rows: CIRCUIT.log_likelihood(p, rows),
        lambda rows: CIRCUIT.flows(p, rows),
        lambda rows: CIRCUIT.marginals(p, rows),
        lambda rows: CIRCUIT.expected_values(p, rows),
        lambda rows: CIRCUIT.mpe(p, rows),
        lambda rows: CIRCUIT.sample(p, jax.random.key(0), 1, rows),
        lambda rows: em_step(CIRCUIT, p, rows),
    )
    for call in calls:
        for concrete in (rows, jnp.asarray(rows), jnp.asarray(rows, jnp.int8), rows.astype(float)):
            with pytest.raises(ValueError, match=message):
                call(concrete)
    right = CIRCUIT.log_values(p, ROWS)
    values, flows = jax.jit(CIRCUIT.flows)(p, jnp.asarray(rows))
    assert np.isneginf(values[1])
    # The other rows are what they were, to the last bits of two programs.
    np.testing.assert_allclose(np.delete(values, 1), np.delete(right, 1), rtol=1e-13)
    np.testing.assert_allclose(float(flows.log_root.sum()), 3, rtol=1e-13)
    (marginals,) = jax.jit(lambda rows: CIRCUIT.marginals(p, rows))(jnp.asarray(rows))
    assert not marginals[1].any()
    np.testing.assert_allclose(marginals[0].sum(1), 1, rtol=1e-13)


def test_traced_rows_of_every_integer_type():
    p = CIRCUIT.init(0)
    values = jax.jit(CIRCUIT.log_values)
    right = np.asarray(values(p, jnp.asarray(ROWS)))
    for dtype in (jnp.int8, jnp.uint8, jnp.uint32, jnp.int64):
        np.testing.assert_array_equal(values(p, jnp.asarray(ROWS, dtype)), right)
        # 258 and 2^32 + 1 must not wrap around to states.
        big = {1: 101, 4: 258, 8: 2**32 + 1}[jnp.dtype(dtype).itemsize]
        assert np.isneginf(values(p, jnp.asarray(np.full((1, 3), big), dtype))).all()


def explicit():
    """An explicit circuit: a mixture of two products of three bits."""
    b = CircuitBuilder([2, 2, 2])

    def bit(v, p):
        return b.sum([b.indicator(v, 0), b.indicator(v, 1)], np.log([1 - p, p]))

    parts = [b.product([bit(v, p) for v in range(3)]) for p in (0.2, 0.7)]
    return b.build(b.sum(parts, np.log([0.4, 0.6])))


@pytest.mark.parametrize("missing", [-1.0, np.nan])
def test_given_rows_of_floats(missing):
    # By hand: p(x1 = 1 | x0 = 1) in the mixture.
    wanted = np.log((0.4 * 0.2**2 + 0.6 * 0.7**2) / (0.4 * 0.2 + 0.6 * 0.7))
    rows = np.array([[missing, 1.0, missing]])
    given = np.array([1.0, missing, missing])
    model = explicit()
    got = log_likelihood(model.circuit, model.log_weights, rows, given=given)
    np.testing.assert_allclose(got, [wanted], rtol=1e-12)
    p = CIRCUIT.init(0)
    both = np.array([[1, 1, -1], [1, -1, -1]])
    joint, alone = CIRCUIT.log_likelihood(p, both)
    got = CIRCUIT.log_likelihood(p, rows, given=given)
    np.testing.assert_allclose(got, [joint - alone], rtol=1e-12)
    for run in (
        lambda given: log_likelihood(model.circuit, model.log_weights, rows, given=given),
        lambda given: CIRCUIT.log_likelihood(p, rows, given=given),
    ):
        with pytest.raises(ValueError, match="for variable 1, but given states"):
            run(np.array([[1.0, 0.0, -1.0]]))
        with pytest.raises(ValueError, match="given has shape"):
            run(np.ones((2, 3)))


def test_missing_entries_of_tables():
    p = CIRCUIT.init(0)
    wanted = CIRCUIT.log_likelihood(p, np.array([[0, -1, 1]]))
    model = explicit()
    other = log_likelihood(model.circuit, model.log_weights, np.array([[0, -1, 1]]))
    masked = np.ma.masked_array([[0, 1, 1]], [[False, True, False]])
    for entry in (NAType(), None, float("nan"), -1, np.float32(-1)):
        rows = np.array([[0, entry, True]], object)
        np.testing.assert_array_equal(CIRCUIT.log_likelihood(p, rows), wanted)
        np.testing.assert_array_equal(log_likelihood(model.circuit, model.log_weights, rows), other)
    np.testing.assert_array_equal(CIRCUIT.log_likelihood(p, masked), wanted)
    # A column that is missing throughout says nothing; a variable has at least two states.
    for nothing in (np.nan, -1, None):
        empty = np.array([[nothing, 1, 2], [nothing, 0, 1]], object)
        assert hclt(empty, 2).cardinalities == (2, 2, 3)
    with pytest.raises(ValueError, match=r"has 'yes' at \(0, 1\); states are the numbers 0, 1"):
        hclt(np.array([[0, "yes"], [1, "no"]], object), 2)
    for bad in (np.array([["a", "b", "c"]]), np.array([[0, 1, "1"]], object)):
        with pytest.raises(ValueError, match="states are the numbers"):
            CIRCUIT.log_likelihood(p, bad)
        with pytest.raises(ValueError, match="states are the numbers"):
            log_likelihood(model.circuit, model.log_weights, bad)
    with pytest.raises(ValueError, match="these are traced"):
        jax.jit(lambda rows: CIRCUIT.log_likelihood(p, rows))(jnp.asarray(ROWS))


def test_the_other_kind_of_circuit():
    # In a process of its own: here the types of arguments are checked before the functions run.
    code = """
import jax, numpy as np
import klprojax.circuits as C
tensor = C.hclt(np.eye(3, dtype=int), 2)
p = tensor.init(0)
b = C.CircuitBuilder([2])
model = b.build(b.sum([b.indicator(0, 0), b.indicator(0, 1)], np.log([0.5, 0.5])))
rows = np.zeros((1, 3), int)
for name in ("sweep", "t_spn", "entropy", "unfold", "is_deterministic",
             "is_structured", "activation_lift", "scope_table_marginals"):
    run = getattr(C, name)
    arguments = () if name[:2] in ("is", "un", "ac") else (p,)
    try:
        run(tensor, *arguments)
    except TypeError as error:
        assert f"{name} needs an explicit Circuit, but got a TensorCircuit" in str(error), error
        assert "to_circuit" in str(error)
    else:
        raise AssertionError(name)
calls = {
    "log_likelihood needs": lambda: C.log_likelihood(model, None, rows),
    "sample needs": lambda: C.sample(rows, None, jax.random.key(0), 1),
    "kl_divergence needs": lambda: C.kl_divergence(tensor, p, p),
    "multiply needs models": lambda: C.multiply(tensor, tensor),
    "sweep needs an explicit Circuit, but got a CircuitModel": lambda: C.sweep(model, None),
    "fit needs a TensorCircuit, but got a Circuit;": lambda: C.fit(model.circuit, rows),
    "fit needs a TensorCircuit, but got a CircuitModel": lambda: C.fit(model, rows),
    "em_step needs a TensorCircuit": lambda: C.em_step(model.circuit, None, rows),
    "classify needs a TensorCircuit": lambda: C.classify(model.circuit, None, rows, 0),
    "are TensorParameters (see init), but got": lambda: tensor.log_values(np.zeros(3), rows),
}
for message, call in calls.items():
    try:
        call()
    except TypeError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_set_of_verbs():
    p, rows, key = CIRCUIT.init(0), np.where(ROWS == 1, -1, ROWS), jax.random.key(0)
    model = CIRCUIT.to_circuit(p)
    numbers = {"leaf_parameters": model.leaf_parameters}
    given = np.where(ROWS == 0, 0, -1)
    conditional = C.log_likelihood(CIRCUIT, p, ROWS, given=given)
    np.testing.assert_array_equal(conditional, CIRCUIT.log_likelihood(p, ROWS, given=given))
    np.testing.assert_allclose(
        C.log_likelihood(CIRCUIT, p, rows),
        C.log_likelihood(model.circuit, model.log_weights, rows, **numbers),
        rtol=1e-12,  # another order of sums
    )
    evidence, _ = model.circuit.evidence_from_data(rows[0])
    explicit = C.marginals(model.circuit, model.log_weights, evidence, **numbers)
    for ours, theirs in zip(C.marginals(CIRCUIT, p, rows[:1]), explicit, strict=True):
        np.testing.assert_allclose(ours[0], theirs, atol=1e-12)
    np.testing.assert_allclose(C.log_partition(CIRCUIT, p), 0.0, atol=1e-12)
    assert C.sample(CIRCUIT, p, key, 3).shape == (3, CIRCUIT.num_variables)
    np.testing.assert_array_equal(C.mpe(CIRCUIT, p, rows).states, CIRCUIT.mpe(p, rows).states)
    np.testing.assert_array_equal(
        C.expected_values(CIRCUIT, p, rows), CIRCUIT.expected_values(p, rows)
    )


def test_many_states_out_of_range():
    # 20 states: read by a gather, which would take the nearest column.
    circuit = hidden_markov(3, 2, cardinality=20)
    p = circuit.init(0)
    rows = jnp.asarray([[0, 19, -1], [0, 20, 1], [-2, 0, 1]])
    values = jax.jit(circuit.log_values)(p, rows)
    np.testing.assert_array_equal(np.isneginf(values), [False, True, True])
