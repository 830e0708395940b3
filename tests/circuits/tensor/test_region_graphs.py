"""Circuits of region graphs, and mixtures, against the explicit sweep."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits import log_likelihood, sweep
from klprojax.circuits.learning import AdamStep, em_step, fit, maximize
from klprojax.circuits.tensor import (
    TensorCircuit,
    TensorParameters,
    load_tensor_circuit,
    poon_domingos,
    quad_tree,
    rat_spn,
    region_circuit,
    save_tensor_circuit,
)
from klprojax.circuits.tensor._plan import POOL, make_plan
from klprojax.circuits.tensor._structure import TensorStructure

from ._models import CARDS, data, region_circuits

ALL = region_circuits()
# A few hundred roundings of numbers of size 10 (log-values) or below (flows).
EXACT = {"rtol": 0.0, "atol": 1e-12}


def rows_of(circuit, seed=1, count=6):
    """Rows with missing entries."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1, np.asarray(circuit.cardinalities), (count, circuit.num_variables))


def uses_of(circuit, uses):
    """Flows of the weights of sums, mixtures and the root from those of the explicit circuit."""
    s = circuit.structure
    sums = np.zeros((s.num_sum_blocks, s.units, s.units))
    mixing = np.zeros((len(s.mixtures), s.units, max(s.max_partitions, 1)))
    at, row = 0, iter(s.weights_of)
    for number, level in enumerate(s.levels):
        for children in level:
            width = len(children) if number in s.mixing else s.units
            own = uses[at : at + s.units * width].reshape(s.units, width)
            at += s.units * width
            if number in s.mixing:
                mixing[next(row), :, :width] += own
            else:
                sums[next(row)] += own
    return sums, mixing if s.mixing else None, uses[at:].reshape(len(s.roots), s.units)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "coarse")) for n in ALL]
)
def test_equals_the_explicit_circuit(name):
    circuit = ALL[name]
    parameters = circuit.init(1)
    # The explicit form checks completeness and decomposability node by node.
    model = circuit.to_circuit(parameters)
    rows = rows_of(circuit)
    evidence = model.circuit.evidence_from_data(rows)[0]
    swept = jax.jit(
        jax.vmap(
            lambda e: sweep(
                model.circuit, model.log_weights, e, leaf_parameters=model.leaf_parameters
            )
        )
    )(evidence)
    values, flows = circuit.flows(parameters, rows)
    np.testing.assert_allclose(values, swept.log_partition, **EXACT)
    sums, mixing, root = uses_of(circuit, np.asarray(swept.edge_probs.sum(0)))
    np.testing.assert_allclose(flows.log_weights, sums, **EXACT)
    np.testing.assert_allclose(flows.log_root, root, **EXACT)
    assert (flows.log_mixing is None) == (mixing is None)
    if mixing is not None:
        np.testing.assert_allclose(flows.log_mixing, mixing, **EXACT)
    for ours, theirs in zip(circuit.marginals(parameters, rows), swept.marginals, strict=True):
        np.testing.assert_allclose(ours, theirs, **EXACT)
    assert abs(float(circuit.log_partition(parameters))) < 1e-12


