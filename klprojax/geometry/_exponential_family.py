"""Exponential families and moment constraints: dual-affine and affine sets for section 2.

For a statistic `T(x)` and a base table `b(x)` the family

    p_theta(x) = b(x) exp(<theta, T(x)> - A(theta))

is an affine subspace in dual coordinates, and the tables with `E_r[T] = t` form an affine subspace
in primal ones. The two projections

    right, onto the family:      argmin over theta of KL(q || p_theta):  E_p[T] = E_q[T],
    left, onto the constraints:  argmin of KL(r || q) with E_r[T] = t:   r ∝ q exp(<theta, T>),

are one convex problem, `min over theta of A(theta) - <theta, t>`, with base `b` or base `q`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._linear import pseudo_solve, symmetric_solve
from ._log_table import default_tolerance, log_normalize, safe_logsumexp
from ._projection import AbstractLeftConstraint, AbstractRightConstraint, ProjectionResult, finish

_FAILURE = (
    "Newton's method did not match the moments: they lie outside the range of the statistic on the "
    "base's support, or need more steps."
)


class ExponentialFamily(AbstractRightConstraint):
    """The tables `p_theta(x)` proportional to `b(x) exp(<theta, T(x)>)`.

    Args:
        statistic: `T`, finite, its components along the last axis.
        log_base: log-table of `b`, up to scale, entries may be `-inf`; uniform when `None`.

    Raises:
        ValueError: the base's shape is not that of the states.

    Example:
        >>> import jax.numpy as jnp
        >>> family = ExponentialFamily(jnp.array([[0.0], [1.0], [2.0]]))
        >>> q = jnp.log(jnp.array([0.5, 0.0, 0.5]))
        >>> p = family.right_projection(q).value
        >>> [round(float(x), 6) for x in jnp.exp(p)]
        [0.333333, 0.333333, 0.333333]

    Reference:
        Section 2, right projection; moment matching.
    """

    why_one_side = "minimising KL(r || q) over the family is not convex"
    statistic: Float[Array, "*states statistics"]
    log_base: Float[Array, "..."] | None = None

    def __check_init__(self):
        if self.log_base is not None and self.log_base.shape != self.statistic.shape[:-1]:
            raise ValueError(
                f"Got a base of shape {self.log_base.shape} for a statistic of shape "
                f"{self.statistic.shape}; expected {self.statistic.shape[:-1]}, the shape of the "
                "states."
            )

    def log_probs(self, natural_parameters: Float[Array, " statistics"]) -> Float[Array, "..."]:
        """Return the member with natural parameters `theta`, normalised.

        Args:
            natural_parameters: theta, one a statistic.
        """
        return log_normalize(_tilted(self._base(), self.statistic, natural_parameters))

    def moments(self, log_table: Float[Array, "..."]) -> Float[Array, " statistics"]:
        """Return `E_q[T]` under a log-table given up to scale.

        Args:
            log_table: a table up to scale.
        """
        _check_states(self.statistic, log_table)
        return _moments(log_table, self.statistic)

    def right_projection(
        self,
        log_table: Float[Array, "*states"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Match the moments of a table: `E_p[T] = E_q[T]`.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf`.
            tolerance: largest residual allowed; when `None`, `eps ** (2/3)` of the dtype, or where
                rounding stops Newton's method if that comes first.
            max_steps: most Newton steps; 100 when `None`.
            throw: raise at run time unless converged.

        Returns:
            `log_probs` of the projection. The residual is the largest moment gap, each relative to
            the range of its statistic on the base's support, or the mass of `q` outside that
            support if larger (the divergence is then infinite). `multipliers` holds `theta`. Where
            the moments lie on the boundary of their range no `theta` attains them and the result
            is a member within the tolerance of it.

        Raises:
            ValueError: the table's shape is not that of the statistic's states.

        Differentiation:
            Implicit, with respect to the table, base and statistic.
        """
        _check_states(self.statistic, log_table)
        log_q = log_normalize(log_table)
        base = self._base()
        covered = jnp.sum(jnp.where(jnp.isneginf(base), jnp.zeros_like(log_q), jnp.exp(log_q)))
        escaped = jnp.abs(1 - covered)
        return _match_moments(
            base,
            self.statistic,
            _moments(log_q, self.statistic),
            escaped,
            tolerance,
            max_steps,
            throw,
        )

    def _base(self) -> Float[Array, "..."]:
        if self.log_base is None:
            return jnp.zeros(self.statistic.shape[:-1], self.statistic.dtype)
        return self.log_base


