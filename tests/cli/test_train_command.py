"""``klprojax train``: every option, the JSON, the pictures, the exit status."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from typer.testing import CliRunner

from klprojax.cli._app import app
from klprojax.cli._network import make_network
from klprojax.cli._train import Training, TrainingStep
from klprojax.projections import ADMM, DifferenceMap, DouglasRachford, Dykstra
from klprojax.training import (
    AlternatingProjections,
    CrossEntropy,
    CyclicProjections,
    GradientStep,
    ProjectionDirection,
    ProjectionStep,
    Splitting,
    evaluate,
    fit,
    load_dataset,
)

runner = CliRunner()


def train(*arguments):
    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "150"})
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def data(tmp_path):
    """Clouds of points, with some labels wrong."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.normal(size=(3, 4))[y] + 0.7 * rng.normal(size=(90, 4))
    path = tmp_path / "clouds.npz"
    np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path


SMALL = ("--hidden", "6,6", "--epochs", 3, "--batch-size", 16, "--precision", 64)


def test_json_has_the_numbers_of_the_same_runs_by_hand(data, tmp_path):
    out = tmp_path / "out.json"
    result = train(
        "--data", data, *SMALL, "--step", "adam", "--step", "sgd", "--seeds", 2,
        "--learning-rate", 0.05, "--json", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = json.loads(out.read_text())["results"]
    assert [one["step"] for one in results] == ["adam", "sgd"]
    dataset = load_dataset(data, dtype="float64")
    for one, optimiser in zip(results, (optax.adam(0.05), optax.sgd(0.05)), strict=True):
        assert set(one) == {
            "step", "metric", "accuracy_mean", "accuracy_sd", "accuracy_interval", "by_seed",
            "test_loss_by_seed", "setting", "trials", "seconds", "seconds_per_update",
            "peak_memory_mib", "curve", "histories", "paired",
        }  # fmt: skip
        accuracies, curves = [], []
        for seed in (0, 1):
            start = make_network(4, [6, 6], 3, seed, skip=False, dtype=np.float64)
            run = fit(
                start, GradientStep(optimiser), dataset.train, dataset.validation,
                loss=CrossEntropy(), epochs=3, batch_size=16, seed=seed, select="metric",
            )  # fmt: skip
            accuracies.append(evaluate(run.model, dataset.test, loss=CrossEntropy()).metric)
            curves.append([entry["validation_accuracy"] for entry in run.history])
        # The same computation: equal but for the mean of two numbers.
        assert one["accuracy_mean"] == pytest.approx(np.mean(accuracies), rel=1e-12)
        assert one["accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1), rel=1e-12)
        assert [point[0] for point in one["curve"]] == [0, 3, 6, 9]
        np.testing.assert_allclose([p[2] for p in one["curve"]], np.mean(curves, 0), rtol=1e-12)
        assert one["seconds"] == pytest.approx(one["curve"][-1][1])
        assert one["seconds_per_update"] == pytest.approx(one["seconds"] / 9)
        assert one["peak_memory_mib"] > 0
    # Equal terms: both steps start from the same network.
    assert results[0]["curve"][0][2] == results[1]["curve"][0][2]
    assert results[0]["peak_memory_mib"] > results[1]["peak_memory_mib"]  # adam has moments
    for heading in ("test accuracy", "seconds", "ms/update", "peak memory (MiB)", "±"):
        assert heading in result.stdout


@pytest.mark.parametrize("scheme", [pytest.param(None, marks=pytest.mark.slow), "alternating"])
def test_projection_steps_run(data, tmp_path, scheme):
    out = tmp_path / "out.json"
    more = () if scheme is None else ("--scheme", scheme)
    result = train(
        "--data", data, *SMALL, "--step", "projection", "--iterations", 2, *more, "--json", out
    )
    assert result.exit_code == 0, result.output
    (one,) = json.loads(out.read_text())["results"]
    assert one["step"] == "projection"
    assert one["accuracy_sd"] == 0.0
    assert 0 <= one["accuracy_mean"] <= 1


def test_projection_adam_hands_the_slopes_to_adam(data, tmp_path):
    out = tmp_path / "out.json"
    result = train(
        "--data", data, *SMALL, "--step", "projection-adam", "--learning-rate", 0.05, "--json", out
    )
    assert result.exit_code == 0, result.output
    (one,) = json.loads(out.read_text())["results"]
    dataset = load_dataset(data, dtype="float64")
    run = fit(
        make_network(4, [6, 6], 3, 0, skip=False, dtype=np.float64),
        ProjectionDirection(optax.adam(0.05)), dataset.train, dataset.validation,
        loss=CrossEntropy(), epochs=3, batch_size=16, seed=0, select="metric",
    )  # fmt: skip
    # The same computation.
    assert [point[2] for point in one["curve"]] == pytest.approx(
        [entry["validation_accuracy"] for entry in run.history], rel=1e-12
    )
    found = evaluate(run.model, dataset.test, loss=CrossEntropy()).metric
    assert one["accuracy_mean"] == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("cyclic", CyclicProjections),
        ("alternating", AlternatingProjections),
        ("douglas-rachford", DouglasRachford),
        ("difference-map", DifferenceMap),
        ("dykstra", Dykstra),
        ("admm", ADMM),
    ],
)
def test_schemes_by_name(name, scheme):
    step = Training(scheme=name, iterations=7).make_step(TrainingStep.projection, 100)
    assert isinstance(step, ProjectionStep)
    run = step.scheme.scheme if isinstance(step.scheme, Splitting) else step.scheme
    assert isinstance(run, scheme)
    assert step.iterations == 7


