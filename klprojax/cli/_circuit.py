"""``klprojax circuit``: learn circuits from data, ask circuits of any origin."""

import json
import time
import zipfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._options import JsonOption, Precision, PrecisionOption, Reading, grouped
from ._screen import Screen, check_outputs, write_json, write_then_show
from ._wrong_files import check_kind

# Most bytes of a saved circuit's header that are looked at to tell its format.
_MOST_HEADER_BYTES = 2**28

circuit_app = typer.Typer(help="Learn circuits and query them.", no_args_is_help=True)


class CircuitKind(StrEnum):
    """Structures by name."""

    hclt = "hclt"
    hmm = "hmm"
    factorised = "factorised"
    rat = "rat"
    poon_domingos = "poon-domingos"
    quad_tree = "quad-tree"


class LearningStep(StrEnum):
    """Learning steps by name."""

    em = "em"
    adam = "adam"


# Which structures the options on shapes belong to.
_SHAPES = {
    "depth": (CircuitKind.rat,),
    "repetitions": (CircuitKind.rat,),
    "height": (CircuitKind.poon_domingos, CircuitKind.quad_tree),
    "width": (CircuitKind.poon_domingos, CircuitKind.quad_tree),
    "delta": (CircuitKind.poon_domingos,),
}


@dataclass(frozen=True)
class CircuitShape:
    """Which circuit is learned."""

    structure: Annotated[CircuitKind, typer.Option(help="Kind of circuit.")] = CircuitKind.hclt
    units: Annotated[int, typer.Option(min=1, help="States of a latent variable.")] = 16
    components: Annotated[int, typer.Option(min=1, help="Trees of an hclt mixture.")] = 4
    depth: Annotated[
        int | None, typer.Option(min=0, help="Random halvings of the variables. [rat: 2]")
    ] = None
    repetitions: Annotated[int | None, typer.Option(min=1, help="Random trees. [rat: 4]")] = None
    height: Annotated[
        int | None, typer.Option(min=1, help="Rows of pixels; for poon-domingos and quad-tree.")
    ] = None
    width: Annotated[
        int | None, typer.Option(min=1, help="Pixels of a row; for poon-domingos and quad-tree.")
    ] = None
    delta: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Pixels between lines to split along; repeat from coarse to fine. "
            "[poon-domingos: 4]",
        ),
    ] = None

    def make(self, train: np.ndarray, cards: tuple[int, ...], seed: int) -> Any:
        """The circuit for such rows."""
        from ..circuits import tensor

        kind, units = self.structure, self.units
        given = {name: getattr(self, name) for name in _SHAPES if getattr(self, name) is not None}
        for name in given:
            if kind not in _SHAPES[name]:
                owners = " and ".join(owner.value for owner in _SHAPES[name])
                raise ValueError(f"--{name} belongs to --structure {owners}.")
        if kind is CircuitKind.hclt:
            count = self.components
            return tensor.hclt(train, units, components=count, cardinalities=cards, seed=seed)
        if kind is CircuitKind.hmm:
            return tensor.hidden_markov(len(cards), units, cardinality=max(cards))
        if kind is CircuitKind.factorised:
            return tensor.factorised_mixture(cards, units)
        if kind is CircuitKind.rat:
            return tensor.rat_spn(cards, units, seed=seed, **given)
        if "height" not in given or "width" not in given:
            raise ValueError(f"--structure {kind.value} needs --height and --width.")
        pixels = given["height"] * given["width"]
        if pixels != len(cards):
            raise ValueError(
                f"--height {given['height']} and --width {given['width']} make {pixels} pixels, "
                f"but the data has {len(cards)} variables."
            )
        if kind is CircuitKind.quad_tree:
            return tensor.quad_tree(units=units, cardinality=max(cards), **given)
        if "delta" in given:
            given["delta"] = tuple(given["delta"])
        return tensor.poon_domingos(units=units, cardinality=max(cards), **given)


