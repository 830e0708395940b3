"""Sections 3.2 and 3.3 in tables: hat-function delta factors and ordinary belief propagation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._solution import Solution
from ..graphs import FactorGraph
from ..operators import BeliefPropagation, infer
from ..operators._messages import by_group
from ._lattices import OFFSETS, Lattices
from ._lift import DeltaLift
from ._outputs import log_output_table
from ._scalar import Scalars, concrete, scalarize


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
    lattices = Lattices(scalars, spacing, whole_box=False)
    families, tables = lattices.families(scalars)

    top = cells[structure.outputs[0]]
    z = int(top.numbers())
    if z >= 0:
        families.append(np.array([[z]]))
        seed = log_output_table(phi, jnp.asarray(lattices.points(np.array([z]))[0]))
        tables.append(np.asarray(seed)[None])
    graph = FactorGraph(np.full(scalars.count, len(OFFSETS)), families)

    produced = np.zeros(scalars.count, bool)
    for op in scalars.operations:
        produced[op.outputs] = True
    dirac = np.where(OFFSETS == 0, 0.0, -np.inf)
    evidence = graph.log_evidence({int(v): dirac for v in np.flatnonzero(~produced)})
    depth = _depth(scalars)
    # One flood of messages climbs or descends one delta factor, so 2 depth + 2 floods settle all.
    solver = BeliefPropagation(tolerance=0.0)
    solution = infer(
        graph, graph.pack(tables), solver, log_evidence=evidence, max_steps=2 * depth + 2
    )

    log_beliefs = np.zeros((scalars.count, len(OFFSETS)))
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


def _depth(scalars: Scalars) -> int:
    depth = np.zeros(scalars.count, int)
    for op in scalars.operations:
        depth[op.outputs] = 1 + np.max(depth[op.arguments], axis=1)
    return int(depth.max(initial=0))
