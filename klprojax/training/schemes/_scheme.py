"""What a scheme is: one iteration over the constraints of a lifted network."""

import abc
from typing import Any

import equinox as eqx

from ..network import LiftedNetwork


class AbstractScheme(eqx.Module):
    """An iteration on the lifted network. `start`, `iterate` and `parameters` are pure."""

    @abc.abstractmethod
    def start(self, network: LiftedNetwork, parameters: Any) -> Any:
        """State at the forward pass."""

    @abc.abstractmethod
    def iterate(self, network: LiftedNetwork, state: Any) -> Any:
        """One iteration."""

    @abc.abstractmethod
    def parameters(self, network: LiftedNetwork, state: Any) -> tuple[Any, ...]:
        """The parameters that the state stands for."""

    @abc.abstractmethod
    def certificate(self, network: LiftedNetwork, old: Any, new: Any) -> Any:
        """How far the state is from a fixed point: the largest change, relative, of its values."""

    @abc.abstractmethod
    def residual(self, state: Any) -> Any:
        """Largest distance of a projected point of the last iteration from its constraint."""
