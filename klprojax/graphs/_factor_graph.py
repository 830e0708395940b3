"""Factor graphs: which variable meets which factor, kept apart from the numbers.

The structure of section 2 ("Factor graphs"). Factors are grouped by shape and variables by
cardinality, so a graph is a handful of dense integer arrays, its *wiring*. The wiring is the
pytree content of a `FactorGraph` and travels through ``jit`` as arguments, never as constants:
two graphs with equal `GraphSignature` run the same compiled program.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Int

from .._types import FactorTables, VariableTables
from .._variables import HasVariables, VariableLayout, put_all, stack
from ._message_rule import AbstractMessageRule, Structured
from ._wiring import (
    GraphSignature,
    GroupSignature,
    Wiring,
    incoming_edges,
    pairwise_slots,
    scope_rows,
)


class FactorGraph(HasVariables):
    """Hold the structure of a factor graph: cardinalities and scopes, no potentials.

    Args:
        cardinalities: number of states of each variable, ``[variables]``; each at least 1.
        factors: the factors. An entry is either one scope, a sequence of variable numbers, or a
            *family*, an integer array ``[factors, arity]`` whose rows are scopes of equal shape.
            Single scopes are grouped by shape (axes sorted by cardinality); a family stays a group
            of its own, in the given order, and may share one table. `Structured` is a family with a
            message rule in place of tables. Any arity including 0, several factors on one scope,
            and variables in no factor are all allowed.

    The number tables live outside, in two kinds of pytree (see `pack`, `pack_variables`):
    ``log_potentials`` with one array per group and ``log_evidence`` or beliefs with one array per
    distinct cardinality. All in nats.

    A graph is immutable, compares and hashes by content, and is a pytree whose leaves are the
    wiring, so it can be closed over or passed through ``jit``. Two graphs with the same
    ``graph.signature`` share compiled code.

    Raises:
        ValueError: a cardinality below 1, a variable number out of range, a scope that repeats
            a variable, a family whose rows differ in shape.

    Example:
        >>> import numpy as np, klprojax
        >>> graph = klprojax.FactorGraph([2, 3], [(0,), (0, 1)])
        >>> log_potentials = graph.pack([np.zeros(2), np.zeros((2, 3))])
        >>> [t.shape for t in log_potentials]
        [(1, 2), (1, 2, 3)]
    """

    wiring: Wiring
    signature: GraphSignature = eqx.field(static=True)

    def __init__(
        self,
        cardinalities: Sequence[int] | Int[np.ndarray, " variables"],
        factors: Sequence[Sequence[int] | Int[np.ndarray, "factors arity"] | Structured],
    ):
        cards = np.asarray(cardinalities, dtype=np.int64).reshape(-1)
        if cards.size and cards.min() < 1:
            bad = int(np.argmin(cards))
            raise ValueError(
                f"Variable {bad} has cardinality {cards[bad]}; every variable needs at least one "
                "state."
            )
        layout = VariableLayout(cards)
        classes, row_of = layout.classes, layout.row_of
        counts = [len(ids) for ids in layout.members]

        members: dict[Any, list[tuple[int, np.ndarray, np.ndarray]]] = {}
        rules: dict[Any, AbstractMessageRule] = {}
        for item, factor in enumerate(factors):
            is_family = not isinstance(factor, Structured) and np.ndim(factor) == 2
            if isinstance(factor, Structured):
                is_family = True
                rules["family", item] = factor.rule
                factor = np.asarray(factor.scopes)
            rows = scope_rows(item, factor, cards)
            if is_family:
                axes = np.arange(rows.shape[1])
                key: Any = ("family", item)
            else:
                axes = np.argsort(cards[rows[0]], kind="stable")
                key = tuple(int(c) for c in cards[rows[0]][axes])
            members.setdefault(key, []).append((item, rows[:, axes], axes))

        groups, edges, items, stored_axes = [], [], [], []
        for key, entries in members.items():
            scope = np.concatenate([rows for _, rows, _ in entries])
            shape = tuple(int(c) for c in cards[scope[0]])
            groups.append(
                GroupSignature(
                    shape,
                    len(scope),
                    tuple(int(c) for c in np.searchsorted(classes, shape)),
                    rules.get(key),
                )
            )
            groups[-1].table_shape  # noqa: B018  (a rule that does not suit raises here)
            edges.append(tuple(row_of[scope[:, a]] for a in range(scope.shape[1])))
            items.append(np.concatenate([np.full(len(r), i, np.int32) for i, r, _ in entries]))
            stored_axes.append(
                np.concatenate(
                    [np.broadcast_to(a, (len(r), len(a))).astype(np.int32) for _, r, a in entries]
                )
            )
        ends: list[list[np.ndarray]] = [[] for _ in classes]
        for group, ends_of_axes in zip(groups, edges, strict=True):
            for c, rows in zip(group.classes, ends_of_axes, strict=True):
                ends[c].append(rows)
        flat = tuple(np.concatenate([*end, np.zeros(0, np.int32)]).astype(np.int32) for end in ends)
        incoming = tuple(incoming_edges(rows, n) for rows, n in zip(flat, counts, strict=True))
        slots, reverse = pairwise_slots(groups, flat, counts)
        wiring = Wiring(
            layout.members, flat, tuple(items), tuple(stored_axes), incoming, slots, reverse
        )
        self.wiring = put_all(wiring)
        self.signature = GraphSignature(
            tuple(classes.tolist()),
            tuple(counts),
            tuple(len(table) for table in incoming),
            tuple(groups),
        )

    # -- structure on the host ---------------------------------------------------------------

    @property
    def num_variables(self) -> int:
        """Number of variables."""
        return sum(self.signature.counts)

    @property
    def num_factors(self) -> int:
        """Number of factors, every row of a family counted."""
        return sum(group.count for group in self.signature.groups)

    @property
    def num_items(self) -> int:
        """Number of entries of the constructor's ``factors``: what `pack` expects."""
        return 1 + max((int(ids.max()) for ids in self._host.items), default=-1)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of states of each variable, in the graph's order."""
        return tuple(self.variables.cardinalities.tolist())

    @cached_property
    def variables(self) -> VariableLayout:
        """The variables, as arrays by cardinality hold them."""
        cards = np.empty(self.num_variables, np.int64)
        for card, ids in zip(self.signature.cardinalities, self._host.variables, strict=True):
            cards[ids] = card
        return VariableLayout(cards)

    @property
    def edge_blocks(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per group and axis: class of the edges, and the first edge's number in it."""
        at = [0] * len(self.signature.cardinalities)
        blocks = []
        for group in self.signature.groups:
            mine = []
            for c in group.classes:
                mine.append((c, at[c]))
                at[c] += group.count
            blocks.append(tuple(mine))
        return tuple(blocks)

    @property
    def group_scopes(self) -> tuple[np.ndarray, ...]:
        """Variable numbers of each group's factors, ``[factors, arity]``, axes as stored."""
        host = self._host
        return tuple(
            np.stack(
                [host.variables[c][host.edges[c][at : at + group.count]] for c, at in blocks],
                axis=1,
            )
            if blocks
            else np.zeros((group.count, 0), np.int32)
            for group, blocks in zip(self.signature.groups, self.edge_blocks, strict=True)
        )

    @property
    def _host(self) -> Wiring:
        leaves = jax.tree.leaves(self.wiring)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            raise ValueError(
                "This needs the graph's concrete wiring, but the graph was passed as an argument "
                "through jit, vmap or grad. Close over the graph instead: "
                "jax.jit(lambda log_potentials: f(graph, log_potentials))."
            )
        return jax.tree.map(np.asarray, self.wiring)

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.sha256(repr(self.signature).encode())
        for leaf in jax.tree.leaves(self._host):
            digest.update(leaf.tobytes())
        return digest.digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FactorGraph) and self._digest == other._digest

    def __repr__(self) -> str:
        return (
            f"FactorGraph({self.num_variables} variables, {self.num_factors} factors in "
            f"{len(self.signature.groups)} groups)"
        )

    # -- numbers in and out ------------------------------------------------------------------

    def pack(self, log_tables: Sequence[Any], dtype: Any = None) -> FactorTables:
        """Arrange one log-table per entry of ``factors`` into the graph's groups.

        Args:
            log_tables: per entry, in nats: a table shaped like its scope, or for a family either
                ``[factors, *states]`` or one shared ``[*states]``. NumPy or JAX arrays.
            dtype: floating dtype of the result (default: JAX's default float).

        Returns:
            Log-potentials, one array per group: ``[factors, *states]`` or shared ``[*states]``.

        Raises:
            ValueError: wrong number of tables or a table of the wrong shape.
        """
        host = self._host
        if len(log_tables) != self.num_items:
            raise ValueError(
                f"Got {len(log_tables)} tables for {self.num_items} entries of `factors`."
            )
        return put_all(
            tuple(
                _pack_group(group, items, axes, log_tables, dtype)
                for group, items, axes in zip(
                    self.signature.groups, host.items, host.axes, strict=True
                )
            )
        )

    def unpack(self, tables: FactorTables) -> list[Any]:
        """Undo `pack`: one table per entry of ``factors``.

        A family of several factors keeps its leading axis (or its shared table).
        """
        out: dict[int, Any] = {}
        for group, items, axes, table in zip(
            self.signature.groups, self._host.items, self._host.axes, tables, strict=True
        ):
            rows = table if isinstance(table, Tracer) else np.asarray(table)
            if items[0] == items[-1] and group.count > 1:
                out[int(items[0])] = rows
                continue
            shared = rows.ndim == len(group.table_shape)
            for row, item in enumerate(items):
                out[int(item)] = (rows if shared else rows[row]).transpose(np.argsort(axes[row]))
        return [out[item] for item in sorted(out)]

    def check(
        self, log_potentials: FactorTables, log_evidence: VariableTables | None = None
    ) -> None:
        """Raise a ValueError unless the tables fit this graph (shapes and one common dtype)."""
        if len(log_potentials) != len(self.signature.groups):
            raise ValueError(
                f"log_potentials has {len(log_potentials)} arrays; the graph has "
                f"{len(self.signature.groups)} factor groups (see FactorGraph.pack)."
            )
        for g, (group, table) in enumerate(zip(self.signature.groups, log_potentials, strict=True)):
            shape = group.table_shape
            if table.shape not in (shape, (group.count, *shape)):
                raise ValueError(
                    f"log_potentials[{g}] has shape {table.shape}; expected "
                    f"{(group.count, *shape)}, or {shape} when shared."
                )
        if log_evidence is not None:
            wanted = tuple(zip(self.signature.counts, self.signature.cardinalities, strict=True))
            got = tuple(table.shape for table in log_evidence)
            if got != wanted:
                raise ValueError(
                    f"log_evidence has shapes {got}; expected {wanted} "
                    "(see FactorGraph.log_evidence)."
                )
        dtypes = {str(t.dtype) for t in (*log_potentials, *(log_evidence or ()))}
        if len(dtypes) > 1:
            raise ValueError(f"log_potentials and log_evidence mix dtypes {sorted(dtypes)}.")


