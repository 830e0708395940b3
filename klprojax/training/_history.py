"""What a training run leaves behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns; unpacks as `model, history = fit(...)`.

    Attributes:
        model: of the best evaluation on validation data; of the last update without validation.
        history: one dict an evaluation. `update` and `epoch` (updates divided by those of an
            epoch); `seconds` spent in updates so far, without compiling and evaluating;
            `train_loss`, the mean over the rows met since the entry before, each before its own
            update; `validation_loss` and `validation_accuracy` (or the metric's name); `stats` of
            the last update; `window_distance`, by window. What was not measured is None.
        last_model: of the last update.
        state: the step's state after the last update.
        updates: number of updates done.
        best_update: the update that `model` is of.
        stopped_early: True if patience ended the run.
        compile_seconds: time from the start to the first update.
    """

    model: PyTree
    history: list[dict[str, Any]]
    last_model: PyTree
    state: PyTree
    updates: int
    best_update: int
    stopped_early: bool
    compile_seconds: float

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.history))


def plain_stats(stats: dict[str, Any]) -> dict[str, Any]:
    """Stats as numbers and lists of numbers, for JSON."""
    return {name: np.asarray(value).tolist() for name, value in jax.device_get(stats).items()}
