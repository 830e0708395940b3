"""The checks and look-ups of DiscreteModel."""

import numpy as np
import pytest

from klprojax.graphs._model import DiscreteModel


def build(**changes):
    parts = {
        "cardinalities": (2, 3, 1),
        "scopes": ((0, 1), (), (2,)),
        "log_tables": (np.zeros((2, 3)), np.array(-0.5), np.zeros(1)),
        "variable_names": ("rain", "wind", "sun"),
        "state_names": (("yes", "no"), ("low", "mid", "high"), ("on",)),
    }
    return DiscreteModel(**{**parts, **changes})


def test_parts_are_normalised_and_read_only():
    table = np.zeros((2, 3), order="F")
    model = build(
        cardinalities=(2, 3, 1),
        log_tables=(table, np.array(-0.5, np.float32), np.zeros(1, int)),
    )
    assert model.cardinalities == (2, 3, 1)
    assert model.scopes == ((0, 1), (), (2,))
    assert model.log_tables[0].flags.c_contiguous
    assert [t.dtype for t in model.log_tables] == [np.float64] * 3
    assert model.log_tables[1].shape == ()
    with pytest.raises(ValueError, match="read-only"):
        model.log_tables[0][0, 0] = 1.0
    table[0, 0] = 7.0
    assert model.log_tables[0][0, 0] == 0.0


def test_names_default_to_indices():
    model = DiscreteModel((2, 2), (), ())
    assert model.variable_names == ("0", "1")
    assert model.kind == "MARKOV"
    assert model.state_names is None


def test_odd_shapes_are_legal():
    # a variable in no factor, two factors with one scope, no variable at all
    DiscreteModel((2, 2), ((0,), (0,)), (np.zeros(2), np.full(2, -np.inf)))
    DiscreteModel((), ((),), (np.array(1.0),))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cardinalities": (2, 0, 1)}, "Variable 1 has 0 states"),
        ({"variable_names": ("a", "b")}, "2 variable names for 3 variables"),
        ({"variable_names": ("a", "b", "a")}, "variable names must be distinct, but 'a'"),
        ({"state_names": (("yes", "no"),)}, "state names of 1 variables for 3"),
        ({"state_names": (("y", "n"), ("l", "h"), ("o",))}, "'wind' has 3 states but 2"),
        ({"state_names": (("y", "y"), ("l", "m", "h"), ("o",))}, "'rain' must be distinct"),
        ({"scopes": ((0, 1), ())}, "2 scopes but 3 log-tables"),
        ({"scopes": ((0, 3), (), (2,))}, "Factor 0 has scope .* variables are 0 to 2"),
        ({"scopes": ((0, -1), (), (2,))}, "Factor 0 has scope"),
        ({"scopes": ((0, 0), (), (2,))}, "repeats a variable"),
        ({"scopes": ((1, 0), (), (2,))}, r"shape \(2, 3\), but the cardinalities .* \(3, 2\)"),
        ({"log_tables": (np.zeros((2, 3)), np.array(np.nan), np.zeros(1))}, "Factor 1 has a NaN"),
        (
            {"log_tables": (np.full((2, 3), np.inf), np.array(0.0), np.zeros(1))},
            r"Factor 0 .* \+inf",
        ),
        ({"kind": "bayes"}, "kind must be one of BAYES, MARKOV, got 'bayes'"),
    ],
)
def test_contradictions_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


def test_too_many_axes_are_refused():
    with pytest.raises(ValueError, match="65 variables; an array has at most 64 axes"):
        DiscreteModel((1,) * 65, (tuple(range(65)),), (np.zeros(()),))


def test_indices_by_name_and_index():
    model = build()
    assert model.variable_index("wind") == 1
    assert model.variable_index(np.int64(2)) == 2
    assert model.state_index("wind", "high") == 2
    assert model.state_index(1, 2) == 2
    assert model.evidence({"sun": "on", 0: 1}) == {2: 0, 0: 1}
    nameless = build(state_names=None)
    assert nameless.state_index("wind", "2") == 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.variable_index("wnd"), "No variable is named 'wnd'. Known: rain, wind, sun"),
        (lambda m: m.variable_index("1"), "No variable is named '1'"),
        (lambda m: m.variable_index(3), "No variable has index 3; there are 3"),
        (lambda m: m.variable_index(-1), "No variable has index -1"),
        (lambda m: m.variable_index(True), "No variable has index True"),
        (lambda m: m.state_index("wind", "hi"), "'wind' has no state 'hi'. Known: low, mid, high"),
        (lambda m: m.state_index("wind", 3), "'wind' has no state 3; its states are 0 to 2"),
        (lambda m: m.state_index("wind", True), "'wind' has no state True"),
        (lambda m: m.evidence({"rain": 0, 0: 1}), "'rain' is observed twice"),
    ],
)
def test_unknown_names_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(build())


@pytest.mark.parametrize("state", ["3", "-1", "01", "x", "²", "9" * 5000])
def test_unknown_states_without_names_are_refused(state):
    with pytest.raises(ValueError, match="its states are 0 to 2"):
        build(state_names=None).state_index("wind", state)


def test_close_matches_among_many():
    names = tuple(f"node_{i}" for i in range(100))
    model = DiscreteModel((2,) * 100, (), (), variable_names=names)
    with pytest.raises(ValueError, match=r"Close matches: .*node_42"):
        model.variable_index("nod_42")
    # no comparison with a name of a megabyte: that would take minutes
    with pytest.raises(ValueError, match="No variable is named") as caught:
        model.variable_index("n" * 10**6)
    assert "Close matches" not in str(caught.value)
