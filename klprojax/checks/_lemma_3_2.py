"""Lemma 3.2: the message through one delta factor, against derivatives written by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lifting import delta_lift, exp_output, table_sensitivities
from ._measure import at_least, by_precision, relative_difference
from ._registry import statement


class Factor(NamedTuple):
    """A delta factor `y = ψ(x_1, ...)` and the derivatives of ψ, as formulas.

    Attributes:
        psi: ψ, one JAX primitive.
        arity: its number of arguments.
        partials: formulas `∂ψ/∂x_j`, in numpy.
    """

    psi: Callable[..., Any]
    arity: int
    partials: Callable[..., tuple[Any, ...]]


FACTORS = (
    Factor(lax.mul, 2, lambda a, b: (b, a)),
    Factor(lax.div, 2, lambda a, b: (1 / b, -a / b**2)),
    Factor(lax.pow, 2, lambda a, b: (b * a ** (b - 1), a**b * np.log(a))),
    Factor(lax.atan2, 2, lambda a, b: (b / (a**2 + b**2), -a / (a**2 + b**2))),
    Factor(lax.tanh, 1, lambda a: (1 - np.tanh(a) ** 2,)),
    Factor(lax.log, 1, lambda a: (1 / a,)),
    Factor(lax.logistic, 1, lambda a: (np.exp(-a) / (1 + np.exp(-a)) ** 2,)),
)


def incoming_message(y: Any) -> Any:
    """Return `m_{y→g}(y)`, strictly positive and C1."""
    return 2 + jnp.sin(3 * y)


def incoming_log_slope(y: Any) -> Any:
    """Return `∂ log m_{y→g} / ∂y`, in numpy."""
    return 3 * np.cos(3 * y) / (2 + np.sin(3 * y))


def _arguments(seed: int, size: int) -> list[tuple[Factor, np.ndarray]]:
    at_least(size, 1)
    # Between one and two every factor is smooth, and the message's slope has both signs.
    rng = np.random.default_rng(seed)
    return [(f, rng.uniform(1, 2, f.arity)) for _ in range(size) for f in FACTORS]


def _expected(factor: Factor, point: np.ndarray, dtype: Any) -> tuple[Any, ...]:
    y = np.float64(factor.psi(*(jnp.asarray(x, dtype) for x in point)))
    return tuple(incoming_log_slope(y) * p for p in factor.partials(*point))


@statement("Lemma 3.2", "slopes of the jets through one delta factor vs formulas in numpy")
def lemma_3_2_jets(seed: int = 0, size: int = 1, dtype: Any = None) -> Any:
    """Check `∂ log m_{g→x_j} = ∂ log m_{y→g} · ∂y/∂x_j` at the forward point.

    Source: Lemma 3.2. `size` is the number of points at which every factor is checked.
    """
    found, wanted = [], []
    for factor, point in _arguments(seed, size):
        lift = delta_lift(factor.psi, *(jnp.asarray(x, dtype) for x in point))
        if len(lift.factors) != 1:
            raise ValueError(f"{factor.psi} became {len(lift.factors)} delta factors, not one")
        got = lift.sensitivities(incoming_message).inputs
        found.append(got)
        wanted.append(_expected(factor, point, dtype))
    # A few roundings, in units of the largest slope.
    return relative_difference(found, wanted), by_precision(dtype, 1e-13, 1e-5)


@statement("Lemma 3.2", "slopes of table messages through one delta factor vs formulas in numpy")
def lemma_3_2_tables(seed: int = 0, size: int = 1, dtype: Any = None) -> Any:
    """Check the same of sums over tables, where nothing is differentiated at all.

    Factors of two arguments, one of them clamped by the message that it gets.

    Source: Lemma 3.2. `size` is the number of points at which every factor is checked.
    """
    spacing = by_precision(dtype, 1e-4, 1e-2)
    found, wanted = [], []
    for factor, point in _arguments(seed, size):
        if factor.arity != 2:
            continue
        lift = delta_lift(factor.psi, *(jnp.asarray(x, dtype) for x in point))
        got = table_sensitivities(lift, incoming_message, spacing=spacing).inputs
        found.append(got)
        wanted.append(_expected(factor, point, dtype))
    # Central differences err by spacing² times third derivatives, about ten times the largest
    # slope; single precision adds rounding 1e-7 / spacing.
    return relative_difference(found, wanted), by_precision(dtype, 1e-6, 1e-2)


@statement("Theorem 3.3", "s(z) of several output factors vs φ'/φ by formulas in numpy")
def theorem_3_3_seed(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check `s(z) = φ'(z*) / φ(z*)`, and that it is α for `φ(z) = exp(α z)`, at any z.

    Source: Theorem 3.3. `size` is the number of points.
    """
    at_least(size, 1)
    alpha, far = -3.0, 1e4  # exp(-3e4) is no float
    got, want = [], []
    for z in np.random.default_rng(seed).normal(size=size):
        lift = delta_lift(lambda x: x + 0.0, jnp.asarray(z, dtype))
        for phi, slope in (
            (lambda z: 1 + z**2, 2 * z / (1 + z**2)),
            (lambda z: jnp.exp(-jnp.cosh(z)), -np.sinh(z)),
            (incoming_message, incoming_log_slope(z)),
            (exp_output(alpha), alpha),
        ):
            got.append(lift.sensitivities(phi).output)
            want.append(np.asarray(slope))
        distant = lift.at(jnp.asarray(z + far, dtype))
        got.append(distant.sensitivities(exp_output(alpha)).output)
        want.append(np.asarray(alpha))
    # Slopes of size three: a few roundings.
    return relative_difference(got, want), by_precision(dtype, 1e-14, 1e-5)
