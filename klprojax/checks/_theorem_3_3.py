"""Theorem 3.3: jets of downward messages, tables of them, and gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..lifting import DeltaLift, delta_lift, table_sensitivities
from ._differences import compare_with_differences
from ._measure import at_least, by_precision, relative_difference
from ._registry import statement


def computation(parameters: Any, x: Any) -> Any:
    """Evaluate a recurrence, attention over its states, and a residual block with a loss.

    Everything is used more than once: most variables have several downward messages. Nothing has a
    kink (no maximum is subtracted in the exponentials), so tables converge at second order.
    """

    def step(h: Any, token: Any) -> tuple[Any, Any]:
        h = jnp.tanh(parameters["recurrent"] @ h + token)
        return h, h

    last, states = lax.scan(step, parameters["start"], x)
    scores = jnp.exp(states @ last)
    mixed = (scores / jnp.sum(scores)) @ states + last
    hidden = jnp.sin(parameters["hidden"] @ mixed) * mixed
    logits = hidden + mixed * jnp.exp(-(hidden**2))
    return jnp.log(jnp.sum(jnp.exp(logits))) - logits[0] + jnp.sum(parameters["start"] * last)


def computation_arguments(seed: int, size: int, dtype: Any) -> tuple[Any, ...]:
    """Draw parameters of width `size` and three inputs, all of order one."""
    at_least(size, 2)
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Any:
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    parameters = {
        "recurrent": draw(size, size, scale=size**-0.5),
        "hidden": draw(size, size, scale=size**-0.5),
        "start": draw(size, scale=0.5),
    }
    return parameters, draw(3, size, scale=0.5)


def output_factor(z: Any) -> Any:
    """Return `φ(z) = exp(z) + exp(z/2)`: positive, and its log-slope is not constant."""
    return jnp.exp(z) + jnp.exp(z / 2)


def output_slope(z: Any) -> float:
    """Return `φ'/φ` by formula, in numpy."""
    z = np.float64(z)
    return float((np.exp(z) + np.exp(z / 2) / 2) / (np.exp(z) + np.exp(z / 2)))


@functools.lru_cache(maxsize=1)
def _lifted(seed: int, size: int, dtype: Any) -> tuple[tuple[Any, ...], DeltaLift]:
    # Tracing and compiling the upward pass takes longer than all the rest of a check.
    args = computation_arguments(seed, size, dtype)
    return args, delta_lift(computation, *args)


def _referee(args: tuple[Any, ...]) -> Any:
    """Return `φ'/φ ∇z` by `jax.grad`, with `φ'/φ` by formula."""
    z, gradient = jax.jit(jax.value_and_grad(computation, argnums=(0, 1)))(*args)
    return jax.tree.map(lambda g: output_slope(z) * np.asarray(g), gradient)


@statement("Theorem 3.3", "jets vs belief propagation on tables, nothing differentiated")
def theorem_3_3_tables(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that jets and hat-function tables give the same slopes `∇_x log b_↓(x)`.

    Source: Theorem 3.3. `size` is the width of the computation.
    """
    _, lift = _lifted(seed, size, dtype)
    spacing = by_precision(dtype, 1e-4, 1e-2)
    tables = table_sensitivities(lift, output_factor, spacing=spacing).inputs
    # Tables err by spacing² times curvatures of order ten; single precision adds rounding 1e-7,
    # gathered along the computation, over the spacing.
    return (
        relative_difference(tables, lift.sensitivities(output_factor).inputs),
        by_precision(dtype, 1e-6, 2e-2),
    )


@statement("Theorem 3.3", "belief propagation on tables vs φ'/φ · jax.grad, as referee")
def theorem_3_3_tables_gradient(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check `∇_x log b_↓(x) = φ'/φ ∇_x z` of messages that are tables.

    Source: Theorem 3.3. `size` is the width of the computation.
    """
    args, lift = _lifted(seed, size, dtype)
    spacing = by_precision(dtype, 1e-4, 1e-2)
    tables = table_sensitivities(lift, output_factor, spacing=spacing)
    # As in theorem_3_3_tables.
    return relative_difference(tables.inputs, _referee(args)), by_precision(dtype, 1e-6, 2e-2)


@statement("Theorem 3.3", "jets vs φ'/φ · jax.grad, as referee")
def theorem_3_3_gradient(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check `∇_x log b_↓(x) = φ'/φ ∇_x z` of the jets.

    Source: Theorem 3.3. `size` is the width of the computation.
    """
    args, lift = _lifted(seed, size, dtype)
    jets = lift.sensitivities(output_factor).inputs
    # Both evaluate the same local derivatives in another order: tens of roundings.
    return relative_difference(jets, _referee(args)), by_precision(dtype, 1e-12, 1e-4)


@statement("Theorem 3.3", "jets vs central differences of the function, random directions")
def theorem_3_3_differences(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check `⟨∇_x log b_↓(x), d⟩ = φ'/φ · dz/dt` along random lines `x + t d`.

    The tolerance is what the differences themselves say that they are worth.

    Source: Theorem 3.3. `size` is the width of the computation.
    """
    args, lift = _lifted(seed, size, dtype)
    slopes = lift.sensitivities(output_factor).inputs
    return compare_with_differences(
        computation, args, slopes, seed=seed, scale=output_slope(lift.output)
    )
