"""Training a network: what is measured, checked and kept by the loop of `fitting`."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._store import check_writable
from ..fitting._batches import Batches
from ..fitting._loop import At, DivergedError, Loop, Phase, check_at_least
from ..fitting._network import needs_key, slow_in_loops
from ..fitting._placement import place
from ..fitting._step import AbstractStep
from ..fitting._updates import weight_dtype
from ._evaluate import Evaluator, find_loss, metric_name
from ._inputs import check_data, check_model, check_weights, to_arrays


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns; unpacks as `model, history = fit(...)`.

    Attributes:
        model: of the best evaluation on validation data; of the last update without validation.
        history: one dict an evaluation. `update`, `epoch` (updates divided by those of an epoch)
            and `examples` (rows met); `seconds` spent in updates so far, without compiling and
            evaluating; `train_loss`, the mean over the rows met since the entry before, each before
            its own update; `validation_loss` and `validation_accuracy` (or the metric's name);
            `stats` of the last update; `window_distance`, by window. What was not measured is None.
        last_model: of the last update.
        state: the step's state after the last update.
        updates: number of updates done.
        best_update: the update that `model` is of.
        stopped_early: True if patience ended the run.
        compile_seconds: time from the start to the first update.
    """

    model: PyTree
    history: list[dict[str, Any]]
    last_model: PyTree
    state: PyTree
    updates: int
    best_update: int
    stopped_early: bool
    compile_seconds: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.history))


