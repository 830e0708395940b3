"""``klprojax verify``: every statement of the paper, or Theorem 3.3 on one's own function."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ._options import Precision, PrecisionOption
from ._screen import NOT_AS_EXPECTED, Screen, check_outputs, visible, write_json, write_then_show
from ._user_code import load_named


def verify_command(
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    precision: PrecisionOption = Precision.double,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A check's name, or its beginning (theorem_3_3). May be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the example; what it counts, and its default, is each check's own.",
        ),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Check Theorem 3.3 on this function instead. MODULE is a module that can be "
            "imported from the current folder, or a path to a .py file. The function's example "
            "arguments stand beside it in the module as NAME_args: a tuple, or a function without "
            "arguments that returns one.",
        ),
    ] = None,
) -> None:
    """Verify the paper's statements numerically, one line each.

    A statement that fails when taken literally is listed in both readings, and is expected to fail
    in the literal one.

    Exit status: 0 if all came out as expected; 1 if one did not; 2 for bad input.
    """
    screen = Screen()
    precision.use()
    from ..checks._provenance import provenance

    dtype = f"float{precision.value}"
    start = time.perf_counter()
    with screen.bad_input_exits():
        check_outputs(json_out)
        if function is None:
            checks = _statements(screen, only or None, seed, size, dtype)
        elif only or size is not None:
            raise ValueError(
                "--only and --size are about the paper's statements; leave out --function"
            )
        else:
            checks = _user_function(screen, function, seed)
        content = {
            "precision": int(precision.value),
            "seed": seed,
            "size": size,
            **provenance(),
            "checks": [check.to_json() for check in checks],
        }
        write_then_show(lambda: write_json(json_out, content), lambda: _show(screen, checks))
    for check in checks:
        if check.error is not None:
            screen.note(f"{check.name}: {check.error}", style="")
    wrong = [check.name for check in checks if not check.as_expected]
    seconds = time.perf_counter() - start
    summary = f"{len(checks)} checks in {seconds:.1f} s, {dtype}, seed {seed}: "
    summary += "all as expected." if not wrong else f"NOT as expected: {', '.join(wrong)}."
    screen.show(summary)
    if wrong:
        raise typer.Exit(NOT_AS_EXPECTED)


def _statements(
    screen: Screen, only: list[str] | None, seed: int, size: int | None, dtype: str
) -> list[Any]:
    from ..checks import registered_checks, run_check

    entries = registered_checks(only)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    out = []
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=screen.errors,
        transient=True,
        disable=not screen.errors.is_terminal,
    ) as progress:
        task = progress.add_task("", total=len(entries))
        for entry in entries:
            progress.update(task, description=visible(entry.name))
            out.append(run_check(entry, seed=seed, size=size, dtype=dtype))
            progress.advance(task)
    return out


def _user_function(screen: Screen, spec: str, seed: int) -> list[Any]:
    from ..checks import check_function

    function, args = load_function(spec)
    with screen.working(spec):
        return list(
            check_function(
                function,
                *args,
                name=spec,
                seed=seed,
                note=lambda text: screen.note(f"note: {text}"),
            )
        )


def load_function(spec: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Import ``MODULE:NAME`` and the example arguments ``NAME_args`` beside it.

    Raises:
        ValueError: the module, the function or the arguments cannot be had.
    """
    module, function = load_named("--function", spec, "model:loss")
    where, _, name = spec.rpartition(":")
    companion = f"{name}_args"
    if not hasattr(module, companion):
        raise ValueError(
            f"{where} has no {companion}, the example arguments of {name}; define it as a tuple, "
            f"{companion} = (x, y), or as a function without arguments that returns one"
        )
    args = getattr(module, companion)
    if callable(args):
        try:
            args = args()
        except Exception as error:
            raise ValueError(f"{companion}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(args, tuple):
        raise ValueError(
            f"{companion} gives a {type(args).__name__}; it must be a tuple of arguments, "
            "(x,) for one"
        )
    return function, args


def _show(screen: Screen, checks: list[Any]) -> None:
    rows = []
    for check in checks:
        if check.as_expected:
            verdict = Text("yes" if check.holds else "no, as expected")
        else:
            verdict = Text("YES, but should not" if check.holds else "NO", "bold red")
        name = Text.assemble(visible(check.statement), "\n", (visible(check.name), "dim"))
        numbers = _number(check.residual), _number(check.tolerance)
        rows.append((name, check.compared, check.reading, *numbers, verdict))
    headings = ("statement, name", "compared", "reading", "residual", "tolerance", "holds")
    screen.table(headings, rows, left=("statement, name", "compared", "reading", "holds"))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"
