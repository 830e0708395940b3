"""Third-party circuits with reference answers: log-partition and average log-likelihoods."""

import json

import numpy as np
import pytest

import klprojax
from klprojax.circuits import (
    compile_model,
    is_deterministic,
    is_structured,
    log_likelihood,
    log_partition,
    read_nnf,
    read_psdd,
    read_sdd,
    read_spn,
    read_vtree,
    sweep,
    write_nnf,
    write_psdd,
)

from ._circuits import enumerate_joint

# Average log-likelihoods are sums of 1e5 numbers printed to 1e-16; log-partitions of normalised
# circuits are the rounding of some 1e5 operations. spncc files carry weights of 12 digits.
RELATIVE, ABSOLUTE = 1e-9, 1e-12

SMALL = [
    "asia-bdd",
    "exp-D15-N1000-C4",
    "little_4var",
    "mnist",
    "nltcs.10split",
    "nltcs.clt",
    "simple2.1",
    "simple2.2",
    "simple2.3",
    "simple2.4",
    "simple2.5",
    "simple2.6",
    "tretail",
    "spnz:nltcs.spn",
    "spnz:nltcs.spncc.spn",
]
LARGE = [
    "ad",
    "book",
    "insurance",
    "jester",
    "kdd",
    "kdd-6k",
    "mnist-antonio",
    "msnbc",
    "msnbc-yitao-a",
    "msweb",
    "nltcs",
    "spnz:ad.spn",
    "spnz:dna.spncc.spn",
    "spnz:msnbc.spn",
    "spnz:msnbc.spncc.spn",
    "spnz:plants.spncc.spn",
    "spnz:pumsb_star.spncc.spn",
]


@pytest.fixture(scope="module")
def reference(data_dir):
    return json.loads((data_dir / "circuits" / "REFERENCE.json").read_text())


def test_no_reference_is_left_out(reference):
    assert sorted(SMALL + LARGE) == sorted(reference)


@pytest.mark.parametrize("name", SMALL)
def test_small(data_dir, reference, name):
    check(data_dir, reference[name], name, most_rows=2000)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", LARGE)
def test_large(data_dir, reference, name):
    check(data_dir, reference[name], name, most_rows=10**9)


def check(data_dir, record, name, most_rows):
    folder = data_dir / "circuits"
    psdd = record["format"] == "psdd"
    circuit, log_weights, parameters = (read_psdd if psdd else read_spn)(folder / record["file"])
    assert circuit.num_variables == record["n_vars"]
    if not psdd:
        assert (circuit.num_nodes, circuit.num_edges) == (record["nodes"], record["edges"])
    swept = sweep(circuit, log_weights, leaf_parameters=parameters)
    log_z = float(swept.log_partition)
    assert abs(log_z - record["log_partition"]) < ABSOLUTE * circuit.num_nodes
    for table in swept.marginals:
        # each product of shares along a path is rounded some hundred times
        np.testing.assert_allclose(np.asarray(table).sum(axis=1), 1.0, rtol=1e-11)
    dataset = name.removeprefix("spnz:").split(".")[0].split("-")[0]
    path = data_dir / "density20" / f"{dataset}.npz"
    if "avg_ll_test" not in record or not path.exists():
        return
    with np.load(path) as data:
        rows = np.unpackbits(data["test"], axis=1, count=int(data["n_vars"])).astype(np.int64)

    def likelihood(rows):
        # the reference does not normalise
        log_probs = log_likelihood(
            circuit, log_weights, rows, leaf_parameters=parameters, batch_size=256
        )
        return np.asarray(log_probs) + log_z

    if "first10_test_ll" in record:
        np.testing.assert_allclose(likelihood(rows[:10]), record["first10_test_ll"], rtol=RELATIVE)
    if len(rows) <= most_rows or circuit.num_edges < 2000:
        np.testing.assert_allclose(likelihood(rows).mean(), record["avg_ll_test"], rtol=RELATIVE)


def test_published_values(data_dir):
    folder = data_dir / "circuits" / "zoo"
    model = read_psdd(folder / "psdds/little_4var.psdd", folder / "vtrees/little_4var.vtree")
    joint = enumerate_joint(model)
    # published to two digits, weights to 1e-16
    np.testing.assert_allclose(
        [joint[0, 0, 0, 0], joint[0, 1, 1, 0], joint[0, 0, 1, 1]], [0.07, 0.03, 0.14], rtol=1e-12
    )
    assert is_deterministic(model.circuit)
    assert is_structured(model.circuit)


