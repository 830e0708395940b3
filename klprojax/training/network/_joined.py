"""Networks of several outputs: one vector per row, which the output factor reads as a tree."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..._tracing import LiftError
from .._outputs import AbstractOutputFactor


class Outputs:
    """The form of what a network returns for one row.

    Args:
        outputs: arrays, or their types.

    Raises:
        LiftError: no arrays, or arrays that are not of one real type.
    """

    def __init__(self, outputs: PyTree):
        leaves, self.tree = jax.tree.flatten(outputs)
        self.shapes = [jnp.shape(leaf) for leaf in leaves]
        self.alone = jax.tree_util.treedef_is_leaf(self.tree)
        types = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
        if not self.alone and not (len(types) == 1 and jnp.issubdtype(types[0], jnp.floating)):
            raise LiftError(
                f"the model returns {len(leaves)} arrays of types {', '.join(types) or 'none'}; a "
                "network has one output array, or several of one type of real numbers. Return what "
                "the loss reads"
            )

    def join(self, outputs: PyTree, rows: int = 0) -> Array:
        """One vector: for one row, or for many, each."""
        leaves, lead = jax.tree.leaves(outputs), (rows,) if rows else ()
        return jnp.concatenate([leaf.reshape(*lead, -1) for leaf in leaves], axis=-1)

    def split(self, joined: Array) -> PyTree:
        """The tree of many rows again."""
        leaves, start = [], 0
        for shape in self.shapes:
            end = start + math.prod(shape)
            leaves.append(joined[:, start:end].reshape(-1, *shape))
            start = end
        return jax.tree.unflatten(self.tree, leaves)


class Joined(AbstractOutputFactor):
    """An output factor of a tree, on the vectors of its arrays.

    Attributes:
        factor: takes and gives trees.
        form: of the outputs.
    """

    factor: AbstractOutputFactor
    form: Outputs = eqx.field(static=True)

    def __call__(self, outputs, targets) -> Any:
        """The factor's loss."""
        return self.factor(self.form.split(outputs), targets)

    def proximal(self, outputs, targets, precision):
        """The factor's proximal step."""
        return self._joined(self.factor.proximal, outputs, targets, precision)

    def slope(self, outputs, targets, precision):
        """The factor's own slope, if it has one."""
        if type(self.factor).slope is AbstractOutputFactor.slope:
            return super().slope(outputs, targets, precision)
        return self._joined(self.factor.slope, outputs, targets, precision)

    def _joined(self, what: Callable[..., Any], outputs: Array, targets: Any, precision: Any):
        found = what(self.form.split(outputs), targets, precision)
        return self.form.join(found, len(outputs))
