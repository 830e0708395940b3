"""``klprojax verify``: every statement of the paper, or Theorem 3.3 on one's own function."""

import importlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

NOT_AS_EXPECTED, BAD_INPUT = 1, 2
# Columns of the table where the output is no terminal whose width could be asked for.
PLAIN_WIDTH = 150


class Precision(StrEnum):
    """Floating-point width."""

    single = "32"
    double = "64"


def verify_command(
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    precision: Annotated[Precision, typer.Option(help="Floating-point bits.")] = Precision.double,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A check's name, or its beginning (theorem_3_3). May be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
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
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    errors = Console(stderr=True)
    import jax

    jax.config.update("jax_enable_x64", precision is Precision.double)
    dtype = f"float{precision.value}"
    start = time.perf_counter()
    try:
        if json_out is not None and not json_out.parent.is_dir():
            raise ValueError(f"--json: there is no folder {json_out.parent}")
        if function is None:
            checks = _statements(errors, only or None, seed, dtype)
        elif only:
            raise ValueError("--only chooses among the paper's statements; leave out --function")
        else:
            checks = _user_function(errors, function, seed)
        _show(console, checks)
        if json_out is not None:
            _write_json(json_out, int(precision.value), checks)
    except (ValueError, OSError) as error:
        errors.print(f"[red]error:[/red] {_escaped(error)}", highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
    for check in checks:
        if check.error is not None:
            errors.print(f"{check.name}: {_escaped(check.error)}", highlight=False, soft_wrap=True)
    wrong = [check.name for check in checks if not check.as_expected]
    seconds = time.perf_counter() - start
    summary = f"{len(checks)} checks in {seconds:.1f} s, {dtype}, seed {seed}: "
    summary += "all as expected." if not wrong else f"NOT as expected: {', '.join(wrong)}."
    console.print(summary, highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(NOT_AS_EXPECTED)


def _statements(errors: Console, only: list[str] | None, seed: int, dtype: str) -> list[Any]:
    from ..checks import registered_checks, run_check

    entries = registered_checks(only)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    out = []
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as progress:
        task = progress.add_task("", total=len(entries))
        for entry in entries:
            progress.update(task, description=entry.name)
            out.append(run_check(entry, seed=seed, dtype=dtype))
            progress.advance(task)
    return out


def _user_function(errors: Console, spec: str, seed: int) -> list[Any]:
    from ..checks import check_function

    function, args = load_function(spec)

    def note(text: str) -> None:
        errors.print(f"[dim]note: {_escaped(text)}[/dim]", highlight=False, soft_wrap=True)

    with errors.status(spec):
        return list(check_function(function, *args, name=spec, seed=seed, note=note))


def load_function(spec: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Import ``MODULE:NAME`` and the example arguments ``NAME_args`` beside it.

    Raises:
        ValueError: the module, the function or the arguments cannot be had.
    """
    where, colon, name = spec.rpartition(":")
    if not (colon and where and name):
        raise ValueError(f"--function is {spec!r}; it must be MODULE:NAME, as in model:loss")
    try:
        module = _import(where)
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import {where}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{where} has no function {name}")
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


def _import(where: str) -> ModuleType:
    """Import a module by name from the current folder, or a file by its path."""
    path = Path(where)
    is_file = path.suffix == ".py"
    folder = str(path.resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        if not is_file:
            return importlib.import_module(where)
        # A name of its own: a file called json.py must not take the place of a module.
        name = f"_verified_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


def _show(console: Console, checks: list[Any]) -> None:
    table = Table()
    table.add_column("statement, name", no_wrap=console.width >= PLAIN_WIDTH)
    table.add_column("compared")
    table.add_column("reading")
    for heading in ("residual", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("holds")
    for check in checks:
        if check.as_expected:
            verdict = "yes" if check.holds else "no, as expected"
        else:
            verdict = "[bold red]YES, but should not[/]" if check.holds else "[bold red]NO[/]"
        table.add_row(
            f"{check.statement}\n[dim]{_escaped(check.name)}[/dim]",
            check.compared,
            check.reading,
            _number(check.residual),
            _number(check.tolerance),
            verdict,
        )
    console.print(table)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _escaped(text: Any) -> str:
    # Messages may hold square brackets, which rich would take for markup.
    from rich.markup import escape

    return escape(str(text))


def _write_json(path: Path, precision: int, checks: list[Any]) -> None:
    content = {"precision": precision, "checks": [check.to_json() for check in checks]}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
