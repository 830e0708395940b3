"""Binary linear codes given by parity checks, as factor graphs."""

import functools
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import FactorTables, VariableTables
from ..graphs import FactorGraph, ParityCheckMatrix, Structured, read_alist
from ..operators._structured import Parity


class ParityCheckCode:
    """Hold the words that satisfy all parity checks of a matrix.

    Args:
        checks: a `ParityCheckMatrix`, or an array ``[checks, variables]`` of zeros and ones.

    Attributes:
        checks: the matrix.
        graph: the factor graph, one `Parity` factor a check, a family for each number of bits.
            Codes of equal sizes run the same compiled decoder.

    Raises:
        ValueError: no variables, or no valid matrix.

    Example:
        >>> code = ParityCheckCode([[1, 1, 0], [0, 1, 1]])
        >>> code.num_variables, code.num_checks, code.dimension
        (3, 2, 1)
    """

    checks: ParityCheckMatrix
    graph: FactorGraph

    def __init__(self, checks: Any):
        if not isinstance(checks, ParityCheckMatrix):
            checks = ParityCheckMatrix.from_dense(checks)
        if not checks.num_variables:
            raise ValueError("A code needs at least one variable; the matrix has none.")
        self.checks = checks
        by_size: dict[int, list[tuple[int, ...]]] = {}
        for scope in checks.scopes:
            if scope:  # a check on nothing is always satisfied
                by_size.setdefault(len(scope), []).append(scope)
        self.graph = FactorGraph(
            [2] * checks.num_variables,
            [Structured(np.asarray(by_size[size]), Parity()) for size in sorted(by_size)],
        )

    @classmethod
    def from_alist(cls, path: str | os.PathLike[str]) -> "ParityCheckCode":
        """Read the matrix from an alist file.

        Raises:
            ModelFileError: see `read_alist`.
        """
        return cls(read_alist(path))

    @classmethod
    def regular(
        cls, num_variables: int, variable_degree: int, check_degree: int, seed: int
    ) -> "ParityCheckCode":
        """Draw a regular code: every bit in ``variable_degree`` checks, ``check_degree`` bits each.

        Gallager's construction: ``variable_degree`` bands of checks, each of which divides a random
        permutation of the bits among its checks. At least ``variable_degree - 1`` checks are
        redundant.

        Args:
            num_variables: length of the words.
            variable_degree: checks a bit is in.
            check_degree: bits of a check.
            seed: of the random connections.

        Raises:
            ValueError: ``check_degree`` does not divide ``num_variables``, or a size below 1.

        Reference: Gallager (1962).
        """
        if min(num_variables, variable_degree, check_degree) < 1:
            raise ValueError(
                f"Got {num_variables} variables in {variable_degree} checks each, {check_degree} "
                "bits a check; all must be at least 1."
            )
        if num_variables % check_degree:
            raise ValueError(
                f"Got {num_variables} variables and {check_degree} bits a check; the second must "
                "divide the first."
            )
        rng = np.random.default_rng(seed)
        bands = [
            np.sort(rng.permutation(num_variables).reshape(-1, check_degree), axis=1)
            for _ in range(variable_degree)
        ]
        scopes = tuple(map(tuple, np.concatenate(bands).tolist()))
        return cls(ParityCheckMatrix(num_variables, scopes))

    @property
    def num_variables(self) -> int:
        """Length of a word."""
        return self.checks.num_variables

    @property
    def num_checks(self) -> int:
        """Number of checks, redundant ones included."""
        return self.checks.num_checks

    @functools.cached_property
    def dimension(self) -> int:
        """Number of information bits: length minus the rank of the matrix over GF(2)."""
        return self.num_variables - _rank(self.checks)

    @property
    def rate(self) -> float:
        """Information bits a bit sent."""
        return self.dimension / self.num_variables

    @property
    def log_potentials(self) -> FactorTables:
        """Parameters of the checks, shared in each family: ``[0, -inf]`` in JAX's default float."""
        return self.graph.pack([np.array([0.0, -np.inf])] * len(self.graph.signature.groups))

    def log_evidence(self, log_odds: Float[Array | np.ndarray, " variables"]) -> VariableTables:
        """Evidence for `infer` from log-odds ``log P(0) - log P(1)``; the larger entry is 0.

        Args:
            log_odds: of each bit, `log p(0) / p(1)`, nats.
        """
        table = jnp.asarray(log_odds)
        return (jnp.stack([jnp.minimum(table, 0.0), jnp.minimum(-table, 0.0)], axis=1),)

    def syndrome(self, words: Any) -> np.ndarray:
        """Parity of each check, ``[checks, *words]``, for bits ``[variables, *words]``.

        Raises:
            ValueError: words of another length.
        """
        bits = np.asarray(words).astype(np.uint8)
        if bits.shape[:1] != (self.num_variables,):
            raise ValueError(
                f"The words have shape {bits.shape}; expected {self.num_variables} bits first."
            )
        parities = [bits[list(scope)].sum(axis=0) % 2 for scope in self.checks.scopes]
        return np.asarray(parities, np.uint8).reshape(self.num_checks, *bits.shape[1:])

    def __repr__(self) -> str:
        return f"ParityCheckCode({self.num_variables} variables, {self.num_checks} checks)"


def _rank(checks: ParityCheckMatrix) -> int:
    """Rank over GF(2), by elimination on rows of 64-bit words."""
    width = -(-checks.num_variables // 64)
    rows = np.zeros((checks.num_checks, width), np.uint64)
    for row, scope in zip(rows, checks.scopes, strict=True):
        for variable in scope:
            row[variable // 64] ^= np.uint64(1 << (variable % 64))
    rank = 0
    for variable in range(checks.num_variables):
        if rank == len(rows):
            break
        word, bit = variable // 64, np.uint64(1 << (variable % 64))
        holders = rank + np.flatnonzero(rows[rank:, word] & bit)
        if not holders.size:
            continue
        pivot = holders[0]
        # Columns before this one are done with: only words from here on still matter.
        rows[holders[1:], word:] ^= rows[pivot, word:]
        rows[[rank, pivot], word:] = rows[[pivot, rank], word:]
        rank += 1
    return rank