def test_a_network_and_its_circuits(data_dir):
    folder = data_dir / "circuits" / "zoo"
    compiled = compile_model(klprojax.read_model(folder / "fgs/asia.uai"))
    joint = enumerate_joint(compiled)
    for name in ("fgs/asia.uai.psdd", "psdds/asia-bdd.psdd"):
        model = read_psdd(folder / name)
        # the files print six digits
        np.testing.assert_allclose(enumerate_joint(model), joint, atol=3e-7)


@pytest.mark.parametrize(
    ("name", "vtree"), [("nltcs", "nltcs"), ("msnbc", "msnbc"), ("kdd-6k", "kdd-6k")]
)
def test_circuits_follow_their_vtrees(data_dir, name, vtree):
    folder = data_dir / "circuits" / "zoo"
    model = read_psdd(folder / f"psdds/{name}.psdd.gz", folder / f"vtrees/{vtree}.vtree")
    assert is_structured(model.circuit)


def test_model_counts(data_dir):
    folder = data_dir / "circuits" / "sdd_from_cnf"
    for name, record in json.loads((folder / "counts.json").read_text()).items():
        circuit, log_weights, _ = read_sdd(folder / f"{name}.sdd", folder / f"{name}.vtree")
        # relative: products of as many numbers as there are variables
        count = np.exp(float(log_partition(circuit, log_weights)))
        np.testing.assert_allclose(count, record["model_count"], rtol=1e-12)
        true = (np.arange(1, circuit.num_variables + 1) % 7 + 1) / 9
        weights = [np.log([1 - p, p]) for p in true]
        got = sweep(circuit, log_weights, circuit.pack_variables(weights))
        np.testing.assert_allclose(got.log_partition, record["log_weighted_count"], rtol=1e-12)
        np.testing.assert_allclose(
            got.marginals[0][:, 1], record["weighted_marginals_p_true"], rtol=1e-10, atol=1e-14
        )


@pytest.mark.slow
def test_formulas_by_every_way(data_dir, tmp_path):
    folder = data_dir / "circuits"
    for name, record in json.loads((folder / "sdd_from_cnf" / "counts.json").read_text()).items():
        model = klprojax.read_model(folder / record["cnf"])
        assert len(model.cardinalities) == record["n_vars"]
        true = (np.arange(1, record["n_vars"] + 1) % 7 + 1) / 9
        # the file of clauses, with the weights in the competitions' form
        lines = [f"c p weight {v} {p!r} 0\n" for v, p in enumerate(true.tolist(), 1)]
        text = (folder / record["cnf"]).read_text() + "".join(lines)
        (tmp_path / "a.cnf").write_text(text)
        weighted = klprojax.read_model(tmp_path / "a.cnf")
        circuit, log_weights, _ = compile_model(weighted)
        got = log_partition(circuit, log_weights)
        np.testing.assert_allclose(got, record["log_weighted_count"], rtol=1e-12)
        # the compiled form as d-DNNF, with the weights of the same file
        base = folder / "sdd_from_cnf" / name
        sdd = read_sdd(base.with_suffix(".sdd"), base.with_suffix(".vtree"))
        write_nnf(tmp_path / "a.nnf", sdd)
        nnf = read_nnf(tmp_path / "a.nnf", cnf=tmp_path / "a.cnf")
        swept = sweep(nnf.circuit, nnf.log_weights)
        np.testing.assert_allclose(swept.log_partition, record["log_weighted_count"], rtol=1e-12)
        np.testing.assert_allclose(
            swept.marginals[0][:, 1], record["weighted_marginals_p_true"], rtol=1e-10, atol=1e-14
        )
        # and as a PSDD of the uniform distribution over models
        tree = write_psdd(tmp_path / "a.psdd", sdd, tmp_path / "a.vtree")
        assert read_vtree(tmp_path / "a.vtree") == tree
        psdd = read_psdd(tmp_path / "a.psdd", tree)
        weights = psdd.circuit.pack_variables([np.log([1 - p, p]) for p in true])
        got = log_partition(
            psdd.circuit, psdd.log_weights, weights, leaf_parameters=psdd.leaf_parameters
        )
        wanted = record["log_weighted_count"] - np.log(record["model_count"])
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_large_factor_graphs_are_refused_in_time(data_dir):
    for name in ("50-20-5", "DBN_11"):
        model = klprojax.read_model(data_dir / "circuits" / "zoo" / "fgs" / f"{name}.uai")
        with pytest.raises(ValueError, match="max_edges=1000000"):
            compile_model(model, max_edges=1_000_000)
