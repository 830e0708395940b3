"""Variables and evidence: one concept for factor graphs, explicit and tensor circuits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import FactorGraph
from klprojax.circuits import CircuitBuilder, Gaussian
from klprojax.circuits.tensor import TensorCircuit

CARDINALITIES = (3, 2, 3)


def graph():
    return FactorGraph(CARDINALITIES, [(0, 1), (1, 2)])


def tensor():
    return TensorCircuit(CARDINALITIES, 2, [0, 1, 2], [[[0, 1]]], [[2, 3]])


def circuit():
    return tensor().to_circuit(tensor().init(0)).circuit


ALL = [graph, circuit, tensor]


@pytest.mark.parametrize("make", ALL)
def test_states_tables_and_rows_say_the_same(make):
    own = make()
    soft = np.array([-1.0, -np.inf, 0.5])
    got = own.log_evidence({1: np.int8(0), 2: soft})
    np.testing.assert_array_equal(got[0], [[0.0, -np.inf]])
    np.testing.assert_array_equal(got[1], [[0, 0, 0], soft])
    rows, values = own.evidence_from_data([[2, -1, np.nan], [0, 1, 1]])
    assert values.shape == (2, 0)
    for row, observed in enumerate(({0: 2}, {0: 0, 1: 1, 2: 1})):
        for mine, wanted in zip(rows, own.log_evidence(observed), strict=True):
            np.testing.assert_array_equal(mine[row], wanted)
    tables = own.unpack_variables(got)
    assert [table.shape for table in tables] == [(3,), (2,), (3,)]
    for mine, wanted in zip(own.pack_variables(tables), got, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    traced = jax.jit(lambda *given: own.unpack_variables(own.pack_variables(given)))(*tables)
    for mine, wanted in zip(traced, tables, strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({3: 0}, "Evidence names variable 3; the variables are 0..2."),
        ({-1: 0}, "Evidence names variable -1"),
        ({"smoke": 0}, "Evidence names variable smoke; the variables are 0..2."),
        ({0: 3}, "Evidence sets variable 0 to state 3; it has states 0..2."),
        ({0: -1}, "to state -1"),
        ({0: 1.5}, "to state 1.5"),
        ({0: np.nan}, "to state nan"),
        ({0: "yes"}, "to state yes"),
        ({0: None}, "to state None"),
        ({0: [0.0, 0.0]}, "Soft evidence on variable 0 has shape (2,); expected (3,)."),
    ],
)
def test_evidence_that_does_not_fit(make, observed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make().log_evidence(observed)


@pytest.mark.parametrize("make", ALL)
def test_rows_and_tables_that_do_not_fit(make):
    with pytest.raises(ValueError, match="has shape"):
        make().evidence_from_data([[0, 1]])
    with pytest.raises(ValueError, match=r"3\.0 for variable 2 in row 1"):
        make().evidence_from_data([[0, 1, np.nan], [0, 1, 3]])
    with pytest.raises(ValueError, match="Got 2 tables for 3 variables"):
        make().pack_variables([np.zeros(3), np.zeros(2)])
    with pytest.raises(ValueError, match="table of variable 1 has shape"):
        make().pack_variables([np.zeros(3)] * 3)


def test_evidence_is_what_a_tensor_circuit_takes():
    own = tensor()
    parameters = own.init(0)
    evidence = own.evidence_from_data([[2, 0, -1]])[0]
    for table, one in zip(evidence, own.log_evidence({0: 2, 1: 0}), strict=True):
        np.testing.assert_array_equal(table, one[None])
    got = own.log_values(parameters, log_evidence=evidence)
    assert got.shape == (1,)
    np.testing.assert_array_equal(got, own.log_values(parameters, jnp.array([[2, 0, -1]])))
    assert [table.shape for table in own.marginals(parameters, log_evidence=evidence)] == [
        (1, 1, 2),
        (1, 2, 3),
    ]


def test_continuous_variables_have_values():
    build = CircuitBuilder([2, 0])
    root = build.product([build.indicator(0, 1), build.leaf(1, Gaussian(), [0.0, 0.0])])
    own = build.build(root).circuit
    evidence, values = own.evidence_from_data([[1, -1.0], [-1, np.nan]])
    np.testing.assert_array_equal(values, [[-1.0], [np.nan]])
    np.testing.assert_array_equal(evidence[0], [[[-np.inf, 0.0]], [[0.0, 0.0]]])
    assert own.unpack_variables(own.log_evidence())[1] is None
    with pytest.raises(ValueError, match="Variable 1 is continuous"):
        own.log_evidence({1: 0})
