"""Products in float32 ask for full precision: by default accelerators round factors to 10 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import klprojax
from klprojax import circuits


def products(jaxpr):
    """Precision of every float32 product in a program, inner programs included."""
    for equation in jaxpr.eqns:
        single = equation.outvars and equation.outvars[0].aval.dtype == np.float32
        if equation.primitive.name == "dot_general" and single:
            yield equation.params["precision"]
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                yield from products(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                yield from products(inner)


@pytest.mark.parametrize("adjoint", [klprojax.UnrolledAdjoint(), klprojax.ImplicitAdjoint()])
def test_belief_propagation_asks_for_full_precision(adjoint):
    rng = np.random.default_rng(0)
    scopes = [(0, 1), (1, 2), (0, 2), (0, 1, 2)]
    graph = klprojax.FactorGraph([3] * 3, scopes)
    tables = graph.pack([rng.normal(size=(3,) * len(s)) for s in scopes], np.float32)

    def loss(tables):
        solver = klprojax.BeliefPropagation(engine="fast")
        solution = klprojax.infer(graph, tables, solver, max_steps=3, adjoint=adjoint, throw=False)
        return jnp.sum(solution.log_beliefs[0][:, 0])

    found = list(products(jax.make_jaxpr(jax.value_and_grad(loss))(tables).jaxpr))
    full = jax.lax.Precision.HIGHEST
    # The factors' contractions and, of the implicit adjoint, the solver's inner products.
    assert len(found) > 10
    assert set(found) == {(full, full)}


def test_exact_inference_and_circuits_ask_for_full_precision():
    graph = klprojax.FactorGraph([2] * 3, [(0, 1), (1, 2)])
    tables = graph.pack([np.ones((2, 2))] * 2, np.float32)

    def log_partition(tables):
        return klprojax.infer(graph, tables, klprojax.Elimination(), throw=False).log_partition

    builder = circuits.CircuitBuilder([2])
    leaves = [builder.indicator(0, state) for state in (0, 1)]
    circuit, log_weights, _ = builder.build(builder.sum(leaves, np.log([0.5, 0.5])))

    def means(log_weights):
        return circuits.expected_values(circuit, log_weights)

    for function, given in (
        (lambda t: jax.jvp(log_partition, (t,), (t,)), tables),
        (means, jnp.asarray(log_weights, jnp.float32)),
    ):
        found = list(products(jax.make_jaxpr(function)(given).jaxpr))
        assert found
        assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
