"""Corollary 3.4: layer rules, in the delta lift, on tables and as limits of projections."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..lifting import (
    DeltaLift,
    LayeredNetwork,
    delta_lift,
    exp_output,
    layer_messages,
    projection_messages,
    table_sensitivities,
)
from ..training import SquaredError, projection_slopes
from ._measure import at_least, by_precision, observed_order, relative_difference
from ._registry import statement

_BATCH = 3
_projected = eqx.filter_jit(projection_messages)
_PROJECTED = "limit of projections as ρ → 0"


def _loss(a: Any, y: Any) -> Any:
    return jnp.sum((a - y) ** 2) / 2


class Layers(NamedTuple):
    """A network of `tanh` layers and its data, in numpy."""

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    x: np.ndarray
    y: np.ndarray

    def network(self, dtype: Any) -> LayeredNetwork:
        """Return the same network in JAX."""
        return LayeredNetwork(
            tuple(jnp.asarray(w, dtype) for w in self.weights),
            tuple(jnp.asarray(b, dtype) for b in self.biases),
            (jnp.tanh,) * len(self.weights),
        )


class Recursion(NamedTuple):
    """What the recursion of the corollary gives, in numpy: of `C`, not of `log φ`."""

    s_u: list[np.ndarray]
    s_a: list[np.ndarray]
    weights: list[np.ndarray]
    biases: list[np.ndarray]


def random_layers(seed: int, size: int) -> Layers:
    """Draw two layers of different widths around `size`, so that no weight is square."""
    at_least(size, 1)
    rng = np.random.default_rng(seed)
    widths = [size + 1, size + 2, size]
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    return Layers(
        [rng.normal(size=pair) / np.sqrt(pair[1]) for pair in pairs],
        [rng.normal(size=n) / 2 for n, _ in pairs],
        rng.normal(size=(_BATCH, widths[0])),
        rng.normal(size=(_BATCH, widths[-1])),
    )


def backpropagate(layers: Layers) -> Recursion:
    """Run the corollary's recursion by hand: `φ(z) = exp(-z)`, `σ' = 1 - tanh²`."""
    activities = [layers.x]
    for weight, bias in zip(layers.weights, layers.biases, strict=True):
        activities.append(np.tanh(activities[-1] @ weight.T + bias))
    s_a, s_u = [-(activities[-1] - layers.y)], []
    for weight, a in zip(reversed(layers.weights), reversed(activities[1:]), strict=True):
        s_u.append((1 - a**2) * s_a[-1])
        s_a.append(np.einsum("oi,bo->bi", weight, s_u[-1]))
    s_u.reverse()
    s_a.reverse()
    below = zip(s_u, activities[:-1], strict=True)
    weights = [np.einsum("bo,bi->oi", -s, a) for s, a in below]
    return Recursion(s_u, s_a, weights, [-s.sum(axis=0) for s in s_u])


def _data(layers: Layers, dtype: Any) -> tuple[Any, Any]:
    return jnp.asarray(layers.x, dtype), jnp.asarray(layers.y, dtype)


def _total_loss(network: LayeredNetwork, x: Any, y: Any) -> Any:
    return _loss(network.forward(x)[1][-1], y)


@functools.lru_cache(maxsize=1)
def _lifted(seed: int, size: int, dtype: Any) -> tuple[Layers, DeltaLift]:
    # Tracing and compiling the upward pass takes longer than all the rest of a check.
    layers = random_layers(seed, size)
    return layers, delta_lift(_total_loss, layers.network(dtype), *_data(layers, dtype))


def _lift_error(slopes: Any, layers: Layers) -> float:
    """Compare slopes of `log φ` at the network and at x with the recursion's gradients of C."""
    want = backpropagate(layers)
    gaps = [
        relative_difference(slopes[0].weights, [-g for g in want.weights]),
        relative_difference(slopes[0].biases, [-g for g in want.biases]),
        relative_difference(slopes[1], want.s_a[0]),
    ]
    return float(np.max(gaps))


@statement("Corollary 3.4", "layer messages vs the recursion by hand in numpy")
def corollary_3_4_layers(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check the output, activation and linear rules, and the gradients of weights and biases.

    Source: Corollary 3.4. `size` is the width of the layers.
    """
    layers = random_layers(seed, size)
    x, y = _data(layers, dtype)
    messages = layer_messages(layers.network(dtype), x, _loss, y, exp_output(-1.0))
    want = backpropagate(layers)
    gaps = [
        relative_difference(list(getattr(messages, name)), getattr(want, name))
        for name in ("s_u", "s_a", "weights", "biases")
    ]
    gaps.append(relative_difference(list(messages.delta), [-s for s in want.s_u]))
    # Two layers of sums of some ten products.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Corollary 3.4", "slopes of the delta lift at W, b and x vs the recursion in numpy")
def corollary_3_4_delta_lift(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that the lift of a whole batch's loss has the layer rules' slopes.

    Source: Corollary 3.4 as a case of Theorem 3.3. `size` is the width of the layers.
    """
    layers, lift = _lifted(seed, size, dtype)
    slopes = lift.sensitivities(exp_output(-1.0)).inputs
    # As in corollary_3_4_layers.
    return _lift_error(slopes, layers), by_precision(dtype, 1e-13, 1e-5)


@statement("Corollary 3.4", "belief propagation on tables vs the recursion in numpy")
def corollary_3_4_tables(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check the layer rules on tables; neither side differentiates anything.

    Source: Corollary 3.4. `size` is the width of the layers.
    """
    layers, lift = _lifted(seed, size, dtype)
    spacing = by_precision(dtype, 1e-4, 1e-2)
    slopes = table_sensitivities(lift, exp_output(-1.0), spacing=spacing).inputs
    # Tables err by spacing² times curvatures of order ten; single precision adds rounding 1e-7,
    # gathered along the layers, over the spacing.
    return _lift_error(slopes, layers), by_precision(dtype, 1e-6, 5e-3)


@statement("Corollary 3.4", "order in h at which tables tend to the recursion in numpy, less two")
def corollary_3_4_table_order(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that the tables' slopes converge as `O(h²)` in their spacing h.

    Source: Corollary 3.4. `size` is the width of the layers.
    """
    layers, lift = _lifted(seed, size, dtype)
    spacings = by_precision(dtype, 1e-3, 2e-2) * np.array([1.0, 2.0, 4.0])
    errors = [
        _lift_error(table_sensitivities(lift, exp_output(-1.0), spacing=h).inputs, layers)
        for h in spacings.tolist()
    ]
    # Fourth-order terms are of relative size 1e3 h² at worst; single precision adds rounding.
    return abs(observed_order(spacings, np.array(errors)) - 2), by_precision(dtype, 0.03, 0.3)


@statement("Corollary 3.4", "layer messages' gradients vs jax.grad, as referee")
def corollary_3_4_gradient(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check `∇_W C = δ aᵀ` and `∇_b C = δ`.

    Source: Corollary 3.4. `size` is the width of the layers.
    """
    layers = random_layers(seed, size)
    network, (x, y) = layers.network(dtype), _data(layers, dtype)
    messages = layer_messages(network, x, _loss, y, exp_output(-1.0))
    gradient = eqx.filter_jit(eqx.filter_grad(_total_loss))(network, x, y)
    gaps = [
        relative_difference(messages.weights, gradient.weights),
        relative_difference(messages.biases, gradient.biases),
    ]
    # As in corollary_3_4_layers.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


def _at_small_ratio(errors: Any, seed: int, size: int, dtype: Any) -> tuple[float, float]:
    ratio = by_precision(dtype, 1e-5, 1e-3)
    (error,) = errors(seed, size, dtype, np.array([ratio]))
    # First order in ρ, with a constant of some tens; single precision adds rounding 1e-7 / ρ.
    return float(error), 50 * ratio


def _order_in_ratio(errors: Any, seed: int, size: int, dtype: Any) -> tuple[float, float]:
    """Distance from one of the order in ρ at which the errors vanish."""
    ratios = by_precision(dtype, 1e-5, 2e-3) * np.array([1.0, 2.0, 4.0])
    # Second-order terms are of relative size 10 ρ; in single precision rounding is 1e-7 / ρ.
    order = observed_order(ratios, errors(seed, size, dtype, ratios))
    return abs(order - 1), by_precision(dtype, 0.02, 0.2)


class _Tanh(eqx.Module):
    """The same layers as a model that is trained."""

    weights: Any
    biases: Any

    def __call__(self, x: Any) -> Any:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = jnp.tanh(weight @ x + bias)
        return x


_trained = eqx.filter_jit(projection_slopes)


def _training_errors(seed: int, size: int, dtype: Any, ratios: np.ndarray) -> np.ndarray:
    """Return the relative error of the trainer's slopes at each precision ratio."""
    layers = random_layers(seed, size)
    network, (x, y) = layers.network(dtype), _data(layers, dtype)
    model, rows = _Tanh(network.weights, network.biases), jnp.ones(_BATCH, dtype)
    want = backpropagate(layers)
    errors = []
    for ratio in ratios:
        given = jnp.asarray(ratio, dtype)
        got, _, _ = _trained(model, x, y, rows, SquaredError(), ratio=given)
        errors.append(
            max(
                relative_difference(got.weights, [-g / _BATCH for g in want.weights]),
                relative_difference(got.biases, [-g / _BATCH for g in want.biases]),
            )
        )
    return np.array(errors)


@statement(
    "Corollary 3.4",
    "slopes that ProjectionDirection trains on, small ρ, vs the recursion in numpy",
    reading=_PROJECTED,
)
def corollary_3_4_training(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that what the trainer hands to an optimiser is the recursion's mean gradient.

    One backward sweep of local projections over the network as traced from the model.

    Source: Corollary 3.4. `size` is the width.
    """
    return _at_small_ratio(_training_errors, seed, size, dtype)


@statement(
    "Corollary 3.4",
    "order in ρ at which ProjectionDirection's slopes tend to the recursion, less one",
    reading=_PROJECTED,
)
def corollary_3_4_training_order(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that the trainer's slopes tend to the gradient with relative error `O(ρ)`.

    Source: Corollary 3.4. `size` is the width.
    """
    return _order_in_ratio(_training_errors, seed, size, dtype)


def _projection_errors(seed: int, size: int, dtype: Any, ratios: np.ndarray) -> np.ndarray:
    """Return the relative error of projections' readouts at each precision ratio."""
    layers = random_layers(seed, size)
    network, (x, y) = layers.network(dtype), _data(layers, dtype)
    want = backpropagate(layers)
    errors = []
    for ratio in ratios:
        precision_ratio = jnp.asarray(ratio, dtype)
        got = _projected(network, x, _loss, y, exp_output(-1.0), precision_ratio=precision_ratio)
        errors.append(
            max(
                relative_difference(list(got.s_u), want.s_u),
                relative_difference(list(got.s_a), want.s_a),
                relative_difference(list(got.weights), want.weights),
                relative_difference(list(got.biases), want.biases),
            )
        )
    return np.array(errors)


@statement(
    "Corollary 3.4",
    "readouts of local projections, small ρ, vs the recursion in numpy",
    reading=_PROJECTED,
)
def corollary_3_4_projections(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that projections onto the layers' graphs read out the layer rules' slopes.

    Every layer's output is pulled at 1/ω of the inputs' precision, `ρ = 1/ω`; the displacement of
    the inputs, times ω, is the message's slope.

    Source: Corollary 3.4, "differential of the local KL projection step". `size` is the width.
    """
    return _at_small_ratio(_projection_errors, seed, size, dtype)


@statement(
    "Corollary 3.4",
    "order in ρ at which projections tend to the layer rules, less one",
    reading=_PROJECTED,
)
def corollary_3_4_projection_order(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that the readouts tend to the layer rules with relative error `O(ρ)`.

    Source: Corollary 3.4, "differential of the local KL projection step". `size` is the width.
    """
    return _order_in_ratio(_projection_errors, seed, size, dtype)
