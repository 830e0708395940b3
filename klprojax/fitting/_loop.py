"""The one loop: updates in long runs, evaluations, early stopping, checkpoints."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from . import _checkpoint
from ._batches import Batches
from ._network import parameters
from ._placement import HERE, Placement
from ._progress import progress_bar
from ._step import AbstractStep
from ._updates import relative_distance, run_updates, strong

_INDICES = 2**22  # row indices sent to the device at once: 16 MiB


class DivergedError(ValueError):
    """A loss of a run became NaN, or infinite where it may not be."""


def is_finite(loss: Any) -> Any:
    """Whether a loss is a number: the same for arrays of numpy and JAX."""
    return abs(loss) < float("inf")


def check_at_least(least: int, **settings: int | None) -> None:
    """Check that settings are not below a number; None passes."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")


@dataclass
class At:
    """How far a run is.

    Attributes:
        model: after the last update; `state` the step's.
        best: the model of the best evaluation, of `best_update` and `best_value` (the less the
            better); without values that of the last evaluation.
        phase: which phase; it began after the update `began`.
        waited: evaluations since the best one, in this phase.
        seconds: in updates; `elapsed` also between them, at the last evaluation.
        loss_sum: of the rows met since the last evaluation, of summed weight `loss_rows`.
        past: weights of earlier updates that a coming evaluation is compared with.
        kept: the update that the checkpoint is of.
    """

    model: PyTree
    state: PyTree
    best: PyTree
    best_value: float = float("inf")
    best_update: int = 0
    phase: int = 0
    began: int = 0
    update: int = 0
    waited: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    loss_sum: float = 0.0
    loss_rows: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    past: dict[int, PyTree] = field(default_factory=dict)
    kept: int | None = None
    mark: float = field(default_factory=time.perf_counter)
    compile_seconds: float = 0.0

    NUMBERS = (
        "best_value", "best_update", "phase", "began", "update", "waited", "seconds", "elapsed",
        "loss_sum", "loss_rows", "history",
    )  # fmt: skip

    @property
    def train_loss(self) -> float | None:
        """Mean over the rows met since the last evaluation."""
        return self.loss_sum / self.loss_rows if self.loss_rows else None

    def distance(self, window: int) -> float | None:
        """Relative distance of the weights from those `window` updates ago, if they are kept."""
        past = self.past.get(self.update - window)
        return None if past is None else float(relative_distance(parameters(self.model), past))


