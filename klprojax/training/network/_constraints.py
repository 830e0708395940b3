"""The operations of a network as local constraints: sums, activations, maxima.

Values of samples have a leading axis `batch`; shared values (parameters) have none. A constraint
takes the bases of its inputs (the values on which all copies agree), the target of its output and
precisions, and gives for every input the sum over its copies of `ω (copy* - base)`: the slope of
its message. Copies themselves, one for each sample and unit, are never formed.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...lifting.local import (
    project_abs,
    project_elementwise,
    project_identity,
    project_maximum,
    project_quantise,
    project_relu,
)


class Projected(NamedTuple):
    """What a local projection gives back.

    Attributes:
        slopes: for every input the summed slopes of its copies, or None where not wanted.
        output: value of the operation at the projected copies.
        residual: how far the projected point is from the constraint, the largest absolute value.
    """

    slopes: tuple[Array | None, ...]
    output: Array
    residual: Float[Array, ""]


class AbstractLocalConstraint(abc.ABC):
    """An operation whose graph a node projects onto."""

    carries = False

    @abc.abstractmethod
    def apply(self, *inputs: Array) -> Array:
        """Evaluate the operation on a batch."""

    def counts(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Array, ...]:
        """Copies that one sample keeps of every entry of each input, in the input's shape; one."""
        return tuple(jnp.ones(shape) for shape in shapes)

    @abc.abstractmethod
    def project(
        self,
        inputs: tuple[Array, ...],
        target: Array,
        precisions: tuple[Any, ...],
        output_precision: Any,
        weights: Float[Array, " batch"],
        wanted: tuple[bool, ...],
    ) -> Projected:
        """Project onto the graph of the operation.

        Args:
            inputs: bases.
            target: target of the output, `[batch, ...]`.
            precisions: precision of each input's copies, scalars.
            output_precision: precision of the target, a scalar or an array that broadcasts to it.
            weights: 1 for a sample, 0 for padding.
            wanted: which slopes are needed.
        """

    def steepness(self, inputs: tuple[Array, ...]) -> Array | None:
        """Norms of the derivatives of every output in one input; None if it has another unit.

        An input of such a rule is measured by what it does to the output. Its own size would not
        do: that of masked logits is the size of what masks them.
        """
        return None


class SumActivation(AbstractLocalConstraint):
    """`z = σ(s_1 + ... + s_m)`, elementwise; with the identity, a sum.

    The summands move in inverse proportion to their precisions, and all get the same slope: the
    problem is that of one input, the sum, at precision `1 / Σ 1/ω_i`.

    Args:
        function: σ on arrays of one sample.
        kind: `"identity"`, `"relu"`, `"abs"`, `"quantise"` or `"smooth"`.
        options: options of the kind.
        arity: number of summands.
    """

    def __init__(self, function: Callable[[Array], Array], kind: str, arity: int, options=None):
        self.function, self.kind, self.arity = function, kind, arity
        self.options = options or {}

    def apply(self, *inputs):
        """Sum, then σ."""
        return self._batched(sum(inputs[1:], inputs[0]))

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the sum and share its displacement."""
        total = sum(inputs[1:], inputs[0])
        omega = 1 / sum(1 / jnp.asarray(p, total.dtype) for p in precisions)
        rho = jnp.asarray(output_precision, total.dtype)
        # What is impossible, -inf of a mask for example, stays so and sends nothing.
        finite = jnp.isfinite(total) & jnp.isfinite(self._batched(total))
        inner, goal = jnp.where(finite, total, 0), jnp.where(finite, target, 0)
        moved = self.nearest(inner, goal, omega, rho)
        slope = jnp.where(finite, self.slope(inner, goal, omega, rho, moved), 0)
        output = self._batched(jnp.where(finite, moved, total))
        zero = jnp.zeros((), total.dtype)
        return Projected(tuple(slope if w else None for w in wanted), output, zero)

    def nearest(self, s: Array, z: Array, omega_s: Any, omega_z: Any) -> Array:
        """The projected sum."""
        if self.kind == "smooth":
            return project_elementwise(self._finite, s, z, omega_s, omega_z)
        return _EXACT[self.kind](s, z, omega_s, omega_z, **self.options)

    def slope(self, s: Any, z: Any, omega: Any, rho: Any, moved: Any) -> Array:
        """`ω (s* - s)`, which at a stationary point is `ρ σ'(s*) (z - σ(s*))` too.

        A precision multiplies the rounding of its difference, so the smaller one is right.
        """
        slope = omega * (moved - s)
        if self.kind == "quantise":
            return slope
        rise = self._rise(moved)
        # Where a piece ends the point is not stationary; an abs rises by 0 there.
        smooth = {"relu": moved > 0, "abs": rise != 0}.get(self.kind, moved == moved)
        return jnp.where(smooth & (rho < omega), rho * rise * (z - self._finite(moved)), slope)

    def steepness(self, inputs):
        """σ' at the sum."""
        return None if self.kind == "quantise" else self._rise(sum(inputs[1:], inputs[0]))

    def _rise(self, s: Array) -> Array:
        """σ', entry by entry; at a kink that of one side."""
        one = jnp.ones_like(s)
        if self.kind == "smooth":
            return jax.jvp(self._batched, (s,), (one,))[1]
        return {"relu": (s > 0).astype(s.dtype), "abs": jnp.sign(s)}.get(self.kind, one)

    def _finite(self, s: Array) -> Array:
        """σ, and 0 where it is infinite."""
        value = self._batched(s)
        return jnp.where(jnp.isfinite(value), value, 0)

    def _batched(self, total: Array) -> Array:
        return total if self.kind == "identity" else jax.vmap(self.function)(total)


