"""Output factors: what a network's outputs are trained for."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ..lifting.local import cross_entropy_proximal


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

    def check(self, outputs: Any, targets: Any, name: str = "targets") -> None:
        """Refuse targets whose numbers the factor is not for; traced ones pass.

        Args:
            outputs: outputs of as many rows, or anything of their shape.
            targets: as in a call.
            name: what an error calls them.

        Raises:
            ValueError: the numbers of some row do not fit.
        """


class CrossEntropy(AbstractOutputFactor):
    """`C(x, y) = logsumexp(x) - Σ_k y_k x_k` over the last axis, in nats.

    Targets are class numbers `[batch, ...]` (integers) or distributions `[batch, ..., classes]`.
    Positions between the batch and the classes, if any, are summed. Known targets are checked;
    within `jit` the loss of a number that is no class is infinite.
    """

    def __call__(self, outputs, targets):
        """Cross-entropy of every row."""
        probs = self.distributions(outputs, targets)
        losses = jax.nn.logsumexp(outputs, axis=-1) - jnp.sum(probs * outputs, axis=-1)
        losses = _infinite_off_classes(losses, targets, outputs.shape[-1])
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
        self.check(outputs, targets)
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

    def check(self, outputs, targets, name="targets"):
        """Class numbers are classes; distributions are at least 0 and sum to 1."""
        if isinstance(targets, Tracer):
            return
        table = np.asarray(targets)
        if table.shape == outputs.shape[:-1]:
            _check_classes("CrossEntropy", outputs, table, name)
        if table.shape != outputs.shape or not jnp.issubdtype(table.dtype, jnp.floating):
            return
        # Printed tables, and numbers of half precision, miss 1 by rounding.
        tolerance = max(1e-3, float(jnp.finfo(table.dtype).eps)) * 1.001
        table = table.astype(np.float64).reshape(len(table), -1, table.shape[-1])
        with np.errstate(invalid="ignore"):
            good = (table >= 0).all(-1) & (np.abs(table.sum(-1) - 1) <= tolerance)
        if not good.all():
            row, place = np.argwhere(~good)[0]
            found, least = table[row, place], table[row, place].min()
            what = (
                f"the entry {least:.6g}" if not least >= 0 else f"entries of sum {found.sum():.6g}"
            )
            raise ValueError(
                f"CrossEntropy, the loss unless another is given, takes real {name} for "
                f"distributions over the {table.shape[-1]} outputs, entries of at least 0 that sum "
                f"to 1; row {row} has {what}. For real numbers to be met give "
                "loss=SquaredError() or a function loss(outputs, y) of your own; for classes give "
                "integers."
            )


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
        losses = jnp.sum(jnp.square(outputs - self.nearest(outputs, targets)), axis=-1) / 2
        return _infinite_off_classes(losses, targets, outputs.shape[-1])

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
        self.check(outputs, targets)
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

    def check(self, outputs, targets, name="targets"):
        """Class numbers are classes."""
        if not isinstance(targets, Tracer) and np.shape(targets) == outputs.shape[:-1]:
            _check_classes("Margin", outputs, np.asarray(targets), name)


def _check_classes(factor: str, outputs: Any, labels: np.ndarray, name: str) -> None:
    classes = outputs.shape[-1]
    bad = (labels < 0) | (labels >= classes)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or not bad.any():
        return
    row = int(np.argmax(bad.reshape(len(bad), -1).any(1)))
    label = labels[row][bad[row]].reshape(-1)[0]
    advice = "the model needs one output a class"
    if classes == 1:
        advice += ", two for two classes; a single logit needs a loss of your own"
    raise ValueError(
        f"{factor} got the class number {label} in row {row} of {name}; for {classes} output(s) "
        f"class numbers are 0 to {classes - 1}: {advice}."
    )


def _infinite_off_classes(losses: Array, targets: Any, classes: int) -> Array:
    """Class numbers that no output stands for have probability 0."""
    if not isinstance(targets, Tracer) or not jnp.issubdtype(targets.dtype, jnp.integer):
        return losses
    last = min(classes - 1, jnp.iinfo(targets.dtype).max)
    return jnp.where((targets >= 0) & (targets <= last), losses, jnp.full_like(losses, jnp.inf))
