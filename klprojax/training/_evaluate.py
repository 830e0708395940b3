"""Mean loss and accuracy of a model on data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._tracing import no_python_values
from ..fitting._means import Means
from ..fitting._network import for_inference, forward, needs_key, rows_of_batch, slow_in_loops
from ..fitting._placement import Placement, place
from ._inputs import check_data, check_model, label_classes, to_arrays
from ._outputs import CrossEntropy


class Evaluation(NamedTuple):
    """What `evaluate` returns: means over rows.

    Attributes:
        loss: in nats.
        metric: None if there is none for these targets.
    """

    loss: float
    metric: float | None


def evaluate(
    model: PyTree,
    data: Any,
    *,
    loss: Callable[[Any, Any], Any] | None = None,
    metric: str | Callable[[Any, Any], Array] | None = "accuracy",
    batch_size: int | None = 256,
    devices: Sequence[Any] | None = None,
) -> Evaluation:
    """Mean loss and metric of a model on data, summed over rows in double precision.

    Layers are in inference mode: dropout passes everything, batch norm uses its running statistics.
    What a network still draws is the same in every call.

    Args:
        model: a callable on one sample, or a pair (network, state).
        data: the pair (x, y), leading axes the rows.
        loss: an output factor `loss(outputs, y) -> [batch]`, nats (default: `CrossEntropy()`).
            Numbers that it returns beside the rows are left out.
        metric: `"accuracy"`, a function `metric(outputs, y) -> [batch]`, or None.
        batch_size: rows at a time; None for all.
        devices: devices to split batches over; all local ones if None.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: data that do not fit the model, are empty or not finite; an unknown metric.
    """
    return Evaluator("data", model, data, find_loss(loss), metric, batch_size, place(devices))(
        model
    )


def find_loss(loss: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any]:
    """The loss given, or the default one.

    Raises:
        ValueError: something that cannot be called with outputs and targets.
    """
    if isinstance(loss, type):
        raise ValueError(f"loss is the class {loss.__name__}; give one of it, {loss.__name__}().")
    if loss is not None and not callable(loss):
        raise ValueError(
            f"loss is {loss!r}; expected an output factor, SquaredError() for example, or a "
            "function of outputs and targets that gives one number per row."
        )
    return CrossEntropy() if loss is None else loss


class Evaluator:
    """Data, checked and on the devices, with what to measure on them."""

    def __init__(
        self,
        name: str,
        model: PyTree,
        data: Any,
        loss: Callable[[Any, Any], Any],
        metric: str | Callable[[Any, Any], Array] | None,
        batch_size: int | None,
        where: Placement,
    ):
        rows = check_data(name, data)
        x, y = to_arrays(data, model)
        key = jax.random.key(0) if needs_key(model, x) else None
        outputs = check_model(name, for_inference(model), x, y, loss, key)
        metric = find_metric(metric, outputs, y)
        self.metric, self.values = metric, eqx.Partial(_row_values, loss, metric, key)
        apart = slow_in_loops(for_inference(model), x, key)
        self.means = Means((x, y), rows, batch_size, where, apart)

    def __call__(self, model: PyTree) -> Evaluation:
        return Evaluation(*self.means(self.values, model))


def _row_values(loss, metric, key, model, x, y) -> tuple[Array, Array | None]:
    model = for_inference(model)
    outputs, _ = forward(model, rows_of_batch(model, x, None, key))
    values = loss(outputs, y)
    values = values[0] if isinstance(values, tuple) else values
    return values, None if metric is None else metric(outputs, y)


def find_metric(
    metric: str | Callable[[Any, Any], Array] | None, outputs: PyTree, y: PyTree
) -> Callable[[Any, Any], Array] | None:
    """The metric by name, if the targets have it.

    Raises:
        ValueError: an unknown name, or a function that does not give one number per row.
    """
    if metric is None:
        return None
    if isinstance(metric, str):
        if metric != "accuracy":
            raise ValueError(
                f"metric is {metric!r}; expected 'accuracy', None, or a function of outputs and "
                "targets that gives one number per row."
            )
        if label_classes(outputs, y) is not None:
            return accuracy
        return None if not hasattr(y, "shape") or not _comparable(outputs, y) else accuracy
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), y)
    with no_python_values("the metric"):
        shape = getattr(eqx.filter_eval_shape(metric, outputs, few), "shape", None)
    if shape != (2,):
        raise ValueError(
            f"The metric must give one number per row; for 2 rows it gave shape {shape}."
        )
    return metric


def metric_name(metric: str | Callable[[Any, Any], Array] | None) -> str | None:
    """How the history calls a metric."""
    if metric is None or isinstance(metric, str):
        return metric
    return getattr(metric, "__name__", type(metric).__name__)


def _comparable(outputs: PyTree, y: Array) -> bool:
    # Outputs of one number per row with integer targets (signs), or one-hot targets.
    if not hasattr(outputs, "ndim"):
        return False
    if jnp.issubdtype(y.dtype, jnp.integer) and y.ndim == 1:
        return outputs.ndim == 1 or outputs.shape[1:] == (1,)
    if y.ndim != 2 or outputs.ndim != 2 or y.shape[1:] != outputs.shape[1:] or y.shape[1] < 2:
        return False
    table = np.asarray(y)
    top = table == table.max()
    return bool((top.sum(axis=1) == 1).all() and (table[~top] == table.min()).all())


def accuracy(outputs: Array, y: Array) -> Array:
    """1 where the largest output is at the label (or at the largest target), else 0.

    With several labels a row, the share of them. With one output a row, the sign decides: targets
    above 0 against outputs above 0.
    """
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        hits = (outputs > 0) == (y.reshape(outputs.shape) > 0)
    else:
        guess = jnp.argmax(outputs, axis=-1)
        label = y if y.ndim < outputs.ndim else jnp.argmax(y, axis=-1)
        hits = guess.astype(label.dtype) == label
    return jnp.mean(hits.reshape(len(outputs), -1).astype(outputs.dtype), axis=1)
