"""The replicated lift of section 3.1: every factor gets its own copy of each of its variables.

The lifted space has one axis an edge of the factor graph. On it the factors become independent,
``q_{-1} ∝ prod_k f_k(x^(k))``, and what tied them together becomes a constraint: the copies of a
variable must agree. Copies of variables that a factor does not touch are uniform in the paper's
``Ω^K`` and change nothing, so they are left out.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import FactorTables, VariableTables
from ..geometry import ConsensusFace, log_normalize
from ._factor_graph import FactorGraph
from ._message_rule import dense_table
from ._wiring import GroupSignature


class ReplicatedLift(eqx.Module):
    """Hold the axes of the dense lifted joint table of a tiny graph, and who is whose copy.

    Meant for proofs by computation: the table has one axis an edge, so its size is exponential in
    the number of edges. All fields are static.

    Args:
        graph: the factor graph. Its wiring must be concrete (closed over, not a ``jit`` argument).
        evidence: give every variable one more copy, whose unary factor is its evidence. Soft
            evidence is thus a factor like any other, and a variable in no factor has a copy too.
        max_entries: largest table allowed.

    Attributes:
        shape: states of each axis. Axes run over the groups, their factors, the stored axes of each
            factor, then over the variables' evidence.
        copies: per variable of the graph, the axes that are its copies; empty for a variable that
            is in no factor, without evidence.
        factor_axes: per group and factor, the axes of its copies.
        groups, variables, cardinalities, evidence: what they are in the graph.

    Raises:
        ValueError: the table would have more than ``max_entries`` entries.

    Reference: section 3.1 (the Walsh-Regalia replication).

    Example:
        >>> import klprojax
        >>> from klprojax.graphs._replication import ReplicatedLift
        >>> lift = ReplicatedLift(klprojax.FactorGraph([2, 3], [(0, 1), (1,)]))
        >>> lift.shape, lift.copies
        ((2, 3, 3), ((0,), (1, 2)))
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    copies: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    factor_axes: tuple[tuple[tuple[int, ...], ...], ...] = eqx.field(static=True)
    groups: tuple[GroupSignature, ...] = eqx.field(static=True)
    variables: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    cardinalities: tuple[int, ...] = eqx.field(static=True)
    evidence: bool = eqx.field(static=True)

    def __init__(self, graph: FactorGraph, *, evidence: bool = False, max_entries: int = 2**22):
        cards = graph.cardinalities
        shape: list[int] = []
        copies: list[list[int]] = [[] for _ in cards]

        def edge(v: int) -> int:
            copies[v].append(len(shape))
            shape.append(cards[v])
            return len(shape) - 1

        self.factor_axes = tuple(
            tuple(tuple(edge(v) for v in scope) for scope in scopes.tolist())
            for scopes in graph.group_scopes
        )
        if evidence:
            for v in range(len(cards)):
                edge(v)
        size = math.prod(shape)
        if size > max_entries:
            raise ValueError(
                f"The replicated joint table has {len(shape)} axes and {size:,} entries, beyond "
                f"max_entries = {max_entries:,}: one axis an edge of the graph"
                f"{' and one per variable for its evidence' if evidence else ''}. Use a smaller "
                "graph, or Elimination(), which needs no replicated table."
            )
        self.shape = tuple(shape)
        self.copies = tuple(tuple(axes) for axes in copies)
        self.groups = graph.signature.groups
        self.variables = tuple(tuple(ids.tolist()) for ids in graph._host.variables)
        self.cardinalities = cards
        self.evidence = evidence

    @property
    def consensus(self) -> ConsensusFace:
        """The diagonal face 𝒬: all copies of each variable agree."""
        return ConsensusFace(tuple(axes for axes in self.copies if axes))

    def log_table(
        self, log_potentials: FactorTables, log_evidence: VariableTables | None = None
    ) -> Float[Array, "*copies"]:
        """Form ``q_{-1} ∝ prod_k f_k(x^(k))``, the normalised product of the replicated factors.

        Args:
            log_potentials: in nats, laid out as `FactorGraph.pack` does; `-inf` is a hard zero.
            log_evidence: in nats; wanted if and only if the lift was made with ``evidence=True``.

        Returns:
            Log-probabilities of the lifted joint; `-inf` throughout if some factor has no mass.

        Raises:
            ValueError: evidence without copies for it, or the reverse.
        """
        if (log_evidence is not None) != self.evidence:
            got = "no log_evidence" if log_evidence is None else "log_evidence"
            raise ValueError(
                f"Got {got} for a lift made with evidence={self.evidence}; make it with "
                f"ReplicatedLift(graph, evidence={log_evidence is not None})."
            )
        arrays = (*log_potentials, *(log_evidence or ()))
        joint = jnp.zeros(self.shape, arrays[0].dtype if arrays else None)
        for group, axes_of_factors, table in zip(
            self.groups, self.factor_axes, log_potentials, strict=True
        ):
            if table.ndim == len(group.table_shape):
                table = table[None]
            if group.rule is not None:
                table = dense_table(group.rule, table, group.shape)
            table = jnp.broadcast_to(table, (group.count, *group.shape))
            for row, axes in zip(table, axes_of_factors, strict=True):
                joint = joint + self._expand(row, axes)
        if log_evidence is not None:
            for ids, table in zip(self.variables, log_evidence, strict=True):
                for row, v in enumerate(ids):
                    joint = joint + self._expand(table[row], self.copies[v][-1:])
        return log_normalize(joint)

    def read_variables(self, log_marginals: tuple[Float[Array, " _states"], ...]) -> VariableTables:
        """Read one table per variable off the marginals of all copies.

        Args:
            log_marginals: per axis, log-probabilities of that copy. Copies of one variable are
                taken to agree, as they do on the diagonal face: the first one is read.

        Returns:
            Log-probabilities by variable; uniform for a variable without copies.
        """
        dtype = log_marginals[0].dtype if log_marginals else jnp.zeros(0).dtype
        return tuple(
            jnp.stack(
                [
                    log_marginals[self.copies[v][0]]
                    if self.copies[v]
                    else log_normalize(jnp.zeros(self.cardinalities[v], dtype))
                    for v in ids
                ]
            )
            for ids in self.variables
        )

    def _expand(self, table: Array, axes: tuple[int, ...]) -> Array:
        return table.reshape([n if a in axes else 1 for a, n in enumerate(self.shape)])