@dataclass(frozen=True)
class Learning:
    """How it is learned."""

    step: Annotated[LearningStep, typer.Option(help="How to learn.")] = LearningStep.em
    epochs: Annotated[int, typer.Option(min=0, help="Most epochs in batches.")] = 30
    full_epochs: Annotated[
        int | None, typer.Option(min=0, help="Most epochs of full-batch EM after them. [em: 5]")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Rows an update.")] = 1024
    patience: Annotated[
        int, typer.Option(min=1, help="Epochs without a better validation score before stopping.")
    ] = 10
    pseudocount: Annotated[
        float | None, typer.Option(min=0.0, help="Imaginary rows a distribution. [em: 0.1]")
    ] = None
    softening: Annotated[float, typer.Option(min=0.0, max=0.4, help="Data softening.")] = 0.0
    spread: Annotated[
        float, typer.Option(min=0.0, help="Standard deviation of the first log-weights.")
    ] = 2.0
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0

    def make_step(self) -> Any:
        """The step."""
        from ..circuits.learning import AdamStep, EMStep

        if self.step is LearningStep.em:
            pseudocount = 0.1 if self.pseudocount is None else self.pseudocount
            return EMStep(pseudocount=pseudocount, softening=self.softening)
        if self.full_epochs or self.pseudocount is not None:
            raise ValueError("--full-epochs and --pseudocount belong to --step em.")
        return AdamStep(softening=self.softening)


@circuit_app.callback()
def _group() -> None:
    """Learn circuits and query them."""


@circuit_app.command("fit")
@grouped
def fit_command(
    data: Annotated[
        Path,
        typer.Argument(
            help="An .npz file with arrays train, valid and test of states [rows, variables] "
            "(-1: missing); only train is required. With n_vars the rows are packed bits."
        ),
    ],
    shape: CircuitShape,
    learning: Learning,
    save: Annotated[Path | None, typer.Option(help="Write the circuit here (.npz).")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint; a run that finds one goes on from it.")
    ] = None,
    json_out: JsonOption = None,
    precision: PrecisionOption = Precision.single,
) -> None:
    """Learn a circuit from DATA and report its mean log-likelihoods (nats per row).

    Exit status: 0; 2 for bad input.
    """
    screen = Screen()
    precision.use()
    from ..circuits.learning import fit
    from ..circuits.tensor import save_tensor_circuit
    from ..fitting._data import read_states

    began = time.perf_counter()
    with screen.bad_input_exits():
        check_outputs(save, checkpoint, json_out)
        step = learning.make_step()
        parts = read_states(data)
        circuit = shape.make(parts["train"], _cardinalities(parts), learning.seed)
        screen.note(circuit)
        usual = 5 if learning.step is LearningStep.em else 0
        result = fit(
            circuit,
            parts["train"],
            parts.get("valid"),
            step=step,
            epochs=learning.epochs,
            full_epochs=usual if learning.full_epochs is None else learning.full_epochs,
            batch_size=learning.batch_size,
            seed=learning.seed,
            patience=learning.patience,
            parameters=circuit.init(learning.seed, rows=parts["train"], scale=learning.spread),
            checkpoint=checkpoint,
            progress=True,
        )
        scores = {
            f"{name}_log_likelihood": float(
                np.asarray(
                    circuit.log_likelihood(result.parameters, rows, batch_size=learning.batch_size)
                ).mean(dtype=np.float64)
            )
            for name, rows in parts.items()
        }
        content = {
            "data": data.name,
            "structure": shape.structure.value,
            "units": shape.units,
            "components": circuit.components,
            "parameters": circuit.num_parameters,
            "step": learning.step.value,
            "seed": learning.seed,
            "test_log_likelihood": None,
            "valid_log_likelihood": None,
            **scores,
            "seconds": time.perf_counter() - began,
            "epochs": result.epochs,
            "best_epoch": result.best_epoch,
            "history": result.history,
        }

        def write() -> None:
            if save is not None:
                save_tensor_circuit(save, circuit, result.parameters)
            write_json(json_out, content)

        def show() -> None:
            screen.table(
                ("rows", "mean log-likelihood (nats)"),
                [(name, f"{scores[f'{name}_log_likelihood']:.4f}") for name in parts],
                title=f"{data.name}: {shape.structure.value}, {learning.step.value}",
                left=("rows",),
            )
            screen.show(
                f"{result.epochs} epochs, the best was {result.best_epoch}; "
                f"{content['seconds']:.1f} s."
            )

        write_then_show(write, show)


@dataclass(frozen=True)
class Opening:
    """How a circuit is opened."""

    vtree: Annotated[Path | None, typer.Option(help="The vtree of a .psdd or .sdd.")] = None
    cnf: Annotated[
        Path | None,
        typer.Option(help="The formula of an .nnf: how many variables, and literal weights."),
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows evaluated together. [as many as 1 GB holds]")
    ] = None
    max_edges: Annotated[
        int, typer.Option(min=1, help="Largest circuit that a model is compiled to.")
    ] = 10_000_000


@circuit_app.command("query")
@grouped
def query_command(
    file: Annotated[
        str,
        typer.Argument(
            help="A saved circuit (.npz), .psdd, .sdd (with --vtree), .nnf (--cnf for weights), "
            ".spn.txt, or a model to compile (.uai, .bif, .fg, .cnf, or a shipped network: asia); "
            "all but .npz also as .gz."
        ),
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="An .npz file with an array test of states [rows, variables]."),
    ] = None,
    opening: Opening,
    reading: Reading,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the circuit here, too: .npz, .psdd (and its .vtree), .spn.txt or .nnf."
        ),
    ] = None,
    json_out: JsonOption = None,
    precision: PrecisionOption = Precision.double,
) -> None:
    """Report the log-partition of the circuit in FILE and the mean log-likelihood of test rows.

    In the JSON, test_log_likelihood is null without --data, and where a row is impossible
    (impossible_rows counts them). Exit status: 0; 2 for bad input.
    """
    screen = Screen()
    precision.use()
    from ..fitting._data import read_states

    began = time.perf_counter()
    with screen.bad_input_exits():
        check_kind(file, "circuit query")
        check_kind(opening.vtree, "circuit query --vtree")
        check_kind(opening.cnf, "circuit query --cnf")
        check_outputs(save, json_out)
        check_kind(save, "circuit query --save")
        rows = None
        if data is not None:
            rows = read_states(data, ("test",))["test"]
            if not len(rows):
                raise ValueError(f"{data} has no rows in test.")
        with screen.working(f"reading {Path(file).name}"):
            kind, counts, notes, log_partition, score, model = _open(file, opening, reading)
        if save is not None and model is None:
            raise ValueError("--save writes circuits that are explicit graphs, no tensor circuits.")
        for note in notes:
            screen.note(f"note: {note}")
        content: dict[str, Any] = {
            "file": Path(file).name,
            "kind": kind,
            **counts,
            "log_partition": float(log_partition()),
            "test_log_likelihood": None,
            "test_rows": None,
            "impossible_rows": None,
        }
        if rows is not None:
            with screen.working(f"{len(rows)} rows"):
                found = np.asarray(score(rows), np.float64)
            content["test_rows"] = len(found)
            content["impossible_rows"] = int(np.isneginf(found).sum())
            mean = float(found.mean())
            content["test_log_likelihood"] = mean if np.isfinite(mean) else None
        content["seconds"] = time.perf_counter() - began
        shown: list[tuple[str, object]] = [
            *counts.items(),
            ("log-partition (nats)", f"{content['log_partition']:.10g}"),
        ]
        if rows is not None:
            shown += [
                ("test rows", content["test_rows"]),
                ("mean log-likelihood (nats)", f"{mean:.6f}"),
            ]
            if content["impossible_rows"]:
                shown.append(("impossible rows", content["impossible_rows"]))
        shown.append(("seconds", f"{content['seconds']:.2f}"))
        title = f"{content['file']}: {kind}"

        def write() -> None:
            _save(save, model)
            write_json(json_out, content)

        write_then_show(
            write,
            lambda: screen.table(("", " "), shown, title=title, left=("",), heads=False),
        )


