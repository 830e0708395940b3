"""The training loop against a naive one, its history, its stops and its errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from klprojax.training import (
    AbstractStep,
    CrossEntropy,
    FitResult,
    GradientStep,
    ProjectionStep,
    SquaredError,
    StepInfo,
    evaluate,
    fit,
    scan_fit,
)
from klprojax.training._memory import update_memory

from ._runs import blobs, cross_entropy, network, squared, weights_of

TRAIN, VALIDATION = blobs(53, 0), blobs(31, 1)
# Some hundred float64 updates in which sums may be taken in another order.
ROUNDING = 1e-11


def naive(model, optimiser, x, y, epochs, size, seed):
    """Iterates and losses of a plain loop over short batches."""
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    state, losses, iterates = optimiser.init(params), [], [params]

    @jax.jit
    def update(params, state, x, y):
        def mean(params):
            return cross_entropy(jax.vmap(eqx.combine(params, rest))(x), y).mean()

        value, gradient = jax.value_and_grad(mean)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for start in range(0, len(x), size):
            rows = order[start : start + size]
            params, state, value = update(params, state, x[rows], y[rows])
            losses.append((float(value), len(rows)))
            iterates.append(params)
    return iterates, losses


@pytest.fixture(scope="module")
def reference():
    return naive(network(), optax.adam(0.01), *TRAIN, epochs=3, size=8, seed=5)


@pytest.fixture(scope="module")
def run():
    return fit(
        network(),
        GradientStep(optax.adam(0.01)),
        TRAIN,
        VALIDATION,
        loss=cross_entropy,
        epochs=3,
        batch_size=8,
        seed=5,
        evaluate_every=5,
        windows=(1, 3, 6),
    )


def test_equals_a_plain_loop_over_short_batches(run, reference):
    iterates, losses = reference
    assert run.updates == len(losses) == 21
    np.testing.assert_allclose(
        weights_of(run.last_model), weights_of(iterates[-1]), rtol=ROUNDING, atol=ROUNDING
    )
    # 53 rows leave a last batch of 5: the mean must weigh it by its rows.
    before = 0
    for entry in run.history[1:]:
        part = losses[before : entry["update"]]
        mean = sum(v * n for v, n in part) / sum(n for _, n in part)
        assert entry["train_loss"] == pytest.approx(mean, rel=ROUNDING)
        before = entry["update"]


def test_history(run, reference):
    assert [entry["update"] for entry in run.history] == [0, 5, 10, 15, 20, 21]
    assert [entry["epoch"] for entry in run.history] == [u / 7 for u in (0, 5, 10, 15, 20, 21)]
    # Epochs of 53 rows in batches of 8.
    assert [entry["examples"] for entry in run.history] == [0, 40, 77, 114, 154, 159]
    assert run.history[0]["train_loss"] is None
    seconds = [entry["seconds"] for entry in run.history]
    assert seconds[0] == 0.0
    assert seconds == sorted(set(seconds))
    rest = eqx.filter(network(), eqx.is_inexact_array, inverse=True)
    for entry in run.history:
        model = eqx.combine(reference[0][entry["update"]], rest)
        outputs = np.asarray(jax.vmap(model)(VALIDATION[0]))
        loss = np.asarray(cross_entropy(outputs, VALIDATION[1])).mean()
        assert entry["validation_loss"] == pytest.approx(loss, rel=ROUNDING)
        hits = (outputs.argmax(1) == VALIDATION[1]).mean()
        assert entry["validation_accuracy"] == pytest.approx(hits, rel=1e-15)
    assert run.history[0]["stats"] == {}
    assert len(run.history[1]["stats"]["gradient_norm"]) == 2
    assert run.compile_seconds > 0


def test_window_distances(run, reference):
    iterates = [weights_of(params) for params in reference[0]]
    for entry in run.history:
        t = entry["update"]
        assert list(entry["window_distance"]) == ["1", "3", "6"]
        for window, got in entry["window_distance"].items():
            if t < int(window):
                assert got is None
                continue
            wanted = np.linalg.norm(iterates[t] - iterates[t - int(window)])
            # The difference of near iterates loses a few digits more.
            assert got == pytest.approx(wanted / np.linalg.norm(iterates[t]), rel=1e-8)


def test_result_unpacks_as_model_and_history(run):
    model, history = run
    assert model is run.model
    assert history is run.history
    assert isinstance(run, FitResult)


def test_the_best_model_is_kept_and_patience_stops():
    # A large rate on few rows: validation soon gets worse.
    few = TRAIN[0][:10], TRAIN[1][:10]
    result = fit(
        network(),
        GradientStep(optax.adam(0.1)),
        few,
        VALIDATION,
        loss=cross_entropy,
        epochs=200,
        batch_size=4,
        patience=4,
    )
    losses = [entry["validation_loss"] for entry in result.history]
    best = int(np.argmin(losses))
    assert result.stopped_early
    assert len(losses) == best + 5
    assert result.best_update == result.history[best]["update"]
    assert 0 < result.best_update < result.updates < 600
    again = evaluate(result.model, VALIDATION, loss=cross_entropy)
    assert again.loss == pytest.approx(losses[best], rel=1e-14)
    last = evaluate(result.last_model, VALIDATION, loss=cross_entropy)
    assert last.loss == pytest.approx(losses[-1], rel=1e-14)


def test_select_by_metric_takes_the_first_of_the_largest():
    result = fit(
        network(),
        GradientStep(optax.adam(0.05)),
        TRAIN,
        VALIDATION,
        loss=cross_entropy,
        epochs=15,
        batch_size=16,
        select="metric",
    )
    scores = [entry["validation_accuracy"] for entry in result.history]
    assert result.best_update == result.history[int(np.argmax(scores))]["update"]
    losses = [entry["validation_loss"] for entry in result.history]
    assert np.argmax(scores) != np.argmin(losses)  # else the test could not tell


def test_without_validation_the_last_model_counts():
    result = fit(
        network(), GradientStep(optax.sgd(0.1)), TRAIN, loss=cross_entropy, epochs=2, batch_size=20
    )
    assert result.model is result.last_model
    assert result.best_update == result.updates == 6
    assert [entry["update"] for entry in result.history] == [3, 6]
    assert result.history[0]["validation_loss"] is None
    assert result.history[0]["validation_accuracy"] is None


def test_max_updates_ends_inside_an_epoch():
    result = fit(
        network(),
        GradientStep(optax.adam(0.01)),
        TRAIN,
        loss=cross_entropy,
        epochs=3,
        batch_size=8,
        seed=5,
        max_updates=10,
    )
    iterates, _ = naive(network(), optax.adam(0.01), *TRAIN, epochs=2, size=8, seed=5)
    np.testing.assert_allclose(
        weights_of(result.model), weights_of(iterates[10]), rtol=ROUNDING, atol=ROUNDING
    )
    assert [entry["update"] for entry in result.history] == [7, 10]


def test_full_batch_takes_all_rows_and_ignores_the_seed():
    def train(size, seed):
        step = GradientStep(optax.sgd(0.1))
        return weights_of(
            fit(
                network(), step, TRAIN, loss=cross_entropy, epochs=4, batch_size=size, seed=seed,
                evaluate_every=3,
            ).model
        )  # fmt: skip

    np.testing.assert_array_equal(train(None, 0), train(None, 1))
    np.testing.assert_allclose(train(None, 0), train(1000, 3), rtol=ROUNDING)


def test_no_epochs_return_the_start():
    result = fit(
        network(), GradientStep(optax.sgd(0.1)), TRAIN, VALIDATION, loss=cross_entropy, epochs=0
    )
    np.testing.assert_array_equal(weights_of(result.model), weights_of(network()))
    assert [entry["update"] for entry in result.history] == [0]


def test_nothing_is_traced_again_after_the_start():
    traced = []

    def counted(outputs, y):
        traced.append(1)
        return cross_entropy(outputs, y)

    seen = []
    fit(
        network(),
        GradientStep(optax.adam(0.01)),
        TRAIN,
        VALIDATION,
        loss=counted,
        epochs=4,
        batch_size=8,
        evaluate_every=3,  # stretches of different lengths, across epochs
        windows=(1, 2),
        max_updates=26,
        on_evaluate=lambda entry: seen.append((entry["update"], len(traced))),
    )
    assert [update for update, _ in seen] == [*range(3, 27, 3), 26]
    assert seen[0][1] == seen[-1][1] <= 8


def test_a_progress_bar_changes_no_number(run, capsys):
    again = fit(
        network(),
        GradientStep(optax.adam(0.01)),
        TRAIN,
        VALIDATION,
        loss=cross_entropy,
        epochs=3,
        batch_size=8,
        seed=5,
        evaluate_every=5,
        progress=True,
    )
    np.testing.assert_array_equal(weights_of(again.model), weights_of(run.model))
    shown = capsys.readouterr().err
    assert f"train {run.history[-1]['train_loss']:.4f}" in shown
    assert f"validation {run.history[-1]['validation_loss']:.4f}" in shown
    assert "21/21" in shown


def test_inputs_and_targets_may_be_trees():
    class Two(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            return self.weight * x["a"] + x["b"]

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 1))
    data = {"a": a, "b": b}, (3.0 * a + b, np.arange(20))

    def loss(outputs, y):
        return squared(outputs, y[0])

    result = fit(
        Two(jnp.asarray([0.0])),
        GradientStep(optax.sgd(0.5)),
        data,
        loss=loss,
        epochs=40,
        batch_size=10,
    )
    # Gradient descent on one unknown contracts by about a half an update: converged to rounding.
    np.testing.assert_allclose(result.model.weight, [3.0], rtol=1e-9)


def test_data_take_the_floating_type_of_the_model():
    result = fit(
        network(dtype=jnp.float32),
        GradientStep(optax.sgd(0.1)),
        TRAIN,  # float64
        VALIDATION,
        loss=cross_entropy,
        epochs=1,
    )
    assert weights_of(result.model).dtype == np.float32


def test_own_metric():
    def error(outputs, y):
        return (jnp.argmax(outputs, 1).astype(y.dtype) != y).astype(outputs.dtype)

    result = fit(
        network(),
        GradientStep(optax.sgd(0.1)),
        TRAIN,
        VALIDATION,
        loss=cross_entropy,
        epochs=1,
        metric=error,
    )
    wanted = evaluate(result.last_model, VALIDATION, loss=cross_entropy).metric
    assert result.history[-1]["validation_error"] == pytest.approx(1 - wanted, rel=1e-12)


class Runaway(AbstractStep):
    """Counts updates; the loss is NaN from one update on."""

    bad: int
    value: float = float("nan")

    def init(self, model):
        return jnp.asarray(0)

    def update(self, model, state, x, y, weights, loss):
        value = jnp.where(state + 1 >= self.bad, self.value, 1.0)
        return (
            model,
            state + 1,
            StepInfo(value, {"count": state, "twice": jnp.stack([state] * 2) * 2}),
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_at_its_update(value):
    with pytest.raises(ValueError, match=rf"The loss became {value} at update 17 \(epoch 3\)"):
        fit(network(), Runaway(17, value), TRAIN, loss=cross_entropy, epochs=5, batch_size=8)


class Counted(AbstractStep):
    """Calls the host in every update; the state starts weakly typed."""

    calls: list = eqx.field(static=True)
    traces: list = eqx.field(static=True)

    def init(self, model):
        return jnp.asarray(0)

    def update(self, model, state, x, y, weights, loss):
        self.traces.append(1)
        jax.debug.callback(self.calls.append, state)
        value = jnp.where(state == 4, jnp.nan, jnp.asarray(1.0))
        return model, state + jnp.ones((), state.dtype), StepInfo(value, {})

    __hash__ = object.__hash__


def test_no_update_follows_one_without_a_loss():
    step = Counted([], [])
    with pytest.raises(ValueError, match="The loss became nan at update 5"):
        fit(network(), step, TRAIN, loss=cross_entropy, epochs=9, batch_size=8, evaluate_every=60)
    jax.effects_barrier()
    assert [int(call) for call in step.calls] == [0, 0, 1, 2, 3, 4]  # the first compiles


def test_a_weakly_typed_state_is_traced_once_too():
    step, seen = Counted([], []), []
    fit(
        network(), step, TRAIN, loss=cross_entropy, epochs=1, batch_size=16, evaluate_every=1,
        on_evaluate=lambda entry: seen.append(len(step.traces)), max_updates=3,
    )  # fmt: skip
    assert seen == [seen[0]] * 3
    # Shapes, then the loop, which JAX may trace twice: not a second compilation's worth.
    assert seen[0] <= 3


def test_a_validation_loss_of_nan_stops():
    def poisoned(outputs, y):
        # Row counts differ: training batches have 8 rows, validation batches 7.
        values = cross_entropy(outputs, y)
        return values if len(y) in (2, 8) else values * jnp.nan

    with pytest.raises(ValueError, match="The validation loss is nan after update 0"):
        fit(
            network(),
            GradientStep(optax.sgd(0.1)),
            TRAIN,
            (VALIDATION[0][:7], VALIDATION[1][:7]),
            loss=poisoned,
            epochs=1,
            batch_size=8,
        )


def test_stats_are_those_of_the_last_update():
    result = fit(
        network(), Runaway(10**6), TRAIN, loss=cross_entropy, epochs=2, batch_size=8,
        evaluate_every=4,
    )  # fmt: skip
    assert [entry["stats"]["count"] for entry in result.history] == [3, 7, 11, 13]
    assert result.history[1]["stats"]["twice"] == [14, 14]
    assert int(result.state) == 14


class Restless(AbstractStep):
    """Changes a number that is not an array."""

    def init(self, model):
        return {"calls": 0}

    def update(self, model, state, x, y, weights, loss):
        return model, {"calls": state["calls"] + 1}, StepInfo(jnp.asarray(1.0), {})


def test_a_step_that_changes_more_than_arrays_is_an_error():
    with pytest.raises(ValueError, match=r"Restless.update changed something that is not an array"):
        fit(network(), Restless(), TRAIN, loss=cross_entropy, epochs=1)


def start(**changes):
    settings = {
        "model": network(),
        "step": GradientStep(optax.sgd(0.1)),
        "train": TRAIN,
        "validation": VALIDATION,
        "loss": cross_entropy,
        "epochs": 1,
        **changes,
    }
    return fit(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "epochs is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be at least 1"),
        ({"max_updates": -1}, "max_updates is -1; it must be at least 0"),
        ({"evaluate_every": 0}, "evaluate_every is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"windows": (1, 0)}, r"windows\[1\] is 0; it must be at least 1"),
        ({"select": "best"}, "select is 'best'; expected 'loss' or 'metric'"),
        ({"patience": 2, "validation": None}, "patience needs validation data"),
        ({"metric": "f1"}, "metric is 'f1'; expected 'accuracy', None, or a function"),
        ({"metric": "f1", "validation": None}, "metric is 'f1'; expected 'accuracy', None"),
        ({"metric": None, "select": "metric"}, "select is 'metric', but there is no metric"),
        ({"metric": lambda outputs, y: outputs}, r"for 2 rows it gave shape \(2, 3\)"),
        ({"devices": []}, "devices is an empty list"),
        ({"train": TRAIN[0]}, "train must be a pair"),
        ({"train": (TRAIN[0][:0], TRAIN[1][:0])}, "train x has no rows"),
        ({"validation": (TRAIN[0][:0], TRAIN[1][:0])}, "validation x has no rows"),
        ({"train": ({}, TRAIN[1])}, "train x has no arrays"),
        ({"train": (TRAIN[0], "labels")}, "train y must be an array of numbers with rows"),
        ({"train": (TRAIN[0][:50], TRAIN[1])}, "train x has 50 rows, but train y has 53"),
        ({"train": (TRAIN[0][:, :1], TRAIN[1])}, r"does not take rows of train x, of shape \(1,\)"),
        ({"validation": (VALIDATION[0].T[:31], VALIDATION[1][:2])}, "of validation x, of shape"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, r"train y holds 3 in row \d+, but the model has 3"),
        ({"train": (TRAIN[0], TRAIN[1] - 1)}, r"train y holds -1 in row \d+"),
        (
            {"train": (TRAIN[0], TRAIN[0][:, :1]), "validation": None},
            r"The loss does not take model outputs of shape \(3,\) with rows of train y",
        ),
        ({"loss": lambda outputs, y: outputs.mean()}, r"one number per row; .* it gave shape \(\)"),
        ({"loss": SquaredError}, r"loss is the class SquaredError; give one of it, SquaredError"),
        (
            {"step": ProjectionStep()},
            "loss is cross_entropy, which has no projection; .*Margin",
        ),
        ({"model": lambda x: x if x[0] > 0 else -x}, r"test_fit.py:\d+: the model asks in Python"),
        ({"loss": lambda outputs, y: abs(float(y[0]))}, r"test_fit.py:\d+: the loss asks in Pyt"),
        ({"metric": lambda outputs, y: np.cos(outputs[0])}, r"fit.py:\d+: the metric asks in Pyt"),
    ],
)
def test_errors_name_the_place(changes, message):
    with pytest.raises(ValueError, match=message):
        start(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": optax.adam(0.1)}, r"step is of type GradientTransf.*expected a step, GradientSt"),
        ({"step": GradientStep}, "step is the class GradientStep; expected a step"),
        ({"loss": "mse"}, r"loss is 'mse'; expected an output factor, SquaredError\(\) for"),
    ],
)
def test_things_of_another_kind_are_named(changes, message, monkeypatch):
    # As without the tests' own checks of types, which would come first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        start(**changes)


REAL = np.random.default_rng(8).normal(size=(53, 3)) * 3
SHARES = np.random.default_rng(9).dirichlet([1.0, 2.0, 0.5], 53)
ONE_OFF = np.where(np.arange(53)[:, None] == 40, 1.1 * SHARES, SHARES)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (REAL, r"takes real {} y for distributions .* row 0 has the entry -.*SquaredError\(\)"),
        (np.abs(REAL), r"row 0 has entries of sum \d.*function loss\(outputs, y\) of your own"),
        (ONE_OFF, r"row 40 has entries of sum 1\.1\."),
    ],
)
def test_real_targets_are_not_taken_for_distributions(targets, kind, message):
    rows, good = TRAIN[0], (TRAIN[0], SHARES)
    wrong = (kind(rows), kind(targets))
    for step in (GradientStep(optax.sgd(0.1)), ProjectionStep()):
        for loss in (None, CrossEntropy()):
            with pytest.raises(ValueError, match=message.format("train")):
                start(train=wrong, validation=None, loss=loss, step=step)
    with pytest.raises(ValueError, match=message.format("validation")):
        start(train=good, validation=wrong, loss=None)
    with pytest.raises(ValueError, match=message.format("data")):
        evaluate(network(), wrong)
    with pytest.raises(ValueError, match=message.format("train")):
        start(train=wrong, validation=None, loss=None, devices=jax.local_devices())


def test_distributions_and_real_targets_have_their_losses():
    shares = SHARES.astype(np.float32)  # sums are off by rounding
    printed = np.round(SHARES, 4)  # and here by 1.5e-4
    for targets in (SHARES, shares, printed):
        found = evaluate(network(), (TRAIN[0], targets)).loss
        outputs = np.asarray(jax.vmap(network())(jnp.asarray(TRAIN[0])))
        wanted = np.mean(np.log(np.exp(outputs).sum(1)) - (outputs * targets).sum(1))
        assert found == pytest.approx(wanted, rel=1e-12)  # the same sums
        assert found > 0
    assert evaluate(network(), (TRAIN[0], REAL), loss=SquaredError()).loss > 0
    # One output a row is no class of two.
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"class number 1 in row .*; a single logit needs a"):
        fit(model, GradientStep(optax.sgd(0.1)), (TRAIN[0], TRAIN[1] % 2), epochs=1)


def test_a_label_of_several_that_is_no_class_is_named():
    labels = np.array([[0, 1], [1, 1], [0, 3]])
    with pytest.raises(ValueError, match="train y holds 3 in row 2, but the model has 2 outputs"):
        fit(lambda x: x, Runaway(9), (np.ones((3, 2, 2)), labels), epochs=1)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["train", "validation"])
def test_numbers_that_are_not_finite_are_named(name, value):
    x, y = blobs(31, 2)
    x[17, 1] = value
    x[20, 0] = np.nan
    with pytest.raises(ValueError, match=f"{name} x holds {value} in row 17"):
        start(**{name: (x, y)})


def test_memory_of_an_update_grows_with_the_batch():
    step = GradientStep(optax.adam(1e-3))
    small, large = (
        update_memory(network(), step, TRAIN, cross_entropy, batch_size=n) for n in (100, 10_000)
    )
    # x, y and the hidden layer must be there at least: 2 and 5 doubles and a label a row.
    assert large - small > 9900 * (7 * 8 + 4)
    # Weights and the two moments of adam come in and go out.
    assert small > 2 * 3 * weights_of(network()).nbytes


def test_a_row_of_weight_k_is_k_rows():
    x, y = blobs(12, 0)
    weights = np.array([2, 1, 0, 1, 3, 1, 1, 0, 1, 2, 1, 1])
    times = np.repeat(np.arange(12), weights)
    options = {"loss": cross_entropy, "epochs": 4, "batch_size": None, "metric": None}
    step = GradientStep(optax.sgd(0.1))
    weighted = fit(network(), step, (x, y), weights=weights, **options)
    repeated = fit(network(), step, (x[times], y[times]), **options)
    np.testing.assert_allclose(
        weights_of(weighted.model), weights_of(repeated.model), rtol=ROUNDING
    )
    losses = [[entry["train_loss"] for entry in r.history] for r in (weighted, repeated)]
    np.testing.assert_allclose(*losses, rtol=ROUNDING)
    # Batches of unequal weight count by it.
    still = GradientStep(optax.sgd(0.0))
    found = fit(network(), still, (x, y), weights=weights, **{**options, "batch_size": 4})
    values = np.asarray(cross_entropy(jax.vmap(network())(jnp.asarray(x)), jnp.asarray(y)))
    mean = (weights * values).sum() / weights.sum()
    np.testing.assert_allclose(found.history[-1]["train_loss"], mean, rtol=ROUNDING)
    order = np.arange(12)[None]
    _, losses = scan_fit(network(), step, (x, y), order, loss=cross_entropy, weights=weights)
    np.testing.assert_allclose(losses, [mean], rtol=ROUNDING)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3), r"weights is float64 of shape \(3,\); expected one number for each of the 53"),
        (np.r_[np.ones(52), -1], r"weights holds -1.0 in row 52; expected numbers of at least 0"),
        (np.r_[np.nan, np.ones(52)], r"weights holds nan in row 0"),
        (np.zeros(53), r"weights is 0 in every row"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), GradientStep(optax.sgd(0.1)), TRAIN, weights=weights, epochs=1)
