"""Splitting schemes on copies that are never formed, against copies written out."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.projections import (
    ADMM,
    AbstractScheme,
    AbstractSpace,
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
from ._case import PLAIN, UNEQUAL, assert_close, iterates, of_point, oracle, precisions, problem
from ._oracle import mix


def reflected(lifted, x, half):
    return mix((2, lifted.project(x, half)), (-1, x))


def douglas_rachford(lifted, x, relaxation=0.5):
    while True:
        moved = reflected(lifted, reflected(lifted, x, 0), 1)
        x = mix((1 - relaxation, x), (relaxation, moved))
        yield x


def difference_map(lifted, x, beta):
    while True:
        first, second = lifted.project(x, 0), lifted.project(x, 1)
        on_0 = lifted.project(mix((1 + 1 / beta, second), (-1 / beta, x)), 0)
        on_1 = lifted.project(mix((1 - 1 / beta, first), (1 / beta, x)), 1)
        x = mix((1, x), (beta, on_0), (-beta, on_1))
        yield x


def admm(lifted, z):
    u = mix((0, z))
    while True:
        x = lifted.project(mix((1, z), (-1, u)), 0)
        z = lifted.project(mix((1, x), (1, u)), 1)
        u = mix((1, u), (1, x), (-1, z))
        yield z


def dykstra(lifted, x):
    p = q = mix((0, x))
    while True:
        y = lifted.project(mix((1, x), (1, p)), 0)
        p = mix((1, x), (1, p), (-1, y))
        x = lifted.project(mix((1, y), (1, q)), 1)
        q = mix((1, y), (1, q), (-1, x))
        yield x


def truth(formula, count, consensus="average", p=PLAIN, depth=1, **options):
    lifted, weights, biases = oracle(consensus, p, depth)
    steps = formula(lifted, lifted.forward(weights, biases), **options)
    return [of_point(point) for point, _ in zip(steps, range(count), strict=False)]


CASES = {
    "Douglas-Rachford": (
        Splitting(DouglasRachford(), history=11, explicit_units=0),
        douglas_rachford,
        {},
        10,
    ),
    "Douglas-Rachford, relaxed": (
        Splitting(DouglasRachford(relaxation=0.8), history=8, explicit_units=3),
        douglas_rachford,
        {"relaxation": 0.8},
        6,
    ),
    "difference map": (
        Splitting(DifferenceMap(), history=8, explicit_units=0),
        difference_map,
        {"beta": 1},
        6,
    ),
    "difference map, -0.7": (
        Splitting(DifferenceMap(beta=-0.7), history=12, explicit_units=3),
        difference_map,
        {"beta": -0.7},
        5,
    ),
    "ADMM": (Splitting(ADMM(), history=8, explicit_units=0), admm, {}, 6),
    "Dykstra": (Splitting(Dykstra(), history=8, explicit_units=0), dykstra, {}, 6),
}


@pytest.mark.parametrize("name", CASES)
def test_iterates_are_the_formula_on_all_copies(name):
    scheme, formula, options, count = CASES[name]
    mine, state = iterates(scheme, count)
    want = truth(formula, count, **options)
    # Rounding, amplified by a scheme that does not contract.
    assert_close(mine, want, 1e-9)
    assert float(state.truncation) == 0.0  # the history was long enough
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(mine[-1], mine[0], strict=True))
    # Products are differences of squared norms, and those sums of coefficients: digits are lost.
    assert float(scheme.residual(state)) < 1e-7


class WrittenOut(AbstractSpace):
    """The same space with every copy as an array, in numpy."""

    def combine(self, *terms):
        return mix(*terms)

    def point(self, dual):
        return dual

    def distance(self, old, new):
        return max(np.abs(old[key] - new[key]).max() for key in old)


class Halfway(AbstractScheme):
    """A user's scheme: half of the way of one alternating projection."""

    def init(self, space, projections, start):
        return (start,)

    def step(self, space, projections, state):
        first, second = projections
        (x,) = state
        return (space.combine((0.5, x), (0.5, second(first(x)))),)


@pytest.mark.parametrize(
    "scheme", [Halfway(), DouglasRachford(0.7), Dykstra()], ids=lambda s: type(s).__name__
)
def test_the_fused_copies_follow_the_generic_scheme(scheme):
    mine, _ = iterates(Splitting(scheme, history=8, explicit_units=0), 5)
    lifted, weights, biases = oracle()
    halves = [partial(lifted.project, half=half) for half in (0, 1)]
    state = scheme.init(WrittenOut(), halves, lifted.forward(weights, biases))
    for found in mine:
        state = scheme.step(WrittenOut(), halves, state)
        # Rounding, amplified by a scheme that does not contract.
        assert_close([found], [of_point(scheme.read(state))], 1e-10)


def test_a_projection_step_takes_a_generic_scheme():
    step = ProjectionStep(scheme=Dykstra(), consensus="average")
    assert isinstance(step.scheme, Splitting)
    assert isinstance(step.scheme.scheme, Dykstra)
    # The certificate pairs entries by name: Dykstra's point comes from a projection.
    model, x, y = problem()
    _, _, info = step.update(model, step.init(model), x, y, jnp.ones(5), CrossEntropy())
    assert 0 < float(info.stats["certificate"]) < 1


@pytest.mark.parametrize("explicit_units", [0, 3, 8])
def test_other_precisions_a_product_consensus_and_another_layer(explicit_units):
    # 0: no layer keeps its copies as they are; 3: the last one does; 8: all do.
    scheme = Splitting(DouglasRachford(), history=6, explicit_units=explicit_units)
    mine, _ = iterates(scheme, 5, "product", UNEQUAL, 2)
    assert_close(mine, truth(douglas_rachford, 5, "product", UNEQUAL, 2), 1e-10)  # rounding
    first = np.abs(mine[-1][0] - mine[0][0]).max()
    assert first > 1e-6  # the signal has reached the first layer


def test_a_short_history_is_near_and_says_what_it_dropped():
    count = 10
    want = truth(douglas_rachford, count)
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
    # As if each dense layer lacked as much; activations, which are projected last, lack nothing.
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


@pytest.mark.parametrize("name", ["convolution, reshape", "masked", "sliced"])
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
