"""Which parts of a function's arguments are variables of the lifted graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tracing import LiftError


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


class Arguments:
    """How a tuple of arguments splits into variables, clamped arrays and static parts.

    Attributes:
        names: path of every array leaf, e.g. `args[0]['w']`.
        is_variable: for each array leaf, whether downward messages into it are wanted.
    """

    def __init__(self, args: tuple[Any, ...], variables: Any | None):
        with_paths, self._treedef = jax.tree_util.tree_flatten_with_path(args)
        wanted = _wanted(args, variables, len(with_paths))
        self._slots: list[int] = []
        self._static: dict[int, Any] = {}
        self.names: list[str] = []
        self.is_variable: list[bool] = []
        for position, ((path, leaf), chosen) in enumerate(zip(with_paths, wanted, strict=True)):
            name = "args" + jax.tree_util.keystr(path)
            whole = len(path) == 1 and isinstance(leaf, bool | int | float | complex)
            picked = chosen is True and isinstance(leaf, bool | int | float | complex)
            if not (_is_array(leaf) or whole or picked):
                if chosen is True:
                    raise LiftError(f"{name} is a {type(leaf).__name__}, not an array of floats")
                self._static[position] = leaf
                continue
            inexact = jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact)
            if not inexact and chosen is not False:
                raise LiftError(
                    f"{name} has the type {jax.dtypes.result_type(leaf)}, on which no log-message"
                    " has a slope; convert it to floats, close over it, or name the arguments that"
                    " are variables with variables=eqx.is_inexact_array"
                )
            self._slots.append(position)
            self.names.append(name)
            self.is_variable.append(chosen is not False)
        if not any(self.is_variable):
            raise LiftError(
                "no argument is an array of floats, so the lifted graph has no variable to send"
                " messages to; Python floats inside a pytree count as constants, so convert them"
                " with jnp.asarray"
            )

    def leaves(self, args: tuple[Any, ...]) -> list[Any]:
        """Return the array leaves of arguments with the same structure.

        Raises:
            ValueError: tree structure, static parts, shapes or types differ.
        """
        flat, treedef = jax.tree_util.tree_flatten(args)
        if treedef != self._treedef:
            raise ValueError(
                f"the arguments have the structure {treedef}, but the function was lifted at"
                f" {self._treedef}; lift it anew with delta_lift"
            )
        for position, value in self._static.items():
            if flat[position] is not value and flat[position] != value:
                raise ValueError(
                    f"static part {flat[position]!r} of the arguments differs from {value!r}, at"
                    " which the function was lifted; lift it anew with delta_lift"
                )
        return [jnp.asarray(flat[position]) for position in self._slots]

    def rebuild(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Put array leaves back between the static parts."""
        flat = dict(self._static)
        flat.update(zip(self._slots, leaves, strict=True))
        return self._treedef.unflatten([flat[i] for i in range(len(flat))])

    def chosen(self, variables: Any | None, leaves: Sequence[Any]) -> list[bool]:
        """For each array leaf, whether it is a variable and `variables` names it.

        Args:
            variables: as in `delta_lift`; None names all.
            leaves: values of the array leaves.

        Raises:
            ValueError: nothing that is named is a variable.
        """
        args = self.rebuild(leaves)
        wanted = _wanted(args, variables, self._treedef.num_leaves)
        flags = [
            live and wanted[position] is not False
            for position, live in zip(self._slots, self.is_variable, strict=True)
        ]
        if not any(flags):
            raise ValueError(
                f"variables={variables!r} names none of the lift's variables; they are"
                f" {[n for n, live in zip(self.names, self.is_variable, strict=True) if live]}"
            )
        return flags

    def slopes(self, slopes: Sequence[Any]) -> Any:
        """Shape slopes of the variables like the arguments, None elsewhere."""
        flat: list[Any] = [None] * self._treedef.num_leaves
        for position, slope in zip(self._slots, slopes, strict=True):
            flat[position] = slope
        return self._treedef.unflatten(flat)


def _wanted(args: tuple[Any, ...], variables: Any | None, count: int) -> list[bool | None]:
    """True: the caller names it; False: the caller leaves it out; None: decided by its type."""
    if variables is None:
        return [None] * count
    if isinstance(variables, Callable):
        return [bool(variables(leaf)) for leaf in jax.tree.leaves(args)]
    try:
        spread = jax.tree.map(
            lambda flag, part: [bool(flag)] * len(jax.tree.leaves(part)), variables, args
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "variables must be a function of a leaf, or a pytree of bools that is a prefix of the"
            f" tuple of arguments; got {variables!r}"
        ) from error
    return [flag for flag in jax.tree.leaves(spread)]
