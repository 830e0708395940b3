"""Reading models: the graph computes what the model computes, and says what it cannot."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.lifting import LiftError
from klprojax.training import CrossEntropy, Precisions
from klprojax.training.network import LiftedNetwork, trace_network
from klprojax.training.network._bilinear import Dense, Mapped
from klprojax.training.network._constraints import Maximum, SumActivation

from .._networks import BATCH, CASES, build, labels, mlp


def lifted(graph, x, weights=None, consensus="slope"):
    """A lifted network under a cross-entropy."""
    weights = jnp.ones(BATCH, jnp.float64) if weights is None else weights
    return LiftedNetwork(graph, x, labels(), weights, CrossEntropy(), Precisions(), consensus)


def rules(graph):
    """What the constraints are."""
    return [
        (type(n.rule).__name__, getattr(n.rule, "kind", ""), getattr(n.rule, "arity", 0))
        for n in graph.constraints
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_model_computes(name):
    model, x = build(name)
    inside = []

    @jax.jit
    def values(arrays, x):
        whole = eqx.combine(arrays, static)
        graph, parameters = trace_network(whole, x)
        inside.append(rules(graph))
        return lifted(graph, x).outputs(parameters), jax.vmap(whole)(x)

    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    got, want = values(arrays, x)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)  # sums in another order
    graph, parameters = trace_network(model, x)
    # Literals inside jit must not hide what a function is.
    assert inside[0] == rules(graph)
    assert len(parameters) == len(jax.tree.leaves(arrays))
    for index, parameter in zip(graph.parameters, parameters, strict=True):
        assert graph.values[index].shape == parameter.shape
        assert graph.values[index].shared
        assert graph.values[index].kind == "parameter"
    producers = {node.output for node in graph.nodes}
    assert len(producers) == len(graph.nodes)


@pytest.mark.parametrize("name", ["mlp", "convolution, reshape", "gated", "normalised"])
def test_float32_stays_float32_under_64_bits(name):
    model, x = build(name, np.float32)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def sweep(arrays, x, weights):
        graph, parameters = trace_network(eqx.combine(arrays, static), x)
        network = lifted(graph, x, weights, "product")
        state = network.visit_output(network.start(parameters))
        for node in reversed(graph.constraints):
            state = network.visit(state, node)
        for index in graph.parameters:
            state = network.visit_parameter(state, index)
        return state

    state = jax.eval_shape(sweep, arrays, x, jnp.ones(BATCH, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp", "relu"),
        ("maximum with 0", "relu"),
        ("tanh", "smooth"),
        ("sigmoid", "smooth"),
        ("silu", "smooth"),
        ("abs", "abs"),
        ("quantise", "quantise"),
        ("no biases", "relu"),
    ],
)
def test_an_activation_is_one_constraint_with_its_bias(name, kind):
    model, x = build(name)
    graph, _ = trace_network(model, x)
    if name == "no biases":
        want = [("Dense", "", 0), ("SumActivation", kind, 1), ("Dense", "", 0)]
    else:
        want = [
            *(("Dense", "", 0), ("SumActivation", kind, 2)),
            *(("Dense", "", 0), ("SumActivation", "identity", 2)),
        ]
    assert rules(graph) == want


def test_what_the_parts_of_other_architectures_become():
    graph, _ = trace_network(*build("convolution, reshape"))
    kinds = [type(n.rule) for n in graph.constraints]
    assert kinds == [Mapped, SumActivation, Maximum, Dense, SumActivation]
    graph, _ = trace_network(*build("recurrent"))
    weights = [n.inputs[1] for n in graph.constraints if isinstance(n.rule, Dense)]
    # The inputs' matrix is read three times, that of the state twice.
    assert sorted(weights.count(index) for index in set(weights)) == [1, 2, 3]
    graph, _ = trace_network(*build("embedding"))
    assert [v.name for v in graph.values if v.kind == "parameter"] == [
        ".table.weight",
        ".last.weight",
        ".last.bias",
    ]
    graph, _ = trace_network(*build("residual"))
    sums = [n.rule.arity for n in graph.constraints if isinstance(n.rule, SumActivation)]
    assert sums == [2, 2, 2, 2]  # relu(u + b) twice, the skip, the outputs


@pytest.mark.parametrize("name", ["mlp", "deep", "convolution, reshape", "embedding", "masked"])
def test_a_chain_has_two_colours_and_neighbours_differ(name):
    graph, _ = trace_network(*build(name))
    colours = graph.colours
    assert colours is not None
    assert colours["output", graph.output] == 0

    def makers(index):
        for node in graph.nodes:
            if node.output == index:
                if node.rule.carries:
                    return [m for i in node.inputs for m in makers(i)]
                return [("node", node.index)]
        return [("parameter", index)] if index in graph.parameters else []

    for node in graph.constraints:
        for index in node.inputs:
            for maker in makers(index):
                assert colours[maker] == 1 - colours["node", node.index]
    assert all(colours[maker] == 1 for maker in makers(graph.output))
    assert set(colours) == {
        ("output", graph.output),
        *(("node", n.index) for n in graph.constraints),
        *(("parameter", p) for p in graph.parameters),
    }


@pytest.mark.parametrize("name", ["joined", "residual"])
def test_a_skip_over_a_whole_layer_is_an_odd_cycle_only_if_its_length_is_odd(name):
    # relu -> dense -> relu -> concatenation read by dense: both branches meet it in even steps?
    graph, _ = trace_network(*build(name))
    # "joined": tanh and relu both feed the last dense layer, two constraints apart: no odd cycle.
    # "residual": relu feeds the sum directly and over dense and relu, again two apart.
    assert graph.colours is not None

    class Odd(eqx.Module):
        inner: eqx.nn.Linear
        outer: eqx.nn.Linear

        def __call__(self, x):
            h = jax.nn.relu(self.inner(x))
            return self.outer(h) + h  # the sum reads relu directly and through one dense layer

    keys = jax.random.split(jax.random.key(0), 2)
    model = Odd(eqx.nn.Linear(3, 3, key=keys[0]), eqx.nn.Linear(3, 3, key=keys[1]))
    graph, _ = trace_network(model, jnp.zeros((2, 3)))
    assert graph.colours is None


class Bad(eqx.Module):
    inner: eqx.nn.Linear
    use: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.use(self.inner, x)


def looped(inner, x):
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 1, lambda c: c + 1, inner(x))


def wrong_filter(inner, x):
    image = inner(x).reshape(1, 1, 3, 1)
    return jax.lax.conv_general_dilated(inner.weight.reshape(1, 1, 3, 3), image, (1, 1), "VALID")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (looped, r"\(while\) at test_trace\.py:\d+.*function without derivatives"),
        (lambda inner, x: inner(x)[jnp.argmax(inner(x))], r"\(argmax\) at test_trace\.py"),
        (
            lambda inner, x: jnp.exp(inner.weight) @ x,
            r"\(exp\) at test_trace\.py.*the parameter \.inner\.weight",
        ),
        (lambda inner, x: (inner.weight + inner.weight.T) @ x, r"\(add\).*adds parameters alone"),
        (
            lambda inner, x: (inner.weight @ inner.weight) @ x,
            r"\(dot_general\).*multiplies parameters",
        ),
        (lambda inner, x: inner.bias, "does not depend on its input"),
        (lambda inner, x: (inner(x), jnp.argmax(x)), "returns 2 arrays of types float64, int64"),
        (
            lambda inner, x: inner(x) if x[0] > 0 else x,
            r"^test_trace\.py:\d+: the model asks in Python for the value of a traced number, "
            r"`lambda inner, x: .*`.*TracerBoolConversionError.*jnp\.where or lax\.cond",
        ),
        (lambda inner, x: np.tanh(inner(x)), "TracerArray.*jax.numpy in place of numpy's"),
        (wrong_filter, r"\(conv_general_dilated\).*only a parameter can be the filter"),
    ],
)
def test_what_cannot_be_projected_is_named_with_its_line(use, message):
    model = Bad(eqx.nn.Linear(3, 3, key=jax.random.key(0)), use)
    with pytest.raises(LiftError, match=message):
        trace_network(model, jnp.zeros((2, 3)))


def test_anything_may_be_computed_from_the_data_alone():
    class Prepared(eqx.Module):
        inner: eqx.nn.MLP

        def __call__(self, x):
            ordered = jnp.sort(x) / jnp.cumsum(jnp.exp(x))
            return self.inner(ordered) + jax.lax.top_k(x, 2)[0]

    model = Prepared(mlp(jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 3)))
    graph, parameters = trace_network(model, x)
    got, want = jax.jit(lambda x: (lifted(graph, x).outputs(parameters), jax.vmap(model)(x)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-13)  # sums in another order


def test_an_unknown_consensus_and_a_wrong_number_of_precisions_are_errors():
    model, x = build("mlp")
    graph, _ = trace_network(model, x)
    with pytest.raises(ValueError, match=r"consensus is 'mean'; expected one of \('average'"):
        lifted(graph, x, consensus="mean")
    with pytest.raises(ValueError, match=r"Precisions\.weight has 3 entries; the network has 2"):
        LiftedNetwork(
            graph,
            x,
            labels(),
            jnp.ones(BATCH),
            CrossEntropy(),
            Precisions(weight=(1.0, 2.0, 3.0)),
            "slope",
        )
