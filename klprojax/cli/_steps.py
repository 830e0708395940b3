"""The training steps by name, and the one setting of each that ``--tune`` draws."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .. import projections, training

# Trials lie between the default divided and multiplied by this.
_SPAN = 30.0
# Multiples of it, modulo 1, fill the unit interval evenly however many they are.
_GOLDEN = (5**0.5 - 1) / 2


RATES = {"adam": 1e-3, "sgd": 0.1, "momentum": 0.01, "projection-adam": 1e-3}
SHARE = 0.03


@dataclass(frozen=True)
class Setting:
    """A setting of a step.

    Attributes:
        name: what it is.
        value: of it.
    """

    name: str
    value: float


def trials(default: Setting, count: int) -> list[Setting]:
    """The default, then numbers spread evenly over the logarithms of a range around it.

    Args:
        default: the first.
        count: how many; the trials of a smaller count come first among those of a larger one.
    """
    places = ((0.5 + _GOLDEN * n) % 1 for n in range(count))
    return [
        Setting(default.name, default.value * (_SPAN ** (2 * place - 1) if n else 1.0))
        for n, place in enumerate(places)
    ]


class Rated(eqx.Module):
    """A rule of optax, its updates times minus a rate that is data: all rates compile as one."""

    rate: Float[Array, ""]
    rule: optax.GradientTransformation = eqx.field(static=True)

    def init(self, params: PyTree) -> Any:
        """State of the rule."""
        return self.rule.init(params)

    def update(self, updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        """Updates of the rule, times minus the rate."""
        updates, state = self.rule.update(updates, state, params)
        scaled = jax.tree.map(lambda u: (-self.rate).astype(u.dtype) * u, updates)
        return scaled, state


class Rising(eqx.Module):
    """A schedule that rises to a peak, which is data, and falls; see `Spectral.decaying`."""

    peak: Float[Array, ""]
    updates: int = eqx.field(static=True)

    def __call__(self, count: Array) -> Array:
        """The share after so many updates."""
        return self.peak * training.Spectral.decaying(self.updates, 1.0).share(count)


# One object each: another would be compiled again.
_RULES = {
    "adam": optax.scale_by_adam(),
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
}


def rated(name: str, rate: float) -> optax.GradientTransformation:
    """An optimiser by its name, at a rate."""
    rule = Rated(jnp.asarray(rate), _RULES[name.removeprefix("projection-")])
    return optax.GradientTransformation(rule.init, rule.update)


def make_scheme(name: str) -> Any:
    """Make the scheme of a projection step by its name."""
    schemes = {
        "cyclic": training.CyclicProjections,
        "alternating": training.AlternatingProjections,
        "douglas-rachford": projections.DouglasRachford,
        "difference-map": projections.DifferenceMap,
        "dykstra": projections.Dykstra,
        "admm": projections.ADMM,
    }
    if name not in schemes:
        raise ValueError(f"--scheme is {name!r}; expected one of {', '.join(schemes)}.")
    return schemes[name]()
