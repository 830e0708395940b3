"""Follow the displacement itself."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._move import AbstractMove, Direction, scheduled


class Relaxed(AbstractMove):
    """A multiple of the displacement, and a share of the last move again.

    The metric is that of the copies: parameters move towards the consensus that their precisions
    weigh. With `relaxation` 1 and `inertia` 0 the parameters become that consensus.

    Args:
        relaxation: multiple of the displacement, positive; above 1 over-relaxed. A number, or an
            optax schedule from the number of updates done to a number.
        inertia: share of the last move that is repeated, in [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.training import Direction, Relaxed
        >>> move = Relaxed(relaxation=2.0)
        >>> parameters, shift = {"w": jnp.zeros(3)}, {"w": jnp.array([1.0, 0.0, -1.0])}
        >>> said = Direction(shift, shift, jnp.ones(()))
        >>> moves, state = move.move(said, move.init(parameters))
        >>> moves["w"].tolist()
        [2.0, 0.0, -2.0]

    Reference: over-relaxed projections with inertia (Alvarez and Attouch 2001).
    """

    relaxation: Any = 1.0
    inertia: Any = 0.0

    def init(self, parameters: PyTree) -> PyTree:
        """No last move, no updates done."""
        return jax.tree.map(jnp.zeros_like, parameters), jnp.zeros((), jnp.int32)

    def move(self, direction: Direction, state: PyTree) -> tuple[PyTree, PyTree]:
        """See `AbstractMove.move`."""
        last, count = state
        relaxation = scheduled(self.relaxation, count)
        moves = jax.tree.map(
            lambda shift, last: (
                jnp.asarray(self.inertia, shift.dtype) * last
                + jnp.asarray(relaxation, shift.dtype) * shift
            ),
            direction.displacement,
            last,
        )
        return moves, (moves, count + 1)
