"""Theorem 3.3 on a function of one's own."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..lifting import DeltaLift, LiftError, delta_lift, exp_output, table_sensitivities
from ._check import Check
from ._differences import WORST_TOLERANCE, compare_with_differences, variable_leaves
from ._measure import relative_difference
from ._registry import AS_PRINTED

_LABEL = "Theorem 3.3"


def check_function(
    function: Callable[..., Any],
    *args: Any,
    variables: Any | None = None,
    name: str = "function",
    seed: int = 0,
    table_limit: int = 20_000,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Check]:
    """Check Theorem 3.3 on a function from arrays to a real scalar, with `φ(z) = exp(z)`.

    The slopes of the downward jets are compared with those of belief propagation on tables, where
    nothing is differentiated; with central differences of the function along random lines; and,
    as referee, with `jax.grad`.

    Args:
        function: a function that `delta_lift` takes.
        args: its arguments, as `delta_lift` takes them.
        variables: which parts of them are variables, as in `delta_lift`.
        name: what the checks are called.
        seed: seed of the directions.
        table_limit: largest number of scalars, counted over all variables of the lift, for which
            tables are made.
        note: called with a text for each comparison that is left out.

    Yields:
        One check a comparison.

    Raises:
        LiftError: the function has no delta lift, or asks in Python for a traced value.
        ValueError: JAX cannot trace it.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.checks import check_function
        >>> f = lambda x: jnp.sum(jnp.sin(x) * x)
        >>> all(check.holds for check in check_function(f, jnp.asarray([0.3, 1.2])))
        True
    """
    try:
        lift = delta_lift(function, *args, variables=variables)
    except LiftError:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be traced: {_first_line(error)}") from error
    phi = exp_output(1.0)
    slopes = lift.sensitivities(phi).inputs
    variables, jets, rebuild = variable_leaves(args, slopes)
    eps = max(float(jnp.finfo(v.dtype).eps) for v in variables)

    def check(kind: str, compared: str, residual: float, tolerance: float) -> Check:
        return Check(f"{name}: {kind}", _LABEL, compared, AS_PRINTED, residual, tolerance)

    scalars = sum(int(jnp.size(value)) for value in lift.values if value is not None)
    if scalars > table_limit:
        note(f"tables left out: {scalars:,} scalars, more than {table_limit:,}")
    else:
        try:
            yield check(
                "tables",
                "jets vs belief propagation on tables, nothing differentiated",
                *_compare_with_tables(lift, args, jets, eps),
            )
        except ValueError as error:
            note(f"tables left out: {_first_line(error)}")

    compared = "jets vs central differences of the function, random directions"
    residual, tolerance = compare_with_differences(function, args, slopes, seed=seed)
    yield check("differences", compared, residual, tolerance)

    referee = jax.jit(jax.grad(lambda variables: function(*rebuild(variables))))
    try:
        gradient = referee(variables)
    except (TypeError, ValueError, NotImplementedError) as error:
        note(f"jax.grad left out: {_first_line(error)}")
    else:
        # The same local derivatives in another order: some thousand roundings.
        residual = relative_difference(jets, gradient)
        yield check("gradient", "jets vs jax.grad, as referee", residual, 1e4 * eps)


def _compare_with_tables(
    lift: DeltaLift, args: tuple[Any, ...], jets: Any, eps: float
) -> tuple[float, float]:
    """Return the difference of tables and jets, and a tolerance from tables of two spacings."""
    # Large enough for the error h² to show above the rounding eps / h.
    spacing = eps ** (1 / 4)
    near, far = (
        variable_leaves(args, table_sensitivities(lift, exp_output(1.0), spacing=h).inputs)[1]
        for h in (spacing, 2 * spacing)
    )
    # Errors grow as h², so a third of the change is the error of the nearer one: thrice that.
    doubt = relative_difference(far, near) + 100 * eps / spacing
    return relative_difference(near, jets), min(doubt, WORST_TOLERANCE)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
