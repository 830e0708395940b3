"""Messages and consensus of the lifted network: what adds up, and what nothing reads."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.training import (
    CrossEntropy,
    CyclicProjections,
    Precisions,
    ProjectionStep,
    SquaredError,
    gradient_agreement,
    projection_slopes,
)
from klprojax.training.network import LiftedNetwork, trace_network

from .._networks import BATCH, build, labels, quick_jit

WEIGHTS = jnp.asarray([1.0, 1.0, 0.0, 1.0])


def test_messages_into_a_shared_matrix_add_up():
    # The recurrent model with its matrix written out as two equal parameters: the slopes of the
    # two, added, are those of the shared one.
    class Written(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    matrix = eqx.nn.Linear(3, 3, key=jax.random.key(1))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(BATCH, 3)))
    y = jnp.ones((BATCH, 3))

    class Shared(eqx.Module):
        only: eqx.nn.Linear

        def __call__(self, x):
            return self.only(jnp.tanh(self.only(x)))

    def slopes(model):
        return quick_jit(
            lambda: projection_slopes(model, x, y, jnp.ones(BATCH), SquaredError(), ratio=0.3)[0]
        )()

    apart, shared = slopes(Written(matrix, matrix)), slopes(Shared(matrix))
    for field in ("weight", "bias"):
        both = getattr(apart.first, field) + getattr(apart.second, field)
        np.testing.assert_allclose(getattr(shared.only, field), both, rtol=1e-13)
    assert float(jnp.max(jnp.abs(shared.only.weight))) > 1e-3


def test_the_consensus_of_copies_counts_every_reader():
    # x of 3 inputs, 4 hidden units, 2 outputs: a hidden value has 2 copies, one per unit that reads
    # it; a weight one per sample; an output one, the output factor's.
    model, x = build("mlp")
    graph, _ = trace_network(model, x)
    precisions = Precisions(
        weight=(2.0, 3.0), activation=(5.0, 7.0), unit=11.0, bias=13.0, output=17.0
    )
    network = LiftedNetwork(graph, x, labels(), WEIGHTS, CrossEntropy(), precisions, "product")
    named = {graph.values[k].name: v for k, v in network.totals.items()}
    rows = 3.0
    np.testing.assert_array_equal(named[".layers[0].weight"], np.full((4, 3), 2.0 * rows))
    np.testing.assert_array_equal(named[".layers[1].weight"], np.full((2, 4), 3.0 * rows))
    np.testing.assert_array_equal(named[".layers[1].bias"], np.full(2, 13.0 * rows))
    first, relu, second, last = graph.constraints
    np.testing.assert_array_equal(network.totals[first.output], np.full((1, 4), 11.0))
    np.testing.assert_array_equal(network.totals[relu.output], np.full((1, 4), 2 * 7.0))
    np.testing.assert_array_equal(network.totals[second.output], np.full((1, 2), 11.0))
    np.testing.assert_array_equal(network.totals[last.output], np.full((1, 2), 17.0))


@pytest.mark.parametrize(
    ("name", "consensus"),
    [
        ("sliced", "average"),
        ("masked", "product"),
        ("embedding", "average"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("sliced", "product"),
                ("masked", "average"),
                ("embedding", "product"),
                ("gated", "average"),
                ("gated", "product"),
            )
        ),
    ],
)
def test_values_that_nothing_reads_do_no_harm(name, consensus):
    model, x = build(name)

    def moved():
        step = ProjectionStep(CyclicProjections(), 2, Precisions(), consensus)
        return step.direction(model, x, labels(), WEIGHTS, CrossEntropy())[0].displacement

    found = quick_jit(moved)()
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))
    assert any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(found))
    if name == "embedding":  # no sample holds token 4
        assert bool(jnp.all(found.table.weight[4] == 0))
        assert bool(jnp.all(jnp.any(found.table.weight[x[0]] != 0, axis=-1)))


def test_precisions_pass_through_signs_and_masks_squared():
    # h is read with sign -1, and under a mask m by one unit: Σ (copy - c h)² weighs c².
    class Signed(eqx.Module):
        inner: eqx.nn.Linear
        gain: jax.Array

        def __call__(self, x):
            inputs, mask = x
            h = jnp.tanh(self.inner(inputs))
            return (self.gain - h) * mask

    model = Signed(eqx.nn.Linear(3, 2, key=jax.random.key(0)), jnp.asarray([0.3, -0.2]))
    mask = jnp.asarray([[2.0, 0.0], [-3.0, 1.0]])
    x = (jnp.ones((2, 3)), mask)
    graph, parameters = trace_network(model, x)
    precisions = Precisions(output=5.0, unit=7.0, bias=11.0)
    network = LiftedNetwork(
        graph, x, jnp.ones((2, 2)), jnp.ones(2), SquaredError(), precisions, "average"
    )
    hidden, last = graph.constraints[1], graph.constraints[-1]
    np.testing.assert_allclose(network.totals[last.output], 5.0 * mask**2)
    # The sum's copy of -h is a copy of h.
    np.testing.assert_allclose(network.totals[hidden.output], np.full((1, 2), 7.0))
    named = {graph.values[k].name: v for k, v in network.totals.items()}
    np.testing.assert_allclose(named[".gain"], np.full(2, 2 * 11.0))
    # The output factor's step, seen through the mask: the sum's target is (y + ω m s)/(m (1 + ω)),
    # divided by m, not multiplied by it; where the mask is 0 nothing is asked.
    state = network.visit_output(network.start(parameters))
    out = network.outputs(parameters)
    total_slope = np.asarray(network.total_slope(state, last.output))
    step = np.asarray((jnp.ones((2, 2)) - out) / 6.0)
    np.testing.assert_allclose(total_slope, 5.0 * step * mask, rtol=1e-14)
    after = network.visit(state, last)
    sums = np.asarray(parameters[2])[None] - np.asarray(state.bases[hidden.output])
    target = np.where(mask != 0, sums + step / np.where(mask != 0, mask, 1), sums)
    omega = 1 / (1 / 7 + 1 / 11)
    np.testing.assert_allclose(
        after.bases[last.output], (omega * sums + target) / (omega + 1), rtol=1e-13
    )


def test_relative_precisions_do_not_see_the_scale_of_a_layer():
    # A network whose layers are 1e3 and 1e-3 times as large computes the same.
    model, x = build("mlp")
    scaled = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight),
        model,
        (1e3 * model.layers[0].weight, 1e3 * model.layers[0].bias, 1e-3 * model.layers[1].weight),
    )
    step = ProjectionStep(precisions=Precisions.with_ratio(1e-2, relative=True))
    ones = jnp.ones(len(x))

    def slopes(model, step):
        said = step.direction(model, x, labels(), ones, CrossEntropy())[0].slopes
        return jax.tree.leaves(said.layers)

    plain, other = (quick_jit(lambda m=m: slopes(m, step))() for m in (model, scaled))
    for slope, same, factor in zip(plain, other, (1e-3, 1e-3, 1e3, 1.0), strict=True):
        np.testing.assert_allclose(same, factor * slope, rtol=1e-9)
    absolute = ProjectionStep(precisions=Precisions.with_ratio(1e-2))
    plain, other = (quick_jit(lambda m=m: slopes(m, absolute))() for m in (model, scaled))
    assert np.abs(np.asarray(other[0]) * 1e3 - plain[0]).max() > 1e-4


@pytest.mark.parametrize("mask", [-1e9, -1e19, float(jnp.finfo(jnp.float32).min), -np.inf])
def test_masked_logits_have_no_size(mask):
    # What masks out entries of a softmax, small, large or infinite, is no scale to measure by.
    class Attention(eqx.Module):
        query: jax.Array

        def __call__(self, x):
            past = jnp.tril(jnp.ones((4, 4), bool))
            logits = jnp.where(past, self.query * x[:, None], jnp.asarray(mask, x.dtype))
            return jax.nn.softmax(logits, axis=-1) @ x

    model = Attention(jax.random.normal(jax.random.key(0), (4, 4), jnp.float32))
    x = jax.random.normal(jax.random.key(1), (BATCH, 4), jnp.float32)
    y = jnp.ones((BATCH, 4), jnp.float32)
    found = quick_jit(
        lambda model: gradient_agreement(ProjectionStep(), model, x, y, loss=SquaredError())[1:]
    )(model)
    # First order in the default ratio of 1e-5 times the curvature of this softmax, about 50.
    assert float(found[1][0]) < 5e-3
