"""Every notebook runs from the top to the end, offline, and checks what it claims."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
EXPECTED = {
    "adam_against_projection",
    "backpropagation_is_a_projection",
    "belief_propagation_is_dykstra",
    "circuits_make_projection_exact",
    "differentiating_through_bp",
    "ldpc_decoding",
    "one_operator",
    "sinkhorn_and_schroedinger",
    "where_the_paper_needs_a_reading",
}
# More than a dozen seconds of work each: not in the default run.
LONG = {
    "adam_against_projection",
    "differentiating_through_bp",
    "ldpc_decoding",
    "one_operator",
    "where_the_paper_needs_a_reading",
}


def test_the_notebooks_are_those_that_the_documentation_names():
    assert {path.stem for path in NOTEBOOKS} == EXPECTED
    assert LONG < EXPECTED
    listed = (ROOT / "docs" / "notebooks.md").read_text()
    assert set(re.findall(r"\(notebooks/(\w+)\.md\)", listed)) == EXPECTED


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else [], id=p.stem)
        for p in NOTEBOOKS
    ],
)
def test_notebook_runs(path, tmp_path):
    settings = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        # No figure and no file may be left where the notebooks are.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_explains_draws_and_asserts(path):
    text = path.read_text()
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    assert len(prose) >= 3
    assert prose[0].splitlines()[1].startswith("# # ")
    nodes = list(ast.walk(ast.parse(text)))
    assert any(isinstance(node, ast.Assert) for node in nodes)
    called = {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert called & {"subplots"}
    assert re.search(r"Theorem|Proposition|Corollary|[Ss]ection|Lemma", text)
