"""What a scheme is: one iteration over the constraints of a lifted network."""

import abc
from typing import Any

import equinox as eqx

from ..network import LiftedNetwork


class AbstractNetworkScheme(eqx.Module):
    """An iteration on the lifted network. `start`, `iterate` and `parameters` are pure."""

    @abc.abstractmethod
    def start(self, network: LiftedNetwork, parameters: Any) -> Any:
        """State at the forward pass.

        Args:
            network: the lifted network of a batch.
            parameters: values of its parameters, in its order.
        """

    @abc.abstractmethod
    def iterate(self, network: LiftedNetwork, state: Any) -> Any:
        """One iteration.

        Args:
            network: the lifted network of a batch.
            state: of the iteration before.
        """

    @abc.abstractmethod
    def parameters(self, network: LiftedNetwork, state: Any) -> tuple[Any, ...]:
        """The parameters that the state stands for.

        Args:
            network: the lifted network of a batch.
            state: of an iteration.
        """

    def displacement(self, network: LiftedNetwork, state: Any, start: Any) -> tuple[Any, ...]:
        """How far the parameters have come.

        Args:
            network: the lifted network of a batch.
            state: of an iteration.
            start: values of the parameters before the first one.
        """
        return tuple(b - a for a, b in zip(start, self.parameters(network, state), strict=True))

    @abc.abstractmethod
    def certificate(self, network: LiftedNetwork, old: Any, new: Any) -> Any:
        """How far the state is from a fixed point: the largest change, relative, of its values.

        Args:
            network: the lifted network of a batch.
            old: state before an iteration.
            new: state after it.
        """

    @abc.abstractmethod
    def residual(self, state: Any) -> Any:
        """Largest distance of a projected point of the last iteration from its constraint.

        Args:
            state: of an iteration.
        """
