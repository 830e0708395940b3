"""One upward and one downward pass over a forest, in time and memory linear in its size."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._types import FactorTables
from ..geometry import log_normalize
from ..graphs import FactorGraph
from ._engines import AbstractEngine, message_change, outgrown
from ._forest import Kind, Run, Slots, SweepPlan
from ._messages import (
    Messages,
    Semiring,
    by_class,
    cavities,
    damp,
    reach,
    reduce,
    totals,
    unnormalized,
)


class AbstractSweep(AbstractEngine):
    """An engine whose step computes all messages of a forest, and its log-partition.

    Attributes:
        plan: how it goes through the forest.
    """

    plan: eqx.AbstractVar[Any]

    def prepare(self, graph, tables, log_evidence):
        """Graph, tables and evidence as they are, the plan, and the tables' reach."""
        return graph, tables, log_evidence, self.plan, reach(graph, tables, log_evidence)

    def load(self, graph, messages):
        """The messages, and the log-partition."""
        return messages, jnp.zeros((), messages[0].dtype if messages else None)

    def store(self, graph, carry):
        """The messages."""
        return carry[0]

    def log_partition(self, carry):
        """What the step found; damped messages are not those of the factors."""
        return carry[1] if self.damping == 0.0 else None

    def change(self, inputs, new, old):
        """See `AbstractEngine.change`."""
        return message_change(new[0], old[0], inputs[-1])

    def diverged(self, carry):
        """See `AbstractEngine.diverged`."""
        return outgrown(carry[0])


class LevelSweep(AbstractSweep):
    """Messages towards the roots, then towards the leaves, each once, in the log domain.

    What a scan over the levels of a run carries is its registers, as many as a level has factors.
    Tables and messages pass by as the scan's inputs and outputs, so no step touches, and no
    derivative keeps a copy of, an array as long as the tree. The log-partition needs the upward
    pass alone.
    """

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)
    plan: SweepPlan

    def step(self, inputs, carry):
        """Go up and down once. Only damping looks at the messages before."""
        graph, tables, log_evidence, plan, _ = inputs
        old = carry[0] if self.damping else None
        messages, log_scale = single_messages(graph, tables, self.semiring, old, self.damping)
        at = tuple(total.value() for total in totals(graph, messages, log_evidence))
        for run in plan.runs:
            children = _take(at, _variables(graph, run.children))
            new, scales = self._levels(graph, tables, run, old, None, children)
            messages = _add(messages, run.parents.edges, new)
            at = _add(at, _variables(graph, run.parents), new)
            log_scale = log_scale + scales
        for table, root in zip(at, plan.roots, strict=True):
            log_scale = log_scale + jnp.sum(jnp.where(root, reduce(table, 1, self.semiring), 0.0))
        # All messages towards the roots are there. What a variable's own parent says is missing
        # from its sum, and comes before the factors below need it.
        inside = cavities(graph, messages, totals(graph, messages, log_evidence))
        above = tuple(jnp.zeros_like(table) for table in at)
        for run in reversed(plan.runs):
            parents = tuple(
                own + other
                for own, other in zip(
                    _take(inside, run.parents.edges),
                    _take(above, _variables(graph, run.parents)),
                    strict=True,
                )
            )
            children = _take(inside, run.children.edges)
            new, _ = self._levels(graph, tables, run, old, parents, children)
            messages = _add(messages, run.children.edges, new)
            above = _add(above, _variables(graph, run.children), new)
        return tuple(log_normalize(message, axis=1) for message in messages), log_scale

    def _levels(
        self,
        graph: FactorGraph,
        tables: FactorTables,
        run: Run,
        old: Messages | None,
        parents: tuple[Array, ...] | None,
        children: tuple[Array, ...],
    ) -> tuple[tuple[Array, ...], Float[Array, ""]]:
        """Messages of a run in one direction, rows as in its slots: up if ``parents`` is None.

        Their largest entry is brought to 0, and what that took from the log-partition is summed.

        Args:
            old: the messages before, for damping.
            parents, children: what variables send to the factors, but for messages of this run.
        """
        up = parents is None
        reads, writes = (run.children, run.parents) if up else (run.parents, run.children)
        by_level, shared = zip(
            *(_tables(graph, tables, k, rows) for k, rows in zip(run.kinds, run.rows, strict=True)),
            strict=True,
        )
        before = None if old is None else _take(old, writes.edges)

        def level(registers, x):
            by_level, heard, others, before, reads, sources, more = x
            heard = tuple(
                message
                + (
                    jnp.where((read < count)[:, None], held, 0.0)
                    if straight
                    else _take((held,), (read,))[0]
                )
                for message, held, read, straight, count in zip(
                    heard, registers, reads, run.straight, run.registers, strict=True
                )
            )
            above, below = (None, heard) if up else (heard, others)
            own = (s if b is None else b for b, s in zip(by_level, shared, strict=True))
            out, tops = zip(
                *map(leveled, self._outgoing(graph, run.kinds, own, above, below)),
                strict=True,
            )
            if before is not None:
                out = tuple(damp(n, o, self.damping) for n, o in zip(out, before, strict=True))
            registers = tuple(
                new if straight else jnp.concatenate([new, held])[source]
                for new, held, source, straight in zip(
                    out, registers, sources, run.straight, strict=True
                )
            )
            registers = tuple(
                held if to is None else held.at[to].add(new, mode="drop")
                for held, new, to in zip(registers, out, more, strict=True)
            )
            return registers, (out, tops)

        start = tuple(
            jnp.zeros((edges.shape[1] if straight else count, card), children[0].dtype)
            for edges, straight, count, card in zip(
                writes.edges,
                run.straight,
                run.registers,
                graph.signature.cardinalities,
                strict=True,
            )
        )
        heard, others = (children, None) if up else (parents, children)
        xs = by_level, heard, others, before, reads.registers, writes.sources, writes.more
        # Derivatives compute a level's sums again: to keep them costs more than that, in time too.
        _, (out, tops) = lax.scan(
            jax.checkpoint(level, prevent_cse=False), start, xs, reverse=not up
        )
        scales = [
            jnp.sum(jnp.where(edges < len(all_edges), top[..., 0], 0.0))
            for top, edges, all_edges in zip(tops, writes.edges, graph.wiring.edges, strict=True)
        ]
        return out, sum(scales, jnp.zeros((), children[0].dtype))

    def _outgoing(
        self,
        graph: FactorGraph,
        kinds: tuple[Kind, ...],
        tables: Iterable[Any],
        above: tuple[Array, ...] | None,
        below: tuple[Array, ...],
    ) -> tuple[Array, ...]:
        """One level's messages, any gauge: up if ``above`` is None."""
        out: list[list[Array]] = [[] for _ in below]
        for kind, table in zip(kinds, tables, strict=True):
            group = graph.signature.groups[kind.members[0][0]]
            axes = kind.members[0][1]
            width = sum(kind.widths)
            places = kind.parents if above is None else kind.children
            incoming = []
            for axis, up, down in zip(axes, kind.parents, kind.children, strict=True):
                c = group.classes[axis]
                message = jnp.zeros((width, group.shape[axis]), below[c].dtype)
                if up is not None and above is not None:
                    message = message + above[c][up : up + width]
                if down is not None:
                    message = message + below[c][down : down + width]
                incoming.append(message)
            asked = [j for j, place in enumerate(places) if place is not None]
            messages = unnormalized(group, table, tuple(incoming), self.semiring, asked)
            for j, message in zip(asked, messages, strict=True):
                out[group.classes[axes[j]]].append(message)
        empty = [below_c[:0] for below_c in below]
        return tuple(jnp.concatenate(rows or [none]) for rows, none in zip(out, empty, strict=True))