class MomentConstraints(AbstractLeftConstraint):
    """The tables with given moments, `E_r[T] = t`: a linear family.

    Its I-projection tilts the table: `r(x)` proportional to `q(x) exp(<theta, T(x)>)`.

    Args:
        statistic: `T`, finite, its components along the last axis.
        moments: the moments `t`.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_one = MomentConstraints(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0]))
        >>> r = mean_one.left_projection(jnp.log(jnp.array([0.8, 0.0, 0.2]))).value
        >>> [round(float(x), 6) for x in jnp.exp(r)]
        [0.5, 0.0, 0.5]

    Reference:
        Section 2, left projection.
    """

    why_one_side = "minimising KL(q || p) under moment constraints is not solved by tilting q"
    statistic: Float[Array, "*states statistics"]
    moments: Float[Array, " moments"]

    def __check_init__(self):
        if self.moments.shape != self.statistic.shape[-1:]:
            raise ValueError(
                f"Got moments of shape {self.moments.shape} for a statistic of shape "
                f"{self.statistic.shape}; expected {self.statistic.shape[-1:]}."
            )

    def left_projection(
        self,
        log_table: Float[Array, "*states"],
        /,
        *,
        tolerance: float | None = None,
        max_steps: int | None = None,
        throw: bool = True,
    ) -> ProjectionResult:
        """Tilt a table until its moments are those prescribed.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf` and stay so.
            tolerance: largest residual allowed; when `None`, `eps ** (2/3)` of the dtype, or where
                rounding stops Newton's method if that comes first.
            max_steps: most Newton steps; 100 when `None`.
            throw: raise at run time unless converged.

        Returns:
            `log_probs` of the projection. The residual is the largest moment gap, each relative to
            the range of its statistic on the support of `q`. `multipliers` holds `theta`.

        Raises:
            ValueError: the table's shape is not that of the statistic's states.

        Differentiation:
            Implicit, with respect to the table, statistic and moments.
        """
        _check_states(self.statistic, log_table)
        escaped = jnp.zeros((), log_table.dtype)
        return _match_moments(
            log_table, self.statistic, self.moments, escaped, tolerance, max_steps, throw
        )


def _check_states(statistic: Float[Array, "..."], log_table: Float[Array, "..."]) -> None:
    if log_table.shape != statistic.shape[:-1]:
        raise ValueError(
            f"Got a table of shape {log_table.shape} for a statistic of shape {statistic.shape}; "
            f"expected {statistic.shape[:-1]}, the shape of the states."
        )


def _tilted(
    log_base: Float[Array, "*states"],
    statistic: Float[Array, "*states statistics"],
    theta: Float[Array, " statistics"],
) -> Float[Array, "*states"]:
    tilted = log_base + statistic @ theta
    return jnp.where(jnp.isneginf(log_base), jnp.full_like(tilted, -jnp.inf), tilted)


def _moments(
    log_table: Float[Array, "*states"], statistic: Float[Array, "*states statistics"]
) -> Float[Array, " statistics"]:
    return jnp.tensordot(jnp.exp(log_normalize(log_table)), statistic, axes=log_table.ndim)


def _ranges(
    log_base: Float[Array, " states"], statistic: Float[Array, "states statistics"]
) -> Float[Array, " statistics"]:
    """Return highest less lowest value of each statistic where the base has mass."""
    present = jnp.logical_not(jnp.isneginf(log_base))[:, None]
    highest = jnp.max(jnp.where(present, statistic, -jnp.inf), axis=0)
    lowest = jnp.min(jnp.where(present, statistic, jnp.inf), axis=0)
    return highest - lowest


def _match_moments(
    log_base: Float[Array, "*states"],
    statistic: Float[Array, "*states statistics"],
    target: Float[Array, " statistics"],
    escaped: Float[Array, ""],
    tolerance: float | None,
    max_steps: int | None,
    throw: bool,
) -> ProjectionResult:
    goal = default_tolerance(log_base.dtype) if tolerance is None else tolerance
    flat_base = log_normalize(log_base).reshape(-1)
    flat_statistic = statistic.reshape(-1, statistic.shape[-1])
    problem = (flat_base, flat_statistic, target)
    found, residual, steps, at_floor = _newton(
        *jax.lax.stop_gradient(problem), goal, 100 if max_steps is None else max_steps
    )
    theta = _with_implicit_derivative(found, *problem)
    # Centred as in the loop: a statistic far from zero would lose the digits the loop had.
    centred = flat_statistic - jax.lax.stop_gradient(target)[None]
    value = log_normalize(_tilted(flat_base, centred, theta)).reshape(log_base.shape)
    missing = jnp.abs(1 - jnp.exp(safe_logsumexp(value)))  # one if the base has no mass at all
    outside = jax.lax.stop_gradient(jnp.maximum(escaped, missing))
    residual = jnp.maximum(residual, outside)
    at_floor = at_floor & (outside <= jnp.sqrt(jnp.finfo(outside.dtype).eps))
    return finish(value, residual, steps, theta, tolerance, throw, _FAILURE, at_floor)


