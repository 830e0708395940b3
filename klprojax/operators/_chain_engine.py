"""Chains by an associative scan: all messages along paths in a logarithmic number of steps."""

from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..geometry import log_normalize
from ..graphs import FactorGraph
from ._forest import forest, meetings
from ._messages import Semiring, dense, reduce, totals
from ._tree_engine import AbstractSweep, leveled, single_messages


class Chains(eqx.Module):
    """Paths one after the other: their factors on two variables are the *links*, left to right.

    Variables are numbered class after class.

    Attributes:
        kinds: groups of the links, and whether their axes run from right to left.
        kind, row: of each link, its entry of ``kinds`` and its factor there ``[links]``.
        left, right: its variables.
        starts, ends: whether a path starts, ends with it.
        carried: per class, what each edge carries: a link's number for its message to the left,
            past all links for that to the right, past all these for edges of no link ``[edges]``.
        alone: variables in no link.
    """

    kinds: tuple[tuple[int, bool], ...] = eqx.field(static=True)
    kind: np.ndarray
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    carried: tuple[np.ndarray, ...]
    alone: np.ndarray


@lru_cache(maxsize=32)
def chains(graph: FactorGraph) -> Chains:
    """Walk along the paths.

    Raises:
        ValueError: the graph has a cycle, or something that is no path.
    """
    forest(graph)
    n = graph.num_variables
    degrees, links = meetings(graph)
    widest = max((len(group.shape) for group in graph.signature.groups), default=0)
    crowd = int(degrees[:n].argmax()) if n else 0
    if widest > 2 or (n and degrees[crowd] > 2):
        what = (
            f"a factor is on {widest} variables"
            if widest > 2
            else f"variable {crowd} is in {degrees[crowd]} factors on two variables"
        )
        raise ValueError(
            "TreeSweep(parallel=True) needs chains, where every variable is in at most two factors "
            f"on two variables, but {what}. Use TreeSweep(), which takes any forest."
        )
    degree, link = degrees.tolist(), links.tolist()
    walk: list[tuple[int, int, int]] = []
    starts, arrived = [], set()
    for start in np.flatnonzero(degrees[:n] == 1).tolist():
        if start not in arrived:
            starts.append(len(walk))
            left, factor = start, link[start]
            right = link[factor] ^ left
            walk.append((left, factor, right))
            while degree[right] == 2:
                left, factor = right, link[right] ^ factor
                right = link[factor] ^ left
                walk.append((left, factor, right))
            arrived.add(right)
    left, factor, right = np.asarray(walk, np.int64).reshape(-1, 3).T
    first = np.cumsum([n, *(group.count for group in graph.signature.groups)])
    group = np.searchsorted(first, factor, side="right") - 1
    row = factor - first[group]
    turned = np.zeros(len(row), bool)
    carried = [np.full(len(rows), 2 * len(row)) for rows in graph.wiring.edges]
    for g, (scope, blocks) in enumerate(zip(graph.group_scopes, graph.edge_blocks, strict=True)):
        mine = np.flatnonzero(group == g)
        if len(mine):
            turned[mine] = scope[row[mine], 0] != left[mine]
            for axis, (c, at) in enumerate(blocks):
                to_right = turned[mine] == (axis == 0)
                carried[c][at + row[mine]] = mine + np.where(to_right, len(row), 0)
    kinds, kind = np.unique(np.stack([group, turned]), axis=1, return_inverse=True)
    number = np.empty(n, np.int64)
    number[np.concatenate([*graph.variables.members, np.zeros(0, np.int32)])] = np.arange(n)
    is_start = np.zeros(len(row), bool)
    is_start[starts] = True
    return Chains(
        tuple((int(g), bool(t)) for g, t in kinds.T),
        kind.reshape(-1).astype(np.int32),
        row.astype(np.int32),
        number[left].astype(np.int32),
        number[right].astype(np.int32),
        is_start,
        np.roll(is_start, -1),
        tuple(edges.astype(np.int32) for edges in carried),
        number[np.flatnonzero(degrees[:n] == 0)].astype(np.int32),
    )


