"""Second-order jets: Gaussian downward messages and their curvature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tracing import BILINEAR, EXTREMA, LAYOUT, SUMS, LiftError, Psi, is_elementwise
from ._structure import DeltaFactor, Structure

# Above this many entries in a variable a dense second derivative is not formed.
_DENSE_LIMIT = 4096


def curvature_sweep(
    structure: Structure,
    kind: str,
    curved: tuple[bool, ...],
    values: Sequence[Any],
    slopes: Sequence[Any],
    seed: Any,
) -> tuple[Any, ...]:
    """Send the curvature of log-messages from the output down to every active variable.

    `log m_{y→g}` is replaced by its quadratic jet `s·d + d·H d / 2`, `d = y - y*`; substitution of
    ψ gives `H_j = Jᵀ H J + Σ_i s_i ∂²ψ_i/∂x_j²`; at fan-out curvatures add up.

    Args:
        structure: the lifted graph.
        kind: `"full"` for whole matrices, `"diagonal"` for their diagonals.
        curved: for each factor, whether its second derivative enters; if not, it is replaced by
            its linearisation.
        values: forward values.
        slopes: first-order jets of all variables.
        seed: `(log φ)''` at the output.

    Returns:
        The curvature of `log b_↓` for every variable: `[*shape]` or `[size, size]`.
    """
    curvature: list[Any] = [None] * len(structure.variables)
    curvature[structure.outputs[0]] = seed if kind == "diagonal" else jnp.reshape(seed, (1, 1))
    entries = _diagonal if kind == "diagonal" else _full
    for factor in reversed(structure.factors):
        if not factor.active:
            continue
        inputs = [values[index] for index in factor.inputs]
        # A variable with a slope but no curvature arrives only where every message is linear.
        outgoing = [
            _Jet(position, values[index], slopes[index], curvature[index], kind == "diagonal")
            for position, index in enumerate(factor.outputs)
            if slopes[index] is not None
        ]
        if not outgoing:
            continue
        for position in factor.active:
            index = factor.inputs[position]
            if jnp.issubdtype(jnp.asarray(inputs[position]).dtype, jnp.complexfloating):
                raise LiftError(
                    "curvature is defined for real variables only; write the complex part of the"
                    " function with real and imaginary parts",
                    factor.label,
                )
            try:
                message = entries(factor, position, inputs, outgoing, curved[factor.index])
            except LiftError:
                raise
            except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
                raise LiftError(
                    f"the primitive has no second derivative ({error})", factor.label
                ) from error
            known = curvature[index]
            curvature[index] = message if known is None else known + message
    return tuple(curvature)


class _Jet:
    """Quadratic jet of the log-message that one output of a factor receives."""

    def __init__(self, position: int, value: Any, slope: Any, curvature: Any, diagonal: bool):
        self.diagonal = diagonal
        self.position = position
        self.value = jnp.asarray(value)
        self.slope = slope
        self.curvature = curvature

    def log_message(self, y: Any) -> Any:
        d = y - self.value
        total = jnp.sum(self.slope * d)
        if self.curvature is None:
            return total
        if self.diagonal:
            quadratic = jnp.sum(self.curvature * d * d)
        else:
            quadratic = d.reshape(-1) @ self.curvature @ d.reshape(-1)
        return total + quadratic / 2


def _substituted(
    factor: DeltaFactor, position: int, inputs: Sequence[Any], jets: Sequence[_Jet], curved: bool
) -> Callable[[Any], Any]:
    """Return `x ↦ log m_{g→x}(x)`, with ψ replaced by its linearisation unless `curved`."""
    psi = Psi(factor.equation)
    start = jnp.asarray(inputs[position])

    def outputs(x: Any) -> tuple[Any, ...]:
        full = list(inputs)
        full[position] = x
        results = psi(*full)
        return tuple(results[jet.position] for jet in jets)

    def log_message(x: Any) -> Any:
        if curved:
            ys = outputs(x)
        else:
            at, push = jax.linearize(outputs, start)
            ys = tuple(y + t for y, t in zip(at, push(x - start), strict=True))
        terms = [jet.log_message(y) for jet, y in zip(jets, ys, strict=True)]
        return sum(terms[1:], terms[0])

    return log_message


def _full(
    factor: DeltaFactor, position: int, inputs: Sequence[Any], jets: Sequence[_Jet], curved: bool
) -> Any:
    x = jnp.asarray(inputs[position])
    if x.size > _DENSE_LIMIT:
        raise LiftError(
            f"a full curvature matrix of {x.size} x {x.size} is too large; use kind='diagonal'",
            factor.label,
        )
    log_message = _substituted(factor, position, inputs, jets, curved)
    return jax.hessian(lambda flat: log_message(flat.reshape(x.shape)))(x.reshape(-1))


def _diagonal(
    factor: DeltaFactor, position: int, inputs: Sequence[Any], jets: Sequence[_Jet], curved: bool
) -> Any:
    x = jnp.asarray(inputs[position])
    name = factor.primitive
    shapes = {jet.value.shape for jet in jets}
    if shapes == {x.shape} and is_elementwise(factor.equation, ("custom_jvp",)):
        log_message = _substituted(factor, position, inputs, jets, curved)
        return jax.jvp(jax.grad(log_message), (x,), (jnp.ones_like(x),))[1]
    # Entries of the Jacobian are 0 and 1, so that J∘J = J, or entries of the other argument.
    if name in LAYOUT or name in SUMS or name in EXTREMA or name in BILINEAR:
        if all(jet.curvature is None for jet in jets):
            return jnp.zeros_like(x)
        operands = list(inputs)
        if name in BILINEAR:
            other = 1 - position
            operands[other] = jnp.square(operands[other])
        psi = Psi(factor.equation)

        def route(x: Any) -> tuple[Any, ...]:
            operands[position] = x
            results = psi(*operands)
            return tuple(results[jet.position] for jet in jets)

        _, pullback = jax.vjp(route, x)
        return pullback(
            tuple(
                jnp.zeros_like(jet.value) if jet.curvature is None else jet.curvature
                for jet in jets
            )
        )[0]
    return jnp.diagonal(_full(factor, position, inputs, jets, curved)).reshape(x.shape)


def as_matrix_shape(curvature: Any, value: Any, kind: str) -> Any:
    """Shape a curvature like its variable: `[*shape]`, or `[*shape, *shape]`."""
    shape = np.shape(value)
    if curvature is None:
        return jnp.zeros(shape if kind == "diagonal" else shape * 2, jnp.asarray(value).dtype)
    return curvature if kind == "diagonal" else curvature.reshape(shape * 2)
