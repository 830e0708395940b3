"""Tensor circuits against the explicit sweep, which has oracles of its own."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import log_likelihood, sweep
from klprojax.circuits.tensor import TensorCircuit, TensorParameters, factorised_mixture, hclt
from klprojax.circuits.tensor import hidden_markov as chain
from klprojax.circuits.tensor._plan import make_plan

from ..._derivatives import check_derivatives
from ._models import CARDS, circuits, data

ALL = circuits()
# A few hundred roundings of numbers of size 10 (log-values) or below (flows).
EXACT = {"rtol": 0.0, "atol": 1e-12}


def rows_of(circuit, seed=1, count=7):
    """Rows with missing entries."""
    rng = np.random.default_rng(seed)
    top = np.asarray(circuit.cardinalities)
    return rng.integers(-1, top, size=(count, circuit.num_variables))


def soft_evidence(circuit, count=4, seed=2):
    """One log-table per cardinality, some entries -inf."""
    rng = np.random.default_rng(seed)
    out = []
    for card in sorted(set(circuit.cardinalities)):
        table = rng.normal(size=(count, circuit.cardinalities.count(card), card))
        table[..., 0][rng.random(table.shape[:2]) < 0.3] = -np.inf
        out.append(jnp.asarray(table))
    return tuple(out)


@pytest.mark.parametrize(
    "name",
    [
        "ragged",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("mixture", "scanned", "braided", "shared")
        ),
    ],
)
def test_equals_the_explicit_circuit(name):
    circuit = ALL[name]
    parameters = circuit.init(1)
    model = circuit.to_circuit(parameters)
    rows = rows_of(circuit)
    hard = model.circuit.evidence_from_data(rows)[0]
    soft = soft_evidence(circuit)
    evidence = tuple(map(lambda *tables: jnp.concatenate(tables), hard, soft))
    swept = jax.jit(
        jax.vmap(
            lambda e: sweep(
                model.circuit, model.log_weights, e, leaf_parameters=model.leaf_parameters
            )
        )
    )(evidence)
    values, flows = circuit.flows(parameters, log_evidence=evidence)
    np.testing.assert_allclose(values, swept.log_partition, **EXACT)
    for ours, theirs in zip(
        circuit.marginals(parameters, log_evidence=evidence), swept.marginals, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, **EXACT)
    s = circuit.structure
    uses = np.asarray(swept.edge_probs.sum(0))
    split = len(s.sum_blocks) * s.units**2
    wanted = np.zeros(flows.log_weights.shape)
    own = uses[:split].reshape(-1, s.units, s.units)
    np.add.at(wanted, np.asarray(s.sum_blocks, int), own)
    np.testing.assert_allclose(flows.log_weights, wanted, **EXACT)
    np.testing.assert_allclose(flows.log_root, uses[split:].reshape(flows.log_root.shape), **EXACT)
    # Rows are hard evidence, for values, flows and marginals.
    values, flows = circuit.flows(parameters, rows)
    np.testing.assert_allclose(values, swept.log_partition[: len(rows)], **EXACT)
    uses = np.asarray(swept.edge_probs[: len(rows)].sum(0))
    wanted = np.zeros(flows.log_weights.shape)
    own = uses[:split].reshape(-1, s.units, s.units)
    np.add.at(wanted, np.asarray(s.sum_blocks, int), own)
    np.testing.assert_allclose(flows.log_weights, wanted, **EXACT)
    for ours, theirs in zip(circuit.marginals(parameters, rows), swept.marginals, strict=True):
        np.testing.assert_allclose(ours, theirs[: len(rows)], **EXACT)


@pytest.mark.parametrize("name", ["hclt", "chain", "untied", "factorised"])
def test_values_equal_those_of_the_explicit_circuit(name):
    circuit = ALL[name]
    parameters = circuit.init(1)
    model = circuit.to_circuit(parameters)
    rows = rows_of(circuit)
    explicit = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    np.testing.assert_allclose(circuit.log_likelihood(parameters, rows), explicit, **EXACT)
    _, flows = circuit.flows(parameters, rows)
    # Every row uses each sum of a chain once.
    sums = len(circuit.structure.sum_blocks)
    np.testing.assert_allclose(float(flows.log_weights.sum()), len(rows) * sums, rtol=1e-12)


def test_leaf_flows_are_the_marginals_of_the_units():
    circuit = ALL["mixture"]
    parameters = circuit.init(3)
    rows = data(5, rows=9)
    _, flows = circuit.flows(parameters, rows, jnp.arange(9.0))
    s = circuit.structure
    per_variable = np.zeros((circuit.num_variables, s.max_states))
    np.add.at(per_variable, np.asarray(s.variables), np.asarray(flows.log_inputs.sum(1)))
    for v in range(circuit.num_variables):
        counts = np.bincount(rows[:, v], weights=np.arange(9.0), minlength=s.max_states)
        # Every component's parse visits one leaf a variable: the flows add up to the counts.
        np.testing.assert_allclose(per_variable[v], counts, **EXACT)


def test_long_chains_are_one_scan_and_stay_stable():
    steps = 1024
    homogeneous, untied = chain(steps, 4), chain(steps, 4, homogeneous=False)
    assert [s.last - s.first for s in make_plan(untied.structure).steps] == [steps - 3]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, size=(5, steps))
    parameters = homogeneous.init(0, scale=2.0, dtype=jnp.float32)
    since = time.process_time()
    values, flows = jax.jit(homogeneous.flows)(parameters, rows.astype(np.int8))
    assert time.process_time() - since < 30  # unrolled, it compiles for many minutes
    transition = np.exp(np.asarray(parameters.log_weights[0], np.float64))
    emission = np.exp(np.asarray(parameters.log_inputs[0], np.float64))
    message, total = np.ones((5, 4)), np.zeros(5)  # [rows, units], backward in time
    for t in range(steps - 1, -1, -1):
        message = message * emission[:, rows[:, t]].T
        scale = message.max(1, keepdims=True)
        total += np.log(scale[:, 0])
        message = message / scale
        if t:
            message = message @ transition.T
    total += np.log(message @ np.exp(np.asarray(parameters.log_root[0], np.float64)))
    # float32 rounds each of 1024 additions to a sum of size 700: about 1024 * 4e-5 at worst.
    np.testing.assert_allclose(values, total, rtol=0, atol=0.02)
    # 5 rows use 1023 transitions each, found from sums of float32 flows.
    np.testing.assert_allclose(float(flows.log_weights.sum()), 5 * (steps - 1), rtol=1e-4)


def test_float32_is_close_to_float64():
    circuit = ALL["mixture"]
    exact = circuit.init(0)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), exact)
    rows = data(3)
    values, flows = circuit.flows(single, rows)
    assert values.dtype == jnp.float32
    wanted, wanted_flows = circuit.flows(exact, rows)
    # A dozen roundings (6e-8) of numbers of size 10.
    np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(flows), jax.tree.leaves(wanted_flows), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # the same, summed over 40 rows


def test_impossible_rows_and_zero_weights():
    circuit = ALL["hclt"]
    p = circuit.init(0)
    # Unit 0 of every sum never passes to unit 1 of its child; state 1 of variable v is excluded.
    v = 0
    block = circuit.structure.input_blocks[circuit.structure.variables.index(v)]
    p = TensorParameters(
        p.log_weights.at[:, 0, 1].set(-jnp.inf),
        p.log_inputs.at[block, :, 1].set(-jnp.inf),
        p.log_root,
    ).normalize()
    rows = data(1, rows=6)
    rows[:, v] = [0, 1, 0, 1, 0, -1]
    values, flows = circuit.flows(p, rows)
    np.testing.assert_array_equal(np.isneginf(values), [False, True, False, True, False, False])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(flows))
    # Only the four possible rows use the root.
    np.testing.assert_allclose(float(flows.log_root.sum()), 4.0, **EXACT)
    assert not flows.log_weights[:, 0, 1].any()
    marginals = circuit.marginals(p, rows)
    assert all(np.isfinite(table).all() for table in marginals)
    assert not marginals[0][1].any()
    model = circuit.to_circuit(p)
    explicit = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    np.testing.assert_allclose(values, explicit, **EXACT)


def test_softening_is_soft_evidence():
    circuit = ALL["mixture"]
    p = circuit.init(2)
    rows = data(4, missing=True)
    share = 0.1
    tables = []
    for card in sorted(set(CARDS)):
        part = rows[:, [v for v in range(len(CARDS)) if CARDS[v] == card]]
        table = np.full((*part.shape, card), np.log(share / (card - 1)))
        np.put_along_axis(table, np.maximum(part, 0)[..., None], np.log(1 - share), axis=-1)
        table[part < 0] = 0.0
        tables.append(jnp.asarray(table))
    soft = circuit.flows(p, rows, softening=share)
    wanted = circuit.flows(p, log_evidence=tuple(tables))
    for a, b in zip(jax.tree.leaves(soft), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, **EXACT)


def test_unnormalised_parameters_and_log_partition():
    circuit = ALL["shared"]
    p = circuit.init(0)
    scaled = TensorParameters(p.log_weights + 900.0, p.log_inputs - 2.0, p.log_root)
    rows = rows_of(circuit)
    # Scaling every table of a circuit whose parses all use equally many changes nothing but log Z.
    plain = circuit.log_likelihood(p, rows)
    shifted = circuit.log_likelihood(scaled, rows, batch_size=3)
    assert float(circuit.log_partition(scaled)) > 1000
    model = circuit.to_circuit(scaled)
    explicit = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    np.testing.assert_allclose(shifted, explicit, rtol=0, atol=1e-11)  # numbers of size 2000
    assert abs(float(circuit.log_partition(p))) < 1e-12
    assert not np.allclose(plain, circuit.log_values(scaled, rows))


@pytest.mark.parametrize("name", [pytest.param("chain", marks=pytest.mark.slow), "scanned"])
def test_derivatives(name):
    circuit = ALL[name]
    p = circuit.init(0)
    rows = jnp.asarray(rows_of(circuit, count=2))
    # Central differences of step 1e-5 on values of size 10: errors of about 1e-9, and 1e-6 where
    # they are taken of derivatives.
    check_derivatives(lambda q: circuit.log_values(q, rows), (p,), tolerance=1e-6)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x - 1.0]), p)
    mapped = jax.vmap(lambda q: circuit.log_values(q, rows))(stacked)
    np.testing.assert_allclose(mapped[0], circuit.log_values(p, rows), **EXACT)


def test_many_states_are_gathered():
    circuit = factorised_mixture((20, 20), 3)
    p = circuit.init(0)
    rows = np.array([[19, 3], [-1, 0], [7, -1]])
    values, flows = circuit.flows(p, rows)
    model = circuit.to_circuit(p)
    explicit = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    np.testing.assert_allclose(values, explicit, **EXACT)
    np.testing.assert_allclose(float(flows.log_inputs[0].sum()), 3.0, **EXACT)


def test_the_second_call_does_not_compile():
    rows = jnp.asarray(data(0).astype(np.int8))
    first = hclt(data(), 3, cardinalities=CARDS)
    again = hclt(data(), 3, cardinalities=CARDS)
    assert first == again
    assert hash(first.structure) == hash(again.structure)
    traces = []

    @jax.jit
    def run(circuit, p):
        traces.append(0)
        return circuit.log_values(p, rows)

    run(first, first.init(0))
    run(again, again.init(1))
    assert len(traces) == 1
    assert first.structure != chain(3, 2).structure
    assert first.structure != "a circuit"


def test_sizes():
    circuit = ALL["mixture"]
    assert (circuit.num_variables, circuit.units, circuit.components) == (6, 2, 2)
    assert circuit.num_parameters == 2 * (5 * 4 + 2 * sum(CARDS) + 2)
    assert "2 components" in repr(circuit)
    assert chain(14, 2).num_parameters == 4 + 4 + 2
    assert chain(14, 2).depth == 14


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TensorCircuit((2,), 0, (0,), (), [(0,)]), "units is 0"),
        (lambda: TensorCircuit((0,), 1, (0,), (), [(0,)]), "at least 1 state"),
        (lambda: TensorCircuit((2,), 1, (0,), (), []), "no root"),
        (lambda: TensorCircuit((2,), 1, (1,), (), [(0,)]), "over variable 1"),
        (lambda: TensorCircuit((2,), 1, (0,), [[(1,)]], [(1,)]), "has child 1"),
        (lambda: TensorCircuit((2,), 1, (0,), [[()]], [(1,)]), "no children"),
        (lambda: TensorCircuit((2, 2), 1, (0, 0), (), [(0, 1)]), "not decomposable"),
        (lambda: TensorCircuit((2, 2), 1, (0, 1), (), [(0,)]), r"lacks variables \[1\]"),
        (
            lambda: TensorCircuit((2, 3), 1, (0, 1), (), [(0, 1)], input_blocks=(0, 0)),
            "2 and 3 states",
        ),
        (
            lambda: TensorCircuit((2, 2), 1, (0, 1), (), [(0, 1)], input_blocks=(0,)),
            "1 entries for 2 inputs",
        ),
        (
            lambda: TensorCircuit((2,), 1, (0,), [[(0,)]], [(1,)], sum_blocks=()),
            "0 entries for 1 sum",
        ),
        (
            lambda: TensorCircuit((2,), 1, (0,), [[(0,)]], [(1,)], sum_blocks=(1,)),
            "without gaps",
        ),
    ],
)
def test_faulty_structures(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_faulty_numbers():
    circuit = ALL["hclt"]
    p = circuit.init(0)
    rows = data(rows=3)
    soft = soft_evidence(circuit, 3)
    single = jax.tree.map(lambda t: t.astype(jnp.float32), soft)
    mixed = TensorParameters(p.log_weights, p.log_inputs, p.log_root.astype(jnp.float32))
    for call, match in (
        (lambda: circuit.log_values(ALL["chain"].init(0), rows), "log_weights has shape"),
        (lambda: circuit.log_values(mixed, rows), "mix dtypes"),
        (lambda: circuit.log_values(p), "either rows or log_evidence"),
        (lambda: circuit.log_values(p, rows, log_evidence=soft), "either rows or log_evidence"),
        (lambda: circuit.log_values(p, log_evidence=soft[:1]), "log_evidence has shapes"),
        (lambda: circuit.log_values(p, log_evidence=single), "parameters' dtype"),
        (lambda: circuit.log_values(p, rows[:, :2]), "data has shape"),
        (lambda: circuit.log_values(p, jnp.asarray(rows[:, :2])), "data has shape"),
        (lambda: jax.jit(lambda r: circuit.log_values(p, r))(jnp.ones((3, 6))), "float64"),
        (lambda: circuit.log_values(p, jnp.full((3, 6), 0.5)), "0.5 for variable 0 in row 0"),
        (lambda: circuit.log_values(p, rows + 2), "for variable 0 in row 0"),
        (lambda: circuit.log_values(p, rows, softening=1.0), "softening is 1.0"),
        (lambda: circuit.log_values(p, rows, softening=0.8), "softening is 0.8"),
        (lambda: circuit.log_likelihood(p, rows, batch_size=0), "batch_size is 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert circuit.log_likelihood(p, rows[:0]).shape == (0,)
    floats = np.where(rows == 0, np.nan, rows)
    np.testing.assert_array_equal(
        circuit.log_values(p, floats), circuit.log_values(p, np.where(rows == 0, -1, rows))
    )
