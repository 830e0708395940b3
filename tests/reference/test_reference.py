"""The reference files: what they say of small models, and that they stay small and plain."""

import ast
from pathlib import Path

import numpy as np
import pytest

from tests.operators._enumeration import enumerate_exact, random_tables

from . import circuit_sweep, em
from .bp_sweep import iterates
from .elimination import eliminate, marginal

FILES = sorted(p for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("test_"))
EXACT = {"rtol": 0, "atol": 1e-13}  # sums of a hundred terms below ten


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_files_are_short_plain_numpy_and_linked(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    tree = ast.parse(text)
    assert "Reference: " in ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert [alias.name for alias in node.names] == ["numpy"]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module == "functools"
    name = f"tests/reference/{path.name}"
    root = path.parents[2]
    assert any(name in p.read_text(encoding="utf-8") for p in (root / "klprojax").rglob("*.py"))
    assert name in (root / "docs" / "one_operator.md").read_text(encoding="utf-8")


def test_elimination_is_enumeration_and_belief_propagation_on_a_tree():
    cards = [2, 3, 2, 4]
    rng = np.random.default_rng(0)
    tree, loopy = [(1, 0), (1, 2), (3, 1), (3,)], [(1, 0), (2, 1), (0, 2, 3)]
    for scopes in (tree, loopy):
        tables, _ = random_tables(rng, cards, scopes, 0.2)
        exact = enumerate_exact(cards, scopes, tables)
        np.testing.assert_allclose(eliminate(cards, scopes, tables), exact.log_partition, **EXACT)
        for scope, want in zip(scopes, exact.factor_marginals, strict=True):
            np.testing.assert_allclose(marginal(cards, scopes, tables, scope), want, **EXACT)
        best = eliminate(cards, scopes, tables, reduce=np.maximum)
        joint = eliminate(cards, scopes, tables, range(4))
        np.testing.assert_allclose(best, joint.max(), **EXACT)
        *_, (beliefs, _) = iterates(cards, scopes, tables, 6)
        gaps = [np.abs(b - m).max() for b, m in zip(beliefs, exact.marginals, strict=True)]
        assert (max(gaps) < 1e-13) == (scopes is tree)


def test_circuit_by_hand():
    # .4 (.3, .7)x(.2, .8) + .6 (.9, .1)x(.2, .8); the second factor is shared.
    nodes = [
        ("leaf", 0, 0), ("leaf", 0, 1), ("leaf", 1, 2),
        ("product", (0, 2)), ("product", (1, 2)), ("sum", (3, 4), 3),
    ]  # fmt: skip
    parameters = [np.array(p) for p in ([0.3, 0.7], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6])]
    free, first = em.row_evidence((-1, -1), (2, 2)), em.row_evidence((0, -1), (2, 2))
    got = circuit_sweep.marginals(nodes, parameters, free)
    np.testing.assert_allclose(got, [[0.66, 0.34], [0.2, 0.8]], **EXACT)
    assert circuit_sweep.upward(nodes, parameters, first)[-1] == pytest.approx(0.66)
    # One row with x = 0: the first product has .12 of .66, and all of the mass is on x = 0.
    new = em.em_step(nodes, parameters, [(0, -1)], (2, 2))
    want = [[1, 0], [1, 0], [0.2, 0.8], [0.12 / 0.66, 0.54 / 0.66]]
    np.testing.assert_allclose(new, want, **EXACT)
