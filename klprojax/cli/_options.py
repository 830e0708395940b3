"""Options of commands, grouped in dataclasses: Typer reads a signature made from their fields."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


class Precision(StrEnum):
    """Floating-point width."""

    single = "32"
    double = "64"

    def use(self) -> None:
        """Let JAX compute with this width."""
        import jax

        jax.config.update("jax_enable_x64", self is Precision.double)


class Repair(StrEnum):
    """What to do about rows of a BIF table that are no distributions."""

    normalise = "normalise"
    uniform = "uniform"


JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Floating-point bits.")]


@dataclass(frozen=True)
class Reading:
    """How model files are read."""

    repair: Annotated[
        Repair | None,
        typer.Option(
            help="For BIF tables: normalise divides each row by its sum, however far from 1; "
            "uniform does so too, and fills rows of NaN, of zeros or left out with equal "
            "probabilities. [refuse them]"
        ),
    ] = None
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of text files, latin-1 for example. [utf-8]")
    ] = None


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function: a parameter that is a dataclass stands for its fields."""
    parameters, groups = [], {}
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        found = {parameter.name: (kind, parameter.default)}
        if is_dataclass(kind):
            inner = get_type_hints(kind, include_extras=True)
            found = {f.name: (inner[f.name], f.default) for f in fields(kind)}
            groups[parameter.name] = kind, tuple(found)
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
            )
            for name, (hint, default) in found.items()
        ]

    def command(**given: Any) -> None:
        for name, (kind, names) in groups.items():
            given[name] = kind(**{inner: given.pop(inner) for inner in names})
        function(**given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
