"""Proposition 3.1: the Dykstra-type hybrid of KL projections, in the paper's own variables.

One iteration, on the replicated space with one axis an edge:

    k_n = π→_𝒫(∇f*(∇f(q_{n-1}) + σ_{n-1}))      σ_n = ∇f(q_{n-1}) + σ_{n-1} - ∇f(k_n)
    r_n = π←_𝒬(∇f*(∇f(k_n) + τ_{n-1}))           τ_n = ∇f(k_n) + τ_{n-1} - ∇f(q_n)
    q_n = π→_𝒫(r_n)

It is the scheme `Dykstra` of ``klprojax.projections`` with the projections ``π→_𝒫`` and ``π→_𝒫 ∘
π←_𝒬``, on dense joint tables. By Proposition 3.1 it is normalised flooding belief propagation,
iterate by iterate. `DykstraHybrid` is its factored form, where 𝒫 makes every table a product over
edges.

Zeros. Dual coordinates are those of the face a table lives on (section 3.1, "Projections with
faces"). A state that ``k_n`` or ``q_n`` excludes has left the face; its correction would be
``-inf - -inf`` and is kept as 0. Nothing is lost: an excluded state stays excluded, because every
later table is added to ``log q_n = -inf`` there.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._adjoint import AbstractAdjoint
from .._sharding import on_any_mesh
from .._solution import RESULTS, Solution
from .._types import FactorTables, VariableTables
from ..geometry import ProductFamily, log_normalize
from ..graphs import FactorGraph
from ._bethe import bethe_log_partition
from ._messages import (
    Messages,
    batched,
    by_class,
    by_group,
    change,
    dense,
    joint,
    largest,
    reach,
    totals,
    uniform_messages,
)
from ._solver import AbstractIterativeSolver, verdict


class HybridState(eqx.Module):
    """The iterate in factored form: tables on edges and variables.

    On the copies of factor k the paper's ``σ_n`` is ``log f_k`` plus the edges' ``sigma``: the part
    ``log f_k`` never changes and is not stored. Constants, which normalisation removes, are fixed
    by ``sigma = -log m_{k→i}`` and ``tau = log m_{k→i} - log b_i``, messages and beliefs
    normalised (so that a zero correction is stored as ``log states``). An excluded state has
    correction 0.

    Attributes:
        log_k: ``k_n``, the factors' marginals ``m_{i→k} m_{k→i}``, per cardinality
            ``[edges, states]``.
        sigma: edge part of ``σ_n``, laid out like ``log_k``.
        log_q: ``q_n``, the beliefs ``b_i``, one table for all copies of a variable, per
            cardinality ``[variables, states]``. ``r_n`` holds the same numbers on the diagonal.
        tau: ``τ_n = -log m_{i→k}`` up to a constant, laid out like ``log_k``.
        residual: largest change of a message or a belief in the last step.
    """

    log_k: Messages
    sigma: Messages
    log_q: VariableTables
    tau: Messages
    residual: Float[Array, ""]


class DykstraHybrid(AbstractIterativeSolver):
    """Iterate the Dykstra-type hybrid of KL projections in factored form.

    Named fused implementation of ``iterate(Dykstra(), (right(P), compose(right(P), left(Q))), q)``
    on the replicated lift of a factor graph: P the products over all copies, Q the face on which
    the copies of each variable agree, q the product of the factors.

    The iterates are those of `BeliefPropagation` with the `Flooding` schedule (Proposition 3.1);
    this solver is the projection reading of it, for study and comparison. Every variable has one
    more copy, whose factor is its evidence. `init` with evidence starts after that copy's first
    message, as belief propagation does; without, the first iteration has to bring it.

    Args:
        tolerance: stop when the probabilities of no message and no belief change by this much in
            a step. With 0 the loop runs all ``max_steps`` and that counts as success.

    `init`, `step` and `terminate` drive the loop by hand. A state that an iterate excludes stays
    excluded, so a warm start (``infer(..., init=)``) may add zeros to potentials and evidence but
    not take them back; `BeliefPropagation` can.

    Raises:
        ValueError: negative tolerance.

    Reference: section 3.1, Proposition 3.1; Walsh and Regalia (2010), theorem 1. Plain numpy
    version: tests/reference/bp_sweep.py.
    """

    tolerance: float = eqx.field(static=True, default=1e-6)

    def __check_init__(self):
        if not self.tolerance >= 0.0:
            raise ValueError(f"tolerance is {self.tolerance}; it must be at least 0.")

    def init(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None = None,
    ) -> HybridState:
        """``q_{-1} ∝ prod_k f_k`` with ``σ_{-1} = τ_{-1} = 0``: uniform edges, ``f_k`` beside.

        With evidence, every edge starts at ``q ∝ exp(log_evidence)`` and ``τ = -log q`` instead.

        Args:
            graph: the structure.
            log_potentials: factor tables in nats.
            log_evidence: tables in nats, or None.
        """
        arrays = (*log_potentials, *(log_evidence or ()))
        dtype = arrays[0].dtype if arrays else jnp.zeros(0).dtype
        uniform = uniform_messages(graph, dtype)
        if log_evidence is None:
            log_evidence = tuple(
                jnp.zeros((count, card), dtype)
                for card, count in zip(
                    graph.signature.cardinalities, graph.signature.counts, strict=True
                )
            )
        log_q = tuple(log_normalize(table, axis=1) for table in log_evidence)
        sigma = jax.tree.map(jnp.negative, uniform)
        tau = jax.tree.map(_minus, uniform, _on_edges(graph, log_q))
        return HybridState(uniform, sigma, log_q, tau, jnp.full((), jnp.inf, dtype))

    @on_any_mesh()
    def step(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        state: HybridState,
        log_evidence: VariableTables | None = None,
    ) -> HybridState:
        """One iteration: both projections and both corrections.

        Args:
            graph: the structure.
            log_potentials: factor tables in nats.
            state: the iterate before.
            log_evidence: tables in nats, or None.
        """
        return _step(graph, dense(graph, batched(graph, log_potentials)), state, log_evidence)

    def solve(
        self,
        graph: FactorGraph,
        log_potentials: FactorTables,
        log_evidence: VariableTables | None,
        *,
        max_steps: int,
        adjoint: AbstractAdjoint,
        init: Any,
        factor_beliefs: bool,
    ) -> Solution:
        """See `infer`."""
        state = self.init(graph, log_potentials, log_evidence) if init is None else init
        return _solve(
            self, graph, log_potentials, log_evidence, state, max_steps, adjoint, factor_beliefs
        )


def _step(
    graph: FactorGraph,
    tables: FactorTables,
    state: HybridState,
    log_evidence: VariableTables | None,
) -> HybridState:
    """One iteration; ``tables`` with a factor axis."""
    # k_n: the joint of all copies factorises over the factors, and so does its projection onto 𝒫.
    log_k = by_class(
        graph,
        tuple(
            jax.vmap(ProductFamily().marginals)(table) if group.shape else ()
            for table, group in zip(
                _corrected(graph, tables, state), graph.signature.groups, strict=True
            )
        ),
        state.residual.dtype,
    )
    # The argument of the I-projection: on every edge the message m_{k→i}.
    messages = jax.tree.map(lambda k, tau: log_normalize(k + tau, axis=1), log_k, state.tau)
    # Printed: σ_n = log q_{n-1} + σ_{n-1} - log k_n. On an edge log q + σ + τ is constant from the
    # start on, so this is -(log k_n + τ_{n-1}). Written so, rounding does not pile up in σ.
    sigma = jax.tree.map(lambda m: _minus(jnp.zeros_like(m), m), messages)
    # r_n: the I-projection of a product onto agreement is the product of the copies on the
    # diagonal (`consensus_of_copies`), the copy that holds the evidence among them.
    log_q = tuple(
        log_normalize(total.value(), axis=1) for total in totals(graph, messages, log_evidence)
    )
    tau = jax.tree.map(_minus, messages, _on_edges(graph, log_q))
    span = reach(graph, tables, log_evidence)
    changes = [
        change(new, old, span)
        for new, old in zip(
            jax.tree.leaves((messages, log_q)),
            jax.tree.leaves((_messages(state), state.log_q)),
            strict=True,
        )
    ]
    # The residual steers the loop; no derivative passes through it.
    residual = lax.stop_gradient(largest(changes, state.residual.dtype))
    return HybridState(log_k, sigma, log_q, tau, residual)


@eqx.filter_jit
def _solve(
    solver: DykstraHybrid,
    graph: FactorGraph,
    log_potentials: FactorTables,
    log_evidence: VariableTables | None,
    state: HybridState,
    max_steps: int,
    adjoint: AbstractAdjoint,
    factor_beliefs: bool,
) -> Solution:
    tables = dense(graph, batched(graph, log_potentials))

    def step(inputs, state):
        graph, tables, log_evidence = inputs
        state = _step(graph, tables, state, log_evidence)
        return state, solver.terminate(state)[0] | ~jnp.isfinite(state.residual)

    state, steps = adjoint.loop(step, (graph, tables, log_evidence), state, max_steps)
    log_beliefs = state.log_q
    _, end = solver.terminate(state)
    messages = _messages(state)
    at_variables = totals(graph, messages, log_evidence)
    log_partition = bethe_log_partition(graph, tables, messages, at_variables, "sum")
    return Solution(
        log_beliefs=log_beliefs,
        log_partition=log_partition,
        factor_log_beliefs=_factor_log_beliefs(graph, tables, state) if factor_beliefs else None,
        result=verdict(log_beliefs, log_partition, end, state.residual),
        residual=state.residual,
        steps=steps,
        converged=jnp.asarray(end == RESULTS.successful),
        state=state,
    )


def _corrected(graph: FactorGraph, tables: FactorTables, state: HybridState) -> FactorTables:
    """``∇f(q_n) + σ_n`` on every factor's copies, ``[factors, *states]``: ``f_k prod m_{i→k}``."""
    at_edges = jax.tree.map(jnp.add, _on_edges(graph, state.log_q), state.sigma)
    return tuple(
        jnp.broadcast_to(joint(table, edges), (group.count, *group.shape))
        for table, edges, group in zip(
            tables, by_group(graph, at_edges), graph.signature.groups, strict=True
        )
    )


