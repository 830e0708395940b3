"""Proposition 3.1: belief propagation as a hybrid of KL projections, and what T_Proj computes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..geometry import ConsensusFace, ProductFamily
from ..graphs import FactorGraph, Structured
from ..operators import (
    BeliefPropagation,
    DykstraHybrid,
    Elimination,
    Or,
    Parity,
    TreeSweep,
    infer,
    t_proj,
    t_proj_dense,
)
from ..projections import Dykstra, LogTables, compose, left, right
from ._measure import as_given, at_least, by_precision, in_window, largest_difference, normalized
from ._models import (
    Replicas,
    beliefs,
    enumerated_marginals,
    fixed_point,
    flood,
    joint_log_table,
    random_cycle,
    random_tree,
    uniform_messages,
    with_zeros,
)
from ._registry import statement

_STEPS = 6
_MODELS = 5
_POWER = "b_i to the power of its copies"
_CORRECTED = "fixed by the corrected map"

_t_proj_dense = jax.jit(t_proj_dense, static_argnums=1)
_SPACE, _SCHEME = LogTables(), Dykstra()


@functools.partial(jax.jit, static_argnums=1)
def _hybrid_step(state: tuple[Any, Any, Any], consensus: ConsensusFace) -> tuple[Any, ...]:
    """Do one iteration as printed on dense tables: the next `(q, σ, τ)`, then `k` and `r`."""
    product, agree = right(ProductFamily()), left(consensus)
    new = _SCHEME.step(_SPACE, (product, compose(product, agree)), state)
    q, sigma, tau = state
    k = product(_SPACE.point(_SPACE.combine((1, q), (1, sigma))))
    r = agree(_SPACE.point(_SPACE.combine((1, k), (1, tau))))
    return *new, k, r


def _axis_marginals(log_table: Any) -> list[np.ndarray]:
    probs = np.exp(np.asarray(log_table, np.float64))
    axes = range(probs.ndim)
    return [probs.sum(axis=tuple(b for b in axes if b != a)) for a in axes]


@statement("Section 3.1, T_Proj", "two dense projections vs enumeration, on a cycle")
def t_proj_is_exact(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that `T_Proj(q_{-1})` is the product of the exact marginals, on a loopy graph too.

    Source: section 3.1, definition of T_Proj.
    """
    model = random_cycle(seed, size)
    graph, log_potentials = model.build(dtype)
    replicas = Replicas(graph)
    value = _t_proj_dense(replicas.lift.log_table(log_potentials), replicas.lift.copies)
    exact = enumerated_marginals(model)
    want = {(k, v): np.log(exact[v]) for k, v in replicas.edges}
    # Probabilities: sums over a few hundred assignments.
    return (
        largest_difference(jnp.exp(value), np.exp(replicas.log_product(want))),
        by_precision(dtype, 1e-13, 1e-5),
    )