def _save(path: Path | None, model: Any) -> None:
    """Write a circuit in the format that the name asks for."""
    from .. import circuits
    from ..graphs._files._text import format_suffix, stem

    if path is None:
        return
    suffix = format_suffix(path)
    if suffix == ".npz":
        circuits.save_circuit(path, model)
    elif suffix == ".psdd":
        circuits.write_psdd(path, model, path.with_name(f"{stem(path)}.vtree"))
    elif suffix == ".nnf":
        circuits.write_nnf(path, model)
    else:
        circuits.write_spn(path, model)


def _open(file: str, opening: Opening, reading: Reading) -> tuple[Any, ...]:
    """A circuit of any kind: what it is, its sizes, notes, functions for both numbers, itself."""
    import jax
    import jax.numpy as jnp

    from .. import circuits, load_model
    from ..graphs._files._text import format_suffix

    dtype = jnp.zeros(0).dtype
    vtree, batch_size = opening.vtree, opening.batch_size
    suffix = format_suffix(file)
    if vtree is not None and suffix not in (".psdd", ".sdd"):
        raise ValueError("--vtree belongs to a .psdd or .sdd file.")
    if opening.cnf is not None and suffix != ".nnf":
        raise ValueError("--cnf belongs to an .nnf file.")
    if reading != Reading() and suffix in (".npz", ".psdd", ".sdd", ".nnf", ".txt", ".spn"):
        raise ValueError("--repair and --encoding belong to a model, a .bif file for example.")
    notes: tuple[str, ...] = ()
    if suffix == ".npz" and _saved_format(file) == "klprojax-tensor-circuit":
        tensor, numbers = circuits.load_tensor_circuit(file)
        numbers = jax.tree.map(lambda table: table.astype(dtype), numbers)
        sizes = {
            "variables": tensor.num_variables,
            "units": tensor.units,
            "components": tensor.components,
            "depth": tensor.depth,
            "parameters": tensor.num_parameters,
        }
        batch = batch_size or 1024
        return (
            "tensor circuit",
            sizes,
            notes,
            lambda: tensor.log_partition(numbers),
            lambda rows: tensor.log_likelihood(numbers, rows, batch_size=batch),
            None,
        )
    if suffix == ".npz":
        kind, model = "circuit", circuits.load_circuit(file, dtype=dtype)
    elif suffix == ".psdd":
        kind, model = "PSDD", circuits.read_psdd(file, vtree)
    elif suffix == ".sdd":
        if vtree is None:
            raise ValueError(f"{file} is an SDD; give its vtree with --vtree.")
        kind, model = "SDD", circuits.read_sdd(file, vtree)
    elif suffix == ".nnf":
        kind, model = "NNF", circuits.read_nnf(file, cnf=opening.cnf)
    elif suffix in (".txt", ".spn"):
        kind, model = "SPN", circuits.read_spn(file)
    else:
        loaded = load_model(file, repair=reading.repair, encoding=reading.encoding)
        kind, notes = "compiled model", loaded.notes
        model = circuits.compile_model(loaded, max_edges=opening.max_edges, dtype=dtype)
    circuit, log_weights, leaves = model
    batch = batch_size or max(1, min(1024, 2**30 // (4 * dtype.itemsize * circuit.num_nodes)))
    sizes = {
        "variables": circuit.num_variables,
        "nodes": circuit.num_nodes,
        "edges": circuit.num_edges,
        "depth": circuit.depth,
        "parameters": circuit.num_weights + sum(leaf.size for leaf in leaves),
    }
    return (
        kind,
        sizes,
        notes,
        lambda: circuits.log_partition(circuit, log_weights, leaf_parameters=leaves),
        lambda rows: circuits.log_likelihood(
            circuit, log_weights, rows, leaf_parameters=leaves, batch_size=batch
        ),
        model,
    )


def _saved_format(file: str) -> str:
    """The format that a saved circuit's header names; empty if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("header.json") as stream:
            header = json.loads(stream.read(_MOST_HEADER_BYTES))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError):
        return ""  # the reader says what is wrong
    return str(header.get("format")) if isinstance(header, dict) else ""


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
