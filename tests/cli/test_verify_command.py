"""``klprojax verify``: every statement in double precision, every option, the exit status."""

import json
import subprocess
import sys

import jax
import pytest
from typer.testing import CliRunner

import klprojax.checks._theorem_3_3 as theorem
from klprojax.checks import registered_checks
from klprojax.cli._app import app

runner = CliRunner()


def verify(*arguments):
    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["verify", *map(str, arguments)])
    finally:
        jax.config.update("jax_enable_x64", before)


# Of every section, and quickly compiled: what the checks find is tested with them.
SOME = ("section_2_dual", "proposition_3_1_ii", "lemma_3_2_jets", "theorem_3_3_seed")


@pytest.mark.parametrize(
    ("only", "precision"),
    [
        (SOME, 64),
        pytest.param(None, 64, marks=pytest.mark.slow),
        pytest.param(None, 32, marks=pytest.mark.slow),
    ],
)
def test_all_come_out_as_expected(tmp_path, only, precision):
    out = tmp_path / "out.json"
    options = [word for name in only or () for word in ("--only", name)]
    result = verify("--json", out, "--precision", precision, *options)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert content["precision"] == precision
    entries = registered_checks(only)
    assert [c["name"] for c in content["checks"]] == [e.name for e in entries]
    for check, entry in zip(content["checks"], entries, strict=True):
        assert set(check) == {
            "name", "statement", "compared", "reading", "residual", "tolerance", "holds",
            "expected",
        }  # fmt: skip
        assert check["holds"] == check["expected"] == entry.expected
        assert check["holds"] == (check["residual"] <= check["tolerance"])
        assert entry.name in result.output
    (literal,) = [c for c in content["checks"] if not c["expected"]]
    assert literal["name"] == "proposition_3_1_ii_literal"
    assert literal["residual"] > 0.05
    for word in ("taken literally", "no, as expected", "Theorem 3.3", "all as expected"):
        assert word in result.output
    assert "NO" not in result.output


def test_single_precision_and_seed(tmp_path):
    out = tmp_path / "out.json"
    residuals = []
    for seed in (3, 3, 4):
        result = verify("--only", "section_2_duality", "--only", "section_2_consensus_of_copies",
                        "--precision", 32, "--seed", seed, "--json", out)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert f"float32, seed {seed}" in result.output
        content = json.loads(out.read_text())
        assert content["precision"] == 32
        assert len(content["checks"]) == 2
        residuals.append([c["residual"] for c in content["checks"]])
    assert residuals[0] == residuals[1] != residuals[2]
    # Computed in float32, not merely judged by its tolerance.
    assert min(residuals[0]) > 1e-9


def test_size_and_provenance(tmp_path):
    out = tmp_path / "out.json"
    result = verify("--only", "section_2_duality", "--size", 11, "--seed", 5, "--json", out)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert (content["seed"], content["size"]) == (5, 11)
    assert content["versions"]["jax"] == jax.__version__
    assert content["commit"] is None or len(content["commit"]) == 40
    small = verify("--only", "section_2_duality", "--size", 1)
    assert small.exit_code == 1
    assert "needs at least 2" in small.output


def test_a_statement_that_fails_is_status_1(monkeypatch, tmp_path):
    monkeypatch.setattr(theorem, "output_slope", lambda z: 0.5)
    out = tmp_path / "out.json"
    result = verify("--only", "theorem_3_3_gradient", "--json", out)
    assert result.exit_code == 1
    assert "NOT as expected: theorem_3_3_gradient" in result.output
    (check,) = json.loads(out.read_text())["checks"]
    assert check["holds"] is False
    assert check["expected"] is True