@statement("Section 3.1, T_Proj", "variable elimination vs enumeration, on a cycle")
def t_proj_by_elimination(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that variable elimination computes `T_Proj(q_{-1})` on a loopy graph.

    Source: section 3.1, definition of T_Proj.
    """
    model = random_cycle(seed, size)
    graph, log_potentials = model.build(dtype)
    got = infer(graph, log_potentials, Elimination()).marginals
    # Probabilities: sums over a few hundred assignments.
    return (
        largest_difference(graph.unpack_variables(got), enumerated_marginals(model)),
        by_precision(dtype, 1e-13, 1e-5),
    )


@statement("Proposition 3.1", "the hybrid as printed, dense, vs sum-product in numpy, 6 iterates")
def proposition_3_1_iterates(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that the hybrid's iterates are those of normalised sum-product, on a loopy graph.

    `q_n` must be the beliefs, `k_n` the factors' marginals `m_{i→k} m_{k→i}`, and `r_n` the beliefs
    on the diagonal, where all copies agree, and nothing off it.

    Source: Proposition 3.1 and the iteration above it.
    """
    model = random_cycle(seed, size)
    graph, log_potentials = model.build(dtype)
    replicas = Replicas(graph)
    q = replicas.lift.log_table(log_potentials)
    zero = jnp.zeros_like(q)
    state = q, zero, zero
    messages, gaps = uniform_messages(model), []
    for _ in range(_STEPS):
        *state, k, r = _hybrid_step(tuple(state), replicas.lift.consensus)
        messages, incoming = flood(model, messages)
        agreed = beliefs(model, messages)
        log_q = {(k, v): np.log(agreed[v]) for k, v in replicas.edges}
        log_k = {e: np.log(normalized(messages[e] * incoming[e])) for e in replicas.edges}
        for got, want in ((state[0], log_q), (k, log_k)):
            gaps.append(largest_difference(jnp.exp(got), np.exp(replicas.log_product(want))))
        gaps.append(largest_difference(jnp.exp(r), replicas.on_diagonal(agreed)))
    # Probabilities; the corrections add up six logarithms of size ten.
    return float(np.max(gaps)), by_precision(dtype, 1e-12, 1e-4)


@statement("Proposition 3.1", "the hybrid, factored, vs sum-product in numpy, 6 iterates")
def proposition_3_1_factored(seed: int = 0, size: int = 6, dtype: Any = None) -> Any:
    """Check the same of the hybrid in factored form, on a larger loopy graph.

    Source: Proposition 3.1.
    """
    model = random_cycle(seed, size)
    graph, log_potentials = model.build(dtype)
    solver = DykstraHybrid()
    step = jax.jit(lambda state: solver.step(graph, log_potentials, state))
    state = jax.jit(lambda tables: solver.init(graph, tables))(log_potentials)
    messages, gaps = uniform_messages(model), []
    for _ in range(_STEPS):
        state = step(state)
        messages, _ = flood(model, messages)
        got = [np.exp(table) for table in graph.unpack_variables(state.log_q)]
        gaps.append(largest_difference(got, beliefs(model, messages)))
    # Probabilities: six steps of sums of a few products.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Proposition 3.1, zeros", "hybrid, BP and elimination vs numpy, factors with zeros")
def proposition_3_1_zeros(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check the same where factors have zeros, which move the iteration to faces of the simplices.

    The factored hybrid, sum-product step by step, in one loop and without compiling; and the exact
    log-marginals by enumeration, where log-tables reach from -300 to 300 too.

    Source: Proposition 3.1; section 3.1, "Projections with faces".
    """
    model = with_zeros(random_cycle(seed, size), seed)
    graph, log_potentials = model.build(dtype)
    hybrid, sums = DykstraHybrid(), BeliefPropagation(tolerance=0.0)
    solvers = hybrid, sums
    states = [jax.jit(lambda t, s=s: s.init(graph, t))(log_potentials) for s in solvers]
    steps = [jax.jit(lambda state, s=s: s.step(graph, log_potentials, state)) for s in solvers]
    messages, gaps = uniform_messages(model), []
    for _ in range(_STEPS):
        states = [step(state) for step, state in zip(steps, states, strict=True)]
        messages, _ = flood(model, messages)
        log_q = graph.unpack_variables(states[0].log_q)
        gaps.append(largest_difference([np.exp(t) for t in log_q], beliefs(model, messages)))
        if not all(0 <= float(state.residual) < 2 for state in states):
            raise ValueError("a residual is no difference of probabilities")
    loop = jax.jit(lambda t: infer(graph, t, sums, init=states[1], max_steps=1).beliefs)
    start = jax.jit(lambda t: infer(graph, t, sums, max_steps=_STEPS + 1).beliefs)
    whole = infer(graph, log_potentials, sums, max_steps=_STEPS + 1)
    messages, _ = flood(model, messages)
    for found in (loop(log_potentials), start(log_potentials), whole.beliefs):
        gaps.append(largest_difference(graph.unpack_variables(found), beliefs(model, messages)))

    tables = tuple(as_given(100 * table, dtype) for table in model.log_tables)
    wide = model._replace(log_tables=tables)
    graph, log_potentials = wide.build(dtype)
    joint = joint_log_table(wide)
    exact = infer(graph, log_potentials, Elimination())
    scale = max(abs(joint[joint > -np.inf]))
    log_z = np.logaddexp.reduce(joint, axis=None)
    gaps.append(abs(float(exact.log_partition) - log_z) / scale)
    for v, log_p in enumerate(graph.unpack_variables(exact.log_beliefs)):
        others = tuple(a for a in range(joint.ndim) if a != v)
        want = np.logaddexp.reduce(joint, axis=others) - log_z
        if not np.array_equal(np.isneginf(log_p), np.isneginf(want)):
            raise ValueError("a possible state was excluded, or the other way round")
        some = want > -np.inf
        gaps.append(np.abs(np.asarray(log_p, float)[some] - want[some]).max() / scale)
    # Probabilities, and log-probabilities relative to the largest.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Proposition 3.1 (i)", "one sweep on a tree vs two dense projections vs enumeration")
def proposition_3_1_i(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check: if G is a tree, one upward-downward pass computes `T_Proj(q_{-1})`: exact marginals.

    Source: Proposition 3.1 (i).
    """
    model = random_tree(seed, size)
    graph, log_potentials = model.build(dtype)
    solution = infer(graph, log_potentials, BeliefPropagation(schedule=TreeSweep()))
    if int(solution.steps) != 1:
        raise ValueError(f"a tree took {int(solution.steps)} sweeps, not one")
    sweep = graph.unpack_variables(solution.marginals)
    dense = jax.jit(lambda tables: t_proj(graph, tables, method="dense"))(log_potentials)
    projected = [np.exp(table) for table in graph.unpack_variables(dense)]
    exact = enumerated_marginals(model)
    # Probabilities: sums over a few hundred assignments.
    return (
        largest_difference((sweep, projected), (exact, exact)),
        by_precision(dtype, 1e-13, 1e-5),
    )


def _copies_of_beliefs(seed: int, size: int, dtype: Any) -> tuple[Any, ...]:
    """Return a loopy model, its fixed point and what T_Proj makes of copies of its beliefs."""
    model = random_cycle(seed, size)
    graph, _ = model.build(dtype)
    replicas = Replicas(graph)
    fixed = beliefs(model, fixed_point(model))
    log_q = replicas.log_product({(k, v): np.log(fixed[v]) for k, v in replicas.edges})
    value = _t_proj_dense(jnp.asarray(log_q, dtype), replicas.lift.copies)
    return replicas, fixed, _axis_marginals(value)


@statement(
    "Proposition 3.1 (ii)",
    "T_Proj of a fixed point's beliefs, copied, vs the beliefs",
    reading="taken literally",
    expected=False,
)
def proposition_3_1_ii_literal(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check the literal claim that fixed points of normalised BP are fixed points of `T_Proj`.

    They are not: `T_Proj(⊗ b_i)` is proportional to `b_i` to the power of its number of copies. The
    residual is the largest of five random models: beliefs near the uniform one hardly move.

    Source: Proposition 3.1 (ii).
    """
    gaps, known = [], []
    for k in range(_MODELS):
        replicas, fixed, got = _copies_of_beliefs(_MODELS * seed + k, size, dtype)
        gaps.append(largest_difference(got, [fixed[v] for _, v in replicas.edges]))
        powers = [
            normalized(belief ** len(axes))
            for belief, axes in zip(fixed, replicas.lift.copies, strict=True)
        ]
        known.append(largest_difference(powers, fixed))
    # Per cent: a residual above is no rounding error.
    return in_window(float(np.max(gaps)), float(np.max(known)), dtype), 1e-2


@statement(
    "Proposition 3.1 (ii)",
    "T_Proj of a fixed point's beliefs, copied, vs powers of the beliefs",
    reading=_POWER,
)
def proposition_3_1_ii_powers(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check what `T_Proj` makes of the copies of beliefs: `b_i^(copies)`, normalised.

    Source: Proposition 3.1 (ii); the reason why its literal reading fails.
    """
    replicas, fixed, got = _copies_of_beliefs(seed, size, dtype)
    counts = [len(axes) for axes in replicas.lift.copies]
    want = [normalized(fixed[v] ** counts[v]) for _, v in replicas.edges]
    # Probabilities: sums over a few hundred entries.
    return largest_difference(got, want), by_precision(dtype, 1e-13, 1e-5)


@statement(
    "Proposition 3.1 (ii)",
    "a fixed point's (q, σ, τ) before and after one iteration",
    reading=_CORRECTED,
)
def proposition_3_1_ii_corrected(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that a fixed point of normalised BP is one of the map `(q, σ, τ) ↦ (q', σ', τ')`.

    The corrections hold the messages: `σ = log q_{-1} - Σ log m_{k→i}`, `τ = -Σ log m_{i→k}`. The
    fixed point comes from sum-product in numpy.

    Source: Proposition 3.1 (ii), for the iteration above it.
    """
    model = random_cycle(seed, size)
    graph, log_potentials = model.build(dtype)
    replicas = Replicas(graph)
    messages = fixed_point(model)
    fixed = beliefs(model, messages)
    log_q = replicas.log_product({(k, v): np.log(fixed[v]) for k, v in replicas.edges})
    pulled = replicas.log_product({edge: np.log(messages[edge]) for edge in replicas.edges})
    sigma = np.asarray(replicas.lift.log_table(log_potentials), np.float64) - pulled
    tau = pulled - log_q
    q, s, t = (jnp.asarray(table, dtype) for table in (log_q, sigma, tau))
    after, *corrections, _, _ = _hybrid_step((q, s, t), replicas.lift.consensus)
    gaps = [largest_difference(jnp.exp(after), np.exp(log_q))]
    for got, want in zip(corrections, (sigma, tau), strict=True):
        # Corrections mean something up to a constant.
        got = np.asarray(got, np.float64)
        gaps.append(largest_difference(got - got.mean(), want - want.mean()))
    # Logarithms of size ten, added a few times.
    return float(np.max(gaps)), by_precision(dtype, 1e-12, 1e-4)


@statement("Section 3.1, rules", "belief propagation with a rule on a tree vs enumeration in numpy")
def section_3_1_rules(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check factors that are rules instead of tables: weights of some bit being 1, and of parity.

    Source: section 3.1, messages of a factor, here by a sweep over its bits. `size` is the number
    of bits of the rule.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    axes, states, gaps = range(size), np.indices((2,) * size), []
    for rule, outcome in ((Or(), states.any(axis=0)), (Parity(), states.sum(axis=0) % 2)):
        evidence, weights = rng.normal(size=(size, 2)), rng.normal(size=2)
        evidence, weights = as_given(evidence, dtype), as_given(weights, dtype)
        graph = FactorGraph([2] * size, [Structured([tuple(axes)], rule)])
        found = infer(
            graph,
            graph.pack([weights], dtype),
            BeliefPropagation(),
            log_evidence=graph.log_evidence(dict(enumerate(evidence)), dtype),
        )
        joint = weights[outcome.astype(int)] + sum(evidence[v][states[v]] for v in axes)
        total = np.log(np.exp(joint).sum())
        joint = np.exp(joint - total)
        want = [joint.sum(axis=tuple(set(axes) - {v})) for v in axes]
        gaps += [
            largest_difference(graph.unpack_variables(found.beliefs), want),
            largest_difference(found.log_partition, total),
        ]
    # Probabilities, and a logarithm of size one.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)
