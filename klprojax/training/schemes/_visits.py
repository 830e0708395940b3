"""Schemes that are orders of visits: cyclic and alternating projections."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..network import LiftedNetwork
from ..network._messages import State
from ._scheme import AbstractNetworkScheme


class _Visits(AbstractNetworkScheme):
    """Projections in some order; the state is bases and messages."""

    def start(self, network: LiftedNetwork, parameters: Any) -> State:
        """Forward pass with silent messages."""
        return network.start(parameters)

    def parameters(self, network: LiftedNetwork, state: State) -> tuple[Array, ...]:
        """The bases of the parameters."""
        return tuple(state.bases[index] for index in network.graph.parameters)

    def displacement(self, network: LiftedNetwork, state: State, start: Any) -> tuple[Array, ...]:
        """What the visits of the parameters added up to."""
        return tuple(state.moved[index] for index in network.graph.parameters)

    def certificate(self, network: LiftedNetwork, old: State, new: State) -> Float[Array, ""]:
        """Largest change of a base, relative to the largest base."""

        def kept(bases: dict[int, Array]) -> list[Array]:
            return [
                value if network.graph.values[index].shared else network.without_padding(value)
                for index, value in bases.items()
            ]

        return relative_change(kept(old.bases), kept(new.bases))

    def residual(self, state: State) -> Float[Array, ""]:
        """Of the visits of the last iteration."""
        return state.residual


class CyclicProjections(_Visits):
    """One backward sweep: the output factor, every constraint from last to first, the parameters.

    Named fused implementation of ``Cyclic`` on the Gaussian copies of a network's values, with one
    projection per constraint and one per parameter, for consensus ``"average"`` and ``"product"``.
    With ``"slope"``, the default of `ProjectionStep`, it is one sweep of Gaussian messages and no
    projection of copies. Plain numpy version: tests/reference/projection_step.py.

    Each constraint sees what those above it said in the same sweep, so one sweep carries the signal
    of the output factor to every layer.

    Reference: cyclic projections (Kaczmarz; Bauschke and Borwein 1996).
    """

    def iterate(self, network: LiftedNetwork, state: State) -> State:
        """One sweep."""
        state = network.visit_output(state._replace(residual=jnp.zeros_like(state.residual)))
        for node in reversed(network.graph.constraints):
            state = network.visit(state, node)
        for index in network.graph.parameters:
            state = network.visit_parameter(state, index)
        return state


class AlternatingProjections(_Visits):
    """Two half-steps: every second constraint, counted from the output factor, then the others.

    Named fused implementation of ``Cyclic`` with the projections of the two halves (see
    `Splitting`), for consensus ``"average"`` and ``"product"``.

    Constraints of one half share no value, so a half-step is the projection onto their product.
    The signal moves one constraint down a half-step: with fewer iterations than layers the first
    layers do not move.

    Raises:
        ValueError: the network's constraints cannot be split into two such halves.

    Reference: alternating projections (von Neumann; Bauschke and Borwein 1996).
    """

    def iterate(self, network: LiftedNetwork, state: State) -> State:
        """Two half-steps."""
        state = network.visit_output(state._replace(residual=jnp.zeros_like(state.residual)))
        for colour in (0, 1):
            state = half_step(network, state, colour)
        return state


def half_step(network: LiftedNetwork, state: State, colour: int) -> State:
    """Visit the constraints and parameters of one colour."""
    colours = network.graph.halves()
    # All of one colour read the messages of the other: none of them reads another's.
    for node in reversed(network.graph.constraints):
        if colours["node", node.index] == colour:
            state = network.visit(state, node)
    for index in network.graph.parameters:
        if colours["parameter", index] == colour:
            state = network.visit_parameter(state, index)
    return state


def relative_change(old: Any, new: Any) -> Float[Array, ""]:
    """Largest change of any entry, relative to the largest entry."""
    pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    change = jnp.stack([jnp.max(jnp.abs(a - b), initial=0) for a, b in pairs])
    size = jnp.stack([jnp.max(jnp.abs(b), initial=0) for _, b in pairs])
    return jnp.max(change) / jnp.where(jnp.max(size) > 0, jnp.max(size), 1)
