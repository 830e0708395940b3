"""`iterate` on spaces of log-tables: zeros, float32, derivatives, batches."""

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
from klprojax.geometry import ProductFamily
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


def test_in_float32_dykstra_is_belief_propagation_too():
    graph, log_potentials, lift = loopy(jnp.float32)
    start = lift.log_table(log_potentials)
    space, scheme = LogTables(), Dykstra()
    step = jax.jit(lambda state: scheme.step(space, projections(lift), state))
    state = scheme.init(space, projections(lift), start)
    solver = BeliefPropagation(tolerance=0.0, engine="log")
    messages = solver.init(graph, log_potentials)
    flood = jax.jit(lambda state: solver.step(graph, log_potentials, state))
    for _ in range(6):
        state, messages = step(state), flood(messages)
        assert state[0].dtype == jnp.float32
        # Six steps of sums of a hundred terms.
        close(read(lift, scheme.read(state)), beliefs(graph, messages), 2e-5)


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
        solver = BeliefPropagation(tolerance=1e-13, engine="log")
        return infer(graph, log_potentials, solver, max_steps=60).log_beliefs[0][0, 0]

    # Both are derivatives of the last of some twenty iterates.
    got, want = (jax.jit(jax.grad(f))(log_potentials) for f in (ours, theirs))
    close(got, want, 1e-10)


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
    both = jax.jit(jax.value_and_grad(f))
    want = (both(0.3 + step)[0] - both(0.3 - step)[0]) / (2 * step)
    # Central differences err by 1e-10 times third derivatives of order one.
    np.testing.assert_allclose(both(0.3)[1], want, rtol=0, atol=1e-8)
    forward = jax.jit(lambda t: jax.jvp(f, (t,), (1.0,))[1])(0.3)
    np.testing.assert_allclose(forward, want, rtol=0, atol=1e-8)
    batch = jax.jit(jax.vmap(jax.grad(f)))(jnp.array([0.3, -0.2]))
    np.testing.assert_allclose(batch[0], want, rtol=0, atol=1e-8)


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


def test_a_term_of_scale_zero_says_nothing():
    excluded, table = jnp.array([-jnp.inf, 0.0]), jnp.array([-1.0, -2.0])
    for terms in (((0, excluded), (1, table)), ((1, table), (0, excluded))):
        np.testing.assert_array_equal(LogTables().combine(*terms), table)


def test_the_default_tolerance_is_two_thirds_of_the_digits():
    # Halves the distance to (1/2, 1/2) in every step: it is at rest when a step changes no
    # probability by more than eps^(2/3).
    def halve(log_p):
        return jnp.log((jnp.exp(log_p) + 0.5) / 2)

    start = jnp.log(jnp.array([0.9, 0.1], jnp.float64))
    found = iterate(Cyclic(), (halve,), start)
    bar = np.finfo(np.float64).eps ** (2 / 3)
    wanted = next(n for n in range(1, 100) if 0.4 / 2**n <= bar)
    assert int(found.steps) == wanted
    np.testing.assert_allclose(found.residual, 0.4 / 2**wanted, rtol=1e-4)  # rounding of 1e-16
