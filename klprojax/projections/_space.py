"""Spaces: points in dual coordinates, and what a scheme does with them (section 2)."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..geometry import log_normalize


class AbstractSpace(eqx.Module):
    """Points as pytrees of arrays in dual coordinates ``∇f(p)``, and corrections to them.

    A scheme adds and subtracts dual coordinates and asks for the point they stand for. That is all
    it knows of a space, so a scheme runs on every space, and a projection on every scheme.
    """

    @abc.abstractmethod
    def combine(self, *terms: tuple[Any, Any]) -> Any:
        """Linear combination of dual coordinates.

        Args:
            terms: pairs ``(scale, dual coordinates)``.
        """

    @abc.abstractmethod
    def point(self, dual: Any) -> Any:
        """The point that dual coordinates stand for, in its canonical gauge: ``∇f ∘ ∇f*``.

        Args:
            dual: dual coordinates, as from `combine`.
        """

    @abc.abstractmethod
    def distance(self, old: Any, new: Any) -> Float[Array, ""]:
        """How far apart two points are: what the certificate of `iterate` is measured in.

        Args:
            old: a point.
            new: a point.
        """


class LogTables(AbstractSpace):
    """Probability tables as log-tables (nats): ``f`` is the negative entropy.

    Dual coordinates are log-probabilities up to a constant per table. A state of probability zero
    has left the face that the point lives on (section 3.1, "Projections with faces"): `-inf` stays
    `-inf` in a sum, and a difference from a table that excludes a state is 0 there. The distance is
    the largest change of a probability.

    Args:
        batch: leading axes of every array that number tables; the rest are one table's states.
    """

    batch: int = eqx.field(static=True, default=0)

    def combine(self, *terms: tuple[Any, Any]) -> Any:
        """See `AbstractSpace.combine`."""
        scales = [scale for scale, _ in terms]

        def leaf(*tables: Any) -> Any:
            off = jnp.zeros(tables[0].shape, bool)
            excluded = jnp.zeros(tables[0].shape, bool)
            total = jnp.zeros_like(tables[0])
            for scale, table in zip(scales, tables, strict=True):
                out = jnp.isneginf(table)
                if scale < 0:
                    off = off | out
                elif scale > 0:
                    excluded = excluded | out
                # Finite where the branch is not taken, for the derivatives' sake.
                total = total + scale * jnp.where(out, 0.0, table)
            return jnp.where(off, 0.0, jnp.where(excluded, -jnp.inf, total))

        return jax.tree.map(leaf, *(table for _, table in terms))

    def point(self, dual: Any) -> Any:
        """See `AbstractSpace.point`."""
        return jax.tree.map(lambda t: log_normalize(t, tuple(range(self.batch, t.ndim))), dual)

    def distance(self, old: Any, new: Any) -> Float[Array, ""]:
        """See `AbstractSpace.distance`."""
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        changes = [jnp.max(jnp.abs(jnp.exp(a) - jnp.exp(b)), initial=0.0) for a, b in pairs]
        return jnp.max(jnp.stack(changes))


class Gaussians(AbstractSpace):
    """Real vectors as means of Gaussians of fixed precision: ``f`` is half the squared norm.

    Dual coordinates are the means times the precisions, so linear combinations of one are those of
    the other, and a point is stored as its mean. The distance is the largest change of an entry,
    relative to the largest entry. The projections know the precisions; the schemes need not.
    """

    def combine(self, *terms: tuple[Any, Any]) -> Any:
        """See `AbstractSpace.combine`."""
        scales = [scale for scale, _ in terms]

        def leaf(*values: Any) -> Any:
            total = scales[0] * values[0]
            for scale, value in zip(scales[1:], values[1:], strict=True):
                total = total + scale * value
            return total

        return jax.tree.map(leaf, *(value for _, value in terms))

    def point(self, dual: Any) -> Any:
        """See `AbstractSpace.point`."""
        return dual

    def distance(self, old: Any, new: Any) -> Float[Array, ""]:
        """See `AbstractSpace.distance`."""
        pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
        change = jnp.max(jnp.stack([jnp.max(jnp.abs(a - b), initial=0.0) for a, b in pairs]))
        size = jnp.max(jnp.stack([jnp.max(jnp.abs(b), initial=0.0) for _, b in pairs]))
        return change / jnp.where(size > 0, size, jnp.ones_like(size))
