"""One error for a circuit of the other kind."""

from typing import Any

from ._circuit import TensorCircuit


def require_tensor(circuit: Any, function: str) -> None:
    """Check that a circuit is a tensor circuit.

    Args:
        circuit: what was passed.
        function: the name of the function it was passed to.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(circuit, TensorCircuit):
        raise TypeError(
            f"{function} needs a TensorCircuit, but got a {type(circuit).__name__}; build one with "
            "hclt, hidden_markov, rat_spn or another builder of klprojax.circuits.tensor. The "
            "weights of an explicit Circuit are trained by gradients of log_likelihood."
        )
