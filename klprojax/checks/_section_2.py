"""Section 2: KL geometry. The paper does not number these statements."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..geometry import (
    ConsensusFace,
    MarginalConstraints,
    NegativeEntropy,
    ProductFamily,
    bregman_divergence,
    consensus_of_copies,
    i_projection,
    right_projection,
)
from ..operators import BeliefPropagation, infer
from ._measure import at_least, by_precision, kl, largest_difference, normalized, outer
from ._models import beliefs, fixed_point, random_cycle
from ._registry import statement

_MEMBERS = 5
_i_projection = eqx.filter_jit(i_projection)
_right_projection = eqx.filter_jit(right_projection)


def _random_probs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return normalized(np.exp(rng.normal(size=shape)))


@statement("Section 2, dual coordinates", "∇f, ∇f* vs central differences of f, f* in numpy")
def section_2_dual_coordinates(seed: int = 0, size: int = 5, dtype: Any = None) -> Any:
    """Check `∇f(p) = 1 + log p` and `∇f*(θ) = softmax(θ)` for the negative entropy.

    `f(p) = Σ p log p` and `f*(θ) = log Σ exp θ` are differenced in float64 numpy.

    Source: section 2, "Bregman divergences and KL geometry".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    generator, step = NegativeEntropy(), 1e-5

    def differences(function: Any, point: np.ndarray) -> np.ndarray:
        moves = step * np.eye(len(point))
        return np.array([function(point + e) - function(point - e) for e in moves]) / (2 * step)

    # Away from the edge of the simplex, where f bends too much to be differenced.
    p, theta = normalized(rng.uniform(1, 2, size)), rng.normal(size=size)
    gap = largest_difference(
        (
            generator.to_dual(jnp.asarray(p, dtype)),
            generator.from_dual(jnp.asarray(theta, dtype)),
        ),
        (
            differences(lambda p: np.sum(p * np.log(p)), p),
            differences(lambda t: np.log(np.sum(np.exp(t))), theta),
        ),
    )
    # Double: differences err by step² f'''/6 ~ 1e-10 / p² plus rounding 1e-16 / step ~ 1e-11.
    # Single: rounding 1e-7 of numbers up to ten.
    return gap, by_precision(dtype, 1e-8, 1e-5)


