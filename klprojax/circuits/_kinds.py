"""Verbs of explicit circuits, handed a circuit of the other kind."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ._circuit import Circuit

P = ParamSpec("P")
R = TypeVar("R")


def explicit_or_method(
    function: Callable[Concatenate[Circuit, P], R],
) -> Callable[Concatenate[Any, ...], R]:
    """Make a verb of explicit circuits take any circuit with a method of its name.

    A `TensorCircuit` then goes through the same verb: its parameters stand where an explicit
    circuit has its log-weights, and the other arguments are those of its method.

    Args:
        function: the verb; its first argument is the circuit.

    Returns:
        The verb. It raises a TypeError for what has no such method.
    """
    name = function.__name__

    @functools.wraps(function)
    def verb(circuit: Any, *args: Any, **kwargs: Any) -> R:
        if not isinstance(circuit, Circuit) and hasattr(type(circuit), name):
            return getattr(circuit, name)(*args, **kwargs)
        require_explicit(circuit, name)
        return function(circuit, *args, **kwargs)

    return verb


def require_explicit(circuit: Any, function: str) -> None:
    """Check that a circuit is explicit.

    Args:
        circuit: what was passed.
        function: the name of the function it was passed to.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(circuit, Circuit):
        return
    name = type(circuit).__name__
    if name == "TensorCircuit":
        advice = "pass the circuit and the numbers that its to_circuit(parameters) returns."
    elif name == "CircuitModel":
        advice = "pass its parts: model.circuit, model.log_weights, model.leaf_parameters."
    else:
        advice = "build one with CircuitBuilder, compile_model or a reader of files."
    raise TypeError(f"{function} needs an explicit Circuit, but got a {name}; {advice}")
