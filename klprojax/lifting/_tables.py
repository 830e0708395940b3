"""Sections 3.2 and 3.3 in tables: hat-function delta factors and ordinary belief propagation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._solution import Solution
from ..graphs import FactorGraph
from ..operators import BeliefPropagation, infer
from ..operators._messages import by_group
from ._lift import DeltaLift
from ._python_values import no_python_values
from ._scalar import Operation, Scalars, concrete, scalarize

# The lattice of every scalar: one point below, one at, and one above the forward value.
_OFFSETS = np.array([-1.0, 0.0, 1.0])


class TableSensitivities(eqx.Module):
    """Slopes of downward beliefs, read off tables.

    Attributes:
        inputs: slopes of the arguments, shaped like them; None where an argument is no variable.
        slopes: slope at every scalar node (0 where no message arrives).
        spacings: lattice spacing of every scalar node.
        graph: the factor graph of delta tables.
        solution: what belief propagation returned on it.
        depth: number of delta factors on the longest path.
    """

    inputs: Any
    slopes: Any
    spacings: Any
    graph: FactorGraph
    solution: Solution
    depth: int = eqx.field(static=True)


def table_sensitivities(
    lift: DeltaLift, phi: Callable[[Any], Any], *, spacing: float = 1e-3
) -> TableSensitivities:
    """Find the slopes of the downward beliefs with tables only, without any derivative.

    The function is taken apart into elementary operations on scalars. Every scalar v gets the
    lattice `v* + {-h_v, 0, h_v}`; the delta factor of `y = ψ(x_1, ...)` becomes a table of hat
    functions, `g[k, i, ...] = hat_k(ψ(x_1[i], ...))`, that is, linear interpolation on the lattice
    of y; `h_y` is the least spacing whose lattice contains ψ with any one argument moved by its own
    spacing. Inputs carry Dirac evidence at their forward values, and φ on the lattice of z is a
    factor of one variable. Sum-product belief propagation on this graph then makes every upward
    message a Dirac mass, and the product of the downward messages at x is the table of `b_↓(x)`;
    its slope is a central difference. Converges to `φ'/φ ∇z` as O(h²) where the function is smooth;
    rounding contributes about 1e-16/h.

    The function is evaluated as it is: rules given by `custom_jvp` or `custom_vjp` play no part.
    Loops are unrolled, and branches and loop counts are those at the forward point.

    Args:
        lift: the lifted function, with concrete forward values.
        phi: positive output factor; `log_phi` is used if it has one.
        spacing: h, the lattice spacing of the inputs.

    Returns:
        Slopes of inputs and nodes, the graph and the solution.

    Raises:
        ValueError: the forward values are traced, the spacing is not positive, a lattice reaches
            a point where the function is not finite, or φ is not positive and finite on the lattice
            of z.
        LiftError: a primitive has no elementary form.

    Reference: Lemma 3.2, Theorem 3.3.
    """
    concrete(lift.values)
    if not spacing > 0:
        raise ValueError(f"spacing must be positive, got {spacing}")
    structure = lift.structure
    scalars, cells = scalarize(structure, lift.values)
    values = scalars.forward_values().astype(np.float64)
    lattices = _Lattices(scalars, values, spacing)

    top = cells[structure.outputs[0]]
    seeded = top.nodes is not None and int(top.numbers()) >= 0
    families: list[np.ndarray] = []
    tables: list[Any] = []
    for arity in sorted({op.arguments.shape[1] for op in scalars.operations}):
        chosen = [op for op in scalars.operations if op.arguments.shape[1] == arity]
        families.append(
            np.concatenate(
                [np.concatenate([op.outputs[:, None], op.arguments], 1) for op in chosen]
            )
        )
        tables.append(np.concatenate([lattices.table(op) for op in chosen]))
    if seeded:
        z = int(top.numbers())
        families.append(np.array([[z]]))
        tables.append(_log_phi(phi, lattices.points(np.array([z]))[0])[None])
    graph = FactorGraph(np.full(scalars.count, len(_OFFSETS)), families)

    produced = np.zeros(scalars.count, bool)
    for op in scalars.operations:
        produced[op.outputs] = True
    dirac = np.where(_OFFSETS == 0, 0.0, -np.inf)
    evidence = graph.log_evidence({int(v): dirac for v in np.flatnonzero(~produced)})
    depth = _depth(scalars)
    # One flood of messages climbs or descends one delta factor, so 2 depth + 2 floods settle all.
    solver = BeliefPropagation(tolerance=0.0)
    solution = infer(
        graph, graph.pack(tables), solver, log_evidence=evidence, max_steps=2 * depth + 2
    )

    log_beliefs = np.zeros((scalars.count, len(_OFFSETS)))
    for family, axes in zip(families, by_group(graph, solution.state.messages), strict=True):
        # Downward messages go to the arguments of a delta factor, and from φ to z.
        first = 0 if family.shape[1] == 1 else 1
        for axis in range(first, family.shape[1]):
            np.add.at(log_beliefs, family[:, axis], np.asarray(axes[axis]))
    points = lattices.points(np.arange(scalars.count))
    slopes = (log_beliefs[:, 2] - log_beliefs[:, 0]) / (points[:, 2] - points[:, 0])
    by_input = [
        jnp.asarray(slopes[cells[index].nodes], np.asarray(lift.values[index]).dtype)
        if structure.variables[index].kind == "input"
        else None
        for index in structure.inputs
    ]
    return TableSensitivities(
        lift.shape_like_arguments(by_input),
        jnp.asarray(slopes),
        jnp.asarray(lattices.spacings),
        graph,
        solution,
        depth,
    )


class _Lattices:
    """Spacings of all nodes, in topological order, and the tables on them."""

    def __init__(self, scalars: Scalars, values: np.ndarray, spacing: float):
        self.values = values
        self.spacings = np.full(len(values), float(spacing))
        for op in scalars.operations:
            reach = np.zeros(len(op.outputs))
            for moved in range(op.arguments.shape[1]):
                for offset in (-1.0, 1.0):
                    arguments = [
                        values[column] + (offset * self.spacings[column] if k == moved else 0.0)
                        for k, column in enumerate(op.arguments.T)
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
        return self.values[nodes][:, None] + self.spacings[nodes][:, None] * _OFFSETS

    def table(self, op: Operation) -> np.ndarray:
        """Return the log-tables `log hat_k(ψ(x_1[i], ...))`, `[count, 3, 3, ...]`."""
        count, arity = op.arguments.shape
        grid = np.broadcast_shapes(*[(count, *([3] * arity))])
        arguments = []
        for k, column in enumerate(op.arguments.T):
            shape = [count] + [1] * arity
            shape[1 + k] = len(_OFFSETS)
            arguments.append(np.broadcast_to(self.points(column).reshape(shape), grid))
        y = np.asarray(op.evaluate(*arguments), np.float64)
        single = (slice(None), *([None] * arity))
        place = (y - self.values[op.outputs][single]) / self.spacings[op.outputs][single]
        # With two arguments moved at once ψ may leave the lattice of y. The Dirac mass of a clamped
        # argument gives those entries no weight; they only have to be finite.
        place = np.where(np.isfinite(place), np.clip(place, -1.0, 1.0), 0.0)
        # At the forward point y sits on its lattice by definition, whatever the last digit says.
        place[(slice(None), *([1] * arity))] = 0.0
        hats = np.stack([np.maximum(0.0, 1 - np.abs(place - k)) for k in _OFFSETS], axis=1)
        with np.errstate(divide="ignore"):
            return np.log(hats)


@no_python_values("the output factor phi")
def _log_phi(phi: Callable[[Any], Any], points: np.ndarray) -> np.ndarray:
    log_phi = getattr(phi, "log_phi", None)
    given = jnp.asarray(points)
    if log_phi is not None:
        table = np.asarray(jax.vmap(log_phi)(given), np.float64)
    else:
        numbers = np.asarray(jax.vmap(phi)(given), np.float64)
        table = np.log(np.where(numbers > 0, numbers, np.nan))
    if not np.all(np.isfinite(table)):
        raise ValueError(
            f"the output factor phi must be positive and finite on the lattice {points} of z;"
            " for values beyond the range of floats give the factor a method log_phi"
        )
    return table


def _depth(scalars: Scalars) -> int:
    depth = np.zeros(scalars.count, int)
    for op in scalars.operations:
        depth[op.outputs] = 1 + np.max(depth[op.arguments], axis=1)
    return int(depth.max(initial=0))
