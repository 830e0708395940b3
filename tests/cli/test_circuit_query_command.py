"""``klprojax circuit query``: every kind of file, every option, the exit status."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import klprojax
from klprojax.circuits import (
    CircuitBuilder,
    compile_model,
    log_likelihood,
    save_circuit,
    save_tensor_circuit,
)
from klprojax.circuits.tensor import rat_spn
from klprojax.cli._app import app

runner = CliRunner()

VTREE = "vtree 3\nL 0 1\nL 1 2\nI 2 0 1\n"
# Variable 0 is true with 0.3; variable 1 equals it, or is fair if variable 0 is false.
PSDD = (
    "psdd 5\nL 0 0 1\nL 1 0 -1\nL 2 1 2\nT 3 1 2 -0.6931471805599453\n"
    "D 4 2 2 0 2 -1.2039728043259361 1 3 -0.35667494393873245\n"
)
# Not both: three models.
SDD = "sdd 5\nL 0 0 1\nL 1 0 -1\nL 2 1 -2\nT 3\nD 4 2 2 0 2 1 3\n"
SPN = (
    "##NODES##\n0,SUM\n1,PRD\n2,PRD\n3,LEAVE,0,0.2,0.8\n4,LEAVE,0,0.6,0.4\n5,LEAVE,1,0.5,0.5\n"
    "##EDGES##\n0,1,0.3\n0,2,0.7\n1,3\n1,5\n2,4\n2,5\n"
)
ROWS = np.array([[1, 1], [0, 1], [0, -1], [-1, 1]], np.int8)


def run(*arguments):
    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["circuit", "query", *map(str, arguments)])
    finally:
        jax.config.update("jax_enable_x64", before)


def ask(tmp_path, *arguments):
    out = tmp_path / "out.json"
    result = run(*arguments, "--json", out)
    assert result.exit_code == 0, result.output
    assert "log-partition" in result.output
    return json.loads(out.read_text()), result.output


@pytest.fixture
def rows(tmp_path):
    np.savez(tmp_path / "data.npz", test=ROWS)
    return tmp_path / "data.npz"


def test_psdd(tmp_path, rows):
    (tmp_path / "c.psdd").write_text(PSDD)
    (tmp_path / "c.vtree").write_text(VTREE)
    found, text = ask(
        tmp_path, tmp_path / "c.psdd", "--vtree", tmp_path / "c.vtree", "--data", rows
    )
    # Only roundings of numbers of size 1 and of the file's logarithms.
    assert abs(found["log_partition"]) < 1e-14
    wanted = np.log([0.3, 0.35, 0.7, 0.3 + 0.35]).mean()
    assert abs(found["test_log_likelihood"] - wanted) < 1e-14
    assert (found["kind"], found["variables"], found["test_rows"]) == ("PSDD", 2, 4)
    assert found["impossible_rows"] == 0
    assert found["nodes"] > 4
    assert found["seconds"] > 0
    assert f"{wanted:.6f}" in text
    without, _ = ask(tmp_path, tmp_path / "c.psdd")
    assert without["test_log_likelihood"] is None
    assert without["test_rows"] is None
    assert without["edges"] == found["edges"]


def test_sdd_with_impossible_rows(tmp_path, rows):
    (tmp_path / "c.sdd.gz").write_bytes(gzip.compress(SDD.encode()))
    (tmp_path / "c.vtree").write_text(VTREE)
    found, text = ask(
        tmp_path, tmp_path / "c.sdd.gz", "--vtree", tmp_path / "c.vtree", "--data", rows
    )
    assert abs(found["log_partition"] - np.log(3)) < 1e-14
    assert found["test_log_likelihood"] is None
    assert found["impossible_rows"] == 1
    assert "-inf" in text


def test_spn_text_in_batches_and_single_precision(tmp_path, rows):
    (tmp_path / "c.spn.txt").write_text(SPN)
    true = 0.3 * 0.8 + 0.7 * 0.4
    wanted = np.log([true / 2, (1 - true) / 2, 1 - true, 0.5]).mean()
    double, _ = ask(tmp_path, tmp_path / "c.spn.txt", "--data", rows, "--batch-size", 3)
    assert abs(double["test_log_likelihood"] - wanted) < 1e-14
    single, _ = ask(tmp_path, tmp_path / "c.spn.txt", "--data", rows, "--precision", 32)
    # float32: rounded at 6e-8, so hardly the double.
    assert 0 < abs(single["test_log_likelihood"] - wanted) < 1e-6
    assert single["parameters"] == 2 + 3 * 2


def test_saved_circuits(tmp_path, rows):
    b = CircuitBuilder([2, 2])
    x = [[b.indicator(v, t) for t in (0, 1)] for v in (0, 1)]
    pairs = [b.product([x[0][i], x[1][j]]) for i in (0, 1) for j in (0, 1)]
    model = b.build(b.sum(pairs, np.log([1.0, 2.0, 3.0, 4.0])))
    save_circuit(tmp_path / "explicit.npz", model)
    found, _ = ask(tmp_path, tmp_path / "explicit.npz", "--data", rows)
    assert found["kind"] == "circuit"
    assert abs(found["log_partition"] - np.log(10)) < 1e-14
    wanted = np.log([0.4, 0.2, 0.3, 0.6]).mean()
    assert abs(found["test_log_likelihood"] - wanted) < 1e-14
    circuit = rat_spn((2, 2), 3, depth=1, repetitions=2)
    parameters = circuit.init(0, dtype=jnp.float32)
    save_tensor_circuit(tmp_path / "tensor.npz", circuit, parameters)
    found, _ = ask(tmp_path, tmp_path / "tensor.npz", "--data", rows, "--batch-size", 2)
    assert found["kind"] == "tensor circuit"
    assert found["parameters"] == circuit.num_parameters
    wide = jax.tree.map(lambda table: table.astype(jnp.float64), parameters)
    wanted = float(circuit.log_likelihood(wide, ROWS).mean())
    assert abs(found["test_log_likelihood"] - wanted) < 1e-14


def test_formulas_and_what_is_saved(tmp_path, rows):
    # x1 or x2, with a third variable that no clause has
    (tmp_path / "f.cnf").write_text("p cnf 3 1\nc p weight 1 0.25 0\n1 2 0\n")
    (tmp_path / "f.nnf").write_text("o 1 0\nt 2 0\n1 2 1 0\n1 2 -1 2 0\n")
    found, _ = ask(tmp_path, tmp_path / "f.nnf", "--data", rows)
    assert (found["kind"], found["variables"]) == ("NNF", 2)
    assert abs(found["log_partition"] - np.log(3)) < 1e-14
    # three of the four rows have two, one, one models; row 0 1 is a model
    wanted = np.log(np.array([1, 1, 1, 2]) / 3).mean()
    assert abs(found["test_log_likelihood"] - wanted) < 1e-14
    total = np.log(2 * (0.25 * 2 + 0.75))
    saved = ["--save", tmp_path / "g.npz"]
    found, _ = ask(tmp_path, tmp_path / "f.nnf", "--cnf", tmp_path / "f.cnf", *saved)
    assert abs(found["log_partition"] - total) < 1e-14
    assert abs(ask(tmp_path, tmp_path / "g.npz")[0]["log_partition"] - total) < 1e-14
    # the model of the same formula; its distribution as a PSDD with vtree, as an SPN
    (tmp_path / "h.cnf").write_text((tmp_path / "f.cnf").read_text())
    np.savez(tmp_path / "wide.npz", test=np.array([[1, 0, 1], [0, 1, -1]]))
    asked = {}
    for name in ("h.psdd", "h.spn.txt"):
        found, _ = ask(tmp_path, tmp_path / "h.cnf", "--save", tmp_path / name)
        assert abs(found["log_partition"] - total) < 1e-14
        more = ["--vtree", tmp_path / "h.vtree"] if name == "h.psdd" else []
        asked[name], _ = ask(tmp_path, tmp_path / name, "--data", tmp_path / "wide.npz", *more)
        wanted = np.log(np.array([0.25, 2 * 0.75]) / np.exp(total)).mean()
        assert abs(asked[name]["test_log_likelihood"] - wanted) < 1e-13
    assert abs(asked["h.psdd"]["log_partition"]) < 1e-14
    result = run(tmp_path / "h.cnf", "--save", tmp_path / "h.nnf")
    assert result.exit_code == 2
    assert "An NNF file has no weights" in result.output.replace("\n", " ")
    result = run(tmp_path / "f.nnf", "--save", tmp_path / "f2.nnf")
    assert result.exit_code == 0
    assert (tmp_path / "f2.nnf").read_text().startswith("nnf ")


def test_compiled_models(tmp_path):
    path = tmp_path / "m.uai"
    path.write_text("MARKOV\n2\n2 3\n2\n1 0\n2 0 1\n2\n0.5 2\n6\n1 2 3\n4 0 6\n")
    states = np.array([[0, 2], [1, 0], [1, -1]])
    packed = tmp_path / "data.npz"
    np.savez(packed, test=states)
    found, _ = ask(tmp_path, path, "--data", packed)
    total = 0.5 * 6 + 2 * 10
    assert abs(found["log_partition"] - np.log(total)) < 1e-14
    wanted = np.log(np.array([0.5 * 3, 2 * 4, 2 * 10]) / total).mean()
    assert abs(found["test_log_likelihood"] - wanted) < 1e-14
    assert found["kind"] == "compiled model"
    # A shipped network by name; its rows as packed bits.
    bits = np.random.default_rng(0).integers(0, 2, (3, 8)).astype(np.uint8)
    bits[:, 5] = 1
    np.savez(packed, test=np.packbits(bits, axis=1), n_vars=8)
    found, _ = ask(tmp_path, "asia", "--data", packed)
    circuit, log_weights, _ = compile_model(klprojax.load_model("asia"))
    wanted = np.asarray(log_likelihood(circuit, log_weights, bits))
    assert found["impossible_rows"] == np.isneginf(wanted).sum()
    assert found["variables"] == 8
    result = run("asia", "--max-edges", 10)
    assert result.exit_code == 2
    assert "max_edges=10" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("missing.psdd", None, (), "no such file"),
        ("c.psdd", "psdd 1\nL 0 0\n", (), "c.psdd:2: expected"),
        ("c.sdd", SDD, (), "give its vtree with --vtree"),
        ("c.spn.txt", SPN, ("--vtree", "VTREE"), "--vtree belongs to"),
        ("c.npz", "no zip", (), "zip archive"),
        ("c.xyz", "what", (), "a path that ends in"),
        ("c.spn.txt", SPN, ("--data", "WIDE"), "must be the 2 variables"),
        ("c.spn.txt", SPN, ("--data", "HIGH"), "expected one of its states"),
        ("c.spn.txt", SPN, ("--data", "TRAIN"), "no array test"),
        ("c.spn.txt", SPN, ("--data", "EMPTY"), "no rows in test"),
    ],
)
def test_bad_input(tmp_path, name, content, options, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    (tmp_path / "VTREE").write_text(VTREE)
    for key, arrays in {
        "WIDE": {"test": np.zeros((2, 3), int)},
        "HIGH": {"test": np.full((2, 2), 2)},
        "TRAIN": {"train": ROWS},
        "EMPTY": {"test": ROWS[:0]},
    }.items():
        with open(tmp_path / key, "wb") as stream:
            np.savez(stream, **arrays)
    options = [tmp_path / o if o.isupper() else o for o in options]
    result = run(tmp_path / name, *options)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


@pytest.mark.parametrize(("repair", "row"), [("normalise", ".3 .3"), ("uniform", "nan nan")])
def test_models_that_need_a_repair_or_an_encoding(tmp_path, repair, row):
    path = tmp_path / "m.bif"
    text = (
        f"network n {{}} variable ä {{type discrete [2] {{x y}};}} probability (ä) {{table {row};}}"
    )
    path.write_bytes(text.encode("latin-1"))
    np.savez(tmp_path / "rows.npz", test=[[0]])
    options = ("--encoding", "latin-1", "--repair", repair)
    found, text = ask(tmp_path, path, "--data", tmp_path / "rows.npz", *options)
    np.testing.assert_allclose(found["test_log_likelihood"], np.log(0.5), rtol=1e-14)
    assert "note: ä: " in text
    assert run(path, "--encoding", "latin-1").exit_code == 2
