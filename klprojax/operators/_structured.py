"""Factors of high arity whose messages cost less than their table.

Their value depends on a summary of the variables only: the parity, whether any is on, how many are
on. Parity works on one log-odds number per message; the others read the scope like a finite
automaton and pass messages forwards and backwards along it, so the cost is linear in the arity.
"""

import abc
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ..graphs import AbstractMessageRule
from ._messages import Semiring, reduce

# -- parity ----------------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def box_plus(
    a: Float[Array, "..."] | float, b: Float[Array, "..."] | float, semiring: Semiring = "sum"
) -> Float[Array, "..."]:
    """Log-odds of ``x + y = 0 (mod 2)`` for independent bits with log-odds ``a`` and ``b``.

    ``log((1 + exp(a+b)) / (exp(a) + exp(b)))``, written around ``min(|a|, |b|)`` so that nothing
    saturates; ±inf is legal. In the max semiring, ``sign(a) sign(b) min(|a|, |b|)``.

    Reference: Hagenauer, Offer, Papke (1996).
    """
    out = jnp.sign(a) * jnp.sign(b) * jnp.minimum(jnp.abs(a), jnp.abs(b))
    if semiring == "sum":
        certain = jnp.isinf(a) & jnp.isinf(b)  # inf - inf must not arise
        b = jnp.where(certain, 0.0, b)
        gap = jnp.log1p(jnp.exp(-jnp.abs(a + b))) - jnp.log1p(jnp.exp(-jnp.abs(a - b)))
        out = out + jnp.where(certain, 0.0, gap)
    return out


@box_plus.defjvp
def _(semiring, primals, tangents):
    a, b = primals
    # The kinks of the formula above are no kinks of the function.
    step = jax.nn.sigmoid if semiring == "sum" else lambda x: 0.5 + 0.5 * jnp.sign(x)
    certain = jnp.isinf(a) & jnp.isinf(b)
    other = jnp.where(certain, 0.0, b)
    both, apart = step(a + other), step(a - other)
    to_a = jnp.where(certain, 0.0, both - apart)
    to_b = jnp.where(certain, 0.0, both - (1.0 - apart))
    return box_plus(a, b, semiring), to_a * tangents[0] + to_b * tangents[1]


def box_plus_others(
    odds: Float[Array, "arity *batch"], start: Float[Array, "*batch"], semiring: Semiring
) -> Float[Array, "arity *batch"]:
    """`box_plus` over all entries but one, and ``start``, for each entry; linear in the arity."""

    def forward(before, odds):
        return box_plus(before, odds, semiring), before

    def backward(after, item):
        odds, before = item
        return box_plus(after, odds, semiring), box_plus(after, before, semiring)

    certainly_even = jnp.full_like(start, jnp.inf)
    _, before = lax.scan(forward, certainly_even, odds)
    _, out = lax.scan(backward, start, (odds, before), reverse=True)
    return out


