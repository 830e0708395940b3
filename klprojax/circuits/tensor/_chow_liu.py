"""Chow-Liu trees: the maximum spanning tree of pairwise mutual information."""

from typing import Any

import numpy as np


def mutual_information(
    states: np.ndarray, cardinalities: tuple[int, ...], pseudocount: float = 1.0
) -> np.ndarray:
    """Mutual information of all pairs of variables, nats, ``[variables, variables]``.

    All pair counts are one matrix product of indicator columns; a row counts for the pairs of
    which it knows both states.

    Args:
        states: data ``[rows, variables]``, -1 where missing.
        cardinalities: states of each variable.
        pseudocount: imaginary rows, spread evenly over the states of a pair.
    """
    cards = np.asarray(cardinalities)
    offsets = np.concatenate([[0], np.cumsum(cards)])
    counts = np.zeros((offsets[-1], offsets[-1]))
    for start in range(0, len(states), 4096):
        part = states[start : start + 4096]
        hot = np.zeros((len(part), offsets[-1]), np.float32)
        rows, variables = np.nonzero(part >= 0)
        hot[rows, offsets[variables] + part[rows, variables]] = 1.0
        counts += hot.T @ hot  # exact: counts of at most 4096 are small integers
    owner = np.repeat(np.arange(len(cards)), cards)
    counts += pseudocount / (cards[owner][:, None] * cards[owner][None])
    pairs = (owner[:, None], owner[None])

    def per_pair(table: np.ndarray) -> np.ndarray:
        rows = np.add.reduceat(table, offsets[:-1], axis=0)
        return np.add.reduceat(rows, offsets[:-1], axis=1)

    joint = counts / per_pair(counts)[pairs]
    over_columns = np.add.reduceat(joint, offsets[:-1], axis=1)  # p(x_i), for every partner j
    over_rows = np.add.reduceat(joint, offsets[:-1], axis=0)
    log_ratio = np.log(joint) - np.log(over_columns[:, owner]) - np.log(over_rows[owner])
    return per_pair(joint * log_ratio)


def spanning_tree(weights: np.ndarray) -> list[list[int]]:
    """Neighbours of every node in the maximum spanning tree (Prim's algorithm, dense)."""
    n = len(weights)
    neighbours: list[list[int]] = [[] for _ in range(n)]
    best, source = np.full(n, -np.inf), np.zeros(n, np.int64)
    inside = np.zeros(n, bool)
    node = 0
    for _ in range(n - 1):
        inside[node] = True
        better = weights[node] > best
        best[better], source[better] = weights[node][better], node
        node = int(np.argmax(np.where(inside, -np.inf, best)))
        neighbours[node].append(int(source[node]))
        neighbours[int(source[node])].append(node)
    return neighbours


def center(neighbours: list[list[int]]) -> int:
    """A node from which the farthest node is as near as possible: the middle of a longest path."""

    def farthest(start: int) -> list[int]:
        came = {start: -1}
        order = [start]
        for node in order:
            for other in neighbours[node]:
                if other not in came:
                    came[other] = node
                    order.append(other)
        path = [order[-1]]
        while came[path[-1]] >= 0:
            path.append(came[path[-1]])
        return path

    longest = farthest(farthest(0)[0])
    return longest[len(longest) // 2]


def chow_liu_trees(
    states: Any, cardinalities: tuple[int, ...], trees: int, seed: int
) -> list[list[list[int]]]:
    """One Chow-Liu tree, or several from bootstrap samples of the rows (the first from all)."""
    rng = np.random.default_rng(seed)
    out = []
    for t in range(trees):
        part = states if t == 0 else states[rng.integers(len(states), size=len(states))]
        out.append(spanning_tree(mutual_information(part, cardinalities)))
    return out
