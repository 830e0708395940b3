"""Output factors (section 3.3): the positive C1 tables that seed the downward pass."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Inexact

from .._tracing import no_python_values


class ExpOutput(eqx.Module):
    """The output factor `φ(z) = exp(α z)`, whose downward messages have slope `α ∇z`.

    The slope is α at every z, also where φ(z) itself would overflow or vanish.

    Attributes:
        alpha: the factor's constant slope, a scalar.
    """

    alpha: Any = 1.0

    def __call__(self, z: Any) -> Any:
        """Return `exp(α z)`."""
        return jnp.exp(self.log_phi(z))

    def log_phi(self, z: Any) -> Any:
        """Return `α z`."""
        return jnp.asarray(self.alpha, jnp.asarray(z).dtype) * z


class LogOutput(eqx.Module):
    """An output factor given by its logarithm, for values of φ beyond the range of floats.

    Attributes:
        log_phi: a C1 function from a scalar to a scalar, the natural logarithm of φ.
    """

    log_phi: Callable[[Any], Any]

    def __call__(self, z: Any) -> Any:
        """Return `φ(z)`."""
        return jnp.exp(self.log_phi(z))


def exp_output(alpha: Any = 1.0) -> ExpOutput:
    """Return `φ(z) = exp(α z)`; with `α = -1` the factor `exp(-z)` of a loss z.

    Args:
        alpha: scalar slope of `log φ`.
    """
    return ExpOutput(alpha)


@no_python_values("the output factor phi")
def log_output_slope(phi: Callable[[Any], Any], z: Inexact[Array, ""]) -> Inexact[Array, ""]:
    """Return `s(z) = φ'(z) / φ(z)`, the slope of the seed message at the forward value.

    Args:
        phi: a positive C1 function of a scalar. If it has a method `log_phi`, that is used instead,
            so φ(z) may lie beyond the range of floats.
        z: the forward value.

    Raises:
        ValueError: φ does not return a scalar, or (when z is known) φ(z) is not positive and finite
            or its slope is not finite. Inside `jit` the latter is an Equinox run-time error.
        LiftError: φ asks in Python for the value of its argument.
    """
    if isinstance(phi, ExpOutput):
        return jnp.asarray(phi.alpha, z.dtype)
    log_phi = getattr(phi, "log_phi", None)
    given = phi if log_phi is None else log_phi
    shape = jax.eval_shape(given, z)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(
            f"the output factor must map a scalar to a scalar, but returned {shape};"
            " reduce its result, or make the function's own output the scalar you mean"
        )
    value, slope = jax.value_and_grad(given)(z)
    if log_phi is None:
        # The message is m(z) = phi(z); its log-slope is phi'/phi only where phi is positive.
        bad = ~((value > 0) & jnp.isfinite(value) & jnp.isfinite(slope))
        slope = slope / jnp.where(bad, jnp.ones_like(value), value)
    else:
        bad = ~(jnp.isfinite(value) & jnp.isfinite(slope))
    message = (
        "the output factor phi must be positive and finite with a finite slope at the forward"
        " value z. For values beyond the range of floats give the factor a method log_phi"
        " (exp_output, LogOutput)."
    )
    slope = slope.astype(z.dtype)
    if isinstance(bad, Tracer):
        return eqx.error_if(slope, bad, message)
    if bool(bad):
        raise ValueError(f"{message} Got phi or log phi = {value} at z = {z}.")
    return slope


@no_python_values("the output factor phi")
def log_output_table(
    phi: Callable[[Any], Any], points: Inexact[Array, " points"]
) -> Inexact[Array, " points"]:
    """Return `log φ` at several points.

    Args:
        phi: a positive function of a scalar; its method `log_phi` is used if it has one.
        points: where.

    Raises:
        ValueError: φ is not positive and finite there. Inside `jit` an Equinox run-time error.
    """
    log_phi = getattr(phi, "log_phi", None)
    table = jnp.log(jax.vmap(phi)(points)) if log_phi is None else jax.vmap(log_phi)(points)
    bad = ~jnp.all(jnp.isfinite(table))
    message = (
        "the output factor phi must be positive and finite on the lattice of z; for values beyond"
        " the range of floats give the factor a method log_phi"
    )
    if isinstance(bad, Tracer):
        return eqx.error_if(table, bad, message)
    if bool(bad):
        raise ValueError(f"{message}. Got log phi = {table} at z = {points}.")
    return table


@no_python_values("the output factor phi")
def log_output_curvature(phi: Callable[[Any], Any], z: Inexact[Array, ""]) -> Inexact[Array, ""]:
    """Return `(log φ)''` at the forward value, the curvature of the seed message."""
    if isinstance(phi, ExpOutput):
        return jnp.zeros_like(z)
    log_phi = getattr(phi, "log_phi", None) or (lambda z: jnp.log(phi(z)))
    return jax.grad(jax.grad(log_phi))(z).astype(z.dtype)
