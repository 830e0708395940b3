"""Splitting schemes: Douglas-Rachford, difference map, ADMM and Dykstra."""

from typing import Any

import equinox as eqx

from ._splitting import AbstractSplitting, Point, Work, combine


class DouglasRachford(AbstractSplitting):
    """`x ← (1 - λ) x + λ R_1 R_0 x` with the reflections `R = 2P - I` of the two halves.

    With `β = 2λ` this is RRR, `x ← x + β (P_1(2 P_0 x - x) - P_0 x)`. Half 0 holds the output
    factor.

    Args:
        relaxation: λ in (0, 1].
        history: past consensus values that the copies of a layer remember.
        explicit_units: layers of at most so many units keep their copies as they are.

    Reference: Douglas and Rachford (1956); Lions and Mercier (1979); Elser, RRR.
    """

    relaxation: Any = 0.5
    history: int = eqx.field(static=True, default=4)
    explicit_units: int = eqx.field(static=True, default=16)

    def points(self, start: Point) -> tuple[Point, ...]:
        """The point itself."""
        return (start,)

    def step(self, work: Work, points: list[Point]) -> tuple[tuple[Point, ...], Point]:
        """Two reflections and a mean."""
        (x,) = points
        reflected = work.reflect(work.reflect(x, 0), 1)
        new = combine((1 - self.relaxation, x), (self.relaxation, reflected))
        return (new,), new


class DifferenceMap(AbstractSplitting):
    """`x ← x + β (P_0(f_1 x) - P_1(f_0 x))`, `f_0 = P_0 - (P_0 - I)/β`, `f_1 = P_1 + (P_1 - I)/β`.

    Args:
        beta: β, not 0; at 1 two of the four projections fall away.
        history: past consensus values that the copies of a layer remember.
        explicit_units: layers of at most so many units keep their copies as they are.

    Reference: Elser (2003), difference map.
    """

    beta: float = eqx.field(static=True, default=1.0)
    history: int = eqx.field(static=True, default=4)
    explicit_units: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.beta == 0:
            raise ValueError("beta is 0; expected a number other than 0.")

    def points(self, start: Point) -> tuple[Point, ...]:
        """The point itself."""
        return (start,)

    def step(self, work: Work, points: list[Point]) -> tuple[tuple[Point, ...], Point]:
        """The difference of two projections."""
        (x,) = points
        inverse = 1 / self.beta
        on_1 = work.project(x, 1)
        on_0 = work.project(combine((1 + inverse, on_1), (-inverse, x)), 0)
        if self.beta != 1:
            first = work.project(x, 0)
            on_1 = work.project(combine((1 - inverse, first), (inverse, x)), 1)
        new = combine((1, x), (self.beta, on_0), (-self.beta, on_1))
        return (new,), new


class ADMM(AbstractSplitting):
    """`x ← P_0(z - u)`, `z ← P_1(x + u)`, `u ← u + x - z`.

    Args:
        history: past consensus values that the copies of a layer remember.
        explicit_units: layers of at most so many units keep their copies as they are.

    Reference: Boyd et al. (2011), section 5, ADMM for two sets.
    """

    history: int = eqx.field(static=True, default=4)
    explicit_units: int = eqx.field(static=True, default=16)

    def points(self, start: Point) -> tuple[Point, ...]:
        """z, and u at zero."""
        return start, combine((0, start))

    def step(self, work: Work, points: list[Point]) -> tuple[tuple[Point, ...], Point]:
        """Two projections and a dual step."""
        z, u = points
        x = work.project(combine((1, z), (-1, u)), 0)
        z = work.project(combine((1, x), (1, u)), 1)
        return (z, combine((1, u), (1, x), (-1, z))), z


class Dykstra(AbstractSplitting):
    """Alternating projections with Dykstra's corrections: `y ← P_0(x + p)`, `p ← x + p - y`,
    `x ← P_1(y + q)`, `q ← y + q - x`.

    Args:
        history: past consensus values that the copies of a layer remember.
        explicit_units: layers of at most so many units keep their copies as they are.

    Reference: Dykstra (1983); Boyle and Dykstra (1986).
    """

    history: int = eqx.field(static=True, default=4)
    explicit_units: int = eqx.field(static=True, default=16)

    def points(self, start: Point) -> tuple[Point, ...]:
        """x, and the corrections p and q at zero."""
        zero = combine((0, start))
        return start, zero, zero

    def step(self, work: Work, points: list[Point]) -> tuple[tuple[Point, ...], Point]:
        """Two projections and their corrections."""
        x, p, q = points
        y = work.project(combine((1, x), (1, p)), 0)
        p = combine((1, x), (1, p), (-1, y))
        new = work.project(combine((1, y), (1, q)), 1)
        q = combine((1, y), (1, q), (-1, new))
        return (new, p, q), new