@statement("Section 2, duality", "D_f and D_f* of the package vs both definitions in numpy")
def section_2_duality(seed: int = 0, size: int = 6, dtype: Any = None) -> Any:
    """Check `D_f(r, q) = D_{f*}(∇f(q), ∇f(r)) = KL(r‖q)`.

    All three are written out in numpy, `D_f` from `f(p) = Σ p log p` and `D_{f*}` from `f*(θ) = log
    Σ exp θ`, and every one of the package's divergences is compared with every one of them.

    Source: section 2, "Bregman divergences and KL geometry".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    generator = NegativeEntropy()

    def log_sum_exp(theta: np.ndarray) -> float:
        return float(np.log(np.sum(np.exp(theta))))

    gaps = []
    for _ in range(_MEMBERS):
        r, q = _random_probs(rng, size), _random_probs(rng, size)
        dual_r, dual_q = 1 + np.log(r), 1 + np.log(q)
        primal = np.sum(r * np.log(r)) - np.sum(q * np.log(q)) - np.sum(dual_q * (r - q))
        slope = np.exp(dual_r) / np.sum(np.exp(dual_r))
        dual = log_sum_exp(dual_q) - log_sum_exp(dual_r) - np.sum(slope * (dual_q - dual_r))
        points = [jnp.asarray(table, dtype) for table in (r, q)]
        found = [
            generator.divergence(*points),
            generator.dual_divergence(*map(generator.to_dual, points[::-1])),
            bregman_divergence(generator.value, *points),
        ]
        gaps += [
            largest_difference(got, want) for got in found for want in (primal, dual, kl(r, q))
        ]
    # Cancelling terms up to ten: tens of roundings of 1e-16 or 1e-7.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Section 2, I-projection onto consensus", "Pythagoras and support, KL in numpy")
def section_2_consensus_projection(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that `π←_𝒟` removes off-diagonal mass and renormalises, and is the I-projection.

    A member p of the face is the projection of q exactly if `KL(m‖q) = KL(m‖p) + KL(p‖q)` for all
    members m.

    Source: section 2, "Consensus sets".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    q = _random_probs(rng, size, size, size)
    log_q = jnp.asarray(np.log(q), dtype)
    p = np.exp(np.asarray(_i_projection(ConsensusFace(), log_q).value, np.float64))
    on_face = np.zeros(q.shape)
    on_face[range(size), range(size), range(size)] = 1
    gaps = [np.abs(p * (1 - on_face)).max(), abs(p.sum() - 1)]
    for _ in range(_MEMBERS):
        member = normalized(_random_probs(rng, *q.shape) * on_face)
        gaps.append(abs(kl(member, q) - kl(member, p) - kl(p, q)))
    # Two copies beside a variable that has one: its axis stays.
    diagonal = np.where(np.eye(size)[:, :, None] > 0, q, 0.0)
    face = ConsensusFace(((0, 1),))
    some = _i_projection(face, log_q).value
    gaps.append(largest_difference(jnp.exp(some), diagonal / diagonal.sum()))
    common = np.einsum("iij->ij", diagonal / diagonal.sum())
    gaps.append(largest_difference(jnp.exp(face.diagonal(some)), common))
    again = face.embed(jnp.asarray(np.log(common), dtype), 3)
    gaps.append(largest_difference(jnp.exp(again), diagonal / diagonal.sum()))
    # Divergences of a few nats: tens of roundings.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Section 2, right projection onto products", "Pythagoras, KL in numpy")
def section_2_product_projection(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that `π→_𝒞` is the nearest product in `KL(q‖·)`: the product of the marginals.

    A product p is the projection of q exactly if `KL(q‖m) = KL(q‖p) + KL(p‖m)` for all products m.

    Source: section 2, "Product families".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    shape = (size, 2, size + 1)
    q = _random_probs(rng, *shape)
    value = _right_projection(ProductFamily(), jnp.asarray(np.log(q), dtype)).value
    p = np.exp(np.asarray(value, np.float64))
    marginals = [p.sum(axis=tuple(b for b in range(3) if b != a)) for a in range(3)]
    gaps = [np.abs(p - outer(marginals)).max()]
    for _ in range(_MEMBERS):
        member = outer([_random_probs(rng, n) for n in shape])
        gaps.append(abs(kl(q, member) - kl(q, p) - kl(p, member)))
    # Divergences of a few nats: tens of roundings.
    return float(np.max(gaps)), by_precision(dtype, 1e-13, 1e-5)


@statement("Section 2, I-projection onto a convex set", "Pythagoras and feasibility, KL in numpy")
def section_2_convex_projection(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check the I-projection onto a closed convex set: the tables with two given marginals.

    In a linear family p is the projection of q exactly if `KL(m‖q) = KL(m‖p) + KL(p‖q)` for all
    members m. The members are mixed from two couplings of the marginals.

    Source: section 2, "Left (I-) and right (reverse-KL) projections".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    q, coupling = _random_probs(rng, size, size + 1), _random_probs(rng, size, size + 1)
    rows, columns = coupling.sum(axis=1), coupling.sum(axis=0)
    constraints = [((0,), rows), ((1,), columns)]
    marginals = MarginalConstraints([(a, jnp.asarray(np.log(t), dtype)) for a, t in constraints])
    # Fitted to a hundred roundings; the iteration contracts, so that is soon reached.
    tolerance = 100 * float(jnp.finfo(dtype).eps)
    log_q = jnp.asarray(np.log(q), dtype)
    value = i_projection(marginals, log_q, tolerance=tolerance, max_steps=1000).value
    p = np.exp(np.asarray(value, np.float64))
    gaps = [np.abs(p.sum(axis=1) - rows).max(), np.abs(p.sum(axis=0) - columns).max()]
    for weight in rng.random(_MEMBERS):
        member = weight * coupling + (1 - weight) * np.outer(rows, columns)
        gaps.append(abs(kl(member, q) - kl(member, p) - kl(p, q)))
    # The fit's tolerance, a hundred roundings, times multipliers of a few nats.
    return float(np.max(gaps)), by_precision(dtype, 1e-12, 1e-4)


@statement("Section 2, consensus of independent copies", "dense I-projection vs product of copies")
def section_2_consensus_of_copies(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that independent copies agree on the normalised product of their tables, a belief.

    Source: section 2, "Beliefs and gauge invariance" and "Consensus sets".
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    copies = [_random_probs(rng, 3) for _ in range(size)]
    log_joint = jnp.asarray(np.log(outer(copies)), dtype)
    dense = jnp.exp(_i_projection(ConsensusFace(), log_joint).value)
    diagonal = np.asarray(dense)[tuple([range(3)] * size)]
    want = normalized(np.prod(copies, axis=0))
    factored = jnp.exp(consensus_of_copies(jnp.asarray(np.log(copies), dtype)))
    # Probabilities: rounding of sums of a few logarithms.
    return (
        largest_difference((diagonal, factored), (want, want)),
        by_precision(dtype, 1e-14, 1e-5),
    )


@statement("Section 2, gauge invariance", "beliefs of rescaled factors vs numpy, not rescaled")
def section_2_gauge_invariance(seed: int = 0, size: int = 4, dtype: Any = None) -> Any:
    """Check that the scale of a factor, and so of the messages it sends, changes no belief.

    Source: section 2, "Beliefs and gauge invariance".
    """
    model = random_cycle(seed, size)
    scales = np.random.default_rng(seed + 1).normal(scale=3.0, size=len(model.scopes))
    tables = tuple(t + c for t, c in zip(model.log_tables, scales, strict=True))
    graph, log_potentials = model._replace(log_tables=tables).build(dtype)
    # Ten roundings: no message moves further at the fixed point.
    solver = BeliefPropagation(tolerance=10 * float(jnp.finfo(dtype).eps))
    solution = infer(graph, log_potentials, solver, max_steps=2000)
    got = graph.unpack_variables(solution.beliefs)
    # Log-tables of size ten are rounded to ten eps, and a cycle returns what it gets.
    return (
        largest_difference(got, beliefs(model, fixed_point(model))),
        by_precision(dtype, 1e-12, 1e-4),
    )
