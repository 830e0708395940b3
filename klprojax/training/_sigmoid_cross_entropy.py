"""Several labels per row, each present or not."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..lifting.local import cross_entropy_proximal
from ._outputs import AbstractOutputFactor


class SigmoidCrossEntropy(AbstractOutputFactor):
    """`C(x, y) = Σ_k log(1 + exp(x_k)) - y_k x_k`, in nats: every output is the logit of a label.

    Targets have the shape of the outputs; they are 0 or 1, or probabilities between.
    """

    def __call__(self, outputs, targets):
        """Cross-entropy of every row, summed over its labels."""
        losses = jax.nn.softplus(outputs) - self._same(outputs, targets) * outputs
        return jnp.sum(losses.reshape(len(losses), -1), axis=-1)

    def proximal(self, outputs, targets, precision):
        """Two classes per label with the logits x/2 and -x/2; see `cross_entropy_proximal`."""
        y = self._same(outputs, targets).reshape(-1)
        halves = outputs.reshape(-1) / 2
        # Of a - b = x and a + b = 0: |a - a'|² + |b - b'|² = |x - x'|²/2.
        omega = 2 * jnp.asarray(precision, outputs.dtype)
        found = cross_entropy_proximal(
            jnp.stack([halves, -halves], -1), jnp.stack([y, 1 - y], -1), omega
        )
        return (found[:, 0] - found[:, 1]).reshape(outputs.shape)

    def slope(self, outputs, targets, precision):
        """`y - sigmoid(x*)`."""
        nearest = self.proximal(outputs, targets, precision)
        return self._same(outputs, targets) - jax.nn.sigmoid(nearest)

    def check(self, outputs, targets, name="targets"):
        """Targets lie between 0 and 1."""
        if isinstance(targets, Tracer):
            return
        table = np.asarray(targets).astype(np.float64)
        bad = ~((table >= 0) & (table <= 1)).reshape(len(table), -1).all(1)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"SigmoidCrossEntropy takes {name} between 0 and 1, one for each label; row {row} "
                f"holds {table[row].reshape(-1).tolist()}."
            )

    def _same(self, outputs, targets):
        self.check(outputs, targets)
        targets = jnp.asarray(targets)
        if targets.shape != outputs.shape:
            raise ValueError(
                f"SigmoidCrossEntropy got targets of shape {targets.shape} for outputs of shape "
                f"{outputs.shape}; it needs one number for each output."
            )
        return targets.astype(outputs.dtype)
