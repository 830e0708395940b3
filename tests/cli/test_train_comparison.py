"""``klprojax train``: data of every kind, trials, several seeds, functions of one's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from typer.testing import CliRunner

from klprojax.cli._app import app
from klprojax.cli._network import make_network
from klprojax.cli._statistics import interval, paired
from klprojax.cli._steps import Setting, trials
from klprojax.cli._train import Training, TrainingStep
from klprojax.training import (
    GradientStep,
    SigmoidCrossEntropy,
    SquaredError,
    evaluate,
    fit,
    load_dataset,
)

runner = CliRunner()
FAST = ("--hidden", "4", "--epochs", 2, "--batch-size", 16, "--step", "sgd")


def train(*arguments):
    before = jax.config.jax_enable_x64
    try:
        return runner.invoke(app, ["train", *map(str, arguments)], env={"COLUMNS": "200"})
    finally:
        jax.config.update("jax_enable_x64", before)


def results(path):
    return json.loads(path.read_text())["results"]


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["a,b,kind,price,red,big"]
    for _ in range(60):
        a, b = rng.normal(size=2)
        kind, price = ("x", "y")[int(a + 0.3 * b > 0)], a - 2 * b + 0.01 * rng.normal()
        lines.append(f"{a:.4f},{b:.4f},{kind},{price:.4f},{int(a > 0)},{int(b > 0.5)}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    return path


def test_trials_are_spread_evenly_with_the_default_first():
    found = trials(Setting("share", 0.03), 12)
    assert found[0] == Setting("share", 0.03)
    assert found[:5] == trials(Setting("share", 0.03), 5)
    places = np.sort([np.log(one.value / 0.03) / np.log(30) for one in found])
    assert places[0] > -1
    assert places[-1] < 1
    # Gaps of a sequence by the golden ratio: at most 2.62 times the least, here of 12 in 2.
    assert np.diff(places).max() < 2 * 2 / 12


def test_each_step_is_tuned_on_validation_rows_and_run_with_every_seed(table, tmp_path):
    out, folder = tmp_path / "out.json", tmp_path / "runs"
    command = (
        "--data", table, "--drop", "price", "--drop", "red", "--drop", "big", "--target", "kind",
        "--hidden", "4", "--epochs", 3, "--batch-size", 16, "--precision", 64, "--step", "sgd",
        "--step", "momentum", "--tune", 3, "--seeds", 2, "--checkpoint", folder, "--json", out,
    )  # fmt: skip
    result = train(*command)
    assert result.exit_code == 0, result.output
    data = load_dataset(table, target="kind", drop=["price", "red", "big"], dtype="float64")

    def by_hand(rate, seed):
        start = make_network(2, [4], 2, seed, skip=False, dtype=np.float64)
        run = fit(
            start, GradientStep(optax.sgd(rate)), data.train, data.validation, epochs=3,
            batch_size=16, seed=seed, select="metric",
        )  # fmt: skip
        entry = next(e for e in run.history if e["update"] == run.best_update)
        test = evaluate(run.model, data.test).metric
        return test, (entry["validation_accuracy"], -entry["validation_loss"])

    first, second = results(out)
    rates = [trial["value"] for trial in first["trials"]]
    tests, scores = zip(*(by_hand(rate, 0) for rate in rates), strict=True)
    found = [(t["validation_accuracy"], -t["validation_loss"]) for t in first["trials"]]
    # The same computation.
    np.testing.assert_allclose(found, scores, rtol=1e-12)
    chosen = scores.index(max(scores))
    wanted = [tests[chosen], by_hand(rates[chosen], 1)[0]]
    assert first["by_seed"] == pytest.approx(wanted, rel=1e-12)
    for one in (first, second):
        values = [trial["value"] for trial in one["trials"]]
        assert values[0] == {"sgd": 0.1, "momentum": 0.01}[one["step"]]
        best = values.index(one["setting"]["value"])
        assert one is not first or best == chosen
        assert [len(history) for history in one["histories"]] == [4, 4]
        assert one["histories"][0][-1]["examples"] == 3 * len(data.train[1])
        names = {f"{one['step']}-trial{t}-0.npz" for t in range(3)}
        names.add(f"{one['step']}-trial{best}-1.npz")
        assert {path.name for path in folder.glob(f"{one['step']}-*")} == names
    assert first["paired"] is None
    assert second["paired"]["with"] == "sgd"
    assert second["paired"]["seeds"] == 2
    for text in ("setting", "learning rate", "95 % interval", "minus sgd", "over 2 seeds"):
        assert text in result.stdout
    # Checkpoints serve all runs: nothing runs again, and more trials may follow.
    assert train(*command).exit_code == 0
    assert results(out) == [first, second]


def test_a_setting_that_diverges_loses(table, tmp_path):
    out = tmp_path / "out.json"
    command = ("--data", table, "--target", "price", "--drop", "kind", *FAST, "--json", out)
    result = train(*command, "--learning-rate", 1e18, "--tune", 2)
    assert result.exit_code == 2
    assert "All 2 trials of sgd diverged" in result.stderr
    result = train(*command, "--learning-rate", 4, "--tune", 2)
    assert result.exit_code == 0, result.output
    (one,) = results(out)
    assert one["trials"][0]["validation_r2"] is None
    assert one["setting"]["value"] == one["trials"][1]["value"]
    assert "diverged: The loss became" in result.stderr


def test_statistics_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5)).tolist()
    wanted = stats.t.interval(0.95, 4, np.mean(a), stats.sem(a))
    assert interval(a) == pytest.approx(wanted, rel=1e-12)  # the same closed form
    found, test = paired(a, b), stats.ttest_rel(a, b)
    assert found["seeds"] == 5
    assert found["p"] == pytest.approx(test.pvalue, rel=1e-10)
    assert found["difference"] == pytest.approx(np.mean(a) - np.mean(b), rel=1e-12)
    assert found["interval"] == pytest.approx(tuple(test.confidence_interval()), rel=1e-10)
    assert interval([0.5]) is None
    assert paired([0.5], [0.4]) is None
    assert paired([0.3, 0.5], [0.1, 0.3])["p"] is None


def test_regressions_are_measured_by_r2(table, tmp_path):
    out = tmp_path / "out.json"
    command = ("--data", table, "--target", "price", "--drop", "kind", "--precision", 64, *FAST)
    result = train(*command, "--json", out)
    assert result.exit_code == 0, result.output
    (one,) = results(out)
    data = load_dataset(table, target="price", drop="kind", dtype="float64")
    start = make_network(4, [4], 1, 0, skip=False, dtype=np.float64)
    y = data.validation[1]

    def r2(outputs, targets):
        return 1 - ((outputs - targets) ** 2)[:, 0] / y.var()

    run = fit(
        start, GradientStep(optax.sgd(0.1)), data.train, data.validation, loss=SquaredError(),
        metric=r2, epochs=2, batch_size=16, select="metric",
    )  # fmt: skip
    x, y = data.test
    gaps = np.asarray(jax.vmap(run.model)(jnp.asarray(x))) - y
    # Sums of twelve squares in another order.
    assert one["r2_mean"] == pytest.approx(1 - np.mean(gaps**2) / y.var(), rel=1e-12)
    assert "test R²" in result.stdout


def test_a_column_weighs_the_training_rows(table, tmp_path):
    # Weights of 1 and 2 by whether the price is above its middle.
    lines = table.read_text().splitlines()
    price = lines[0].split(",").index("price")
    heavy = [2 if float(line.split(",")[price]) > 0 else 1 for line in lines[1:]]
    weighed = tmp_path / "weighed.csv"
    rows = [f"{line},{weight}" for line, weight in zip(lines[1:], heavy, strict=True)]
    weighed.write_text("\n".join([lines[0] + ",w", *rows]))
    out, chosen = tmp_path / "out.json", ("--target", "price", "--drop", "kind")
    command = ("--data", weighed, *chosen, "--weights", "w", "--precision", 64, *FAST)
    assert train(*command, "--json", out).exit_code == 0
    (one,) = results(out)
    data = load_dataset(weighed, target="price", drop="kind", dtype="float64", weights="w")
    assert set(data.weights) == {1.0, 2.0}
    start = make_network(4, [4], 1, 0, skip=False, dtype=np.float64)
    run = fit(
        start, GradientStep(optax.sgd(0.1)), data.train, data.validation, loss=SquaredError(),
        metric=None, epochs=2, batch_size=16, weights=data.weights,
    )  # fmt: skip
    last = one["histories"][0][-1]
    assert last["train_loss"] == pytest.approx(run.history[-1]["train_loss"], rel=1e-12)


def test_several_labels(table, tmp_path):
    out = tmp_path / "out.json"
    command = ("--data", table, "--target", "red", "--target", "big", "--drop", "kind", *FAST)
    result = train(*command, "--precision", 64, "--json", out)
    assert result.exit_code == 0, result.output
    (one,) = results(out)
    data = load_dataset(table, target=["red", "big"], drop="kind", dtype="float64")

    def label_accuracy(outputs, y):
        return jnp.mean((outputs > 0) == (y == 1), -1)

    run = fit(
        make_network(3, [4], 2, 0, skip=False, dtype=np.float64), GradientStep(optax.sgd(0.1)),
        data.train, data.validation, loss=SigmoidCrossEntropy(), metric=label_accuracy, epochs=2,
        batch_size=16, select="metric",
    )  # fmt: skip
    outputs = np.asarray(jax.vmap(run.model)(jnp.asarray(data.test[0])))
    assert one["label_accuracy_mean"] == pytest.approx(
        np.mean((outputs > 0) == (data.test[1] > 0)), rel=1e-12
    )


MODULE = """
import equinox as eqx, jax, jax.numpy as jnp
from klprojax.training import SquaredError