def test_an_error_in_a_check_is_status_1(monkeypatch, tmp_path):
    monkeypatch.setattr(theorem, "output_factor", lambda z: z - 100.0)
    out = tmp_path / "out.json"
    result = verify("--only", "theorem_3_3_gradient", "--json", out)
    assert result.exit_code == 1
    assert "must be positive and finite" in result.output.replace("\n", " ")
    (check,) = json.loads(out.read_text())["checks"]
    assert check["residual"] is None
    assert "must be positive and finite" in check["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "theorem_8"],
            "no check 'theorem_8'; the checks are section_2_",
        ),
        (["--only", ""], "the checks are"),
        (["--precision", "16"], "16"),
        (["--seed", "-1"], "seed"),
        (
            ["--json", "no/such/folder/out.json"],
            "no/such/folder/out.json: the folder no/such/folder does not exist",
        ),
        (["--function", "model"], "it must be MODULE:NAME, as in model:loss"),
        (["--function", "no_such_module:f"], "cannot import no_such_module: ModuleNotFoundError"),
        (["--function", "no_such_file.py:f"], "cannot import no_such_file.py: FileNotFoundError"),
        (["--function", "math:tau"], "math has no function tau"),
        (["--function", "math:sin"], "math has no sin_args, the example arguments of sin"),
        (["--function", "math:sin", "--only", "lemma_3_2"], "leave out --function"),
    ],
)
def test_bad_input_is_status_2(arguments, message):
    result = verify(*arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


MODULE = """
import jax
import jax.numpy as jnp


def loss(w, x):
    return jnp.sum(jnp.tanh(w @ x) ** 2)


def loss_args():
    return 0.5 * jnp.ones((2, 3)), jnp.arange(3.0)


def looping(x):
    return jax.lax.while_loop(lambda y: y < 10, lambda y: y * x, x)


looping_args = (jnp.asarray(2.0),)


@jax.custom_jvp
def wrong(x):
    return jnp.sin(x)


wrong.defjvp(lambda x, t: (jnp.sin(x[0]), -jnp.cos(x[0]) * t[0]))
wrong_args = (jnp.asarray(0.4),)


def branching(x):
    return x if x > 0 else -x


branching_args = (jnp.asarray(0.4),)
listed = loss
listed_args = [1.0]
failing = loss
failing_args = lambda: 1 / 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_model_to_verify.py").write_text(MODULE)
    (tmp_path / "json.py").write_text(MODULE)  # a file that must not hide a module
    (tmp_path / "broken_to_verify.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_model_to_verify", None)


@pytest.mark.parametrize(
    ("where", "precision"), [("my_model_to_verify", 64), ("json.py", 64), ("json.py", 32)]
)
def test_a_function_of_ones_own(folder, where, precision):
    result = verify("--function", f"{where}:loss", "--json", "out.json", "--precision", precision)
    assert result.exit_code == 0, result.output
    content = json.loads((folder / "out.json").read_text())
    assert [c["name"] for c in content["checks"]] == [
        f"{where}:loss: {kind}" for kind in ("tables", "differences", "gradient")
    ]
    assert all(c["holds"] for c in content["checks"])
    assert json.__file__ == sys.modules["json"].__file__
    assert str(folder) not in sys.path


def test_a_function_with_a_wrong_rule_is_status_1(folder):
    result = verify("--function", "json.py:wrong")
    assert result.exit_code == 1
    assert "NOT as expected: json.py:wrong: tables, json.py:wrong: differences." in result.output


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("json.py:looping", "equation 0 (while): messages must pass down"),
        (
            "json.py:branching",
            "the function asks in Python for the value of a traced",
        ),
        ("json.py:listed", "listed_args gives a list; it must be a tuple of arguments, (x,) for"),
        ("json.py:failing", "failing_args() failed: ZeroDivisionError: division by zero"),
        ("broken_to_verify.py:f", "cannot import broken_to_verify.py: SystemExit"),
    ],
)
def test_functions_that_cannot_be_checked_are_status_2(folder, spec, message):
    result = verify("--function", spec)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_help_tells_the_convention():
    result = verify("--help")
    assert result.exit_code == 0
    assert "NAME_args" in result.output


def test_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from klprojax.cli import main; main()", "verify",
         "--only", "section_2_consensus_of_copies"],
        capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "as expected" in done.stdout
    # No progress bar where there is no terminal.
    assert done.stderr == ""
