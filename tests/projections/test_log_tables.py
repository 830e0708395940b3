"""The programs of the paper as instances: the same `iterate` on spaces of log-tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import (
    BeliefPropagation,
    FactorGraph,
    ImplicitAdjoint,
    UnrolledAdjoint,
    infer,
    t_proj,
)
from klprojax.circuits import em_step, factorised_mixture
from klprojax.geometry import MarginalConstraints, ProductFamily
from klprojax.graphs._replication import ReplicatedLift
from klprojax.projections import Cyclic, Dykstra, LogTables, compose, iterate, left, right


def loopy(dtype=jnp.float64):
    """A cycle of unequal cardinalities, its replicated lift and the product of its factors."""
    rng = np.random.default_rng(0)
    graph = FactorGraph([2, 3, 2], [(0, 1), (1, 2), (2, 0)])
    tables = [rng.normal(size=shape) for shape in ((2, 3), (3, 2), (2, 2))]
    log_potentials = graph.pack(tables, dtype)
    return graph, log_potentials, ReplicatedLift(graph)


def projections(lift):
    product, agree = right(ProductFamily()), left(lift.consensus)
    return product, compose(product, agree)


def read(lift, log_table):
    return lift.read_variables(ProductFamily().marginals(log_table))


def beliefs(graph, state):
    """Products of the messages into each variable, in numpy."""
    out = []
    for table, rows in zip(state.messages, graph.wiring.edges, strict=True):
        total = np.zeros((int(np.max(rows)) + 1, table.shape[1]))
        np.add.at(total, np.asarray(rows), np.asarray(table, np.float64))
        out.append(total - np.log(np.exp(total).sum(axis=1, keepdims=True)))
    return tuple(out)


def close(got, want, atol):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_one_step_is_t_proj():
    graph, log_potentials, lift = loopy()
    _, both = projections(lift)
    once = iterate(Cyclic(), (both,), lift.log_table(log_potentials), max_steps=1, tolerance=0)
    # Logarithms of sums of a hundred terms.
    close(read(lift, once.value), t_proj(graph, log_potentials, method="elimination"), 1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_belief_propagation_is_dykstra(dtype):
    graph, log_potentials, lift = loopy(dtype)
    start = lift.log_table(log_potentials)
    # Six to ten steps of sums of a hundred terms.
    atol = 1e-12 if dtype == jnp.float64 else 2e-5
    space, scheme = LogTables(), Dykstra()
    step = jax.jit(lambda state: scheme.step(space, projections(lift), state))
    state = scheme.init(space, projections(lift), start)
    solver = BeliefPropagation(tolerance=0.0, engine="log")
    messages = solver.init(graph, log_potentials)
    flood = jax.jit(lambda state: solver.step(graph, log_potentials, state))
    for _ in range(6):
        state, messages = step(state), flood(messages)
        assert state[0].dtype == dtype
        close(read(lift, scheme.read(state)), beliefs(graph, messages), atol)


def test_sinkhorn_is_cyclic_projection_onto_marginals():
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(4, 5))
    rows, columns = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5))
    sets = [MarginalConstraints([((k,), jnp.log(t))]) for k, t in enumerate((rows, columns))]
    plan, want = jnp.asarray(kernel), np.exp(kernel)
    for _ in range(5):
        plan = iterate(Cyclic(), [left(s) for s in sets], plan, max_steps=1, tolerance=0).value
        want = want * (rows / want.sum(axis=1))[:, None]
        want = want * (columns / want.sum(axis=0))[None]
        # Five sweeps of sums of five terms.
        close(jnp.exp(plan), want, 1e-14)
    fused = MarginalConstraints([((0,), jnp.log(rows)), ((1,), jnp.log(columns))])
    limit = iterate(Cyclic(), [left(s) for s in sets], jnp.asarray(kernel), tolerance=1e-14)
    # Both stop at 1e-14 over one minus the rate of convergence.
    close(
        jnp.exp(limit.value),
        jnp.exp(fused.left_projection(jnp.asarray(kernel), tolerance=1e-14).value),
        1e-12,
    )


def mixture_family(log_table):
    """Right projection of a table ``[z, x_1, x_2]`` onto ``p(z) p(x_1|z) p(x_2|z)``."""
    probs = jnp.exp(log_table)
    prior = probs.sum(axis=(1, 2))
    first, second = probs.sum(axis=2), probs.sum(axis=1)
    joint = first[:, :, None] * second[:, None, :] / prior[:, None, None]
    return jnp.log(joint / joint.sum())


def test_em_alternates_data_and_family():
    rng = np.random.default_rng(2)
    circuit = factorised_mixture([2, 3], units=2)
    parameters = circuit.init(0, dtype=jnp.float64)
    rows = np.stack([rng.integers(2, size=40), rng.integers(3, size=40)], axis=1)
    seen = np.zeros((2, 3))
    np.add.at(seen, tuple(rows.T), 1 / len(rows))
    states = np.stack(np.meshgrid(range(2), range(3), indexing="ij"), axis=-1).reshape(-1, 2)

    def marginal(parameters):
        return circuit.log_values(parameters, states).reshape(2, 3)

    data = left(MarginalConstraints([((1, 2), jnp.log(seen))]))
    # The joint of the component and both variables.
    inputs = circuit.init(0, dtype=jnp.float64)
    log_root = jax.nn.log_softmax(inputs.log_root.reshape(-1))
    blocks = np.asarray(circuit.structure.input_blocks)
    leaf = [jax.nn.log_softmax(inputs.log_inputs[b], axis=1) for b in blocks]
    log_q = log_root[:, None, None] + leaf[0][:, :2, None] + leaf[1][:, None, :3]
    np.testing.assert_allclose(
        jax.nn.logsumexp(log_q, axis=0), marginal(parameters), rtol=0, atol=1e-13
    )
    for _ in range(4):
        log_q = iterate(Cyclic(), (data, mixture_family), log_q, max_steps=1, tolerance=0).value
        parameters, _ = em_step(circuit, parameters, jnp.asarray(rows))
        # Four steps of sums of forty terms.
        close(jax.nn.logsumexp(log_q, axis=0), marginal(parameters), 1e-12)


def test_states_excluded_stay_excluded():
    rng = np.random.default_rng(3)
    graph = FactorGraph([2, 2], [(0, 1), (0,)])
    hard = np.where(np.eye(2) > 0, rng.normal(size=(2, 2)), -np.inf)
    log_potentials = graph.pack([hard, rng.normal(size=2)])
    lift = ReplicatedLift(graph)
    found = iterate(Dykstra(), projections(lift), lift.log_table(log_potentials))
    assert not np.isnan(found.value).any()
    # A tree: the fixed point is exact. The tolerance of the iteration is 4e-11.
    close(read(lift, found.value), t_proj(graph, log_potentials), 1e-9)


def test_derivatives_are_those_of_belief_propagation():
    graph, log_potentials, lift = loopy()

    def ours(log_potentials):
        start = lift.log_table(log_potentials)
        value = iterate(Dykstra(), projections(lift), start, tolerance=1e-13, max_steps=60).value
        return read(lift, value)[0][0, 0]

    def theirs(log_potentials):
        solver = BeliefPropagation(tolerance=1e-13)
        return infer(graph, log_potentials, solver, max_steps=60).log_beliefs[0][0, 0]

    # Both are derivatives of the last of some twenty iterates.
    close(jax.jit(jax.grad(ours))(log_potentials), jax.grad(theirs)(log_potentials), 1e-10)


def fixed_point(t, adjoint):
    """A contraction that closes over a number; its fixed point is found by iterating it."""
    shift = jnp.stack([t, t**2, -t])

    def contract(log_table):
        return jax.nn.log_softmax(0.5 * jnp.sin(log_table) + shift)

    start = jnp.zeros(3)
    value = iterate(Cyclic(), (contract,), start, tolerance=1e-14, adjoint=adjoint).value
    return value[0]


@pytest.mark.parametrize("adjoint", [UnrolledAdjoint(), ImplicitAdjoint()])
def test_what_a_function_closes_over_is_differentiated(adjoint):
    def f(t):
        return fixed_point(t, adjoint)

    step = 1e-5
    want = (f(0.3 + step) - f(0.3 - step)) / (2 * step)
    # Central differences err by 1e-10 times third derivatives of order one.
    np.testing.assert_allclose(jax.grad(f)(0.3), want, rtol=0, atol=1e-8)
    np.testing.assert_allclose(jax.jvp(f, (0.3,), (1.0,))[1], want, rtol=0, atol=1e-8)
    both = jax.vmap(jax.grad(f))(jnp.array([0.3, -0.2]))
    np.testing.assert_allclose(both[0], want, rtol=0, atol=1e-8)


def test_an_implicit_derivative_in_the_start_is_refused():
    _, log_potentials, lift = loopy()

    def f(start):
        found = iterate(Dykstra(), projections(lift), start, adjoint=ImplicitAdjoint())
        return found.value[(0,) * 6]

    start = lift.log_table(log_potentials)
    f(start)
    with pytest.raises(ValueError, match="implicit derivative in `start`"):
        jax.grad(f)(start)


def test_batches_of_tables():
    space = LogTables(batch=1)
    tables = jnp.log(jnp.array([[1.0, 3.0], [2.0, 2.0]]))
    np.testing.assert_allclose(jnp.exp(space.point(tables)), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    log_table = jnp.array([-jnp.inf, 0.0, -1.0])
    minus = space.combine((1, jnp.zeros((1, 3))), (-1, log_table[None]))
    # Off the face of what is subtracted there is no correction.
    np.testing.assert_array_equal(minus[0], [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(space.combine((1, minus), (1, log_table[None]))[0][0], -np.inf)
