"""Structure, builder and validation: sizes, hashing, and errors that name the node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import (
    Bernoulli,
    Binomial,
    Categorical,
    Circuit,
    CircuitBuilder,
    CircuitError,
    Gaussian,
    Indicator,
    LeafGroup,
    log_partition,
    sweep,
)

from ._circuits import random_circuit


def mixture():
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    parts = [b.product([b.sum(x[0]), b.sum(x[1])]) for _ in range(2)]
    return b.build(b.sum(parts, np.log([0.25, 0.75])))


def test_sizes_and_scopes():
    circuit, log_weights, parameters = mixture()
    assert (circuit.num_nodes, circuit.num_edges, circuit.num_weights) == (11, 14, 10)
    assert circuit.depth == 3
    assert circuit.scope(circuit.root) == (0, 1)
    assert [circuit.scope(n) for n in range(5)] == [(0,), (0,), (1,), (1,), (0,)]
    assert parameters[0].shape == (4, 0)
    assert circuit.is_normalized(log_weights)
    assert not circuit.is_normalized(log_weights + 0.1)
    shifted = circuit.normalize_weights(log_weights + 0.1)
    np.testing.assert_allclose(shifted, log_weights, atol=1e-15)  # one rounding each way
    assert circuit.is_normalized(circuit.uniform_weights())
    assert "11 nodes" in repr(circuit)


def test_circuits_hash_by_content():
    one, two = mixture().circuit, mixture().circuit
    assert one == two
    assert hash(one) == hash(two)
    assert one != random_circuit(0).circuit
    assert not jax.tree.leaves(one)
    # a static value: it goes through jit as an argument
    total = jax.jit(log_partition)(one, one.uniform_weights())
    assert abs(float(total)) < 1e-15


def test_equal_sizes_share_compiled_code():
    from klprojax.circuits import _sweep

    def chain(order):
        b = CircuitBuilder([2, 2])
        x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
        return b.build(b.product([b.sum(x[v]) for v in order]))

    for order in ((0, 1), (1, 0)):
        circuit, log_weights, _ = chain(order)
        sweep(circuit, log_weights)
        if order == (0, 1):
            compiled = _sweep._sweep._cache_size()
    assert _sweep._sweep._cache_size() == compiled


def test_incomplete_sum_is_named():
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    both = b.product([b.sum(x[0]), b.sum(x[1])])
    root = b.sum([both, b.sum(x[0])], name="top")
    with pytest.raises(CircuitError, match=r"Sum node \d+ 'top' is not complete.*lacks variable 1"):
        b.build(root)
    assert b.build(root, validate=False).circuit.num_variables == 2


def test_non_decomposable_product_is_named():
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    s0, s1 = b.sum(x[0]), b.sum(x[1])
    bad = b.product([b.product([s0, s1]), b.sum(x[0])], name="twice")
    with pytest.raises(
        CircuitError, match=r"'twice' is not decomposable.*share variable 0"
    ) as error:
        b.build(bad)
    assert error.value.built_from == bad


def test_root_scope():
    b = CircuitBuilder([2, 2, 2])
    root = b.sum([b.indicator(1, t) for t in (0, 1)])
    with pytest.raises(CircuitError, match="lacks variables 0, 2"):
        b.build(root)


def test_builder_refuses():
    b = CircuitBuilder([2, 0])
    one = b.indicator(0, 0)
    with pytest.raises(ValueError, match="add children first"):
        b.product([one, 5])
    with pytest.raises(ValueError, match="2 children got log-weights of shape"):
        b.sum([one, one], np.zeros(3))
    with pytest.raises(ValueError, match="weights are positive and finite"):
        b.sum([one], [-np.inf])
    with pytest.raises(ValueError, match=r"Use CircuitBuilder\.indicator"):
        b.leaf(0, Indicator())
    with pytest.raises(ValueError, match="The root is node 9"):
        b.build(9)
    with pytest.raises(ValueError, match="has parameters of shape"):
        b.build(b.leaf(0, Categorical(), np.zeros(3)), validate=False)
    with pytest.raises(ValueError, match="over variable 7, but the variables"):
        b.build(b.leaf(7), validate=False)
    with pytest.raises(ValueError, match="Bernoulli leaf needs a variable with 2 states"):
        _one_leaf(3, Bernoulli())
    for family in (Categorical(), Binomial()):
        with pytest.raises(ValueError, match="needs a discrete variable"):
            _one_leaf(0, family)
    with pytest.raises(ValueError, match="needs a continuous variable"):
        _one_leaf(2, Gaussian())
    with pytest.raises(ValueError, match="has no children"):
        b.build(b.product([]), validate=False)
    with pytest.raises(ValueError, match="indicates state 5 of variable 0"):
        b.build(b.indicator(0, 5), validate=False)


def _one_leaf(card, family):
    b = CircuitBuilder([card])
    return b.build(b.leaf(0, family))


def arrays(**changes):
    """A sum over the two indicators of one variable."""
    given = {
        "cardinalities": [2],
        "kinds": [2, 0, 0],
        "offsets": [0, 2, 2, 2],
        "children": [1, 2],
        "groups": [group([1, 2], [0, 0], [0, 1])],
        "root": 0,
    }
    return Circuit(**{**given, **changes})


def group(nodes, variables, states, family=None):
    family = Indicator() if family is None else family
    return LeafGroup(family, *(np.asarray(x, np.int32) for x in (nodes, variables, states)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"root": 3}, "The root is node 3"),
        ({"kinds": [3, 0, 0]}, "Node 0 has kind 3"),
        ({"offsets": [0, 2, 2]}, "offsets must run from 0"),
        ({"offsets": [0, 3, 2, 2]}, "offsets must not decrease"),
        ({"children": [1, 7]}, "Sum node 0 has child 7"),
        ({"cardinalities": [-2]}, "Variable 0 has cardinality -2"),
        ({"groups": [group([1, 9], [0, 0], [0, 1])]}, "A leaf is node 9"),
        ({"groups": [group([1, 2], [0, 4], [0, 1])]}, "over variable 4"),
        ({"groups": [group([1], [0], [0])]}, "Leaf node 2 is listed 0 times"),
        ({"cardinalities": [2, 3], "groups": [group([1, 2], [0, 1], [0, 1])]}, "one group a card"),
        ({"kinds": [2, 1, 0], "offsets": [0, 2, 3, 3], "children": [1, 2, 0],
          "groups": [group([2], [0], [1])]}, r"lies on a cycle \(0 -> 1 -> 0\)"),
        ({"kinds": [2, 0, 0], "offsets": [0, 1, 1, 1], "children": [1]}, "Leaf node 2 cannot be"),
        ({"kinds": [2, 0, 0], "offsets": [0, 1, 2, 2]}, "Leaf node 1 has children"),
        ({"kinds": [2, 1, 0], "offsets": [0, 2, 2, 2], "groups": [group([2], [0], [1])]},
         "Product node 1 has no children"),
    ],
)  # fmt: skip
def test_arrays_are_checked(changes, match):
    assert arrays().num_nodes == 3
    with pytest.raises(ValueError, match=match):
        arrays(**changes)


def test_numbers_are_checked():
    circuit, log_weights, _ = mixture()
    with pytest.raises(ValueError, match="log_weights has shape"):
        sweep(circuit, log_weights[:-1])
    with pytest.raises(ValueError, match="log_evidence has shapes"):
        sweep(circuit, log_weights, (jnp.zeros((3, 2)),))
    with pytest.raises(ValueError, match="mix dtypes"):
        sweep(circuit, log_weights, (jnp.zeros((2, 2), jnp.float32),))
    with pytest.raises(ValueError, match="values has shape"):
        sweep(circuit, log_weights, values=jnp.zeros(1))
    with pytest.raises(ValueError, match="leaf_parameters has shapes"):
        sweep(circuit, log_weights, leaf_parameters=(jnp.zeros(1),))
    b = CircuitBuilder([2])
    leafy = b.build(b.sum([b.leaf(0), b.leaf(0)]))
    with pytest.raises(ValueError, match="leaves with parameters \\(Categorical\\)"):
        sweep(leafy.circuit, leafy.log_weights)


def test_evidence():
    circuit = random_circuit(0).circuit  # cardinalities 2, 3, 2, 2
    two, three = circuit.log_evidence({0: 1, 1: np.array([0.0, -1.0, -np.inf])})
    assert two.tolist() == [[-np.inf, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert three.tolist() == [[0.0, -1.0, -np.inf]]
    rows = np.array([[1, -1, -1, 0], [-1, 2, 1, 1]])
    tables, values = circuit.evidence_from_data(rows)
    assert [t.shape for t in tables] == [(2, 3, 2), (2, 1, 3)]
    assert values.shape == (2, 0)
    for k, observed in enumerate(({0: 1, 3: 0}, {1: 2, 2: 1, 3: 1})):
        for got, wanted in zip(tables, circuit.log_evidence(observed), strict=True):
            np.testing.assert_array_equal(got[k], wanted)
    missing = circuit.evidence_from_data(np.where(rows < 0, np.nan, rows))
    for got, wanted in zip(missing[0], tables, strict=True):
        np.testing.assert_array_equal(got, wanted)
    unpacked = circuit.unpack_variables((two, three))
    assert [len(t) for t in unpacked] == [2, 3, 2, 2]
    for got, wanted in zip(circuit.pack_variables(unpacked), (two, three), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_evidence_is_checked():
    circuit = random_circuit(0).circuit
    with pytest.raises(ValueError, match="Evidence names variable 4"):
        circuit.log_evidence({4: 0})
    with pytest.raises(ValueError, match="to state 3; it has states"):
        circuit.log_evidence({1: 3})
    with pytest.raises(ValueError, match="Soft evidence on variable 1"):
        circuit.log_evidence({1: np.zeros(2)})
    with pytest.raises(ValueError, match="last axis must be the 4 variables"):
        circuit.evidence_from_data(np.zeros((2, 3)))
    for bad in (2, -2, 0.5):
        with pytest.raises(ValueError, match=r"expected one of its states 0\.\.1"):
            circuit.evidence_from_data(np.array([0, 0, bad, 0]))
    b = CircuitBuilder([0])
    continuous = b.build(b.leaf(0, Gaussian(), [0.0, -0.5])).circuit
    with pytest.raises(ValueError, match="Variable 0 is continuous"):
        continuous.log_evidence({0: 1})
