"""``klprojax train``: train a network by several steps on equal terms."""

import math
import statistics
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._options import JsonOption, Precision, PrecisionOption, grouped
from ._screen import Screen, check_outputs, write_figure, write_json, write_then_show

WINDOWS = (1, 10, 100)
DIGITS_EPOCHS, FILE_EPOCHS = 100, 10


class TrainingStep(StrEnum):
    """Training steps by name."""

    adam = "adam"
    sgd = "sgd"
    projection = "projection"
    projection_adam = "projection-adam"


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    hidden: Annotated[str, typer.Option(help="Widths of the hidden ReLU layers.")] = "128,128"
    step: Annotated[
        list[TrainingStep] | None,
        typer.Option(help="A step; give several to compare. [default: adam, projection]"),
    ] = None
    scheme: Annotated[
        str | None, typer.Option(help="Scheme of the projection steps, cyclic for example.")
    ] = None
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of a projection step.")
    ] = None
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the rows. [digits: 100, files: 10]")
    ] = None
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each step.")] = 1
    batch_size: Annotated[int, typer.Option(min=1, help="Rows an update.")] = 64
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Of the optimiser. [adam: 1e-3, sgd: 0.1]")
    ] = None
    skip: Annotated[bool, typer.Option("--skip", help="Add layers to their inputs.")] = False

    def names(self) -> list[TrainingStep]:
        """The steps to compare."""
        names = list(dict.fromkeys(self.step or [TrainingStep.adam, TrainingStep.projection]))
        projections = {TrainingStep.projection, TrainingStep.projection_adam}
        given = self.scheme is not None or self.iterations is not None
        if not projections & set(names) and given:
            raise ValueError("--scheme and --iterations belong to --step projection.")
        if set(names) == {TrainingStep.projection} and self.learning_rate is not None:
            raise ValueError("--learning-rate belongs to a step with an optimiser.")
        return names

    def make_step(self, name: TrainingStep, updates: int) -> Any:
        """Make a step by its name, for so many updates."""
        import optax

        from .. import training

        rate = self.learning_rate
        if name is TrainingStep.sgd:
            return training.GradientStep(optax.sgd(0.1 if rate is None else rate))
        rate = 1e-3 if rate is None else rate
        if name is TrainingStep.adam:
            return training.GradientStep(optax.adam(rate))
        if name is TrainingStep.projection_adam:
            if self.scheme is not None or self.iterations is not None:
                raise ValueError("--scheme and --iterations belong to --step projection.")
            return training.ProjectionDirection(optax.adam(rate))
        if self.scheme in (None, "cyclic") and self.iterations in (None, 1):
            # One sweep per batch, its moves shorter and shorter: what trains best.
            return training.ProjectionStep.decaying(updates)
        return training.ProjectionStep(
            scheme=_make_scheme(self.scheme or "cyclic"),
            iterations=50 if self.iterations is None else self.iterations,
            precisions=training.Precisions(output=0.2),
            consensus="average",
            move=training.Relaxed(),
        )


