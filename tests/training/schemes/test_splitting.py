"""Splitting schemes on a network, iterate by iterate the generic schemes on written-out copies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klprojax.projections import (
    ADMM,
    AbstractScheme,
    Cyclic,
    DifferenceMap,
    DouglasRachford,
    Dykstra,
)
from klprojax.training import (
    CrossEntropy,
    Precisions,
    ProjectionStep,
    Splitting,
    SquaredError,
)
from klprojax.training.network import LiftedNetwork, trace_network
from klprojax.training.schemes import _copies

from .._networks import build, labels, quick_jit
from ._case import PLAIN, UNEQUAL, assert_close, iterates, on_halves, precisions, problem


class Halfway(AbstractScheme):
    """A user's scheme: half of the way of one alternating projection."""

    def init(self, space, projections, start):
        return (start,)

    def step(self, space, projections, state):
        first, second = projections
        (x,) = state
        return (space.combine((0.5, x), (0.5, second(first(x)))),)


SCHEMES = {
    "cyclic": Cyclic(),
    "Dykstra": Dykstra(),
    "Douglas-Rachford": DouglasRachford(),
    "Douglas-Rachford, relaxed": DouglasRachford(relaxation=0.8),
    "difference map": DifferenceMap(),
    "difference map, -0.7": DifferenceMap(beta=-0.7),
    "ADMM": ADMM(),
    "a user's own": Halfway(),
}


# Others differ from these in a number.
SLOW = {"Douglas-Rachford, relaxed", "difference map"}


def cases(names, slow=SLOW):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in names]


@pytest.mark.parametrize("name", cases(SCHEMES))
@settings(max_examples=2)
@given(seed=st.integers(0, 2**16))
def test_splitting_is_the_generic_scheme_on_the_copies(name, seed):
    mine, _ = iterates(Splitting(SCHEMES[name], explicit_units=4), 20, seed=seed)
    want = on_halves(SCHEMES[name], 20, "average", PLAIN, 1, np.float64, seed)
    # Roots are found to rounding; what does not contract multiplies that by hundreds in 20 steps.
    assert_close(mine, want, 1e-12)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(mine[-1], mine[0], strict=True))


# With copies as coefficients of past values; iterations, of which the history holds all.
THIN = {
    "Dykstra": 6,
    "Douglas-Rachford": 6,
    "Douglas-Rachford, relaxed": 6,
    "difference map, -0.7": 5,
    "ADMM": 6,
    "a user's own": 5,
}


@pytest.mark.parametrize("name", cases(THIN, SLOW | {"difference map, -0.7", "ADMM"}))
def test_coefficients_stand_for_the_copies(name):
    count = THIN[name]
    # The larger layer as coefficients at least.
    scheme = Splitting(SCHEMES[name], history=12, explicit_units=3 if "-0.7" in name else 0)
    mine, state = iterates(scheme, count)
    # Products are differences of squared norms, and those sums of coefficients: digits are lost.
    assert_close(mine, on_halves(SCHEMES[name], count), 1e-9)
    assert float(state.truncation) == 0.0  # the history was long enough
    assert float(scheme.residual(state)) < 1e-7  # the same


def test_a_projection_step_takes_a_generic_scheme():
    step = ProjectionStep(scheme=Dykstra(), consensus="average")
    assert isinstance(step.scheme, Splitting)
    assert isinstance(step.scheme.scheme, Dykstra)
    # The certificate pairs entries by name: Dykstra's point comes from a projection.
    model, x, y = problem()
    arrays, static = eqx.partition(model, eqx.is_array)

    @quick_jit
    def certificate(arrays):
        model = eqx.combine(arrays, static)
        _, _, info = step.update(model, step.init(model), x, y, jnp.ones(5), CrossEntropy())
        return info.stats["certificate"]

    assert 0 < float(certificate(arrays)) < 1


@pytest.mark.parametrize(
    "explicit_units", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 8))]
)
def test_other_precisions_a_product_consensus_and_another_layer(explicit_units):
    # 0: no layer keeps its copies as they are; 3: the last one does; 8: all do.
    scheme = Splitting(DouglasRachford(), history=6, explicit_units=explicit_units)
    mine, _ = iterates(scheme, 5, "product", UNEQUAL, 2)
    assert_close(mine, on_halves(DouglasRachford(), 5, "product", UNEQUAL, 2), 1e-10)  # rounding
    first = np.abs(mine[-1][0] - mine[0][0]).max()
    assert first > 1e-6  # the signal has reached the first layer


