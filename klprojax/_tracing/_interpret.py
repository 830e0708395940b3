"""Running through a jaxpr with values of any kind, and opening the calls in it."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core as jex

from ._psi import Psi

# Calls: a name has no mathematical meaning, so what they hold belongs to the program around them.
_CALLS = dict.fromkeys(("jit", "pjit", "remat", "remat2", "checkpoint"), "jaxpr")
_CALLS |= dict.fromkeys(("closed_call", "core_call", "call"), "call_jaxpr")
# Functions whose derivative is given by a rule.
_RULED = dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr")
_RULED |= {"custom_vjp_call_jaxpr": "fun_jaxpr"}
RULES = ("custom_jvp", "custom_vjp")


def open_call(eqn: Any, rules: tuple[str, ...] = ()) -> tuple[Any, Sequence[Any]] | None:
    """Return `(jaxpr, consts)` of a call, or None for an equation of another kind.

    Args:
        eqn: the equation.
        rules: which functions with derivative rules are opened too, of `RULES`.
    """
    name = eqn.primitive.name
    parameter = _RULED.get(name) if name.startswith(rules) else _CALLS.get(name)
    inner = None if parameter is None else eqn.params.get(parameter)
    if isinstance(inner, jex.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return None if inner is None else (inner, ())


def interpret(
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    apply: Callable[[Any, list[Any]], Sequence[Any]],
    literal: Callable[[Any], Any] = lambda atom: atom.val,
    *,
    equations: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
) -> list[Any]:
    """Run through a jaxpr in order.

    Args:
        jaxpr: the program.
        consts: values of its constants.
        arguments: values of its arguments.
        apply: gives the values of an equation's outputs from those of its inputs.
        literal: gives the value of a number written into an equation.
        equations: those to run, by default all.
        outputs: variables to return, by default the program's own; None stays None.

    Returns:
        Values of the outputs.
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return literal(atom) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns if equations is None else equations:
        env.update(zip(eqn.outvars, apply(eqn, [read(v) for v in eqn.invars]), strict=True))
    results = jaxpr.outvars if outputs is None else outputs
    return [None if atom is None else read(atom) for atom in results]


def evaluate(eqn: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """Evaluate an equation on arrays; rules of `custom_vjp`, which know no `jvp`, are left out."""
    inner = open_call(eqn, ("custom_vjp",))
    return Psi(eqn)(*arguments) if inner is None else interpret(*inner, arguments, evaluate)


class Replay:
    """A jaxpr pruned to the equations that its outputs need.

    Attributes:
        reads: for each argument, whether it is read at all; the others may be given as None.
    """

    def __init__(self, closed: Any, keep: Sequence[bool] | None = None):
        self._closed, outvars = closed, closed.jaxpr.outvars
        keep = [True] * len(outvars) if keep is None else keep
        self._outputs = [atom if flag else None for atom, flag in zip(outvars, keep, strict=True)]
        wanted = set(_variables(self._outputs))
        equations = []
        for eqn in reversed(closed.jaxpr.eqns):
            if not wanted.isdisjoint(eqn.outvars):
                wanted.update(_variables(eqn.invars))
                equations.append(eqn)
        self._equations = equations[::-1]
        self.reads = [var in wanted for var in closed.jaxpr.invars]

    def __call__(self, *arguments: Any) -> list[Any]:
        """Evaluate the outputs that are kept; None for the others."""
        return interpret(
            self._closed.jaxpr,
            self._closed.consts,
            arguments,
            lambda eqn, inputs: Psi(eqn)(*inputs),
            equations=self._equations,
            outputs=self._outputs,
        )


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not (atom is None or isinstance(atom, jex.Literal))]
