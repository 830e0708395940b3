"""The networks that come with the package."""

import importlib.resources

import numpy as np
import pytest

from klprojax.graphs._files import (
    ModelFileError,
    load_model,
    read_model,
    shipped_models,
    write_bif,
    write_uai,
)

SIZES = {"alarm": (37, 509), "asia": (8, 18), "child": (20, 230), "insurance": (27, 1008)}


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_networks(name, tmp_path):
    model = load_model(name)
    variables, parameters = SIZES[name]
    assert model.name == name
    assert model.kind == "BAYES"
    assert len(model.cardinalities) == len(model.scopes) == variables
    # free parameters as published with the networks
    free = sum(t.size - t.size // t.shape[-1] for t in model.log_tables)
    assert free == parameters
    for table in model.log_tables:
        # a sum of up to 5 numbers, each rounded in exp and log
        np.testing.assert_allclose(np.exp(table).sum(axis=-1), 1.0, atol=2e-15)
    for writer, suffix in ((write_bif, "bif"), (write_uai, "uai.gz")):
        path = tmp_path / f"copy.{suffix}"
        writer(path, model)
        copy = read_model(path)
        assert copy.scopes == model.scopes
        for got, expected in zip(copy.log_tables, model.log_tables, strict=True):
            # one rounding in exp and one in log, relative to logs of size 10 at most
            np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)


def test_asia_by_hand():
    model = load_model("asia")
    assert model.state_names is not None
    assert model.evidence({"asia": "yes", "dysp": "no"}) == {0: 0, 7: 1}
    tub = model.log_tables[model.variable_index("tub")]
    np.testing.assert_array_equal(tub, np.log([[0.05, 0.95], [0.01, 0.99]]))


def test_paths_and_wrong_names(tmp_path):
    path = tmp_path / "asia.uai"
    write_uai(path, load_model("asia"))
    assert load_model(path).cardinalities == load_model(str(path)).cardinalities == (2,) * 8
    match = r"alarm: expected .* one of alarm, asia, child, insurance, got 'alrm' .*mean alarm"
    with pytest.raises(ModelFileError, match=match.replace("alarm:", "alrm:", 1)):
        load_model("alrm")
    with pytest.raises(ModelFileError, match=r"got 'zzz' \(check the name or the extension\)"):
        load_model("zzz")
    with pytest.raises(ModelFileError, match="no such file"):
        load_model("asia.bif")


def test_licence_notes_come_with_the_data():
    folder = importlib.resources.files("klprojax.models")
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert "CC BY-SA 3.0" in text
    assert "The MIT License" in text
