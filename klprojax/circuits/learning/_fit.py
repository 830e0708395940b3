"""The training loop: epochs, early stopping, checkpoints."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..._interrupted import says_what_is_kept
from ..._store import check_writable
from ..tensor import TensorCircuit, TensorParameters
from ..tensor._evaluate import assume_wide, known_wide, wide
from ..tensor._kinds import require_tensor
from ._adam import AdamStep
from ._checkpoint import Progress, Run, load_checkpoint, save_checkpoint
from ._em import EMStep, maximize


class FitResult(NamedTuple):
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
) -> FitResult:
    """Maximise the mean log-likelihood of data rows; missing entries are summed out.

    Args:
        circuit: the structure.
        train: states ``[rows, variables]``; -1 or NaN where missing.
        valid: rows that choose the best epoch and stop the run; may be left out.
        step: ``"em"``, ``"adam"``, or an `EMStep` or `AdamStep` with settings.
        epochs: epochs in batches, at most.
        full_epochs: epochs of EM on all rows at once afterwards, at most.
        batch_size: rows an update; any size.
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
        A `FitResult`.

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
        if step not in ("em", "adam"):
            raise ValueError(f"step is {step!r}; expected 'em', 'adam', an EMStep or an AdamStep.")
        step = EMStep() if step == "em" else AdamStep()
    for name, value, least in (
        ("epochs", epochs, 0),
        ("full_epochs", full_epochs, 0),
        ("batch_size", batch_size, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("patience", 1 if patience is None else patience, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
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

    run = Run(circuit, step, epochs, full_epochs, batch_size, seed, patience, start, states, held)
    at = None
    if checkpoint is not None and os.path.exists(checkpoint):
        at = load_checkpoint(checkpoint, run)
        kept = [len(at.history)]
    if at is None:
        first = -np.inf if held is None else _mean(circuit, start, held, batch_size)
        at = Progress(step.init(start), start, first, 0, 0, 0, [])
        kept = []
    loop = _Loop(run, checkpoint, checkpoint_every, on_epoch, kept)
    with says_what_is_kept(checkpoint, lambda: f"epoch {kept[-1]}" if kept else None):
        if progress:
            with _bar(epochs + full_epochs) as (advance, _):
                at = loop.go(at, advance)
        else:
            at = loop.go(at, lambda entry: None)
    return FitResult(at.best, len(at.history), at.best_epoch, at.history)


class _Loop(NamedTuple):
    run: Run
    checkpoint: str | os.PathLike[str] | None
    every: int
    on_epoch: Callable[[dict[str, Any]], None] | None
    kept: list[int]  # epochs that the checkpoint has been written of

    def go(self, at: Progress, advance: Callable[[dict[str, Any]], None]) -> Progress:
        run = self.run
        before = at.history[-1]["seconds"] if at.history else 0.0
        began = time.perf_counter()
        for entry in at.history:
            advance(entry)
        data = jnp.asarray(run.train)
        size = min(run.batch_size, len(run.train))
        count = -(-len(run.train) // size)
        padding = count * size - len(run.train)
        dtype = run.start.log_root.dtype
        weights = jnp.asarray(np.r_[np.ones(len(run.train)), np.zeros(padding)], dtype)
        weights = weights.reshape(count, size)
        total = jnp.asarray(len(run.train), dtype)
        while at.epoch < run.epochs + run.full_epochs:
            batches = at.epoch < run.epochs
            if run.patience is not None and run.valid is not None and at.waited >= run.patience:
                if not batches or not run.full_epochs:
                    break
                at = at._replace(epoch=run.epochs, waited=0)  # on to the second phase
                batches = False
            if at.epoch == run.epochs:
                if run.valid is not None:  # full-batch EM polishes the best so far
                    at = at._replace(state=run.step.init(at.best))
                at = at._replace(waited=0)
            if batches:
                order = np.random.default_rng([run.seed, at.epoch]).permutation(len(run.train))
            else:
                order = np.arange(len(run.train))
            order = np.r_[order, np.zeros(padding, order.dtype)].reshape(count, size)
            order = jnp.asarray(order.astype(np.int32))
            if batches:
                gamma = jnp.asarray(run.step.size(at.epoch, run.epochs), dtype)
                known = known_wide(run.circuit.structure, run.step.parameters(at.state), False)
                batch = (run.circuit, at.state, data, order, weights, total, gamma)
                state, values, grown = _epoch(run.step, known, *batch)
                if bool(grown) and not known:  # not what the sums were compiled for: once more
                    state, values, _ = _epoch(run.step, True, *batch)
            else:
                assert isinstance(run.step, EMStep)
                own = known_wide(run.circuit.structure, at.state.parameters, False)
                fitted, values = _full(
                    run.step, own, run.circuit, at.state.parameters, data, order, weights
                )
                state = run.step.init(fitted)
            mean = np.asarray(values, np.float64).reshape(-1)[: len(run.train)].mean()
            current = run.step.parameters(state)
            better = at.best_value
            at = at._replace(state=state, epoch=at.epoch + 1)
            if run.valid is not None:
                better = _mean(run.circuit, current, run.valid, run.batch_size)
            if not np.isfinite(mean) and not np.isneginf(mean):
                raise ValueError(
                    f"The log-likelihood became {mean} in epoch {at.epoch}; lower the step size."
                )
            entry = {
                "epoch": len(at.history) + 1,
                "train_log_likelihood": float(mean),
                "valid_log_likelihood": None if run.valid is None else float(better),
                "seconds": before + time.perf_counter() - began,
            }
            history = [*at.history, entry]
            if run.valid is None or better > at.best_value:
                at = at._replace(
                    best=current, best_value=float(better), best_epoch=len(history), waited=0
                )
            else:
                at = at._replace(waited=at.waited + 1)
            at = at._replace(history=history)
            last = at.epoch == run.epochs + run.full_epochs
            if self.checkpoint is not None and (last or len(history) % self.every == 0):
                self.save(at)
            advance(entry)
            if self.on_epoch is not None:
                self.on_epoch(entry)
        if self.checkpoint is not None:
            self.save(at)
        return at

    def save(self, at: Progress) -> None:
        assert self.checkpoint is not None
        save_checkpoint(self.checkpoint, self.run, at)
        self.kept.append(len(at.history))


@partial(jax.jit, static_argnums=(0, 1))
def _epoch(step, known, circuit, state, data, order, weights, total, size):
    """A pass over all batches, and whether weights became or were wide on the way."""

    def body(state, x):
        rows, row_weights = x
        grown = wide(circuit.structure, step.parameters(state), False)
        with assume_wide(known):
            state, values = step.update(circuit, state, data[rows], row_weights, total, size)
        return state, (values, grown)

    state, (values, grown) = jax.lax.scan(body, state, (order, weights))
    return state, values, jnp.any(grown)


@partial(jax.jit, static_argnums=(0, 1))
def _full(step, known, circuit, parameters, data, order, weights):
    def body(total, x):
        rows, row_weights = x
        with assume_wide(known):
            values, flows = circuit.flows(
                parameters, data[rows], row_weights, softening=step.softening
            )
        return jax.tree.map(jnp.add, total, flows), values

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    flows, values = jax.lax.scan(body, zeros, (order, weights))
    return maximize(circuit, flows, parameters, step.pseudocount), values


@partial(jax.jit, static_argnums=0)
def _values(known, circuit: TensorCircuit, parameters: TensorParameters, batches: Array) -> Array:
    def values(rows):
        with assume_wide(known):
            return circuit.log_values(parameters, rows)

    return jax.lax.map(values, batches)


def _mean(
    circuit: TensorCircuit, parameters: TensorParameters, states: np.ndarray, batch_size: int
) -> float:
    """Mean log-value of rows, summed in double precision."""
    size = min(batch_size, len(states))
    count = -(-len(states) // size)
    filled = np.pad(states, ((0, count * size - len(states)), (0, 0)))
    known = known_wide(circuit.structure, parameters, False)
    values = _values(known, circuit, parameters, jnp.asarray(filled.reshape(count, size, -1)))
    return float(np.asarray(values, np.float64).reshape(-1)[: len(states)].mean())


class _bar:
    """A progress bar over epochs, with the latest log-likelihoods."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def __enter__(self):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.shown = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.shown.start()
        task = self.shown.add_task("compiling", total=self.epochs)

        def advance(entry: dict[str, Any]) -> None:
            text = f"train {entry['train_log_likelihood']:.4f}"
            if entry["valid_log_likelihood"] is not None:
                text += f"  valid {entry['valid_log_likelihood']:.4f}"
            self.shown.update(task, description=text, advance=1)

        return advance, self.shown

    def __exit__(self, *_: object) -> None:
        self.shown.stop()
