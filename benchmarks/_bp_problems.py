"""Problems for timing belief propagation: plain arrays, the same file for both sides."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Problem:
    """A pairwise model whose variables all have the same number of states, float32.

    states, variables: sizes. scopes: ``[factors, 2]``. log_potentials: ``[factors, states,
    states]``, nats. unaries: ``[variables, states]``, nats. targets: a state of each variable, for
    losses. iterations: how many both sides run.
    """

    name: str
    states: int
    variables: int
    scopes: np.ndarray
    log_potentials: np.ndarray
    unaries: np.ndarray
    targets: np.ndarray
    iterations: int

    @property
    def messages(self) -> int:
        """Directed messages of one iteration."""
        return 2 * len(self.scopes)

    def save(self, path: Path) -> None:
        """Write all of it to one .npz."""
        np.savez(path, **self.__dict__)

    @staticmethod
    def load(path: str | Path) -> "Problem":
        """Undo `save`."""
        with np.load(path) as file:
            parts = {key: file[key] for key in file.files}
        for key in ("states", "variables", "iterations"):
            parts[key] = int(parts[key])
        parts["name"] = str(parts["name"])
        return Problem(**parts)


def ising(name: str, side: int, iterations: int, seed: int = 0) -> Problem:
    """A torus of binary variables, couplings uniform in (-0.5, 0.5) and normal fields.

    That is weak enough for the messages to converge, so that implicit derivatives exist.
    """
    rng = np.random.default_rng(seed)
    grid = np.arange(side * side).reshape(side, side)
    scopes = np.concatenate(
        [np.stack([grid.ravel(), np.roll(grid, -1, axis).ravel()], axis=1) for axis in (0, 1)]
    )
    couplings = rng.uniform(-0.5, 0.5, len(scopes)).astype(np.float32)
    tables = couplings[:, None, None] * np.array([[1, -1], [-1, 1]], np.float32)
    unaries = np.zeros((side * side, 2), np.float32)
    unaries[:, 1] = rng.normal(scale=0.5, size=side * side)
    targets = rng.integers(0, 2, side * side)
    return Problem(name, 2, side * side, scopes, tables, unaries, targets, iterations)


def random_pairs(
    name: str, variables: int, states: int, factors: int, iterations: int, seed: int = 0
) -> Problem:
    """Factors on distinct random pairs, tables and unaries standard normal."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(variables * (variables - 1) // 2, factors, replace=False))
    first, second = np.triu_indices(variables, 1)
    scopes = np.stack([first[chosen], second[chosen]], axis=1)
    return Problem(
        name,
        states,
        variables,
        scopes,
        rng.normal(size=(factors, states, states)).astype(np.float32),
        rng.normal(size=(variables, states)).astype(np.float32),
        rng.integers(0, states, variables),
        iterations,
    )


# Name of each inference case: (full size, tiny size for tests).
PROBLEMS: dict[str, tuple[Callable[[], Problem], Callable[[], Problem]]] = {
    "ising100": (lambda: ising("ising100", 100, 50), lambda: ising("ising100", 4, 3)),
    "ising300": (lambda: ising("ising300", 300, 50), lambda: ising("ising300", 5, 3)),
    "states8": (
        lambda: random_pairs("states8", 5000, 8, 20000, 20),
        lambda: random_pairs("states8", 8, 3, 14, 3),
    ),
    "states64": (
        lambda: random_pairs("states64", 500, 64, 2000, 20),
        lambda: random_pairs("states64", 5, 6, 8, 3),
    ),
    "ising2000": (lambda: ising("ising2000", 2000, 50), lambda: ising("ising2000", 6, 3)),
}


def problem(name: str, size: str) -> Problem:
    """Build one of the `PROBLEMS`, ``size`` full or tiny."""
    return PROBLEMS[name][size == "tiny"]()


def bytes_per_iteration(given: Problem) -> dict[str, int | str]:
    """Bytes that an iteration must move, each array once, and how they are counted.

    This counts what flooding has to read and write whatever the program; a program that keeps
    copies moves more, so the share of the bandwidth computed from it is a lower bound.
    """
    f, k, v, m = 4, given.states, given.variables, given.messages
    if k == 2:
        parts = {
            "messages read and written: 2 x 4 B a message": 2 * f * m,
            "factor constants: 3 x 4 B a message": 3 * f * m,
            "index of the opposite message: 4 B a message": 4 * m,
            "fields: 4 B a variable": f * v,
        }
    else:
        parts = {
            "tables, once a direction: 4 states^2 B a message": f * k * k * m,
            "messages read and written: 2 x 4 states B a message": 2 * f * k * m,
            "totals written and read, unaries read: 3 x 4 states B a variable": 3 * f * k * v,
            "index of the variable: 4 B a message": 4 * m,
        }
    return {"bytes": sum(parts.values()), "formula": "; ".join(parts)}