@dataclass(frozen=True)
class Phase:
    """Updates by one step.

    Attributes:
        step: the step.
        batches: rows of each update.
        total: updates at most.
        stretch: `stretch(call, model, state, epoch)` runs a stretch of updates inside an epoch
            by `call(step, model, state)`, if need be with another step, or twice.
    """

    step: AbstractStep
    batches: Batches
    total: int
    stretch: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Loop:
    """A run with everything settled.

    Attributes:
        phases: one after the other; a later one starts from the best model before it.
        data: the pair (x, y) on the devices.
        loss: for the steps.
        measure: `measure(at, stats)` gives the entry of the history (None for none), the value to
            choose the best by (None: the last is best) and losses to show.
        held: validation data, if there are any: then the start is measured too.
        every: updates between evaluations.
        checkpoint_every: epochs between checkpoints.
        identity: what else the run is, as JSON; called only if there is a checkpoint.
        refuse: `refuse(at, found)` raises a ValueError where a run that is `at` in a checkpoint, of
            the identity `found`, cannot go on.
        kept: what a checkpoint holds; the fields are `update` and `epoch`.
        good: says which losses a run goes on after.
        fault: message on a loss that is not good; the fields are `value`, `minus` (the same
            negated), `update` and `epoch`.
        ahead: compile, and try the first update, before the run starts: seconds are without
            compiling then, the numbers of that update are part of the identity, and the progress
            bar counts updates, not epochs.
        key: of the random numbers of all updates, for networks that draw some.
        masses: weight of every row of the data; 1 if None.
        apart: call updates one by one, not in stretches; see `slow_in_loops`.
    """

    phases: tuple[Phase, ...]
    data: PyTree
    loss: Any
    measure: Callable[[At, dict[str, Any]], tuple[dict[str, Any] | None, float | None, dict]]
    held: PyTree | None
    every: int
    patience: int | None
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    identity: Callable[[], dict[str, Any]]
    refuse: Callable[[At, dict[str, Any]], None]
    kept: str
    fault: str
    on_entry: Callable[[dict[str, Any]], None] | None
    progress: bool
    where: Placement = HERE
    windows: tuple[int, ...] = ()
    good: Callable[[Any], Any] = is_finite
    ahead: bool = True
    key: Any = None
    masses: np.ndarray | None = None
    apart: bool = False

    def run(self, model: PyTree) -> At:
        """Run from a model, or from the checkpoint."""
        model = self.where.put(strong(model))
        at = At(model, self._state(0, model), model)
        total = sum(phase.total for phase in self.phases)
        with progress_bar(total, self.progress, 1 if self.ahead else self._epoch) as show:
            try:
                self._run(at, show)
            except KeyboardInterrupt as stop:  # Python prints a note once, below the traceback
                stop.add_note(self._kept(at))
                raise
        return at

    def _kept(self, at: At) -> str:
        """What a run that Ctrl-C stops says: what is kept of it, and how to go on."""
        if self.checkpoint is None:
            return (
                "Nothing is kept of the run: it has no checkpoint. Give one, and the same call or "
                "command goes on from it."
            )
        name = os.fspath(self.checkpoint)
        if at.kept is not None:
            far = self.kept.format(update=at.kept, epoch=at.kept // self._epoch)
            return f"Kept in {name}: {far}. The same call or command goes on from there."
        if os.path.exists(name):
            return f"{name} is as it was. The same call or command goes on from it."
        return f"Nothing is kept of the run: {name} had not been written yet."

    @property
    def _epoch(self) -> int:
        return self.phases[0].batches.count

    @property
    def _checkpoint_updates(self) -> int:
        return self.checkpoint_every * self._epoch

    def exhausted(self, at: At) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and at.waited >= self.patience

    def _run(self, at: At, show: Callable[..., None]) -> None:
        began = time.perf_counter()
        identity = None
        first = self._try_first(at) if self.ahead else None
        if self.checkpoint is not None:
            identity = self._identity(at.model, first)
            if os.path.exists(self.checkpoint):
                self._resume(at, identity)
                show(at.update)
        if self.held is not None and at.update == 0 and not at.history:
            self._evaluate(at, {}, show)
            at.waited = 0
        at.compile_seconds = time.perf_counter() - began
        self._remember(at)
        while not self._over(at):
            if self._ended(at):
                at.phase, at.began, at.waited, at.model = at.phase + 1, at.update, 0, at.best
                at.state = self._state(at.phase, at.model)
                continue
            count = min(self._next_stop(at) - at.update, self._longest(at.phase))
            if self.progress and self.ahead and at.update:
                # About a second between movements of the bar.
                count = min(count, max(1, int(at.update / max(at.seconds, 1e-9))))
            stats = self._advance(at, count)
            self._remember(at)
            entry = None
            if at.update % self.every == 0 or at.update == self._end(at):
                entry = self._evaluate(at, stats, show)
            else:
                show(at.update, train=at.train_loss)
            if identity and (at.update % self._checkpoint_updates == 0 or self._over(at)):
                self._save(at, identity)
            if entry is not None and self.on_entry is not None:
                self.on_entry(entry)
        if identity and at.kept != at.update:
            self._save(at, identity)

    def _identity(self, model: PyTree, first: list[float] | None) -> dict[str, Any]:
        step, batches = self.phases[0].step, self.phases[0].batches
        return {
            **self.identity(),
            "step": _checkpoint.describe(step),
            "loss": _checkpoint.describe(self.loss),
            "batch_size": batches.size,
            "shuffle": batches.shuffle,
            "seed": batches.seed,
            "evaluate_every": self.every,
            "windows": list(self.windows),
            "start": _checkpoint.digest(model),
            "train": _checkpoint.digest(self.data),
            "validation": None if self.held is None else _checkpoint.digest(self.held),
            "first_update": first,
        }

    def _state(self, phase: int, model: PyTree) -> PyTree:
        return self.where.put(strong(self.phases[phase].step.init(model)))

    def _end(self, at: At) -> int:
        """The last update of the phase."""
        return at.began + self.phases[at.phase].total

    def _ended(self, at: At) -> bool:
        return at.update >= self._end(at) or self.exhausted(at)

    def _over(self, at: At) -> bool:
        """Whether the run ends with this phase, and this phase has ended."""
        return self._ended(at) and not any(p.total for p in self.phases[at.phase + 1 :])

    def _longest(self, number: int) -> int:
        phase = self.phases[number]
        most = 1 if self.apart else max(1, _INDICES // phase.batches.width)
        return max(1, min(self.every, phase.total, most))

    def _next_stop(self, at: At) -> int:
        """The next update after which something happens: evaluation, checkpoint or snapshot."""
        update, end = at.update, self._end(at)
        stops = [end, (update // self.every + 1) * self.every]
        if self.checkpoint is not None:
            stops.append((update // self._checkpoint_updates + 1) * self._checkpoint_updates)
        for window in self.windows:
            stops.append(((update + window) // self.every + 1) * self.every - window)
            stops.append(end - window)
        return min(stop for stop in stops if stop > update)

    def _try_first(self, at: At) -> list[float] | None:
        """Compile and run the first update once, unused: its numbers tell runs apart."""
        if not self.phases[0].total:
            return None
        model, _, losses, _, _ = self._call(at, 1)(self.phases[0].step, at.model, at.state)
        jax.block_until_ready(losses)
        if self.checkpoint is None:
            return None
        moved = jax.tree.map(
            lambda a, b: float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b))),
            parameters(model),
            parameters(at.model),
        )
        return [float(losses[0]), *jax.tree.leaves(moved)]

    def _call(self, at: At, count: int) -> Callable[[AbstractStep, PyTree, PyTree], Any]:
        """The next updates, as a function of step, model and state."""
        batches, longest = self.phases[at.phase].batches, self._longest(at.phase)
        if batches.whole:
            order: Array = jnp.zeros((longest, 0), jnp.int32)
        else:
            rows = np.full((longest, batches.width), -1, np.int32)
            rows[:count] = batches.updates(at.update - at.began, count)
            order = self.where.put(jnp.asarray(rows), 1)
        number = jnp.asarray(count, jnp.int32)
        rest = [self.loss, self.data, order, number, self.where, self.good]
        if self.key is not None:
            rest += [self.where.put(self.key), jnp.asarray(at.update, jnp.int32)]
        return lambda step, model, state: run_updates(model, state, step, *rest)

    def _advance(self, at: At, count: int) -> dict[str, Any]:
        began, phase = time.perf_counter(), self.phases[at.phase]
        call, batches = self._call(at, count), phase.batches
        if phase.stretch is None:
            found = call(phase.step, at.model, at.state)
        else:
            epoch = (at.update - at.began) // batches.count
            found = phase.stretch(call, at.model, at.state, epoch)
        model, state, losses, stats, done = jax.block_until_ready(found)
        at.seconds += time.perf_counter() - began
        values = np.asarray(losses, np.float64)[:count]
        good = self.good(values[: int(done)])
        if not good.all():
            update = at.update + int(np.argmin(good)) + 1
            value, epoch = values[update - at.update - 1], (update - 1) // batches.count + 1
            raise DivergedError(
                self.fault.format(value=value, minus=-value, update=update, epoch=epoch)
            )
        rows = self._masses(batches, at.update - at.began, count)
        at.loss_sum += float((values * rows).sum())
        at.loss_rows += float(rows.sum())
        at.model, at.state, at.update = model, state, at.update + count
        return stats

    def _masses(self, batches: Batches, first: int, count: int) -> np.ndarray:
        """Summed weights of the rows of updates."""
        if self.masses is not None:
            order = batches.updates(first, count)
            return np.where(order < 0, 0, self.masses[order]).sum(1)
        places = (first + np.arange(count)) % batches.count
        last = batches.rows - (batches.count - 1) * batches.size
        return np.where(places == batches.count - 1, last, batches.size)

    def _remember(self, at: At) -> None:
        """Keep the weights that a coming entry will be compared with."""
        if not self.windows:
            return
        for window in self.windows:
            target = at.update + window
            if target % self.every == 0 or target == self._end(at):
                at.past[at.update] = parameters(at.model)
        for update in [u for u in at.past if u < at.update - self.windows[-1]]:
            del at.past[update]

    def _evaluate(
        self, at: At, stats: dict[str, Any], show: Callable[..., None]
    ) -> dict[str, Any] | None:
        now = time.perf_counter()
        at.elapsed, at.mark = at.elapsed + now - at.mark, now
        entry, value, losses = self.measure(at, stats)
        at.loss_sum, at.loss_rows = 0.0, 0.0
        if value is None or value < at.best_value:
            at.best, at.best_update, at.waited = at.model, at.update, 0
            at.best_value = at.best_value if value is None else value
        else:
            at.waited += 1
        if entry is not None:
            at.history.append(entry)
        show(at.update, **losses)
        return entry

    def _trees(self, at: At) -> dict[str, PyTree]:
        past = {f"past_{update}": tree for update, tree in at.past.items()}
        return {"model": at.model, "best": at.best, "state": at.state, **past}

    def _save(self, at: At, identity: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        numbers = {name: getattr(at, name) for name in At.NUMBERS}
        numbers["past"] = list(at.past)
        _checkpoint.save(self.checkpoint, identity, numbers, self._trees(at))
        at.kept = at.update

    def _resume(self, at: At, identity: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        # Room for the snapshots of the windows and a long history.
        size = _checkpoint.tree_bytes(self._trees(at)) * (3 + len(self.windows)) + 2**30
        found, numbers, arrays = _checkpoint.load(self.checkpoint, identity, size)
        try:
            past = [int(update) for update in numbers["past"]]
            for name in At.NUMBERS:
                setattr(at, name, type(getattr(at, name))(numbers[name]))
            at.state = self._state(at.phase, at.model)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _checkpoint.ModelFileError(
                os.fspath(self.checkpoint), None, "the numbers of a run", f"no {error}"
            ) from None
        self.refuse(at, found)
        trees = {"model": at.model, "best": at.best, "state": at.state}
        trees |= {f"past_{update}": parameters(at.model) for update in past}
        filled = (_checkpoint.fill(self.checkpoint, arrays, *part) for part in trees.items())
        at.model, at.best, at.state, *snapshots = map(self.where.put, filled)
        at.past = dict(zip(past, snapshots, strict=True))
        at.kept = at.update
