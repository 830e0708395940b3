"""What the sweeps return: slopes and curvatures, by equation and by input path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Inexact

from ._structure import DeltaFactor, Structure


class Message(NamedTuple):
    """The log-slope of one downward message into a variable.

    Attributes:
        factor: index of the delta factor that sends it; -1 is the output factor φ.
        position: which argument of the factor's ψ the variable is.
        slope: slope of the log-message at the forward value, shaped like the variable.
    """

    factor: int
    position: int
    slope: Any


class Sensitivities(eqx.Module):
    """Slopes `s(v) = ∂_v log b_↓(v)` of the downward beliefs at the forward point.

    `sensitivities[k]` is the slope at the output of equation k (a tuple where it has several) and
    `sensitivities["args[0]['w']"]` that at an input; None means that no message arrives.

    For a complex v the slope follows JAX's convention for gradients, `∂/∂Re v - i ∂/∂Im v`.

    Attributes:
        inputs: slopes of the arguments, as a tuple of pytrees shaped like them; None where an
            argument is no variable.
        output: `s(z) = φ'(z)/φ(z)`.
        variables: the slope of every variable of the graph, by variable index.
        structure: the lifted function's variables and factors.
    """

    inputs: Any
    output: Inexact[Array, ""]
    variables: tuple[Any, ...]
    _messages: tuple[tuple[Any, ...], ...]
    structure: Structure = eqx.field(static=True)

    def __getitem__(self, key: int | str) -> Any:
        """Return the slope at an equation's output, or at an input named by its path."""
        return look_up(self.structure, self.variables, key)

    def messages(self, key: int | str) -> tuple[Message, ...]:
        """Return the downward messages whose log-slopes add up to the slope of a variable.

        Args:
            key: a variable index, or the path of an input.
        """
        index = find_input(self.structure, key) if isinstance(key, str) else key
        if not 0 <= index < len(self.structure.variables):
            raise ValueError(
                f"there is no variable {index}; the lift has variables 0 to"
                f" {len(self.structure.variables) - 1}"
            )
        sources, slopes = self.structure.messages[index], self._messages[index]
        return tuple(
            Message(*source, slope)
            for source, slope in zip(sources, slopes, strict=True)
            if slope is not None
        )


class Curvatures(eqx.Module):
    """Curvatures `H(v) = ∂²_v log b_↓(v)` of the downward beliefs at the forward point.

    Indexed like `Sensitivities`.

    Attributes:
        inputs: curvatures of the arguments, None where an argument is no variable.
        output: `(log φ)''` at z.
        variables: the curvature of every variable, by variable index.
        sensitivities: the slopes of the same jets.
        structure: the lifted function's variables and factors.
    """

    inputs: Any
    output: Inexact[Array, ""]
    variables: tuple[Any, ...]
    sensitivities: Sensitivities
    structure: Structure = eqx.field(static=True)

    def __getitem__(self, key: int | str) -> Any:
        """Return the curvature at an equation's output, or at an input named by its path."""
        return look_up(self.structure, self.variables, key)


def look_up(structure: Structure, entries: Sequence[Any], key: int | str) -> Any:
    """Return the entries of an equation's outputs, or that of an input named by its path."""
    if isinstance(key, str):
        return entries[find_input(structure, key)]
    found = tuple(entries[index] for index in factor_at(structure, key).outputs)
    return found[0] if len(found) == 1 else found


def factor_at(structure: Structure, key: int) -> DeltaFactor:
    """Return an equation, or say which ones there are."""
    if not 0 <= key < len(structure.factors):
        raise ValueError(
            f"there is no equation {key}; the lift has equations 0 to {len(structure.factors) - 1}"
        )
    return structure.factors[key]


def find_input(structure: Structure, path: str) -> int:
    """Return the variable of the input with this path, with or without `args` in front."""
    for index in structure.inputs:
        name = structure.variables[index].name
        if path in (name, name.removeprefix("args")):
            return index
    names = ", ".join(structure.variables[index].name for index in structure.inputs)
    raise ValueError(f"there is no input {path!r}; the inputs are {names}")
