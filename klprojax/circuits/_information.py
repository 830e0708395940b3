"""Entropy, divergence and expectations, exact by one sweep."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._sharding import on_any_mesh
from .._types import Scalar, VariableTables
from ..geometry import finite_part, log_normalize, safe_log
from ._circuit import Circuit
from ._kinds import explicit_or_method, require_explicit
from ._leaves import AbstractContinuousLeaf, AbstractDiscreteLeaf
from ._properties import is_deterministic
from ._structure import is_indicator
from ._sweep import Sweep, sweep


@on_any_mesh()
def entropy(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    check: bool = True,
) -> Scalar:
    """Compute ``H(X | e) = -sum_x p(x|e) log p(x|e)`` of a deterministic circuit, in nats.

    Where one joint state has one parse, the entropy of the states is that of the parses:
    ``sum_s Pr(visit s) H(b_s) + sum_leaf Pr(visit leaf) H(leaf)``.

    Args:
        circuit: a deterministic circuit.
        log_weights: one per edge out of a sum node, nats, normalised or not.
        log_evidence: soft or hard evidence.
        leaf_parameters: one array per leaf group.
        check: prove determinism first (`is_deterministic`); without, the result is an upper bound
            for a circuit that is not deterministic (the entropy of states and parses).

    Returns:
        The entropy, a scalar in nats.

    Raises:
        ValueError: a circuit that is not shown to be deterministic.
    """
    require_explicit(circuit, "entropy")
    _require_deterministic(circuit, check)
    if log_evidence is None:
        log_evidence = circuit.log_evidence(dtype=log_weights.dtype)
    got = sweep(circuit, log_weights, log_evidence, leaf_parameters=leaf_parameters)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters)
    total = -jnp.sum(got.edge_probs * _finite_log(got.gates))
    for k, (group, theta) in enumerate(zip(circuit.groups, parameters, strict=True)):
        visits = got.visits[group.nodes]
        if isinstance(group.family, AbstractContinuousLeaf):
            total += jnp.sum(visits * group.family.entropy(theta))
        elif not is_indicator(group):
            log_probs = _leaf_posterior(circuit, k, theta, log_evidence)
            own = -jnp.sum(jnp.exp(log_probs) * finite_part(log_probs), axis=1)
            total += jnp.sum(visits * own)
    return total


@on_any_mesh()
def kl_divergence(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    other_log_weights: Float[Array, " weights"],
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    other_leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    check: bool = True,
) -> Scalar:
    """Compute ``KL(p || q)`` of two parameter sets of one deterministic circuit, in nats.

    Args:
        circuit: a deterministic circuit of discrete variables.
        log_weights, leaf_parameters: of p. other_log_weights, other_leaf_parameters: of q.
        check: prove determinism first; without, the result is an upper bound for a circuit that
            is not deterministic.

    Returns:
        The divergence, a scalar in nats.

    Raises:
        ValueError: a circuit that is not shown to be deterministic, or continuous leaves.
    """
    require_explicit(circuit, "kl_divergence")
    _require_deterministic(circuit, check)
    if any(isinstance(g.family, AbstractContinuousLeaf) for g in circuit.groups):
        raise ValueError("kl_divergence is defined for circuits of discrete variables.")
    p = sweep(circuit, log_weights, leaf_parameters=leaf_parameters)
    q = sweep(circuit, other_log_weights, leaf_parameters=other_leaf_parameters)
    log_p = _log_gates(circuit, log_weights, p)
    log_q = _log_gates(circuit, other_log_weights, q)
    escaped = jnp.logical_and(p.edge_probs > 0, jnp.isneginf(log_q))
    gaps = p.edge_probs * (finite_part(log_p) - finite_part(log_q))
    total = jnp.sum(jnp.where(escaped, jnp.inf, gaps))
    evidence = circuit.log_evidence(dtype=log_weights.dtype)
    pairs = zip(
        circuit.check(log_weights, None, leaf_parameters),
        circuit.check(other_log_weights, None, other_leaf_parameters),
        strict=True,
    )
    for k, (group, (ours, theirs)) in enumerate(zip(circuit.groups, pairs, strict=True)):
        if isinstance(group.family, AbstractDiscreteLeaf) and not is_indicator(group):
            log_p = _leaf_posterior(circuit, k, ours, evidence)
            log_q = _leaf_posterior(circuit, k, theirs, evidence)
            absent = jnp.isneginf(log_p)
            escaped = jnp.logical_and(jnp.logical_not(absent), jnp.isneginf(log_q))
            gaps = jnp.where(
                jnp.logical_or(absent, escaped),
                jnp.zeros_like(log_p),
                jnp.exp(log_p) * (finite_part(log_p) - finite_part(log_q)),
            )
            gaps = jnp.where(escaped, jnp.inf, gaps)
            visits = p.visits[group.nodes]
            own = jnp.sum(gaps, axis=1)
            total += jnp.sum(jnp.where(visits > 0, visits * own, jnp.zeros_like(own)))
    return total


@explicit_or_method
@on_any_mesh()
def expected_values(
    circuit: Circuit,
    log_weights: Float[Array, " weights"],
    log_evidence: VariableTables | None = None,
    *,
    leaf_parameters: tuple[Float[Array, "..."], ...] | None = None,
    values: Float[Array, " continuous"] | None = None,
) -> Float[Array, " variables"]:
    """Compute ``E[X_i | e]`` of every variable, states counting as the numbers 0, 1, ...

    Observed continuous variables give their value, missing ones the mean of their leaves weighted
    by visit probabilities.

    Args:
        circuit: the structure; or a `TensorCircuit`, with its parameters for ``log_weights``
            and the other arguments of `TensorCircuit.expected_values`.
        log_weights: one per edge out of a sum node, nats.
        log_evidence: soft or hard evidence (see `Circuit.log_evidence`).
        leaf_parameters: one array per leaf group.
        values: values of continuous variables, NaN where missing.

    Returns:
        One number per variable.
    """
    got = sweep(circuit, log_weights, log_evidence, leaf_parameters=leaf_parameters, values=values)
    parameters = circuit.check(log_weights, log_evidence, leaf_parameters, values)
    s = circuit.structure
    out = jnp.zeros(circuit.num_variables, log_weights.dtype)
    for ids, table in zip(s.variables.members, got.marginals, strict=True):
        states = jnp.arange(table.shape[1], dtype=table.dtype)
        # HIGHEST: accelerators would otherwise round float32 to 10 bits.
        means = jnp.matmul(table, states, precision=jax.lax.Precision.HIGHEST)
        out = out.at[ids].set(means)
    for group, theta in zip(circuit.groups, parameters, strict=True):
        if isinstance(group.family, AbstractContinuousLeaf):
            means = group.family.mean(theta)
            out = out.at[group.variables].add(got.visits[group.nodes] * means)
    if values is not None and len(s.variables.continuous):
        seen = jnp.logical_not(jnp.isnan(values))
        known = jnp.where(seen, values, out[s.variables.continuous])
        out = out.at[s.variables.continuous].set(known)
    return out


def _require_deterministic(circuit: Circuit, check: bool) -> None:
    if check and not is_deterministic(circuit):
        raise ValueError(
            "The circuit is not shown to be deterministic, so one joint state may have several "
            "parses and the value is not tractable; with check=False it is an upper bound."
        )


def _leaf_posterior(circuit: Circuit, group: int, theta: Array, log_evidence) -> Array:
    """Log-probabilities of the states at every leaf of a group, given the leaf is visited."""
    s = circuit.structure
    _, family_class = s.shape.groups[group]
    family = s.groups[group].family
    assert isinstance(family, AbstractDiscreteLeaf)  # callers check
    table = family.log_table(theta, s.shape.classes[family_class])
    own = log_evidence[family_class][s.variables.row_of[s.groups[group].variables]]
    return jax.vmap(log_normalize)(table + own)


def _log_gates(circuit: Circuit, log_weights: Array, swept: Sweep) -> Array:
    """Logarithms of gates, also of those below the range of the format."""
    s = circuit.structure
    totals = finite_part(swept.log_values[s.parents[s.sum_edges]])
    terms = log_weights + swept.log_values[s.children[s.sum_edges]] - totals
    low = swept.gates < float(jnp.finfo(swept.gates.dtype).tiny) ** 0.5
    return jnp.where(low, terms, jnp.log(jnp.where(low, 1.0, swept.gates)))


def _finite_log(probabilities: Array) -> Array:
    return finite_part(safe_log(probabilities))
