"""Checkpoints: a run that is killed ends with the numbers of one that is not."""

import os
import signal
import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax import ModelFileError
from klprojax.fitting._checkpoint import _FORMAT as FORMAT
from klprojax.fitting._checkpoint import describe, digest
from klprojax.graphs._files._archive import read_arrays, write_arrays
from klprojax.training import AbstractStep, CrossEntropy, GradientStep, ProjectionStep, fit

from ._runs import blobs, cross_entropy, network, weights_of

SCRIPT = """
import sys, time
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
from klprojax.training import AbstractStep, GradientStep, fit

class Noisy(AbstractStep):
    "Noise on the weights before each update, from a key in the state."
    inner: GradientStep

    def init(self, model):
        return jax.random.key(7), self.inner.init(model)

    def update(self, model, state, x, y, weights, loss, key):
        own, now = jax.random.split(state[0])
        noise = lambda w: w + 0.01 * jax.random.normal(now, w.shape, w.dtype)
        net = jax.tree.map(lambda w: noise(w) if eqx.is_inexact_array(w) else w, model[0])
        model = net, model[1]
        model, inner, info = self.inner.update(model, state[1], x, y, weights, loss, key)
        return model, (own, inner), info

class Net(eqx.Module):
    "Batch norm and dropout: a state, and a key per row."
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        self.first, self.last = eqx.nn.Linear(4, 8, key=key), eqx.nn.Linear(8, 3, key=key)
        self.norm, self.drop = eqx.nn.BatchNorm(8, "batch", mode="batch"), eqx.nn.Dropout(0.3)

    def __call__(self, x, state, key):
        h, state = self.norm(self.first(x), state)
        return self.last(self.drop(jax.nn.relu(h), key=key)), state

def cross_entropy(outputs, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1)[:, 0]

delay, checkpoint, out = float(sys.argv[1]), sys.argv[2], sys.argv[3]
rng = np.random.default_rng(0)
x, y = rng.normal(size=(53, 4)).astype(np.float32), rng.integers(0, 3, 53)
model = eqx.nn.make_with_state(Net)(jax.random.key(0))

def report(entry):
    print(entry["update"], flush=True)
    time.sleep(delay)

def run(checkpoint, report):
    # 8 batches an epoch; entries fall between checkpoints, and windows reach across them.
    return fit(model, Noisy(GradientStep(optax.adam(0.01))), (x, y), (x[:9], y[:9]),
               loss=cross_entropy, epochs=9, batch_size=7, seed=3, evaluate_every=3,
               windows=(1, 5, 20), checkpoint=checkpoint, checkpoint_every=2, on_evaluate=report)

def numbers(result):
    trees = result.model, result.last_model, result.state[1]
    arrays = jax.tree.leaves(eqx.filter(trees, eqx.is_array))
    arrays.append(jax.random.key_data(result.state[0]))
    entries = [{k: v for k, v in e.items() if k != "seconds"} for e in result.history]
    return arrays, entries, result.best_update

resumed = numbers(run(checkpoint, report))
whole = numbers(run(None, None))
np.savez(out, same=[np.array_equal(a, b) for a, b in zip(resumed[0], whole[0], strict=True)],
         history=resumed[1] == whole[1], best=resumed[2] == whole[2], count=len(resumed[0]))
"""


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    out, checkpoint = tmp_path / "out.npz", tmp_path / "run.npz"

    def start(delay):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(delay), str(checkpoint), str(out)],
            stdout=subprocess.PIPE,
            text=True,
        )

    killed = start(0.1)
    try:
        for line in killed.stdout:
            if int(line) >= 42:  # after the checkpoint of update 32, before that of 48
                break
    finally:
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    assert checkpoint.exists()
    assert not out.exists()

    resumed = start(0)
    updates = [int(line) for line in resumed.stdout]
    assert resumed.wait() == 0
    resumed.stdout.close()
    assert updates[0] == 33  # not from the start
    assert updates[-1] == 72
    with np.load(out) as result:
        assert result["count"] > 20
        assert result["same"].all()
        assert result["history"]
        assert result["best"]
    assert list(tmp_path.glob("*.tmp")) == []


TRAIN, VALIDATION = blobs(31, 0), blobs(11, 1)


