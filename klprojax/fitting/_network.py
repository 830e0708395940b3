"""How a network is called: row by row, with its state and a key if it has them.

The one place that knows what a model is: a callable on one sample, or the pair (network, state) of
`equinox.nn.make_with_state`. Circuits pass through as trees of parameters.
"""

import inspect
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._tracing import FlatProgram
from ._precision import wide

# The name of the rows' axis, for statistics of the batch.
AXIS = "batch"


class Rows(NamedTuple):
    """What a network reads of a batch.

    Attributes:
        x: inputs, leading axis the rows.
        keys: one random key per row, or None.
    """

    x: PyTree
    keys: Array | None = None


def has_state(model: PyTree) -> bool:
    """Whether a model is the pair of a network and its state."""
    return isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State)


def partition(model: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters of a model, its inexact arrays outside of the state; and the rest."""
    spec = (eqx.is_inexact_array, False) if has_state(model) else eqx.is_inexact_array
    return eqx.partition(model, spec)


def parameters(model: PyTree) -> PyTree:
    """The parameters of a model, None elsewhere."""
    return partition(model)[0]


def rows_of_batch(
    model: PyTree, x: PyTree, weights: Float[Array, " batch"] | None, key: Array | None
) -> Rows:
    """The rows of a batch as a model reads them.

    A model with a state may take statistics of the batch, so rows of weight 0 become copies of the
    others, in turn. The key of a row is `fold_in(key, place in the batch)`.
    """
    count = len(jax.tree.leaves(x)[0])
    if has_state(model) and weights is not None:
        real = weights > 0
        places, turn = jnp.argsort(~real), jnp.arange(count)
        own = places[turn % jnp.maximum(jnp.sum(real), 1)]
        index = jnp.where(real, turn, own)
        x = jax.tree.map(lambda leaf: leaf[index], x)
    if key is None:
        return Rows(x)
    return Rows(x, jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count)))


def call(model: PyTree, row: Rows) -> tuple[PyTree, PyTree]:
    """Outputs for one row, and the next state, None without one.

    Raises:
        ValueError: a network whose state is missing, or that returns none.
    """
    more: dict[str, Any] = {} if row.keys is None else {"key": row.keys}
    try:
        return _call(model, row, more)
    except Exception as error:
        if row.keys is None and _takes_key(model):
            error.add_note(
                "It was called without a key; if it draws random numbers, give one: "
                "key=jax.random.key(0)."
            )
        raise


def _call(model: PyTree, row: Rows, more: dict[str, Any]) -> tuple[PyTree, PyTree]:
    if not has_state(model):
        if any(map(_is_index, jax.tree.leaves(model, is_leaf=_is_index))):
            raise ValueError(
                "The model has layers with a state, such as BatchNorm. Make it by "
                "`model, state = equinox.nn.make_with_state(...)(...)` and give the pair "
                "(model, state) in the model's place."
            )
        return model(row.x, **more), None
    network, state = model
    # Layers with a state mix dtypes inside; strict promotion, if set, is for the rest.
    with jax.numpy_dtype_promotion("standard"):
        # A state may be read once, so the network gets a copy.
        found = network(row.x, jax.tree.map(lambda leaf: leaf, state), **more)
    if not has_state(found):
        raise ValueError(
            "A model given as (model, state) is called as model(x, state) and must return the pair "
            f"(outputs, new state); it returned {type(found).__name__}."
        )
    return found


def forward(model: PyTree, rows: Rows) -> tuple[PyTree, PyTree]:
    """Outputs of a batch, in single precision at least, and the next state, None without one."""
    axis = AXIS if has_state(model) else None
    outputs, state = jax.vmap(partial(call, model), out_axes=(0, None), axis_name=axis)(rows)
    return wide(outputs), state


def with_state(model: PyTree, state: PyTree) -> PyTree:
    """A model with its next state, if it has one."""
    return model if state is None else (model[0], state)


def state_after(
    model: PyTree, x: PyTree, weights: Float[Array, " batch"], key: Array | None
) -> PyTree:
    """The next state after a batch, by a plain pass; None without one."""
    return forward(model, rows_of_batch(model, x, weights, key))[1] if has_state(model) else None


def for_inference(model: PyTree) -> PyTree:
    """A model as it is evaluated: its layers in inference mode."""
    if has_state(model):
        return eqx.nn.inference_mode(model[0]), model[1]
    return eqx.nn.inference_mode(model)


def slow_in_loops(model: PyTree, x: PyTree, key: Array | None = None) -> bool:
    """Whether a loop on the device would slow a model down: convolutions on a CPU.

    XLA knows fast ones there, 20 times as fast, but not inside loops.

    Args:
        model: a model.
        x: a batch; only shapes and dtypes are read.
        key: where the model needs one.
    """
    if jax.default_backend() != "cpu":
        return False
    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), x)
    closed = jax.make_jaxpr(lambda x: _arrays(model, x, key))(few)
    program = FlatProgram(closed, [False] * len(closed.jaxpr.invars))
    return any(eqn.primitive.name == "conv_general_dilated" for eqn, *_ in program.equations)


def _arrays(model: PyTree, x: PyTree, key: Array | None) -> PyTree:
    return eqx.filter(forward(model, rows_of_batch(model, x, None, key)), eqx.is_array)


def needs_key(model: PyTree, x: PyTree) -> bool:
    """Whether a model takes a keyword `key` that its outputs depend on, or cannot do without.

    Args:
        model: a model.
        x: a batch; only shapes and dtypes are read.
    """
    if not _takes_key(model):
        return False

    few = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), x)
    try:
        jax.eval_shape(lambda x: _arrays(model, x, None), few)
    except Exception:  # a split of None, a layer that asks for a key
        return True
    like = jax.eval_shape(lambda: jax.random.key(0))
    closed = jax.make_jaxpr(lambda x, key: _arrays(model, x, key))(few, like)
    others = [False] * (len(closed.jaxpr.invars) - 1)
    program = FlatProgram(closed, [*others, True])
    return not program.live.isdisjoint(program.outputs)


def _takes_key(model: PyTree) -> bool:
    network, inputs = (model[0], 2) if has_state(model) else (model, 1)
    try:
        after = list(inspect.signature(network).parameters.values())[inputs:]
    except (TypeError, ValueError):
        return False
    return any(
        p.name == "key" and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in after
    )


def _is_index(x: Any) -> bool:
    return isinstance(x, eqx.nn.StateIndex)