@pytest.mark.parametrize("name", ["rat", "images", "uneven"])
def test_float32_is_close_to_float64(name):
    circuit = ALL[name]
    exact = circuit.init(0)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), exact)
    rows = rows_of(circuit, seed=2)
    values, flows = circuit.flows(single, rows)
    wanted, wanted_flows = circuit.flows(exact, rows)
    assert values.dtype == flows.log_mixing.dtype == jnp.float32
    # Two dozen roundings (6e-8) of numbers of size 15.
    np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5)
    for a, b in zip(jax.tree.leaves(flows), jax.tree.leaves(wanted_flows), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # the same, summed over the rows


@pytest.mark.parametrize(
    "name", ["uneven", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rat", "coarse"))]
)
def test_full_batch_em_never_falls(name):
    circuit = ALL[name]
    rows = data(0, 40, circuit.cardinalities, missing=True)
    step = jax.jit(lambda p: em_step(circuit, p, jnp.asarray(rows)))
    p, values = circuit.init(0), []
    for _ in range(12):
        p, value = step(p)
        values.append(float(value))
    assert (np.diff(values) > -1e-13).all()  # rounding of a mean of numbers of size 8
    assert values[-1] > values[0] + 0.1
    assert abs(float(circuit.log_partition(p))) < 1e-12
    inside = np.arange(circuit.structure.max_partitions) < circuit.structure.partitions[:, None]
    mass = np.exp(p.log_mixing).sum(2)
    np.testing.assert_allclose(mass, 1.0, **EXACT)
    assert np.isneginf(p.log_mixing.transpose(0, 2, 1)[~inside]).all()


def test_children_from_many_levels(monkeypatch):
    """The plan for wide region graphs, on a small one."""
    monkeypatch.setattr("klprojax.circuits.tensor._plan.MOST_SOURCES", 0)
    circuit = poon_domingos(2, 4, 2, delta=1)
    products = make_plan(circuit.structure).products
    assert sum(bool(product.pool) for product in products) >= 4
    parameters, rows = circuit.init(1), rows_of(circuit)
    model = circuit.to_circuit(parameters)
    wanted = log_likelihood(
        model.circuit, model.log_weights, rows, leaf_parameters=model.leaf_parameters
    )
    np.testing.assert_allclose(circuit.log_values(parameters, rows), wanted, **EXACT)
    evidence = model.circuit.evidence_from_data(rows)[0]
    soft = circuit.log_values(parameters, log_evidence=evidence)
    np.testing.assert_allclose(soft, wanted, **EXACT)


def test_maximize_spreads_the_pseudocount_over_partitions():
    circuit = ALL["uneven"]
    p = circuit.init(0)
    flows = jax.tree.map(jnp.zeros_like, p)
    flows = TensorParameters(
        flows.log_weights, flows.log_inputs, flows.log_root,
        flows.log_mixing.at[0, 0].set(jnp.array([4.0, 0.0, 2.0])),
    )  # fmt: skip
    new = maximize(circuit, flows, p, pseudocount=3.0)
    # 4, 0, 2 and one more each; nothing reached the other unit, which becomes uniform.
    np.testing.assert_allclose(np.exp(new.log_mixing[0, 0]), [5 / 9, 1 / 9, 3 / 9], rtol=1e-14)
    np.testing.assert_allclose(np.exp(new.log_mixing[0, 1]), [1 / 3] * 3, rtol=1e-14)
    kept = maximize(circuit, flows, p)
    np.testing.assert_array_equal(kept.log_mixing[0, 1], p.log_mixing[0, 1])


def test_gradients_train_mixtures():
    circuit = ALL["rat"]
    rows = data(0, 40, CARDS)
    result = fit(circuit, rows, step=AdamStep(0.1, 0.1), epochs=3, batch_size=20)
    history = [epoch["train_log_likelihood"] for epoch in result.history]
    assert history[-1] > history[0]
    start = circuit.init(0)
    assert np.abs(np.exp(result.parameters.log_mixing) - np.exp(start.log_mixing)).max() > 1e-3


def test_random_trees():
    circuit = rat_spn((2,) * 16, 2, depth=2, repetitions=3, seed=5)
    s = circuit.structure
    # Three trees of four leaf regions with four variables each, and no region twice.
    assert s.num_inputs == 3 * 16
    assert [len(level) for level in s.levels] == [12, 6]
    assert all(len(node) == 4 for node in s.levels[0])
    assert circuit.components == 3
    assert circuit == rat_spn((2,) * 16, 2, depth=2, repetitions=3, seed=5)
    assert circuit != rat_spn((2,) * 16, 2, depth=2, repetitions=3, seed=6)
    assert rat_spn((2, 3), 4, depth=0).structure.roots == ((0, 1),)
    # Two variables can be split in one way: the repetitions are one.
    assert rat_spn((2, 3), 4, depth=5, repetitions=3).components == 1
    # Down to single variables, which all trees share.
    assert rat_spn((2,) * 8, 2, depth=9, repetitions=5).structure.num_inputs == 8


def scopes_of(circuit):
    """Scope of every vector."""
    s = circuit.structure
    scopes = [frozenset([v]) for v in s.variables]
    for node in [n for level in s.levels for n in level]:
        scopes.append(frozenset().union(*(scopes[c] for c in node)))
    return scopes


def test_every_split_of_an_image():
    circuit = poon_domingos(2, 3, 2, delta=1)
    s = circuit.structure
    rectangles = {
        frozenset(3 * i + j for i in range(a, b) for j in range(c, d))
        for (a, b), (c, d) in itertools.product(
            itertools.combinations(range(3), 2), itertools.combinations(range(4), 2)
        )
    }
    scopes = scopes_of(circuit)
    assert set(scopes) == rectangles - {frozenset(range(6))}  # the root is no vector
    # The splits of each rectangle: one per line that crosses it.
    mixtures = {scopes[node[0]]: len(node) for node in s.mixtures}
    assert mixtures == {
        frozenset({0, 1, 2}): 2, frozenset({3, 4, 5}): 2,
        frozenset({0, 1, 3, 4}): 2, frozenset({1, 2, 4, 5}): 2,
    }  # fmt: skip
    assert circuit.components == 3
    cells = poon_domingos(4, 4, 2, delta=2)
    assert {len(scope) for scope in scopes_of(cells)} == {1, 4, 8}
    assert cells.structure.mixing == ()
    # Lines 2 apart first, then single pixels.
    assert {len(scope) for scope in scopes_of(poon_domingos(4, 4, 2, delta=(2, 1)))} == {1, 2, 4, 8}
    assert poon_domingos(2, 2, 3, delta=5).structure.roots == ((0, 1, 2, 3),)


def test_quarters_of_an_image():
    circuit = quad_tree(4, 4, 2)
    scopes = scopes_of(circuit)
    assert {0, 1, 4, 5} in scopes
    assert sorted(map(len, scopes)) == [1] * 32 + [4] * 4
    assert len(circuit.structure.roots[0]) == 4
    line = quad_tree(1, 5, 2)
    assert {len(scope) for scope in scopes_of(line)} == {1, 2, 3}
    assert quad_tree(1, 1, 2).num_variables == 1


def test_the_program_grows_with_the_depth():
    """A finer grid of equal depth compiles to as many operations."""

    def operations(circuit):
        rows = jnp.zeros((2, circuit.num_variables), jnp.int8)
        p = circuit.init(0)
        text = jax.jit(circuit.log_values).lower(p, rows).as_text()
        return len(text.splitlines())

    wide, narrow = (rat_spn((2,) * n, 2, depth=2, repetitions=n // 8) for n in (64, 16))
    assert len(wide.structure.sum_blocks) > 3 * len(narrow.structure.sum_blocks)
    assert operations(wide) < 1.1 * operations(narrow)
    # Rectangles of one level have parts from many levels; they are read from one array.
    plan = make_plan(poon_domingos(6, 6, 2, delta=1).structure)
    assert any(product.pool for product in plan.products)
    for product in plan.products:
        if product.pool:
            assert {part.source for part in product.parts} == {POOL}


@pytest.mark.parametrize("name", ["rat", "coarse", "uneven"])
def test_files_keep_mixtures(tmp_path, name):
    circuit = ALL[name]
    p = circuit.init(0, dtype=jnp.float32)
    save_tensor_circuit(tmp_path / "circuit.npz", circuit, p)
    model = load_tensor_circuit(tmp_path / "circuit.npz")
    assert model.circuit == circuit
    assert hash(model.circuit.structure) == hash(circuit.structure)
    np.testing.assert_array_equal(model.parameters.log_mixing, p.log_mixing)
    assert model.parameters.log_mixing.dtype == jnp.float32


def test_sizes_and_numbers():
    circuit = ALL["uneven"]
    assert circuit.num_parameters == 2 * (5 * 2 + 7 + 3 + 2)
    assert circuit.parameter_shapes["log_mixing"] == (1, 2, 3)
    p = circuit.init(0)
    without = TensorParameters(p.log_weights, p.log_inputs, p.log_root)
    with pytest.raises(ValueError, match="log_mixing has shape None"):
        circuit.log_partition(without)
    shifted = TensorParameters(p.log_weights, p.log_inputs, p.log_root, p.log_mixing + 3.0)
    assert float(circuit.log_partition(shifted)) > 1
    np.testing.assert_allclose(shifted.normalize().log_mixing, p.log_mixing, rtol=0, atol=1e-14)
    # A partition without weight is never used.
    p = TensorParameters(
        p.log_weights, p.log_inputs, p.log_root, p.log_mixing.at[:, :, 1].set(-jnp.inf)
    ).normalize()
    values, flows = circuit.flows(p, rows_of(circuit))
    assert np.isfinite(values).all()
    assert not flows.log_mixing[:, :, 1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(flows))


HALVES = [frozenset({0}), frozenset({1})]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: rat_spn((2, 2), 2, depth=-1), "depth is -1"),
        (lambda: rat_spn((2, 2), 2, repetitions=0), "repetitions is 0"),
        (lambda: quad_tree(0, 3, 2), "0 x 3"),
        (lambda: poon_domingos(3, 3, 2, delta=0), "delta is 0"),
        (lambda: region_circuit({frozenset({0, 1}): [HALVES[:1]]}, (2, 2), 2), "at least 2 parts"),
        (
            lambda: region_circuit({frozenset({0, 1}): [[HALVES[0]] * 2]}, (2, 2), 2),
            "not disjoint",
        ),
        (
            lambda: TensorCircuit((2, 2), 1, (0, 1), [[(0,), (1,)], [(2, 3)]], [(4,)], mixing=(1,)),
            "not smooth",
        ),
        (lambda: TensorCircuit((2,), 1, (0,), [[(0,)]], [(1,)], mixing=(1,)), "mixing is"),
        (lambda: TensorCircuit((2,), 1, (0,), [[()]], [(1,)], mixing=(0,)), "no children"),
    ],
)
def test_faults(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_too_many_partitions_of_any_graph(monkeypatch):
    monkeypatch.setattr("klprojax.circuits.tensor._region_graphs.MOST_PARTITIONS", 2)
    with pytest.raises(ValueError, match="take a coarser one"):
        rat_spn((2,) * 8, 2, depth=2, repetitions=1)
    with pytest.raises(ValueError, match="take a larger delta than 1"):
        poon_domingos(2, 2, 2, delta=1)


def test_structures_differ_by_their_mixtures():
    plain = TensorStructure((2,), 1, (0,), (0,), (((0,),),), (0,), ((1,),))
    mixed = TensorStructure((2,), 1, (0,), (0,), (((0,),),), (), ((1,),), (0,))
    mixed.check()
    assert plain != mixed