class Maximum(AbstractLocalConstraint):
    """`z = max a` over some axes of one input.

    Args:
        axes: of one sample.
        ndim: axes of a for one sample.
        sign: 1, or -1 for the minimum.
    """

    def __init__(self, axes: tuple[int, ...], ndim: int, sign: int = 1):
        self.axes = tuple(axis + 1 for axis in axes)
        self.kept = tuple(axis + 1 for axis in range(ndim) if axis not in axes)
        self.sign = sign

    def apply(self, a):
        """Largest entry."""
        return jnp.max(a, axis=self.axes) if self.sign > 0 else jnp.min(a, axis=self.axes)

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the entries of every maximum."""
        (a,) = inputs
        order = (0, *self.kept, *self.axes)
        moved = jnp.transpose(a, order)
        flat = moved.reshape(target.shape + (-1,))
        rho, sign = jnp.asarray(output_precision, target.dtype), self.sign
        rho = jnp.broadcast_to(rho, target.shape)
        # The minimum is minus the maximum of -a.
        found = sign * project_maximum(sign * flat, sign * target, precisions[0], rho)
        top = sign * jnp.max(sign * found, axis=-1)
        shift = jnp.where(found == flat, 0, found - flat)  # an infinite entry stays
        omega = jnp.asarray(precisions[0], a.dtype)
        # All shifts together weigh what the output lacks: the smaller precision keeps the digits.
        whole = jnp.sum(shift, axis=-1, keepdims=True)
        share = shift / jnp.where(whole == 0, 1, whole)
        weighed = (rho * (target - top))[..., None] * share
        slope = jnp.where(rho[..., None] < omega, weighed, omega * shift)
        back = jnp.transpose(
            slope.reshape(moved.shape), tuple(order.index(k) for k in range(a.ndim))
        )
        return Projected((back if wanted[0] else None,), top, jnp.zeros((), a.dtype))

    def steepness(self, inputs):
        """1: one entry is the output."""
        return jnp.ones((1,), inputs[0].dtype)


class EntrySums(AbstractLocalConstraint):
    """`z = J a`: every output is a sum of entries of one input, of which it keeps copies.

    Args:
        function: `a -> J a` for one sample; the entries of J are 0 and 1.
        shape: shape of a for one sample.
    """

    def __init__(self, function: Callable[[Array], Array], shape: tuple[int, ...]):
        self.function, self.shape = function, shape

    def apply(self, a):
        """The sums."""
        return jax.vmap(self.function)(a)

    def _spread(self, slope: Array) -> Array:
        """The transpose of J."""
        like = jax.ShapeDtypeStruct((len(slope), *self.shape), slope.dtype)
        return jax.linear_transpose(self.apply, like)(slope)[0]

    def counts(self, shapes):
        """As many copies of an entry as there are sums that read it."""
        ones = jnp.ones(shapes[0])
        return (jax.linear_transpose(self.function, ones)(jnp.ones_like(self.function(ones)))[0],)

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project every sum; the entries that it reads get its slope."""
        (a,) = inputs
        total = self.apply(a)
        terms = self.apply(jnp.ones((1, *self.shape), a.dtype))
        omega = jnp.asarray(precisions[0], a.dtype) / jnp.maximum(terms, 1)
        rho = jnp.asarray(output_precision, total.dtype)
        # The slope itself, not ω times a difference: a large precision multiplies its rounding.
        slope = omega * rho / (omega + rho) * (target - total)
        moved = total + slope / omega
        return Projected(
            (self._spread(slope) if wanted[0] else None,), moved, jnp.zeros((), a.dtype)
        )

    def steepness(self, inputs):
        """Root of the number of terms."""
        return jnp.sqrt(self.apply(jnp.ones((1, *self.shape), inputs[0].dtype)))


# Functions with a projection in closed form.
_EXACT = {
    "identity": project_identity,
    "relu": project_relu,
    "abs": project_abs,
    "quantise": project_quantise,
}
