"""Log-tables: the arithmetic of section 2's simplices, done in natural logarithms.

A point of the simplex is stored as the logarithm of its entries, `-inf` where it vanishes (a face
of the simplex). Everything here keeps values and derivatives of such tables free of NaN, in forward
and reverse mode and to any order: the conjugate `f*(theta) = log sum exp(theta)`, the normalisation
behind every "proportional to", the divergence `D_f(r, q) = KL(r || q)`, and marginals.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_logsumexp(
    log_table: Float[Array, "..."],
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Compute `log sum exp` over axes, with `-inf` entries and empty slices allowed.

    The derivative is the softmax. On a slice that is `-inf` throughout (or has no entries) the
    value is `-inf` and every derivative is zero, where `jax.nn.logsumexp` differentiates to NaN.

    Args:
        log_table: natural logarithms of non-negative numbers; any entry may be `-inf`. A NaN or
            `+inf` entry is passed on, not hidden.
        axis: axes summed over; all of them by default.
        keepdims: keep the summed axes with size one.

    Returns:
        Logarithms of the sums (nats), in the dtype of `log_table`.

    Differentiation:
        Ordinary JAX operations only: `jvp`, `vjp`, and higher orders, under `jit` and `vmap`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(safe_logsumexp(jnp.array([-jnp.inf, -jnp.inf])))
        -inf
    """
    # One pass for the shift, one for the sum; everything else fuses into them. The shift cancels
    # out of the exact value, so no derivative need pass through it, to any order.
    fixed = jax.lax.stop_gradient(log_table)
    shift = jnp.max(fixed, axis=axis, keepdims=True, initial=-jnp.inf)
    shift = jnp.where(jnp.isfinite(shift), shift, jnp.zeros_like(shift))
    total = jnp.sum(jnp.exp(log_table - shift), axis=axis, keepdims=True)
    # A slice with any finite entry has total >= 1, so zero means `-inf` throughout. The logarithm
    # must not see that zero even on the branch not taken: its derivative there is inf, and 0 * inf
    # is NaN.
    empty = total == 0
    value = jnp.log(jnp.where(empty, jnp.ones_like(total), total)) + shift
    value = jnp.where(empty, jnp.full_like(value, -jnp.inf), value)
    return value if keepdims else jnp.squeeze(value, axis=axis)


def safe_log(probabilities: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute the natural logarithm, ``-inf`` with derivative 0 at zero and below.

    Args:
        probabilities: linear space; rounding may leave entries just below zero. NaN is passed on.

    Returns:
        Logarithms (nats).
    """
    zero = probabilities <= 0  # false for NaN, which must stay visible
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, probabilities)))


def finite_part(log_table: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replace ``-inf`` by 0, with derivative 0 there: ``exp(a) * finite_part(a)`` is never NaN.

    Args:
        log_table: natural logarithms of non-negative numbers. NaN is passed on.

    Returns:
        Finite numbers (nats).
    """
    return jnp.where(jnp.isneginf(log_table), 0.0, log_table)


def log_normalize(
    log_table: Float[Array, "*states"],
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "*states"]:
    """Scale a log-table to total mass one: `log p = log_table - log sum exp(log_table)`.

    Args:
        log_table: natural logarithms of non-negative numbers; any entry may be `-inf`.
        axis: axes that together hold one distribution; all of them by default.

    Returns:
        `log_probs` of the same shape. A slice with no mass at all cannot be normalised and is
        returned unchanged, `-inf` throughout.

    Reference:
        The sign "proportional to" of section 2.
    """
    log_total = safe_logsumexp(log_table, axis=axis, keepdims=True)
    log_total = jnp.where(jnp.isneginf(log_total), jnp.zeros_like(log_total), log_total)
    return log_table - log_total


def kl_divergence(
    log_r: Float[Array, "*states"],
    log_q: Float[Array, "*states"],
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    """Compute `KL(r || q) = sum_x r(x) (log r(x) - log q(x))` in nats.

    `0 log 0` counts as zero, and the value is `+inf` where `r` puts mass on a zero of `q`.

    Args:
        log_r: `log_probs` of `r`, normalised over `axis`; entries may be `-inf`.
        log_q: `log_probs` of `q`, likewise.
        axis: axes summed over; all of them by default.

    Returns:
        The divergence (nats), one number for each index of the axes left.

    Differentiation:
        Entries where either table vanishes contribute derivative zero.

    Example:
        >>> import jax.numpy as jnp
        >>> p = jnp.log(jnp.array([0.5, 0.5]))
        >>> float(kl_divergence(p, p))
        0.0
    """
    absent = jnp.isneginf(log_r)
    escaped = jnp.logical_and(jnp.logical_not(absent), jnp.isneginf(log_q))
    # -inf - (-inf) and 0 * inf must not arise even on branches not taken.
    skip = jnp.logical_or(absent, escaped)
    zeros = jnp.zeros_like(log_r)
    inner_r = jnp.where(skip, zeros, log_r)
    inner_q = jnp.where(skip, zeros, log_q)
    terms = jnp.where(skip, zeros, jnp.exp(inner_r) * (inner_r - inner_q))
    terms = jnp.where(escaped, jnp.full_like(terms, jnp.inf), terms)
    return jnp.sum(terms, axis=axis)


def log_marginal(
    log_table: Float[Array, "*states"],
    axes: int | Sequence[int],
) -> Float[Array, "..."]:
    """Sum a log-table onto the axes named, in the order named.

    Args:
        log_table: natural logarithms, normalised or not; entries may be `-inf`.
        axes: the axes kept. All others are summed out in linear space.

    Returns:
        The log-table of the marginal, with one axis for each of `axes`; its total mass is that of
        `log_table`.

    Raises:
        ValueError: an axis is out of range or named twice.
    """
    kept = canonical_axes((axes,) if isinstance(axes, int) else axes, log_table.ndim)
    summed = tuple(axis for axis in range(log_table.ndim) if axis not in kept)
    in_order = sorted(kept)
    marginal = safe_logsumexp(log_table, axis=summed)
    return jnp.transpose(marginal, tuple(in_order.index(axis) for axis in kept))


def canonical_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return axes as non-negative numbers below `ndim`, refusing repeats."""
    axes = tuple(axes)
    if any(not -ndim <= axis < ndim for axis in axes):
        raise ValueError(
            f"Got axes {axes} for a table with {ndim} axes; expected numbers from {-ndim} to "
            f"{ndim - 1}. Name only axes the table has."
        )
    canonical = tuple(axis % ndim for axis in axes)
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"Got axes {axes}, with one named twice; name each axis once.")
    return canonical


def expand_to(
    log_marginal_table: Float[Array, "..."], axes: tuple[int, ...], ndim: int
) -> Float[Array, "..."]:
    """Give a table over ascending `axes` size-one axes elsewhere, so that it broadcasts."""
    missing = tuple(axis for axis in range(ndim) if axis not in axes)
    return jnp.expand_dims(log_marginal_table, missing)


def default_tolerance(dtype: jnp.dtype) -> float:
    """Return the residual at which iterations stop when told nothing else.

    `eps ** (2/3)`, 4e-11 in float64 and 2e-5 in float32: a residual is a sum of many rounded terms
    and cannot be driven to `eps` itself.
    """
    return math.pow(float(jnp.finfo(dtype).eps), 2 / 3)
