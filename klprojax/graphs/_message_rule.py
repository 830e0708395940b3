"""Factors given by a rule instead of a table: what a rule must provide.

A factor of high arity whose messages cost less than its table (parity, cardinality, ...) belongs to
a group with a rule. Its log-potentials are then the rule's parameters, not a table over all states.
"""

import abc
from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class AbstractMessageRule(eqx.Module):
    """Contract of a structured factor; subclasses have static, hashable fields only.

    ``parameters`` has a leading axis of length ``factors``, or 1 when the group shares them.
    ``incoming`` holds one log-table ``[factors, states]`` per axis, unnormalised, `-inf` legal.
    All in nats, `-inf` safe, differentiable, without NaN.
    """

    @abc.abstractmethod
    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one factor's parameters, for a scope of these cardinalities.

        Args:
            shape: cardinalities of the scope, axis by axis.

        Raises:
            ValueError: the rule does not suit such a scope.
        """

    @abc.abstractmethod
    def messages(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors _"], ...],
        semiring: Literal["sum", "max"],
    ) -> tuple[Float[Array, "factors _"], ...]:
        """Messages out of the factor for every axis, any gauge.

        ``out_a(x_a) = log sum_{x_b, b != a} f(x) prod_{b != a} exp(incoming_b(x_b))``, or the
        maximum.

        Args:
            parameters: as described in the class.
            incoming: one log-table per axis.
            semiring: `"sum"` or `"max"`.
        """

    @abc.abstractmethod
    def log_mass(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors _"], ...],
        semiring: Literal["sum", "max"],
    ) -> Float[Array, " factors"]:
        """``log sum_x f(x) prod_b exp(incoming_b(x_b))``, or the maximum.

        Args:
            parameters: as described in the class.
            incoming: one log-table per axis.
            semiring: `"sum"` or `"max"`.
        """

    @abc.abstractmethod
    def log_table(
        self, parameters: Float[Array, "..."], shape: tuple[int, ...]
    ) -> Float[Array, "..."]:
        """The factors as dense tables ``[factors or 1, *shape]``, for exact solvers and tests.

        Args:
            parameters: as described in the class.
            shape: cardinalities of the scope, axis by axis.
        """


class Structured(NamedTuple):
    """An entry of `FactorGraph`'s ``factors``: scopes ``[factors, arity]`` under one rule."""

    scopes: Int[np.ndarray, "factors arity"] | Sequence[Sequence[int]]
    rule: AbstractMessageRule


def dense_table(
    rule: AbstractMessageRule, parameters: Float[Array, "..."], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """``rule.log_table``, refused where it would be large.

    Args:
        rule: the factors' rule.
        parameters: its parameters, with a leading axis.
        shape: cardinalities of the scope.

    Returns:
        Log-tables `[factors or 1, *shape]`, nats.

    Raises:
        ValueError: more than 2^16 entries per factor.
    """
    entries = int(np.prod(shape, dtype=np.float64))
    if entries > 2**16:
        raise ValueError(
            f"{type(rule).__name__} on {len(shape)} variables has a table of {entries:,} entries; "
            "this solver needs the table. Use BeliefPropagation(), which needs the rule only."
        )
    return jnp.asarray(rule.log_table(parameters, shape))
