"""One loop, one checkpoint and one contract of steps for networks and circuits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax import ModelFileError, circuits, training
from klprojax.fitting import AbstractStep
from klprojax.fitting._batches import Batches
from klprojax.fitting._loop import Loop
from klprojax.graphs._files._archive import write_arrays

ROWS = np.random.default_rng(0).integers(0, 2, (40, 2))
CIRCUIT = circuits.factorised_mixture((2, 2), 2)
MODEL = eqx.nn.Linear(2, 2, key=jax.random.key(0))


def fit_circuit(**settings):
    return circuits.fit(CIRCUIT, ROWS, **{"epochs": 2, "batch_size": 16, **settings})


def fit_network(**settings):
    step, data = training.GradientStep(optax.sgd(0.1)), (ROWS.astype(float), ROWS[:, 0])
    return training.fit(MODEL, **{"step": step, "train": data, "epochs": 2, **settings})


def test_steps_have_one_contract():
    steps = (
        training.GradientStep, training.ProjectionStep, training.ProjectionDirection,
        circuits.EMStep, circuits.AdamStep,
    )  # fmt: skip
    assert all(issubclass(step, AbstractStep) for step in steps)
    assert training.AbstractStep is AbstractStep
    with pytest.raises(TypeError, match="EMStep needs a TensorCircuit, but got a Linear"):
        fit_network(step=circuits.EMStep())


@pytest.mark.parametrize("fit", [fit_circuit, fit_network])
def test_networks_and_circuits_are_fitted_by_one_loop(fit, monkeypatch):
    def run(self, model):
        raise InterruptedError("the loop")

    monkeypatch.setattr(Loop, "run", run)
    with pytest.raises(InterruptedError, match="the loop"):
        fit()


@pytest.mark.parametrize(
    ("fit", "form"),
    [(fit_circuit, "klprojax-circuit-run"), (fit_network, "klprojax-training-run")],
)
def test_a_checkpoint_of_an_earlier_version_says_so(tmp_path, fit, form):
    path = tmp_path / "run.npz"
    write_arrays(path, form, {}, {})
    with pytest.raises(ModelFileError, match=f"got '{form}' .*of an earlier version.*another file"):
        fit(checkpoint=path)


def test_a_checkpoint_of_a_network_is_none_of_a_circuit(tmp_path):
    path = tmp_path / "run.npz"
    fit_network(epochs=0, checkpoint=path)
    with pytest.raises(ValueError, match="of another run; it differs in circuit, "):
        fit_circuit(checkpoint=path)
    # No update is done yet: a longer run begins here.
    assert fit_network(epochs=1, checkpoint=path).updates == 1


class Traced(circuits.EMStep):
    """Notes each time that it is traced."""

    traces: list = eqx.field(static=True, default_factory=list)

    def update(self, *arguments):
        self.traces.append(1)
        return super().update(*arguments)

    __hash__ = object.__hash__


def test_a_circuit_is_compiled_once():
    step, seen = Traced(), []
    fit_circuit(step=step, epochs=4, on_epoch=lambda entry: seen.append(len(step.traces)))
    assert len(set(seen)) == 1
    # Shapes, then the loop, which JAX may trace twice: not a second compilation's worth.
    assert seen[0] <= 3


def test_impossible_rows_end_no_run():
    start = CIRCUIT.init(0)
    never = jnp.asarray([0.0, -jnp.inf])
    inputs = start.log_inputs.at[0].set(jnp.broadcast_to(never, start.log_inputs[0].shape))
    start = eqx.tree_at(lambda p: p.log_inputs, start, inputs)
    step = circuits.EMStep(pseudocount=0.0)
    result = fit_circuit(step=step, parameters=start)
    assert [entry["train_log_likelihood"] for entry in result.history] == [-np.inf, -np.inf]
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(result.parameters))


@pytest.mark.parametrize(("first", "count"), [(0, 3), (2, 5), (5, 4), (3, 3)])
def test_updates_cross_epochs(first, count):
    batches = Batches(7, 3, multiple=2, seed=1)
    wanted = np.concatenate([batches.epoch(number) for number in range(4)])
    np.testing.assert_array_equal(batches.updates(first, count), wanted[first : first + count])
