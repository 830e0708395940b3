"""Channels: what is received when bits are sent, and what it says about them."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class AbstractChannel(eqx.Module):
    """A memoryless channel with binary input."""

    @abc.abstractmethod
    def transmit(
        self, rng: np.random.Generator, bits: np.ndarray
    ) -> Float[np.ndarray, "variables *words"]:
        """What comes out when ``bits`` go in, by the random numbers of ``rng``."""

    @abc.abstractmethod
    def log_odds(
        self, received: Float[Array | np.ndarray, "variables *words"]
    ) -> Float[Array, "variables *words"]:
        """``log p(received | bit = 0) - log p(received | bit = 1)``, nats."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What sets this channel apart from others of its kind, for tables and plots."""

    @property
    @abc.abstractmethod
    def quality(self) -> float:
        """The number in `label`, for the axis of a plot."""


class BinarySymmetricChannel(AbstractChannel):
    """Flip each bit with probability ``flip``; what is received are bits, as floats.

    Args:
        flip: probability of an error, from 0 to 1. With 0, received bits are certain (±inf).

    Raises:
        ValueError: ``flip`` outside [0, 1].
    """

    flip: float = eqx.field(static=True)

    def __check_init__(self):
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is {self.flip}; a probability is from 0 to 1.")

    def transmit(
        self, rng: np.random.Generator, bits: np.ndarray
    ) -> Float[np.ndarray, "variables *words"]:
        """The bits, some flipped."""
        flips = rng.random(np.shape(bits)) < self.flip
        return (np.asarray(bits, bool) ^ flips).astype(np.float64)

    def log_odds(
        self, received: Float[Array | np.ndarray, "variables *words"]
    ) -> Float[Array, "variables *words"]:
        """``log((1 - flip) / flip)`` for a received 0, its negative for a 1."""
        table = jnp.asarray(received)
        size = -math.inf if self.flip == 1.0 else math.inf
        if 0.0 < self.flip < 1.0:
            size = math.log1p(-self.flip) - math.log(self.flip)
        return jnp.where(table == 0.0, size, -size).astype(table.dtype)

    @property
    def label(self) -> str:
        """The probability of an error."""
        return f"p = {self.flip:g}"

    @property
    def quality(self) -> float:
        """The probability of an error."""
        return self.flip


class GaussianChannel(AbstractChannel):
    """Send +1 for 0 and -1 for 1, add white Gaussian noise (binary phase-shift keying).

    The noise has variance ``1 / (2 rate Eb/N0)`` a sample.

    Args:
        ebn0_db: signal energy an information bit over noise density, decibels.
        rate: information bits a bit sent (see `ParityCheckCode.rate`).

    Raises:
        ValueError: a rate outside (0, 1], or an Eb/N0 that is not finite.
    """

    ebn0_db: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)

    def __check_init__(self):
        if not math.isfinite(self.ebn0_db):
            raise ValueError(f"ebn0_db is {self.ebn0_db}; it must be finite.")
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate is {self.rate}; it must be in (0, 1].")

    @property
    def variance(self) -> float:
        """Variance of the noise."""
        return 0.5 / (self.rate * 10.0 ** (self.ebn0_db / 10.0))

    def transmit(
        self, rng: np.random.Generator, bits: np.ndarray
    ) -> Float[np.ndarray, "variables *words"]:
        """Samples."""
        noise = rng.normal(scale=math.sqrt(self.variance), size=np.shape(bits))
        return 1.0 - 2.0 * np.asarray(bits, np.float64) + noise

    def log_odds(
        self, received: Float[Array | np.ndarray, "variables *words"]
    ) -> Float[Array, "variables *words"]:
        """``2 received / variance``."""
        return jnp.asarray(received) * (2.0 / self.variance)

    @property
    def label(self) -> str:
        """Eb/N0."""
        return f"Eb/N0 = {self.ebn0_db:g} dB"

    @property
    def quality(self) -> float:
        """Eb/N0 in decibels."""
        return self.ebn0_db
