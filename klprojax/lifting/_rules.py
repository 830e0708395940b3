"""The rule of every equation."""

from collections.abc import Sequence
from typing import Any

from ._control import CondRule, ScanRule, WhileRule
from ._primitive import PrimitiveRule
from ._structure import Structure, build_structure


def make_rule(equation: Any, active: tuple[int, ...], sends: tuple[bool, ...], place: str) -> Any:
    """Choose how messages pass through an equation."""
    name = equation.primitive.name
    if name == "scan":
        return ScanRule(equation, active, sends, place, lift_jaxpr)
    if name == "cond":
        return CondRule(equation, active, sends, place, lift_jaxpr)
    if name == "while":
        return WhileRule(equation, active, sends, place)
    return PrimitiveRule(equation, active, sends, place)


def lift_jaxpr(
    closed: Any,
    active: Sequence[bool],
    needed: Sequence[bool],
    *,
    names: Sequence[str] | None = None,
    where: str = "",
) -> tuple[Structure, tuple[Any, ...]]:
    """Lift a closed jaxpr to its factor graph; returns the structure and its constants."""
    return build_structure(closed, active, needed, make_rule, names=names, where=where)
