"""Checks of what `fit` and `evaluate` are given; each error names the place."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._tracing import LiftError, no_python_values
from ..fitting._network import forward, has_state, rows_of_batch
from ..fitting._updates import float_dtype, weight_dtype
from ._outputs import AbstractOutputFactor


def check_data(name: str, data: Any) -> int:
    """Return the number of rows of a pair (x, y).

    Raises:
        ValueError: not a pair, no rows, arrays of different lengths, or numbers that are not
            finite.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{name} must be a pair (x, y); got {_kind(data)}.")
    first: tuple[str, int] | None = None
    for part, tree in zip("xy", data, strict=True):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if not leaves:
            raise ValueError(f"{name} {part} has no arrays.")
        for path, leaf in leaves:
            place = f"{name} {part}{jax.tree_util.keystr(path)}"
            array = np.asarray(leaf)
            if array.ndim == 0 or (array.dtype.kind in "OSUV" and not _is_small_float(array)):
                raise ValueError(f"{place} must be an array of numbers with rows; got {leaf!r}.")
            if not len(array):
                raise ValueError(f"{place} has no rows.")
            if first is None:
                first = place, len(array)
            elif len(array) != first[1]:
                raise ValueError(
                    f"{first[0]} has {first[1]} rows, but {place} has {len(array)}; they must be "
                    "as many."
                )
            if jnp.issubdtype(array.dtype, jnp.inexact):
                good = np.isfinite(array).reshape(len(array), -1).all(1)
                if not good.all():
                    row = int(np.argmin(good))
                    bad = array[row][~np.isfinite(array[row])].reshape(-1)[0]
                    raise ValueError(f"{place} holds {bad} in row {row}; remove or fill such rows.")
    assert first is not None
    return first[1]


def check_weights(weights: Any, rows: int) -> np.ndarray:
    """Weights of training rows, in double precision.

    Raises:
        ValueError: not one number of at least 0 per row, or none above 0.
    """
    array = np.asarray(weights)
    if array.shape != (rows,) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"weights is {array.dtype} of shape {array.shape}; expected one number for each of the "
            f"{rows} training rows."
        )
    array = array.astype(np.float64)
    good = np.isfinite(array) & (array >= 0)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"weights holds {array[row]} in row {row}; expected numbers of at least 0."
        )
    if not array.any():
        raise ValueError("weights is 0 in every row; nothing would be trained on.")
    return array


def _is_small_float(array: np.ndarray) -> bool:
    # bfloat16 and its like are of kind "V" to numpy.
    return bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _kind(data: Any) -> str:
    size = f" of {len(data)}" if isinstance(data, tuple | list) else ""
    return f"a {type(data).__name__}{size}"


def to_arrays(data: Any, model: PyTree) -> tuple[PyTree, PyTree]:
    """Data as JAX arrays; floating ones take the model's type, so that none is mixed with it.

    Targets take that of its sums.
    """

    def convert(tree: PyTree, dtype: np.dtype) -> PyTree:
        arrays = jax.tree.map(np.asarray, tree)
        return jax.tree.map(
            lambda a: jnp.asarray(a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a),
            arrays,
        )

    x, y = data
    return convert(x, float_dtype(model)), convert(y, weight_dtype(model))


def check_model(
    name: str,
    model: PyTree,
    x: PyTree,
    y: PyTree,
    loss: Callable[[Any, Any], Any],
    key: Array | None = None,
) -> PyTree:
    """Return the shapes of the model's outputs for two rows.

    Raises:
        ValueError: the model does not take the rows of x, its outputs do not fit the targets, a
            label is no class, or the loss is not for such targets.
    """
    # Two rows: one would broadcast against anything.
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), (x, y))
    shapes = [_shapes(part) for part in few]
    try:
        with no_python_values("the model"):
            outputs = eqx.filter_eval_shape(
                lambda x, key: forward(model, rows_of_batch(model, x, None, key))[0], few[0], key
            )
    except LiftError:
        raise
    except Exception as error:
        called = " as model(x, state)" if has_state(model) else ""
        raise ValueError(
            f"The model does not take rows of {name} x, of shape {shapes[0]}{called}: "
            f"{_line(error)}"
        ) from error
    try:
        with no_python_values("the loss"):
            values = eqx.filter_eval_shape(loss, outputs, few[1])
    except LiftError:
        raise
    except Exception as error:
        raise ValueError(
            f"The loss does not take model outputs of shape {_shapes(outputs)} with rows of "
            f"{name} y, of shape {shapes[1]}: {_line(error)}"
        ) from error
    if isinstance(values, tuple):
        values = _without_named(values)
    if getattr(values, "shape", None) != (2,):
        raise ValueError(
            f"The loss must give one number per row; for 2 rows, model outputs of shape "
            f"{_shapes(outputs)} and rows of {name} y of shape {shapes[1]} it gave shape "
            f"{getattr(values, 'shape', None)}."
        )
    classes = label_classes(outputs, y)
    if classes is not None:
        labels = np.asarray(y)
        bad = (labels < 0) | (labels >= classes)
        if bad.any():
            row = int(np.argmax(bad.reshape(len(bad), -1).any(1)))
            label = labels[row][bad[row]].reshape(-1)[0]
            raise ValueError(
                f"{name} y holds {label} in row {row}, but the model has {classes} outputs: labels "
                f"are 0 to {classes - 1}."
            )
    if isinstance(loss, AbstractOutputFactor):
        rows = jax.tree.leaves(x)[0].shape[:1]
        whole = jax.tree.map(lambda o: jax.ShapeDtypeStruct(rows + o.shape[1:], o.dtype), outputs)
        loss.check(whole, y, f"{name} y")
    return outputs


def _without_named(values: tuple[Any, ...]) -> Any:
    if len(values) != 2 or not isinstance(values[1], dict):
        kinds = ", ".join(type(value).__name__ for value in values)
        raise ValueError(
            "A loss returns one number per row, or the pair of them and a dict of numbers by name; "
            f"this one returned ({kinds})."
        )
    return values[0]


def label_classes(outputs: PyTree, y: PyTree) -> int | None:
    """Number of classes, if targets `[rows, ...]` are labels of outputs `[rows, ..., classes]`."""
    if not (hasattr(outputs, "ndim") and hasattr(y, "ndim")) or outputs.ndim < 2:
        return None
    labels = jnp.issubdtype(y.dtype, jnp.integer) and y.shape[1:] == outputs.shape[1:-1]
    return outputs.shape[-1] if labels and outputs.shape[-1] > 1 else None


def _shapes(tree: PyTree) -> str:
    shapes = [str(tuple(leaf.shape[1:])) for leaf in jax.tree.leaves(tree)]
    return shapes[0] if len(shapes) == 1 else f"[{', '.join(shapes)}]"


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
