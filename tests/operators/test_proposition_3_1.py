"""Proposition 3.1: a tree sweep is T_Proj; what belief propagation's fixed points are fixed by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

from klprojax import BeliefPropagation, DykstraHybrid, FactorGraph, TreeSweep, infer, t_proj
from klprojax.geometry import ProductFamily
from klprojax.graphs._replication import ReplicatedLift
from klprojax.operators import t_proj_dense
from klprojax.projections import Dykstra, LogTables, compose, left, right

from ._enumeration import build, by_edge, by_variable, models

ATOL = 1e-12  # probabilities, tens of roundings


def close(got, want, atol=ATOL):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


@functools.cache
def cycle():
    """Three binary variables on a cycle, with unequal fields and couplings."""
    model = {
        "cardinalities": [2, 2, 2],
        "scopes": [(0, 1), (1, 2), (2, 0)],
        "log_tables": [
            np.array([[0.9, -0.3], [0.1, 0.6]]),
            np.array([[0.4, 0.2], [-0.5, 1.1]]),
            np.array([[0.7, -0.1], [0.0, 0.8]]),
        ],
    }
    graph, log_potentials, _ = build(model)
    solution = infer(graph, log_potentials, BeliefPropagation(tolerance=1e-14), max_steps=2000)
    return model, graph, log_potentials, solution


def product(lift, per_axis):
    joint = jnp.zeros(lift.shape)
    for axis, table in enumerate(per_axis):
        shape = [1] * len(lift.shape)
        shape[axis] = -1
        joint = joint + jnp.asarray(table).reshape(shape)
    return joint


@settings(max_examples=3)
@given(model=models(forest=True, max_entries=2**8, max_factors=3, max_variables=4))
def test_i_one_sweep_computes_t_proj_on_trees(model):
    graph, log_potentials, _ = build(model)
    sweep = infer(graph, log_potentials, BeliefPropagation(schedule=TreeSweep()))
    assert int(sweep.steps) == 1
    dense = t_proj(graph, log_potentials, method="dense")
    close(sweep.marginals, tuple(jnp.exp(table) for table in dense))


def test_ii_a_fixed_point_is_fixed_by_the_corrected_map():
    model, graph, log_potentials, solution = cycle()
    lift = ReplicatedLift(graph)
    messages = by_edge(graph, solution.state.messages)
    beliefs = by_variable(graph, solution.log_beliefs)
    to_variable, copies = [np.empty(0)] * len(lift.shape), [np.empty(0)] * len(lift.shape)
    # Both binary axes keep their given order, and all factors are in one group.
    for axes, per_factor, scope in zip(lift.factor_axes[0], messages, model["scopes"], strict=True):
        for axis, message, v in zip(axes, per_factor, scope, strict=True):
            to_variable[axis], copies[axis] = message, beliefs[v]
    log_q = product(lift, copies)
    sigma = lift.log_table(log_potentials) - product(lift, to_variable)
    tau = product(lift, to_variable) - log_q
    factorise = right(ProductFamily())
    projections = factorise, compose(factorise, left(lift.consensus))
    step = jax.jit(lambda *state: Dykstra().step(LogTables(), projections, state))
    after, *corrections = step(log_q, sigma, tau)
    # The fixed point is known to the tolerance 1e-14 over one minus the contraction rate.
    close(jnp.exp(after), jnp.exp(log_q), 1e-10)
    for got, want in zip(corrections, (sigma, tau), strict=True):
        close(got - got.mean(), want - want.mean(), 1e-10)
    # The same in factored form: one more iteration from the hybrid's own fixed point.
    solver = DykstraHybrid(tolerance=1e-14)
    settled = infer(graph, log_potentials, solver, max_steps=2000).state
    moved = jax.jit(solver.step)(graph, log_potentials, settled)
    for name in ("log_k", "sigma", "log_q", "tau"):
        close(getattr(moved, name), getattr(settled, name), 1e-10)
    # Negative control: without the corrections it does move.
    zero = jnp.zeros_like(sigma)
    plain = step(log_q, zero, zero)[0]
    assert float(jnp.max(jnp.abs(jnp.exp(plain) - jnp.exp(log_q)))) > 1e-2


def test_ii_read_literally_has_a_counterexample():
    # T_Proj of the copies of a belief is proportional to its power b^degree, not to b.
    _, graph, _, solution = cycle()
    lift = ReplicatedLift(graph)
    beliefs = by_variable(graph, solution.log_beliefs)
    copies = [np.empty(0)] * len(lift.shape)
    for v, axes in enumerate(lift.copies):
        for axis in axes:
            copies[axis] = beliefs[v]
    got = np.exp(t_proj_dense(product(lift, copies), lift.copies))
    largest = 0.0
    for v, axes in enumerate(lift.copies):
        power = np.exp(len(axes) * beliefs[v])
        power = power / power.sum()
        for axis in axes:
            others = tuple(a for a in range(got.ndim) if a != axis)
            close(got.sum(axis=others), power, 1e-10)
        largest = max(largest, np.abs(power - np.exp(beliefs[v])).max())
    assert largest > 0.05


def test_degree_one_is_the_exception():
    # One copy each: nothing to agree on, and products are fixed.
    graph = FactorGraph([2, 3], [(0, 1)])
    lift = ReplicatedLift(graph)
    q = product(lift, [np.log([0.2, 0.8]), np.log([0.5, 0.3, 0.2])])
    close(np.exp(t_proj_dense(q, lift.copies)), np.exp(q))
