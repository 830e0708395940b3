"""Which outputs of a jaxpr depend on which of its real (or complex) inputs."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ._interpret import interpret, open_call


def is_inexact(aval: Any) -> bool:
    """Say whether messages into variables of this type have slopes."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def output_activity(jaxpr: Any, active: Sequence[bool]) -> list[bool]:
    """Propagate dependence on the active inputs through a jaxpr, opening every nested one."""
    constants = [False] * len(jaxpr.constvars)
    return interpret(jaxpr, constants, active, equation_activity, lambda atom: False)


def equation_activity(eqn: Any, active: Sequence[bool]) -> list[bool]:
    """Say which outputs of one equation depend differentiably on the active inputs."""
    inexact = [is_inexact(v.aval) for v in eqn.outvars]
    # stop_gradient cuts the downward message by definition: its factor sends a constant message.
    if not any(active) or not any(inexact) or eqn.primitive.name == "stop_gradient":
        return [False] * len(inexact)
    name = eqn.primitive.name
    opened = open_call(eqn)
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
