"""A jaxpr with its calls opened up, every value a number."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ._interpret import interpret, open_call


class FlatEquation(NamedTuple):
    """An equation between numbered values: equal functions called twice stay apart.

    Attributes:
        equation: of the jaxpr.
        inputs: numbers of the values read.
        outputs: numbers of the values made.
        calls: equations of the calls around it, the outermost first.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[Any, ...]

    @property
    def path(self) -> str:
        """The calls and named scopes in which it stands, joined by `/`."""
        parts = [
            (call.source_info.name_stack, call.params.get("name") or call.primitive.name)
            for call in self.calls
        ]
        flat = [*(str(part) for pair in parts for part in pair)]
        return "/".join(filter(None, [*flat, str(self.equation.source_info.name_stack)]))


class FlatProgram:
    """The equations of a closed jaxpr and of the calls in it, in order.

    Args:
        closed: the jaxpr.
        live: which of its arguments count as live; so does what is made of a live value.
        rules: which functions with derivative rules are opened, as for `open_call`.
        whole: says of a call, from its equation and its live inputs, whether it stays closed.

    Attributes:
        avals: type of every value.
        inputs: numbers of the arguments.
        outputs: numbers of the results.
        constants: captured arrays, by number.
        literals: equations' own numbers, as atoms, by number.
        equations: in order.
        live: numbers of the live values.
    """

    def __init__(
        self,
        closed: Any,
        live: Sequence[bool],
        rules: tuple[str, ...] = (),
        whole: Callable[[Any, set[int]], bool] = lambda eqn, live: False,
    ):
        self.avals: list[Any] = []
        self.constants: dict[int, Any] = {}
        self.literals: dict[int, Any] = {}
        self.equations: list[FlatEquation] = []
        self._rules, self._whole = rules, whole
        self.inputs = [self._number(var) for var in closed.jaxpr.invars]
        self.live = {key for key, flag in zip(self.inputs, live, strict=True) if flag}
        self.outputs = self._run(closed.jaxpr, closed.consts, self.inputs, ())

    def _number(self, atom: Any) -> int:
        self.avals.append(atom.aval)
        return len(self.avals) - 1

    def _literal(self, atom: Any) -> int:
        number = self._number(atom)
        self.literals[number] = atom.val
        return number

    def _run(self, jaxpr: Any, consts: Any, arguments: Any, calls: tuple[Any, ...]) -> list[int]:
        keys = [self._number(var) for var in jaxpr.constvars]
        self.constants.update(zip(keys, consts, strict=True))

        def apply(eqn: Any, inputs: list[int]) -> Sequence[int]:
            live = self.live.intersection(inputs)
            inner = open_call(eqn, self._rules)
            if inner is not None and not self._whole(eqn, live):
                return self._run(*inner, inputs, (*calls, eqn))
            outputs = [self._number(var) for var in eqn.outvars]
            self.live.update(outputs if live else ())
            self.equations.append(FlatEquation(eqn, tuple(inputs), tuple(outputs), calls))
            return outputs

        return interpret(jaxpr, keys, arguments, apply, self._literal)

    def needed(self) -> list[FlatEquation]:
        """The equations that the results depend on."""
        read, kept = set(self.outputs), []
        for one in reversed(self.equations):
            if not read.isdisjoint(one.outputs):
                read.update(one.inputs)
                kept.append(one)
        return kept[::-1]
