"""Messages through the delta factor of one primitive (Lemma 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from ._activity import output_activity
from ._error import LiftError

# Callbacks run arbitrary Python: nothing is known about their slope.
_OPAQUE = frozenset({"pure_callback", "io_callback", "debug_callback", "ffi_call"})


class Psi:
    """One primitive with its parameters: the ψ of a delta factor.

    Hashable, so that equal equations (the same layer twice) share one traced local rule.
    """

    def __init__(self, equation: Any):
        self.primitive = equation.primitive
        self.params = dict(equation.params)
        self._context = getattr(getattr(equation, "ctx", None), "manager", None)
        key: Any = (self.primitive, tuple(sorted(self.params.items(), key=lambda item: item[0])))
        # A rule that holds functions or jaxprs is never equal to another one, and may hold
        # tracers, so it stays out of the cache.
        opaque = any(
            callable(v) or isinstance(v, (jex.Jaxpr, jex.ClosedJaxpr)) for v in _leaves(self.params)
        )
        try:
            self._hash = hash(key)
        except TypeError:
            opaque = True
        self.is_cacheable = not opaque
        if opaque:
            key, self._hash = id(self), id(self)
        self._key = key

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Psi) and self._key == other._key)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Evaluate ψ."""
        bound = self.primitive.get_bind_params(self.params)
        # Older releases of JAX return the callables apart from the parameters.
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        with self._context if self._context is not None else nullcontext():
            outputs = self.primitive.bind(*functions, *inputs, **params)
        return tuple(outputs) if self.primitive.multiple_results else (outputs,)


def _leaves(params: dict[str, Any]) -> list[Any]:
    return jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, (jex.Jaxpr, jex.ClosedJaxpr)))


def _pull(
    psi: Psi,
    active: tuple[int, ...],
    sends: tuple[bool, ...],
    inputs: tuple[Any, ...],
    slopes: tuple[Any, ...],
) -> tuple[Any, ...]:
    def substitute(*values: Any) -> tuple[Any, ...]:
        full = list(inputs)
        for position, value in zip(active, values, strict=True):
            full[position] = value
        return tuple(y for y, flag in zip(psi(*full), sends, strict=True) if flag)

    # log m_{g->x}(x) = log m_{y->g}(psi(x)): the slope of one log-message of one primitive.
    _, pull = jax.vjp(substitute, *(inputs[position] for position in active))
    return pull(slopes)


_cached_pull = partial(jax.jit, static_argnums=(0, 1, 2), inline=True)(_pull)


def _pull_by_rule(
    psi: Psi,
    active: tuple[int, ...],
    sends: tuple[bool, ...],
    inputs: tuple[Any, ...],
    slopes: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Apply a rule that a user or JAX itself gave; None for a message that is constant.

    A rule may ignore some of its inputs. The message into such an input is constant, which further
    factors must learn: some of them refuse every message but a constant one.
    """
    closed = jax.make_jaxpr(lambda *given: _pull(psi, active, sends, inputs, given))(*slopes)
    varies = output_activity(closed.jaxpr, [True] * len(slopes))
    results = Replay(closed, varies)(*slopes)
    return tuple(result if flag else None for result, flag in zip(results, varies, strict=True))


class Replay:
    """A jaxpr pruned to the equations that its outputs need.

    Attributes:
        reads: for each argument, whether it is read at all; the others may be given as None.
    """

    def __init__(self, closed: Any, keep: Sequence[bool] | None = None):
        jaxpr = closed.jaxpr
        keep = [True] * len(jaxpr.outvars) if keep is None else keep
        self._outputs = [
            atom if flag else None for atom, flag in zip(jaxpr.outvars, keep, strict=True)
        ]
        wanted = {
            atom for atom in self._outputs if atom is not None and not isinstance(atom, jex.Literal)
        }
        steps = []
        for eqn in reversed(jaxpr.eqns):
            if wanted.isdisjoint(eqn.outvars):
                continue
            wanted.update(atom for atom in eqn.invars if not isinstance(atom, jex.Literal))
            steps.append((Psi(eqn), eqn.invars, eqn.outvars))
        self._steps = tuple(reversed(steps))
        self._jaxpr = jaxpr
        self._consts = closed.consts
        self.reads = [var in wanted for var in jaxpr.invars]

    def __call__(self, *arguments: Any) -> list[Any]:
        """Evaluate the outputs that are kept; None for the others."""
        env: dict[Any, Any] = dict(zip(self._jaxpr.constvars, self._consts, strict=True))
        env.update(zip(self._jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for psi, sources, targets in self._steps:
            env.update(zip(targets, psi(*map(read, sources)), strict=True))
        return [None if atom is None else read(atom) for atom in self._outputs]


class PrimitiveRule:
    """Substitution into one primitive: `log m_{g->x_j}(x_j) = log m_{y->g}(ψ(x_j, x*_{-j}))`."""

    def __init__(self, equation: Any, active: tuple[int, ...], sends: tuple[bool, ...], place: str):
        self.psi = Psi(equation)
        self.active = active
        self.sends = sends
        self.place = place
        if active and equation.primitive.name in _OPAQUE:
            raise LiftError(
                "a callback has no derivative rule; wrap the function that calls it in"
                " jax.custom_vjp or jax.custom_jvp",
                place,
            )

    def upward(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Evaluate ψ at the forward values; nothing is saved."""
        return self.psi(*inputs), ()

    def downward(
        self, inputs: Sequence[Any], outputs: Sequence[Any], saved: Any, slopes: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Return the slope of the log-message into every active input, None if constant."""
        del saved
        given = tuple(
            jnp.zeros_like(y) if s is None else s
            for y, s, flag in zip(outputs, slopes, self.sends, strict=True)
            if flag
        )
        pull = _cached_pull if self.psi.is_cacheable else _pull_by_rule
        try:
            return pull(self.psi, self.active, self.sends, tuple(inputs), given)
        except (NotImplementedError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise LiftError(
                f"the primitive has no slope at this point of the trace ({error})", self.place
            ) from error
