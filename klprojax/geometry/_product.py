"""The product family: "Product families" in section 2, and the right projection onto it."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._log_table import (
    default_tolerance,
    expand_to,
    log_marginal,
    log_normalize,
)
from ._projection import AbstractRightConstraint, ProjectionResult, closed_form_result


class ProductFamily(AbstractRightConstraint):
    """The tables that factorise over blocks of their axes.

    Its right projection is the product of the block marginals:

        argmin over products p of KL(q || p)  =  prod over blocks b of q(x_b).

    Args:
        blocks: a partition of the table's axes. Every axis is its own block when `None`.

    Raises:
        ValueError: an axis is in two blocks, negative, or a block is empty.

    Reference:
        Section 2, product families: right projections "enforce factorization".
    """

    why_one_side = "minimising KL(r || q) over products is mean field, with many local minima"
    blocks: tuple[tuple[int, ...], ...] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.blocks is None:
            return
        flat = [axis for block in self.blocks for axis in block]
        if len(set(flat)) != len(flat) or any(axis < 0 for axis in flat) or () in self.blocks:
            raise ValueError(
                f"Got blocks {self.blocks}; expected disjoint, non-empty tuples of non-negative "
                "axes."
            )

    def right_projection(
        self,
        log_table: Float[Array, "*states"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Replace a table by the product of its block marginals.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf`.
            tolerance: largest `|1 - total mass|` counted as converged.
            max_steps: not used: closed form.
            throw: raise at run time if the table has no mass.

        Returns:
            `log_probs` of the same shape. `marginals` gives the factors alone.

        Raises:
            ValueError: the blocks do not cover the table's axes.
        """
        value = self.join(self.marginals(log_table))
        tolerance = default_tolerance(log_table.dtype) if tolerance is None else tolerance
        return closed_form_result(value, tolerance, throw, "The table has no mass.")

    def marginals(self, log_table: Float[Array, "*states"]) -> tuple[Float[Array, "..."], ...]:
        """Return the right projection in factored form, never building the joint product.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf`.

        Returns:
            The `log_probs` of each block, in the order of `blocks` (of the axes when `None`), each
            with its axes ascending.

        Raises:
            ValueError: the blocks do not cover the table's axes.
        """
        return tuple(
            log_normalize(log_marginal(log_table, block))
            for block in self._checked_blocks(log_table.ndim)
        )

    def join(self, log_factors: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
        """Multiply block tables to the joint table: the inverse of `marginals` on the family.

        Args:
            log_factors: one log-table for each block, in the order of `blocks`, axes ascending.

        Returns:
            The joint log-table.

        Raises:
            ValueError: the factors do not fit the blocks.
        """
        ndim = sum(factor.ndim for factor in log_factors)
        blocks = self._checked_blocks(ndim)
        if tuple(len(block) for block in blocks) != tuple(factor.ndim for factor in log_factors):
            raise ValueError(
                f"Got factors with {tuple(factor.ndim for factor in log_factors)} axes for blocks "
                f"{blocks}; give one factor for each block, with one axis for each of its axes."
            )
        if not log_factors:
            return jnp.zeros(())  # the product of nothing
        factors = [
            expand_to(factor, block, ndim)
            for factor, block in zip(log_factors, blocks, strict=True)
        ]
        return sum(factors[1:], start=factors[0])

    def _checked_blocks(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        if self.blocks is None:
            return tuple((axis,) for axis in range(ndim))
        blocks = tuple(tuple(sorted(block)) for block in self.blocks)
        flat = [axis for block in blocks for axis in block]
        if sorted(flat) != list(range(ndim)):
            raise ValueError(
                f"Got blocks {self.blocks} for a table with {ndim} axes; every axis must be in "
                "exactly one block."
            )
        return blocks
