"""What a check returns, the list of checks, and how differences are measured."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from klprojax.checks import Check, registered_checks, run_check, run_checks, statement
from klprojax.checks._measure import (
    kl,
    largest_difference,
    observed_order,
    outer,
    relative_difference,
)
from klprojax.checks._models import fixed_point, random_cycle
from klprojax.checks._registry import _REGISTERED, floating_type


def make(residual, tolerance=1e-3, expected=True):
    return Check("name", "Theorem 0", "a vs b", "as printed", residual, tolerance, expected)


@pytest.mark.parametrize(
    ("residual", "expected", "holds", "as_expected"),
    [
        (1e-4, True, True, True),
        (1e-2, True, False, False),
        (1e-2, False, False, True),
        (1e-4, False, True, False),
        (math.nan, True, False, False),
        (math.nan, False, False, False),
        (math.inf, True, False, False),
    ],
)
def test_verdicts(residual, expected, holds, as_expected):
    check = make(residual, expected=expected)
    assert check.holds is holds
    assert check.as_expected is as_expected


def test_a_check_is_frozen_and_plain_json():
    check = make(math.nan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.residual = 0.0
    content = json.loads(json.dumps(check.to_json(), allow_nan=False))
    assert content == {
        "name": "name", "statement": "Theorem 0", "compared": "a vs b", "reading": "as printed",
        "residual": None, "tolerance": 1e-3, "holds": False, "expected": True,
    }  # fmt: skip
    assert dataclasses.replace(check, error="why").to_json()["error"] == "why"


def test_adding_a_statement(monkeypatch):
    monkeypatch.setattr("klprojax.checks._registry._REGISTERED", dict(_REGISTERED))

    @statement("Theorem 9.9", "one vs one", reading="mine", expected=False)
    def theorem_9_9(seed=0, size=7, dtype=None):
        """Say something."""
        return seed + size + (dtype == "float32"), 1.0

    check = theorem_9_9(seed=2)
    assert check == Check("theorem_9_9", "Theorem 9.9", "one vs one", "mine", 9.0, 1.0, False)
    assert theorem_9_9(2, 1, "float32").residual == 4.0
    assert theorem_9_9.__doc__ == "Say something."
    assert registered_checks()[-1].name == "theorem_9_9"
    assert [c.as_expected for c in run_checks(["theorem_9"])] == [True]


def test_an_error_becomes_a_check_without_a_residual(monkeypatch):
    monkeypatch.setattr("klprojax.checks._registry._REGISTERED", {})

    @statement("Theorem 9.9", "one vs one")
    def theorem_9_9(seed=0, size=7, dtype=None):
        raise KeyError("lost")

    check = run_check(registered_checks()[0])
    assert math.isnan(check.residual)
    assert not check.as_expected
    assert check.error == "KeyError: 'lost'"
    with pytest.raises(KeyError, match="lost"):
        theorem_9_9()


def test_choosing():
    names = [entry.name for entry in registered_checks()]
    assert len(names) == len(set(names)) > 20
    assert [e.name for e in registered_checks(["t_proj_is_exact"])] == ["t_proj_is_exact"]
    chosen = [e.name for e in registered_checks(["corollary_3_4", "section_2_duality"])]
    # In the paper's order, whatever the order asked for.
    assert chosen == [n for n in names if n.startswith("corollary") or n == "section_2_duality"]
    for unknown in ("theorem_8", ""):
        with pytest.raises(ValueError, match=rf"no check '{unknown}'; the checks are section_2_"):
            registered_checks([unknown])


def test_types():
    assert floating_type() == np.float64
    assert floating_type("float32") == np.float32
    with pytest.raises(ValueError, match="got the type int32; checks compute in float32"):
        floating_type("int32")
    jax.config.update("jax_enable_x64", False)
    try:
        assert floating_type() == np.float32
        with pytest.raises(ValueError, match=r"float64 needs jax\.config\.update"):
            floating_type("float64")
    finally:
        jax.config.update("jax_enable_x64", True)


def test_differences():
    assert largest_difference((1.0, np.array([1.0, 4.0])), (1.5, np.array([1.0, 2.0]))) == 2.0
    assert math.isnan(largest_difference((np.array([math.nan]), 3.0), (np.array([0.0]), 0.0)))
    assert largest_difference(np.array([1 + 3j]), np.array([1 + 0j])) == 3.0
    # Unsigned and single-precision numbers are compared in float64.
    assert largest_difference(np.float32(0.1), np.float64(0.1)) > 0
    assert relative_difference([np.array([1.0, 12.0])], [np.array([1.0, 10.0])]) == 0.2
    assert relative_difference(1.0, 0.0) == 1.0
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(\) do not match"):
        largest_difference(np.ones(2), np.ones(()))
    with pytest.raises(ValueError, match="nothing to compare"):
        largest_difference((), ())


def test_small_helpers():
    steps = np.array([1.0, 2.0, 4.0])
    assert observed_order(steps, 5 * steps**3) == pytest.approx(3, abs=1e-12)  # rounding
    p, q = np.array([0.25, 0.75, 0.0]), np.array([0.5, 0.25, 0.25])
    want = 0.25 * math.log(0.5) + 0.75 * math.log(3)
    assert kl(p, q) == pytest.approx(want, abs=1e-15)  # a sum of two terms
    assert outer([p, q])[1, 2] == 0.75 * 0.25


def test_a_fixed_point_that_is_not_reached():
    with pytest.raises(ValueError, match="no fixed point within 2 steps; try another seed"):
        fixed_point(random_cycle(0, 3), max_steps=2)
