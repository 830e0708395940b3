"""Exact inference and belief propagation on published models with known answers."""

import gzip
import json
import re

import numpy as np
import pytest

from klprojax import (
    RESULTS,
    BeliefPropagation,
    Elimination,
    Sequential,
    condition,
    infer,
    read_evidence,
    read_model,
)
from klprojax.operators import TooLargeError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# The references are float64 answers of other programs; UAI marginals are printed to 12 digits.
# What is left is rounding: sums of up to 2^27 terms of either sign of error.
EXACT = 1e-8
MEMORY = 8 * 2**30
SIZE = r"Exact inference would take about .* with tables of at least .*memory_limit"


def network(data, name, case):
    model = read_model(data / "bn" / "bif" / f"{name}.bif.gz")
    known = json.loads((data / "bn" / "reference" / f"{name}.json").read_text())["cases"][case]
    observed = {v: o["index"] for v, o in (known.get("evidence") or {}).items()}
    return model, model.evidence(observed), known


def competition_model(data, name):
    folder = data / "uai2014" / "models"
    model = read_model(folder / f"{name}.uai.gz")
    evidence = folder / f"{name}.uai.evid"
    return model, read_evidence(evidence, model) if evidence.exists() else {}


def check_exact(model, observed, log_partition, marginals):
    """Compare, or see the error with the predicted size; returns whether it was feasible."""
    reduced = condition(model, observed)
    graph, log_potentials = reduced.model.to_graph()
    solver = Elimination(memory_limit=MEMORY)
    try:
        solution = infer(graph, log_potentials, solver)
    except TooLargeError as error:
        if not re.match(SIZE, str(error)):
            raise
        return False
    # Relative: log Z is a sum of thousands of terms.
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=EXACT, atol=EXACT)
    found = reduced.expand(graph.unpack_variables(solution.marginals))
    for got, wanted in zip(found, marginals, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=EXACT)
    return True


def test_bayesian_networks_are_exact(data_dir, subtests):
    for path in sorted((data_dir / "bn" / "reference").glob("*.json")):
        for case in (0, 1):
            with subtests.test(network=path.stem, case=case):
                model, observed, known = network(data_dir, path.stem, case)
                marginals = [known["marginals"][name] for name in model.variable_names]
                assert check_exact(model, observed, known["log_p_evidence"], marginals)


def test_competition_models_are_exact_or_refused(data_dir, subtests):
    solved = 0
    for name in json.loads((data_dir / "uai2014" / "INDEX.json").read_text()):
        path = data_dir / "uai2014" / "exact" / f"{name}.json.gz"
        if not path.exists():
            continue
        with gzip.open(path, "rt") as file:
            known = json.load(file)
        if "logZ" not in known:
            continue
        with subtests.test(model=name):
            model, observed = competition_model(data_dir, name)
            solved += check_exact(model, observed, known["logZ"], known["marginals"])
    assert solved >= 45  # a negative control: refusing everything must not pass


ATTEMPTS = [
    {},
    {"damping": 0.5},
    {"schedule": Sequential()},
    {"schedule": Sequential(), "damping": 0.5},
]


def bp_model(data, name):
    """The model and evidence of a record of ``bp_reference``; None for other model files."""
    if name.startswith("libdai_"):
        return read_model(data / "libdai" / f"{name.removeprefix('libdai_')}.fg"), {}
    if name.startswith("bn_"):
        source = name.removeprefix("bn_").removesuffix("_ev")
        return network(data, source, int(name.endswith("_ev")))[:2]
    return competition_model(data, name)


def test_belief_propagation_finds_the_known_fixed_points(data_dir, subtests):
    records = data_dir / "bp_reference"
    for name, entry in json.loads((records / "INDEX.json").read_text()).items():
        with subtests.test(model=name):
            model, observed = bp_model(data_dir, name)
            reduced = condition(model, observed)
            graph, log_potentials = reduced.model.to_graph()
            known = json.loads((records / f"{name}.json").read_text())
            for options in ATTEMPTS:
                solution = infer(
                    graph,
                    log_potentials,
                    BeliefPropagation(tolerance=1e-10, **options),
                    max_steps=3000,
                    throw=False,
                )
                beliefs = reduced.expand(graph.unpack_variables(solution.beliefs))
                assert all(np.isfinite(b).all() for b in beliefs)
                assert np.isfinite(solution.log_partition)
                converged = bool(solution.converged)
                assert bool(solution.result == RESULTS.successful) == converged
                if converged or entry["status"].startswith("no schedule"):
                    break
            if entry["status"].startswith("no schedule"):
                assert not converged
            elif entry["status"].startswith("unique"):
                assert converged
                # The reference stopped at 1e-12, this run at 1e-10; on slow models the distance
                # to the fixed point is a thousand times the last change.
                np.testing.assert_allclose(
                    solution.log_partition, known["bethe_logZ"], rtol=1e-6, atol=1e-6
                )
                for v, wanted in known["beliefs"].items():
                    np.testing.assert_allclose(beliefs[int(v)], wanted, rtol=0, atol=1e-6)
