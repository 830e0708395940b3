"""Which outputs of a jaxpr depend on which of its real (or complex) inputs."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex

# Call-like primitives whose inner jaxpr is opened up: the name of the call has no mathematical
# meaning, so its equations become delta factors of the surrounding graph.
_INNER_JAXPR = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}


def inner_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return `(jaxpr, consts)` of a call that is opened up, or None."""
    param = _INNER_JAXPR.get(eqn.primitive.name)
    if param is None or param not in eqn.params:
        return None
    inner = eqn.params[param]
    if isinstance(inner, jex.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner, ()


def is_inexact(aval: Any) -> bool:
    """Say whether messages into variables of this type have slopes."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def output_activity(jaxpr: Any, active: Sequence[bool]) -> list[bool]:
    """Propagate dependence on the active inputs through a jaxpr, opening every nested one."""
    live = {v for v, a in zip(jaxpr.invars, active, strict=True) if a}
    for eqn in jaxpr.eqns:
        flags = equation_activity(eqn, [_is_live(v, live) for v in eqn.invars])
        live.update(v for v, a in zip(eqn.outvars, flags, strict=True) if a)
    return [_is_live(v, live) for v in jaxpr.outvars]


def equation_activity(eqn: Any, active: Sequence[bool]) -> list[bool]:
    """Say which outputs of one equation depend differentiably on the active inputs."""
    inexact = [is_inexact(v.aval) for v in eqn.outvars]
    # stop_gradient cuts the downward message by definition: its factor sends a constant message.
    if not any(active) or not any(inexact) or eqn.primitive.name == "stop_gradient":
        return [False] * len(inexact)
    name = eqn.primitive.name
    opened = inner_jaxpr(eqn)
    if opened is not None:
        flags = output_activity(opened[0], active)
    elif name == "cond":
        branches = [output_activity(b.jaxpr, active[1:]) for b in eqn.params["branches"]]
        flags = [any(column) for column in zip(*branches, strict=True)]
    elif name == "scan":
        carry = scan_carry_activity(eqn, active)
        consts, _ = scan_counts(eqn)
        inside = [*active[:consts], *carry, *active[consts + len(carry) :]]
        outputs = output_activity(eqn.params["jaxpr"].jaxpr, inside)
        flags = [*carry, *outputs[len(carry) :]]
    elif name == "while":
        flags = _while_activity(eqn, active)
    else:
        flags = [True] * len(inexact)
    return [a and b for a, b in zip(flags, inexact, strict=True)]


def scan_counts(eqn: Any) -> tuple[int, int]:
    """Number of constants and of carries among a scan's operands."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # jax 0.12 and newer
    return len(list(consts.vals)), len(list(carry.vals))


def scan_carry_activity(eqn: Any, active: Sequence[bool]) -> list[bool]:
    """Return the least set of active carries that the body of a scan maps into itself."""
    consts, count = scan_counts(eqn)
    head, carry, tail = active[:consts], active[consts : consts + count], active[consts + count :]
    return _fixed_point(eqn.params["jaxpr"].jaxpr, list(head), list(carry), list(tail))


def _while_activity(eqn: Any, active: Sequence[bool]) -> list[bool]:
    first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = active[first : first + second], active[first + second :]
    return _fixed_point(eqn.params["body_jaxpr"].jaxpr, list(consts), list(carry), [])


def _fixed_point(body: Any, head: list[bool], carry: list[bool], tail: list[bool]) -> list[bool]:
    while True:
        outputs = output_activity(body, [*head, *carry, *tail])
        grown = [a or b for a, b in zip(carry, outputs, strict=False)]
        if grown == carry:
            return carry
        carry = grown


def _is_live(var: Any, live: set[Any]) -> bool:
    return not isinstance(var, jex.Literal) and var in live
