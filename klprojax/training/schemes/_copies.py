"""Copies that stay where they are: each a combination of past consensus values.

In a splitting scheme the copies `(a_ij, w_ij)` that unit j keeps for sample i do not agree. But
whatever the scheme adds to them is a consensus `(h_i, w_j)`, and a local projection only scales
their sum `s = a + w` by `1/(1 - t_ij)` and their difference `d = a - w` by `1/(1 + t_ij)`. So

    s_ij = Σ_k p_ijk (h_i^k + w_j^k),    d_ij = Σ_k m_ijk (h_i^k - w_j^k)

over the past consensus values k: two coefficients for each unit, sample and past value, instead of
two vectors. All sums over copies are the layer's own bilinear maps.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...lifting.local import bilinear_multiplier
from ..network._bilinear import Bilinear


class History(NamedTuple):
    """Past consensus values of one bilinear constraint at rest, the oldest first.

    Attributes:
        a: activations, scaled by `sqrt(ω_a)`; one array if they never change.
        w: weights, scaled by `sqrt(ω_w)`.
        squares: `h^k·h^l` and `w^k·w^l` for k <= l, broadcastable to the outputs.
        crosses: `h^k·w^l + h^l·w^k` for k <= l.
    """

    a: tuple[Array, ...]
    w: tuple[Array, ...]
    squares: dict[tuple[int, int], tuple[Array, Array]]
    crosses: dict[tuple[int, int], Array]


class Coefficients(NamedTuple):
    """Copies at rest: coefficients of `h + w` in s and of `h - w` in d, the oldest value first."""

    plus: tuple[Array, ...]
    minus: tuple[Array, ...]


class Ledger:
    """The past consensus values of one constraint during an iteration; grows by `enter`.

    Args:
        rule: the bilinear constraint.
        scales: `sqrt(ω_a)`, `sqrt(ω_w)`.
        fixed: whether the activations are data, the same in every consensus.
        weights: weight of every sample.
        history: values so far.
    """

    def __init__(self, rule: Bilinear, scales: Any, fixed: bool, weights: Array, history: History):
        self.rule, self.scales, self.fixed, self.weights = rule, scales, fixed, weights
        self.a, self.w = list(history.a), list(history.w)
        self.squares, self.crosses = dict(history.squares), dict(history.crosses)

    def __len__(self) -> int:
        return len(self.w)

    def _activation(self, k: int) -> Array:
        return self.a[0] if self.fixed else self.a[k]

    def enter(self, a: Array, w: Array) -> None:
        """Add a consensus and its inner products with the values before it."""
        if not (self.fixed and self.a):
            self.a.append(self.scales[0] * a)
        self.w.append(self.scales[1] * w)
        new = len(self.w) - 1
        here_a, here_w = self._activation(new), self.w[new]
        apply, reach_a, reach_w = self.rule.apply, self.rule.reach_a, self.rule.reach_w
        own = apply(here_a, here_w)
        for k in range(new + 1):
            past_a, past_w = self._activation(k), self.w[k]
            # Apart, because one varies with the sample only and the other with the unit only.
            self.squares[k, new] = reach_a(past_a * here_a), reach_w(past_w * here_w)
            if k == new:
                self.crosses[k, new] = 2 * own
            elif self.fixed:
                # The past products are on the diagonal already.
                self.crosses[k, new] = own + self.crosses[k, k] / 2
            else:
                self.crosses[k, new] = apply(past_a, here_w) + apply(here_a, past_w)

    def norm(self, coefficients: list[Array], sign: int) -> Array:
        """`|Σ_k c_k (h^k + sign w^k)|²` for every unit and sample."""
        total = jnp.zeros_like(coefficients[0])
        for (k, other), square in self.squares.items():
            cross = self.crosses[k, other]
            inner = square[0] + square[1] + (cross if sign > 0 else -cross)
            factor = 1 if k == other else 2
            total = total + factor * coefficients[k] * coefficients[other] * inner
        # A sum of squares; rounding may leave it below zero.
        return jnp.maximum(total, 0)

    def sum_a(self, plus: list[Array], minus: list[Array]) -> Array:
        """`sqrt(ω_a)` times the sum over units of the scaled copies of a."""
        total: Any = 0
        for k in range(len(self)):
            own, other = (plus[k] + minus[k]) / 2, (plus[k] - minus[k]) / 2
            a = self._activation(k)
            total = (
                total
                + a * self.rule.spread_a(own, a.shape)
                + self.rule.transpose_a(self.w[k], other)
            )
        return self.scales[0] * total

    def sum_w(self, plus: list[Array], minus: list[Array]) -> Array:
        """`sqrt(ω_w)` times the weighted sum over samples of the scaled copies of w."""
        total: Any = 0
        row: Any = 1
        if self.rule.shared_weight:
            row = self.weights.reshape((-1,) + (1,) * (plus[0].ndim - 1))
        cross: Any = 0
        for k in range(len(self)):
            own, other = (plus[k] + minus[k]) / 2 * row, (plus[k] - minus[k]) / 2 * row
            total = total + self.w[k] * self.rule.spread_w(own, self.w[k].shape)
            if self.fixed:
                cross = cross + other
            else:
                total = total + self.rule.transpose_w(self.a[k], other)
        if self.fixed:
            total = total + self.rule.transpose_w(self.a[0], cross)
        return self.scales[1] * total

    def truncate(
        self, kept: int, copies: list["Copies"]
    ) -> tuple[History, list[Coefficients], Array]:
        """Keep the last values only; the coefficients of older ones move to the oldest kept.

        Consensus values change slowly, so the oldest kept one stands in for those before it.

        Returns:
            The history, the copies' coefficients, and the largest coefficient that moved.
        """
        drop = max(0, len(self) - kept)
        columns = []
        moved = jnp.zeros((), copies[0].plus[0].dtype)
        for each in copies:
            each = each.padded()
            sides = []
            for side in (each.plus, each.minus):
                old = sum(side[1:drop], side[0]) if drop else None
                new = list(side[drop:])
                if old is not None:
                    moved = jnp.maximum(moved, jnp.max(jnp.abs(old)))
                    new[0] = new[0] + old
                sides.append(tuple(new))
            columns.append(Coefficients(*sides))
        pairs = [(k, m) for k, m in self.squares if k >= drop]
        history = History(
            tuple(self.a if self.fixed else self.a[drop:]),
            tuple(self.w[drop:]),
            {(k - drop, m - drop): self.squares[k, m] for k, m in pairs},
            {(k - drop, m - drop): self.crosses[k, m] for k, m in pairs},
        )
        return history, columns, moved


class ExplicitCopies(NamedTuple):
    """The copies of a dense layer of few units, as they are, in the same interface as `Copies`.

    Attributes:
        a: `[batch, ..., units, inputs]`.
        w: likewise.
        rule: the layer.
        precisions: ω_a and ω_w.
        weights: weight of every sample.
    """

    a: Array
    w: Array
    rule: Any
    precisions: Any
    weights: Array

    @classmethod
    def consensus(cls, rule: Any, precisions: Any, weights: Array, a: Array, w: Array) -> Any:
        """All copies at (a, w)."""
        columns = w if rule.transposed else w.T
        shape = (*a.shape[:-1], *columns.shape)
        wide = columns.reshape((1,) * (a.ndim - 1) + columns.shape)
        copies = jnp.broadcast_to(a[..., None, :], shape), jnp.broadcast_to(wide, shape)
        return cls(*copies, rule, precisions, weights)

    def combine(self, scale: Any, other: "ExplicitCopies", other_scale: Any) -> "ExplicitCopies":
        """`scale * self + other_scale * other`."""
        a = scale * self.a + other_scale * other.a
        return self._replace(a=a, w=scale * self.w + other_scale * other.w)

    def project(self, target: Array, output_precision: Any, read: Array) -> Any:
        """Project every unit of every sample that is read; also its output and its residual."""
        omega_a, omega_w = self.precisions
        scale = jnp.sqrt(omega_a * omega_w)
        product = scale * jnp.sum(self.a * self.w, axis=-1)
        squares = jnp.sum(omega_a * jnp.square(self.a) + omega_w * jnp.square(self.w), axis=-1)
        ratio = jnp.asarray(output_precision, target.dtype) / scale**2
        target = jnp.where(read, target, product / scale)
        t = bilinear_multiplier(product, squares, scale * target - product, ratio)
        c = 1 / (1 - t * t)
        ct = (c * t)[..., None]
        a = c[..., None] * self.a + ct * (jnp.sqrt(omega_w / omega_a) * self.w)
        w = c[..., None] * self.w + ct * (jnp.sqrt(omega_a / omega_w) * self.a)
        output = jnp.sum(a * w, axis=-1)
        residual = _largest(target - t / (ratio * scale) - output, self.weights)
        return self._replace(a=a, w=w), output, residual

    def sums(self) -> tuple[Array, Array]:
        """`ω Σ copy` over units for a, over samples for w."""
        omega_a, omega_w = self.precisions
        row = self.weights.reshape((-1,) + (1,) * (self.w.ndim - 1))
        total = jnp.sum((self.w * row).reshape(-1, *self.w.shape[-2:]), axis=0)
        total = total if self.rule.transposed else total.T
        return omega_a * jnp.sum(self.a, axis=-2), omega_w * total


class Copies:
    """The copies of one bilinear constraint during an iteration; linear combinations are exact."""

    def __init__(self, ledger: Ledger, plus: Any, minus: Any):
        self.ledger, self.plus, self.minus = ledger, list(plus), list(minus)

    @classmethod
    def consensus(cls, ledger: Ledger, a: Array, w: Array) -> "Copies":
        """All copies at (a, w)."""
        ledger.enter(a, w)
        one = jnp.ones_like(ledger.crosses[0, 0])
        column = [jnp.zeros_like(one)] * (len(ledger) - 1) + [one]
        return cls(ledger, column, column)

    def padded(self) -> "Copies":
        """With coefficient zero for the values entered since."""
        missing = len(self.ledger) - len(self.plus)
        zeros = [jnp.zeros_like(self.plus[0])] * missing
        return Copies(self.ledger, self.plus + zeros, self.minus + zeros)

    def combine(self, scale: Any, other: "Copies", other_scale: Any) -> "Copies":
        """`scale * self + other_scale * other`."""
        left, right = self.padded(), other.padded()

        def mix(x: list[Array], y: list[Array]) -> list[Array]:
            return [scale * p + other_scale * q for p, q in zip(x, y, strict=True)]

        return Copies(self.ledger, mix(left.plus, right.plus), mix(left.minus, right.minus))

    def project(
        self, target: Array, output_precision: Any, read: Array
    ) -> tuple["Copies", Array, Array]:
        """Project every unit of every sample that is read; also its output and its residual."""
        here = self.padded()
        ledger = here.ledger
        scale = ledger.scales[0] * ledger.scales[1]
        a_plus, a_minus = ledger.norm(here.plus, 1) / 4, ledger.norm(here.minus, -1) / 4
        ratio = jnp.asarray(output_precision, target.dtype) / scale**2
        product = a_plus - a_minus
        target = jnp.where(read, target, product / scale)
        t = bilinear_multiplier(product, 2 * (a_plus + a_minus), scale * target - product, ratio)
        up, down = 1 / (1 - t), 1 / (1 + t)
        output = (up**2 * a_plus - down**2 * a_minus) / scale
        residual = _largest(target - t / (ratio * scale) - output, ledger.weights)
        moved = Copies(ledger, [up * c for c in here.plus], [down * c for c in here.minus])
        return moved, output, residual

    def sums(self) -> tuple[Array, Array]:
        """`ω Σ copy` over units for a, over samples for w."""
        here = self.padded()
        return (
            here.ledger.sum_a(here.plus, here.minus),
            here.ledger.sum_w(here.plus, here.minus),
        )


def _largest(value: Array, weights: Array) -> Array:
    """Largest absolute value in the rows of weight above 0."""
    row = weights.reshape((-1,) + (1,) * (value.ndim - 1)) > 0
    return jnp.max(jnp.where(row, jnp.abs(value), 0))
