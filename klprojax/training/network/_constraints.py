"""The operations of a network: local constraints, and linear maps that carry messages.

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

from ..local import (
    bilinear_multiplier,
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


class AbstractConstraint(abc.ABC):
    """An operation whose graph a node projects onto."""

    carries = False

    @abc.abstractmethod
    def apply(self, *inputs: Array) -> Array:
        """Evaluate the operation on a batch."""

    @abc.abstractmethod
    def counts(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[Array, ...]:
        """Copies that one sample keeps of every entry of each input, in the input's shape."""

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


class Bilinear(AbstractConstraint):
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
    def pull_a(self, w: Array, g: Array) -> Array:
        """Transpose of `a -> B(a, w)` applied to g."""

    @abc.abstractmethod
    def pull_w(self, a: Array, g: Array) -> Array:
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
        rho = _over_batch(output_precision, u)
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
        row = weights.reshape((-1,) + (1,) * (t.ndim - 1)) > 0
        at = jnp.where(row, t, 0)
        c = 1 / (1 - at * at)
        stretch, lean = c * at * at, c * at  # c - 1 = c t², without cancellation
        slopes: list[Array | None] = [None, None]
        if wanted[0]:
            own = omega_a * (a * self.spread_a(stretch, a.shape))
            slopes[0] = own + scale * self.pull_a(w, lean)
        if wanted[1]:
            own = omega_w * (w * self.spread_w(stretch, w.shape))
            slopes[1] = own + scale * self.pull_w(a, lean)
        rho = _over_batch(output_precision, t)
        lack = jnp.where(row, jnp.abs(target - t * scale / rho - output), 0)
        return Projected(tuple(slopes), output, jnp.max(lack))


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
        """Every entry of a has a copy a unit; every weight one a position."""
        (*positions, n), w_shape = shapes
        units = w_shape[0] if self.transposed else w_shape[1]
        places = 1
        for size in positions:
            places *= size
        return jnp.full((*positions, n), units), jnp.full(w_shape, places)

    def reach_a(self, x):
        """Sum over inputs."""
        return jnp.sum(x, axis=-1, keepdims=True)

    def reach_w(self, x):
        """Sum over inputs; one axis, which broadcasts against outputs `[..., units]`."""
        columns = jnp.sum(self._matrix(x), axis=0)
        return columns.reshape((1,) * self.rank + (-1,))

    def pull_a(self, w, g):
        """`g Wᵀ`."""
        return g @ self._matrix(w).T

    def pull_w(self, a, g):
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
        unit = jnp.ones(jax.eval_shape(self.function, ones_a, ones_w).shape)
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

    def pull_a(self, w, g):
        """Transpose in a, sample by sample."""
        like = jax.ShapeDtypeStruct(self.a_shape, g.dtype)

        def one(w: Array, g: Array) -> Array:
            return jax.linear_transpose(lambda a: self.function(a, w), like)(g)[0]

        return jax.vmap(one, (self._w_axis, 0))(w, g)

    def pull_w(self, a, g):
        """Transpose in w, summed over the samples if they share w."""
        shape = self.w_shape if self.shared_weight else g.shape[:1] + self.w_shape
        like = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda w: self.apply(a, w), like)(g)[0]

    def spread_a(self, g, shape):
        """Transpose in a at weights of one."""
        ones = jnp.ones(self.w_shape, g.dtype)
        if not self.shared_weight:
            ones = jnp.broadcast_to(ones[None], (len(g), *ones.shape))
        return self.pull_a(ones, g)

    def spread_w(self, g, shape):
        """Transpose in w at inputs of one."""
        return self.pull_w(jnp.ones((len(g), *self.a_shape), g.dtype), g)


