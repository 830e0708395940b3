"""The training loop: updates in long runs, evaluations, early stopping, checkpoints."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._interrupted import says_what_is_kept
from .._store import check_writable
from . import _checkpoint
from ._batches import Batches
from ._evaluate import Evaluator, find_loss, metric_name
from ._history import FitResult, plain_stats
from ._inputs import check_data, check_model, float_dtype, to_arrays
from ._progress import progress_bar
from ._sharding import Placement, place
from ._step import AbstractStep

_INDICES = 2**22  # row indices sent to the device at once: 16 MiB


def fit(
    model: PyTree,
    step: AbstractStep,
    train: Any,
    validation: Any = None,
    *,
    loss: Callable[[Any, Any], Array] | None = None,
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
    host. All batches have one shape: short ones are padded with rows of weight 0. Floating data
    take the floating type of the model.

    Args:
        model: a callable on one sample, with the weights as its arrays.
        step: an update, `GradientStep` for example.
        train: the pair (x, y), each an array or pytree of arrays with leading axis the rows.
        validation: the same, to choose the best model; may be left out.
        loss: an output factor `loss(outputs, y) -> [batch]`, nats (default: `CrossEntropy()`).
        epochs: passes over the rows, at most.
        batch_size: rows an update; None for all rows, in their order.
        seed: of the order of the rows; that of an epoch depends on seed and epoch only.
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
    for name, value, least in (
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 1),
        ("patience", patience, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("max_updates", max_updates, 0),
        ("evaluate_every", evaluate_every, 1),
        ("seed", seed, 0),
        *((f"windows[{n}]", window, 1) for n, window in enumerate(windows)),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
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
    x, y = to_arrays(train, model)
    check_model("train", model, x, y, loss)
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
    run = _Run(
        step=step,
        loss=loss,
        x=where.put(x),
        y=where.put(y),
        held=held,
        batches=batches,
        where=where,
        total=total if max_updates is None else min(total, max_updates),
        every=batches.count if evaluate_every is None else evaluate_every,
        patience=patience,
        select=select,
        metric=metric_name(metric),
        windows=tuple(sorted(set(windows))),
        checkpoint=checkpoint,
        checkpoint_updates=checkpoint_every * batches.count,
        on_evaluate=on_evaluate,
    )
    with progress_bar(run.total, progress) as show:
        return run.go(_strong(model), show, progress)


@dataclass
class _At:
    """How far a run is."""

    model: PyTree
    state: PyTree
    best: PyTree
    best_value: float = float("inf")
    best_update: int = 0
    update: int = 0
    waited: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_rows: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    past: dict[int, PyTree] = field(default_factory=dict)
    kept: int | None = None  # the update that the checkpoint is of

    NUMBERS = (
        "best_value", "best_update", "update", "waited", "seconds", "loss_sum", "loss_rows",
        "history",
    )  # fmt: skip


@dataclass(frozen=True)
class _Run:
    """A run with everything settled."""

    step: AbstractStep
    loss: Callable[[Any, Any], Array]
    x: PyTree
    y: PyTree
    held: Evaluator | None
    batches: Batches
    where: Placement
    total: int
    every: int
    patience: int | None
    select: str
    metric: str | None
    windows: tuple[int, ...]
    checkpoint: str | os.PathLike[str] | None
    checkpoint_updates: int
    on_evaluate: Callable[[dict[str, Any]], None] | None

    def go(self, model: PyTree, show: Callable[..., None], slices: bool) -> FitResult:
        began = time.perf_counter()
        model = self.where.put_arrays(model)
        at = _At(model, self.where.put_arrays(_strong(self.step.init(model))), model)

        def kept() -> str | None:
            return None if at.kept is None else f"update {at.kept} of {self.total}"

        with says_what_is_kept(self.checkpoint, kept):
            return self._go(at, show, slices, began)

    def _go(self, at: _At, show: Callable[..., None], slices: bool, began: float) -> FitResult:
        longest = self._longest()
        first_update = self._warm_up(at, longest)
        identity = None
        if self.checkpoint is not None:
            identity = self._identity(at, first_update)
            if os.path.exists(self.checkpoint):
                self._resume(at, identity)
        if not at.history and at.update == 0 and self.held is not None:
            self._evaluate(at, {}, show)
        compiling = time.perf_counter() - began
        self._remember(at)
        while at.update < self.total and not self._exhausted(at):
            count = min(self._next_stop(at.update) - at.update, longest)
            if slices and at.update:  # about a second between movements of the bar
                count = min(count, max(1, int(at.update / max(at.seconds, 1e-9))))
            stats = self._advance(at, count, longest)
            self._remember(at)
            show(at.update, train=at.loss_sum / max(at.loss_rows, 1))
            entry = None
            if at.update % self.every == 0 or at.update == self.total:
                entry = self._evaluate(at, stats, show)
            stop = at.update == self.total or self._exhausted(at)
            if identity is not None and (at.update % self.checkpoint_updates == 0 or stop):
                self._save(at, identity)
            if entry is not None and self.on_evaluate is not None:
                self.on_evaluate(entry)
        best = at.model if self.held is None else at.best
        return FitResult(
            model=best,
            history=at.history,
            last_model=at.model,
            state=at.state,
            updates=at.update,
            best_update=at.update if self.held is None else at.best_update,
            stopped_early=self._exhausted(at),
            compile_seconds=compiling,
        )

    def _longest(self) -> int:
        limit = max(1, _INDICES // self.batches.width)
        return max(1, min(self.every, self.total, limit))

    def _exhausted(self, at: _At) -> bool:
        return self.patience is not None and at.waited >= self.patience

    def _next_stop(self, update: int) -> int:
        """The next update after which something happens: evaluation, checkpoint or snapshot."""
        stops = [self.total, (update // self.every + 1) * self.every]
        if self.checkpoint is not None:
            stops.append((update // self.checkpoint_updates + 1) * self.checkpoint_updates)
        for window in self.windows:
            stops.append(((update + window) // self.every + 1) * self.every - window)
            stops.append(self.total - window)
        return min(stop for stop in stops if stop > update)

    def _warm_up(self, at: _At, longest: int) -> list[float] | None:
        """Compile and run the first update once, unused: its numbers tell runs apart."""
        if self.total == 0:
            return None
        model, _, losses, _, _ = self._call(at, self._order(0, 1, longest), 1)
        jax.block_until_ready(losses)
        if self.checkpoint is None:
            return None
        moved = jax.tree.map(
            lambda a, b: float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b))),
            eqx.filter(model, eqx.is_inexact_array),
            eqx.filter(at.model, eqx.is_inexact_array),
        )
        return [float(losses[0]), *jax.tree.leaves(moved)]

    def _order(self, first: int, count: int, longest: int) -> Array:
        if self.batches.whole:
            return jnp.zeros((longest, 0), jnp.int32)
        order = np.full((longest, self.batches.width), -1, np.int32)
        order[:count] = self.batches.updates(first, count)
        return self.where.put(jnp.asarray(order), 1)

    def _call(self, at: _At, order: Array, count: int) -> Any:
        return _updates(
            at.model,
            at.state,
            self.step,
            self.loss,
            self.x,
            self.y,
            order,
            jnp.asarray(count, jnp.int32),
            self.where,
        )

    def _advance(self, at: _At, count: int, longest: int) -> dict[str, Any]:
        began = time.perf_counter()
        order = self._order(at.update, count, longest)
        model, state, losses, stats, done = self._call(at, order, count)
        jax.block_until_ready((model, losses))
        at.seconds += time.perf_counter() - began
        values, done = np.asarray(losses, np.float64)[:count], int(done)
        if not np.isfinite(values[:done]).all():
            update = at.update + int(np.argmin(np.isfinite(values))) + 1
            raise ValueError(
                f"The loss became {values[update - at.update - 1]} at update {update} (epoch "
                f"{(update - 1) // self.batches.count + 1}); lower the step size, or look for "
                "extreme numbers in the data."
            )
        places = (at.update + np.arange(count)) % self.batches.count
        last = self.batches.rows - (self.batches.count - 1) * self.batches.size
        rows = np.where(places == self.batches.count - 1, last, self.batches.size)
        at.loss_sum += float((values * rows).sum())
        at.loss_rows += int(rows.sum())
        at.model, at.state, at.update = model, state, at.update + count
        return stats

    def _remember(self, at: _At) -> None:
        """Keep the weights that a coming entry will be compared with."""
        if not self.windows:
            return
        for window in self.windows:
            target = at.update + window
            if target % self.every == 0 or target == self.total:
                at.past[at.update] = eqx.filter(at.model, eqx.is_inexact_array)
        for update in [u for u in at.past if u < at.update - self.windows[-1]]:
            del at.past[update]

    def _evaluate(self, at: _At, stats: dict[str, Any], show: Callable[..., None]) -> Any:
        entry: dict[str, Any] = {
            "update": at.update,
            "epoch": at.update / self.batches.count,
            "seconds": at.seconds,
            "train_loss": at.loss_sum / at.loss_rows if at.loss_rows else None,
            "validation_loss": None,
        }
        at.loss_sum, at.loss_rows = 0.0, 0
        if self.metric is not None:
            entry[f"validation_{self.metric}"] = None
        if self.held is not None:
            measured = self.held(at.model)
            if np.isnan(measured.loss):
                raise ValueError(
                    f"The validation loss is nan after update {at.update}; lower the step size."
                )
            entry["validation_loss"] = measured.loss
            if self.metric is not None:
                entry[f"validation_{self.metric}"] = measured.metric
            value = measured.loss if self.select == "loss" else -measured.metric  # type: ignore[operator]
            if value < at.best_value:
                at.best, at.best_value, at.best_update, at.waited = at.model, value, at.update, 0
            else:
                at.waited += 1
        if self.windows:
            entry["window_distance"] = {
                str(window): self._distance(at, window) for window in self.windows
            }
        entry["stats"] = plain_stats(stats)
        at.history.append(entry)
        show(at.update, train=entry["train_loss"], validation=entry["validation_loss"])
        return entry

    def _distance(self, at: _At, window: int) -> float | None:
        past = at.past.get(at.update - window)
        if past is None:
            return None
        return float(_relative_distance(eqx.filter(at.model, eqx.is_inexact_array), past))

    def _identity(self, at: _At, first_update: list[float] | None) -> dict[str, Any]:
        held = None if self.held is None else _checkpoint.digest((self.held.x, self.held.y))
        return {
            "step": _checkpoint.describe(self.step),
            "loss": _checkpoint.describe(self.loss),
            "start": _checkpoint.digest(at.model),
            "train": _checkpoint.digest((self.x, self.y)),
            "validation": held,
            "batch_size": self.batches.size,
            "shuffle": self.batches.shuffle,
            "seed": self.batches.seed,
            "evaluate_every": self.every,
            "select": self.select,
            "metric": self.metric,
            "windows": list(self.windows),
            "first_update": first_update,
        }

    def _trees(self, at: _At) -> dict[str, PyTree]:
        past = {f"past_{update}": tree for update, tree in at.past.items()}
        return {"model": at.model, "best": at.best, "state": at.state, **past}

    def _save(self, at: _At, identity: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        numbers = {name: getattr(at, name) for name in _At.NUMBERS}
        _checkpoint.save(
            self.checkpoint, identity, {**numbers, "past": list(at.past)}, self._trees(at)
        )
        at.kept = at.update

    def _resume(self, at: _At, identity: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        # Room for the snapshots of the windows and a long history.
        size = _checkpoint.tree_bytes(self._trees(at)) * (3 + len(self.windows)) + 2**30
        numbers, arrays = _checkpoint.load(self.checkpoint, identity, size)
        put = self.where.put_arrays
        weights = eqx.filter(at.model, eqx.is_inexact_array)
        try:
            past = [int(update) for update in numbers["past"]]
            for name in _At.NUMBERS:
                setattr(at, name, type(getattr(at, name))(numbers[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise _checkpoint.ModelFileError(
                os.fspath(self.checkpoint), None, "the numbers of a run", f"no {error}"
            ) from None
        if at.update > self.total:
            raise ValueError(
                f"The checkpoint {os.fspath(self.checkpoint)} is of update {at.update}, beyond "
                f"the {self.total} asked for; raise epochs or max_updates, or give another file."
            )
        trees = {"model": at.model, "best": at.best, "state": at.state}
        for name, like in trees.items():
            setattr(at, name, put(_checkpoint.fill(self.checkpoint, arrays, name, like)))
        at.past = {
            u: put(_checkpoint.fill(self.checkpoint, arrays, f"past_{u}", weights)) for u in past
        }
        at.kept = at.update


@eqx.filter_jit
def _updates(model, state, step, loss, x, y, order, count, where):
    """Run `count` updates, the first rows of `order`; stop at a loss that is not finite."""
    arrays, static = eqx.partition((model, state), eqx.is_array)
    dtype = float_dtype(model)

    def one(arrays: PyTree, rows: Array) -> tuple[PyTree, Any]:
        model, state = eqx.combine(arrays, static)
        if rows.shape[0] == 0:
            x_rows, y_rows = x, y
            weights = jnp.ones(jax.tree.leaves(x)[0].shape[0], dtype)
        else:
            index = jnp.maximum(rows, 0)
            x_rows, y_rows = jax.tree.map(lambda leaf: leaf[index], (x, y))
            weights = (rows >= 0).astype(dtype)
        x_rows, y_rows, weights = where.constrain((x_rows, y_rows, weights), 0)
        model, state, info = step.update(model, state, x_rows, y_rows, weights, loss)
        arrays, after = eqx.partition((model, state), eqx.is_array)
        if not eqx.tree_equal(after, static):
            raise ValueError(
                f"{type(step).__name__}.update changed something that is not an array; keep in "
                "the state only arrays that change."
            )
        return where.constrain(arrays), info

    _, info = jax.eval_shape(one, arrays, order[0])
    losses = jnp.zeros(order.shape[0], info.loss.dtype)
    stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info.stats)

    def going(carry: Any) -> Array:
        done, _, losses, _ = carry
        return (done < count) & jnp.isfinite(losses[jnp.maximum(done - 1, 0)])

    def body(carry: Any) -> Any:
        done, arrays, losses, _ = carry
        arrays, info = one(arrays, order[done])
        return done + 1, arrays, losses.at[done].set(info.loss), info.stats

    start = (jnp.asarray(0, jnp.int32), arrays, losses, stats)
    done, arrays, losses, stats = jax.lax.while_loop(going, body, start)
    model, state = eqx.combine(arrays, static)
    return model, state, losses, stats, done


@jax.jit
def _relative_distance(now: PyTree, past: PyTree) -> Array:
    def norm(tree: PyTree) -> Array:
        squares = [jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    return norm(jax.tree.map(jnp.subtract, now, past)) / norm(now)


def _strong(tree: PyTree) -> PyTree:
    # A weakly typed array would come out of the first update strongly typed: one more compilation.
    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and getattr(leaf, "weak_type", False):
            return jax.lax.convert_element_type(leaf, leaf.dtype)
        return leaf

    return jax.tree.map(convert, tree)