def test_a_short_history_is_near_and_says_what_it_dropped():
    count = 10
    want = on_halves(DouglasRachford(), count)
    errors, dropped = [], []
    for history in (2, 5):
        mine, state = iterates(
            Splitting(DouglasRachford(), history=history, explicit_units=3), count
        )
        moved = max(np.abs(a - b).max() for a, b in zip(want[-1], want[0], strict=True))
        errors.append(
            max(np.abs(a - b).max() for a, b in zip(mine[-1], want[-1], strict=True)) / moved
        )
        dropped.append(float(state.truncation))
    assert dropped[0] > dropped[1] > 0
    # The oldest kept value stands in for those before it, to the order of their change.
    assert errors[0] < 0.5
    assert 1e-12 < errors[1] < errors[0]


def test_figures_are_the_largest(monkeypatch):
    # As if each dense layer missed as much; activations, which are projected last, miss nothing.
    monkeypatch.setattr(_copies, "_largest", lambda value, weights: jnp.asarray(0.5, value.dtype))
    model, x, y = problem()
    graph, parameters = trace_network(model, x)
    network = LiftedNetwork(
        graph, x, y, jnp.ones(5), CrossEntropy(), precisions(PLAIN, 2), "average"
    )
    scheme = Splitting(DouglasRachford(), history=2, explicit_units=0)

    @quick_jit
    def advance():
        start = scheme.start(network, parameters)
        return scheme.iterate(network, start._replace(truncation=jnp.asarray(7.0)))

    state = advance()
    assert float(scheme.residual(state)) == 0.5
    assert float(state.truncation) == 7.0  # of an iteration before


def test_the_state_keeps_its_shapes():
    model, x, y = problem()
    graph, parameters = trace_network(model, x)
    network = LiftedNetwork(
        graph, x, y, jnp.ones(5), CrossEntropy(), precisions(PLAIN, 2), "average"
    )
    for scheme in (
        Splitting(DouglasRachford(), explicit_units=0),
        Splitting(Dykstra(), history=2, explicit_units=3),
    ):
        start = jax.eval_shape(lambda s=scheme: s.start(network, parameters))
        after = jax.eval_shape(lambda state, s=scheme: s.iterate(network, state), start)
        assert jax.tree.structure(start) == jax.tree.structure(after)
        for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize(
    "name", cases(["convolution, reshape", "masked", "sliced"], {"masked", "convolution, reshape"})
)
def test_other_layers_and_values_that_nothing_reads(name):
    model, x = build(name)
    rows = jnp.ones(len(labels()))
    target = jnp.ones((len(labels()), 2))

    def moved(explicit_units):
        graph, parameters = trace_network(model, x)
        network = LiftedNetwork(graph, x, target, rows, SquaredError(), Precisions(), "product")
        scheme = Splitting(DouglasRachford(), history=4, explicit_units=explicit_units)
        state = scheme.start(network, parameters)
        for _ in range(3):
            state = scheme.iterate(network, state)
        return parameters, scheme.parameters(network, state), state.residual

    # With copies as coefficients, and as they are: the same.
    start, thin, residual = quick_jit(lambda: moved(0))()
    _, wide, _ = quick_jit(lambda: moved(8))()
    assert float(residual) < 1e-12  # rounding
    for p, q in zip(thin, wide, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)  # rounding, a few iterations
    assert any(bool(jnp.any(jnp.abs(p - q) > 1e-6)) for p, q in zip(start, thin, strict=True))


def test_what_a_splitting_scheme_does_not_take():
    model, x, y = problem()
    graph, parameters = trace_network(model, x)

    def network(consensus):
        return LiftedNetwork(graph, x, y, jnp.ones(5), CrossEntropy(), Precisions(), consensus)

    with pytest.raises(ValueError, match=r"no use for consensus='slope'.*'average' or 'product'"):
        Splitting(DouglasRachford()).start(network("slope"), parameters)
    with pytest.raises(ValueError, match="history is 0; expected at least 1"):
        Splitting(ADMM(), history=0).start(network("average"), parameters)
    with pytest.raises(ValueError, match="beta is 0; expected a number other than 0"):
        DifferenceMap(beta=0.0)


def test_an_odd_cycle_has_no_two_halves():
    class Odd(eqx.Module):
        inner: eqx.nn.Linear
        outer: eqx.nn.Linear

        def __call__(self, x):
            h = jax.nn.relu(self.inner(x))
            return self.outer(h) + h

    keys = jax.random.split(jax.random.key(0), 2)
    model = Odd(eqx.nn.Linear(3, 3, key=keys[0]), eqx.nn.Linear(3, 3, key=keys[1]))
    x = jnp.ones((2, 3))
    graph, parameters = trace_network(model, x)
    network = LiftedNetwork(
        graph, x, jnp.zeros(2, jnp.int32), jnp.ones(2), CrossEntropy(), Precisions(), "average"
    )
    with pytest.raises(ValueError, match=r"odd cycle.*CyclicProjections"):
        Splitting(Dykstra()).start(network, parameters)
