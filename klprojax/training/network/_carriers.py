"""Linear maps that carry messages: they rearrange, and are no constraints of their own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


class Cut(Carrier):
    """A parameter behind `stop_gradient`: its value passes, messages do not."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(lambda value: value, (True,), (shape,))

    def transpose(self, slope, data, weights, squared=False):
        """Nothing: no slope, no copies."""
        return (jnp.zeros(self.shapes[0], slope.dtype),)