def _pack_group(
    group: GroupSignature, items: np.ndarray, axes: np.ndarray, log_tables: Any, dtype: Any
) -> Any:
    arity = len(group.shape)
    if items[0] == items[-1]:  # one entry of `factors`: a scope or a family
        item = int(items[0])
        table = log_tables[item]
        if group.rule is None:
            given = tuple(group.shape[a] for a in np.argsort(axes[0]))
        else:
            given = group.table_shape
        allowed = {(group.count, *group.table_shape), given}
        if np.shape(table) not in allowed:
            raise ValueError(_shape_message(item, np.shape(table), sorted(allowed, key=len)))
        # Numpy's are arranged by numpy: nothing is compiled for that.
        xp: Any = jnp if isinstance(table, jax.Array) else np
        table = xp.array(table, dtype)
        if table.ndim == len(given) and group.count == 1:
            return (table.transpose(axes[0]) if group.rule is None else table)[None]
        return table
    rows = []
    for row, item in enumerate(items):
        given = tuple(group.shape[a] for a in np.argsort(axes[row]))
        table = log_tables[item]
        if np.shape(table) != given:
            raise ValueError(_shape_message(int(item), np.shape(table), [given]))
        rows.append(table.transpose(axes[row]) if arity else table)
    return stack(rows, dtype)


def _shape_message(item: int, got: tuple[int, ...], expected: list[tuple[int, ...]]) -> str:
    wanted = " or ".join(str(shape) for shape in expected)
    return f"The table of factors[{item}] has shape {got}; expected {wanted}."
