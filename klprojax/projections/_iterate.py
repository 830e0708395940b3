"""`iterate`: the one loop around a scheme."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from .._adjoint import AbstractAdjoint, UnrolledAdjoint
from ..geometry import ProjectionResult
from ._operators import Projection
from ._schemes import AbstractScheme
from ._space import AbstractSpace, LogTables


def iterate(
    scheme: AbstractScheme,
    projections: Sequence[Projection],
    start: Any,
    *,
    space: AbstractSpace | None = None,
    max_steps: int = 1000,
    tolerance: float | None = None,
    adjoint: AbstractAdjoint | None = None,
    throw: bool = True,
) -> ProjectionResult:
    """Iterate projections by a scheme until a step changes nothing by more than the tolerance.

    Args:
        scheme: what is done with the projections, e.g. `Cyclic()` or `Dykstra()`.
        projections: functions from points to points, e.g. ``left(set)``, ``right(set)``, what
            `compose` makes of them, or any JAX function; a scheme says how many it takes.
        start: the point to start from, a pytree of arrays in dual coordinates: log-tables (nats)
            for `LogTables`, means for `Gaussians`.
        space: where the points live; `LogTables()` when None.
        max_steps: most steps.
        tolerance: largest change of the watched points (see `AbstractScheme.watched`) in the
            space's distance that counts as rest; ``eps ** (2/3)`` of the dtype when None. With 0
            the loop runs all ``max_steps`` and that counts as success.
        adjoint: how derivatives pass through the loop (default `UnrolledAdjoint()`).
        throw: raise at run time unless the loop came to rest.

    Returns:
        The point, ``residual`` the last change (the certificate), ``steps``, ``converged``, and
        the scheme's state in ``multipliers``.

    Differentiation:
        ``jit``, ``vmap``, ``jvp``, ``grad`` and their compositions, in ``start``, in the numbers of
        sets and schemes, and in whatever a function given as projection closes over. With
        `ImplicitAdjoint` not in ``start``, and only where the fixed point is isolated: many schemes
        come to rest anywhere in an intersection, and where they do depends on the start.

    Raises:
        ValueError: ``max_steps`` below 1, a negative tolerance, no projections, a number of them
            that the scheme does not take, or an implicit derivative in ``start``.
        RuntimeError: with ``throw``, the loop did not come to rest within ``max_steps``.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.geometry import MarginalConstraints
        >>> from klprojax.projections import Cyclic, iterate, left
        >>> half = jnp.log(jnp.array([0.5, 0.5]))
        >>> rows, columns = (left(MarginalConstraints([((k,), half)])) for k in (0, 1))
        >>> cost = jnp.log(jnp.array([[4.0, 1.0], [1.0, 4.0]]))
        >>> plan = iterate(Cyclic(), (rows, columns), cost).value  # Sinkhorn's algorithm
        >>> [[round(float(x), 4) for x in row] for row in jnp.exp(plan)]
        [[0.4, 0.1], [0.1, 0.4]]
    """
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be at least 0.")
    if not projections:
        raise ValueError("There are no projections to iterate; give at least one.")
    space = LogTables() if space is None else space
    adjoint = UnrolledAdjoint() if adjoint is None else adjoint
    dtype = jnp.result_type(*jax.tree.leaves(start))
    rest = float(jnp.finfo(dtype).eps) ** (2 / 3) if tolerance is None else tolerance
    if not isinstance(adjoint, UnrolledAdjoint):
        start = jax.tree.map(_not_differentiated, start)
    point = space.point(start)
    # What a plain function closes over becomes an input of the loop, so derivatives reach it.
    modules: Any = tuple(
        p if isinstance(p, eqx.Module) else eqx.filter_closure_convert(p, point)
        for p in projections
    )
    numbers, structure = eqx.partition((scheme, modules, space), eqx.is_inexact_array)

    def step(inputs: Any, carry: Any) -> tuple[Any, Any]:
        scheme, projections, space = eqx.combine(inputs, structure)
        old, _ = carry
        new = scheme.step(space, projections, old)
        change = space.distance(scheme.watched(space, old), scheme.watched(space, new))
        # The certificate steers the loop; no derivative passes through it.
        change = jax.lax.stop_gradient(change)
        return (new, change), (change <= rest) & (rest > 0) | ~jnp.isfinite(change)

    carry = (scheme.init(space, modules, point), jnp.full((), jnp.inf, dtype))
    (state, residual), steps = adjoint.loop(step, numbers, carry, max_steps)
    converged = jnp.isfinite(residual) if rest == 0 else residual <= rest
    value = scheme.read(state)
    if throw:
        message = (
            f"{type(scheme).__name__} did not come to rest: a step still changed a point by more "
            "than the tolerance after max_steps. Raise max_steps or the tolerance; throw=False "
            "returns what there is."
        )
        value = eqx.error_if(value, ~converged, message)
    return ProjectionResult(value, residual, steps, converged, state)


@jax.custom_jvp
def _not_differentiated(start: Array) -> Array:
    return start


@partial(_not_differentiated.defjvp, symbolic_zeros=True)
def _(primals: Any, tangents: Any) -> Any:
    if type(tangents[0]) is not SymbolicZero:
        raise ValueError(
            "An implicit derivative in `start` was asked for. Where a scheme comes to rest may "
            "depend on where it started, which the fixed point alone does not tell. Use "
            "UnrolledAdjoint(), or stop the gradient of the start."
        )
    return primals[0], jnp.zeros_like(primals[0])
