"""Every example in the README and in a docstring runs; the README's tables are those measured."""

import doctest
import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import klprojax
from benchmarks import readme
from klprojax.checks import registered_checks

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    m.name
    for m in pkgutil.walk_packages(klprojax.__path__, "klprojax.")
    if ">>>" in Path(importlib.util.find_spec(m.name).origin).read_text()
]


# What a reader of the examples is promised.
PROMISES = """
assert exact.exact and not loopy.exact
# Loopy: near the exact answer, and not equal to it.
gap = abs(float(exact.marginals[0][0, 0] - loopy.beliefs[0][0, 0]))
assert 1e-3 < gap < 0.1, gap
assert all(bool(jnp.any(slope != 0)) for slope in slopes)
point = jnp.array([0.3, 0.8])
# The lattice's spacing squared, times curvatures of order one.
np.testing.assert_allclose(jax.grad(readout)(point), jax.grad(mine)(point), atol=2e-4)
wanted = jax.grad(energy, (0, 1))(jnp.array([[0.5, -1.0], [2.0, 0.3]]), jnp.array([1.0, 2.0]))
for found, right in zip(messages.inputs, wanted, strict=True):
    # The chain rule in another order, float32.
    np.testing.assert_allclose(found, right, rtol=1e-5)
marginals = circuit.unpack_variables(answer.marginals)
# Rounding of a sweep in float32.
np.testing.assert_allclose(marginals[model.variable_names.index("xray")], [1, 0], atol=1e-6)
assert history[-1]["validation_accuracy"] > 0.7
"""


def test_readme_snippets_run_in_order(tmp_path):
    # As a user runs them: in a fresh interpreter, with JAX's own settings.
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 7
    assert all(len([line for line in block.splitlines() if line]) <= 7 for block in blocks)
    script = tmp_path / "script.py"
    script.write_text("\n".join([*blocks, PROMISES]))
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(README.parent)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_readme_has_exactly_two_install_commands():
    commands = re.findall(r"^pip install .*$", README.read_text(), re.MULTILINE)
    assert commands == [
        'pip install ".[plot,data]" && klprojax demo',
        'pip install ".[test]" && python -m pytest',
    ]


def test_the_script_that_runs_the_readme_finds_both_commands():
    # As the shell script does it: the rest of the line after what installs the package.
    script = (README.parent / ".ci" / "run").read_text()
    patterns = re.findall(r"sed -n 's/\^(pip install .*?)//p' README", script)
    text = README.read_text()
    found = [re.findall(rf"^{pattern}(.*)$", text, re.MULTILINE) for pattern in patterns]
    assert found == [["klprojax demo"], ["python -m pytest"]]


