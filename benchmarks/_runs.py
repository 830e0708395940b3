"""Runs of one step over settings and seeds, all of them in one compiled program."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import _shared as shared
from klprojax.training import Spectral, batch_order, scan_fit


def rising(peak: Any, updates: int) -> Callable[[Any], Any]:
    """A tenth of the updates up, then down to 0 by a cosine."""
    shape = Spectral.decaying(updates, 1.0).share
    return lambda count: peak * shape(count)


def tuned_runs(
    models: Sequence[Any],
    step_of: Callable[[Any, int], Any],
    settings: Sequence[float],
    data: Any,
    epochs: int,
    batch_size: int,
) -> dict[str, Any]:
    """All seeds and settings of a step; validation chooses the setting.

    Args:
        models: one per seed, alike.
        step_of: the step of a setting and a number of updates.
        settings: to choose from.
        data: a `Dataset`.
        epochs: passes over the rows.
        batch_size: rows per update.
    """
    seeds = len(models)
    x, y = map(jnp.asarray, data.train)
    parts = [eqx.partition(model, eqx.is_array) for model in models]
    static = parts[0][1]
    arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part[0] for part in parts))
    orders = jnp.stack([batch_order(len(y), batch_size, epochs, seed) for seed in range(seeds)])

    def accuracy(model: Any, rows: Any) -> Any:
        # Rows in parts: a map over seeds and settings holds every activation.
        whole = len(rows[1]) // 64 * 64
        inputs = jnp.asarray(rows[0])
        scores = lax.map(jax.vmap(model), inputs[:whole].reshape(-1, 64, inputs.shape[1]))
        scores = jnp.concatenate([scores.reshape(whole, -1), jax.vmap(model)(inputs[whole:])])
        return jnp.mean(jnp.argmax(scores, -1) == jnp.asarray(rows[1]))

    def one(arrays: Any, order: Any, setting: Any) -> Any:
        step = step_of(setting, order.shape[0])
        model, losses = scan_fit(eqx.combine(arrays, static), step, (x, y), order)
        last = jnp.mean(losses[-(order.shape[0] // epochs) :])
        return accuracy(model, data.validation), accuracy(model, data.test), last

    mapped = jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))
    compiled = jax.jit(mapped).lower(arrays, orders, jnp.asarray(settings)).compile()
    start = shared.now()
    validation, test, last = map(
        np.asarray, jax.block_until_ready(compiled(arrays, orders, jnp.asarray(settings)))
    )
    best = int(np.argmax(validation.mean(1)))
    return {
        "settings": list(settings),
        "chosen": settings[best],
        "validation": validation.tolist(),
        "test": test.tolist(),
        "accuracies": test[best].tolist(),
        "accuracy": float(test[best].mean()),
        "accuracy_sd": statistics.stdev(test[best].tolist()) if seeds > 1 else 0.0,
        "last_loss": last[best].tolist(),
        "seconds_all": shared.now() - start,
    }
