"""The obvious mistakes end in one error that says what came, what is expected, what to do."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import klprojax as kp
from klprojax import BeliefPropagation, Elimination, ImplicitAdjoint, infer, t_proj
from klprojax.codes import decode


@pytest.fixture(autouse=True)
def unchecked():
    """Without the tests' type checker, as users have it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def problem():
    model = kp.load_model("asia")
    return model, *model.to_graph()


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("bp", r"solver is 'bp'; expected an object.*Write Elimination\(\) or BeliefProp"),
        (Elimination, r"solver is the class Elimination; .* Write Elimination\(\)\."),
        (None, "solver is of type NoneType; expected an object"),
    ],
)
def test_a_solver_that_is_none(solver, message):
    _, graph, log_potentials = problem()
    with pytest.raises(ValueError, match=message):
        infer(graph, log_potentials, solver)


def test_options_that_are_classes_or_names():
    _, graph, log_potentials = problem()
    with pytest.raises(ValueError, match=r"adjoint is the class ImplicitAdjoint; .*Adjoint\(\)\."):
        infer(graph, log_potentials, Elimination(), adjoint=ImplicitAdjoint)
    with pytest.raises(ValueError, match=r"schedule is 'flooding'; .* Write Flooding\(\)"):
        BeliefPropagation(schedule="flooding")
    with pytest.raises(ValueError, match=r"schedule is the class TreeSweep; .* TreeSweep\(\)\."):
        BeliefPropagation(schedule=kp.TreeSweep)


@pytest.mark.parametrize("method", ["dense", "elimination", "infer"])
def test_a_model_in_place_of_a_graph_and_evidence_by_name(method):
    model, graph, log_potentials = problem()

    def call(graph, log_potentials, evidence=None):
        if method == "infer":
            return infer(graph, log_potentials, Elimination(), log_evidence=evidence)
        return t_proj(graph, log_potentials, evidence, method=method)

    with pytest.raises(
        ValueError, match=r"graph is of type DiscreteModel; .* graph, log_potentials = model.to_gr"
    ):
        call(model, log_potentials)
    with pytest.raises(ValueError, match=r"graph is of type list; .* FactorGraph\(\[2, 2\]"):
        call([(0, 1)], log_potentials)
    with pytest.raises(
        ValueError,
        match=r"log_evidence is of type dict; expected a tuple of arrays in nats, as graph.log_evi"
        r"dence\(\{0: 1\}\) makes them; model.evidence",
    ):
        call(graph, log_potentials, {"smoke": "yes"})
    with pytest.raises(ValueError, match=r"log_potentials is of type list; .* graph.pack"):
        call(graph, [[[0.0, 1.0]]])
    with pytest.raises(ValueError, match=r"log_potentials is of type ndarray; .* graph.pack"):
        call(graph, np.zeros(2))


def test_a_graph_in_place_of_a_model():
    _, graph, _ = problem()
    for verb in (kp.condition, kp.circuits.compile_model):
        with pytest.raises(ValueError, match=r"model is of type FactorGraph; .* DiscreteModel\(ca"):
            verb(graph)


def test_a_matrix_in_place_of_a_code():
    with pytest.raises(ValueError, match=r"code is of type ndarray; .* ParityCheckCode\(matrix\)"):
        decode(np.eye(2), np.zeros(2))


@pytest.mark.parametrize("dtype", ["complex128", "int64"])
def test_an_implicit_derivative_of_numbers_that_are_not_real(dtype):
    def end(x):
        def step(x, carry):
            return (0.5 * carry[0] + x, carry[1]), jnp.bool_(False)

        start = jnp.zeros(()), jnp.zeros((), dtype)
        return ImplicitAdjoint().loop(step, x, start, 60)[0][0]

    assert end(1.0) == pytest.approx(2.0, rel=1e-15)  # 0.5^60 from the limit
    with pytest.raises(ValueError, match=f"The carry has arrays of {dtype}; .*UnrolledAdjoint"):
        jax.grad(end)(1.0)


# -- what is printed -----------------------------------------------------------------------------


def test_a_solution_prints_its_verdict():
    _, graph, log_potentials = problem()
    text = repr(infer(graph, log_potentials, Elimination(), factor_beliefs=True))
    assert "result: successful\n" in text
    assert "exact: True, converged: True, steps: 0, residual: 0\n" in text
    assert f"log_beliefs: float64[{len(graph.cardinalities)},2]" in text
    assert "factor_log_beliefs: float64[" in text
    few = infer(graph, log_potentials, BeliefPropagation(), max_steps=1, throw=False)
    assert "result: not_converged (The messages were still changing" in str(few)
    assert "converged: False, steps: 1, residual: 0." in str(few)


def test_a_solution_prints_in_batches_and_while_traced():
    _, graph, log_potentials = problem()
    printed = []

    def solve(shift):
        tables = jax.tree.map(lambda t: t + shift, log_potentials)
        solution = infer(graph, tables, Elimination(), throw=False)
        printed.append(repr(solution))
        return solution

    many = jax.jit(jax.vmap(solve))(jnp.array([0.0, -jnp.inf, 1.0]))
    assert "result: not known yet\n  log_partition: float64[] nats" in printed[0]
    assert "results: 2 successful, 1 contradiction\n  log_partition: float64[3] nats" in repr(many)
    assert "result: not known yet" in repr(jax.eval_shape(solve, 0.0))
    assert "int" in repr(jax.tree.map(lambda _: 0, many))
