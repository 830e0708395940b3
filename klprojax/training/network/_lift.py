"""From a model and a batch to the lifted network."""

from typing import Any

from jaxtyping import Array, Float, PyTree

from ...fitting._network import rows_of_batch
from ...fitting._precision import wide
from ...fitting._step import without_padding
from ._messages import LiftedNetwork, Precisions
from ._trace import trace_network


def lift(
    model: PyTree,
    x: PyTree,
    y: Any,
    weights: Float[Array, " batch"],
    loss: Any,
    precisions: Precisions,
    consensus: str,
    key: Any = None,
) -> tuple[LiftedNetwork, tuple[Array, ...]]:
    """The lifted network of a batch, and the values of the parameters.

    Local projections are in single precision at least.

    Args:
        model: a callable on one sample, or a pair (network, state).
        x: inputs, one sample per row.
        y: targets.
        weights: weight of every sample.
        loss: the output factor.
        precisions: of the copies.
        consensus: see `LiftedNetwork`.
        key: of the random numbers that the network draws.
    """
    model, x, y, weights = wide((model, x, without_padding(y, weights), weights))
    rows = rows_of_batch(model, x, weights, key)
    graph, values = trace_network(model, rows)
    return LiftedNetwork(graph, rows, y, weights, loss, precisions, consensus), values
