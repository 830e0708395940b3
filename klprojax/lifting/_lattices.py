"""Lattices of scalars, and the hat-function tables of delta factors on them (section 3.2)."""

from __future__ import annotations

import itertools

import numpy as np

from ._scalar import Operation, Scalars

# The lattice of every scalar: one point below, one at, and one above the forward value.
OFFSETS = np.array([-1.0, 0.0, 1.0])


class Lattices:
    """Spacings of all nodes, in topological order, and the tables on them.

    The lattice of `y = ψ(x_1, ...)` reaches as far as ψ does when its arguments move by their own
    spacings: all at once (`whole_box`), so that interpolation on it is exact for every state of the
    arguments, or one at a time, which suffices where the others are certain.

    Args:
        scalars: the scalar graph.
        spacing: lattice spacing of the inputs.
        whole_box: whether the arguments of an operation move together.

    Raises:
        ValueError: a lattice reaches a point where the function is not finite.
    """

    def __init__(self, scalars: Scalars, spacing: float, *, whole_box: bool):
        self.values = values = scalars.forward_values().astype(np.float64)
        self.spacings = np.full(len(values), float(spacing))
        for op in scalars.operations:
            reach = np.zeros(len(op.outputs))
            for moves in _moves(op.arguments.shape[1], whole_box):
                arguments = [
                    values[column] + move * self.spacings[column]
                    for move, column in zip(moves, op.arguments.T, strict=True)
                ]
                y = np.asarray(op.evaluate(*arguments), np.float64)
                if not np.all(np.isfinite(y)):
                    raise ValueError(
                        f"the function is not finite within the spacing {spacing} of the"
                        " forward point; choose a smaller spacing"
                    )
                reach = np.maximum(reach, np.abs(y - values[op.outputs]))
            # Where ψ does not move at all, any lattice of y contains it.
            self.spacings[op.outputs] = np.where(reach > 0, reach, spacing)

    def points(self, nodes: np.ndarray) -> np.ndarray:
        """Return the lattices `[nodes, 3]`."""
        return self.values[nodes][:, None] + self.spacings[nodes][:, None] * OFFSETS

    def families(self, scalars: Scalars) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the scopes `(y, x_1, ...)` of the delta factors by arity, and their log-tables."""
        scopes, tables = [], []
        for arity in sorted({op.arguments.shape[1] for op in scalars.operations}):
            chosen = [op for op in scalars.operations if op.arguments.shape[1] == arity]
            scopes.append(
                np.concatenate(
                    [np.concatenate([op.outputs[:, None], op.arguments], 1) for op in chosen]
                )
            )
            tables.append(np.concatenate([self.table(op) for op in chosen]))
        return scopes, tables

    def table(self, op: Operation) -> np.ndarray:
        """Return the log-tables `log hat_k(ψ(x_1[i], ...))`, `[count, 3, 3, ...]`."""
        count, arity = op.arguments.shape
        grid = np.broadcast_shapes(*[(count, *([3] * arity))])
        arguments = []
        for k, column in enumerate(op.arguments.T):
            shape = [count] + [1] * arity
            shape[1 + k] = len(OFFSETS)
            arguments.append(np.broadcast_to(self.points(column).reshape(shape), grid))
        y = np.asarray(op.evaluate(*arguments), np.float64)
        single = (slice(None), *([None] * arity))
        place = (y - self.values[op.outputs][single]) / self.spacings[op.outputs][single]
        # With two arguments moved at once ψ may leave the lattice of y. The Dirac mass of a clamped
        # argument gives those entries no weight; they only have to be finite.
        place = np.where(np.isfinite(place), np.clip(place, -1.0, 1.0), 0.0)
        # At the forward point y sits on its lattice by definition, whatever the last digit says.
        place[(slice(None), *([1] * arity))] = 0.0
        hats = np.stack([np.maximum(0.0, 1 - np.abs(place - k)) for k in OFFSETS], axis=1)
        with np.errstate(divide="ignore"):
            return np.log(hats)


def _moves(arity: int, whole_box: bool) -> list[tuple[float, ...]]:
    """Where the arguments of an operation are tried, in units of their spacings."""
    if whole_box:
        return list(itertools.product(OFFSETS.tolist(), repeat=arity))
    return [tuple(row) for row in np.concatenate([np.eye(arity), -np.eye(arity)]).tolist()]