class Parity(AbstractMessageRule):
    """Weigh the parity of a sum of bits: ``f(x) = exp(parameters[sum(x) mod 2])``.

    ``parameters``: ``[2]`` log-weights of even and of odd sums, nats. A parity check, which only
    even sums satisfy, is ``[0, -inf]``. Messages cost O(arity), one log-odds number each.

    Example:
        >>> import numpy as np
        >>> from klprojax.graphs import FactorGraph, Structured
        >>> graph = FactorGraph([2] * 30, [Structured([range(30)], Parity())])
        >>> log_potentials = graph.pack([np.array([0.0, -np.inf])])

    Raises:
        ValueError: a scope that is empty or has a variable that is not binary.
    """

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``(2,)``.

        Args:
            shape: cardinalities of the scope.
        """
        _check_binary(self, shape)
        return (2,)

    def messages(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors states"], ...],
        semiring: Literal["sum", "max"],
    ) -> tuple[Float[Array, "factors states"], ...]:
        """See `AbstractMessageRule`; gauge: the larger entry is 0."""
        odds, empty = _log_odds(_stack(incoming))
        own, own_empty = _log_odds(parameters)
        # The parameters act like one more message into a factor that admits even sums only.
        out = box_plus_others(odds, jnp.broadcast_to(own, odds.shape[1:]), semiring)
        table = jnp.stack([jnp.minimum(out, 0.0), jnp.minimum(-out, 0.0)], axis=-1)
        others = jnp.sum(empty, axis=0, keepdims=True, dtype=jnp.int32) - empty + own_empty[None]
        table = jnp.where((others > 0)[..., None], -jnp.inf, table)
        return _unstack(table)

    def log_mass(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors states"], ...],
        semiring: Literal["sum", "max"],
    ) -> Float[Array, " factors"]:
        """See `AbstractMessageRule`."""
        stacked = _stack(incoming)
        odds, _ = _log_odds(stacked)

        def forward(before, odds):
            return box_plus(before, odds, semiring), None

        odds, _ = lax.scan(forward, jnp.full_like(odds[0], jnp.inf), odds)
        if semiring == "sum":
            sides = jax.nn.log_sigmoid(odds), jax.nn.log_sigmoid(-odds)
        else:
            sides = jnp.minimum(odds, 0.0), jnp.minimum(-odds, 0.0)
        inside = reduce(parameters + jnp.stack(sides, axis=-1), -1, semiring)
        return inside + jnp.sum(reduce(stacked, -1, semiring), axis=0)

    def log_table(
        self, parameters: Float[Array, "..."], shape: tuple[int, ...]
    ) -> Float[Array, "..."]:
        """``[factors or 1, *shape]``."""
        return parameters[:, np.indices(shape).sum(axis=0) % 2]


def _log_odds(table: Float[Array, "... 2"]) -> tuple[Float[Array, "..."], Array]:
    """``table[0] - table[1]``, and 1 where both are `-inf` (the log-odds are 0 there)."""
    empty = jnp.all(jnp.isneginf(table), axis=-1)
    # Both entries are replaced, so that no derivative sees -inf - -inf.
    table = jnp.where(empty[..., None], 0.0, table)
    return table[..., 0] - table[..., 1], empty.astype(jnp.int32)


# -- automata --------------------------------------------------------------------------------


class Transitions(NamedTuple):
    """A finite automaton that reads the states of a scope's variables in order.

    next: the summary after reading a state, ``[summaries, states]``; the number of summaries
    where the assignment has weight zero whatever follows. start: the summary of nothing.
    """

    next: np.ndarray
    start: int


class AbstractAutomaton(AbstractMessageRule):
    """Base of factors that a finite automaton evaluates: ``f(x) = exp(parameters[summary(x)])``.

    The automaton reads the variables in the order of the scope. Cost of all messages:
    O(arity * summaries * states). Subclasses say which automaton; the rest is done here.
    """

    @abc.abstractmethod
    def transitions(self, shape: tuple[int, ...]) -> Transitions:
        """The automaton for a scope of these cardinalities, all equal.

        Args:
            shape: cardinalities of the scope, in order.

        Raises:
            ValueError: the rule does not suit such a scope.
        """

    def parameter_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One log-weight a summary."""
        return (len(self.transitions(shape).next),)

    def messages(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors states"], ...],
        semiring: Literal["sum", "max"],
    ) -> tuple[Float[Array, "factors states"], ...]:
        """See `AbstractMessageRule`; unnormalised."""
        forward, start, following, stacked = self._forward(incoming, semiring)
        _, before = lax.scan(forward, start, stacked)

        def backward(after, item):
            message, (before, _) = item
            after = _with_nothing(after)[following]  # [summaries, states, factors]
            out = reduce(before[:, None] + after, 0, semiring)
            return _level(reduce(after + message[None], 1, semiring))[0], out

        end = jnp.broadcast_to(parameters.T, start.shape)
        _, out = lax.scan(backward, end, (stacked, before), reverse=True)
        return _unstack(out.transpose(0, 2, 1))

    def log_mass(
        self,
        parameters: Float[Array, "..."],
        incoming: tuple[Float[Array, "factors states"], ...],
        semiring: Literal["sum", "max"],
    ) -> Float[Array, " factors"]:
        """See `AbstractMessageRule`."""
        forward, start, _, stacked = self._forward(incoming, semiring)
        last, (_, levels) = lax.scan(forward, start, stacked)
        return reduce(last + parameters.T, 0, semiring) + jnp.sum(levels, axis=0)

    def log_table(
        self, parameters: Float[Array, "..."], shape: tuple[int, ...]
    ) -> Float[Array, "..."]:
        """``[factors or 1, *shape]``."""
        following, start = self.transitions(shape)
        ended = len(following)
        following = np.concatenate([following, np.full((1, following.shape[1]), ended)])
        summary = np.full(shape, start)
        for states in np.indices(shape):
            summary = following[summary, states]
        return _with_nothing(parameters.T).T[:, summary]

    def _forward(self, incoming, semiring):
        shape = tuple(message.shape[1] for message in incoming)
        following, start = self.transitions(shape)
        ways_from, ways_by = _predecessors(following)
        # Factors last: every step is arithmetic on long rows.
        stacked = _stack(incoming).transpose(0, 2, 1)
        at_start = np.arange(len(following))[:, None] == start
        begin = jnp.where(at_start, 0.0, -jnp.inf).astype(stacked.dtype)

        def forward(before, message):
            ways = _with_nothing(before)[ways_from] + message[ways_by]
            after, level = _level(reduce(ways, 1, semiring))
            return after, (before, level)

        begin = jnp.broadcast_to(begin, (len(following), stacked.shape[2]))
        return forward, begin, following, stacked


