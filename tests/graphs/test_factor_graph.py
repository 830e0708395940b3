"""FactorGraph: construction, packing round trips, every error, equality and the pytree side."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax import BeliefPropagation, Elimination, FactorGraph, Sequential, infer
from klprojax.graphs import GroupSignature
from klprojax.graphs._wiring import scope_rows
from tests.operators._enumeration import models


def mixed():
    """Arities 0 to 3, mixed cardinalities, two factors on one scope, an isolated variable."""
    cards = [3, 2, 4, 2, 5]
    scopes = [(0,), (1, 0), (0, 1), (), (2, 1, 3), (3,)]
    rng = np.random.default_rng(0)
    tables = [np.asarray(rng.normal(size=[cards[v] for v in s])) for s in scopes]
    return cards, scopes, tables


# -- construction ------------------------------------------------------------------------------


def test_sizes_and_grouping_by_shape():
    cards, scopes, _ = mixed()
    graph = FactorGraph(cards, scopes)
    assert graph.num_variables == 5
    assert graph.num_factors == graph.num_items == 6
    assert graph.cardinalities == (3, 2, 4, 2, 5)
    # (1, 0) and (0, 1) have one shape once the axes are sorted by cardinality, so they share a
    # group; scopes keep their variables, smaller cardinality first.
    pair = graph.signature.groups.index(GroupSignature((2, 3), 2, (0, 1)))
    np.testing.assert_array_equal(graph.group_scopes[pair], [[1, 0], [1, 0]])
    assert [g.shape for g in graph.signature.groups] == [(3,), (2, 3), (), (2, 2, 4), (2,)]
    assert repr(graph) == "FactorGraph(5 variables, 6 factors in 5 groups)"


def test_no_factors_and_no_variables():
    lonely = FactorGraph([2, 3], [])
    assert (lonely.num_factors, lonely.num_items, lonely.pack([])) == (0, 0, ())
    empty = FactorGraph([], [])
    assert (empty.num_variables, empty.cardinalities, empty.log_evidence()) == (0, (), ())
    assert empty.unpack_variables(()) == []


def test_a_family_stays_one_group_in_the_given_order():
    cards = [2, 3, 2, 3]
    rows = np.array([[1, 0], [3, 2], [1, 2]])
    graph = FactorGraph(cards, [rows, (0, 1)])
    # Not sorted by cardinality, and not merged with the single scope of the same shape.
    assert [g.shape for g in graph.signature.groups] == [(3, 2), (2, 3)]
    np.testing.assert_array_equal(graph.group_scopes[0], rows)
    assert (graph.num_items, graph.num_factors) == (2, 4)


def test_a_family_takes_one_table_each_or_one_shared_table():
    rows = np.array([[0, 1], [1, 2]])
    graph = FactorGraph([2, 2, 2], [rows])
    each, shared = np.arange(8.0).reshape(2, 2, 2), np.arange(4.0).reshape(2, 2)
    for table in (each, shared):
        packed = graph.pack([table])
        assert packed[0].shape == table.shape  # a shared table is never copied
        np.testing.assert_array_equal(graph.unpack(packed)[0], table)
    single = FactorGraph([2, 2], [np.array([[0, 1]])])
    np.testing.assert_array_equal(single.unpack(single.pack([shared]))[0], shared)
    np.testing.assert_array_equal(single.unpack(single.pack([shared[None]]))[0], shared)


def test_factors_on_a_hub_are_wired_without_a_padded_table():
    # Padding the leaves to the hub's 500 factors would store 500 x 501 indices for 1000 edges.
    graph = FactorGraph([2] * 501, [np.array([[0, v] for v in range(1, 501)])])
    assert graph.signature.degrees == (0,)
    assert sum(leaf.size for leaf in jax.tree.leaves(graph.wiring)) < 5_000


# -- numbers in and out ------------------------------------------------------------------------


@given(models(zeros=0.3))
def test_pack_and_unpack_are_inverse(model):
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    packed = graph.pack(model["log_tables"])
    for group, table in zip(graph.signature.groups, packed, strict=True):
        assert table.shape == (group.count, *group.shape)
        assert table.dtype == np.float64
    for got, wanted in zip(graph.unpack(packed), model["log_tables"], strict=True):
        np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(graph.pack(graph.unpack(packed)), packed, strict=True):
        np.testing.assert_array_equal(got, wanted)


@given(models(evidence=True))
def test_variable_tables_round_trip(model):
    graph = FactorGraph(model["cardinalities"], model["scopes"])
    tables = model["log_evidence"]
    packed = graph.pack_variables(tables)
    assert [t.shape[1] for t in packed] == sorted(set(model["cardinalities"]))
    for got, wanted in zip(graph.unpack_variables(packed), tables, strict=True):
        np.testing.assert_array_equal(got, wanted)
    # Soft evidence on every variable is the same pytree.
    for got, wanted in zip(graph.log_evidence(dict(enumerate(tables))), packed, strict=True):
        np.testing.assert_array_equal(got, wanted)


@given(st.data())
def test_hard_evidence_excludes_all_other_states(data):
    cards = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    observed = {
        v: data.draw(st.integers(0, card - 1))
        for v, card in enumerate(cards)
        if data.draw(st.booleans())
    }
    graph = FactorGraph(cards, [])
    tables = graph.unpack_variables(graph.log_evidence(observed))
    for v, (table, card) in enumerate(zip(tables, cards, strict=True)):
        wanted = np.zeros(card)
        if v in observed:
            wanted = np.where(np.arange(card) == observed[v], 0.0, -np.inf)
        np.testing.assert_array_equal(table, wanted)


def test_dtypes_are_as_asked():
    cards, scopes, tables = mixed()
    graph = FactorGraph(cards, scopes)
    for packed in (
        graph.pack(tables, np.float32),
        graph.pack_variables([np.zeros(c) for c in cards], np.float32),
        graph.log_evidence({0: 1}, np.float32),
    ):
        assert {t.dtype for t in packed} == {np.dtype(np.float32)}


def test_packing_passes_derivatives():
    graph = FactorGraph([2, 3], [(1, 0), (0,)])
    tables = [jnp.arange(6.0).reshape(3, 2), jnp.ones(2)]

    def square(tables):
        return sum(jnp.sum(t**2) for t in graph.pack(tables))

    for gradient, table in zip(jax.grad(square)(tables), tables, strict=True):
        np.testing.assert_array_equal(gradient, 2 * table)

    def by_variable(tables):
        return sum(jnp.sum(t**2) for t in graph.unpack_variables(graph.pack_variables(tables)))

    evidence = [jnp.ones(2), jnp.arange(3.0)]
    for gradient, table in zip(jax.jit(jax.grad(by_variable))(evidence), evidence, strict=True):
        np.testing.assert_array_equal(gradient, 2 * table)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "factors", "message"),
    [
        ([2, 0], [], "Variable 1 has cardinality 0; every variable needs at least one state"),
        ([2, 2], [(0, 2)], r"factors\[0\] names variable 2; the graph has variables 0..1"),
        ([2, 2], [(0,), (-1,)], r"factors\[1\] names variable -1"),
        ([2, 2], [(1, 0, 1)], r"factors\[0\] repeats a variable in the scope \[1, 0, 1\]"),
        ([2, 2], [np.array([[0, 1], [1, 1]])], r"repeats a variable in the scope \[1, 1\]"),
        ([2, 2, 3], [np.array([[0, 1], [1, 2]])], "family whose rows differ in shape"),
        ([2, 2], [np.zeros((0, 2), int)], "family without factors; leave it out"),
    ],
)
def test_bad_structure(cards, factors, message):
    with pytest.raises(ValueError, match=message):
        FactorGraph(cards, factors)


def test_a_family_has_two_axes():
    # Run-time type checking refuses this at the constructor, so call what it would reach.
    with pytest.raises(ValueError, match="has 3 axes; expected one scope or an array"):
        scope_rows(0, np.zeros((1, 1, 2), int), np.array([2, 2]))


def test_bad_tables():
    graph = FactorGraph([2, 3], [(1, 0), (0,), np.array([[0], [0]])])
    good = [np.zeros((3, 2)), np.zeros(2), np.zeros(2)]
    graph.pack(good)
    with pytest.raises(ValueError, match="Got 2 tables for 3 entries of `factors`"):
        graph.pack(good[:2])
    with pytest.raises(
        ValueError, match=re.escape("factors[0] has shape (2, 3); expected (3, 2) or (1, 2, 3)")
    ):
        graph.pack([np.zeros((2, 3)), *good[1:]])
    with pytest.raises(
        ValueError, match=re.escape("factors[2] has shape (3, 2); expected (2,) or (2, 2)")
    ):
        graph.pack([*good[:2], np.zeros((3, 2))])
    several = FactorGraph([2, 2], [(0,), (1,)])
    with pytest.raises(ValueError, match=re.escape("factors[1] has shape (3,); expected (2,).")):
        several.pack([np.zeros(2), np.zeros(3)])


def test_bad_variable_tables_and_evidence():
    graph = FactorGraph([2, 3], [])
    with pytest.raises(ValueError, match="Got 1 tables for 2 variables"):
        graph.pack_variables([np.zeros(2)])
    with pytest.raises(ValueError, match=re.escape("variable 1 has shape (2,)")):
        graph.pack_variables([np.zeros(2), np.zeros(2)])
    with pytest.raises(ValueError, match=re.escape("names variable 2; the variables are 0..1")):
        graph.log_evidence({2: 0})
    for state in (3, -1):
        with pytest.raises(ValueError, match=f"variable 1 to state {state}; it has states 0..2"):
            graph.log_evidence({1: state})
    with pytest.raises(ValueError, match=re.escape("variable 1 has shape (2,); expected (3,)")):
        graph.log_evidence({1: np.zeros(2)})


def test_check_names_what_does_not_fit():
    graph = FactorGraph([2, 3], [(0, 1), (0,)])
    good = graph.pack([np.zeros((2, 3)), np.zeros(2)])
    graph.check(good, graph.log_evidence())
    graph.check((good[0][0], good[1]))  # shared by the whole group
    with pytest.raises(ValueError, match="has 1 arrays; the graph has 2 factor groups"):
        graph.check(good[:1])
    with pytest.raises(
        ValueError, match=re.escape("[0] has shape (2, 3, 2); expected (1, 2, 3), or (2, 3)")
    ):
        graph.check((jnp.zeros((2, 3, 2)), good[1]))
    with pytest.raises(ValueError, match=re.escape("expected ((1, 2), (1, 3))")):
        graph.check(good, (jnp.zeros((1, 2)),))
    with pytest.raises(ValueError, match=re.escape("mix dtypes ['float32', 'float64']")):
        graph.check(good, graph.log_evidence(dtype=np.float32))
    with pytest.raises(ValueError, match="factor groups"):  # `infer` checks too
        infer(graph, good[:1], Elimination())


# -- equality and the pytree side --------------------------------------------------------------


def test_equality_and_hash_are_by_content():
    cards, scopes, _ = mixed()
    one, two = FactorGraph(cards, scopes), FactorGraph(np.array(cards), scopes)
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1
    assert one != "graph"
    swapped = FactorGraph(cards, [(0,), (1, 0), (0, 1), (), (2, 3, 1), (3,)])
    assert one != swapped
    assert FactorGraph([2, 2], []) != FactorGraph([2, 3], [])


def test_signatures_agree_exactly_when_shapes_do():
    path = FactorGraph([2] * 4, [np.array([[0, 1], [1, 2], [2, 3]])])
    other = FactorGraph([2] * 4, [np.array([[3, 1], [1, 0], [0, 2]])])
    star = FactorGraph([2] * 4, [np.array([[0, 1], [0, 2], [0, 3]])])
    assert path.signature == other.signature
    assert path != other
    assert jax.tree.structure(path) == jax.tree.structure(other)
    # The padded wiring is as wide as the largest degree, so the star is another program.
    assert path.signature != star.signature


def test_a_graph_is_a_pytree_of_integers():
    cards, scopes, _ = mixed()
    graph = FactorGraph(cards, scopes)
    leaves, structure = jax.tree.flatten(graph)
    assert all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves)
    assert jax.tree.unflatten(structure, leaves) == graph
    assert jax.jit(lambda g: g)(graph) == graph
    assert hash(structure) == hash(jax.tree.structure(FactorGraph(cards, scopes)))


def test_a_graph_passes_through_jit_as_an_argument():
    graph = FactorGraph([2, 3, 2], [(0, 1), (1, 2), (0,)])
    rng = np.random.default_rng(1)
    tables = graph.pack([rng.normal(size=s) for s in ((2, 3), (3, 2), (2,))])
    solver = BeliefPropagation()

    @jax.jit
    def log_partition(graph, tables):
        return infer(graph, tables, solver, throw=False).log_partition

    # The same operations, so the same rounding up to the compiler's fusion choices.
    np.testing.assert_allclose(
        log_partition(graph, tables), infer(graph, tables, solver).log_partition, rtol=1e-14
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda graph: graph.cardinalities,
        lambda graph: graph.pack([np.zeros((2, 2))]),
        lambda graph: hash(graph),
        lambda graph: infer(graph, (jnp.zeros((1, 2, 2)),), Elimination()),
        lambda graph: infer(
            graph, (jnp.zeros((1, 2, 2)),), BeliefPropagation(schedule=Sequential())
        ),
    ],
    ids=["cardinalities", "pack", "hash", "Elimination", "Sequential"],
)
def test_what_needs_concrete_wiring_says_so(use):
    graph = FactorGraph([2, 2], [(0, 1)])

    def inside(graph):
        use(graph)
        return 0

    with pytest.raises(ValueError, match="Close over the graph instead"):
        jax.jit(inside)(graph)


def test_a_closed_over_graph_is_static():
    graph = FactorGraph([2, 2], [(0, 1)])

    @eqx.filter_jit
    def count(tables):
        return jnp.asarray(graph.num_factors + len(graph.cardinalities)) + 0 * tables[0].size

    assert count(graph.pack([np.zeros((2, 2))])) == 3
