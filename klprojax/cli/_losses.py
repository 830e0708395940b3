"""The loss and the measure of a task."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..fitting import Dataset
from ..training import (
    AbstractOutputFactor,
    CrossEntropy,
    FunctionLoss,
    Margin,
    SigmoidCrossEntropy,
    SquaredError,
)
from ._user_code import load_named

# By name: the factor, and the tasks that it is for.
_LOSSES: dict[str, tuple[Callable[[], AbstractOutputFactor], tuple[str, ...]]] = {
    "cross-entropy": (CrossEntropy, ("classification", "text")),
    "margin": (Margin, ("classification",)),
    "squared-error": (SquaredError, ("regression", "classification")),
    "sigmoid-cross-entropy": (SigmoidCrossEntropy, ("multi-label",)),
}


def make_loss(name: str | None, data: Dataset) -> tuple[Any, Dataset, str]:
    """The loss by its name, the data with targets of its form, and its name.

    Raises:
        ValueError: an unknown name, or a loss that is not for the task.
    """
    if name is not None and ":" in name:
        _, found = load_named("--loss", name, "model:loss")
        factor = isinstance(found, AbstractOutputFactor)
        return found if factor else FunctionLoss(found), data, name
    # The first that is for the task.
    name = name or next(n for n, (_, tasks) in _LOSSES.items() if data.task in tasks)
    if name not in _LOSSES:
        raise ValueError(
            f"--loss is {name!r}; expected one of {', '.join(_LOSSES)}, or MODULE:NAME of a "
            "function of outputs and targets that gives one number per row."
        )
    make, tasks = _LOSSES[name]
    if data.task not in tasks:
        fits = [n for n, (_, others) in _LOSSES.items() if data.task in others]
        raise ValueError(
            f"--loss {name} is not for the task {data.task}; expected {' or '.join(fits)}, or "
            "MODULE:NAME."
        )
    if name == "squared-error" and data.task == "classification":
        eye = np.eye(data.classes, dtype=data.train[0].dtype)
        train, validation, test = ((x, eye[y]) for x, y in data[:3])
        data = data._replace(train=train, validation=validation, test=test)
    return make(), data, name


def label_accuracy(outputs: Array, y: Array) -> Array:
    """Share of the labels of a row that the signs of the outputs tell."""
    return jnp.mean(((outputs > 0) == (y > 0.5)).astype(outputs.dtype), -1)


def make_metric(data: Dataset, y: np.ndarray) -> Any:
    """What is maximised on rows with these targets: a name or a function.

    Accuracy; for several labels the share of them that is right; for numbers the share of their
    variance that is explained (R², the mean over the targets).
    """
    if data.task == "multi-label":
        return label_accuracy
    if data.task != "regression":
        return "accuracy"
    variance = y.astype(np.float64).var(0, keepdims=True)
    if not (variance > 0).all():
        raise ValueError(
            f"A target is the same in all {len(y)} rows of a part, so R² has no meaning there; "
            "give more rows."
        )

    def r2(outputs: Array, y: Array) -> Array:
        return 1 - jnp.mean(jnp.square(outputs - y) / jnp.asarray(variance, outputs.dtype), -1)

    return r2


def metric_of(data: Dataset) -> str:
    """The measure's name."""
    return {"multi-label": "label_accuracy", "regression": "r2"}.get(data.task, "accuracy")
