"""Schemes: what is done with the projections, each written once, for every space.

Alternating, cyclic and Dykstra's projections, Douglas-Rachford, the difference map, ADMM. Plain
numpy versions: tests/reference/dykstra.py.
"""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx

from ._operators import Projection
from ._space import AbstractSpace


class AbstractScheme(eqx.Module):
    """An iteration on a space with projections; all methods are pure.

    A state is a tuple of pytrees. Subclasses give the first state, one step, the point that a state
    stands for, and the points whose change says whether the iteration has come to rest.
    """

    @abc.abstractmethod
    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """The state before the first step.

        Args:
            space: where the points live.
            projections: those of the iteration.
            start: the point to start from.
        """

    @abc.abstractmethod
    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """One iteration.

        Args:
            space: where the points live.
            projections: functions from points to points.
            state: of the iteration before.
        """

    def read(self, state: tuple) -> Any:
        """The point that a state stands for: its first entry, unless overridden.

        Args:
            state: of an iteration.
        """
        return state[0]

    def watched(self, space: AbstractSpace, state: tuple) -> Any:
        """The points whose change from step to step is the certificate; by default the state.

        Args:
            space: where the points live.
            state: of an iteration.
        """
        return state


def _two(
    scheme: AbstractScheme, projections: Sequence[Projection]
) -> tuple[Projection, Projection]:
    if len(projections) != 2:
        raise ValueError(
            f"{type(scheme).__name__} takes two projections, got {len(projections)}; join some of "
            "them with compose, or use Cyclic or Dykstra, which take any number."
        )
    first, second = projections
    return first, second


class Cyclic(AbstractScheme):
    """``x ← P_k(... P_1(x))``: one projection after the other; of two, alternating projections.

    IPF and Sinkhorn (left projections onto given marginals), EM (left onto the data, right onto
    the family) and T_Proj (one step of left onto agreement, right onto products) are this scheme.

    Reference: von Neumann (1950); Csiszár and Tusnády (1984) for KL projections.
    """

    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """See `AbstractScheme.init`."""
        return (space.point(start),)

    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """See `AbstractScheme.step`."""
        (x,) = state
        for projection in projections:
            x = projection(x)
        return (x,)


class Dykstra(AbstractScheme):
    """Cyclic projections with Dykstra's corrections, added in dual coordinates before each.

    ``z = x + c_i``, ``x ← P_i(z)``, ``c_i ← z - x``. With Bregman projections onto convex sets the
    limit is the projection of the start onto their intersection. Belief propagation is this scheme
    with ``P_1 = π→_𝒫`` and ``P_2 = π→_𝒫 ∘ π←_𝒬`` on the replicated lift of a factor graph
    (Proposition 3.1); 𝒫 is not convex, and no convergence theorem applies to it.

    Reference: Dykstra (1983); Boyle and Dykstra (1986); Censor and Reich (1998) for Bregman
    distances.
    """

    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """See `AbstractScheme.init`."""
        x = space.point(start)
        zero = space.combine((0, x))
        return (x, *(zero for _ in projections))

    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """See `AbstractScheme.step`."""
        x, *corrections = state
        new = []
        for projection, correction in zip(projections, corrections, strict=True):
            corrected = space.combine((1, x), (1, correction))
            x = projection(space.point(corrected))
            new.append(space.combine((1, corrected), (-1, x)))
        return (x, *new)

    def watched(self, space: AbstractSpace, state: tuple) -> Any:
        """The point, and the points that the corrections make of it."""
        x, *corrections = state
        return (x, *(space.point(space.combine((1, x), (1, c))) for c in corrections))


class DouglasRachford(AbstractScheme):
    """``x ← (1 - λ) x + λ R_2 R_1 x`` with the reflections ``R = 2P - I``.

    With ``β = 2λ`` this is RRR, ``x ← x + β (P_2(2 P_1 x - x) - P_1 x)``.

    Args:
        relaxation: λ in (0, 1].

    Raises:
        ValueError: another number of projections than two.

    Reference: Douglas and Rachford (1956); Lions and Mercier (1979); Elser, RRR.
    """

    relaxation: Any = 0.5

    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """See `AbstractScheme.init`."""
        return (space.point(start),)

    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """See `AbstractScheme.step`."""
        (x,) = state
        reflected = x
        for projection in _two(self, projections):
            reflected = space.combine((2.0, projection(reflected)), (-1.0, reflected))
        return (space.combine((1 - self.relaxation, x), (self.relaxation, reflected)),)


class DifferenceMap(AbstractScheme):
    """``x ← x + β (P_1(f_2 x) - P_2(f_1 x))``.

    Here ``f_1 = P_1 - (P_1 - I)/β`` and ``f_2 = P_2 + (P_2 - I)/β``.

    Args:
        beta: β, not 0; at 1 two of the four projections fall away.

    Raises:
        ValueError: ``beta`` is 0, or another number of projections than two.

    Reference: Elser (2003), difference map.
    """

    beta: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if self.beta == 0:
            raise ValueError("beta is 0; expected a number other than 0.")

    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """See `AbstractScheme.init`."""
        return (space.point(start),)

    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """See `AbstractScheme.step`."""
        first, second = _two(self, projections)
        (x,) = state
        inverse = 1 / self.beta
        on_second = second(x)
        on_first = first(space.combine((1 + inverse, on_second), (-inverse, x)))
        if self.beta != 1:
            on_second = second(space.combine((1 - inverse, first(x)), (inverse, x)))
        return (space.combine((1, x), (self.beta, on_first), (-self.beta, on_second)),)


class ADMM(AbstractScheme):
    """``x ← P_1(z - u)``, ``z ← P_2(x + u)``, ``u ← u + x - z``.

    Raises:
        ValueError: another number of projections than two.

    Reference: Boyd et al. (2011), section 5, ADMM for two sets.
    """

    def init(self, space: AbstractSpace, projections: Sequence[Projection], start: Any) -> tuple:
        """See `AbstractScheme.init`."""
        z = space.point(start)
        return z, space.combine((0, z))

    def step(self, space: AbstractSpace, projections: Sequence[Projection], state: tuple) -> tuple:
        """See `AbstractScheme.step`."""
        first, second = _two(self, projections)
        z, u = state
        x = first(space.combine((1, z), (-1, u)))
        z = second(space.combine((1, x), (1, u)))
        return z, space.combine((1, u), (1, x), (-1, z))