def make(shape, outputs, key):
    return eqx.nn.Linear(shape[0], outputs, key=key)

def loss(outputs, y):
    return jax.nn.logsumexp(outputs, -1) - jnp.take_along_axis(outputs, y[:, None], -1)[:, 0]

def no_network(shape, outputs, key):
    return 3

def fails(shape):
    return None

def odd(outputs, y):
    return jnp.sum(outputs)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path / "mine.py"


def test_networks_and_losses_of_ones_own(table, module, tmp_path):
    outs = [tmp_path / "a.json", tmp_path / "b.json"]
    start = ("--data", table, "--target", "kind", *FAST, "--network", "mine.py:make")
    for out, loss in zip(outs, ("mine.py:loss", "cross-entropy"), strict=True):
        result = train(*start, "--loss", loss, "--precision", 64, "--json", out)
        assert result.exit_code == 0, result.output
    one, other = (results(out)[0] for out in outs)
    # The same function, written otherwise.
    assert one["test_loss_by_seed"] == pytest.approx(other["test_loss_by_seed"], rel=1e-12)


def test_squared_error_meets_one_hot_rows(table, tmp_path):
    out = tmp_path / "out.json"
    result = train(
        "--data", table, "--target", "kind", *FAST, "--loss", "squared-error", "--json", out
    )
    assert result.exit_code == 0, result.output
    assert results(out)[0]["metric"] == "accuracy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "mine.py:no_network"), "gave a int; expected a network: a callable on one"),
        (
            ("--network", "mine.py:fails"),
            "mine.py:fails(shape=(4,), outputs=2, key) failed: TypeEr",
        ),
        (("--network", "mine.py:nothing"), "mine.py has no function nothing"),
        (("--network", "nowhere:make"), "cannot import nowhere: ModuleNotFoundError"),
        (("--network", "vgg"), "--network is 'vgg'; expected one of mlp, cnn, resnet, gru"),
        (("--network", "cnn"), "--network cnn is for images and text; rows of this data have the"),
        (("--network", "gru", "--skip"), "--skip belongs to --network mlp"),
        (("--network", "gru", "--hidden", ""), "--hidden is empty; --network gru needs a width"),
        (("--network", "transformer", "--hidden", "4,8"), "needs blocks of one width"),
        (("--loss", "mine.py:odd"), "The loss must give one number per row"),
        (("--loss", "hinge"), "--loss is 'hinge'; expected one of cross-entropy"),
        (("--loss", "sigmoid-cross-entropy"), "is not for the task classification; expected cross"),
        (("--target", "colour"), "target names 'colour', which is no column"),
        (("--window", 3), "window is for text; this is a table"),
        (("--image-size", 3), "image_size is for images; this is a table"),
        (("--task", "multi-label"), "several labels per row need several target columns"),
        (("--task", "regression"), "the target 'kind' holds text such as 'x'"),
        (("--target", "a", "--task", "classification"), "has 60 different values in 60 rows"),
        (
            ("--tune", 2, "--step", "projection", "--scheme", "admm"),
            "--tune has no setting for --scheme and --iterations as given",
        ),
    ],
)
def test_bad_input_exits_with_2_and_one_clear_error(table, module, arguments, message):
    target = () if "--target" in arguments else ("--target", "kind")
    result = train("--data", table, *target, "--drop", "red", *FAST, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.count("error:") == 1


def test_text_and_images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    text, folder, out = tmp_path / "data.txt", tmp_path / "images", tmp_path / "out.json"
    text.write_text("to be or not to be " * 9)
    for name, shade in (("black", 0), ("white", 255)):
        (folder / name).mkdir(parents=True)
        for n in range(6):
            grey = np.full((4 + n, 5), shade, np.uint8)
            image.fromarray(grey).save(folder / name / f"{n}.png")
    for command, shape in (
        (("--data", text, "--window", 3, "--network", "mlp"), [3]),
        (("--data", folder, "--image-size", 4, "--network", "cnn"), [4, 4]),
    ):
        result = train(*command, *FAST, "--json", out)
        assert result.exit_code == 0, result.output
        found = json.loads(out.read_text())
        assert found["data"]["shape"] == shape
        assert found["network"] == command[-1]
    assert found["data"]["names"] == ["black", "white"]


def test_text_takes_small_steps_per_row():
    training = Training()
    assert training.setting(TrainingStep.sgd, positions=10).value == 0.1 / 10
    assert training.setting(TrainingStep.adam, positions=10).value == 1e-3
    assert training.setting(TrainingStep.projection, positions=10) == Setting("share", 0.03)
