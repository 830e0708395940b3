"""One primitive with its parameters: the ψ of an equation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import jax
from jax.extend import core as jex


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
