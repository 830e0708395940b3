"""condition(): the smaller model has the same answers, and says so when there are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import klprojax
from klprojax import ContradictionError, DiscreteModel, Elimination, condition, infer
from tests.operators._enumeration import enumerate_exact, joint_log_table, models


def discrete(model, **more):
    return DiscreteModel(
        tuple(model["cardinalities"]), tuple(model["scopes"]), tuple(model["log_tables"]), **more
    )


def with_evidence(model, observed):
    """Log-partition and marginals by enumeration with the evidence as unary factors."""
    evidence = [np.zeros(card) for card in model["cardinalities"]]
    for v, state in observed.items():
        evidence[v] = np.where(np.arange(len(evidence[v])) == state, 0.0, -np.inf)
    return enumerate_exact(model["cardinalities"], model["scopes"], model["log_tables"], evidence)


def chain():
    """Three variables in a row; the second factor allows equal states only."""
    rng = np.random.default_rng(2)
    equal = np.where(np.eye(3) > 0, 0.0, -np.inf)
    return DiscreteModel(
        (2, 3, 3),
        ((0, 1), (1, 2)),
        (rng.normal(size=(2, 3)), equal),
        variable_names=("a", "b", "c"),
        state_names=(("no", "yes"), ("x", "y", "z"), ("x", "y", "z")),
        name="chain",
    )


@given(models(zeros=0.4), st.data())
def test_same_answers_as_enumeration(model, data):
    cards = model["cardinalities"]
    # Observe part of an assignment that is possible.
    possible = np.argwhere(~np.isneginf(joint_log_table(**model)))
    chosen = possible[data.draw(st.integers(0, len(possible) - 1))]
    observed = {v: int(s) for v, s in enumerate(chosen) if data.draw(st.booleans())}
    reduced = condition(discrete(model), observed)
    small = reduced.model
    known = with_evidence(model, observed)
    found = enumerate_exact(small.cardinalities, small.scopes, small.log_tables)
    # Both sides add at most a dozen numbers of size 1 in another order: a few roundings of 2e-16.
    np.testing.assert_allclose(found.log_partition, known.log_partition, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(reduced.expand(found.marginals), known.marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-12)
    # Nothing is left to remove: every state kept is supported by every factor it meets.
    assert all(card > 1 for card in small.cardinalities)
    for scope, table in zip(small.scopes, small.log_tables, strict=True):
        for axis in range(len(scope)):
            others = tuple(a for a in range(len(scope)) if a != axis)
            assert (~np.isneginf(table)).any(axis=others).all()
    assert len(reduced.states) == len(cards)


@given(models(zeros=0.8, max_variables=4), st.data())
def test_a_contradiction_is_never_invented(model, data):
    observed = {
        v: data.draw(st.integers(0, card - 1)) for v, card in enumerate(model["cardinalities"])
    }
    # With all variables observed the propagation decides the question completely.
    if np.isneginf(joint_log_table(**model)[tuple(observed.values())]):
        with pytest.raises(ContradictionError, match="The evidence has probability zero"):
            condition(discrete(model), observed)
    else:
        assert condition(discrete(model), observed).kept == ()


def test_impossible_states_spread_along_the_graph():
    reduced = condition(chain(), {2: 1})
    # c = y forces b = y, which leaves a alone with a sliced table.
    assert reduced.kept == (0,)
    np.testing.assert_array_equal(reduced.states[1], [False, True, False])
    np.testing.assert_array_equal(reduced.model.log_tables[0], chain().log_tables[0][:, 1])
    assert reduced.model.variable_names == ("a",)
    assert reduced.model.state_names == (("no", "yes"),)
    assert reduced.model.name == "chain"
    a = np.array([0.25, 0.75])
    for got, wanted in zip(reduced.expand([a]), (a, [0, 1, 0], [0, 1, 0]), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_states_go_until_every_factor_agrees():
    # Four numbers of five that fall along a chain. Each factor learns from the one behind it, so a
    # pass over the factors, in their order, leaves states that only a third one removes.
    falls = np.tril(np.ones((5, 5), bool), -1)
    rng = np.random.default_rng(6)
    scopes = ((0, 1), (1, 2), (2, 3))
    tables = [np.where(falls, rng.normal(size=(5, 5)), -np.inf) for _ in scopes]
    model = {"cardinalities": [5] * 4, "scopes": scopes, "log_tables": tables}
    known = enumerate_exact(**model)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        reduced = condition(
            DiscreteModel(
                (5,) * 4, tuple(scopes[f] for f in order), tuple(tables[f] for f in order)
            )
        )
        # On a tree the states that are left are those of positive probability.
        for possible, marginal in zip(reduced.states, known.marginals, strict=True):
            np.testing.assert_array_equal(possible, np.asarray(marginal) > 0)
        assert reduced.model.cardinalities == (2, 2, 2, 2)
        small = reduced.model
        found = enumerate_exact(small.cardinalities, small.scopes, small.log_tables)
        # The same terms in the same sums: a few roundings of 2e-16.
        np.testing.assert_allclose(found.log_partition, known.log_partition, rtol=1e-13)
        for got, wanted in zip(reduced.expand(found.marginals), known.marginals, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-13)
    # An observation at one end decides all the others, one factor after another.
    chained = condition(discrete(model), {3: 1})
    assert chained.kept == ()
    assert [int(np.flatnonzero(states)[0]) for states in chained.states] == [4, 3, 2, 1]
    assert chained.model.log_tables[0] == pytest.approx(
        tables[0][4, 3] + tables[1][3, 2] + tables[2][2, 1], rel=1e-15
    )
    # What no factor sees alone: no four numbers fall from a second of at most 1.
    with pytest.raises(ContradictionError, match="The evidence has probability zero"):
        condition(discrete(model), {1: 1})


def test_states_can_be_impossible_without_evidence():
    model = DiscreteModel(
        (3, 2),
        ((0,), (0, 1)),
        (np.array([0.0, -np.inf, 1.0]), np.zeros((3, 2))),
        state_names=(("l", "m", "h"), ("off", "on")),
    )
    reduced = condition(model)
    assert reduced.model.cardinalities == (2, 2)
    assert reduced.model.state_names == (("l", "h"), ("off", "on"))
    assert [t.shape for t in reduced.model.log_tables] == [(2,), (2, 2)]
    np.testing.assert_array_equal(
        reduced.expand([np.array([0.4, 0.6]), np.array([1.0, 0.0])])[0], [0.4, 0.0, 0.6]
    )


def test_constants_of_observed_factors_stay_in_the_partition_function():
    model = chain()
    reduced = condition(model, {0: 1, 1: 2, 2: 2})
    assert reduced.kept == ()
    assert reduced.model.scopes == ((),)
    assert reduced.model.log_tables[0] == model.log_tables[0][1, 2]
    graph, log_potentials = reduced.model.to_graph()
    solution = infer(graph, log_potentials, Elimination())
    assert solution.log_partition == model.log_tables[0][1, 2]
    marginals = reduced.expand(graph.unpack_variables(solution.marginals))
    np.testing.assert_array_equal(marginals[0], [0, 1])


def test_contradictory_evidence_names_the_variables():
    with pytest.raises(
        ContradictionError, match=r"probability zero: no joint state of 'b' and 'c' is possible"
    ):
        condition(chain(), {1: 0, 2: 1})
    with pytest.raises(ContradictionError, match="Factor 0 is the constant zero"):
        condition(DiscreteModel((2,), ((),), (np.array(-np.inf),)))
    # Without evidence it is the model's doing.
    differ = DiscreteModel((2, 2), ((0, 1), (1,)), (np.full((2, 2), -np.inf), np.zeros(2)))
    with pytest.raises(ContradictionError, match=r"The model gives every .* Correct its factors\."):
        condition(differ)
    assert issubclass(ContradictionError, ValueError)


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({3: 0}, "No variable has index 3; there are 3 variables"),
        ({-1: 0}, "No variable has index -1"),
        ({1: 3}, "Variable 'b' has no state 3; its states are 0 to 2"),
        ({1: -1}, "Variable 'b' has no state -1"),
    ],
)
def test_evidence_must_name_variables_and_states_of_the_model(observed, message):
    with pytest.raises(ValueError, match=message):
        condition(chain(), observed)


def test_the_model_given_is_left_alone():
    model = chain()
    before = [table.copy() for table in model.log_tables]
    condition(model, {2: 1})
    for table, kept in zip(model.log_tables, before, strict=True):
        np.testing.assert_array_equal(table, kept)


def test_soft_evidence_is_one_more_factor():
    model = klprojax.load_model("asia")
    soft = np.log([0.9, 0.1])
    excluded = np.array([0.0, -np.inf])
    reduced = klprojax.condition(model, {"xray": soft, "smoke": excluded})
    assert model.variable_index("smoke") not in reduced.kept
    graph, tables = reduced.model.to_graph(np.float64)
    got = klprojax.infer(graph, tables, klprojax.Elimination())
    whole, log_potentials = model.to_graph(np.float64)
    known = whole.log_evidence(model.evidence({"xray": soft, "smoke": excluded}), np.float64)
    want = klprojax.infer(whole, log_potentials, klprojax.Elimination(), log_evidence=known)
    np.testing.assert_allclose(got.log_partition, want.log_partition, atol=1e-14)
    expanded = reduced.expand(graph.unpack_variables(got.marginals))
    for one, two in zip(expanded, whole.unpack_variables(want.marginals), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-14)
    with pytest.raises(ValueError, match=r"'xray'.*2 logarithms"):
        klprojax.condition(model, {"xray": [0.0, 0.0, 0.0]})


def test_states_expand_to_all_variables():
    model = klprojax.load_model("asia")
    reduced = klprojax.condition(model, {"either": "no"})
    states = reduced.expand_states([[1] * len(reduced.kept), [-1] * len(reduced.kept)])
    assert states.shape == (2, 8)
    # Without tuberculosis and cancer: the only states left.
    assert [model.state_names[v][states[0, v]] for v in (1, 3, 5)] == ["no"] * 3
    assert states[0, list(reduced.kept)].tolist() == [1] * len(reduced.kept)
    assert states[1, list(reduced.kept)].tolist() == [-1] * len(reduced.kept)
