"""Follow the slopes in a norm that bounds what a layer can do: groups of units, spectral norms."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._move import AbstractMove, Direction, scheduled
from ._polar import polar_factors


class SpectralState(NamedTuple):
    """State of `Spectral`.

    Attributes:
        slopes: running mean of the slopes.
        loss: running mean of the loss, in nats, with the same weights.
        sizes: norm of every array before the first update.
        count: updates done.
    """

    slopes: PyTree
    loss: Float[Array, ""]
    sizes: PyTree
    count: Int[Array, ""]


class Spectral(AbstractMove):
    """Project onto a half-space in a product of spectral norms, at most a given length.

    With the running means `s` of the slopes and `l` of the loss, the linearised loss of a move d is
    `l - <s, d>`. The move is the nearest point of the half-space `{l - <s, d> <= (1 - decrease) l}`
    in the norm `max over arrays of |d| / size`, cut at length `share / sqrt(number of matrices)`.
    The norm of a matrix is the largest spectral norm of a group of its rows (units), scaled to that
    of the semi-orthogonal matrix of norm 1; of other arrays the Euclidean norm. The size of an
    array is its Frobenius norm before the first update (1 for vectors of zeros, the root of the
    number of rows for matrices of zeros).

    So every layer turns by the same share of its own size in all directions that the slopes have,
    however large they are: small slopes of early layers count as much as large ones of late layers,
    and one setting serves networks of 2 and of 32 layers.

    Args:
        share: how much of its size an array moves at most, times the root of the number of
            matrices. A number, or an optax schedule from the number of updates done to a number.
        inertia: weight of the past in the running means, in [0, 1).
        decrease: share of the loss that one move may take away to first order, positive; None: the
            length is always that of `share`. A negative mean loss has no such level and is as None.
        group: rows (units) of a matrix that become orthonormal together: 1 gives every unit a move
            of one length, a number above all widths takes matrices whole. The cost is
            `2 * group` products per parameter and update.

    Raises:
        ValueError: options out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.training import Direction, Spectral
        >>> move = Spectral(share=0.1, inertia=0.0, decrease=None)
        >>> parameters = {"w": jnp.eye(2)}
        >>> slopes = {"w": jnp.array([[5.0, 0.0], [0.0, -0.01]])}
        >>> said = Direction(slopes, slopes, jnp.ones(()))
        >>> moves, state = move.move(said, move.init(parameters))
        >>> [[round(float(x), 3) for x in row] for row in moves["w"]]
        [[0.1, 0.0], [0.0, -0.1]]

    Reference: the half-space projection of Polyak (1969) in the norm of Bernstein and Newhouse,
        "Modular duality in deep learning" (2024); orthogonalised momentum, Jordan et al., "Muon"
        (2024).
    """

    share: Any = 0.03
    inertia: Any = 0.9
    decrease: Any = 0.3
    group: int = eqx.field(static=True, default=32)

    def __check_init__(self):
        if self.group < 1:
            raise ValueError(f"group is {self.group}; expected at least 1.")

    @classmethod
    def decaying(cls, updates: int, share: float = 0.03, **options: Any) -> "Spectral":
        """A share that rises over a tenth of the updates and falls to 0 by a cosine.

        Args:
            updates: number of updates after which it is 0.
            share: the largest.
            options: of the move.
        """

        def schedule(count: Array) -> Array:
            done = jnp.minimum(count / updates, 1.0)
            rise = jnp.minimum((count + 1) / (0.1 * updates), 1.0)
            return share * rise * (1 + jnp.cos(math.pi * done)) / 2

        return cls(share=schedule, **options)

    def init(self, parameters: PyTree) -> SpectralState:
        """Means of nothing, and the sizes."""
        means = jax.tree.map(jnp.zeros_like, parameters)
        dtype = jnp.result_type(*jax.tree.leaves(parameters))
        zero = jnp.zeros((), jnp.finfo(dtype).dtype)
        sizes = jax.tree.map(_size, parameters)
        return SpectralState(means, zero, sizes, jnp.zeros((), jnp.int32))

    def move(self, direction: Direction, state: SpectralState) -> tuple[PyTree, SpectralState]:
        """See `AbstractMove.move`."""

        def mean(old: Array, new: Array) -> Array:
            weight = jnp.asarray(self.inertia, old.dtype)
            return weight * old + (1 - weight) * new.astype(old.dtype)

        slopes = jax.tree.map(mean, state.slopes, direction.slopes)
        loss = mean(state.loss, direction.loss)
        leaves, tree = jax.tree.flatten(slopes)
        matrices = [k for k, leaf in enumerate(leaves) if leaf.ndim >= 2]
        factors = polar_factors([leaves[k] for k in matrices], self.group)
        found = {**dict(enumerate(leaves)), **dict(zip(matrices, factors, strict=True))}
        layers = math.sqrt(max(len(matrices), 1))
        units = [
            size / layers * _unit(found[k]) for k, size in enumerate(jax.tree.leaves(state.sizes))
        ]
        length = jnp.asarray(scheduled(self.share, state.count), loss.dtype)
        if self.decrease is not None:
            pairs = zip(leaves, units, strict=True)
            fall = sum(jnp.sum(s * u).astype(loss.dtype) for s, u in pairs)
            level = jnp.asarray(self.decrease, loss.dtype) * loss
            # Where nothing falls every length is as good: the slopes are 0, and so are the units.
            enough = level / jnp.where(fall > 0, fall, jnp.ones_like(loss))
            length = jnp.where(loss >= 0, jnp.minimum(length, enough), length)
        moves = jax.tree.unflatten(tree, [length.astype(u.dtype) * u for u in units])
        return moves, SpectralState(slopes, loss, state.sizes, state.count + 1)


def _norm(array: Array) -> Array:
    """Euclidean norm, without overflow or underflow of squares."""
    largest = jnp.max(jnp.abs(array), initial=0)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return scale * jnp.sqrt(jnp.sum(jnp.square(array / scale)))


def _unit(array: Array) -> Array:
    norm = _norm(array)
    return array / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def _size(array: Array) -> Array:
    """Norm; for arrays of zeros that of usual initial values of their shape."""
    norm = _norm(array)
    usual = jnp.sqrt(jnp.asarray(len(array), norm.dtype)) if array.ndim >= 2 else 1.0
    return jnp.where(norm > 0, norm, jnp.asarray(usual, norm.dtype))
