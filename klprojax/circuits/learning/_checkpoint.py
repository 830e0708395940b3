"""Checkpoints of a training run."""

import dataclasses
import hashlib
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...graphs._files._archive import read_arrays, write_arrays
from ...graphs._files._errors import ModelFileError
from ...graphs._files._text import MAX_BYTES
from ..tensor import TensorCircuit, TensorParameters
from ..tensor._saved import describe

_FORMAT = "klprojax-circuit-run"
# How long a run is: another run only where they decide the step sizes of epochs already done.
_LENGTHS = ("epochs", "full_epochs", "patience")


class Run(NamedTuple):
    """What a run is: everything that decides its result."""

    circuit: TensorCircuit
    step: Any
    epochs: int
    full_epochs: int
    batch_size: int
    seed: int
    patience: int | None
    start: TensorParameters
    train: np.ndarray
    valid: np.ndarray | None

    def identity(self) -> dict[str, Any]:
        """The same as JSON, arrays by their hashes."""
        return {
            "circuit": describe(self.circuit),
            "step": [type(self.step).__name__, dataclasses.asdict(self.step)],
            "epochs": self.epochs,
            "full_epochs": self.full_epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "patience": self.patience,
            "start": _digest(*jax.tree.leaves(self.start)),
            "train": _digest(self.train),
            "valid": None if self.valid is None else _digest(self.valid),
        }


class Progress(NamedTuple):
    """How far a run is."""

    state: Any
    best: TensorParameters
    best_value: float
    best_epoch: int
    epoch: int
    waited: int
    history: list[dict[str, Any]]


def _digest(*arrays: Any) -> str:
    out = hashlib.sha256()
    for array in map(np.asarray, arrays):
        out.update(f"{array.dtype}{array.shape}".encode())
        out.update(array.tobytes())
    return out.hexdigest()


def save_checkpoint(path: str | os.PathLike[str], run: Run, at: Progress) -> None:
    """Write a checkpoint: to a temporary file, synced, then renamed."""
    header = {
        "run": run.identity(),
        # JSON keeps every digit of a double; an infinity is spelled null.
        "best_value": at.best_value if np.isfinite(at.best_value) else None,
        "best_epoch": at.best_epoch,
        "epoch": at.epoch,
        "waited": at.waited,
        "history": at.history,
    }
    arrays = {
        **{f"state_{n}": np.asarray(x) for n, x in enumerate(jax.tree.leaves(at.state))},
        **{f"best_{n}": np.asarray(x) for n, x in enumerate(jax.tree.leaves(at.best))},
    }
    write_arrays(path, _FORMAT, header, arrays)


def load_checkpoint(path: str | os.PathLike[str], run: Run) -> Progress:
    """Read a checkpoint of this run.

    Raises:
        ModelFileError: a damaged file.
        ValueError: a checkpoint of a run with other data or settings.
    """
    name = os.fspath(path)
    header, arrays = read_arrays(path, _FORMAT, MAX_BYTES)
    found, wanted = header.get("run"), json.loads(json.dumps(run.identity()))
    if not isinstance(found, dict):
        found = {}
    keys = [k for k in wanted if k not in _LENGTHS and found.get(k) != wanted[k]]
    if keys:
        raise ValueError(
            f"The checkpoint {name} is of another run; it differs in {', '.join(keys)}. Give the "
            "same data and settings, or another file."
        )

    def filled(like: Any, prefix: str) -> Any:
        leaves, tree = jax.tree.flatten(like)
        out = []
        for n, leaf in enumerate(leaves):
            array = arrays.get(f"{prefix}_{n}")
            if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ModelFileError(name, None, f"an array {prefix}_{n} of this run", "another")
            out.append(jnp.asarray(array))
        return jax.tree.unflatten(tree, out)

    try:
        value, epochs = header["best_value"], int(found["epochs"])
        at = Progress(
            filled(run.step.init(run.start), "state"),
            filled(run.start, "best"),
            -np.inf if value is None else float(value),
            int(header["best_epoch"]),
            int(header["epoch"]),
            int(header["waited"]),
            list(header["history"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(name, None, "the numbers of a run", f"no {error}") from None
    _check_lengths(name, run, at, epochs)
    return at


def _check_lengths(name: str, run: Run, at: Progress, epochs: int) -> None:
    """Refuse another number of epochs where the epochs done would not have been the same."""
    done = at.epoch
    if run.epochs != epochs:
        sizes = [(run.step.size(k, epochs), run.step.size(k, run.epochs)) for k in range(done)]
        if done > min(epochs, run.epochs) or any(old != new for old, new in sizes):
            raise ValueError(
                f"The checkpoint {name} is of a run with epochs={epochs}, of which {done} are done;"
                f" with epochs={run.epochs} they would have had other step sizes, which fall over "
                f"all epochs. Give epochs={epochs} or another file; a step whose first and final "
                "size are equal can go on for longer."
            )
    if done > run.epochs + run.full_epochs:
        raise ValueError(
            f"The checkpoint {name} has {done - run.epochs} epochs of full-batch EM done, more "
            f"than the {run.full_epochs} asked for; raise full_epochs, or give another file."
        )