@dataclass
class Outcome:
    """One step's runs, one a seed."""

    step: str
    memory: int | None
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    def curve(self) -> list[list[float]]:
        """Update, mean seconds and mean validation accuracy."""
        return [
            [
                entries[0]["update"],
                statistics.fmean(entry["seconds"] for entry in entries),
                statistics.fmean(entry["validation_accuracy"] for entry in entries),
            ]
            for entries in zip(*self.histories, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """The keys promised by ``--json``."""
        updates = sum(self.updates)
        return {
            "step": self.step,
            "accuracy_mean": statistics.fmean(self.accuracies),
            # Of a sample; 0 for one seed.
            "accuracy_sd": statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0,
            "seconds": statistics.fmean(self.seconds),
            "seconds_per_update": sum(self.seconds) / updates if updates else None,
            "peak_memory_mib": None if self.memory is None else self.memory / 2**20,
            "curve": self.curve(),
        }


@grouped
def train_command(
    *,
    data: Annotated[
        str,
        typer.Option(help="digits, or an .npz file with x_train, y_train, x_test and y_test."),
    ] = "digits",
    training: Training,
    plot: Annotated[Path | None, typer.Option(help="Draw the learning curves here.")] = None,
    dynamics: Annotated[
        Path | None,
        typer.Option(help="Draw norms by layer and distances between iterates here."),
    ] = None,
    json_out: JsonOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; runs found there go on.")
    ] = None,
    precision: PrecisionOption = Precision.single,
) -> None:
    """Train a network by each step on equal terms: same weights to start with, same batches.

    Test accuracy is that of the epoch with the highest validation accuracy. Seconds are those of
    updates, without compiling and evaluating; memory is what the compiler plans for one update.

    Exit status: 0; 2 for bad input.
    """
    screen = Screen()
    precision.use()
    from ..training import evaluate, fit, load_dataset
    from ..training._evaluate import find_loss
    from ..training._memory import update_memory
    from ._network import make_network

    with screen.bad_input_exits():
        widths = _widths(training.hidden)
        for path in (plot, dynamics):
            if path is not None:
                _check_picture(path)
        names = training.names()
        pictures = _dynamics_paths(dynamics, names)
        check_outputs(json_out, plot, *pictures)
        dtype = np.float64 if precision is Precision.double else np.float32
        dataset = load_dataset(data, dtype=dtype)
        epochs = training.epochs or (DIGITS_EPOCHS if data == "digits" else FILE_EPOCHS)
        updates = epochs * math.ceil(len(dataset.train[1]) / training.batch_size)
        steps = {name.value: training.make_step(name, updates) for name in names}
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            check_outputs(checkpoint / f"{names[0].value}-0.npz")
        windows = WINDOWS if dynamics is not None else ()
        inputs = dataset.train[0].shape[1]
        loss = find_loss(None)
        outcomes = {}
        for seed in range(training.seeds):
            start = make_network(
                inputs, widths, dataset.classes, seed, skip=training.skip, dtype=dtype
            )
            for name, step in steps.items():
                if name not in outcomes:
                    size = min(training.batch_size, len(dataset.train[0]))
                    memory = update_memory(start, step, dataset.train, loss, batch_size=size)
                    outcomes[name] = Outcome(name, memory)
                screen.note(f"{name}, seed {seed}")
                result = fit(
                    start,
                    step,
                    dataset.train,
                    dataset.validation,
                    loss=loss,
                    epochs=epochs,
                    batch_size=training.batch_size,
                    seed=seed,
                    select="metric",
                    windows=windows,
                    checkpoint=None if checkpoint is None else checkpoint / f"{name}-{seed}.npz",
                    progress=True,
                )
                test = evaluate(result.model, dataset.test, loss=loss)
                outcome = outcomes[name]
                assert test.metric is not None
                outcome.accuracies.append(test.metric)
                outcome.seconds.append(result.history[-1]["seconds"])
                outcome.updates.append(result.updates)
                outcome.histories.append(result.history)
        rows = ", ".join(
            f"{len(part[0])} {name}"
            for part, name in zip(dataset[:3], ("training", "validation", "test"), strict=True)
        )

        def write() -> None:
            write_json(json_out, {"results": [one.to_json() for one in outcomes.values()]})
            _draw(plot, pictures, list(outcomes.values()))

        title = f"{Path(data).name}: {rows} rows; {training.seeds} seed(s)"
        write_then_show(write, lambda: _show(screen, list(outcomes.values()), title))


def _make_scheme(name: str) -> Any:
    """Make the scheme of a projection step by its name."""
    from .. import projections, training

    schemes = {
        "cyclic": training.CyclicProjections,
        "alternating": training.AlternatingProjections,
        "douglas-rachford": projections.DouglasRachford,
        "difference-map": projections.DifferenceMap,
        "dykstra": projections.Dykstra,
        "admm": projections.ADMM,
    }
    if name not in schemes:
        raise ValueError(f"--scheme is {name!r}; expected one of {', '.join(schemes)}.")
    return schemes[name]()


def _widths(text: str) -> list[int]:
    try:
        widths = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        widths = [0]
    if any(width < 1 for width in widths):
        raise ValueError(f"--hidden is {text!r}; expected widths such as 128,128.")
    return widths


def _check_picture(path: Path) -> None:
    """Fail before training, not after it."""
    from ..plots._axes import make_axes

    kinds = make_axes(None, 1, (1.0, 1.0))[0].figure.canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise ValueError(f"{path}: expected a name that ends in .png, .pdf or .svg.")


def _dynamics_paths(path: Path | None, names: list[TrainingStep]) -> list[Path]:
    """One file a step if there are several: their panels differ."""
    if path is None or len(names) == 1:
        return [] if path is None else [path]
    return [path.with_name(f"{path.stem}-{name.value}{path.suffix}") for name in names]


def _draw(plot: Path | None, pictures: list[Path], outcomes: list[Outcome]) -> None:
    if plot is None and not pictures:
        return
    from .. import plots

    if plot is not None:
        figure = plots.learning_curves({one.step: one.histories for one in outcomes})
        write_figure(plot, figure)
    for path, one in zip(pictures, outcomes, strict=bool(pictures)):
        figure = plots.dynamics(one.histories[0])
        figure.suptitle(one.step)
        write_figure(path, figure)


def _show(screen: Screen, outcomes: list[Outcome], title: str) -> None:
    rows = []
    for one in outcomes:
        found = one.to_json()
        mean, memory = f"{found['accuracy_mean']:.4f}", found["peak_memory_mib"]
        rows.append(
            (
                one.step,
                mean if len(one.accuracies) == 1 else f"{mean} ± {found['accuracy_sd']:.4f}",
                f"{found['seconds']:.2f}",
                f"{1e3 * (found['seconds_per_update'] or math.nan):.3f}",
                "-" if memory is None else f"{memory:.2f}",
            )
        )
    headings = ("step", "test accuracy", "seconds", "ms/update", "peak memory (MiB)")
    screen.table(headings, rows, title=title, left=("step",))