def _predecessors(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per summary, the (summary, state) pairs that lead to it, padded with a summary too many."""
    count, states = following.shape
    ways = [[divmod(int(i), states) for i in np.flatnonzero(following == s)] for s in range(count)]
    width = max(1, max(map(len, ways), default=1))
    padded = np.asarray([way + [(count, 0)] * (width - len(way)) for way in ways])
    return padded[..., 0], padded[..., 1]


def _with_nothing(table: Float[Array, "summaries factors"]) -> Float[Array, "more factors"]:
    return jnp.concatenate([table, jnp.full_like(table[:1], -jnp.inf)])


def _level(table: Float[Array, "summaries factors"]):
    """Bring the largest entry to 0, so that long scopes lose no digits to the common level."""
    top = lax.stop_gradient(jnp.max(table, axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return table - top[None], top


class Automaton(AbstractAutomaton):
    """Weigh the state in which a finite automaton ends after reading the scope.

    Args:
        next: per summary, the summary after each state of the next variable; -1 where the
            assignment has weight zero whatever follows.
        start: the summary of nothing.

    ``parameters``: ``[summaries]`` log-weights of the final summary, nats.

    Example: no two neighbours of a scope both on (summary 1 is "the last one was on").

        >>> from klprojax.operators._structured import Automaton
        >>> Automaton([[0, 1], [0, -1]]).parameter_shape((2, 2, 2, 2))
        (2,)

    Raises:
        ValueError: a table that is not rectangular or names a summary that does not exist; a scope
            that is empty or whose variables do not have one state per column.
    """

    next: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    start: int = eqx.field(static=True, default=0)

    def __init__(self, next: Sequence[Sequence[int]], start: int = 0):
        self.next = tuple(tuple(int(s) for s in row) for row in next)
        self.start = int(start)

    def __check_init__(self):
        widths = {len(row) for row in self.next}
        if len(widths) != 1 or widths == {0}:
            raise ValueError(
                "`next` needs one row a summary and one column a state, all rows of one length; "
                f"got rows of lengths {[len(row) for row in self.next]}."
            )
        named = {s for row in self.next for s in row} | {self.start}
        wrong = sorted(s for s in named if not -1 <= s < len(self.next))
        if wrong or self.start < 0:
            bad = wrong[0] if wrong else self.start
            raise ValueError(
                f"The automaton names summary {bad}; it has summaries 0..{len(self.next) - 1} "
                "(-1 in `next` ends with weight zero)."
            )

    def transitions(self, shape: tuple[int, ...]) -> Transitions:
        """The table given.

        Args:
            shape: cardinalities of the scope, in order.
        """
        table = np.asarray(self.next)
        if not shape or any(card != table.shape[1] for card in shape):
            raise ValueError(
                f"This automaton reads variables of {table.shape[1]} states and needs at least "
                f"one; the scope has cardinalities {shape}."
            )
        return Transitions(np.where(table < 0, len(table), table), self.start)


class Or(AbstractAutomaton):
    """Weigh whether any bit is on.

    ``parameters``: ``[2]`` log-weights of "none on" and "some on", nats. ``[-inf, 0]`` demands at
    least one. Messages cost O(arity).

    Raises:
        ValueError: a scope that is empty or has a variable that is not binary.
    """

    def transitions(self, shape: tuple[int, ...]) -> Transitions:
        """Summary 1 once a bit was on.

        Args:
            shape: cardinalities of the scope, in order.
        """
        _check_binary(self, shape)
        return Transitions(np.array([[0, 1], [1, 1]]), 0)


class And(AbstractAutomaton):
    """Weigh whether all bits are on.

    ``parameters``: ``[2]`` log-weights of "not all on" and "all on", nats. ``[0, -inf]`` forbids
    that all are. Messages cost O(arity).

    Raises:
        ValueError: a scope that is empty or has a variable that is not binary.
    """

    def transitions(self, shape: tuple[int, ...]) -> Transitions:
        """Summary 1 while all bits were on.

        Args:
            shape: cardinalities of the scope, in order.
        """
        _check_binary(self, shape)
        return Transitions(np.array([[0, 0], [0, 1]]), 1)


class Cardinality(AbstractAutomaton):
    """Weigh how many bits are on: ``f(x) = exp(parameters[sum(x)])``, 0 above ``max_count``.

    Args:
        max_count: the largest number of bits that may be on (default: all). Fixed by the structure,
            it bounds the cost: O(arity * (max_count + 1)) for all messages.

    ``parameters``: ``[min(arity, max_count) + 1]`` log-weights of 0, 1, 2, ... bits on, nats. See
    `exactly` and `at_most`.

    Example:
        >>> from klprojax.graphs import FactorGraph, Structured
        >>> rule = Cardinality(max_count=2)
        >>> graph = FactorGraph([2] * 30, [Structured([range(30)], rule)])
        >>> log_potentials = graph.pack([rule.exactly(2, arity=30)])

    Raises:
        ValueError: a negative ``max_count``; a scope that is empty or has a variable that is not
            binary.
    """

    max_count: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.max_count is not None and self.max_count < 0:
            raise ValueError(f"max_count is {self.max_count}; it must be at least 0.")

    def transitions(self, shape: tuple[int, ...]) -> Transitions:
        """The summary is the number of bits on so far.

        Args:
            shape: cardinalities of the scope, in order.
        """
        _check_binary(self, shape)
        most = len(shape) if self.max_count is None else min(self.max_count, len(shape))
        counts = np.arange(most + 1)
        return Transitions(np.stack([counts, counts + 1], axis=1), 0)

    def exactly(self, count: int, arity: int) -> Float[np.ndarray, " counts"]:
        """Log-weights that admit ``count`` bits on, no more and no fewer.

        Raises:
            ValueError: such a count is impossible on ``arity`` variables or above ``max_count``.
        """
        counts = self._counts(count, arity)
        return np.where(counts == count, 0.0, -np.inf)

    def at_most(self, count: int, arity: int) -> Float[np.ndarray, " counts"]:
        """Log-weights that admit up to ``count`` bits on.

        Raises:
            ValueError: such a count is impossible on ``arity`` variables or above ``max_count``.
        """
        counts = self._counts(count, arity)
        return np.where(counts <= count, 0.0, -np.inf)

    def _counts(self, count: int, arity: int) -> np.ndarray:
        (length,) = self.parameter_shape((2,) * arity)
        if not 0 <= count < length:
            raise ValueError(
                f"count is {count}; {arity} variables under Cardinality(max_count="
                f"{self.max_count}) have 0..{length - 1} bits on."
            )
        return np.arange(length)


def _stack(
    axes: tuple[Float[Array, "factors states"], ...],
) -> Float[Array, "arity factors states"]:
    # Not jnp.stack: XLA sees through a concatenation of neighbouring slices, whose number costs
    # seconds of compilation on long scopes, but not through one of reshaped slices.
    return jnp.concatenate(axes).reshape(len(axes), *axes[0].shape)


def _unstack(
    table: Float[Array, "arity factors states"],
) -> tuple[Float[Array, "factors states"], ...]:
    return tuple(jnp.split(table.reshape(-1, table.shape[2]), table.shape[0]))


def _check_binary(rule: AbstractMessageRule, shape: tuple[int, ...]) -> None:
    if not shape or any(card != 2 for card in shape):
        raise ValueError(
            f"{type(rule).__name__} is a factor on one or more binary variables; the scope has "
            f"cardinalities {shape}."
        )
