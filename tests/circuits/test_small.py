"""The value of a small circuit without a compiled program, beside the compiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import Bernoulli, Categorical, CircuitBuilder, log_partition
from klprojax.circuits import _small as small
from klprojax.circuits import _sweep as compiled

from ._circuits import random_circuit


def table_leaf(b, rng, v):
    entries = rng.normal(size=b.cardinalities[v])
    entries[int(rng.integers(len(entries)))] = -np.inf
    return b.leaf(v, Categorical(), entries)


def test_equal_to_the_compiled_value(monkeypatch):
    model = random_circuit(5, leaf=table_leaf)
    circuit = model.circuit
    rng = np.random.default_rng(0)
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 1e-6)):  # some 30 roundings
        log_weights = model.log_weights.astype(dtype)
        parameters = tuple(p.astype(dtype) for p in model.leaf_parameters)
        given = {"leaf_parameters": parameters}
        program = jax.jit(lambda w, e, p: log_partition(circuit, w, e, leaf_parameters=p))
        for case in range(4):
            tables = [rng.normal(size=c).astype(dtype) for c in circuit.cardinalities]
            tables = [t * 10.0 ** (3 * (case == 1)) for t in tables]
            tables[0][1] = -np.inf
            if case == 3:
                tables[0][:] = -np.inf
            evidence = circuit.pack_variables([t.astype(dtype) for t in tables])
            with monkeypatch.context() as patch:
                # nothing may be compiled
                patch.setattr(compiled, "_log_partition", None)
                eager = log_partition(circuit, log_weights, evidence, **given)
            assert eager.dtype == dtype
            assert isinstance(eager, jax.Array)
            wanted = program(log_weights, evidence, parameters)
            np.testing.assert_allclose(eager, wanted, rtol=tolerance)
        assert eager == -np.inf


def test_when_a_program_is_compiled(monkeypatch):
    def refuse(*_):
        raise RuntimeError("compiled")

    monkeypatch.setattr(compiled, "_log_partition", refuse)
    model = random_circuit(6)
    assert np.isfinite(log_partition(model.circuit, model.log_weights))
    # under a transformation, when asked often, when large, and for families with programs
    with pytest.raises(RuntimeError, match="compiled"):
        jax.grad(lambda w: log_partition(model.circuit, w))(model.log_weights)
    with pytest.raises(RuntimeError, match="compiled"):
        jax.vmap(lambda w: log_partition(model.circuit, w))(model.log_weights[None])
    monkeypatch.setattr(small, "_MOST_CALLS", model.circuit.structure.small_calls)
    with pytest.raises(RuntimeError, match="compiled"):
        log_partition(model.circuit, model.log_weights)
    monkeypatch.setattr(small, "_MOST_CALLS", 10**6)
    monkeypatch.setattr(small, "_MOST_EDGES", model.circuit.num_edges - 1)
    with pytest.raises(RuntimeError, match="compiled"):
        log_partition(model.circuit, model.log_weights)
    b = CircuitBuilder([2])
    circuit, log_weights, leaves = b.build(b.leaf(0, Bernoulli(), 0.5))
    with pytest.raises(RuntimeError, match="compiled"):
        log_partition(circuit, log_weights, leaf_parameters=leaves)
    # NaN comes through
    monkeypatch.setattr(small, "_MOST_EDGES", 10**6)
    assert jnp.isnan(log_partition(model.circuit, model.log_weights.at[0].set(jnp.nan)))
