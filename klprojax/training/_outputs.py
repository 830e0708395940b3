"""Output factors: what a network's outputs are trained for."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .local import cross_entropy_proximal


class AbstractOutputFactor(eqx.Module):
    """The factor `exp(-C(x, y))` on the outputs x of a network.

    It is a loss, `factor(outputs, targets)`, and it can be projected onto: the proximal step of C
    is the I-projection of a Gaussian table onto the factor, at zero temperature.
    """

    @abc.abstractmethod
    def __call__(self, outputs: Float[Array, "batch ..."], targets: Any) -> Float[Array, " batch"]:
        """Return `C(x, y)` for every row, in nats."""

    @abc.abstractmethod
    def proximal(
        self, outputs: Float[Array, "batch ..."], targets: Any, precision: Any
    ) -> Float[Array, "batch ..."]:
        """Minimise `precision/2 |x - outputs|² + C(x, y)` for every row.

        Args:
            outputs: where the rows are.
            targets: as in a call.
            precision: ω > 0, a scalar.
        """

    def slope(
        self, outputs: Float[Array, "batch ..."], targets: Any, precision: Any
    ) -> Float[Array, "batch ..."]:
        """Message of the factor, `precision (x* - outputs)` with x* the proximal point.

        Subclasses may return the same as `-∇C(x*)`, which loses no digits at large precision.

        Args:
            outputs: where the rows are.
            targets: as in a call.
            precision: ω > 0, a scalar.
        """
        moved = self.proximal(outputs, targets, precision) - outputs
        return jnp.asarray(precision, outputs.dtype) * moved


class CrossEntropy(AbstractOutputFactor):
    """`C(x, y) = logsumexp(x) - Σ_k y_k x_k` over the last axis, in nats.

    Targets are class numbers `[batch, ...]` (integers) or distributions `[batch, ..., classes]`.
    Positions between the batch and the classes, if any, are summed.
    """

    def __call__(self, outputs, targets):
        """Cross-entropy of every row."""
        probs = self.distributions(outputs, targets)
        losses = jax.nn.logsumexp(outputs, axis=-1) - jnp.sum(probs * outputs, axis=-1)
        return jnp.sum(losses.reshape(len(outputs), -1), axis=-1)

    def proximal(self, outputs, targets, precision):
        """Safeguarded Newton steps; see `cross_entropy_proximal`."""
        probs = self.distributions(outputs, targets)
        classes = outputs.shape[-1]
        found = cross_entropy_proximal(
            outputs.reshape(-1, classes), probs.reshape(-1, classes), precision
        )
        return found.reshape(outputs.shape)

    def slope(self, outputs, targets, precision):
        """`y - softmax(x*)`."""
        nearest = self.proximal(outputs, targets, precision)
        return self.distributions(outputs, targets) - jax.nn.softmax(nearest, axis=-1)

    def distributions(self, outputs: Array, targets: Any) -> Array:
        """The targets as distributions over the classes.

        Raises:
            ValueError: targets that fit neither form.
        """
        targets = jnp.asarray(targets)
        if jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs.shape[:-1]:
            return jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        if targets.shape != outputs.shape or not jnp.issubdtype(targets.dtype, jnp.floating):
            raise ValueError(
                f"CrossEntropy got targets of shape {targets.shape} and type {targets.dtype} for "
                f"outputs of shape {outputs.shape}; expected class numbers {outputs.shape[:-1]} "
                f"(integers) or distributions {outputs.shape} (real)."
            )
        return targets.astype(outputs.dtype)


class SquaredError(AbstractOutputFactor):
    """`C(x, y) = |x - y|²/2`; targets have the shape of the outputs."""

    def __call__(self, outputs, targets):
        """Half the squared distance of every row."""
        gap = outputs - self._same(outputs, targets)
        return jnp.sum(jnp.square(gap).reshape(len(gap), -1), axis=-1) / 2

    def proximal(self, outputs, targets, precision):
        """The weighted mean of outputs and targets."""
        omega = jnp.asarray(precision, outputs.dtype)
        return outputs + (self._same(outputs, targets) - outputs) / (1 + omega)

    def slope(self, outputs, targets, precision):
        """`y - x*`."""
        return self._same(outputs, targets) - self.proximal(outputs, targets, precision)

    def _same(self, outputs: Array, targets: Any) -> Array:
        targets = jnp.asarray(targets)
        if targets.shape != outputs.shape:
            raise ValueError(
                f"SquaredError got targets of shape {targets.shape} for outputs of shape "
                f"{outputs.shape}; the shapes must agree."
            )
        return targets.astype(outputs.dtype)


class Margin(AbstractOutputFactor):
    """Half the squared distance to the set `{x_y >= margin, x_k <= 0 for k != y}`.

    Its proximal step at small precision is the projection onto the set itself. Targets are class
    numbers `[batch]`.

    Args:
        margin: least output of the right class, positive.
    """

    margin: float = 1.0

    def __check_init__(self):
        if not self.margin > 0:
            raise ValueError(f"Margin got margin={self.margin}; it must be positive.")

    def __call__(self, outputs, targets):
        """Half the squared distance of every row to the set."""
        return jnp.sum(jnp.square(outputs - self.nearest(outputs, targets)), axis=-1) / 2

    def proximal(self, outputs, targets, precision):
        """Part of the way to the set: the weighted mean with its nearest point."""
        omega = jnp.asarray(precision, outputs.dtype)
        return outputs + (self.nearest(outputs, targets) - outputs) / (1 + omega)

    def slope(self, outputs, targets, precision):
        """The way to the set, times `ω/(1 + ω)`."""
        omega = jnp.asarray(precision, outputs.dtype)
        return omega / (1 + omega) * (self.nearest(outputs, targets) - outputs)

    def nearest(self, outputs: Float[Array, "batch classes"], targets: Any) -> Array:
        """The nearest point of the set.

        Raises:
            ValueError: targets that are not class numbers of the rows.
        """
        targets = jnp.asarray(targets)
        if targets.shape != outputs.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"Margin got targets of shape {targets.shape} and type {targets.dtype} for outputs "
                f"of shape {outputs.shape}; expected class numbers {outputs.shape[:-1]} (integers)."
            )
        right = jax.nn.one_hot(targets, outputs.shape[-1], dtype=bool)
        least = jnp.asarray(self.margin, outputs.dtype)
        return jnp.where(
            right, jnp.maximum(outputs, least), jnp.minimum(outputs, jnp.zeros_like(outputs))
        )
