"""``klprojax train``: compare training steps on equal terms."""

from dataclasses import dataclass
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
    momentum = "momentum"
    projection = "projection"
    projection_adam = "projection-adam"


class TargetKind(StrEnum):
    """What targets are."""

    classification = "classification"
    multi_label = "multi-label"
    regression = "regression"


@dataclass(frozen=True)
class Source:
    """What is learned from."""

    data: Annotated[
        str,
        typer.Option(
            help="digits, a file (.npz, .csv, .tsv, .txt, .zip) or a folder of images by class."
        ),
    ] = "digits"
    target: Annotated[
        list[str] | None,
        typer.Option(help="Column of a table to predict; may be repeated. [the last one]"),
    ] = None
    task: Annotated[TargetKind | None, typer.Option(help="What targets are. [inferred]")] = None
    drop: Annotated[
        list[str] | None, typer.Option(help="Column of a table to leave out; may be repeated.")
    ] = None
    weights: Annotated[
        str | None, typer.Option(help="Column of a table with the weights of training rows.")
    ] = None
    window: Annotated[int | None, typer.Option(min=1, help="Characters per row. [64]")] = None
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Make images squares of that many pixels.")
    ] = None

    def read(self, dtype: Any) -> Any:
        """The data set."""
        from ..training import load_dataset

        return load_dataset(
            self.data,
            dtype=dtype,
            target=self.target,
            task=None if self.task is None else self.task.value,
            drop=self.drop or (),
            window=self.window,
            image_size=self.image_size,
            weights=self.weights,
        )


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    network: Annotated[
        str,
        typer.Option(
            help="mlp, cnn, resnet, gru, transformer, or MODULE:NAME of a function of shape, "
            "outputs and key."
        ),
    ] = "mlp"
    hidden: Annotated[
        str | None,
        typer.Option(
            help="Widths of the hidden layers, stages or blocks. [mlp: 128,128, cnn and resnet: "
            "16,32, gru: 128, transformer: 64,64]"
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross-entropy, margin, squared-error, sigmoid-cross-entropy, or MODULE:NAME of a "
            "function of outputs and targets. [by the task]"
        ),
    ] = None
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
    tune: Annotated[
        int | None,
        typer.Option(min=1, help="Choose each step's setting by that many trials on validation."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per update.")] = 64
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="Of optimisers. [adam: 1e-3, sgd: 0.1, momentum: 0.01]"),
    ] = None
    skip: Annotated[bool, typer.Option("--skip", help="Add layers to their inputs.")] = False

    def names(self) -> list[TrainingStep]:
        """The steps to compare."""
        names = list(dict.fromkeys(self.step or [TrainingStep.adam, TrainingStep.projection]))
        projections = {TrainingStep.projection, TrainingStep.projection_adam}
        given = self.scheme is not None or self.iterations is not None
        others = not projections & set(names) or TrainingStep.projection_adam in names
        if given and others:
            raise ValueError("--scheme and --iterations belong to --step projection.")
        if self.tune is not None and given and self.setting(TrainingStep.projection) is None:
            raise ValueError("--tune has no setting for --scheme and --iterations as given.")
        if set(names) == {TrainingStep.projection} and self.learning_rate is not None:
            raise ValueError("--learning-rate belongs to a step with an optimiser.")
        return names

    def setting(self, name: TrainingStep, positions: int = 1) -> Any:
        """What ``--tune`` draws for a step, with its default; None where there is nothing.

        Args:
            name: of the step.
            positions: predictions per row, over which losses are summed.
        """
        from ._steps import RATES, SHARE, Setting

        if name is not TrainingStep.projection:
            # Plain gradients grow with the loss; Adam's steps do not.
            parts = positions if name in (TrainingStep.sgd, TrainingStep.momentum) else 1
            rate = RATES[name.value] / parts if self.learning_rate is None else self.learning_rate
            return Setting("learning rate", rate)
        one_sweep = self.scheme in (None, "cyclic") and self.iterations in (None, 1)
        return Setting("share", SHARE) if one_sweep else None

    def make_step(self, name: TrainingStep, updates: int, setting: Any = None) -> Any:
        """Make a step by its name, for so many updates; `setting` is its own if None."""
        import jax.numpy as jnp

        from .. import training
        from ._steps import Rising, make_scheme, rated

        setting = setting or self.setting(name)
        if name is TrainingStep.projection and setting is not None:
            # One sweep per batch, its moves shorter and shorter: what trains best.
            share = Rising(jnp.asarray(setting.value), updates)
            return training.ProjectionStep(move=training.Spectral(share=share))
        if name is TrainingStep.projection:
            return training.ProjectionStep(
                scheme=make_scheme(self.scheme or "cyclic"),
                iterations=50 if self.iterations is None else self.iterations,
                precisions=training.Precisions(output=0.2),
                consensus="average",
                move=training.Relaxed(),
            )
        assert setting is not None
        optimiser = rated(name.value, setting.value)
        if name is TrainingStep.projection_adam:
            return training.ProjectionDirection(optimiser)
        return training.GradientStep(optimiser)


@grouped
def train_command(
    *,
    source: Source,
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

    The measure is accuracy; of several labels the share that is right, of numbers R². On test rows
    it is that of the epoch with the highest one on validation rows. With --tune each step has the
    same number of trials, the default first, of seed 0; the best on validation rows is run with all
    seeds. Seconds are those of updates, without compiling and evaluating; memory is what the
    compiler plans for one update.

    Exit status: 0; 2 for bad input.
    """
    screen = Screen()
    precision.use()
    from ._comparison import Comparison, draw, show

    with screen.bad_input_exits():
        widths = None if training.hidden is None else _widths(training.hidden)
        for path in (plot, dynamics):
            if path is not None:
                _check_picture(path)
        names = training.names()
        pictures = _dynamics_paths(dynamics, names)
        check_outputs(json_out, plot, *pictures)
        dtype = np.float64 if precision is Precision.double else np.float32
        data = source.read(dtype)
        for note in data.notes:
            screen.note(note)
        epochs = training.epochs or (DIGITS_EPOCHS if source.data == "digits" else FILE_EPOCHS)
        comparison = Comparison(
            screen, training, data, widths, dtype, epochs, checkpoint,
            WINDOWS if dynamics is not None else (),
        )  # fmt: skip
        if checkpoint is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            check_outputs(comparison.file(names[0].value, 0, None))
        outcomes = comparison.run(names)

        def write() -> None:
            write_json(json_out, comparison.to_json(source.data, outcomes))
            draw(plot, pictures, outcomes, write_figure)

        title = f"{Path(source.data).name}: {comparison.rows()}; {training.seeds} seed(s)"
        write_then_show(write, lambda: show(screen, outcomes, title))


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
