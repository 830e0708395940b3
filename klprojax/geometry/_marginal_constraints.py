"""Prescribed marginals: the closed convex sets `C` of section 2's left projection.

The tables with given marginals form a linear family. The I-projection onto it multiplies the table
by one scaling for each constraint,

    r(x) = q(x) prod_j exp(u_j(x_{A_j})),   u_j chosen so that the marginal of r on A_j is t_j,

and is computed by iterative proportional fitting (Sinkhorn's algorithm for two one-axis marginals):
cyclic I-projections onto one constraint at a time.
"""

import math
from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._linear import conjugate_gradient, symmetric_solve
from ._log_table import (
    canonical_axes,
    default_tolerance,
    expand_to,
    log_normalize,
    safe_logsumexp,
)
from ._projection import AbstractLeftConstraint, ProjectionResult, finish

Tables = tuple[Float[Array, "..."], ...]
Scopes = tuple[tuple[int, ...], ...]


class MarginalConstraints(AbstractLeftConstraint):
    """The tables whose marginals on given sets of axes are given.

    The left projection is a named fused implementation of ``Cyclic`` on a joint table, with one
    ``left`` per constraint (see `left_projection`). Plain numpy version: tests/reference/ipf.py.

    Args:
        constraints: pairs `(axes, log_target)`: the axes kept and the log-table their marginal must
            equal, up to scale, with one axis for each of `axes` in their order. Sets of axes may
            overlap; targets may have `-inf` entries.

    Raises:
        ValueError: no constraint, an axis negative or repeated, or a target with the wrong number
            of axes.

    Example:
        >>> import jax.numpy as jnp
        >>> half = jnp.log(jnp.array([0.5, 0.5]))
        >>> sinkhorn = MarginalConstraints([((0,), half), ((1,), half)])
        >>> result = sinkhorn.left_projection(jnp.log(jnp.array([[4.0, 1.0], [1.0, 4.0]])))
        >>> [[round(float(x), 6) for x in row] for row in jnp.exp(result.value)]
        [[0.4, 0.1], [0.1, 0.4]]

    Reference:
        Section 2, left projection. I. Csiszár, "I-divergence geometry of probability distributions
        and minimization problems", Annals of Probability 3 (1975): iterative proportional fitting
        converges to the I-projection whenever some table in the set has finite divergence from `q`.
    """

    why_one_side = "minimising KL(q || p) under marginal constraints is not solved by scaling q"
    axes: Scopes = eqx.field(static=True)
    log_targets: Tables

    def __init__(
        self, constraints: Sequence[tuple[int | Sequence[int], Float[Array, "..."]]]
    ) -> None:
        scopes, targets = [], []
        for named, log_target in constraints:
            named = (named,) if isinstance(named, int) else tuple(named)
            if len(named) != log_target.ndim:
                raise ValueError(
                    f"Got a target with {log_target.ndim} axes for the marginal on axes {named}; "
                    "expected one axis for each."
                )
            if any(axis < 0 for axis in named) or len(set(named)) != len(named):
                raise ValueError(
                    f"Got axes {named}; expected distinct, non-negative axes of the table."
                )
            order = sorted(range(len(named)), key=named.__getitem__)
            scopes.append(tuple(named[k] for k in order))
            targets.append(jnp.transpose(log_target, order))
        if not scopes:
            raise ValueError("Got no constraints; give at least one pair (axes, log_target).")
        self.axes = tuple(scopes)
        self.log_targets = tuple(targets)

    def left_projection(
        self,
        log_table: Float[Array, "*states"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Fit the marginals by iterative proportional fitting.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf` and stay so.
            tolerance: largest total-variation distance allowed between a marginal and its target;
                when `None`, `eps ** (2/3)` of the dtype, or where rounding stops the sweeps if
                that comes first (about `eps` times the mean size of the multipliers).
            max_steps: most sweeps over the constraints; 1000 when `None`. Convergence is linear,
                slower than that where zeros of the projection are not zeros of `q`.
            throw: raise at run time unless converged, as when targets contradict each other or put
                mass where `q` has none.

        Returns:
            `log_probs` of the projection; the residual is the largest total-variation distance
            between one of its marginals and the target. `multipliers` holds the `u_j` (axes
            ascending); they are fixed only up to gauge and carry no derivative.

        Raises:
            ValueError: a constraint does not fit the table's shape.

        Differentiation:
            Implicit, at the fixed point, with respect to the table and the targets, by a conjugate
            gradient solve with the covariance of the constraint indicators. Derivatives keep zeros
            at zero.
        """
        self._check_shapes(log_table)
        log_q = log_normalize(log_table)
        log_targets = tuple(log_normalize(target) for target in self.log_targets)
        fixed = jax.lax.stop_gradient((log_q, log_targets))
        fitted, residual, steps, at_floor = _fit(
            self.axes,
            *fixed,
            default_tolerance(log_table.dtype) if tolerance is None else tolerance,
            1000 if max_steps is None else max_steps,
        )
        scalings = _with_implicit_derivative(self.axes, fitted, log_q, log_targets)
        return finish(
            log_normalize(_scaled(self.axes, log_q, scalings)),
            residual,
            steps,
            fitted,
            tolerance,
            throw,
            "Iterative proportional fitting did not reach its tolerance: the targets contradict "
            "each other, put mass where the table has none, or need more steps.",
            at_floor,
        )

    def _check_shapes(self, log_table: Float[Array, "*states"]) -> None:
        for scope, target in zip(self.axes, self.log_targets, strict=True):
            canonical_axes(scope, log_table.ndim)
            expected = tuple(log_table.shape[axis] for axis in scope)
            if target.shape != expected:
                raise ValueError(
                    f"Got a target of shape {target.shape} for the marginal on axes {scope} of a "
                    f"table of shape {log_table.shape}; expected shape {expected}."
                )


def _others(scope: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in scope)


def _scaled(
    scopes: Scopes, log_q: Float[Array, "*states"], scalings: Tables
) -> Float[Array, "*states"]:
    for scope, scaling in zip(scopes, scalings, strict=True):
        log_q = log_q + expand_to(scaling, scope, log_q.ndim)
    # A zero stays a zero whatever the scalings do: it passes no cotangent on to them.
    return jnp.where(jnp.isneginf(log_q), jnp.full_like(log_q, -jnp.inf), log_q)


def _fit(
    scopes: Scopes,
    log_q: Float[Array, "*states"],
    log_targets: Tables,
    tolerance: float,
    max_steps: int,
) -> tuple[Tables, Float[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """Run proportional fitting.

    Returns the scalings, the largest gap of a marginal of the table they make, the number of
    sweeps, and whether that gap is as small as rounding lets it be.
    """
    eps = jnp.finfo(log_q.dtype).eps

    def floor(scalings):
        # An entry is a sum of the scalings and of a log-table of their size: it is off by some
        # eps / 2 of that, a marginal by the mean over entries. Twice the worst case for two.
        sizes = [
            jnp.sum(jnp.where(jnp.isneginf(target), 0, jnp.exp(target) * jnp.abs(scaling)))
            for target, scaling in zip(log_targets, scalings, strict=True)
        ]
        return eps * (math.log(log_q.size + 1) + sum(sizes[1:], sizes[0]))

    def sweep(state):
        scalings, _, steps, limit = state
        scalings = list(scalings)
        bound = jnp.zeros((), log_q.dtype)
        for j, (scope, log_target) in enumerate(zip(scopes, log_targets, strict=True)):
            reach = safe_logsumexp(
                _scaled(scopes, log_q, tuple(scalings)), _others(scope, log_q.ndim)
            )
            if j > 0:
                # Fitting constraint j moves the table by exactly this total variation, so the sum
                # over a sweep bounds the final residual of every constraint fitted before, but for
                # rounding: it says when a look at the residual itself is worth its pass.
                bound = bound + _total_variation(reach, log_target)
            # A marginal without mass cannot be scaled to a target with mass; leave it to the
            # residual.
            absent = jnp.isneginf(reach)
            change = jnp.where(absent, jnp.zeros_like(reach), log_target - reach)
            fitted = scalings[j] + change
            # A target without mass clears its states for good, whatever reaches them.
            scalings[j] = jnp.where(
                jnp.isneginf(log_target), jnp.full_like(fitted, -jnp.inf), fitted
            )
        steps = steps + 1
        # Moves that rounding explains: as many sweeps again can still gain digits, more cannot.
        flat = bound <= floor(scalings)
        limit = jnp.where(flat, jnp.minimum(limit, 2 * steps + 16), limit)
        bound = jnp.where(flat, jnp.zeros_like(bound), bound)
        return tuple(scalings), bound, steps, limit

    def look(state):
        scalings, _, steps, limit = state
        # At least one sweep: none has been made since the last look.
        fresh = (scalings, jnp.full((), jnp.inf, log_q.dtype), steps, limit)
        scalings, _, steps, limit = jax.lax.while_loop(
            lambda state: (state[1] > tolerance) & (state[2] < state[3]), sweep, fresh
        )
        value = log_normalize(_scaled(scopes, log_q, scalings))
        return scalings, _largest_gap(scopes, value, log_targets), steps, limit

    start = tuple(jnp.zeros_like(target) for target in log_targets)
    gap = jnp.full((), jnp.inf, log_q.dtype)
    scalings, gap, steps, limit = jax.lax.while_loop(
        lambda state: (state[1] > tolerance) & (state[2] < state[3]),
        look,
        (start, gap, jnp.asarray(0), jnp.asarray(max_steps)),
    )
    # Rounding of the last moves and of the look itself.
    at_floor = (steps >= limit) & (limit < max_steps) & (gap <= 2 * floor(scalings))
    return scalings, gap, steps, at_floor


def _total_variation(
    log_p: Float[Array, "*states"], log_q: Float[Array, "*states"]
) -> Float[Array, ""]:
    return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))) / 2


def _largest_gap(
    scopes: Scopes, log_probs: Float[Array, "*states"], log_targets: Tables
) -> Float[Array, ""]:
    gaps = [
        _total_variation(safe_logsumexp(log_probs, _others(scope, log_probs.ndim)), target)
        for scope, target in zip(scopes, log_targets, strict=True)
    ]
    return jnp.max(jnp.stack(gaps))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_implicit_derivative(
    scopes: Scopes, scalings: Tables, log_q: Float[Array, "*states"], log_targets: Tables
) -> Tables:
    """Return `scalings` unchanged, with the derivative of the fixed point they are."""
    return scalings


@_with_implicit_derivative.defjvp
def _with_implicit_derivative_jvp(scopes, primals, tangents):
    # Write A for the marginals and r for the table. From A r = t with r = q exp(A^T u):
    #   (A diag(r) A^T) du = dt - A (r dlog q).
    # The matrix is singular along the gauges A^T n = 0, which the right-hand side respects.
    scalings = _with_implicit_derivative(scopes, *primals)
    _, log_q, log_targets = primals
    _, log_q_dot, log_targets_dot = tangents
    ndim = log_q.ndim
    r = jnp.exp(_scaled(scopes, log_q, scalings))

    def marginals(table):
        return tuple(jnp.sum(table, _others(scope, ndim)) for scope in scopes)

    def matvec(directions):
        spread = jnp.zeros_like(r)
        for scope, direction in zip(scopes, directions, strict=True):
            spread = spread + expand_to(direction, scope, ndim)
        return marginals(r * spread)

    rhs = tuple(
        jnp.exp(target) * target_dot - lost
        for target, target_dot, lost in zip(
            log_targets, log_targets_dot, marginals(r * log_q_dot), strict=True
        )
    )
    # The diagonal of the matrix is A r itself.
    diagonal = jax.lax.stop_gradient(marginals(r))
    preconditioner = tuple(
        jnp.where(entry == 0, 0, 1 / jnp.where(entry == 0, 1, entry)) for entry in diagonal
    )
    solve = partial(conjugate_gradient, preconditioner=preconditioner)
    return scalings, symmetric_solve(matvec, rhs, solve)
