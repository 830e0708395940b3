"""Schedules of belief propagation: which messages a step updates, and in what order.

`Flooding` updates all messages at once, `Residual` those that change most. `Sequential` and
`TreeSweep` go through *batches* of factors, later batches seeing the messages of earlier ones.
"""

import abc
from functools import lru_cache

import equinox as eqx
import numpy as np
from jaxtyping import Array, Int

from ..graphs import FactorGraph
from ._forest import forest
from ._forest import is_forest as is_forest

# Per group, which factors each batch updates, [batches, width], padded with the factor count.
Batches = tuple[Int[Array | np.ndarray, "_ _"], ...]


class AbstractSchedule(eqx.Module):
    """Contract: `batches(graph)` gives the order of updates, or None for all at once."""

    @abc.abstractmethod
    def batches(self, graph: FactorGraph) -> Batches | None:
        """Index arrays on the host; ValueError if the schedule does not suit the graph."""


class Flooding(AbstractSchedule):
    """Update every message from the previous step's messages: the paper's normalised BP."""

    def batches(self, graph: FactorGraph) -> None:
        """None: one batch, everything."""
        return


class Residual(AbstractSchedule):
    """Update only messages whose change is at least ``threshold`` times the largest change.

    The parallel form of residual belief propagation: it settles graphs on which flooding
    oscillates. Each step computes all candidate messages and keeps some.

    Reference: Elidan, McGraw, Koller (2006).
    """

    threshold: float = eqx.field(static=True, default=0.5)

    def __check_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"Residual threshold is {self.threshold}; it must be in (0, 1].")

    def batches(self, graph: FactorGraph) -> None:
        """None: the choice depends on the messages."""
        return


class Sequential(AbstractSchedule):
    """Go once through all factors a step, in colour classes that share no variable.

    Factors of one colour do not interact, so they update together; information crosses several
    factors in one step. Converges in fewer steps than flooding, and more often.
    """

    def batches(self, graph: FactorGraph) -> Batches | None:
        """Greedy colouring of the factors, in the order of groups; None without factors."""
        return _sequential_batches(graph) if graph.num_factors else None


class TreeSweep(AbstractSchedule):
    """One upward and one downward pass: exact after a single step on a tree or forest.

    Time and memory grow linearly with the number of factors, whatever the shape of the trees, also
    under ``jit``, ``vmap`` and in both modes of differentiation. With damping it is no longer
    exact, and is repeated like any other schedule.

    Args:
        parallel: multiply the tables of chains by an associative scan instead: about ``2 log2(T)``
            dependent steps for chains of ``T`` variables, not ``T``, but ``O(T s^3)`` work for
            ``s`` states, not ``O(T s^2)``, ``T`` tables at once in memory, and seconds more to
            compile. It is meant for accelerators, where a dependent step costs more than work does,
            and long chains of few states; on a CPU the sweep is some three times as fast.

    Sequences of unequal length are one batch once the shorter ones are padded: steps after the end
    whose tables are 0 throughout say nothing, so those before it get the marginals they would have
    alone, and log Z grows by ``log s`` per step of ``s`` states added:

        >>> import jax, numpy as np, klprojax
        >>> steps = np.arange(4)
        >>> links = np.stack([steps[:-1], steps[1:]], axis=1)
        >>> graph = klprojax.FactorGraph([2] * 4, [links, steps[:, None]])
        >>> pair, seen = np.log([[0.9, 0.1], [0.3, 0.7]]), np.log([0.2, 0.8])
        >>> inside = np.arange(4) < np.array([[4], [2]])  # lengths 4 and 2
        >>> pairs = jax.numpy.asarray(np.where(inside[:, 1:, None, None], pair, 0.0))
        >>> seens = jax.numpy.asarray(np.where(inside[:, :, None], seen, 0.0))
        >>> sweep = klprojax.BeliefPropagation(schedule=klprojax.TreeSweep())
        >>> def smooth(pairs, seens):
        ...     return klprojax.infer(graph, (pairs, seens), sweep, throw=False).marginals[0]
        >>> jax.vmap(smooth)(pairs, seens).shape
        (2, 4, 2)

    Raises (when used):
        ValueError: the graph has a cycle, or with ``parallel`` is not made of chains only: plain
            paths of factors on two variables, with any factors on one variable.

    Reference: Proposition 3.1 (i); for ``parallel``, Särkkä, García-Fernández (2021).
    """

    parallel: bool = eqx.field(static=True, default=False)

    def batches(self, graph: FactorGraph) -> Batches | None:
        """Levels from the leaves to the roots and back; None without factors."""
        return _tree_batches(graph) if graph.num_factors else None


@lru_cache(maxsize=32)
def _sequential_batches(graph: FactorGraph) -> Batches:
    used: list[set[int]] = [set() for _ in range(graph.num_variables)]
    colours = []
    for scope in graph.group_scopes:
        mine = np.zeros(len(scope), np.int64)
        for row, variables in enumerate(scope.tolist()):
            taken = set().union(*(used[v] for v in variables)) if variables else set()
            colour = next(k for k in range(len(taken) + 1) if k not in taken)
            mine[row] = colour
            for v in variables:
                used[v].add(colour)
        colours.append(mine)
    return pad_batches(colours)


@lru_cache(maxsize=32)
def _tree_batches(graph: FactorGraph) -> Batches:
    levels = forest(graph).levels
    top = max(int(level.max(initial=0)) for level in levels)
    up, down = pad_batches([*levels]), pad_batches([top - level for level in levels])
    return tuple(np.concatenate(pair) for pair in zip(up, down, strict=True))


def pad_batches(levels: list[np.ndarray]) -> Batches:
    """Turn a level per factor, one array per group, into padded batches in order of level.

    A level wider than a group's width is cut into several batches, so one wide level does not pad
    all the others.
    """
    count = max((int(level.max(initial=-1)) + 1 for level in levels), default=0)
    members = [
        np.split(np.argsort(level, kind="stable"), np.cumsum(np.bincount(level, minlength=count)))[
            :count
        ]
        for level in levels
    ]
    widths = [_width([len(m) for m in group]) for group in members]
    rows: list[list[np.ndarray]] = [[] for _ in levels]
    for level in range(count):
        pieces = max(-(-len(group[level]) // w) for group, w in zip(members, widths, strict=True))
        for piece in range(pieces):
            for g, (group, w) in enumerate(zip(members, widths, strict=True)):
                chunk = group[level][piece * w : (piece + 1) * w]
                fill = np.full(w - len(chunk), len(levels[g]))
                rows[g].append(np.concatenate([chunk, fill]).astype(np.int32))
    return tuple(
        np.stack(r) if r else np.zeros((0, w), np.int32) for r, w in zip(rows, widths, strict=True)
    )


def _width(sizes: list[int]) -> int:
    # A batch costs its width plus about 64 columns' worth of fixed work.
    largest = max([1, *sizes])
    options = {1, largest} | {2**k for k in range(1, largest.bit_length())}
    return min(options, key=lambda w: sum(-(-n // w) for n in sizes) * (w + 64))