class SumActivation(AbstractConstraint):
    """`z = σ(s_1 + ... + s_m)`, elementwise; with the identity, a sum.

    The summands move in inverse proportion to their precisions, and all get the same slope: the
    problem is that of one input, the sum, at precision `1 / Σ 1/ω_i`.

    Args:
        function: σ on arrays of one sample.
        kind: `"identity"`, `"relu"`, `"abs"`, `"quantise"` or `"smooth"`.
        options: options of the kind.
        arity: number of summands.
    """

    def __init__(
        self,
        function: Callable[[Array], Array],
        kind: str,
        arity: int,
        options: dict[str, Any] | None = None,
    ):
        self.function, self.kind, self.arity = function, kind, arity
        self.options = options or {}

    def apply(self, *inputs):
        """Sum, then σ."""
        return self._batched(sum(inputs[1:], inputs[0]))

    def counts(self, shapes):
        """One copy of every summand."""
        return tuple(jnp.ones(shape) for shape in shapes)

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the sum and share its displacement."""
        total = sum(inputs[1:], inputs[0])
        omega = 1 / sum(1 / jnp.asarray(p, total.dtype) for p in precisions)
        rho = _over_batch(output_precision, total)
        moved = self.nearest(total, target, omega, rho)
        output = self._batched(moved)
        slope = self.slope(total, target, omega, rho, moved, output)
        zero = jnp.zeros((), total.dtype)
        return Projected(tuple(slope if w else None for w in wanted), output, zero)

    def nearest(self, s: Array, z: Array, omega_s: Any, omega_z: Any) -> Array:
        """The projected sum."""
        if self.kind == "relu":
            return project_relu(s, z, omega_s, omega_z)
        if self.kind == "identity":
            return project_identity(s, z, omega_s, omega_z)
        if self.kind == "abs":
            return project_abs(s, z, omega_s, omega_z)
        if self.kind == "quantise":
            return project_quantise(s, z, omega_s, omega_z, **self.options)
        return project_elementwise(self._batched, s, z, omega_s, omega_z)

    def slope(self, s: Any, z: Any, omega: Any, rho: Any, moved: Any, output: Any) -> Array:
        """`ω (s* - s)`, which at a stationary point is `ρ σ'(s*) (z - σ(s*))` too.

        A precision multiplies the rounding of its difference, so the smaller one is right.
        """
        slope = omega * (moved - s)
        if self.kind == "quantise":
            return slope
        if self.kind == "smooth":
            one = jnp.ones_like(moved)
            rise = jax.jvp(self._batched, (moved,), (one,))[1]
            smooth = jnp.ones_like(moved, bool)
        else:
            # Where a piece ends the point is not stationary.
            rise = jnp.sign(moved) if self.kind == "abs" else jnp.ones_like(moved)
            smooth = {"identity": moved == moved, "relu": moved > 0, "abs": moved != 0}[self.kind]
        return jnp.where(smooth & (rho < omega), rho * rise * (z - output), slope)

    def _batched(self, total: Array) -> Array:
        return total if self.kind == "identity" else jax.vmap(self.function)(total)


class Maximum(AbstractConstraint):
    """`z = max` over some axes of one input."""

    def __init__(self, axes: tuple[int, ...], ndim: int):
        self.axes = tuple(axis + 1 for axis in axes)
        self.kept = tuple(axis + 1 for axis in range(ndim) if axis not in axes)

    def apply(self, a):
        """Largest entry."""
        return jnp.max(a, axis=self.axes)

    def counts(self, shapes):
        """One copy of every entry."""
        return (jnp.ones(shapes[0]),)

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the entries of every maximum."""
        (a,) = inputs
        order = (0, *self.kept, *self.axes)
        moved = jnp.transpose(a, order)
        flat = moved.reshape(target.shape + (-1,))
        found = project_maximum(flat, target, precisions[0], _over_batch(output_precision, target))
        slope = jnp.asarray(precisions[0], a.dtype) * (found - flat)
        back = jnp.transpose(
            slope.reshape(moved.shape), tuple(order.index(k) for k in range(a.ndim))
        )
        return Projected(
            (back if wanted[0] else None,), jnp.max(found, axis=-1), jnp.zeros((), a.dtype)
        )


