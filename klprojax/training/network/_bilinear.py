"""Products of two values: one projection for every bilinear map, dense layers and convolutions."""

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...lifting.local import bilinear_multiplier
from ._constraints import AbstractLocalConstraint, Projected


class Bilinear(AbstractLocalConstraint):
    """`u = B(a, w)` in which every output is a dot product of entries of a and of w.

    Subclasses give the bilinear map; the projection is the same for all of them. Each output keeps
    copies of the entries that it reads. With t its multiplier, `c = 1/(1 - t²)`, the copies move by
    `(c - 1) a + c t sqrt(ω_w/ω_a) w`, whose sums over units or samples are again bilinear maps: no
    array of the size batch x inputs x outputs is formed.
    """

    shared_weight: bool

    @abc.abstractmethod
    def reach_a(self, x: Array) -> Array:
        """Sum of x, shaped like a, over the entries that each output reads, broadcastable to it."""

    @abc.abstractmethod
    def reach_w(self, x: Array) -> Array:
        """Sum of x, shaped like w, over the entries that each output reads, broadcastable to it."""

    @abc.abstractmethod
    def transpose_a(self, w: Array, g: Array) -> Array:
        """Transpose of `a -> B(a, w)` applied to g."""

    @abc.abstractmethod
    def transpose_w(self, a: Array, g: Array) -> Array:
        """Transpose of `w -> B(a, w)` applied to g, summed over samples if w is shared."""

    @abc.abstractmethod
    def spread_a(self, g: Array, shape: tuple[int, ...]) -> Array:
        """Sum of g over the outputs that read each entry of a, broadcastable to a."""

    @abc.abstractmethod
    def spread_w(self, g: Array, shape: tuple[int, ...]) -> Array:
        """Sum of g over the outputs (and samples) that read each entry of w, broadcastable to w."""

    def multiplier(
        self, inputs: tuple[Array, ...], target: Array, precisions: Any, output_precision: Any
    ) -> tuple[Array, Array, Array]:
        """Return t, the output at the projected copies, and the scale `sqrt(ω_a ω_w)`."""
        a, w = inputs
        omega_a, omega_w = (jnp.asarray(p, a.dtype) for p in precisions)
        scale = jnp.sqrt(omega_a * omega_w)
        u = self.apply(a, w)
        square_a, square_w = self.reach_a(jnp.square(a)), self.reach_w(jnp.square(w))
        squares = jnp.broadcast_to(omega_a * square_a, u.shape) + jnp.broadcast_to(
            omega_w * square_w, u.shape
        )
        rho = jnp.asarray(output_precision, u.dtype)
        misfit = scale * (target - u)
        t = bilinear_multiplier(scale * u, squares, misfit, rho / (omega_a * omega_w))
        # a*·w* as it is, not as the constraint says it should be: right where no root exists too.
        c = 1 / (1 - t * t)
        moved = c * c * ((1 + t * t) * u + t * squares / scale)
        return t, moved, scale

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project every unit of every sample; see the class."""
        a, w = inputs
        omega_a, omega_w = (jnp.asarray(p, a.dtype) for p in precisions)
        t, output, scale = self.multiplier(inputs, target, precisions, output_precision)
        # Padding pulls at nothing: one array then serves the samples' slopes and the weights'.
        counted = weights.reshape((-1,) + (1,) * (t.ndim - 1))
        row = counted > 0
        at = jnp.where(row, t, 0)
        c = 1 / (1 - at * at)
        own_scale, cross_scale = c * at * at, c * at  # c - 1 = c t², without cancellation
        slopes: list[Array | None] = [None, None]
        if wanted[0]:
            own = omega_a * (a * self.spread_a(own_scale, a.shape))
            slopes[0] = own + scale * self.transpose_a(w, cross_scale)
        if wanted[1]:
            if self.shared_weight:
                # A matrix that all samples share counts each of them by its weight.
                own_scale, cross_scale = counted * own_scale, counted * cross_scale
            own = omega_w * (w * self.spread_w(own_scale, w.shape))
            slopes[1] = own + scale * self.transpose_w(a, cross_scale)
        rho = jnp.asarray(output_precision, t.dtype)
        residual = jnp.where(row, jnp.abs(target - t * scale / rho - output), 0)
        return Projected(tuple(slopes), output, jnp.max(residual))


class Dense(Bilinear):
    """`u = a W` over the last axis of a.

    Args:
        transposed: W is `[outputs, inputs]` instead of `[inputs, outputs]`.
        rank: axes of a for one sample.
    """

    shared_weight = True

    def __init__(self, transposed: bool, rank: int):
        self.transposed, self.rank = transposed, rank

    def _matrix(self, w: Array) -> Array:
        return w.T if self.transposed else w

    def apply(self, a: Array, w: Array) -> Array:
        """Matrix product."""
        return a @ self._matrix(w)

    def counts(self, shapes):
        """Every entry of a has one copy per unit, every weight one per position."""
        (*positions, n), w_shape = shapes
        units = w_shape[0] if self.transposed else w_shape[1]
        return jnp.full((*positions, n), units), jnp.full(w_shape, math.prod(positions))

    def reach_a(self, x):
        """Sum over inputs."""
        return jnp.sum(x, axis=-1, keepdims=True)

    def reach_w(self, x):
        """Sum over inputs; one axis, which broadcasts against outputs `[..., units]`."""
        columns = jnp.sum(self._matrix(x), axis=0)
        return columns.reshape((1,) * self.rank + (-1,))

    def transpose_a(self, w, g):
        """`g Wᵀ`."""
        return g @ self._matrix(w).T

    def transpose_w(self, a, g):
        """`aᵀ g` over all samples and positions."""
        a, g = a.reshape(-1, a.shape[-1]), g.reshape(-1, g.shape[-1])
        return g.T @ a if self.transposed else a.T @ g

    def spread_a(self, g, shape):
        """Sum over units."""
        return jnp.sum(g, axis=-1, keepdims=True)

    def spread_w(self, g, shape):
        """Sum over samples and positions."""
        total = jnp.sum(g.reshape(-1, g.shape[-1]), axis=0)
        return total[:, None] if self.transposed else total[None]


class Mapped(Bilinear):
    """Any bilinear map of JAX, such as a convolution, by its own transposes.

    Args:
        function: `B(a, w)` for one sample: sums, with weight 1, of products of an entry of a and
            one of w.
        a_shape: shape of a for one sample.
        w_shape: shape of w for one sample.
        shared_weight: whether w is shared by the samples.
    """

    def __init__(
        self,
        function: Callable[[Array, Array], Array],
        a_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        shared_weight: bool,
    ):
        self.function, self.shared_weight = function, shared_weight
        self.a_shape, self.w_shape = a_shape, w_shape
        self._w_axis = None if shared_weight else 0

    def apply(self, a, w):
        """The map, sample by sample."""
        return jax.vmap(self.function, (0, self._w_axis))(a, w)

    def counts(self, shapes):
        """Transposes applied to ones."""
        ones_a, ones_w = jnp.ones(shapes[0]), jnp.ones(shapes[1])
        like = jax.eval_shape(self.function, ones_a, ones_w)
        unit = jnp.ones(like.shape, like.dtype)  # a product may name the type of its result
        return (
            jax.linear_transpose(lambda a: self.function(a, ones_w), ones_a)(unit)[0],
            jax.linear_transpose(lambda w: self.function(ones_a, w), ones_w)(unit)[0],
        )

    def reach_a(self, x):
        """The map at weights of one."""
        return jax.vmap(self.function, (0, None))(x, jnp.ones(self.w_shape, x.dtype))

    def reach_w(self, x):
        """The map at inputs of one."""
        x = x[None] if self.shared_weight else x
        return jax.vmap(self.function, (None, 0))(jnp.ones(self.a_shape, x.dtype), x)

    def transpose_a(self, w, g):
        """Transpose in a, sample by sample."""
        like = jax.ShapeDtypeStruct(self.a_shape, g.dtype)

        def one(w: Array, g: Array) -> Array:
            return jax.linear_transpose(lambda a: self.function(a, w), like)(g)[0]

        return jax.vmap(one, (self._w_axis, 0))(w, g)

    def transpose_w(self, a, g):
        """Transpose in w, summed over the samples if they share w."""
        shape = self.w_shape if self.shared_weight else g.shape[:1] + self.w_shape
        like = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda w: self.apply(a, w), like)(g)[0]

    def spread_a(self, g, shape):
        """Transpose in a at weights of one."""
        ones = jnp.ones(self.w_shape, g.dtype)
        if not self.shared_weight:
            ones = jnp.broadcast_to(ones[None], (len(g), *ones.shape))
        return self.transpose_a(ones, g)

    def spread_w(self, g, shape):
        """Transpose in w at inputs of one."""
        return self.transpose_w(jnp.ones((len(g), *self.a_shape), g.dtype), g)
