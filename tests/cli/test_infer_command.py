"""``klprojax infer``: every option, the JSON, the exit status."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import klprojax as kp
from klprojax.cli._app import app
from klprojax.graphs import read_uai_mar, read_uai_mmap, read_uai_mpe, read_uai_pr, write_uai

runner = CliRunner()


def infer(*arguments):
    import jax

    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["infer", *map(str, arguments)])
    finally:
        jax.config.update("jax_enable_x64", before)


def test_exact_and_bp_side_by_side_by_default(tmp_path):
    out = tmp_path / "out.json"
    result = infer("asia", "--json", out, "--rows", 3)
    assert result.exit_code == 0, result.output
    assert "exact" in result.output
    assert "bp" in result.output
    assert "Largest difference" in result.output
    content = json.loads(out.read_text())
    assert content["method"] == "exact"
    assert content["compared_with"][0]["method"] == "bp"


@pytest.mark.parametrize("method", ["exact", "bp", "hybrid"])
def test_json_keys_and_values(tmp_path, method):
    model = kp.load_model("asia")
    evidence = tmp_path / "evidence.json"
    evidence.write_text('{"dysp": "no", "smoke": 0}')
    out = tmp_path / "out.json"
    result = infer("asia", "--method", method, "--evidence", evidence, "--json", out)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert set(content) == {
        "log_partition", "marginals", "converged", "steps", "residual", "method"
    }  # fmt: skip
    assert content["method"] == method
    assert content["converged"] is True
    reduced = kp.condition(model, model.evidence({"dysp": "no", "smoke": 0}))
    graph, log_potentials = reduced.model.to_graph()
    exact = kp.infer(graph, log_potentials, kp.Elimination())
    wanted = reduced.expand(graph.unpack_variables(exact.marginals))
    assert list(content["marginals"]) == list(model.variable_names)
    # Exact to rounding; BP is off by its approximation, a few per cent on this network.
    atol = 1e-12 if method == "exact" else 0.05
    for got, marginal in zip(content["marginals"].values(), wanted, strict=True):
        np.testing.assert_allclose(got, marginal, atol=atol)
    np.testing.assert_allclose(content["log_partition"], exact.log_partition, atol=atol)


def test_uai_files_in_and_out(tmp_path):
    model = kp.load_model("asia")
    path = tmp_path / "net.uai.gz"
    write_uai(path, model)
    assert gzip.decompress(path.read_bytes())[:5] in (b"BAYES", b"MARKO")
    evidence = tmp_path / "net.uai.evid"
    evidence.write_text("1 2 0\n")
    folder = tmp_path / "answers"
    result = infer(path, "--evidence", evidence, "--method", "exact", "--uai-output", folder)
    assert result.exit_code == 0, result.output
    marginals = read_uai_mar(folder / "net.MAR")
    assert [len(m) for m in marginals] == list(model.cardinalities)
    np.testing.assert_array_equal(marginals[2], [1.0, 0.0])
    assert read_uai_pr(folder / "net.PR") < 0


def test_not_converged_is_status_3_with_the_result_written(tmp_path):
    out = tmp_path / "out.json"
    result = infer(
        "asia", "--method", "bp", "--max-steps", 1, "--damping", 0.5, "--tolerance", 1e-12,
        "--json", out,
    )  # fmt: skip
    assert result.exit_code == 3
    assert "did not converge" in result.output
    content = json.loads(out.read_text())
    assert content["converged"] is False
    assert content["steps"] == 1
    assert content["residual"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "asia"),
        (["missing.uai"], "missing.uai"),
        (["asia", "--evidence", "missing.json"], "missing.json"),
        (["asia", "--method", "hybrid", "--damping", "0.5"], "hybrid has none"),
        (["asia", "--method", "exact", "--memory-limit", "1e-9"], "memory_limit"),
        (["asia", "--method", "magic"], "magic"),
        (["asia", "--max-steps", "0"], "max-steps"),
    ],
)
def test_bad_input_is_status_2(arguments, message):
    result = infer(*arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_contradictory_evidence_is_status_2(tmp_path):
    evidence = tmp_path / "evidence.json"
    evidence.write_text('{"tub": "yes", "either": "no"}')
    result = infer("asia", "--evidence", evidence)
    assert result.exit_code == 2
    assert "probability zero" in result.output.replace("\n", " ")


def test_what_is_too_large_for_exact_inference_leaves_belief_propagation(tmp_path):
    out = tmp_path / "out.json"
    result = infer("asia", "--memory-limit", 1e-9, "--json", out)
    assert result.exit_code == 0, result.output
    assert "exact inference left out: " in result.output
    content = json.loads(out.read_text())
    assert content["method"] == "bp"
    assert "compared_with" not in content


def test_rows_and_states_beyond_the_limit_are_counted(tmp_path):
    path = tmp_path / "net.uai"
    path.write_text("MARKOV\n3\n11 2 2\n1\n1 0\n11\n" + "1 " * 11)
    result = infer(path, "--method", "exact", "--rows", 1)
    assert result.exit_code == 0, result.output
    assert result.output.count(f"{1 / 11:.6f}") == 8
    assert "... 3 more" in result.output
    assert "2 more variables: --rows or --json shows them." in result.output
    result = infer(path, "--method", "exact", "--rows", 0)
    assert result.exit_code == 0, result.output
    assert "log-partition" in result.output
    assert "marginals" not in result.output


def test_single_precision(tmp_path):
    out = tmp_path / "out.json"
    result = infer("asia", "--method", "exact", "--precision", 32, "--json", out)
    assert result.exit_code == 0, result.output
    # The network is normalised, so log Z is 0 up to float32 rounding of eight factors.
    assert abs(json.loads(out.read_text())["log_partition"]) < 1e-5


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-c", "from klprojax.cli import main; main()", "infer", "asia",
         "--method", "exact", "--rows", "1"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "log-partition" in done.stdout


COUNTED = (
    "network n {}\nvariable größe { type discrete [ 2 ] { x, y }; }\n"
    "variable b { type discrete [ 2 ] { k, l }; }\nprobability ( größe ) { table .3 .3; }\n"
    "probability ( b | größe ) { (x) .2 .8; (y) ROW; }\n"
)


@pytest.mark.parametrize(
    ("repair", "row", "expected"),
    [("normalise", ".5 .5", 0.35), ("uniform", "nan nan", 0.35), ("uniform", ".6 .2", 0.475)],
)
def test_files_that_need_a_repair_or_an_encoding(tmp_path, repair, row, expected):
    path, evidence = tmp_path / "n.bif", tmp_path / "e.json"
    path.write_bytes(COUNTED.replace("ROW", row).encode("latin-1"))
    evidence.write_bytes(b"{}")
    out = tmp_path / "out.json"
    start = (path, "--method", "exact", "--evidence", evidence, "--json", out)
    for options in ((), ("--encoding", "latin-1")):
        result = infer(*start, *options)
        assert result.exit_code == 2
        assert ("--repair" if options else "--encoding") in result.stderr
    result = infer(*start, "--encoding", "latin-1", "--repair", repair)
    assert result.exit_code == 0, result.output
    assert "note: größe: renormalised 1 row(s), largest deviation from 1 4.0e-01" in result.stderr
    marginals = json.loads(out.read_text())["marginals"]
    # a sum of two products, each rounded
    np.testing.assert_allclose(marginals["b"][0], expected, rtol=1e-14)
    np.testing.assert_allclose(marginals["größe"], [0.5, 0.5], rtol=1e-14)


def test_best_states_of_the_model_given_evidence(tmp_path):
    out = tmp_path / "out.json"
    result = infer(
        "asia", "--task", "map", "--best", 3, "--evidence", "dysp=yes", "--json", out,
        "--uai-output", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    model = kp.load_model("asia")
    # All 128 states that agree with the evidence, by multiplying the tables.
    weights = {}
    for state in np.ndindex(model.cardinalities):
        if state[7] == 0:
            terms = zip(model.scopes, model.log_tables, strict=True)
            weights[state] = sum(t[tuple(state[v] for v in scope)] for scope, t in terms)
    best = sorted(weights, key=lambda state: -weights[state])[:3]
    names = [[model.state_names[v][s] for v, s in enumerate(state)] for state in best]
    assert content["states"] == names
    log_z = np.log(sum(map(np.exp, weights.values())))
    wanted = [weights[state] - log_z for state in best]
    np.testing.assert_allclose(content["log_probability"], wanted, atol=1e-12)
    assert read_uai_mpe(tmp_path / "asia.MPE") == best[0]


def test_marginal_map_samples_and_joints(tmp_path):
    out = tmp_path / "out.json"

    def ask(*arguments):
        result = infer("asia", *arguments, "--json", out)
        assert result.exit_code == 0, result.output
        return json.loads(out.read_text())

    soft = '{"xray": [0.9, 0.1], "smoke": "no"}'
    pair = ask("--query", "lung,bronc", "--method", "exact", "--evidence", soft)
    assert list(pair["marginals"]) == ["lung", "bronc"]
    joint = dict(
        zip(map(tuple, pair["joint"]["states"]), pair["joint"]["probability"], strict=True)
    )
    model = kp.load_model("asia")
    graph, tables = model.to_graph(np.float64)
    known = model.evidence({"xray": np.log([0.9, 0.1]), "smoke": "no"})
    evidence = graph.log_evidence(known, np.float64)
    numbers = [model.variable_index(name) for name in ("lung", "bronc")]
    wanted = np.exp(kp.query(graph, tables, kp.Joint(numbers), log_evidence=evidence))
    for (a, b), p in joint.items():
        states = [model.state_index(v, s) for v, s in zip(numbers, (a, b), strict=True)]
        np.testing.assert_allclose(p, wanted[tuple(states)], atol=1e-12)
    best = ask(
        "--task", "marginal-map", "--query", "lung,bronc", "--evidence", soft,
        "--uai-output", tmp_path,
    )  # fmt: skip
    assert tuple(best["states"][0]) == max(joint, key=joint.get)
    np.testing.assert_allclose(np.exp(best["log_probability"]), max(joint.values()), atol=1e-12)
    assert set(read_uai_mmap(tmp_path / "asia.MMAP")) == set(numbers)
    drawn = ask("--task", "sample", "--count", 7, "--seed", 1, "--evidence", "smoke=no")
    assert [row[2] for row in drawn["states"]] == ["no"] * 7
    assert drawn == ask("--task", "sample", "--count", 7, "--seed", 1, "--evidence", "smoke=no")
    assert ask("--task", "partition", "--method", "exact")["marginals"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "map", "--method", "bp"], "is exact"),
        (["--task", "marginal-map"], "--query"),
        (["--query", "smok"], "'smok'"),
        (["--query", "smoke,smoke"], "twice"),
        (["--evidence", "smoke=no", "--evidence", "smoke=yes"], "observed twice"),
        (["--evidence", "smoke"], "NAME=STATE"),
        (["--evidence", '{"smoke": [0, 0]}'], "weights"),
        (["--evidence", '{"smoke": [1e999, 1]}'], "weights"),
        (["--task", "map", "--memory-limit", "1e-9"], "memory_limit"),
    ],
)
def test_bad_queries_are_status_2(arguments, message):
    result = infer("asia", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
