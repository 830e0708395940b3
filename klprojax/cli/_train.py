"""``klprojax train``: train a network by several steps on equal terms."""

import math
import statistics
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._infer import Precision
from ._screen import Screen, check_outputs, write_figure, write_json, write_then_show

WINDOWS = (1, 10, 100)
DIGITS_EPOCHS, FILE_EPOCHS = 100, 10


class Step(StrEnum):
    """Training steps by name."""

    adam = "adam"
    sgd = "sgd"
    projection = "projection"
    projection_adam = "projection-adam"


@dataclass(frozen=True)
class Options:
    """What a step is made from; None leaves a choice to the step."""

    learning_rate: float | None
    scheme: str | None
    iterations: int | None
    updates: int


@dataclass
class Outcome:
    """One step's runs, one a seed."""

    step: str
    memory: int | None
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    histories: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def accuracy_mean(self) -> float:
        """Mean test accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def accuracy_sd(self) -> float:
        """Standard deviation of a sample; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    @property
    def seconds_per_update(self) -> float | None:
        """Seconds of all runs over their updates."""
        return sum(self.seconds) / sum(self.updates) if sum(self.updates) else None

    @property
    def memory_mib(self) -> float | None:
        """Memory of an update, MiB."""
        return None if self.memory is None else self.memory / 2**20

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
        return {
            "step": self.step,
            "accuracy_mean": self.accuracy_mean,
            "accuracy_sd": self.accuracy_sd,
            "seconds": statistics.fmean(self.seconds),
            "seconds_per_update": self.seconds_per_update,
            "peak_memory_mib": self.memory_mib,
            "curve": self.curve(),
        }


def train_command(
    data: Annotated[
        str,
        typer.Option(help="digits, or an .npz file with x_train, y_train, x_test and y_test."),
    ] = "digits",
    hidden: Annotated[str, typer.Option(help="Widths of the hidden ReLU layers.")] = "128,128",
    step: Annotated[
        list[Step] | None,
        typer.Option(help="A step; give several to compare. [default: adam, projection]"),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Scheme of the projection steps, cyclic for example.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Iterations of a projection step.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the rows. [digits: 100, files: 10]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each step.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows an update.")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Of the optimiser. [adam: 1e-3, sgd: 0.1]")
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Add layers to their inputs.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the learning curves here.")] = None,
    dynamics: Annotated[
        Path | None,
        typer.Option(help="Draw norms by layer and distances between iterates here."),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; runs found there go on.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Floating-point bits.")] = Precision.single,
) -> None:
    """Train a network by each step on equal terms: same weights to start with, same batches.

    Test accuracy is that of the epoch with the highest validation accuracy. Seconds are those of
    updates, without compiling and evaluating; memory is what the compiler plans for one update.

    Exit status: 0; 2 for bad input.
    """
    screen = Screen()
    import jax

    jax.config.update("jax_enable_x64", precision is Precision.double)
    from ..training import load_dataset

    with screen.bad_input_exits():
        widths = _widths(hidden)
        for path in (plot, dynamics):
            if path is not None:
                _check_picture(path)
        names = list(dict.fromkeys(step or [Step.adam, Step.projection]))
        projections = {Step.projection, Step.projection_adam}
        if not projections & set(names) and (scheme is not None or iterations is not None):
            raise ValueError("--scheme and --iterations belong to --step projection.")
        if set(names) == {Step.projection} and learning_rate is not None:
            raise ValueError("--learning-rate belongs to a step with an optimiser.")
        pictures = _dynamics_paths(dynamics, names)
        check_outputs(json_out, plot, *pictures)
        dtype = np.float64 if precision is Precision.double else np.float32
        dataset = load_dataset(data, dtype=dtype)
        if epochs is None:
            epochs = DIGITS_EPOCHS if data == "digits" else FILE_EPOCHS
        updates = epochs * math.ceil(len(dataset.train[1]) / batch_size)
        options = Options(learning_rate, scheme, iterations, updates)
        steps = {name.value: _make_step(name, options) for name in names}
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            check_outputs(checkpoint / f"{names[0].value}-0.npz")
        outcomes = _train(
            steps,
            dataset,
            widths,
            seeds,
            skip,
            screen,
            epochs=epochs,
            batch_size=batch_size,
            windows=WINDOWS if dynamics is not None else (),
            checkpoint=checkpoint,
        )
        rows = ", ".join(
            f"{len(part[0])} {name}"
            for part, name in zip(dataset[:3], ("training", "validation", "test"), strict=True)
        )

        def write() -> None:
            write_json(json_out, {"results": [one.to_json() for one in outcomes]})
            _draw(plot, pictures, outcomes)

        title = f"{Path(data).name}: {rows} rows; {seeds} seed(s)"
        write_then_show(write, lambda: _show(screen, outcomes, title))


def _make_step(name: Step, options: Options) -> Any:
    """Make a step by its name."""
    import optax

    from .. import training

    if name in (Step.adam, Step.sgd):
        if options.learning_rate is None:
            rate = 1e-3 if name is Step.adam else 0.1
        else:
            rate = options.learning_rate
        return training.GradientStep(optax.adam(rate) if name is Step.adam else optax.sgd(rate))
    if name is Step.projection_adam:
        if options.scheme is not None or options.iterations is not None:
            raise ValueError("--scheme and --iterations belong to --step projection.")
        rate = 1e-3 if options.learning_rate is None else options.learning_rate
        return training.ProjectionDirection(optax.adam(rate))
    if options.scheme in (None, "cyclic") and options.iterations in (None, 1):
        # One sweep a batch, over-relaxed and slowly less so: what trains best.
        return training.ProjectionStep.decaying(options.updates)
    return training.ProjectionStep(
        scheme=_make_scheme(options.scheme or "cyclic"),
        iterations=50 if options.iterations is None else options.iterations,
        precisions=training.Precisions(output=0.2),
        consensus="average",
        relaxation=1.0,
        inertia=0.0,
    )


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


def _train(
    steps: dict[str, Any],
    dataset: Any,
    widths: list[int],
    seeds: int,
    skip: bool,
    screen: Screen,
    *,
    epochs: int,
    batch_size: int,
    windows: tuple[int, ...],
    checkpoint: Path | None,
) -> list[Outcome]:
    from ..training import evaluate, fit
    from ..training._evaluate import find_loss
    from ..training._memory import update_memory
    from ._network import make_network

    inputs, dtype = dataset.train[0].shape[1], dataset.train[0].dtype.type
    loss = find_loss(None)
    outcomes = {}
    for seed in range(seeds):
        start = make_network(inputs, widths, dataset.classes, seed, skip=skip, dtype=dtype)
        for name, step in steps.items():
            if name not in outcomes:
                size = min(batch_size, len(dataset.train[0]))
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
                batch_size=batch_size,
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
    return list(outcomes.values())


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


def _dynamics_paths(path: Path | None, names: list[Step]) -> list[Path]:
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
        spread = f" ± {one.accuracy_sd:.4f}" if len(one.accuracies) > 1 else ""
        rows.append(
            (
                one.step,
                f"{one.accuracy_mean:.4f}{spread}",
                f"{statistics.fmean(one.seconds):.2f}",
                f"{1e3 * (one.seconds_per_update or math.nan):.3f}",
                "-" if one.memory_mib is None else f"{one.memory_mib:.2f}",
            )
        )
    headings = ("step", "test accuracy", "seconds", "ms/update", "peak memory (MiB)")
    screen.table(headings, rows, title=title, left=("step",))
