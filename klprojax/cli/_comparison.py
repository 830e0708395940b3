"""The runs behind ``klprojax train``: trials, seeds, and what is told of them."""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..fitting._loop import DivergedError
from ..training import FitResult, evaluate, fit
from ..training._memory import update_memory
from ._architectures import make_architecture, row_shape
from ._losses import make_loss, make_metric, metric_of
from ._screen import Screen
from ._statistics import interval, paired
from ._steps import Setting, trials

_ENTRIES = ("update", "epoch", "examples", "seconds", "train_loss", "validation_loss")


@dataclass
class Outcome:
    """One step's runs, one per seed."""

    step: str
    metric: str
    memory: int | None = None
    setting: Setting | None = None
    trials: list[dict[str, Any]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    def paired_with(self, first: "Outcome") -> dict[str, Any] | None:
        """The paired test beside the first step; None for that itself, and for one seed."""
        test = None if self is first else paired(self.values, first.values)
        return test and {"with": first.step, **test}

    def to_json(self) -> dict[str, Any]:
        """The keys promised by ``--json``."""
        name, updates = self.metric, sum(self.updates)
        seconds = [history[-1]["seconds"] for history in self.histories]
        validation = f"validation_{name}"
        return {
            "step": self.step,
            "metric": name,
            f"{name}_mean": statistics.fmean(self.values),
            # Of a sample; 0 for one seed.
            f"{name}_sd": statistics.stdev(self.values) if len(self.values) > 1 else 0.0,
            f"{name}_interval": interval(self.values),
            "by_seed": self.values,
            "test_loss_by_seed": self.losses,
            "setting": None if self.setting is None else asdict(self.setting),
            "trials": self.trials,
            "seconds": statistics.fmean(seconds),
            "seconds_per_update": sum(seconds) / updates if updates else None,
            "peak_memory_mib": None if self.memory is None else self.memory / 2**20,
            "curve": [
                [
                    entries[0]["update"],
                    statistics.fmean(entry["seconds"] for entry in entries),
                    statistics.fmean(entry[validation] for entry in entries),
                ]
                for entries in zip(*self.histories, strict=True)
            ],
            "histories": [
                [{key: entry[key] for key in (*_ENTRIES, validation)} for entry in history]
                for history in self.histories
            ],
        }


@dataclass
class Comparison:
    """Everything that the steps have in common.

    Attributes:
        screen: for notes.
        training: the options.
        data: the data set.
        widths: of the network; None for those of its name.
        dtype: floating type.
        epochs: of each run.
        checkpoint: a folder.
        windows: lengths over which the motion of the weights is measured.
    """

    screen: Screen
    training: Any
    data: Any
    widths: list[int] | None
    dtype: Any
    epochs: int
    checkpoint: Path | None
    windows: tuple[int, ...]

    def __post_init__(self) -> None:
        self.loss, self.data, self.loss_name = make_loss(self.training.loss, self.data)
        shape = row_shape(self.training.network, self.data)
        parts = ((x.reshape(len(x), *shape), y) for x, y in self.data[:3])
        self.train, self.validation, self.test = parts
        self.metrics = [make_metric(self.data, y) for _, y in (self.validation, self.test)]
        self.updates = self.epochs * math.ceil(len(self.train[1]) / self.training.batch_size)

    def rows(self) -> str:
        """How many rows there are."""
        parts = zip(self.data[:3], ("training", "validation", "test"), strict=True)
        return ", ".join(f"{len(part[0])} {name}" for part, name in parts) + " rows"

    def file(self, name: str, seed: int, trial: int | None) -> Path:
        """The checkpoint of a run."""
        assert self.checkpoint is not None
        place = "" if trial is None else f"trial{trial}-"
        return self.checkpoint / f"{name}-{place}{seed}.npz"

    def run(self, names: list[Any]) -> list[Outcome]:
        """Tune each step, if that is asked for, and run it with every seed."""
        outcomes = [Outcome(name.value, metric_of(self.data)) for name in names]
        for name, outcome in zip(names, outcomes, strict=True):
            outcome.setting = self.training.setting(name, self._positions())
            # Refused before anything is trained.
            self.training.make_step(name, self.updates, outcome.setting)
        chosen: list[tuple[int | None, FitResult | None]] = [(None, None)] * len(names)
        if self.training.tune is not None:
            chosen = [self._tune(*pair) for pair in zip(names, outcomes, strict=True)]
        for seed in range(self.training.seeds):
            for name, outcome, (trial, first) in zip(names, outcomes, chosen, strict=True):
                run = first if seed == 0 else None
                if run is None:
                    note = f"{name.value}, seed {seed}"
                    run = self._fit(name, outcome.setting, seed, trial, note)
                self._keep(name, outcome, run)
        return outcomes

    def _positions(self) -> int:
        return self.data.shape[0] if self.data.task == "text" else 1

    def _start(self, seed: int) -> Any:
        options = {"skip": self.training.skip, "dtype": self.dtype}
        return make_architecture(self.training.network, self.data, self.widths, seed, **options)

    def _fit(
        self, name: Any, setting: Setting | None, seed: int, trial: int | None, note: str
    ) -> FitResult:
        self.screen.note(note)
        return fit(
            self._start(seed),
            self.training.make_step(name, self.updates, setting),
            self.train,
            self.validation,
            loss=self.loss,
            metric=self.metrics[0],
            epochs=self.epochs,
            batch_size=self.training.batch_size,
            seed=seed,
            select="metric",
            windows=self.windows,
            checkpoint=None if self.checkpoint is None else self.file(name.value, seed, trial),
            weights=self.data.weights,
            progress=True,
        )

    def _tune(self, name: Any, outcome: Outcome) -> tuple[int, FitResult]:
        """Number and run of the trial that is best on validation rows, equals by their loss."""
        default = outcome.setting
        assert default is not None
        found: tuple[tuple[float, float], int, FitResult] | None = None
        metric, count = f"validation_{outcome.metric}", self.training.tune
        for trial, setting in enumerate(trials(default, count)):
            told = f"{setting.name} {setting.value:.3g}"
            note = f"{name.value}, trial {trial + 1} of {count}: {told}"
            entry: dict[str, Any] = {**asdict(setting), metric: None, "validation_loss": None}
            outcome.trials.append(entry)
            try:
                run = self._fit(name, setting, 0, trial, note)
            except DivergedError as error:
                self.screen.note(f"diverged: {error}")
                continue
            best = next(e for e in run.history if e["update"] == run.best_update)
            entry |= {metric: best[metric], "validation_loss": best["validation_loss"]}
            value = best[metric], -best["validation_loss"]
            if found is None or value > found[0]:
                found, outcome.setting = (value, trial, run), setting
        if found is None:
            raise ValueError(
                f"All {count} trials of {name.value} diverged; give a lower --learning-rate or "
                "more trials."
            )
        return found[1:]

    def _keep(self, name: Any, outcome: Outcome, run: FitResult) -> None:
        if not outcome.values:
            step = self.training.make_step(name, self.updates, outcome.setting)
            size = min(self.training.batch_size, len(self.train[1]))
            outcome.memory = update_memory(
                self._start(0), step, self.train, self.loss, batch_size=size
            )
        test = evaluate(run.model, self.test, loss=self.loss, metric=self.metrics[1])
        assert test.metric is not None
        outcome.values.append(test.metric)
        outcome.losses.append(test.loss)
        outcome.updates.append(run.updates)
        outcome.histories.append(run.history)

    def to_json(self, source: str, outcomes: list[Outcome]) -> dict[str, Any]:
        """Everything, for ``--json``."""
        data, options = self.data, self.training
        first = outcomes[0]
        return {
            "data": {
                "source": source,
                "task": data.task,
                "shape": list(data.shape),
                "outputs": data.classes,
                "names": list(data.names),
                "rows": [len(x) for x, _ in data[:3]],
                "target_scale": None
                if data.scale is None
                else [part.tolist() for part in data.scale],
                "notes": list(data.notes),
            },
            "network": options.network,
            "loss": self.loss_name,
            "epochs": self.epochs,
            "batch_size": options.batch_size,
            "seeds": options.seeds,
            "tune": options.tune,
            "results": [one.to_json() | {"paired": one.paired_with(first)} for one in outcomes],
        }


def draw(
    plot: Path | None,
    pictures: list[Path],
    outcomes: list[Outcome],
    write: Callable[[Path, Any], None],
) -> None:
    """Draw curves, and dynamics of seed 0."""
    if plot is None and not pictures:
        return
    from .. import plots

    if plot is not None:
        metric = f"validation_{outcomes[0].metric}"
        curves = {one.step: one.histories for one in outcomes}
        write(plot, plots.learning_curves(curves, metric=metric))
    for path, one in zip(pictures, outcomes, strict=bool(pictures)):
        figure = plots.dynamics(one.histories[0])
        figure.suptitle(one.step)
        write(path, figure)


def show(screen: Screen, outcomes: list[Outcome], title: str) -> None:
    """The table."""
    first, rows = outcomes[0], []
    measure = "test " + {"r2": "R²"}.get(first.metric, first.metric.replace("_", " "))
    several, tuned = len(first.values) > 1, bool(first.trials)
    for one in outcomes:
        found = one.to_json()
        mean, memory = f"{found[f'{one.metric}_mean']:.4f}", found["peak_memory_mib"]
        row = [one.step]
        if tuned:
            assert one.setting is not None
            row.append(f"{one.setting.name} {one.setting.value:.3g}")
        row.append(f"{mean} ± {found[f'{one.metric}_sd']:.4f}" if several else mean)
        if several:
            low, high = found[f"{one.metric}_interval"]
            row.append(f"{low:.4f} to {high:.4f}")
        if several and len(outcomes) > 1:
            test = one.paired_with(first)
            p = "-" if test is None or test["p"] is None else f"{test['p']:.2g}"
            row.append("" if test is None else f"{test['difference']:+.4f} (p {p})")
        row += [
            f"{found['seconds']:.2f}",
            f"{1e3 * (found['seconds_per_update'] or math.nan):.3f}",
            "-" if memory is None else f"{memory:.2f}",
        ]
        rows.append(row)
    headings = ["step", *(["setting"] if tuned else []), measure]
    headings += ["95 % interval"] if several else []
    headings += [f"minus {first.step}"] if several and len(outcomes) > 1 else []
    headings += ["seconds", "ms/update", "peak memory (MiB)"]
    screen.table(headings, rows, title=title, left=("step", "setting"))
    if several and len(outcomes) > 1:
        seeds = len(first.values)
        screen.show(
            f"± is the standard deviation over {seeds} seeds; intervals are Student's; p is of "
            f"paired t-tests over the {seeds} seeds, not corrected for their number."
        )