def run(checkpoint, **changes):
    settings = {
        "model": network(),
        "step": GradientStep(optax.adam(0.01)),
        "train": TRAIN,
        "validation": VALIDATION,
        "loss": cross_entropy,
        "epochs": 2,
        "batch_size": 8,
        "checkpoint": checkpoint,
        **changes,
    }
    return fit(**settings)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.npz"
    run(path)
    return path


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"model": network(1)}, "start"),
        ({"model": network(dtype=jnp.float32)}, "start"),
        ({"train": blobs(31, 4)}, "train"),
        ({"validation": blobs(11, 5)}, "validation"),
        ({"validation": None}, "validation"),
        ({"batch_size": 7}, "batch_size"),
        ({"batch_size": None}, "batch_size, shuffle"),
        ({"seed": 1}, "seed"),
        ({"evaluate_every": 3}, "evaluate_every"),
        ({"select": "metric"}, "select"),
        ({"metric": None}, "metric"),
        ({"windows": (1,)}, "windows"),
        ({"step": GradientStep(optax.adam(0.02))}, "step"),
        ({"step": GradientStep(optax.adam(0.01, b2=0.99))}, "step"),
        ({"step": GradientStep(optax.sgd(0.01))}, "step|first update"),
        ({"loss": lambda outputs, y: 2 * cross_entropy(outputs, y)}, "the first update"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(checkpoint, changes, place):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=rf"of another run; it differs in .*({place})"):
        run(checkpoint, **changes)
    assert checkpoint.read_bytes() == before


def test_a_finished_run_is_not_run_again(checkpoint):
    entries = []
    again = run(checkpoint, on_evaluate=entries.append)
    assert entries == []
    np.testing.assert_array_equal(weights_of(again.model), weights_of(run(None).model))


def test_more_epochs_go_on(checkpoint, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(checkpoint.read_bytes())
    longer = run(path, epochs=5)
    whole = run(None, epochs=5)
    np.testing.assert_array_equal(weights_of(longer.last_model), weights_of(whole.last_model))
    assert longer.updates == 20


def test_fewer_epochs_are_an_error(checkpoint):
    with pytest.raises(ValueError, match=r"is of update 8, beyond the 4 asked for"):
        run(checkpoint, epochs=1)


def test_patience_has_run_out_after_a_restart_too(tmp_path):
    path = tmp_path / "run.npz"
    settings = {"patience": 2, "epochs": 60, "step": GradientStep(optax.adam(0.1))}
    first, again = run(path, **settings), run(path, **settings)
    assert first.stopped_early
    assert again.stopped_early
    assert again.updates == first.updates < 240
    assert again.history == first.history


def test_more_patience_goes_on(tmp_path):
    path = tmp_path / "run.npz"
    settings = {"epochs": 12, "step": GradientStep(optax.adam(0.1))}
    stopped = run(path, patience=1, **settings)
    assert stopped.stopped_early
    longer, whole = run(path, patience=3, **settings), run(None, patience=3, **settings)
    assert stopped.updates < longer.updates == whole.updates
    np.testing.assert_array_equal(weights_of(longer.model), weights_of(whole.model))
    assert [e["validation_loss"] for e in longer.history] == [
        e["validation_loss"] for e in whole.history
    ]


def test_another_schedule_is_another_run(tmp_path):
    # The first update, at the schedule's start, is the same.
    path = tmp_path / "run.npz"
    for make in (
        lambda updates: GradientStep(optax.sgd(optax.cosine_decay_schedule(0.1, updates))),
        lambda updates: ProjectionStep.decaying(updates),
    ):
        settings = {"epochs": 1, "loss": CrossEntropy()}
        run(path, step=make(8), **settings)
        with pytest.raises(ValueError, match="of another run; it differs in step"):
            run(path, step=make(16), **settings)
        path.unlink()


def test_ctrl_c_says_what_is_kept(tmp_path):
    path = tmp_path / "run.npz"

    def stop(update):
        def on_evaluate(entry):
            if entry["update"] == update:
                raise KeyboardInterrupt

        return {"on_evaluate": on_evaluate, "epochs": 4, "checkpoint_every": 2, "metric": None}

    def notes(checkpoint, update):
        with pytest.raises(KeyboardInterrupt) as caught:
            run(checkpoint, **stop(update))
        return caught.value.__notes__

    assert notes(None, 8) == [
        "Nothing is kept of the run: it has no checkpoint. Give one, and the same call or command "
        "goes on from it."
    ]
    assert notes(path, 4) == [f"Nothing is kept of the run: {path} had not been written yet."]
    # Checkpoints are of updates 8 and 16, evaluations of every fourth.
    kept = f"Kept in {path}: update 8 of 16. The same call or command goes on from there."
    assert notes(path, 12) == [kept]
    assert notes(path, 12) == [kept]
    resumed = []
    again = run(path, **{**stop(99), "on_evaluate": resumed.append})
    assert [entry["update"] for entry in resumed] == [12, 16]
    np.testing.assert_array_equal(
        weights_of(again.model), weights_of(run(None, epochs=4, metric=None).model)
    )


@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.99])
def test_a_damaged_checkpoint_is_an_error(checkpoint, tmp_path, cut):
    content = checkpoint.read_bytes()
    path = tmp_path / "run.npz"
    path.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    with pytest.raises(ModelFileError, match=r"run.npz: expected"):
        run(path)


