"""The factor graph of a jaxpr (section 3.2): one variable a value, one delta factor an equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._tracing import FlatProgram, LiftError, equation_activity, is_inexact


@dataclass(frozen=True, eq=False)
class Variable:
    """A node of the lifted graph: one value of the computation.

    Attributes:
        index: position in `Structure.variables`.
        kind: `"input"` (a message into it is wanted), `"clamped"` (an argument held constant),
            `"constant"`, `"literal"` or `"intermediate"`.
        name: the path of an input in the arguments, else `v<index>`.
        shape: shape of the value.
        dtype: element type, as text.
        producer: index of the delta factor whose output it is, or None.
    """

    index: int
    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    producer: int | None


@dataclass(frozen=True, eq=False)
class DeltaFactor:
    """The factor `δ(y - ψ(x_1, ..., x_r))` of one equation `y = ψ(x_1, ..., x_r)`.

    Attributes:
        index: position in `Structure.factors`.
        primitive: name of ψ.
        inputs: variable indices of `x_1, ..., x_r`.
        outputs: variable indices of y (several for a primitive with several results).
        active: positions in `inputs` that receive a downward message.
        path: the calls and named scopes in which the equation stands, joined by `/`.
        equation: the jaxpr equation.
        rule: how messages pass through the factor.
    """

    index: int
    primitive: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    active: tuple[int, ...]
    path: str
    equation: Any
    rule: Any

    @property
    def scope(self) -> tuple[int, ...]:
        """Variables that meet in the factor, outputs first, each once."""
        return tuple(dict.fromkeys(self.outputs + self.inputs))

    @property
    def label(self) -> str:
        """Text that names the factor in tables and errors."""
        return f"equation {self.index} ({self.primitive})"


@dataclass(frozen=True, eq=False)
class Structure:
    """A lifted jaxpr without its numbers; hashed and compared by identity.

    Attributes:
        variables: all nodes.
        factors: all delta factors, in topological order.
        inputs: variable index of every jaxpr input.
        outputs: variable index of every jaxpr output.
        constants: variable index of every captured array, in the order of `constant_values`.
        literals: numbers written into the equations, by variable index.
    """

    variables: tuple[Variable, ...]
    factors: tuple[DeltaFactor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: tuple[int, ...]
    literals: dict[int, Any]

    @cached_property
    def messages(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each variable, the `(factor, input position)` pairs that send it a message.

        The outside of the graph, which seeds an output, is factor -1 (and position -1).
        """
        into: list[list[tuple[int, int]]] = [[] for _ in self.variables]
        for index in self.outputs:
            into[index].append((-1, -1))
        for factor in reversed(self.factors):
            for position in factor.active:
                into[factor.inputs[position]].append((factor.index, position))
        return tuple(map(tuple, into))

    def children(self, variable: int) -> tuple[tuple[int, int], ...]:
        """Return the `(factor, input position)` pairs that read a variable."""
        return tuple(
            (factor.index, position)
            for factor in self.factors
            for position, source in enumerate(factor.inputs)
            if source == variable
        )


MakeRule = Callable[[Any, tuple[int, ...], tuple[bool, ...], str], Any]


def build_structure(
    closed: Any,
    active: Sequence[bool],
    needed: Sequence[bool],
    make_rule: MakeRule,
    *,
    names: Sequence[str] | None = None,
    where: str = "",
) -> tuple[Structure, tuple[Any, ...]]:
    """Open a closed jaxpr up into variables and delta factors.

    Args:
        closed: the closed jaxpr.
        active: which inputs are to receive downward messages.
        needed: which outputs send them.
        make_rule: gives the rule of an equation from its active input positions, the mask of the
            outputs that carry messages, and its place.
        names: names of the inputs.
        where: prefix of the place named in errors.

    Returns:
        The structure and the values of its constants.

    Raises:
        LiftError: an equation has side effects, or messages must pass through one without a rule.
    """
    program = FlatProgram(closed, active)
    live = {index for index, flag in zip(program.inputs, active, strict=True) if flag}
    flags_of: list[list[bool]] = []
    for number, (eqn, sources, targets, _) in enumerate(program.equations):
        if eqn.effects:
            names_of_effects = ", ".join(sorted(type(e).__name__ for e in eqn.effects))
            raise LiftError(
                f"it has side effects ({names_of_effects}); a delta factor states that its output"
                " is a function of its inputs. Remove the print, callback or mutation.",
                f"{where}equation {number} ({eqn.primitive.name})",
            )
        flags = equation_activity(eqn, [source in live for source in sources])
        flags_of.append(flags)
        live.update(index for index, flag in zip(targets, flags, strict=True) if flag)

    outputs = program.outputs
    wanted = {index for index, flag in zip(outputs, needed, strict=True) if flag and index in live}
    factors: list[DeltaFactor] = []
    for number in reversed(range(len(program.equations))):
        one = program.equations[number]
        eqn, sources, targets, _ = one
        sends = tuple(
            flag and index in wanted for index, flag in zip(targets, flags_of[number], strict=True)
        )
        receives: tuple[int, ...] = ()
        if any(sends):
            receives = tuple(
                position
                for position, (source, atom) in enumerate(zip(sources, eqn.invars, strict=True))
                if source in live and is_inexact(atom.aval)
            )
            wanted.update(sources[position] for position in receives)
        name = eqn.primitive.name
        rule = make_rule(eqn, receives, sends, f"{where}equation {number} ({name})")
        factors.append(DeltaFactor(number, name, sources, targets, receives, one.path, eqn, rule))
    structure = Structure(
        _variables(program, active, names),
        tuple(reversed(factors)),
        tuple(program.inputs),
        tuple(outputs),
        tuple(program.constants),
        program.literals,
    )
    return structure, tuple(program.constants.values())


def _variables(
    program: FlatProgram, active: Sequence[bool], names: Sequence[str] | None
) -> tuple[Variable, ...]:
    labels = names or [f"input {i}" for i in range(len(program.inputs))]
    known = {
        index: ("input" if live else "clamped", label, None)
        for index, live, label in zip(program.inputs, active, labels, strict=True)
    }
    known |= {index: ("constant", f"v{index}", None) for index in program.constants}
    known |= {i: ("literal", str(np.asarray(v)), None) for i, v in program.literals.items()}
    known |= {
        index: ("intermediate", f"v{index}", number)
        for number, one in enumerate(program.equations)
        for index in one.outputs
    }
    variables = []
    for index, aval in enumerate(program.avals):
        kind, name, producer = known[index]
        shape, dtype = tuple(getattr(aval, "shape", ())), str(getattr(aval, "dtype", aval))
        variables.append(Variable(index, kind, name, shape, dtype, producer))
    return tuple(variables)
