"""Any smooth function of outputs and targets as an output factor."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._outputs import AbstractOutputFactor

_NEWTON_STEPS, _HALVINGS = 12, 8
_MOST_PRODUCTS = 24  # of a Newton step with the Hessian


class FunctionLoss(AbstractOutputFactor):
    """`C(x, y) = function(x, y)`, any function with two derivatives: losses as functions.

    The proximal step has no closed form. It is found by Newton's method for each row, from where
    the row is; conjugate gradients solve for the step, so the Hessian is never formed, and the step
    is halved until the objective falls. Where the function is not convex the result is a stationary
    point below the start.

    Args:
        function: `function(outputs, targets) -> [batch]`, nats, each row of its own outputs and
            targets alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.training import FunctionLoss
        >>> quartic = FunctionLoss(lambda x, y: jnp.sum((x - y) ** 4, -1))
        >>> x, y = jnp.array([[3.0]]), jnp.array([[1.0]])
        >>> near = quartic.proximal(x, y, 4.0)  # 4 (x - 3) + 4 (x - 1)³ = 0
        >>> round(float(near[0, 0]), 6)
        2.0

    Reference: Steihaug, "The conjugate gradient method and trust regions" (1983).
    """

    function: Callable[[Any, Any], Array]

    def __call__(self, outputs, targets):
        """The function itself."""
        return self.function(outputs, targets)

    def proximal(self, outputs, targets, precision):
        """Newton's method; see the class. Differentiated by the implicit function theorem."""
        omega = jnp.asarray(precision, outputs.dtype)
        start = outputs.reshape(len(outputs), -1)
        found = lax.stop_gradient(self._minimise(outputs.shape, start, targets, omega))
        # One more step, which is 0 but for what it tells of derivatives.
        product = jax.linearize(self._gradient(outputs.shape, start, targets, omega, True), found)[
            1
        ]
        rest = -self._gradient(outputs.shape, start, targets, omega, False)(found)
        step = lax.custom_linear_solve(
            product, rest, lambda product, right: _solve(product, right, omega), symmetric=True
        )
        return (found + step).reshape(outputs.shape)

    def _objective(self, shape, start, targets, omega) -> Callable[[Array], Array]:
        def objective(x: Array) -> Array:
            values = self.function(x.reshape(shape), targets)
            return omega / 2 * _dot(x - start, x - start)[:, 0] + values

        return objective

    def _gradient(self, shape, start, targets, omega, constant: bool) -> Callable[[Array], Array]:
        if constant:
            start, targets, omega = lax.stop_gradient((start, targets, omega))
        objective = self._objective(shape, start, targets, omega)
        return jax.grad(lambda x: jnp.sum(objective(x)))

    def _minimise(self, shape, start, targets, omega) -> Array:
        start, targets, omega = lax.stop_gradient((start, targets, omega))
        objective = self._objective(shape, start, targets, omega)
        gradient = self._gradient(shape, start, targets, omega, True)

        def newton(_: Any, x: Array) -> Array:
            g, product = jax.linearize(gradient, x)
            step = _solve(product, -g, omega)
            before = objective(x)

            def halve(_: Any, length: Array) -> Array:
                # NaN, beyond where the function is defined, is no fall.
                falls = objective(x + length * step) <= before
                return jnp.where(falls[:, None], length, length / 2)

            length = lax.fori_loop(0, _HALVINGS, halve, jnp.ones((len(x), 1), x.dtype))
            moved = x + length * step
            return jnp.where((objective(moved) <= before)[:, None], moved, x)

        return lax.fori_loop(0, _NEWTON_STEPS, newton, start)

    def slope(self, outputs, targets, precision):
        """`-∇C(x*)`."""
        nearest = self.proximal(outputs, targets, precision)
        return -jax.grad(lambda x: jnp.sum(self.function(x, targets)))(nearest)


def _dot(a: Float[Array, "batch n"], b: Float[Array, "batch n"]) -> Float[Array, "batch 1"]:
    return jnp.sum(a * b, axis=-1, keepdims=True)


def _solve(product: Callable[[Array], Array], right: Array, omega: Array) -> Array:
    """Conjugate gradients for each row, ended where the curvature is not positive."""

    def body(_: Any, carry: Any) -> Any:
        x, rest, way, size = carry
        image = product(way)
        curvature = _dot(way, image)
        good = (curvature > 0) & (size > 0)
        one = jnp.ones_like(size)
        length = jnp.where(good, size / jnp.where(good, curvature, one), 0)
        x = x + length * way
        rest = rest - length * image
        after = _dot(rest, rest)
        turn = jnp.where(good, after / jnp.where(good, size, one), 0)
        way = jnp.where(good, rest + turn * way, way)
        return x, rest, way, jnp.where(good, after, size)

    zero, count = jnp.zeros_like(right), min(right.shape[1], _MOST_PRODUCTS)
    x, *_ = lax.fori_loop(0, count, body, (zero, right, right, _dot(right, right)))
    # No direction of positive curvature at all: downhill, as far as the precision alone says.
    return jnp.where(_dot(x, right) > 0, x, right / omega)