def without_state(header, arrays):
    del arrays[next(name for name in arrays if name.startswith("state"))]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, a: h.update(run=[1]), ValueError, "it differs in .*train"),
        (lambda h, a: h["run"].update(first_update="x"), ValueError, "it differs in the first upd"),
        (lambda h, a: h.update(at=3), ModelFileError, "expected the numbers of a run"),
        (without_state, ModelFileError, "expected an array state_0 of this run"),
    ],
)
def test_a_checkpoint_that_another_program_wrote_is_an_error(
    checkpoint, tmp_path, change, error, message
):
    header, arrays = read_arrays(checkpoint, FORMAT, 10**6)
    change(header, arrays)
    path = tmp_path / "run.npz"
    write_arrays(path, FORMAT, {key: header[key] for key in ("run", "at")}, arrays)
    with pytest.raises(error, match=message):
        run(path)


class Odd(AbstractStep):
    """A state of types that numpy does not store: bfloat16 and a random key."""

    inner: GradientStep

    def init(self, model):
        return {
            "inner": self.inner.init(model),
            "key": jax.random.key(3, impl="rbg"),
            "half": jnp.asarray([[1.5, -2.0, 3e38]], jnp.bfloat16),
            "on": jnp.asarray(True),
        }

    def update(self, model, state, x, y, weights, loss):
        model, inner, info = self.inner.update(model, state["inner"], x, y, weights, loss)
        key, _ = jax.random.split(state["key"])
        half = jnp.flip(state["half"], 1)
        return model, {"inner": inner, "key": key, "half": half, "on": ~state["on"]}, info


def test_every_type_of_array_comes_back(tmp_path):
    path = tmp_path / "run.npz"
    step = Odd(GradientStep(optax.sgd(0.1)))
    run(path, step=step, epochs=1, max_updates=3)
    got, wanted = run(path, step=step).state, run(None, step=step).state
    assert got["half"].dtype == jnp.bfloat16
    assert jax.random.key_impl(got["key"]) == jax.random.key_impl(wanted["key"])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = (jax.random.key_data(k) if jnp.issubdtype(k.dtype, jax.dtypes.prng_key) else k
                for k in (a, b))  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_settings_are_described_without_code():
    class Settings(eqx.Module):
        rate: float
        sizes: tuple
        table: jax.Array
        function: object

    def settings(rate=0.1, table=1.0, function=jnp.sin):
        return describe(Settings(rate, (1, "a", None), jnp.asarray(table), function))

    assert settings() == settings(function=jnp.cos)
    assert settings() != settings(rate=0.2)
    assert settings() != settings(table=1.5)

    # What a function holds is compared, what it is called with is not.
    def recursive(rate):
        return lambda count: rate if count else recursive(rate)

    assert describe(recursive(0.1)) == describe(recursive(0.1)) != describe(recursive(0.2))
    assert describe(partial(recursive, 0.1)) != describe(partial(recursive, 0.2))
    assert describe(lambda count, rate=0.1: rate) != describe(lambda count, rate=0.2: rate)
    assert describe({"a": [True, object()]}) == {"a": ["list", [True, "object"]]}


def test_a_hash_sees_values_types_shapes_and_places():
    trees = [
        {"a": np.zeros(4)},
        {"a": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2))},
        {"b": np.zeros(4)},
        {"a": np.r_[np.zeros(3), 1.0]},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest({"a": jnp.zeros(4)}) == digest(trees[0])
