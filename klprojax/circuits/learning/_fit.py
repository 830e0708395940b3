"""Learning a circuit: what is measured and kept by the loop of `fitting`."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..._store import check_writable
from ...fitting._batches import Batches
from ...fitting._loop import At, Loop, Phase, check_at_least
from ...fitting._means import Means
from ...fitting._step import AbstractStep, StepInfo
from ..tensor import TensorCircuit, TensorModel, TensorParameters
from ..tensor._evaluate import assume_wide, known_wide, wide
from ..tensor._kinds import require_tensor
from ..tensor._saved import describe
from ._adam import AdamStep
from ._em import EMStep, FullEMStep


class CircuitFit(NamedTuple):
    """What `fit` returns.

    Attributes:
        parameters: normalised, of the epoch with the best validation log-likelihood (of the last
            epoch without validation rows).
        epochs: epochs done.
        best_epoch: the epoch, from 1, that `parameters` are of; 0 if the start was best.
        history: per epoch a dict with ``epoch``, ``train_log_likelihood`` (mean over the rows as
            they were met, softened if the step softens), ``valid_log_likelihood`` (None without
            validation rows) and ``seconds`` since the run began.
    """

    parameters: TensorParameters
    epochs: int
    best_epoch: int
    history: list[dict[str, Any]]


def fit(
    circuit: TensorCircuit,
    train: Any,
    valid: Any = None,
    *,
    step: str | EMStep | AdamStep = "em",
    epochs: int = 100,
    full_epochs: int = 0,
    batch_size: int = 1024,
    seed: int = 0,
    patience: int | None = None,
    parameters: TensorParameters | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    progress: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> CircuitFit:
    """Maximise the mean log-likelihood of data rows; missing entries are summed out.

    Args:
        circuit: the structure.
        train: states ``[rows, variables]``; -1 or NaN where missing.
        valid: rows that choose the best epoch and stop the run; may be left out.
        step: ``"em"``, ``"adam"``, or an `EMStep` or `AdamStep` with settings.
        epochs: epochs in batches, at most.
        full_epochs: epochs of EM on all rows at once afterwards, at most.
        batch_size: rows per update; any size.
        seed: of the start and of the order of the rows.
        patience: stop each of the two phases after that many epochs without a better validation
            log-likelihood; never if None.
        parameters: where to start (default: ``circuit.init(seed, rows=train)``).
        checkpoint: a file written every `checkpoint_every` epochs, in one step. If it exists the
            run goes on from it and ends with the same numbers, bit for bit, as an uninterrupted
            one on the same machine. `full_epochs` and `patience` may be raised, but a phase that
            has ended is not taken up again; so may `epochs` if the step size does not fall over
            them. Ctrl-C leaves a note on the `KeyboardInterrupt` that says what is kept.
        checkpoint_every: epochs between checkpoints; the last epoch always writes one.
        progress: show a progress bar.
        on_epoch: called with each entry of the history.

    Returns:
        A `CircuitFit`.

    Raises:
        ValueError: data or settings that do not fit, or a checkpoint of another run.
        OSError: the checkpoint cannot be written there.

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits.learning import fit
        >>> from klprojax.circuits.tensor import hclt
        >>> rows = np.random.default_rng(0).integers(0, 2, size=(100, 3))
        >>> circuit = hclt(rows, units=2)
        >>> result = fit(circuit, rows, rows, epochs=3, batch_size=32)
        >>> result.epochs
        3
    """
    require_tensor(circuit, "fit")
    if isinstance(step, str):
        step = {"em": EMStep(), "adam": AdamStep()}.get(step, step)
    if not isinstance(step, EMStep | AdamStep):
        raise ValueError(f"step is {step!r}; expected 'em', 'adam', an EMStep or an AdamStep.")
    check_at_least(0, epochs=epochs, full_epochs=full_epochs)
    check_at_least(1, batch_size=batch_size, patience=patience, checkpoint_every=checkpoint_every)
    if full_epochs and not isinstance(step, EMStep):
        raise ValueError("full_epochs are epochs of EM; leave them out with step='adam'.")
    if checkpoint is not None:
        check_writable(checkpoint)
    states = circuit.states_from_data(train)
    if not len(states):
        raise ValueError("The training data has no rows.")
    held = None if valid is None else circuit.states_from_data(valid)
    if held is not None and not len(held):
        raise ValueError("The validation data has no rows; leave it out.")
    start = circuit.init(seed, rows=states) if parameters is None else parameters
    circuit.check(start)

    mean = None if held is None else _mean_of(circuit, held, batch_size)
    size = min(batch_size, len(states))
    batches = Batches(len(states), size, seed=seed)

    def measure(at: At, stats: dict[str, Any]) -> Any:
        value = None if mean is None else mean(step.parameters(at.model))
        worst = None if value is None else -value
        if not at.update:
            return None, worst, {}
        assert at.train_loss is not None
        entry = {
            "epoch": at.update // batches.count,
            "train_log_likelihood": -at.train_loss,
            "valid_log_likelihood": value,
            "seconds": at.elapsed,
        }
        return entry, worst, {"train": -at.train_loss, "valid": value}

    def refuse(at: At, found: dict[str, Any]) -> None:
        """Refuse lengths with which the epochs done would not have been the same."""
        name, before = os.fspath(checkpoint or ""), int(found.get("epochs", epochs))
        full = (at.update - at.began) // batches.count if at.phase else 0
        done = before + full if at.phase else at.update // batches.count
        sizes = [(step.size(k, before), step.size(k, epochs)) for k in range(done)]
        other = any(old != new for old, new in sizes)
        if epochs != before and (done > min(before, epochs) or other):
            raise ValueError(
                f"The checkpoint {name} is of a run with epochs={before}, of which {done} are done;"
                f" with epochs={epochs} they would have had other step sizes, which fall over all "
                f"epochs. Give epochs={before} or another file; a step whose first and final size "
                "are equal can go on for longer."
            )
        if full > full_epochs:
            raise ValueError(
                f"The checkpoint {name} has {full} epochs of full-batch EM done, more than the "
                f"{full_epochs} asked for; raise full_epochs, or give another file."
            )

    def in_batches(call: Any, model: TensorModel, state: Any, epoch: int) -> Any:
        now = step.at(epoch, epochs, len(states))
        known = bool(known_wide(circuit.structure, step.parameters(model), False))
        found = call(_Watched(now, known), model, (state[0], jnp.asarray(False)))
        if bool(found[1][1]) and not known:  # not what the sums were compiled for: once more
            found = call(_Watched(now, True), model, (state[0], jnp.asarray(False)))
        return found

    phases = [Phase(_Watched(step), batches, epochs * batches.count, in_batches)]
    if isinstance(step, EMStep):
        ordered = Batches(len(states), size, shuffle=False)
        full = FullEMStep(step)

        def at_once(call: Any, model: TensorModel, state: Any, epoch: int) -> Any:
            known = bool(known_wide(circuit.structure, model.parameters, False))
            model, state, *rest = call(replace(full, known=known), model, state)
            if int(state[1]) == batches.count:
                model, state = full.finish(model, state)
            return model, state, *rest

        phases.append(Phase(full, ordered, full_epochs * batches.count, at_once))
    at = Loop(
        phases=tuple(phases),
        data=(jnp.asarray(states), None),
        loss=None,
        measure=measure,
        held=held,
        every=batches.count,
        patience=patience,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        identity=lambda: {"circuit": describe(circuit), "epochs": epochs},
        refuse=refuse,
        kept="epoch {epoch}",
        fault="The log-likelihood became {minus} in epoch {epoch}; lower the step size.",
        on_entry=on_epoch,
        progress=progress,
        good=_is_possible,
        ahead=False,
    ).run(TensorModel(circuit, start))
    best = step.parameters(at.best)
    done = at.update // batches.count
    return CircuitFit(best, done, at.best_update // batches.count, at.history)


def _is_possible(loss: Any) -> Any:
    # Rows may be impossible: their loss is infinite.
    return loss > -float("inf")


class _Watched(AbstractStep):
    """A step compiled for weights that are `known` to be wide or not; watches if they become so.

    Its state says, besides, whether weights were wide before some update.
    """

    step: EMStep | AdamStep
    known: bool = False

    def init(self, model: TensorModel) -> Any:
        return self.step.init(model), jnp.asarray(False)

    def update(self, model, state, x, y, weights, loss) -> tuple[TensorModel, Any, StepInfo]:
        parameters = self.step.parameters(model)
        grown = state[1] | wide(model.circuit.structure, parameters, False)
        with assume_wide(self.known):
            model, inner, info = self.step.update(model, state[0], x, y, weights, loss)
        return model, (inner, grown), info


def _mean_of(
    circuit: TensorCircuit, states: np.ndarray, batch_size: int
) -> Callable[[TensorParameters], float]:
    """Mean log-value of rows, as a function of the parameters."""
    means = Means((jnp.asarray(states),), len(states), batch_size)

    def mean(parameters: TensorParameters) -> float:
        known = bool(known_wide(circuit.structure, parameters, False))
        return means(eqx.Partial(_values, known), TensorModel(circuit, parameters))[0]

    return mean


def _values(known: bool, model: TensorModel, rows: Array) -> tuple[Array]:
    with assume_wide(known):
        return (model.circuit.log_values(model.parameters, rows),)