def single_messages(
    graph: FactorGraph,
    tables: FactorTables,
    semiring: Semiring,
    old: Messages | None = None,
    damping: float = 0.0,
) -> tuple[Messages, Float[Array, ""]]:
    """Messages of factors on one variable, which hear nothing, 0 from all others.

    Their largest entry is brought to 0. The second number is what that took from the log-partition,
    and the factors on no variable.
    """
    out, log_scale = [], jnp.zeros((), tables[0].dtype)
    for group, blocks, table in zip(graph.signature.groups, graph.edge_blocks, tables, strict=True):
        messages = tuple(jnp.zeros((group.count, card), table.dtype) for card in group.shape)
        if not messages:
            log_scale = log_scale + jnp.sum(jnp.broadcast_to(table, (group.count,)))
        if len(messages) == 1:
            message, top = leveled(unnormalized(group, table, messages, semiring, (0,))[0])
            if old is not None:
                ((c, start),) = blocks
                message = damp(message, old[c][start : start + group.count], damping)
            messages, log_scale = (message,), log_scale + jnp.sum(top)
        out.append(messages)
    return by_class(graph, tuple(out), tables[0].dtype), log_scale


def leveled(message: Float[Array, "rows states"]) -> tuple[Array, Array]:
    """Bring each row's largest entry to 0; 0 in the place of `-inf`. No derivative needs this."""
    top = lax.stop_gradient(jnp.max(message, axis=1, keepdims=True))
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    return message - top, top


def _tables(
    graph: FactorGraph, tables: FactorTables, kind: Kind, rows: tuple[Any, ...]
) -> tuple[Array | None, Array | None]:
    """A kind's tables ``[levels, rows, *states]``, or ``[rows, *states]`` if all share theirs."""
    turned = [
        tables[group]
        if graph.signature.groups[group].rule
        else tables[group].transpose(0, *(a + 1 for a in axes))
        for group, axes in kind.members
    ]
    if len(turned) == 1 and turned[0].shape[0] == 1:
        return None, turned[0]
    if all(table.shape[0] == 1 for table in turned):
        some = [t[np.zeros(w, np.int32)] for t, w in zip(turned, kind.widths, strict=True)]
        return None, jnp.concatenate(some)
    some = [t[jnp.minimum(r, len(t) - 1)] for t, r in zip(turned, rows, strict=True)]
    return jnp.concatenate(some, axis=1), None


def _variables(graph: FactorGraph, slots: Slots) -> tuple[Array, ...]:
    """Each row's variable within its class, padded with the number of variables."""
    return tuple(
        jnp.append(rows, jnp.int32(count))[edges]
        for rows, edges, count in zip(
            graph.wiring.edges, slots.edges, graph.signature.counts, strict=True
        )
    )


def _take(tables: Iterable[Array], rows: Iterable[Any]) -> tuple[Array, ...]:
    """Rows of each table; 0 for padding."""
    return tuple(
        table.at[row].get(mode="fill", fill_value=0)
        if table.shape[0]
        else jnp.zeros((*row.shape, table.shape[1]), table.dtype)
        for table, row in zip(tables, rows, strict=True)
    )


def _add(tables: Iterable[Array], rows: Iterable[Any], terms: Iterable[Array]) -> tuple[Array, ...]:
    """Add to rows of each table; padding goes nowhere."""
    return tuple(
        table.at[row].add(term, mode="drop") if table.shape[0] else table
        for table, row, term in zip(tables, rows, terms, strict=True)
    )