def _newton(
    log_base: Float[Array, " states"],
    statistic: Float[Array, "states statistics"],
    target: Float[Array, " statistics"],
    tolerance: float,
    max_steps: int,
) -> tuple[Float[Array, " statistics"], Float[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """Minimise `A(theta) - <theta, t>` by Newton's method with backtracking.

    Returns `theta`, the largest relative moment gap, the number of steps, and whether that gap is
    as small as rounding lets it be.
    """
    eps = jnp.finfo(log_base.dtype).eps
    # Work with (T - t) / range: the objective is then log sum b exp(<theta, T - t>), free of the
    # cancellation between A and <theta, t>, and gradients are the residual itself.
    ranges = _ranges(log_base, statistic)
    varies = ranges > 0
    scale = jnp.where(varies, ranges, 1)
    features = (statistic - target[None]) / scale[None]

    def objective(theta):
        logits = _tilted(log_base, features, theta)
        log_probs = log_normalize(logits)
        gap = jnp.exp(log_probs) @ features
        # The normaliser, read off where it is largest: log_probs = logits - A.
        best = jnp.argmax(logits)
        return logits[best] - log_probs[best], log_probs, gap

    def unfinished(state):
        _, _, _, gap, steps, stalled, (_, idle) = state
        going = (steps < max_steps) & ~stalled & (idle < 4)
        return (jnp.max(jnp.abs(gap), initial=0) > tolerance) & going

    def step(state):
        theta, height, log_probs, gap, steps, _, (best, idle) = state
        # A constant statistic has no variance; its rounding must not be taken for one.
        spread = jnp.where(varies[None], features - gap[None], 0)
        covariance = (jnp.exp(log_probs)[:, None] * spread).T @ spread
        direction = -pseudo_solve(covariance, gap)
        slope = direction @ gap
        # Sufficient decrease, up to the rounding of the objective: near the solution Newton steps
        # gain less than that and are right.
        rounding = 8 * eps * (1 + jnp.abs(height) + jnp.sum(jnp.abs(theta)))

        def rejected(trial):
            length, trial_height, _, _, halvings = trial
            bound = height + 1e-4 * length * slope + rounding
            # Written so that a height that is not finite is rejected too.
            return ~(trial_height <= bound) & (halvings < 60)

        def halve(trial):
            length, *_, halvings = trial
            return length / 2, *objective(theta + length / 2 * direction), halvings + 1

        one = jnp.ones((), theta.dtype)
        trial = (one, *objective(theta + direction), jnp.asarray(0))
        length, new_height, new_log_probs, new_gap, halvings = jax.lax.while_loop(
            rejected, halve, trial
        )
        stalled = halvings >= 60
        moved = (theta + length * direction, new_height, new_log_probs, new_gap)
        kept = (theta, height, log_probs, gap)
        # Select, not scale by zero: a direction that is not finite must leave no trace.
        state = jax.tree.map(lambda new, old: jnp.where(stalled, old, new), moved, kept)
        # Newton squares a small gap, or divides it by e where the moments lie on the boundary of
        # their range: one that several steps do not lower by a third is rounding.
        size = jnp.max(jnp.abs(state[3]), initial=0)
        slow = (best <= jnp.sqrt(eps)) & (size > best * 2 / 3)
        progress = (jnp.where(slow, best, size), jnp.where(slow, idle + 1, 0))
        return *state, steps + 1, stalled, progress

    start = jnp.zeros_like(target)
    state = (start, *objective(start), jnp.asarray(0), jnp.asarray(False))
    progress = (jnp.full((), jnp.inf, start.dtype), jnp.asarray(0))
    theta, _, _, gap, steps, _, (_, idle) = jax.lax.while_loop(unfinished, step, (*state, progress))
    return theta / scale, jnp.max(jnp.abs(gap), initial=0), steps, idle >= 4


@jax.custom_jvp
def _with_implicit_derivative(
    theta: Float[Array, " statistics"],
    log_base: Float[Array, " states"],
    statistic: Float[Array, "states statistics"],
    target: Float[Array, " statistics"],
) -> Float[Array, " statistics"]:
    """Return `theta` unchanged, with the derivative of the solution of `E[T] = t` that it is."""
    return theta


@_with_implicit_derivative.defjvp
def _with_implicit_derivative_jvp(primals, tangents):
    # The gap E_theta[T] - t stays zero: Cov(T) dtheta = -(its derivative at fixed theta).
    theta = _with_implicit_derivative(*primals)

    def gap(log_base, statistic, target):
        return _moments(_tilted(log_base, statistic, theta), statistic) - target

    _, gap_dot = jax.jvp(gap, primals[1:], tangents[1:])
    _, log_base, statistic, target = primals
    probs = jnp.exp(log_normalize(_tilted(log_base, statistic, theta)))
    varies = _ranges(log_base, statistic) > 0
    spread = jnp.where(varies[None], statistic - target[None], 0)

    def matvec(direction):
        return spread.T @ (probs * (spread @ direction))

    covariance = jax.lax.stop_gradient((probs[:, None] * spread).T @ spread)
    return theta, symmetric_solve(matvec, -gap_dot, lambda _, rhs: pseudo_solve(covariance, rhs))
