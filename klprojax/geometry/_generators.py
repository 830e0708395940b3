"""Generators of Bregman geometry: "Bregman divergences and KL geometry" in section 2.

A strictly convex function `f` of points `p` gives dual coordinates `theta = grad f(p)`, a conjugate
`f*` whose gradient leads back, and the divergence

    D_f(r, q) = f(r) - f(q) - <grad f(q), r - q> = D_{f*}(grad f(q), grad f(r)).

The negative entropy makes it the Kullback-Leibler divergence; the fixed-precision Gaussian makes it
the weighted squared distance.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._log_table import kl_divergence, log_normalize, safe_logsumexp


def bregman_divergence(
    generator: Callable[[Float[Array, "*states"]], Float[Array, ""]],
    r: Float[Array, "*states"],
    q: Float[Array, "*states"],
) -> Float[Array, ""]:
    """Compute `D_f(r, q) = f(r) - f(q) - <grad f(q), r - q>` for any differentiable convex `f`.

    This is the definition, evaluated with one directional derivative. The generators shipped here
    have a `divergence` method that is more accurate near `r = q` and allows zeros.

    Args:
        generator: the function `f`, from a point to a number.
        r: first point, in primal coordinates.
        q: second point, where `f` must be differentiable.

    Returns:
        The divergence, non-negative when `f` is convex.
    """
    value, slope = jax.jvp(generator, (q,), (r - q,))
    return generator(r) - value - slope


class AbstractGenerator(eqx.Module):
    """A function `f` of Legendre type, with its conjugate and the two coordinate maps.

    Every method treats its argument as one point; batch with `jax.vmap`.
    """

    @abc.abstractmethod
    def value(self, point: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `f` at a point in primal coordinates."""

    @abc.abstractmethod
    def conjugate(self, dual: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `f*(theta) = sup_p <theta, p> - f(p)`.

        Args:
            dual: a point in dual coordinates.
        """

    @abc.abstractmethod
    def to_dual(self, point: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map primal to dual coordinates: `theta = grad f(p)`.

        Args:
            point: a point of the domain.
        """

    @abc.abstractmethod
    def from_dual(self, dual: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map dual to primal coordinates: `p = grad f*(theta)`.

        Args:
            dual: a point in dual coordinates.
        """

    @abc.abstractmethod
    def divergence(
        self, r: Float[Array, "*states"], q: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `D_f(r, q)` of two points in primal coordinates."""

    @abc.abstractmethod
    def dual_divergence(
        self, u: Float[Array, "*states"], v: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `D_{f*}(u, v)` of two points in dual coordinates."""


class NegativeEntropy(AbstractGenerator):
    """The negative entropy `f(p) = sum p log p` on the simplex; its divergence is KL.

    Points are probabilities in linear space, nats throughout:

        grad f(p) = 1 + log p,   f*(theta) = log sum exp(theta),   grad f*(theta) = softmax(theta).

    Dual coordinates matter only up to a constant shared by all entries. A zero of `p` has dual
    coordinate `-inf`; derivatives are then taken within the face where that entry stays zero, so
    its own derivative is zero. For tables already in logarithms use `kl_divergence`.

    Example:
        >>> import jax.numpy as jnp
        >>> f = NegativeEntropy()
        >>> f.from_dual(f.to_dual(jnp.array([0.25, 0.75, 0.0]))).tolist()
        [0.25, 0.75, 0.0]

    Reference:
        Section 2, the definition of the relevant generator.
    """

    def value(self, point: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `sum p log p`, with `0 log 0 = 0`."""
        log_point = _safe_log(point)
        absent = point == 0
        terms = point * jnp.where(absent, jnp.zeros_like(log_point), log_point)
        return jnp.sum(terms)

    def conjugate(self, dual: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `log sum exp(theta)`."""
        return safe_logsumexp(dual)

    def to_dual(self, point: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map probabilities to `1 + log p`."""
        return 1 + _safe_log(point)

    def from_dual(self, dual: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map dual coordinates to `softmax(theta)`."""
        return jnp.exp(log_normalize(dual))

    def divergence(
        self, r: Float[Array, "*states"], q: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `sum r log(r / q) - r + q`, which on the simplex is `KL(r || q)`."""
        excess = jnp.where(r == 0, jnp.zeros_like(r), r) - jnp.where(q == 0, jnp.zeros_like(q), q)
        return kl_divergence(_safe_log(r), _safe_log(q)) - jnp.sum(excess)

    def dual_divergence(
        self, u: Float[Array, "*states"], v: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `D_{f*}(u, v) = KL(softmax(v) || softmax(u))`."""
        return kl_divergence(log_normalize(v), log_normalize(u))


class FixedPrecisionGaussian(AbstractGenerator):
    """The generator `f(v) = sum precision / 2 * v^2`; its divergence is weighted squared distance.

    Up to constants, `-D_f(x, v)` is the log-density at `x` of a Gaussian with mean `v` and fixed
    precision, and `D_f(r, q)` is the KL divergence between two such Gaussians with means `r`, `q`:

        grad f(v) = precision * v,   f*(theta) = sum theta^2 / (2 precision),
        D_f(r, q) = sum precision / 2 * (r - q)^2.

    Args:
        precision: inverse variances, positive, of a shape that broadcasts to the points.

    Example:
        >>> import jax.numpy as jnp
        >>> f = FixedPrecisionGaussian(jnp.array(2.0))
        >>> float(f.divergence(jnp.array([3.0]), jnp.array([1.0])))
        4.0
    """

    precision: Float[Array, "..."]

    def value(self, point: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `sum precision / 2 * v^2`."""
        return jnp.sum(self._precision_like(point) * point**2) / 2

    def conjugate(self, dual: Float[Array, "*states"]) -> Float[Array, ""]:
        """Evaluate `sum theta^2 / (2 precision)`."""
        return jnp.sum(dual**2 / self._precision_like(dual)) / 2

    def to_dual(self, point: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map a point to `precision * v`."""
        return self._precision_like(point) * point

    def from_dual(self, dual: Float[Array, "*states"]) -> Float[Array, "*states"]:
        """Map dual coordinates to `theta / precision`."""
        return dual / self._precision_like(dual)

    def divergence(
        self, r: Float[Array, "*states"], q: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `sum precision / 2 * (r - q)^2`."""
        return self.value(r - q)

    def dual_divergence(
        self, u: Float[Array, "*states"], v: Float[Array, "*states"]
    ) -> Float[Array, ""]:
        """Compute `sum (u - v)^2 / (2 precision)`."""
        return self.conjugate(u - v)

    def _precision_like(self, point: Float[Array, "*states"]) -> Float[Array, "*states"]:
        try:
            return jnp.broadcast_to(self.precision, point.shape)
        except ValueError as error:
            raise ValueError(
                f"Got a precision of shape {self.precision.shape} for a point of shape "
                f"{point.shape}; give one that broadcasts to the point."
            ) from error


def _safe_log(point: Float[Array, "*states"]) -> Float[Array, "*states"]:
    # log 0 = -inf with derivative zero: the face where the entry vanishes has no such direction.
    absent = point == 0
    log_point = jnp.log(jnp.where(absent, jnp.ones_like(point), point))
    return jnp.where(absent, jnp.full_like(log_point, -jnp.inf), log_point)
