"""Models compiled to circuits: the same joint table, partition function and marginals."""

import numpy as np
import pytest

import klprojax
from klprojax.circuits import _compile as module
from klprojax.circuits import compile_model, log_partition, sweep

from ._circuits import enumerate_joint


def model(cards, factors):
    scopes, tables = zip(*factors, strict=True)
    with np.errstate(divide="ignore"):
        logs = tuple(np.asarray(np.log(np.asarray(t, float))) for t in tables)
    return klprojax.DiscreteModel(cardinalities=cards, scopes=scopes, log_tables=logs)


def joint(m):
    out = np.zeros(m.cardinalities)
    for scope, table in zip(m.scopes, m.log_tables, strict=True):
        order = np.argsort(scope, kind="stable")
        shape = [c if v in scope else 1 for v, c in enumerate(m.cardinalities)]
        out = out + np.transpose(table, order).reshape(shape)
    return np.exp(out)


def test_joint_tables():
    rng = np.random.default_rng(0)

    def table(*shape, zeros=0.3):
        out = rng.random(shape)
        out[rng.random(shape) < zeros] = 0.0
        return out

    # a loop, zeros, a constant, a variable in no factor, two components, one state
    m = model(
        (2, 3, 2, 2, 2, 1),
        [
            ((1, 0), table(3, 2)),
            ((1, 2), table(3, 2)),
            ((2, 0), table(2, 2, zeros=0.0)),
            ((), 2.5),
            ((4,), [0.3, 0.9]),
            ((4, 5), [[1.0], [2.0]]),
        ],
    )
    compiled = compile_model(m)
    # products of six numbers
    np.testing.assert_allclose(enumerate_joint(compiled), joint(m), rtol=1e-13)
    assert compiled.circuit.scope(compiled.circuit.root) == tuple(range(6))


def test_shipped_network():
    bayes = klprojax.load_model("alarm")
    circuit, log_weights, _ = compile_model(bayes)
    # log Z is 0 up to the printed digits of the tables
    assert abs(float(log_partition(circuit, log_weights))) < 1e-6
    observed = bayes.evidence({"HRBP": 0, "CVP": 1})
    got = sweep(circuit, log_weights, circuit.log_evidence(observed))
    graph, log_potentials = bayes.to_graph()
    wanted = klprojax.infer(
        graph,
        log_potentials,
        klprojax.Elimination(),
        log_evidence=graph.log_evidence(observed),
    )
    # the same sums in another order
    np.testing.assert_allclose(got.log_partition, wanted.log_partition, atol=1e-11)
    marginals = zip(
        circuit.unpack_variables(got.marginals),
        graph.unpack_variables(wanted.marginals),
        strict=True,
    )
    for a, b in marginals:
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_refusals():
    grid = model(
        (2,) * 36, [((i, j), np.ones((2, 2))) for i in range(36) for j in range(i + 1, 36)]
    )
    with pytest.raises(ValueError, match=r"needs a table of 2\^\d+.* entries over 36 variables"):
        compile_model(grid)
    with pytest.raises(ValueError, match="more than max_edges=20 edges"):
        compile_model(
            model((2,) * 9, [((v, v + 1), np.ones((2, 2))) for v in range(8)]), max_edges=20
        )
    for factors in ([((), 0.0)], [((0,), [0.0, 0.0])], [((0,), [1.0, 0.0]), ((0,), [0.0, 1.0])]):
        with pytest.raises(ValueError, match="every joint state weight zero"):
            compile_model(model((2, 2), factors))
    with pytest.raises(ValueError, match="has no variables"):
        compile_model(model((), [((), 1.0)]))
    assert module._MOST_EDGES == 10_000_000
