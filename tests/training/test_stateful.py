"""Networks with a state and random keys: batch norm and dropout in every step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.fitting._network import needs_key
from klprojax.training import (
    AbstractOutputFactor,
    AbstractStep,
    CrossEntropy,
    GradientStep,
    ProjectionDirection,
    ProjectionStep,
    SquaredError,
    batch_order,
    evaluate,
    fit,
    gradient_agreement,
    projection_slopes,
    scan_fit,
)

from ._networks import quick_jit
from ._runs import blobs, weights_of
from ._stateful import MOMENTUM, pair, written_out

KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(5, 3))), jnp.asarray([0, 1, 1, 0, 1])
# Padding in the middle and at the end; the others not all alike.
WEIGHTS = jnp.asarray([2.0, 1.0, 0.0, 0.5, 0.0])
# In the statistics padding is the other rows in turn, by place.
PADDED = np.array([0, 1, 3, 3, 1])


def keys_of(key):
    return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(5))


def loss_of(net, running=None, share=1.0):
    """The weighted cross-entropy of the batch, written out."""
    outputs, statistics = written_out(net, X[PADDED], keys_of(KEY), running, share)
    scores = jnp.take_along_axis(jax.nn.log_softmax(outputs), Y[:, None], axis=1)[:, 0]
    return -jnp.sum(WEIGHTS * scores) / jnp.sum(WEIGHTS), statistics


@eqx.filter_jit
def by_hand(net, running=None, share=1.0):
    return eqx.filter_value_and_grad(loss_of, has_aux=True)(net, running, share)


def test_a_gradient_step_follows_the_gradient_of_the_loss_written_out():
    model = pair()
    step = GradientStep(optax.sgd(1.0))
    update = eqx.filter_jit(lambda *args: step.update(*args, CrossEntropy(), KEY))
    (net, state), _, info = update(model, step.init(model), X, Y, WEIGHTS)
    (value, (mean, variance)), gradient = by_hand(model[0])
    # Sums of five rows in another order.
    np.testing.assert_allclose(info.loss, value, rtol=1e-12)
    moved = weights_of(model[0]) - weights_of(net)
    np.testing.assert_allclose(moved, weights_of(gradient), atol=1e-12)
    assert np.abs(moved).min() > 0 or np.abs(moved).max() > 1e-2
    count, *running = jax.tree.leaves(state)
    assert int(count) == 1
    np.testing.assert_allclose(running[0], (1 - MOMENTUM) * mean, rtol=1e-12)
    np.testing.assert_allclose(running[1], MOMENTUM + (1 - MOMENTUM) * variance, rtol=1e-12)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_slopes_are_minus_the_gradient_up_to_the_ratio(mode):
    net, state = pair(mode=mode)
    running, share = None, 1.0
    if mode == "ema":  # as if it had seen a batch before, whose statistics stay the larger part
        running, share = (jnp.asarray([0.1, -0.2]), jnp.asarray([0.8, 1.3])), 1 - MOMENTUM
        state = state.set(net.norm.ema_first_time_index, jnp.asarray(False))
        state = state.set(net.norm.ema_state_index, running)

    def slopes(ratio):
        found = projection_slopes((net, state), X, Y, WEIGHTS, CrossEntropy(), ratio=ratio, key=KEY)
        return found[:2]

    slopes = quick_jit(slopes)
    (value, _), gradient = by_hand(net, running, share)
    np.testing.assert_allclose(slopes(1e-4)[1], value, rtol=1e-12)
    truth = -weights_of(gradient)
    errors = [np.abs(weights_of(slopes(r)[0]) - truth).max() / np.abs(truth).max() for r in
              (1e-4, 1e-5)]  # fmt: skip
    assert errors[1] < 1e-3
    # Second order terms at 1e-4 are below a tenth.
    assert 0.9 < np.log10(errors[0] / errors[1]) < 1.1


STEPS = [GradientStep(optax.adam(0.02)), ProjectionDirection(optax.adam(0.02)), ProjectionStep()]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_batch_norm_and_dropout_train(step):
    train, test = blobs(120, 0, dtype=np.float32), blobs(90, 1, dtype=np.float32)
    model = pair(inputs=2, width=16, classes=3, p=0.3, dtype=jnp.float32)
    before = evaluate(model, test).metric
    found = fit(model, step, train, epochs=12, batch_size=50, metric=None)
    net, state = found.model
    assert int(jax.tree.leaves(state)[0]) == found.updates == 36
    # Chance is a third; the three clouds overlap, and the best rule is right for .89 of the rows.
    assert before < 0.6
    assert evaluate((net, state), test).metric > 0.8


def test_scan_fit_makes_the_updates_of_fit():
    train, step = blobs(30, 0), STEPS[0]
    model = pair(inputs=2, classes=3)
    whole = fit(model, step, train, epochs=3, batch_size=16, metric=None, seed=2)
    order = batch_order(30, 16, 3, seed=2)
    again, losses = scan_fit(model, step, train, order, key=jax.random.key(2))
    # Another program: rounding of six updates.
    np.testing.assert_allclose(weights_of(again), weights_of(whole.model), rtol=1e-9)
    means = [(16 * a + 14 * b) / 30 for a, b in np.asarray(losses).reshape(3, 2)]
    np.testing.assert_allclose([e["train_loss"] for e in whole.history], means, rtol=1e-9)


def test_evaluation_uses_the_running_statistics_and_drops_nothing():
    net, state = pair()
    statistics = jnp.asarray([0.2, -0.1]), jnp.asarray([0.5, 2.0])
    state = state.set(net.norm.batch_state_index, statistics)
    outputs, _ = written_out(net, X, None, statistics, 0.0)
    found = evaluate((net, state), (X, Y), batch_size=2)
    scores = np.asarray(jax.nn.log_softmax(outputs))[np.arange(5), np.asarray(Y)]
    np.testing.assert_allclose(found.loss, -scores.mean(), rtol=1e-12)


class Split(eqx.Module):
    """A network that splits its key whether it needs to or not."""

    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __call__(self, x, key):
        a, _ = jax.random.split(key)
        return self.last(self.drop(x, key=a))


def test_only_what_depends_on_a_key_gets_one():
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    layers = eqx.nn.Sequential([linear, eqx.nn.Lambda(jnp.tanh)])
    drop = eqx.nn.Sequential([eqx.nn.Dropout(0.5), linear])
    assert not needs_key(linear, X)
    assert not needs_key(layers, X)  # splits a key if it is given one
    assert not needs_key(eqx.nn.Sequential([eqx.nn.Dropout(0.0), linear]), X)
    assert not needs_key(eqx.nn.inference_mode(drop), X)
    assert not needs_key(lambda x: x, X)
    assert not needs_key(pair(p=0.0), X)
    assert needs_key(drop, X)
    assert needs_key(Split(eqx.nn.Dropout(0.5), linear), X)
    assert needs_key(eqx.nn.inference_mode(Split(eqx.nn.Dropout(0.5), linear)), X)
    assert needs_key(pair(), X)


class Keyless(AbstractStep):
    """A step that knows of no keys."""

    def init(self, model):
        return None

    def update(self, model, state, x, y, weights, loss):
        raise AssertionError


def test_what_is_wrong_is_said_once():
    step, data = GradientStep(optax.sgd(0.1)), (X, Y)
    net, state = pair()
    options = {"epochs": 1, "metric": None}
    with pytest.raises(ValueError, match=r"has layers with a state.*make_with_state.*the pair"):
        fit(net, step, data, **options)
    with pytest.raises(ValueError, match=r"as model\(x, state\).*must return the pair"):
        fit((lambda x, state: net.last.bias * x[0], state), step, data, **options)
    with pytest.raises(ValueError, match="takes no key; add `key=None`"):
        fit((net, state), Keyless(), data, **options)
    with pytest.raises(RuntimeError, match=r"(?s)requires a key.*give one: key=jax.random.key"):
        step.update((net, state), step.init((net, state)), X, Y, WEIGHTS, CrossEntropy())

    class Largest(eqx.Module):
        scale: jax.Array

        def __call__(self, x, state):
            return jax.lax.pmax(x * self.scale, "batch")[:2], state

    with pytest.raises(ValueError, match="read each other by pmax; sums and means over batch do"):
        ProjectionStep().direction((Largest(X[0]), state), X, Y, WEIGHTS, CrossEntropy())


class Two(eqx.Module):
    """A network of two heads."""

    body: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x):
        h = jnp.tanh(self.body(x))
        return {"class": self.head(h), "size": h[:1]}


class Both(AbstractOutputFactor):
    """Cross-entropy of one head, squared error of the other, and a number by name."""

    def __call__(self, outputs, targets):
        off = SquaredError()(outputs["size"], targets[1])
        return CrossEntropy()(outputs["class"], targets[0]) + off, {"off": off, "one": 1.0}

    def proximal(self, outputs, targets, precision):
        return {
            "class": CrossEntropy().proximal(outputs["class"], targets[0], precision),
            "size": SquaredError().proximal(outputs["size"], targets[1], precision),
        }


def test_a_loss_may_read_several_outputs_and_name_numbers():
    keys = jax.random.split(jax.random.key(0))
    model = Two(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1]))
    y = Y, X[:, :1]
    off = np.asarray(SquaredError()(jax.vmap(model)(X)["size"], y[1]))
    mean = float(np.sum(WEIGHTS * off) / np.sum(WEIGHTS))
    step, descent = ProjectionStep(), GradientStep(optax.sgd(0.1))

    def both(model):
        found = gradient_agreement(step, model, X, y, loss=Both(), weights=WEIGHTS)
        infos = [one.update(model, one.init(model), X, y, WEIGHTS, Both())[2]
                 for one in (step, descent)]  # fmt: skip
        return found.cosines, found.distances, [info.stats for info in infos]

    cosines, distances, stats = quick_jit(both)(model)
    # The ratio 1e-5 times the curvature of the network; double precision.
    assert float(cosines.min()) > 0.9999
    assert float(distances.max()) < 1e-3
    for one in stats:
        np.testing.assert_allclose(one["off"], mean, rtol=1e-12)
        assert float(one["one"]) == 1.0
    history = fit(model, descent, (X, y), (X, y), loss=Both(), epochs=1, metric=None).history
    np.testing.assert_allclose(history[-1]["stats"]["off"], off.mean(), rtol=1e-12)
    linear = eqx.nn.Linear(3, 2, key=keys[0])
    with pytest.raises(ValueError, match="names a number residual, as the step does"):
        step.direction(linear, X, X[:, :2], WEIGHTS, Renamed())


class Renamed(SquaredError):
    """A loss with a name that a step has."""

    def __call__(self, outputs, targets):
        return super().__call__(outputs, targets), {"residual": 0.0}
