"""``klprojax circuit fit``: what it writes, every option, the exit status."""

import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from klprojax.circuits.tensor import load_tensor_circuit
from klprojax.cli._app import app

runner = CliRunner()


def run(*arguments):
    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["circuit", "fit", *map(str, arguments)])
    finally:
        jax.config.update("jax_enable_x64", before)


def rows(seed, count):
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 2, size=(count, 1))
    return np.where(rng.random((count, 5)) < 0.9, hidden, 1 - hidden).astype(np.uint8)


@pytest.fixture
def file(tmp_path):
    parts = {"train": rows(0, 80), "valid": rows(1, 40), "test": rows(2, 40)}
    np.savez(tmp_path / "data.npz", **parts)
    return tmp_path / "data.npz"


@pytest.mark.parametrize(
    "options",
    [
        ("--components", 2, "--full-epochs", 2, "--precision", 64),
        ("--structure", "hmm", "--step", "adam", "--softening", 0.002),
        pytest.param(
            ("--structure", "rat", "--depth", 1, "--repetitions", 2, "--full-epochs", 2),
            marks=pytest.mark.slow,
        ),
        ("--structure", "factorised", "--pseudocount", 0.5, "--spread", 1, "--batch-size", 30),
    ],
)
def test_fit(file, tmp_path, options):
    out, saved = tmp_path / "out.json", tmp_path / "circuit.npz"
    result = run(
        file, "--units", 3, "--epochs", 4, "--seed", 1, "--json", out, "--save", saved,
        "--patience", 50, "--checkpoint", tmp_path / "run.npz", *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert content["epochs"] == len(content["history"])
    assert content["epochs"] == 4 + (
        2 if "--full-epochs" in options else 5 * ("--step" not in options)
    )
    assert content["seconds"] > 0
    circuit, parameters = load_tensor_circuit(saved)
    with np.load(file) as parts:
        for name in ("test", "valid"):
            found = float(circuit.log_likelihood(parameters, parts[name]).mean())
            # The file may hold float32; its log-likelihoods round at 1e-6.
            np.testing.assert_allclose(content[f"{name}_log_likelihood"], found, rtol=0, atol=1e-4)
    # Five fair coins have -3.47; the clusters are seen at once.
    assert content["test_log_likelihood"] < 0
    best = content["history"][content["best_epoch"] - 1]["valid_log_likelihood"]
    if content["best_epoch"]:
        np.testing.assert_allclose(best, content["valid_log_likelihood"], rtol=0, atol=1e-5)
    assert "mean log-likelihood" in result.output


def test_packed_bits_and_train_alone(tmp_path):
    np.savez(tmp_path / "plain.npz", train=rows(0, 30).astype(bool))
    np.savez(tmp_path / "packed.npz", train=np.packbits(rows(0, 30), axis=1), n_vars=5)
    found = []
    for name in ("plain", "packed"):
        out = tmp_path / f"{name}.json"
        result = run(
            tmp_path / f"{name}.npz", "--units", 2, "--components", 1, "--epochs", 2,
            "--full-epochs", 0, "--json", out,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        content = json.loads(out.read_text())
        assert content["test_log_likelihood"] is None
        found.append(content["train_log_likelihood"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("structure", "options", "parameters"),
    [
        # Two units: 6 leaf tables, a sum a pixel and a sum a half, the root.
        ("quad-tree", (), 2 * 12 + 4 * 6 + 4 * 2 + 2),
        # One line each way: 4 cells of 1 or 2 pixels, 4 pairs of them, 2 components.
        ("poon-domingos", ("--delta", 2, "--delta", 9), None),
        ("poon-domingos", (), 2 * 12 + 2),
    ],
)
def test_images(tmp_path, structure, options, parameters):
    np.savez(tmp_path / "data.npz", train=np.c_[rows(0, 40), rows(1, 40)[:, :1]])
    out = tmp_path / "out.json"
    result = run(
        tmp_path / "data.npz", "--structure", structure, "--height", 2, "--width", 3, "--units", 2,
        "--epochs", 2, "--full-epochs", 0, "--json", out, *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    if parameters is not None:
        assert content["parameters"] == parameters
    assert content["structure"] == structure


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"valid": rows(0, 5)}, (), "no array train"),
        ({"train": np.zeros(3)}, (), "expected states"),
        ({"train": rows(0, 5), "n_vars": 50}, (), "packed bits"),
        ({"train": rows(0, 5), "test": rows(0, 5)[:, :2]}, (), "different numbers of variables"),
        ({"train": rows(0, 0)}, (), "no rows"),
        ({"train": rows(0, 5) - 2.5}, (), "one of its states"),
        ({"train": rows(0, 5)}, ("--step", "adam", "--full-epochs", 2), "belong to --step em"),
        ({"train": rows(0, 5)}, ("--depth", 2), "--depth belongs to --structure rat"),
        (
            {"train": rows(0, 5)},
            ("--structure", "quad-tree", "--delta", 2, "--height", 1, "--width", 5),
            "--delta belongs to --structure poon-domingos",
        ),
        ({"train": rows(0, 5)}, ("--structure", "quad-tree", "--height", 5), "and --width"),
        (
            {"train": rows(0, 5)},
            ("--structure", "poon-domingos", "--height", 2, "--width", 3),
            "make 6 pixels, but the data has 5 variables",
        ),
    ],
)
def test_bad_input(tmp_path, arrays, options, message):
    np.savez(tmp_path / "data.npz", **arrays)
    result = run(tmp_path / "data.npz", "--epochs", 1, "--units", 2, *options)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


def test_files_that_are_none(tmp_path):
    assert run(tmp_path / "missing.npz").exit_code == 2
    np.save(tmp_path / "one.npy", rows(0, 3))
    assert run(tmp_path / "one.npy").exit_code == 2
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    assert run(tmp_path / "bad.npz").exit_code == 2