def _factor_log_beliefs(
    graph: FactorGraph, tables: FactorTables, state: HybridState
) -> FactorTables:
    """``∇f*(∇f(q_n) + σ_n)``: what the next iteration projects onto 𝒫."""
    out = []
    for table, group in zip(_corrected(graph, tables, state), graph.signature.groups, strict=True):
        if group.shape:
            table = jax.vmap(log_normalize)(table)
        else:
            # The only distribution on no variables.
            table = jnp.zeros(group.count, table.dtype)
        out.append(table)
    return tuple(out)


def _messages(state: HybridState) -> Messages:
    """The messages ``m_{k→i}`` that ``σ_n`` holds; `-inf` on states that ``k_n`` excludes."""
    return jax.tree.map(
        lambda sigma, log_k: log_normalize(
            jnp.where(jnp.isneginf(log_k), -jnp.inf, -sigma), axis=1
        ),
        state.sigma,
        state.log_k,
    )


def _on_edges(graph: FactorGraph, log_q: VariableTables) -> Messages:
    """Copy every variable's table to its edges."""
    return tuple(table[rows] for table, rows in zip(log_q, graph.wiring.edges, strict=True))


def _minus(log_a: Array, log_b: Array) -> Array:
    """Subtract dual coordinates on the face where ``b`` lives; 0 off it."""
    off = jnp.isneginf(log_b)
    # Both branches stay finite where they are not taken, for the derivatives' sake.
    return jnp.where(off, 0.0, log_a) - jnp.where(off, 0.0, log_b)
