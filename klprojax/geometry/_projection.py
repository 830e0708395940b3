"""Projections as such: "Left (I-) and right (reverse-KL) projections" in section 2.

For a set `C` and a table `q`,

    left (I-):   argmin over r in C of KL(r || q),
    right (M-):  argmin over p in C of KL(q || p),

the second being a minimisation of `D_{f*}` over the dual image of `C`. Which of the two can be
computed depends on the set: its type says which.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._sharding import on_any_mesh
from ._log_table import default_tolerance, safe_logsumexp


class ProjectionResult(eqx.Module):
    """What a projection returns: the projected point and the certificate that it is one.

    Attributes:
        value: the projected point: normalised `log_probs` for sets of tables.
        residual: how far `value` is from meeting its defining conditions, dimensionless; each set
            says which. Zero is exact.
        steps: iterations spent; zero where there is a closed form.
        converged: whether `residual` reached the tolerance. Derivatives mean something only then.
        multipliers: dual variables of the constraints, where the set has them, else `None`.
        limited_by_rounding: whether `residual` stopped falling above the tolerance because the
            dtype has no more digits. Under the default tolerance that counts as converged.
    """

    value: Float[Array, "..."]
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]
    multipliers: PyTree[Float[Array, "..."]] | None = None
    limited_by_rounding: Bool[Array, ""] = eqx.field(default_factory=lambda: jnp.asarray(False))


class AbstractConstraint(eqx.Module):
    """A set of points. What can be projected onto it is an `AbstractLeftConstraint`, an
    `AbstractRightConstraint`, or both: subclass these.

    `point` is a log-table with every axis part of one joint distribution (batch with `jax.vmap`),
    normalised or not, with `-inf` entries allowed. Keyword arguments common to all projections:

    - `tolerance`: residual at which to stop; when `None`, `eps ** (2/3)` of the dtype, or where
      rounding stops the iterations if that comes first.
    - `max_steps`: most iterations; closed forms need none.
    - `throw`: raise an error at run time unless the projection converged.

    Attributes:
        why_one_side: why the set offers one projection only, for the error of whoever asks for the
            other.
    """

    why_one_side: ClassVar[str] = "the class does not offer it"


class AbstractLeftConstraint(AbstractConstraint):
    """A set onto which one can project from the left (I-projection): `i_projection`."""

    @abc.abstractmethod
    def left_projection(
        self,
        point: Float[Array, "..."],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Project by minimising `D_f(r, point)` over `r` in the set."""


class AbstractRightConstraint(AbstractConstraint):
    """A set onto which one can project from the right: `right_projection`."""

    @abc.abstractmethod
    def right_projection(
        self,
        point: Float[Array, "..."],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Project by minimising `D_f(point, p)` over `p` in the set."""


@on_any_mesh()
def i_projection(
    constraint: AbstractConstraint,
    log_table: Float[Array, "..."],
    *,
    tolerance: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> ProjectionResult:
    """Project a log-table onto a set from the left: `argmin over r in C of KL(r || q)`.

    Args:
        constraint: the set `C`.
        log_table: the table `q`, up to scale (for `GaussianConsensus`: the means).
        tolerance: residual at which to stop; the set's own default when `None`.
        max_steps: most iterations; the set's own default when `None`.
        throw: raise an error at run time unless the projection converged.

    Returns:
        The projection and its certificate.

    Raises:
        ValueError: the set is no `AbstractLeftConstraint`; the message says why.

    Differentiation:
        `jvp` and `vjp`, to any order; iterations are differentiated implicitly at their solution.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.geometry import ConsensusFace
        >>> q = jnp.log(jnp.array([[0.1, 0.2], [0.4, 0.3]]))
        >>> p = jnp.exp(i_projection(ConsensusFace(), q).value)
        >>> [[round(float(x), 6) for x in row] for row in p]
        [[0.25, 0.0], [0.0, 0.75]]

    Reference:
        Section 2, left projection.
    """
    if not isinstance(constraint, AbstractLeftConstraint):
        raise _refused(constraint, "I-projection", "right projection, right_projection")
    return constraint.left_projection(
        log_table, tolerance=tolerance, max_steps=max_steps, throw=throw
    )


@on_any_mesh()
def right_projection(
    constraint: AbstractConstraint,
    log_table: Float[Array, "..."],
    *,
    tolerance: float | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> ProjectionResult:
    """Project a log-table onto a set from the right: `argmin over p in C of KL(q || p)`.

    Args:
        constraint: the set `C`.
        log_table: the table `q`, up to scale (for `GaussianConsensus`: the means).
        tolerance: residual at which to stop; the set's own default when `None`.
        max_steps: most iterations; the set's own default when `None`.
        throw: raise an error at run time unless the projection converged.

    Returns:
        The projection and its certificate.

    Raises:
        ValueError: the set is no `AbstractRightConstraint`; the message says why.

    Differentiation:
        `jvp` and `vjp`, to any order; iterations are differentiated implicitly at their solution.

    Reference:
        Section 2, right projection.
    """
    if not isinstance(constraint, AbstractRightConstraint):
        raise _refused(constraint, "right projection", "I-projection, i_projection")
    return constraint.right_projection(
        log_table, tolerance=tolerance, max_steps=max_steps, throw=throw
    )


def closed_form_result(
    value: Float[Array, "..."], tolerance: float, throw: bool, failure: str
) -> ProjectionResult:
    """Wrap a closed form whose only possible failure is a table left without mass.

    The residual is `|1 - total mass|`: rounding alone, or one if there was nothing to normalise.
    """
    residual = jnp.abs(1 - jnp.exp(safe_logsumexp(value)))
    return finish(value, residual, jnp.asarray(0), None, tolerance, throw, failure)


_ROUNDING = (
    "The tolerance is below what the floating type can reach on this table: rounding keeps the "
    "residual from falling further. The projection is as good as it gets; give a larger tolerance, "
    "none at all, or use float64."
)


def finish(
    value: Float[Array, "..."],
    residual: Float[Array, ""],
    steps: Int[Array, ""],
    multipliers: PyTree[Float[Array, "..."]] | None,
    tolerance: float | None,
    throw: bool,
    failure: str,
    at_floor: Bool[Array, ""] | None = None,
) -> ProjectionResult:
    """Assemble a result, with the run-time error asked for by `throw`.

    `at_floor` says that rounding keeps the residual from falling further. Without a `tolerance`
    that is where the iterations end.
    """
    met = residual <= (default_tolerance(value.dtype) if tolerance is None else tolerance)
    limited = jnp.asarray(False) if at_floor is None else at_floor & ~met
    converged = met | limited if tolerance is None else met
    if throw and at_floor is None:
        value = eqx.error_if(value, ~converged, failure)
    elif throw:
        which = limited.astype(jnp.int32)
        value = eqx.branched_error_if(value, ~converged, which, [failure, _ROUNDING])
    return ProjectionResult(value, residual, steps, converged, multipliers, limited)


def _refused(constraint: AbstractConstraint, asked: str, other: str) -> ValueError:
    name = type(constraint).__name__
    return ValueError(f"{name} has no {asked}: {constraint.why_one_side}. Use the {other}.")
