"""The training loop: what it learns, when it stops, that it goes on where it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.circuits.learning import AdamStep, EMStep, em_step, fit
from klprojax.circuits.learning._fit import _mean_of
from klprojax.circuits.tensor import factorised_mixture, hclt, hidden_markov


def data(seed, rows=90):
    """Two clusters of four binary variables."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(0, 2, size=(rows, 1))
    return np.where(rng.random((rows, 4)) < 0.9, hidden, 1 - hidden)


TRAIN, VALID = data(0), data(1, 50)
CIRCUIT = hclt(TRAIN, 3)


def equal(a, b):
    """Bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("step", ["em", "adam"])
def test_learns(step):
    result = fit(CIRCUIT, TRAIN, VALID, step=step, epochs=30, batch_size=32, seed=1)
    start = _mean_of(CIRCUIT, VALID, 32)(CIRCUIT.init(1, rows=TRAIN))
    found = _mean_of(CIRCUIT, VALID, 32)(result.parameters)
    # Two clear clusters: the factorised start is worse by much more than this.
    assert found > start + 0.3
    best = result.history[result.best_epoch - 1]
    assert best["valid_log_likelihood"] == found
    assert found == max(h["valid_log_likelihood"] for h in result.history)
    assert abs(float(CIRCUIT.log_partition(result.parameters))) < 1e-12
    again = fit(CIRCUIT, TRAIN, VALID, step=step, epochs=30, batch_size=32, seed=1)
    assert equal(again.parameters, result.parameters)
    other = fit(CIRCUIT, TRAIN, VALID, step=step, epochs=2, batch_size=32, seed=2)
    assert not equal(other.parameters, result.parameters)


def test_full_epochs_are_monotone_and_start_from_the_best():
    step = EMStep(pseudocount=0.0, softening=0.0)
    result = fit(CIRCUIT, TRAIN, step=step, epochs=0, full_epochs=12, batch_size=40)
    train = [h["train_log_likelihood"] for h in result.history]
    assert len(train) == 12
    assert (np.diff(train) > -1e-13).all()  # rounding of a mean of numbers of size 3
    # Batches only cut the sums: 90 rows in batches of 40 or 90 give the same step.
    whole = fit(CIRCUIT, TRAIN, step=step, epochs=0, full_epochs=12, batch_size=90)
    for a, b in zip(
        jax.tree.leaves(whole.parameters), jax.tree.leaves(result.parameters), strict=True
    ):
        np.testing.assert_allclose(np.exp(a), np.exp(b), rtol=0, atol=1e-12)
    mixed = fit(CIRCUIT, TRAIN, VALID, step=step, epochs=4, full_epochs=3, batch_size=16)
    assert mixed.epochs == 7
    batches = fit(CIRCUIT, TRAIN, VALID, step=step, epochs=4, batch_size=16)
    best = batches.history[batches.best_epoch - 1]["valid_log_likelihood"]
    first_full = mixed.history[4]["train_log_likelihood"]
    np.testing.assert_allclose(
        first_full, _mean_of(CIRCUIT, TRAIN, 90)(batches.parameters), rtol=0, atol=1e-12
    )
    assert max(h["valid_log_likelihood"] for h in mixed.history) >= best


@pytest.mark.parametrize(
    ("step", "full", "stop"), [(EMStep(), 3, 2), (EMStep(), 3, 5), (AdamStep(), 0, 3)]
)
def test_resumes_bit_for_bit(tmp_path, step, full, stop):
    settings = {"step": step, "epochs": 4, "full_epochs": full, "batch_size": 32, "seed": 3}
    whole = fit(CIRCUIT, TRAIN, VALID, **settings)
    file = tmp_path / "run.npz"

    def interrupt(entry):
        if entry["epoch"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(CIRCUIT, TRAIN, VALID, checkpoint=file, on_epoch=interrupt, **settings)
    assert caught.value.__notes__ == [
        f"Kept in {file}: epoch {stop}. The same call or command goes on from there."
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    seen = []
    result = fit(CIRCUIT, TRAIN, VALID, checkpoint=file, on_epoch=seen.append, **settings)
    assert [entry["epoch"] for entry in seen] == list(range(stop + 1, 5 + full))
    assert equal(result.parameters, whole.parameters)
    strip = lambda history: [{**entry, "seconds": 0} for entry in history]  # noqa: E731
    assert strip(result.history) == strip(whole.history)
    assert result.best_epoch == whole.best_epoch
    # A finished run is only read.
    done = fit(CIRCUIT, TRAIN, VALID, checkpoint=file, on_epoch=pytest.fail, **settings)
    assert equal(done.parameters, whole.parameters)
    with pytest.raises(ValueError, match="differs in seed"):
        fit(CIRCUIT, TRAIN, VALID, checkpoint=file, **{**settings, "seed": 4})
    with pytest.raises(ValueError, match="differs in start, train"):
        fit(CIRCUIT, TRAIN[:-1], VALID, checkpoint=file, **settings)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="zip archive"):
        fit(CIRCUIT, TRAIN, VALID, checkpoint=file, **settings)


def test_patience_stops_each_phase():
    # A start fitted to validation rows that contradict the training data: every step is worse.
    against = np.tile([[0, 1, 0, 1]], (10, 1))
    start, _ = em_step(CIRCUIT, CIRCUIT.init(0), jnp.asarray(against), pseudocount=0.1)
    result = fit(
        CIRCUIT, TRAIN, against, epochs=50, full_epochs=50, batch_size=90, patience=3,
        parameters=start,
    )  # fmt: skip
    assert result.best_epoch == 0
    assert equal(result.parameters, start)
    assert result.epochs == 6
    without = fit(CIRCUIT, TRAIN, against, epochs=5, batch_size=90, parameters=start)
    assert without.epochs == 5


def test_a_run_that_ended_can_be_given_more(tmp_path):
    file = tmp_path / "run.npz"

    def same(changes, longer):
        """The run that goes on ends as the one that was longer from the start."""
        file.unlink(missing_ok=True)
        settings = {"batch_size": 90, "step": EMStep(0.5, 0.5), "epochs": 3, "patience": 1}
        first = fit(CIRCUIT, TRAIN, against, checkpoint=file, **{**settings, **changes})
        more = {**settings, **changes, **longer}
        result = fit(CIRCUIT, TRAIN, against, checkpoint=file, **more)
        whole = fit(CIRCUIT, TRAIN, against, **more)
        assert first.epochs < result.epochs == whole.epochs
        assert equal(result.parameters, whole.parameters)
        assert result.best_epoch == whole.best_epoch

    against = np.tile([[0, 1, 0, 1]], (10, 1))
    same({}, {"patience": 2})
    same({}, {"patience": None})
    same({"patience": None}, {"full_epochs": 2})
    same({"patience": None}, {"epochs": 5})
    # With a step size that falls over the epochs, those done would have been others.
    run = {"batch_size": 90, "epochs": 3, "checkpoint": tmp_path / "falling.npz"}
    fit(CIRCUIT, TRAIN, VALID, **run)
    with pytest.raises(ValueError, match=r"epochs=3, of which 3 are done.*other step sizes"):
        fit(CIRCUIT, TRAIN, VALID, **{**run, "epochs": 5})
    fit(CIRCUIT, TRAIN, VALID, full_epochs=2, **run)
    with pytest.raises(ValueError, match="2 epochs of full-batch EM done, more than the 1 asked"):
        fit(CIRCUIT, TRAIN, VALID, full_epochs=1, **run)
    with pytest.raises(ValueError, match="epochs=3, of which 5 are done"):
        fit(CIRCUIT, TRAIN, VALID, **{**run, "epochs": 6})


def test_missing_entries_any_batch_size_float32_and_progress(capsys):
    rows = TRAIN.astype(float)
    rows[np.random.default_rng(0).random(rows.shape) < 0.3] = np.nan
    circuit = hidden_markov(4, 2)
    start = circuit.init(0, dtype=jnp.float32)
    result = fit(
        circuit, rows, epochs=3, batch_size=1000, parameters=start, progress=True,
        checkpoint_every=2,
    )  # fmt: skip
    assert result.parameters.log_root.dtype == jnp.float32
    assert result.best_epoch == 3
    assert result.history[0]["valid_log_likelihood"] is None
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"step": "sgd"}, "step is 'sgd'"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"step": "adam", "full_epochs": 1}, "epochs of EM"),
        ({"train": TRAIN[:0]}, "training data has no rows"),
        ({"valid": TRAIN[:0]}, "validation data has no rows"),
        ({"train": TRAIN[:, :2]}, "data has shape"),
        ({"parameters": factorised_mixture((2,), 2).init(0)}, "log_weights has shape"),
    ],
)
def test_faults(arguments, match):
    with pytest.raises(ValueError, match=match):
        fit(CIRCUIT, **{"train": TRAIN, **arguments})


def test_a_run_that_loses_its_numbers_says_so():
    start = jax.tree.map(lambda x: x * jnp.nan, CIRCUIT.init(0))
    with pytest.raises(ValueError, match="became nan"):
        fit(CIRCUIT, TRAIN, epochs=1, parameters=start)