class Total(AbstractConstraint):
    """`z = Σ a` over some axes of one input."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = tuple(axis + 1 for axis in axes)

    def apply(self, a):
        """Sum."""
        return jnp.sum(a, axis=self.axes)

    def counts(self, shapes):
        """One copy of every entry."""
        return (jnp.ones(shapes[0]),)

    def project(self, inputs, target, precisions, output_precision, weights, wanted) -> Projected:
        """Project the sum; every entry gets its slope."""
        (a,) = inputs
        total = self.apply(a)
        terms = 1
        for axis in self.axes:
            terms *= a.shape[axis]
        omega = jnp.asarray(precisions[0], a.dtype) / terms
        moved = project_identity(total, target, omega, _over_batch(output_precision, total))
        slope = jnp.broadcast_to(jnp.expand_dims(omega * (moved - total), self.axes), a.shape)
        return Projected((slope if wanted[0] else None,), moved, jnp.zeros((), a.dtype))


class Carrier:
    """A linear map that rearranges: reshape, transpose, slice, concatenation, lookup.

    It is not a constraint of its own: copies of its output are copies of its inputs, rearranged, so
    bases pass through it and slopes and counts through its transpose.

    Args:
        function: the map for one sample, linear in its first arguments jointly; arrays of the
            sample that it reads besides (indices, masks) come after them.
        shared: for each of the first arguments whether the samples share it.
        shapes: their shapes for one sample.
        squared: the map with its coefficients squared, which precisions pass through; None if they
            are all 0 or 1.
    """

    carries = True

    def __init__(
        self,
        function: Callable[..., Array],
        shared: tuple[bool, ...],
        shapes: tuple[tuple[int, ...], ...],
        squared: Callable[..., Array] | None = None,
    ):
        self.function, self.shared, self.shapes = function, shared, shapes
        self.squared = squared or function

    def apply(self, *inputs: Array) -> Array:
        """The map, sample by sample unless everything is shared."""
        extra = len(inputs) - len(self.shared)
        if all(self.shared) and not extra:
            return self.function(*inputs)
        return self._batched(self.function, extra)(*inputs)

    def transpose(
        self,
        slope: Array,
        data: tuple[Array, ...],
        weights: Float[Array, " batch"],
        squared: bool = False,
    ) -> tuple[Array, ...]:
        """Slopes of the linear inputs; a shared one of a batched output sums over the samples."""
        function = self.squared if squared else self.function
        if all(self.shared) and not data:
            like = [jax.ShapeDtypeStruct(shape, slope.dtype) for shape in self.shapes]
            return jax.linear_transpose(function, *like)(slope)
        like = [
            jax.ShapeDtypeStruct(shape if flag else (len(slope), *shape), slope.dtype)
            for shape, flag in zip(self.shapes, self.shared, strict=True)
        ]
        batched = self._batched(function, len(data))
        back = jax.linear_transpose(lambda *x: batched(*x, *data), *like)
        if not any(self.shared):
            return back(slope)
        # The sum over samples of a shared input counts each sample by its weight.
        weighted = back(slope * weights.reshape((-1,) + (1,) * (slope.ndim - 1)))
        if all(self.shared):
            return weighted
        plain = back(slope)
        pairs = zip(weighted, plain, self.shared, strict=True)
        return tuple(w if flag else p for w, p, flag in pairs)

    def _batched(self, function: Callable[..., Array], extra: int) -> Callable[..., Array]:
        axes = tuple(None if flag else 0 for flag in self.shared) + (0,) * extra
        return jax.vmap(function, axes)


class Spread(Carrier):
    """A shared value handed to every sample."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(lambda value: value, (True,), (shape,))

    def apply(self, *inputs: Array) -> Array:
        """The value with a batch axis of length 1, to broadcast."""
        return inputs[0][None]

    def transpose(self, slope, data, weights, squared=False):
        """Weighted sum over the samples."""
        row = weights.reshape((-1,) + (1,) * (slope.ndim - 1))
        return (jnp.sum(slope * row, axis=0),)


def _over_batch(precision: Any, like: Array) -> Array:
    """A scalar, or an array with a batch axis of the batch's length or of length 1."""
    return jnp.asarray(precision, like.dtype)
