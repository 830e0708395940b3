"""Classification: the posterior of one variable given the others."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._sharding import on_any_mesh
from ...geometry import log_normalize
from ._circuit import TensorCircuit
from ._kinds import require_tensor
from ._parameters import TensorParameters


@on_any_mesh(batch=("rows",), out=0)
def classify(
    circuit: TensorCircuit,
    parameters: TensorParameters,
    rows: Any,
    variable: int,
    *,
    batch_size: int = 1024,
) -> Float[Array, "rows states"]:
    """Compute ``log p(X_variable = t | the rest of the row)`` of every row and state.

    One upward pass a state, the state as evidence; logarithms of small posteriors keep their
    accuracy.

    Args:
        circuit: the structure.
        parameters: the numbers, normalised or not.
        rows: states ``[rows, variables]``, -1 or NaN where missing; what they hold for the
            variable itself is not looked at.
        variable: the class variable.
        batch_size: rows evaluated together.

    Returns:
        Log-posteriors ``[rows, states of the variable]``, nats; ``-inf`` throughout where the rest
        of the row is impossible.

    Differentiation:
        With respect to the parameters, to any order.

    Raises:
        ValueError: rows that do not fit the circuit, or no such variable.

    Example:
        >>> import numpy as np
        >>> from klprojax.circuits.tensor import classify, factorised_mixture
        >>> circuit = factorised_mixture((2, 2, 3), units=4)
        >>> posteriors = classify(circuit, circuit.init(0), np.array([[0, 1, -1]]), 2)
        >>> posteriors.shape, round(float(np.exp(posteriors).sum()), 5)
        ((1, 3), 1.0)
    """
    require_tensor(circuit, "classify")
    if not 0 <= variable < circuit.num_variables:
        raise ValueError(
            f"The class is variable {variable}; the circuit has 0 to {circuit.num_variables - 1}."
        )
    states = circuit.states_from_data(rows).copy()
    columns = []
    for state in range(circuit.cardinalities[variable]):
        states[:, variable] = state
        columns.append(circuit.log_likelihood(parameters, states, batch_size=batch_size))
    return log_normalize(jnp.stack(columns, axis=1), axis=1)