def fit(
    model: PyTree,
    step: AbstractStep,
    train: Any,
    validation: Any = None,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    weights: Any = None,
    epochs: int,
    batch_size: int | None = 256,
    seed: int = 0,
    patience: int | None = None,
    select: str = "loss",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    max_updates: int | None = None,
    evaluate_every: int | None = None,
    metric: str | Callable[[Any, Any], Array] | None = "accuracy",
    windows: Sequence[int] = (),
    progress: bool = False,
    on_evaluate: Callable[[dict[str, Any]], None] | None = None,
    devices: Sequence[Any] | None = None,
) -> FitResult:
    """Train a model by repeating a step over batches of rows.

    Updates run in long stretches on the device, so a step of a millisecond is not slowed by the
    host. All batches have one shape: short ones are padded with rows of weight 0. Floating inputs
    take the floating type of the model, targets too but single precision at least. What rounding
    drops of parameters of half precision is kept and added up.

    Args:
        model: a callable on one sample, with the weights as its arrays; or the pair
            (network, state) of `equinox.nn.make_with_state`, called as `network(x, state)` and
            returned as such a pair. The state is not trained. With a state the rows of a batch have
            the axis `"batch"`, as `equinox.nn.BatchNorm(..., "batch")` needs; padding rows are then
            copies of the batch's own. A network that takes a keyword `key`, and whose outputs
            depend on it, gets one per row, made from the seed, the number of the update and the
            place in the batch. Evaluations are in inference mode.
        step: an update, `GradientStep` for example.
        train: the pair (x, y), each an array or pytree of arrays with leading axis the rows.
        validation: the same, to choose the best model; may be left out.
        loss: an output factor `loss(outputs, y) -> [batch]`, nats (default: `CrossEntropy()`). It
            may return the pair of them and a dict of numbers by name, of the rows or of the batch:
            their means stand in the history's `stats`.
        weights: of the training rows, at least 0: in the mean loss of a batch, and in `train_loss`,
            a row of weight 2 counts as two; rows of weight 0 are left out. Evaluations count every
            row once, and so do statistics of the batch. 1 if None.
        epochs: passes over the rows, at most.
        batch_size: rows per update; None for all rows, in their order.
        seed: of the order of the rows, which in an epoch depends on seed and epoch only, and of
            keys.
        patience: stop after that many evaluations without a better one; never if None.
        select: `"loss"`: the best model is that of least validation loss; `"metric"`: of largest
            metric (the earliest of equals).
        checkpoint: a file written whole or not at all every `checkpoint_every` epochs and at the
            end. If it exists the run goes on from it, and ends with the same numbers, bit for
            bit, as an uninterrupted one on the same machine and devices. `epochs`, `max_updates`
            and `patience` may have changed: a longer run goes on where a shorter one ended.
            Ctrl-C leaves a note on the `KeyboardInterrupt` that says what is kept.
        checkpoint_every: epochs between checkpoints.
        max_updates: stop after that many updates.
        evaluate_every: updates between entries of the history; one epoch if None.
        metric: `"accuracy"` (recorded where the targets are labels or one-hot rows), a function
            `metric(outputs, y) -> [batch]`, or None.
        windows: lengths k for which the history records |w_t - w_{t-k}| / |w_t| over all weights
            w at update t: small at every k once the weights have stabilised over such a window.
        progress: show a progress bar with both losses.
        on_evaluate: called with each new entry of the history, after its checkpoint if one is due.
        devices: split each batch over these devices, weights on all; all local ones if None.

    Returns:
        A `FitResult`; `model, history = fit(...)` works too.

    Raises:
        ValueError: data or settings that do not fit; a checkpoint of another run; a loss that
            became NaN or infinite (the message names the update).
        OSError: the checkpoint cannot be written there.

    Example:
        >>> import equinox as eqx, jax, numpy as np, optax
        >>> from klprojax.training import GradientStep, fit
        >>> x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
        >>> data = x, (x[:, 0] > 0).astype(np.int32)
        >>> model = eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(0), dtype=np.float32)
        >>> model, history = fit(model, GradientStep(optax.adam(0.03)), data, data, epochs=20)
        >>> history[-1]["validation_accuracy"] > 0.9
        True
    """
    check_at_least(0, epochs=epochs, max_updates=max_updates, seed=seed)
    check_at_least(1, batch_size=batch_size, patience=patience, evaluate_every=evaluate_every)
    check_at_least(1, checkpoint_every=checkpoint_every)
    check_at_least(1, **{f"windows[{n}]": window for n, window in enumerate(windows)})
    if not isinstance(step, AbstractStep):
        name = step.__name__ if isinstance(step, type) else type(step).__name__
        raise ValueError(
            f"step is {'the class' if isinstance(step, type) else 'of type'} {name}; expected a "
            "step, GradientStep(optax.adam(1e-3)) or ProjectionStep() for example."
        )
    if select not in ("loss", "metric"):
        raise ValueError(f"select is {select!r}; expected 'loss' or 'metric'.")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data; give some or leave patience out.")
    if checkpoint is not None:
        check_writable(checkpoint)
    rows = check_data("train", train)
    loss = find_loss(loss)
    masses = None if weights is None else check_weights(weights, rows)
    if masses is not None and not masses.all():
        kept = np.flatnonzero(masses)
        train = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], tuple(train))
        rows, masses = len(kept), masses[kept]
    x, y = to_arrays(train, model)
    key = jax.random.key(seed) if needs_key(model, x) else None
    if key is not None and not _takes_key(step):
        raise ValueError(
            f"The network draws random numbers, but {type(step).__name__}.update takes no key; add "
            "`key=None` to its arguments and hand it on."
        )
    check_model("train", model, x, y, loss, key)
    where = place(devices)
    held = None
    if validation is not None:
        held = Evaluator("validation", model, validation, loss, metric, batch_size, where)
        if select == "metric" and held.metric is None:
            raise ValueError("select is 'metric', but there is no metric for these targets.")
    elif isinstance(metric, str) and metric != "accuracy":
        raise ValueError(f"metric is {metric!r}; expected 'accuracy', None or a function.")
    size = rows if batch_size is None else min(batch_size, rows)
    batches = Batches(rows, size, where.devices, seed, shuffle=batch_size is not None)
    total = epochs * batches.count
    total = total if max_updates is None else min(total, max_updates)
    every = batches.count if evaluate_every is None else evaluate_every
    windows = tuple(sorted(set(windows)))
    given = () if masses is None else (jnp.asarray(masses, weight_dtype(model)),)
    data, measured = where.put((x, y, *given)), metric_name(metric)

    def measure(at: At, stats: dict[str, Any]) -> Any:
        entry: dict[str, Any] = {
            "update": at.update,
            "epoch": at.update / batches.count,
            "examples": batches.examples(at.update),
            "seconds": at.seconds,
            "train_loss": at.train_loss,
            "validation_loss": None,
        }
        if measured is not None:
            entry[f"validation_{measured}"] = None
        value = None
        if held is not None:
            found = held(at.model)
            if np.isnan(found.loss):
                raise DivergedError(
                    f"The validation loss is nan after update {at.update}; lower the step size."
                )
            entry["validation_loss"] = found.loss
            if measured is not None:
                entry[f"validation_{measured}"] = found.metric
            value = found.loss if select == "loss" else -found.metric  # type: ignore[operator]
        if windows:
            entry["window_distance"] = {str(window): at.distance(window) for window in windows}
        # Numbers and lists of numbers, for JSON.
        entry["stats"] = {k: np.asarray(v).tolist() for k, v in jax.device_get(stats).items()}
        losses = {"train": entry["train_loss"], "validation": entry["validation_loss"]}
        return entry, value, losses

    def refuse(at: At, found: dict[str, Any]) -> None:
        if at.update > total:
            raise ValueError(
                f"The checkpoint {os.fspath(checkpoint or '')} is of update {at.update}, beyond "
                f"the {total} asked for; raise epochs or max_updates, or give another file."
            )

    loop = Loop(
        phases=(Phase(step, batches, total),),
        data=data,
        loss=loss,
        measure=measure,
        held=None if held is None else held.means.data,
        every=every,
        patience=patience,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        identity=lambda: {"select": select, "metric": measured},
        refuse=refuse,
        kept=f"update {{update}} of {total}",
        fault="The loss became {value} at update {update} (epoch {epoch}); lower the step size, or "
        "look for extreme numbers in the data.",
        on_entry=on_evaluate,
        progress=progress,
        where=where,
        windows=windows,
        key=key,
        masses=masses,
        apart=slow_in_loops(model, x, key),
    )
    at = loop.run(model)
    return FitResult(
        model=at.best,
        history=at.history,
        last_model=at.model,
        state=at.state,
        updates=at.update,
        best_update=at.best_update,
        stopped_early=loop.exhausted(at),
        compile_seconds=at.compile_seconds,
    )


def _takes_key(step: AbstractStep) -> bool:
    names = inspect.signature(step.update).parameters
    return "key" in names or any(p.kind is p.VAR_KEYWORD for p in names.values())
