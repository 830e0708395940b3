"""A lifted function as a factor graph of tables: what T_Proj itself is applied to (Theorem 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import FactorTables, VariableTables
from ..geometry import safe_logsumexp
from ..graphs import FactorGraph
from ._arguments import Arguments
from ._lattices import OFFSETS, Lattices
from ._outputs import log_output_table
from ._scalar import concrete, scalarize
from ._structure import Structure

# Mass of the outer points of an input's table at its forward value: the variance is h²/2.
_OUTER = 0.25


class TableGraph(eqx.Module):
    """A function near its forward point as tables, ready for `t_proj` and `infer`.

    Every scalar v has the lattice ``v* + {-h_v, 0, h_v}``. The delta factor of ``y = ψ(x_1, ...)``
    is a table of hat functions, ``hat_k(ψ(x_1[i], ...))``: linear interpolation on the lattice of
    y, which reaches as far as ψ does on the whole box of its arguments' lattices. With
    `evidence` at the arguments, T_Proj gives the marginal of z, and `readout` its expectation
    under an output factor φ. The derivative of that readout in the arguments is

        ``∇_x log E_q[φ(z)] = φ'(z)/φ(z) ∇_x z + O(h²)``,

    the differential of the projection operator as backpropagation. At every spacing and exactly,
    it is a difference of two beliefs: for the evidence ``λ_i`` of an input,
    ``∂ log E_q[φ] / ∂ log λ_i(k) = P_φ(x_i = k) - P(x_i = k)``, with and without φ as a factor
    (see `with_output`).

    Attributes:
        graph: the factor graph, one variable of three states per scalar node.
        log_potentials: tables of the delta factors, natural logarithms; `-inf` off the hats.
        points: the lattices ``[nodes, 3]``.
        inputs: node numbers of the entries of all variable arguments, one after the other.
        output: node number of z.

    Reference: section 3.2, Theorem 3.3.
    """

    graph: FactorGraph
    log_potentials: FactorTables
    points: Float[Array, "nodes 3"]
    inputs: tuple[int, ...] = eqx.field(static=True)
    output: int = eqx.field(static=True)
    _arguments: Arguments = eqx.field(static=True)
    _chosen: tuple[bool, ...] = eqx.field(static=True)

    def evidence(self, *arguments: Any) -> VariableTables:
        """Tables of the inputs whose means are the arguments.

        An input at ``x* + t`` has probabilities ``1/4 - t/2h, 1/2, 1/4 + t/2h``: positive around
        the forward point, of mean ``x* + t``, and linear in t.

        Args:
            arguments: the function's arguments, nearer than ``h/2`` to the forward point; clamped
                ones are not read.

        Returns:
            Log-evidence (nats), zero for nodes that are no inputs.

        Raises:
            ValueError: arguments of another structure than those lifted.
            RuntimeError: an argument is ``h/2`` or more away from the forward point.
        """
        leaves = self._arguments.leaves(arguments)
        nodes = np.asarray(self.inputs)
        dtype = self.points.dtype
        means = jnp.concatenate(
            [
                leaf.reshape(-1).astype(dtype)
                for leaf, chosen in zip(leaves, self._chosen, strict=True)
                if chosen
            ]
        )
        lattice = self.points[nodes]
        place = (means - lattice[:, 1]) / (lattice[:, 2] - lattice[:, 0])
        place = eqx.error_if(
            place,
            ~(jnp.abs(place) < _OUTER),
            "An argument is half a lattice spacing or more away from the forward point, where no "
            "positive table on the lattice has it as mean. Make the table graph at these "
            "arguments, or with a larger spacing.",
        )
        inner = jnp.full_like(place, 1 - 2 * _OUTER)
        tables = jnp.log(jnp.stack([_OUTER - place, inner, _OUTER + place], axis=1))
        return (jnp.zeros(self.points.shape, dtype).at[nodes].set(tables),)

    def readout(self, log_marginals: VariableTables, phi: Callable[[Any], Any]) -> Float[Array, ""]:
        """``log E_q[φ(z)]`` under the marginal of z.

        Args:
            log_marginals: log-probabilities of the nodes, as `t_proj` returns them.
            phi: positive output factor; `log_phi` is used if it has one.

        Returns:
            The expectation's natural logarithm.

        Raises:
            ValueError: φ is not positive and finite on the lattice of z (inside `jit`: an Equinox
                run-time error).
        """
        return safe_logsumexp(
            log_marginals[0][self.output] + log_output_table(phi, self.points[self.output])
        )

    def with_output(
        self, log_evidence: VariableTables, phi: Callable[[Any], Any]
    ) -> VariableTables:
        """Evidence with φ as one more factor, at z.

        Args:
            log_evidence: see `evidence`.
            phi: positive output factor; `log_phi` is used if it has one.

        Raises:
            ValueError: φ is not positive and finite on the lattice of z (inside `jit`: an Equinox
                run-time error).
        """
        return (
            log_evidence[0].at[self.output].add(log_output_table(phi, self.points[self.output])),
        )


def table_graph(
    structure: Structure,
    arguments: Arguments,
    values: Sequence[Any],
    spacing: float,
    variables: Any | None,
) -> TableGraph:
    """See `DeltaLift.table_graph`."""
    concrete(values)
    if not spacing > 0:
        raise ValueError(f"spacing must be positive, got {spacing}")
    chosen = arguments.chosen(variables, [values[index] for index in structure.inputs])
    inputs = [index for index, flag in zip(structure.inputs, chosen, strict=True) if flag]
    scalars, cells = scalarize(structure, values, inputs)
    output = int(cells[structure.outputs[0]].numbers())
    if output < 0:
        raise ValueError(
            "the function does not depend on the chosen variables, so z has no table; choose others"
        )
    lattices = Lattices(scalars, spacing, whole_box=True)
    scopes, tables = lattices.families(scalars)
    graph = FactorGraph(np.full(scalars.count, len(OFFSETS)), scopes)
    dtype = jnp.result_type(*(values[index] for index in inputs))
    return TableGraph(
        graph,
        graph.pack(tables, dtype),
        jnp.asarray(lattices.points(np.arange(scalars.count)), dtype),
        tuple(np.concatenate([cells[i].numbers().reshape(-1) for i in inputs]).tolist()),
        output,
        arguments,
        tuple(chosen),
    )
