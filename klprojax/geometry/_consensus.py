"""The consensus set: "Consensus sets" in section 2, the diagonal face on which copies agree."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._log_table import canonical_axes, default_tolerance, log_normalize
from ._projection import AbstractLeftConstraint, ProjectionResult, closed_form_result


class ConsensusFace(AbstractLeftConstraint):
    """The face of joint tables that vanish unless all copies of each variable agree.

    Its I-projection removes off-diagonal mass and renormalises:

        p(x1, ..., xK)  proportional to  q(x1, ..., xK) [x1 = ... = xK].

    Args:
        groups: for each replicated variable, the axes of the table that are its copies. Axes in no
            group are single copies. All axes are copies of one variable when `None`.

    Raises:
        ValueError: an axis is in two groups, negative, or a group is empty.

    Reference:
        Section 2, consensus sets and the projection that "removes off-diagonal mass".
    """

    why_one_side = "KL(q || p) is infinite for every p on the face once q has mass off it"
    groups: tuple[tuple[int, ...], ...] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.groups is None:
            return
        flat = [axis for group in self.groups for axis in group]
        if len(set(flat)) != len(flat) or any(axis < 0 for axis in flat) or () in self.groups:
            raise ValueError(
                f"Got groups {self.groups}; expected disjoint, non-empty tuples of non-negative "
                "axes, one tuple for each replicated variable."
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
        """Remove off-diagonal mass and renormalise.

        Args:
            log_table: the table `q` up to scale; entries may be `-inf`.
            tolerance: largest `|1 - total mass|` counted as converged.
            max_steps: not used: closed form.
            throw: raise at run time if the table has no mass on the face.

        Returns:
            `log_probs` of the same shape, `-inf` off the diagonal. With no mass on the face
            (and `throw=False`) the value is `-inf` throughout and `converged` is false.

        Raises:
            ValueError: the copies in a group differ in size.
        """
        agree = jnp.ones(log_table.shape, bool)
        for group in self._checked_groups(log_table.shape):
            first = jax.lax.broadcasted_iota(jnp.int32, log_table.shape, group[0])
            for axis in group[1:]:
                copy = jax.lax.broadcasted_iota(jnp.int32, log_table.shape, axis)
                agree = jnp.logical_and(agree, copy == first)
        value = log_normalize(jnp.where(agree, log_table, jnp.full_like(log_table, -jnp.inf)))
        tolerance = default_tolerance(log_table.dtype) if tolerance is None else tolerance
        return closed_form_result(
            value, tolerance, throw, "The table has no mass on the consensus face."
        )

    def diagonal(self, log_table: Float[Array, "*states"]) -> Float[Array, "..."]:
        """Read a table on the diagonal, keeping the first axis of each group.

        This identifies tables on the face with tables on the diagonal outcomes.

        Args:
            log_table: a log-table, on the face or not.

        Returns:
            Its diagonal entries, not renormalised, one axis for each variable.

        Raises:
            ValueError: the copies in a group differ in size.
        """
        groups, strides, sizes = self._layout(log_table.shape)
        order = tuple(axis for group in groups for axis in group)
        flat = jnp.transpose(log_table, order).reshape(sizes)
        return flat[tuple(slice(None, None, stride) for stride in strides)]

    def embed(self, log_diagonal: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
        """Place a table over diagonal outcomes on the face: the inverse of `diagonal`.

        Args:
            log_diagonal: a log-table with one axis for each variable, in order of first copies.
            ndim: number of axes of the joint table.

        Returns:
            The joint log-table, `-inf` off the diagonal.

        Raises:
            ValueError: `log_diagonal` has the wrong number of axes.
        """
        groups = self._full_groups(ndim)
        if log_diagonal.ndim != len(groups):
            raise ValueError(
                f"Got a diagonal with {log_diagonal.ndim} axes for {len(groups)} variables; give "
                "one axis for each variable."
            )
        size_of = {
            axis: size
            for group, size in zip(groups, log_diagonal.shape, strict=True)
            for axis in group
        }
        groups, strides, sizes = self._layout(tuple(size_of[axis] for axis in range(ndim)))
        order = tuple(axis for group in groups for axis in group)
        empty = jnp.full(sizes, -jnp.inf, log_diagonal.dtype)
        where = tuple(slice(None, None, stride) for stride in strides)
        flat = empty.at[where].set(log_diagonal)
        joint = flat.reshape(tuple(size_of[axis] for axis in order))
        return jnp.transpose(joint, tuple(order.index(axis) for axis in range(ndim)))

    def _full_groups(self, ndim: int) -> tuple[tuple[int, ...], ...]:
        # Every axis in exactly one group, groups in order of their first copy.
        groups = (tuple(range(ndim)),) if self.groups is None else self.groups
        groups = tuple(tuple(sorted(canonical_axes(group, ndim))) for group in groups if group)
        grouped = {axis for group in groups for axis in group}
        singles = tuple((axis,) for axis in range(ndim) if axis not in grouped)
        return tuple(sorted(groups + singles))

    def _checked_groups(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        groups = self._full_groups(len(shape))
        for group in groups:
            if len({shape[axis] for axis in group}) > 1:
                raise ValueError(
                    f"Got copies of different sizes: axes {group} of a table of shape {shape}. "
                    "All copies of a variable must have the same states."
                )
        return groups

    def _layout(
        self, shape: tuple[int, ...]
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...]]:
        # With the K copies of a variable of n states side by side and flattened, state x sits at
        # x (1 + n + ... + n^(K-1)): the diagonal is a strided slice.
        groups = self._checked_groups(shape)
        strides = tuple(sum(shape[group[0]] ** k for k in range(len(group))) for group in groups)
        sizes = tuple(shape[group[0]] ** len(group) for group in groups)
        return groups, strides, sizes


def consensus_of_copies(log_copies: Float[Array, "copies *states"]) -> Float[Array, "*states"]:
    """I-project independent copies onto agreement without building their joint table.

    For `q(x1, ..., xK) = q1(x1) ... qK(xK)` the projection onto the diagonal is the normalised
    product `p(x) proportional to q1(x) ... qK(x)`.

    Args:
        log_copies: one log-table for each copy, up to scale; entries may be `-inf`.

    Returns:
        `log_probs` of the common value; `-inf` throughout if the copies share no state.

    Example:
        >>> import jax.numpy as jnp
        >>> p = consensus_of_copies(jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8]])))
        >>> [round(float(x), 6) for x in jnp.exp(p)]
        [0.2, 0.8]

    Reference:
        Section 2, consensus sets, for a product table; the belief of normalised BP.
    """
    return log_normalize(jnp.sum(log_copies, axis=0))