def test_readme_begins_with_three_sentences_a_picture_and_the_commands():
    text = README.read_text()
    lead = text.partition("\n\n")[2].partition("\n\n")[0]
    assert len(re.findall(r"\.(?:\s|$)", lead)) == 3
    picture = README.parent / re.search(r"!\[[^]]+\]\(([^)]+)\)", text)[1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000
    order = [text.index(part) for part in ("![", "pip install", "## Inference", "## Limits")]
    assert order == sorted(order)


def test_readme_is_for_users_of_the_library():
    text = README.read_text()
    assert not re.search(r"localhost|/home/|/tmp/|\.\./|file://|pypi|https?://", text)
    assert "/wo" + "rk" not in text


def test_tables_of_the_readme_are_those_of_the_stored_results():
    text = README.read_text(encoding="utf-8")
    assert text == readme.filled(text), "run: python -m benchmarks readme"
    table = text.partition("<!-- comparisons:begin -->")[2].partition("<!-- comparisons:end -->")[0]
    for peer in ("PGMax", "ldpc", "PJAX", "Adam"):
        assert f"| {peer}" in table
    # The rival's victories are there: a first call, compiling, an update, deep plain networks.
    for measure in ("first call: build", "compiling, 64", "an update", "by depth, plain"):
        (row,) = [line for line in table.splitlines() if measure in line]
        assert "**" in row


def test_every_check_on_the_list_is_in_the_stored_results():
    for name, bits in (("verify", 64), ("verify32", 32)):
        stored = readme.load(name, readme.RESULTS)
        assert stored["precision"] == bits
        known = [(entry.name, entry.statement, entry.expected) for entry in registered_checks()]
        assert [(c["name"], c["statement"], c["expected"]) for c in stored["checks"]] == known
        assert all(check["holds"] == check["expected"] for check in stored["checks"])


@pytest.fixture
def results(tmp_path):
    """A copy of the stored results, to change, without those of circuits."""
    folder = tmp_path / "results"
    shutil.copytree(readme.RESULTS, folder)
    (folder / "circuits.json").unlink(missing_ok=True)
    return folder


def changed(folder, name, change):
    report = readme.load(name, folder)
    change(report)
    (folder / f"{name}.json").write_text(json.dumps(report))


def test_a_comparison_says_who_is_better(results):
    def slower(report):
        report["inference"] = report["inference"][:2]
        for row, seconds in zip(report["inference"], (0.5, 4.0), strict=True):
            row["ours"]["run"]["cpu_s"]["median"] = 2.0
            row["peer"]["run"]["cpu_s"]["median"] = seconds

    changed(results, "bp", slower)
    row = readme.comparisons(results).splitlines()[2]
    assert row.endswith("| ising100 / ising300 | 2.0 / 2.0 | 0.50 / 4.0 | **0.25×** / 2.0× |")
    # More words per second are better, fewer seconds too; accuracies differ by points.
    assert readme.Row("m", ("a",), (2.0,), (4.0,), "", more_is_better=True).better() == [
        ("0.50", True)
    ]
    kind = {"more_is_better": True, "difference": True}
    assert readme.Row("m", ("a", "b"), (0.5, 0.9), (0.75, 0.9), "", **kind).better() == [
        ("-0.250", True),
        ("+0.000", False),
    ]


def test_a_case_that_one_side_lacks_is_left_out(results):
    def alone(report):
        for row in report["inference"][1:]:
            row["peer"] = None

    changed(results, "bp", alone)
    assert "| one run, compiled, s | ising100 | " in readme.comparisons(results)


def circuits_report(peer):
    row = {
        "data": "nltcs",
        "units": 16,
        "ours": {"forward": 0.002, "gradient": 0.004, "epoch": 0.5, "build": 3.0},
        "ratios": {"forward": 3.4, "gradient": 4.7},
    }
    row["ours"]["peak_rss_mib"] = 300.0
    if peer == "live":
        row["cirkit"] = {"forward": 0.006, "gradient": 0.02, "epoch": 4.0, "build": 1.5}
        row["cirkit"]["peak_rss_mib"] = 900.0
    return {"peer": peer, "requirements": ["libcirkit==9.8.7", "torch==1"], "rows": [row]}


def test_circuits_are_compared_once_they_are_measured(results):
    assert "cirkit" not in readme.comparisons(results)
    (results / "circuits.json").write_text(json.dumps(circuits_report("live")))
    table = readme.comparisons(results)
    assert "| cirkit 9.8.7 | log-likelihood of a batch, ms | nltcs 16 | 2.0 | 6.0 | 3.0× |" in table
    assert "| build and compile, s | nltcs 16 | 3.0 | 1.5 | **0.50×** |" in table
    assert "| peak memory, MiB | nltcs 16 | 300 | 900 | 3.0× |" in table
    (results / "circuits.json").write_text(json.dumps(circuits_report("recorded")))
    table = readme.comparisons(results)
    assert "cirkit 9.8.7 (recorded on another machine)" in table
    assert "| nltcs 16 | 2.0 | 6.8 | 3.4× |" in table
    assert "build and compile" not in table


def test_exact_inference_beside_its_peers(results):
    def side(first, changed):
        return {"first": {"cpu_s": first}, "changed": {"cpu_s": changed}, "version": "9.8.7"}

    def best(ours, theirs, *faults):
        return {"ours": {"status": ours}, "toulbar2": {"status": theirs}, "faults": faults}

    rows = [
        {"case": "asia+evidence", "sides": {"ours": side(1, 0.002), "pyagrum": side(2, 0.001)}},
        {"case": "munin4+evidence", "sides": {"ours": side(1, 1), "pyagrum": {"status": "error"}}},
        {"case": "munin4", "sides": {}},
    ]
    models = [
        best("solved", "solved"),
        best("solved", "solved", "differ"),
        best("refused", "solved"),
    ]
    report = {"marginals": rows, "map": models, "runs": {"map": {"time_limit": 20.0}}}
    (results / "exactness_peers.json").write_text(json.dumps(report))
    text = readme.comparisons(results)
    assert (
        "| pyAgrum 9.8.7 (C++) | all marginals, first call, ms | asia | 1000 | 2000 | 2.0× |\n"
        "|  | all marginals, with other evidence, ms | asia | 2.0 | 1.0 | **0.50×** |" in text
    )
    assert "of 3 models, 20 s each: 2 found and proven here, 3 by toulbar2" in text
    assert "2 by both, 1 of these with equal scores." in text
    (results / "exactness_peers.json").write_text(json.dumps({**report, "map": []}))
    assert "toulbar2" not in readme.comparisons(results)


def test_sentences_about_circuits(results):
    for name in ("reference_circuits", "density"):
        (results / f"{name}.json").unlink(missing_ok=True)
    bare = readme.comparisons(results)
    assert "PSDD" not in bare
    assert "Density" not in bare
    rows = [
        {"edges": 7, "sweep_cpu_s": 0.5, "log_partition_difference": 2e-14},
        {"edges": 9, "sweep_cpu_s": 0.01, "log_partition_difference": 0, "test_difference": 3e-15},
    ]
    (results / "reference_circuits.json").write_text(json.dumps({"rows": rows}))
    run = {"candidate": "defaults", "seed": 0, "status": "done", "valid_log_likelihood": -1.0}
    found = {"nltcs": -5.9, "plants": -14.0, "ad": -20.0}
    rows = [
        {**run, "data": name, "test_log_likelihood": value, "seconds": 1.0}
        for name, value in found.items()
    ]
    (results / "density.json").write_text(json.dumps({"rows": rows}))
    text = readme.comparisons(results)
    assert (
        "agree with their references to 2e-14; a sweep of the largest, 9 edges, takes 10 ms" in text
    )
    assert "(within 0.2%) on 2, not on ad; above all six published columns on 1: nltcs." in text


def test_a_statement_that_does_not_come_out_is_shown_so(results):
    def wrong(report):
        for check in report["checks"]:
            if check["name"] == "lemma_4_2":
                check.update(residual=0.5, holds=False)
            if check["name"] == "lemma_4_3":
                check.update(residual=None, holds=False)

    assert "**" not in readme.statements(results)
    changed(results, "verify", wrong)
    table = readme.statements(results)
    assert re.search(r"\| Lemma 4\.2 \| 1 \| \*\*5e-01 > 1e-13\*\* \|", table)
    assert "| Lemma 4.3 | 1 | **not computed** |" in table
    (results / "verify32.json").unlink()
    assert "float32" not in readme.statements(results)
    assert table.count("taken literally") == 2


def test_the_command_writes_and_compares(tmp_path, monkeypatch, capsys):
    path = tmp_path / "README.md"
    monkeypatch.setattr(readme, "README", path)
    marks = [f"<!-- {n}:{w} -->" for n in ("comparisons", "statements") for w in ("begin", "end")]
    path.write_text("Text\n" + "\n".join(marks) + "\nend\n")
    assert readme.main(["--check"]) == 1
    assert "python -m benchmarks readme" in capsys.readouterr().err
    assert path.read_text().count("|") == 0
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    text = path.read_text()
    assert text.startswith("Text\n<!-- comparisons:begin -->\n\n| against")
    assert text.endswith("<!-- statements:end -->\nend\n")
    path.write_text("no markers")
    with pytest.raises(ValueError, match="comparisons:begin"):
        readme.main([])


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.attempted > 0
    assert result.failed == 0
