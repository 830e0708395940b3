"""Leaf distributions of a circuit: indicators of the paper and exponential families.

A discrete leaf of variable `i` is a table `p(t)` over its states and has the value
``sum_t p(t) λ_{i,t}``: an indicator has one entry, any other family stands for a sum node over
indicators. A continuous leaf has the density of the observed value, or 1 when it is missing.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..geometry import safe_logsumexp

_LOG_2PI = math.log(2 * math.pi)


class AbstractLeaf(eqx.Module):
    """A family of leaf distributions; instances are static and hashable."""

    @abc.abstractmethod
    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """Shape of one leaf's parameters.

        Raises:
            ValueError: the family does not suit a variable of that cardinality.
        """


class AbstractDiscreteLeaf(AbstractLeaf):
    """A family over the states of a discrete variable."""

    @abc.abstractmethod
    def log_table(
        self, parameters: Float[Array, "leaves ..."], cardinality: int
    ) -> Float[Array, "leaves states"]:
        """Log-probabilities of all states (nats), normalised unless the family says otherwise.

        Args:
            parameters: of the leaves, one row each.
            cardinality: number of states of the variable.
        """


class AbstractContinuousLeaf(AbstractLeaf):
    """A family over the real line; its variable has cardinality 0."""

    @abc.abstractmethod
    def log_density(
        self, parameters: Float[Array, "leaves ..."], values: Float[Array, "leaves ..."]
    ) -> Float[Array, "leaves ..."]:
        """Log-density of one value a leaf (nats).

        Args:
            parameters: of the leaves, one row each.
            values: one per leaf; never NaN.
        """

    @abc.abstractmethod
    def mean(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """Expected value of every leaf.

        Args:
            parameters: of the leaves, one row each.
        """

    @abc.abstractmethod
    def entropy(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """Differential entropy of every leaf (nats).

        Args:
            parameters: of the leaves, one row each.
        """

    @abc.abstractmethod
    def mode(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """The most likely value of every leaf.

        Args:
            parameters: of the leaves, one row each.
        """

    @abc.abstractmethod
    def sample(self, key: Array, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """One draw from every leaf.

        Args:
            key: a JAX random key.
            parameters: of the leaves, one row each.
        """


class Indicator(AbstractDiscreteLeaf):
    """The indicator ``1[X_i = t]`` of the paper; it has no parameters."""

    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """No parameters: ``(0,)``."""
        _discrete("An indicator", cardinality)
        return (0,)

    def log_table(
        self, parameters: Float[Array, "leaves ..."], cardinality: int
    ) -> Float[Array, "leaves states"]:
        """Indicators are read from the evidence; they have no table."""
        raise ValueError("An indicator has no table of its own; its state is part of the circuit.")


class Categorical(AbstractDiscreteLeaf):
    """A table of natural logarithms, one per state, on any scale; ``-inf`` excludes a state.

    Like the weights of a sum node the table need not be normalised; `is_normalized` says.
    """

    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """One log-weight per state."""
        _discrete("A categorical leaf", cardinality)
        return (cardinality,)

    def log_table(
        self, parameters: Float[Array, "leaves ..."], cardinality: int
    ) -> Float[Array, "leaves states"]:
        """The parameters themselves."""
        return parameters


class Bernoulli(AbstractDiscreteLeaf):
    """``p(1) = sigmoid(θ)`` with the log-odds ``θ`` as natural parameter."""

    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """One log-odds."""
        if cardinality != 2:
            raise ValueError(
                f"A Bernoulli leaf needs a variable with 2 states, got {cardinality}; use "
                "Categorical()."
            )
        return ()

    def log_table(
        self, parameters: Float[Array, "leaves ..."], cardinality: int
    ) -> Float[Array, "leaves states"]:
        """``[log p(0), log p(1)]``."""
        return jnp.stack([-jax.nn.softplus(parameters), -jax.nn.softplus(-parameters)], axis=-1)


class Binomial(AbstractDiscreteLeaf):
    """``p(t) = C(n, t) exp(θ t - n log(1 + e^θ))`` on the states 0..n, log-odds ``θ``."""

    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """One log-odds; the number of trials is the cardinality minus one."""
        _discrete("A binomial leaf", cardinality)
        return ()

    def log_table(
        self, parameters: Float[Array, "leaves ..."], cardinality: int
    ) -> Float[Array, "leaves states"]:
        """Log-probabilities of 0..n successes in n trials."""
        n = cardinality - 1
        base = [
            math.lgamma(n + 1) - math.lgamma(t + 1) - math.lgamma(n - t + 1) for t in range(n + 1)
        ]
        theta = parameters[:, None]
        counts = jnp.arange(cardinality, dtype=parameters.dtype)[None]
        log_base = jnp.asarray(np.asarray(base), parameters.dtype)[None]
        return log_base + theta * counts - n * jax.nn.softplus(theta)


class Gaussian(AbstractContinuousLeaf):
    """A normal density with natural parameters ``η = (μ/σ², -1/(2σ²))``, ``η[1] < 0``.

    `Gaussian.natural` makes them from mean and standard deviation.
    """

    @staticmethod
    def natural(
        mean: Float[Array, " leaves"], deviation: Float[Array, " leaves"]
    ) -> Float[Array, "leaves 2"]:
        """Natural parameters of means and standard deviations.

        Args:
            mean: μ of every leaf.
            deviation: σ > 0 of every leaf.
        """
        precision = 1 / jnp.square(deviation)
        return jnp.stack([mean * precision, -precision / 2], axis=-1)

    def parameter_shape(self, cardinality: int) -> tuple[int, ...]:
        """Two natural parameters."""
        if cardinality:
            raise ValueError(
                f"A Gaussian leaf needs a continuous variable (cardinality 0), got cardinality "
                f"{cardinality}; use Categorical() or Binomial()."
            )
        return (2,)

    def log_density(
        self, parameters: Float[Array, "leaves ..."], values: Float[Array, "leaves ..."]
    ) -> Float[Array, "leaves ..."]:
        """``η₁ x + η₂ x² + η₁²/(4η₂) + ½ log(-2η₂) - ½ log 2π``."""
        ones = (1,) * (values.ndim - 1)
        first = parameters[:, 0].reshape(-1, *ones)
        second = parameters[:, 1].reshape(-1, *ones)
        log_scale = jnp.square(first) / (4 * second) + jnp.log(-2 * second) / 2 - _LOG_2PI / 2
        return first * values + second * jnp.square(values) + log_scale

    def mean(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """``μ = -η₁ / (2η₂)``."""
        return -parameters[:, 0] / (2 * parameters[:, 1])

    def entropy(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """``½ log(2πe σ²)``."""
        return (1 + _LOG_2PI - jnp.log(-2 * parameters[:, 1])) / 2

    def mode(self, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """The mean."""
        return self.mean(parameters)

    def sample(self, key: Array, parameters: Float[Array, "leaves ..."]) -> Float[Array, " leaves"]:
        """Draw from every leaf."""
        noise = jax.random.normal(key, parameters.shape[:1], parameters.dtype)
        return self.mean(parameters) + noise / jnp.sqrt(-2 * parameters[:, 1])


# One instance each: dictionaries find it by identity, not by comparing modules.
INDICATOR = Indicator()
CATEGORICAL = Categorical()


def _discrete(what: str, cardinality: int) -> None:
    if cardinality < 1:
        raise ValueError(
            f"{what} needs a discrete variable, but its variable is continuous (cardinality 0); "
            "use Gaussian()."
        )


def table_value(log_table: Array, log_evidence: Array) -> Array:
    """``log sum_t p(t) λ_t`` of ``[leaves, states]`` tables and ``[leaves, states, *batch]``."""
    ones = (1,) * (log_evidence.ndim - 2)
    return safe_logsumexp(log_table.reshape(*log_table.shape, *ones) + log_evidence, axis=1)