def test_pictures(data, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    curves, inside = tmp_path / "curves.png", tmp_path / "dynamics.svg"
    result = train(
        "--data", data, *SMALL, "--step", "adam", "--step", "sgd", "--plot", curves,
        "--dynamics", inside,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert curves.read_bytes()[:4] == b"\x89PNG"
    assert not inside.exists()
    for name in ("adam", "sgd"):
        assert "<svg" in (tmp_path / f"dynamics-{name}.svg").read_text()
    assert train("--data", data, *SMALL, "--step", "sgd", "--dynamics", inside).exit_code == 0
    assert inside.exists()


def test_checkpoints_are_used_again(data, tmp_path):
    folder, outs = tmp_path / "runs", [tmp_path / "a.json", tmp_path / "b.json"]
    for out in outs:
        result = train(
            "--data", data, *SMALL, "--step", "adam", "--checkpoint", folder, "--json", out
        )
        assert result.exit_code == 0, result.output
    assert [path.name for path in folder.iterdir()] == ["adam-0.npz"]
    # Seconds too: nothing ran a second time.
    first, second = (json.loads(out.read_text())["results"][0] for out in outs)
    assert first["curve"] == second["curve"]
    other = train(
        "--data", data, *SMALL, "--step", "adam", "--checkpoint", folder, "--learning-rate", 0.5
    )
    assert other.exit_code == 2
    assert "is of another run" in other.stderr


def test_networks():
    x = np.linspace(-1.0, 1.0, 4)
    plain = make_network(4, [6, 6], 3, 0, skip=False, dtype=np.float32)
    assert isinstance(plain, eqx.nn.MLP)
    uneven = make_network(4, [6, 5], 3, 0, skip=False, dtype=np.float64)
    skip = make_network(4, [6, 6, 5], 3, 0, skip=True, dtype=np.float64)

    def dense(layer, h):
        return np.asarray(layer.weight) @ h + np.asarray(layer.bias)

    h = x
    for layer in uneven.layers[::2][:-1]:
        h = np.maximum(dense(layer, h), 0)
    # Sums of six numbers in float64.
    np.testing.assert_allclose(uneven(jnp.asarray(x)), dense(uneven.layers[-1], h), rtol=1e-13)
    first, second, third, last = skip.layers
    h = np.maximum(dense(first, x), 0)
    h = h + np.maximum(dense(second, h), 0)
    h = np.maximum(dense(third, h), 0)
    np.testing.assert_allclose(skip(jnp.asarray(x)), dense(last, h), rtol=1e-13)
    wide = make_network(400, [500], 3, 0, skip=False, dtype=np.float64)
    # A sample of 200000 normal numbers: the deviation is known to a few times 1/sqrt(400000).
    assert float(jnp.std(wide.layers[0].weight)) == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert not np.any(wide.layers[0].bias)


def test_skip_changes_the_network(data, tmp_path):
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    for out, more in zip(outs, ((), ("--skip",)), strict=True):
        assert train("--data", data, *SMALL, "--step", "sgd", "--json", out, *more).exit_code == 0
    first, second = (json.loads(out.read_text())["results"][0]["curve"] for out in outs)
    assert [point[2] for point in first] != [point[2] for point in second]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing.npz"), "nothing.npz: no such file"),
        (("--data", "mnist"), "'mnist' is no data set"),
        (("--hidden", "8,x"), "--hidden is '8,x'; expected widths such as 128,128"),
        (("--hidden", "8,0"), "--hidden is '8,0'"),
        (("--plot", "picture.doc"), "picture.doc: expected a name that ends in .png"),
        (("--dynamics", "picture"), "picture: expected a name that ends in .png"),
        (("--json", "nowhere/out.json"), "nowhere/out.json: the folder nowhere does not exist"),
        (("--step", "sgd", "--scheme", "cyclic"), "--scheme and --iterations belong to"),
        (("--step", "sgd", "--iterations", "3"), "--scheme and --iterations belong to"),
        (("--step", "projection-adam", "--scheme", "cyclic"), "belong to --step projection."),
        (("--step", "projection-adam", "--iterations", "2"), "belong to --step projection."),
        (("--step", "projection", "--learning-rate", "1"), "--learning-rate belongs to a step"),
        (("--step", "projection", "--scheme", "x"), "--scheme is 'x'; expected one of cyclic"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(arguments, message):
    if "picture" in arguments[1]:
        pytest.importorskip("matplotlib", reason="needs matplotlib")
    result = train(*(arguments if "--step" in arguments else ("--step", "adam", *arguments)))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_diverging_runs_exit_with_2(data):
    result = train("--data", data, *SMALL, "--step", "sgd", "--learning-rate", 1e300)
    assert result.exit_code == 2
    assert "lower the step size" in result.stderr
