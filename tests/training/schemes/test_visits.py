"""Alternating and cyclic projections, iterate by iterate the generic `Cyclic`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.projections import Cyclic
from klprojax.training import AlternatingProjections, CrossEntropy, CyclicProjections, Precisions
from klprojax.training.network import LiftedNetwork, trace_network
from klprojax.training.schemes._visits import relative_change

from .._networks import quick_jit
from ._case import (
    PLAIN,
    UNEQUAL,
    assert_close,
    iterates,
    matrices,
    on_halves,
    on_visits,
    precisions,
    problem,
)

COUNT = 20
SETTINGS = [("average", PLAIN, 1), ("product", UNEQUAL, 2), ("average", UNEQUAL, 2)]


def alternating(count, *options):
    return on_halves(Cyclic(), count, *options)


TRUTHS = [(AlternatingProjections(), alternating), (CyclicProjections(), on_visits)]


@pytest.mark.parametrize(("consensus", "p", "depth"), SETTINGS)
@pytest.mark.parametrize(("scheme", "truth"), TRUTHS)
def test_visits_are_the_generic_cyclic_scheme(scheme, truth, consensus, p, depth):
    mine, state = iterates(scheme, COUNT, consensus, p, depth)
    # The two find every root to rounding; twenty iterations may multiply that a hundredfold.
    assert_close(mine, truth(COUNT, consensus, p, depth), 1e-12)
    assert float(scheme.residual(state)) < 1e-13  # rounding
    # Something moves, in every layer, and the iterates differ.
    assert all(np.abs(a - b).max() > 1e-5 for a, b in zip(mine[-1], mine[0], strict=True))


@pytest.mark.parametrize(("scheme", "truth"), TRUTHS)
def test_float32_follows_to_its_own_rounding(scheme, truth):
    mine, _ = iterates(scheme, COUNT, "product", UNEQUAL, 1, np.float32)
    assert {leaf.dtype for row in mine for leaf in row} == {np.dtype(np.float32)}
    # A thousand roundings of 1e-7 at most; a relu that flips would show as 1e-2.
    assert_close(mine, truth(COUNT, "product", UNEQUAL, 1, np.float32), 1e-4)


def test_alternating_projections_reach_one_layer_a_half_step():
    # 3 linear maps: after one iteration (two half-steps) the first matrix has not moved.
    mine, _ = iterates(AlternatingProjections(), 4, depth=2)
    truth = alternating(4, "average", PLAIN, 2)
    assert_close(mine, truth, 1e-12)
    _, _, (start, *_), _ = matrices(depth=2)
    moved = [float(np.abs(step[0] - start).max()) for step in mine]
    assert moved[0] < 1e-15  # rounding of the consensus of equal copies
    assert moved[-1] > 1e-6


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
    scheme = AlternatingProjections()
    with pytest.raises(ValueError, match=r"odd cycle.*CyclicProjections"):
        jax.eval_shape(lambda: scheme.iterate(network, scheme.start(network, parameters)))
    # A cyclic sweep needs no halves.
    jax.eval_shape(lambda: CyclicProjections().iterate(network, network.start(parameters)))


@pytest.mark.parametrize("scheme", [AlternatingProjections(), CyclicProjections()])
def test_the_residual_is_of_the_last_iteration(scheme):
    model, x, y = problem(0)
    graph, parameters = trace_network(model, x)
    network = LiftedNetwork(
        graph, x, y, jnp.ones(5), CrossEntropy(), precisions(PLAIN, 1), "average"
    )

    @quick_jit
    def advance():
        start = scheme.start(network, parameters)
        return scheme.iterate(network, start._replace(residual=jnp.asarray(7.0)))

    assert float(scheme.residual(advance())) < 1e-13  # rounding


def test_the_certificate_is_the_largest_relative_change():
    old, new = {0: jnp.asarray([1.0, -4.0])}, {0: jnp.asarray([3.0, -5.0])}
    assert float(relative_change(old, new)) == 2.0 / 5.0
    assert float(relative_change({0: jnp.zeros(2)}, {0: jnp.zeros(2)})) == 0.0
