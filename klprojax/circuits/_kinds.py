"""One error for a circuit of the other kind."""

from typing import Any

from ._circuit import Circuit


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
        advice = (
            "use the TensorCircuit's own methods (log_likelihood, marginals, mpe, sample, ...), or "
            "pass the circuit and the numbers that its to_circuit(parameters) returns."
        )
    elif name == "CircuitModel":
        advice = "pass its parts: model.circuit, model.log_weights, model.leaf_parameters."
    else:
        advice = "build one with CircuitBuilder, compile_model or a reader of files."
    raise TypeError(f"{function} needs an explicit Circuit, but got a {name}; {advice}")
