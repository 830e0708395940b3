"""``klprojax circuit``: learn circuits from data."""

import json
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ._infer import BAD_INPUT, Precision

circuit_app = typer.Typer(help="Learn circuits from data.", no_args_is_help=True)


class Structure(StrEnum):
    """Structures by name."""

    hclt = "hclt"
    hmm = "hmm"
    factorised = "factorised"


class Step(StrEnum):
    """Learning steps by name."""

    em = "em"
    adam = "adam"


@circuit_app.callback()
def _group() -> None:
    """Learn circuits from data."""


@circuit_app.command("fit")
def fit_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="An .npz file with arrays train, valid and test of states [rows, variables] "
            "(-1: missing); only train is required. With n_vars the rows are packed bits."
        ),
    ],
    structure: Annotated[Structure, typer.Option(help="Kind of circuit.")] = Structure.hclt,
    units: Annotated[int, typer.Option(min=1, help="States of a latent variable.")] = 32,
    components: Annotated[int, typer.Option(min=1, help="Trees of an hclt mixture.")] = 4,
    step: Annotated[Step, typer.Option(help="How to learn.")] = Step.em,
    epochs: Annotated[int, typer.Option(min=0, help="Most epochs in batches.")] = 60,
    full_epochs: Annotated[
        int | None, typer.Option(min=0, help="Most epochs of full-batch EM after them. [em: 10]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows an update.")] = 1024,
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better validation score before stopping.")
    ] = 15,
    pseudocount: Annotated[
        float | None, typer.Option(min=0.0, help="Imaginary rows a distribution. [em: 0.1]")
    ] = None,
    softening: Annotated[float, typer.Option(min=0.0, max=0.4, help="Data softening.")] = 0.002,
    spread: Annotated[
        float, typer.Option(min=0.0, help="Standard deviation of the first log-weights.")
    ] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the circuit here (.npz).")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint; a run that finds one goes on from it.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    precision: Annotated[Precision, typer.Option(help="Floating-point bits.")] = Precision.single,
) -> None:
    """Learn a circuit from DATA and report its mean log-likelihoods (nats a row).

    Exit status: 0; 2 for bad input.
    """
    console, errors = Console(), Console(stderr=True)
    import jax

    jax.config.update("jax_enable_x64", precision is Precision.double)
    from ..circuits.learning import AdamStep, EMStep, fit
    from ..circuits.tensor import save_tensor_circuit

    began = time.perf_counter()
    try:
        if step is Step.adam and (full_epochs or pseudocount is not None):
            raise ValueError("--full-epochs and --pseudocount belong to --step em.")
        parts = _read(data)
        cards = _cardinalities(parts)
        circuit = _make(structure, parts["train"], cards, units, components, seed)
        if step is Step.em:
            how: Any = EMStep(
                pseudocount=0.1 if pseudocount is None else pseudocount, softening=softening
            )
        else:
            how = AdamStep(softening=softening)
        errors.print(f"[dim]{circuit}[/dim]", highlight=False)
        start = circuit.init(seed, rows=parts["train"], scale=spread)
        result = fit(
            circuit,
            parts["train"],
            parts.get("valid"),
            step=how,
            epochs=epochs,
            full_epochs=(10 if full_epochs is None else full_epochs) if step is Step.em else 0,
            batch_size=batch_size,
            seed=seed,
            patience=patience,
            parameters=start,
            checkpoint=checkpoint,
            progress=True,
        )
        scores = {
            f"{name}_log_likelihood": float(
                np.asarray(
                    circuit.log_likelihood(result.parameters, rows, batch_size=batch_size)
                ).mean(dtype=np.float64)
            )
            for name, rows in parts.items()
        }
        content = {
            "data": data.name,
            "structure": structure.value,
            "units": units,
            "components": circuit.components,
            "parameters": circuit.num_parameters,
            "step": step.value,
            "seed": seed,
            "test_log_likelihood": None,
            "valid_log_likelihood": None,
            **scores,
            "seconds": time.perf_counter() - began,
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "history": result.history,
        }
        if save is not None:
            save_tensor_circuit(save, circuit, result.parameters)
        if json_out is not None:
            _write_json(json_out, content)
    except (ValueError, OSError) as error:
        errors.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True, markup=True)
        raise typer.Exit(BAD_INPUT) from None
    table = Table(title=f"{data.name}: {structure.value}, {step.value}")
    for heading in ("rows", "mean log-likelihood (nats)"):
        table.add_column(heading, justify="right")
    for name in parts:
        table.add_row(name, f"{scores[f'{name}_log_likelihood']:.4f}")
    console.print(table)
    console.print(
        f"{result.epochs} epochs, the best was {result.best_epoch}; {content['seconds']:.1f} s.",
        highlight=False,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays train, valid and test; bits unpacked."""
    import zipfile

    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError(f"{path} is one array; expected an .npz file with an array train.")
            wanted = ("train", "valid", "test", "n_vars")
            content = {key: file[key] for key in wanted if key in file}
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{path} is no readable .npz file: {error}") from None
    count = content.pop("n_vars", None)
    if "train" not in content:
        raise ValueError(f"{path} has no array train of states [rows, variables].")
    for key, rows in content.items():
        if rows.ndim != 2 or rows.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: {key} is {rows.dtype} of shape {rows.shape}; expected states "
                "[rows, variables]."
            )
        if count is not None:
            if rows.dtype != np.uint8 or count.shape != () or count > 8 * rows.shape[1]:
                raise ValueError(
                    f"{path}: with n_vars, {key} must be rows of that many packed bits."
                )
            content[key] = np.unpackbits(rows, axis=1, count=int(count))
        elif rows.dtype.kind == "b":
            content[key] = rows.astype(np.int8)
    return {key: content[key] for key in ("train", "valid", "test") if key in content}


def _cardinalities(parts: dict[str, np.ndarray]) -> tuple[int, ...]:
    """States of each variable: the largest seen in any part plus one, at least two."""
    widths = {rows.shape[1] for rows in parts.values()}
    if len(widths) > 1:
        raise ValueError(f"train, valid and test have different numbers of variables: {widths}.")
    tops = []
    for rows in parts.values():
        if len(rows):
            known = np.nan_to_num(rows, nan=-1) if rows.dtype.kind == "f" else rows
            tops.append(known.max(axis=0))
    if not tops or not np.isfinite(tops).all():
        raise ValueError("The data has no rows, or infinite entries.")
    return tuple(max(2, int(top) + 1) for top in np.max(tops, axis=0))


def _make(structure, train, cards, units, components, seed) -> Any:
    from ..circuits import tensor

    if structure is Structure.hclt:
        return tensor.hclt(train, units, components=components, cardinalities=cards, seed=seed)
    if structure is Structure.hmm:
        return tensor.hidden_markov(len(cards), units, cardinality=max(cards))
    return tensor.factorised_mixture(cards, units)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
