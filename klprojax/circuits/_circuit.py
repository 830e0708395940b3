"""The explicit circuit (section 4.1): a sum-product network as a directed acyclic graph."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from .._variables import HasVariables, VariableLayout
from ..geometry import safe_logsumexp
from ._leaves import AbstractDiscreteLeaf
from ._structure import LEAF, SUM, CircuitStructure, LeafGroup, is_indicator
from ._validation import check_semantics, check_wiring


class Circuit(HasVariables):
    """Hold the structure of a sum-product network: nodes, edges and leaves, no numbers.

    Most users want `CircuitBuilder`, a reader or `compile_model`; this is the form with arrays.

    Args:
        cardinalities: number of states of each variable; 0 for a continuous one.
        kinds: per node 0 (leaf), 1 (product) or 2 (sum), in any order.
        offsets: the children of node n are ``children[offsets[n] : offsets[n + 1]]``.
        children: child nodes, any number of parents each.
        groups: the leaves (see `LeafGroup`), every leaf node in one group; a group is of one
            family and one cardinality.
        root: the root node.
        names: names of the nodes, for messages; may be empty strings.
        validate: check completeness, decomposability and the scope of the root. Without it the
            sweep still computes values and log-derivatives of the network polynomial, which then
            are no marginals (Remark 4.7).

    The numbers live outside: ``log_weights`` with one entry per edge out of a sum node, node by
    node and child by child, and ``leaf_parameters`` with one array per leaf group,
    ``[leaves, *family.parameter_shape(cardinality)]``. All logarithms in nats.

    A circuit is static: it hashes and compares by content and has no arrays as pytree leaves, so
    it may be closed over or passed through any transformation.

    Raises:
        ValueError: naming the node at fault and the remedy.

    Reference: section 4.1.
    """

    structure: CircuitStructure = eqx.field(static=True)

    def __init__(
        self,
        cardinalities: Sequence[int] | Integer[np.ndarray, " variables"],
        kinds: Sequence[int] | Integer[np.ndarray, " nodes"],
        offsets: Sequence[int] | Integer[np.ndarray, " nodes_and_one"],
        children: Sequence[int] | Integer[np.ndarray, " edges"],
        groups: Sequence[LeafGroup],
        root: int,
        *,
        names: tuple[str, ...] | None = None,
        validate: bool = True,
    ):
        self.structure = CircuitStructure(
            np.asarray(cardinalities),
            np.asarray(kinds),
            np.asarray(offsets),
            np.asarray(children),
            groups,
            int(root),
            names,
        )
        check_wiring(self.structure)
        if validate:
            check_semantics(self.structure)

    # -- sizes -------------------------------------------------------------------------------

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """States of each variable; 0 for a continuous one."""
        return tuple(self.structure.cardinalities.tolist())

    @property
    def num_variables(self) -> int:
        """Number of variables."""
        return len(self.structure.cardinalities)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.structure.num_nodes

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.structure.num_edges

    @property
    def num_weights(self) -> int:
        """Number of edges out of sum nodes: the length of ``log_weights``."""
        return len(self.structure.sum_edges)

    @property
    def depth(self) -> int:
        """Longest way from the root to a leaf, in edges."""
        return int(self.structure.rank[self.root])

    @property
    def root(self) -> int:
        """The root node."""
        return self.structure.root

    @property
    def groups(self) -> tuple[LeafGroup, ...]:
        """The leaf groups."""
        return self.structure.groups

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each array of ``leaf_parameters``."""
        cards = self.structure.cardinalities
        return tuple(
            (len(g.nodes), *g.family.parameter_shape(int(cards[g.variables[0]])))
            for g in self.groups
        )

    def scope(self, node: int) -> tuple[int, ...]:
        """The variables below a node."""
        return self.structure.scope_of(node)

    def __repr__(self) -> str:
        return (
            f"Circuit({self.num_variables} variables, {self.num_nodes} nodes, {self.num_edges} "
            f"edges, depth {self.depth})"
        )

    @property
    def variables(self) -> VariableLayout:
        """The variables, as arrays by cardinality hold them."""
        return self.structure.variables

    # -- numbers -----------------------------------------------------------------------------

    def uniform_weights(self, dtype: Any = None) -> Float[Array, " weights"]:
        """Equal normalised log-weights at every sum node.

        Args:
            dtype: floating type; JAX's default if None.
        """
        s = self.structure
        counts = s.fan_in[s.parents[s.sum_edges]]
        return jnp.asarray(-np.log(counts.astype(np.float64)), dtype or jnp.zeros(0).dtype)

    def normalize_weights(self, log_weights: Float[Array, " weights"]) -> Float[Array, " weights"]:
        """Make the weights of every sum node add up to one.

        Args:
            log_weights: one per edge out of a sum node, nats.
        """
        return log_weights - self._log_totals(log_weights)

    def is_normalized(
        self,
        log_weights: Any,
        leaf_parameters: Sequence[Any] | None = None,
        *,
        tolerance: float | None = None,
    ) -> bool:
        """Say whether all sum nodes and all leaf tables are normalised, so that log Z is 0.

        Args:
            tolerance: largest ``|log total|`` accepted; ``100 eps`` of the dtype if None.
        """
        log_weights = jnp.asarray(log_weights)
        if tolerance is None:
            tolerance = 100 * float(jnp.finfo(log_weights.dtype).eps)
        totals = [np.asarray(self._log_totals(log_weights))]
        cards = self.structure.cardinalities
        for group, parameters in zip(
            self.groups, self.check(log_weights, None, leaf_parameters), strict=True
        ):
            if isinstance(group.family, AbstractDiscreteLeaf) and not is_indicator(group):
                table = group.family.log_table(parameters, int(cards[group.variables[0]]))
                totals.append(np.asarray(safe_logsumexp(table, axis=1)))
        return all(bool((np.abs(t) <= tolerance).all()) for t in totals)

    def _log_totals(self, log_weights: Array) -> Array:
        """Per weight, the log of the total weight of its sum node."""
        s = self.structure
        owner = s.parents[s.sum_edges]
        top = jnp.full(self.num_nodes, -jnp.inf, log_weights.dtype).at[owner].max(log_weights)
        top = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))[owner]
        total = (
            jnp.zeros(self.num_nodes, log_weights.dtype).at[owner].add(jnp.exp(log_weights - top))
        )
        return jnp.log(total[owner]) + top

    def check(
        self,
        log_weights: Any,
        log_evidence: Sequence[Any] | None = None,
        leaf_parameters: Sequence[Any] | None = None,
        values: Any = None,
        *,
        batch: tuple[int, ...] = (),
    ) -> tuple[Any, ...]:
        """Check that the numbers fit the circuit; return the leaf parameters, filled in.

        Args:
            log_weights: one per edge out of a sum node, nats.
            log_evidence: soft or hard evidence (see `Circuit.log_evidence`).
            leaf_parameters: one array per leaf group.
            values: values of continuous variables, NaN where missing.
            batch: leading axes that all numbers share.

        Raises:
            ValueError: a shape that does not fit, mixed dtypes, or leaf parameters left out.
        """
        s = self.structure
        if np.shape(log_weights) != (self.num_weights,):
            raise ValueError(
                f"log_weights has shape {np.shape(log_weights)}; the circuit has "
                f"{self.num_weights} edges out of sum nodes, so expected ({self.num_weights},)."
            )
        dtype = log_weights.dtype
        shapes = self.parameter_shapes
        if leaf_parameters is None:
            if any(0 not in shape for shape in shapes):
                kinds = sorted(
                    {type(g.family).__name__ for g in self.groups if not is_indicator(g)}
                )
                raise ValueError(
                    f"The circuit has leaves with parameters ({', '.join(kinds)}); pass "
                    "leaf_parameters, one array per leaf group (see Circuit.parameter_shapes)."
                )
            leaf_parameters = tuple(jnp.zeros(shape, dtype) for shape in shapes)
        got = tuple(np.shape(p) for p in leaf_parameters)
        if got != shapes:
            raise ValueError(f"leaf_parameters has shapes {got}; expected {shapes}.")
        if log_evidence is not None:
            wanted = s.variables.shapes(batch)
            shapes_got = tuple(np.shape(table) for table in log_evidence)
            if shapes_got != wanted:
                raise ValueError(
                    f"log_evidence has shapes {shapes_got}; expected {wanted} "
                    "(see Circuit.log_evidence)."
                )
        continuous = len(s.variables.continuous)
        if values is not None and np.shape(values) != (*batch, continuous):
            raise ValueError(
                f"values has shape {np.shape(values)}; the circuit has {continuous} "
                f"continuous variables, so expected {(*batch, continuous)}."
            )
        arrays = (log_weights, *(log_evidence or ()), *leaf_parameters)
        dtypes = {str(a.dtype) for a in (*arrays, *(() if values is None else (values,)))}
        if len(dtypes) > 1:
            raise ValueError(f"The numbers of the circuit mix dtypes {sorted(dtypes)}.")
        return tuple(leaf_parameters)


def leaf_nodes(circuit: Circuit) -> Int[np.ndarray, " leaves"]:
    """All leaf nodes, ascending."""
    return np.flatnonzero(circuit.structure.kinds == LEAF)


def sum_nodes(circuit: Circuit) -> Int[np.ndarray, " sums"]:
    """All sum nodes, ascending."""
    return np.flatnonzero(circuit.structure.kinds == SUM)