class ChainScan(AbstractSweep):
    """Products of the tables before, and after, each link, as matrices, in the log domain.

    Their largest entry is kept at 0, so no digits go to the common level. Variables of fewer states
    than the largest are padded with states of probability 0.
    """

    semiring: Semiring = eqx.field(static=True)
    damping: float = eqx.field(static=True)
    plan: Chains

    def step(self, inputs, carry):
        """All messages from the tables; none before them matters."""
        graph, tables, log_evidence, chains, _ = inputs
        del carry
        messages, log_scale = single_messages(graph, tables, self.semiring)
        cards = graph.signature.cardinalities
        at = [total.value() for total in totals(graph, messages, log_evidence)]
        own = jnp.concatenate([_pad(table, max(cards)) for table in at]) if at else None
        if own is not None:
            log_scale = log_scale + jnp.sum(reduce(own[chains.alone], 1, self.semiring))
        if chains.kinds:
            to_left, to_right, mass = self._multiply(graph, tables, chains, own)
            both = jnp.concatenate([to_left, to_right])
            log_scale = log_scale + mass
            messages = tuple(
                message + both.at[edges].get(mode="fill", fill_value=0)[:, :card]
                for message, edges, card in zip(messages, chains.carried, cards, strict=True)
            )
        return tuple(log_normalize(message, axis=1) for message in messages), log_scale

    def _multiply(self, graph, tables, chains, own):
        """Every link's message to the left and to the right, any gauge; the paths' log-mass."""
        full = dense(graph, tables)
        turned = [full[g].swapaxes(1, 2) if turn else full[g] for g, turn in chains.kinds]
        rows = np.asarray([len(table) for table in turned], np.int32)
        stack = jnp.concatenate([_pad(table, own.shape[1]) for table in turned])
        before = jnp.asarray(np.cumsum(rows, dtype=np.int32) - rows)[chains.kind]
        pairs = stack[before + jnp.minimum(chains.row, jnp.asarray(rows - 1)[chains.kind])]
        times, back = (jax.checkpoint(partial(_times, self.semiring, b)) for b in (False, True))
        left, right = own[chains.left], own[chains.right]
        ahead, scales, _ = lax.associative_scan(
            times, (*_leveled(left[:, :, None] + pairs), jnp.asarray(chains.starts))
        )
        behind, _, _ = lax.associative_scan(
            back,
            (*_leveled(pairs + right[:, None, :]), jnp.asarray(chains.ends)),
            reverse=True,
        )
        to_right = reduce(ahead, 1, self.semiring)
        masses = scales + reduce(to_right + right, 1, self.semiring)
        mass = jnp.sum(jnp.where(chains.ends, masses, 0.0))
        return reduce(behind, 2, self.semiring), to_right, mass


def _times(semiring: Semiring, backwards: bool, one, two):
    """Product of two runs of links; where the second is the first of its path, it alone."""
    (a, a_scale, _), (b, b_scale, fresh) = one, two
    first, second = (b, a) if backwards else (a, b)
    product, scale = _leveled(reduce(first[..., None] + second[:, None], 2, semiring))
    return (
        jnp.where(fresh[:, None, None], b, product),
        jnp.where(fresh, b_scale, a_scale + b_scale + scale),
        one[2] | fresh,
    )


def _leveled(tables: Array) -> tuple[Array, Array]:
    level, top = leveled(tables.reshape(len(tables), tables.shape[1] * tables.shape[2]))
    return level.reshape(tables.shape), top[:, 0]


def _pad(table: Array, states: int) -> Array:
    missing = [(0, 0), *((0, states - card) for card in table.shape[1:])]
    return jnp.pad(table, missing, constant_values=-jnp.inf)
