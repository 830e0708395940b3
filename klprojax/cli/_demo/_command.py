"""The command: run the parts behind progress bars, write the report."""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

NOT_AS_EXPECTED, BAD_INPUT = 1, 2


def demo_command(
    output: Annotated[
        Path, typer.Option(help="The report, one HTML file without parts elsewhere.")
    ] = Path("klprojax-demo.html"),
) -> None:
    """Show everything once, on real data, and write a report with plots.

    Verifies the paper's statements, infers a Bayesian network exactly and by belief propagation and
    differentiates it, learns a circuit by EM and by Adam, and trains a network by Adam and by
    projections. Needs the extras `plot` and `data`.

    Exit status: 0; 1 if a statement did not come out as expected; 2 for bad input.
    """
    errors, console = Console(stderr=True), Console()
    for module, extra in (("matplotlib", "plot"), ("sklearn", "data")):
        try:
            __import__(module)
        except ImportError:
            errors.print(
                f"[red]error:[/red] the demonstration needs {module}: install klprojax\\[{extra}]."
            )
            raise typer.Exit(BAD_INPUT) from None
    if not output.absolute().parent.is_dir():
        errors.print(f"[red]error:[/red] {output}: the folder {output.parent} does not exist.")
        raise typer.Exit(BAD_INPUT)
    import jax

    jax.config.update("jax_enable_x64", True)
    from . import _parts
    from ._report import render

    began = time.perf_counter()
    columns = (TextColumn("{task.description:45}"), BarColumn(), TimeElapsedColumn())
    stop = threading.Event()
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:

        def run(name: str, part: Callable[..., Any]) -> Any:
            task = progress.add_task(name, total=1)

            def advance(text: str, done: int, total: int) -> None:
                if stop.is_set():
                    raise InterruptedError(name)
                progress.update(task, description=text, completed=done, total=total)

            start = time.perf_counter()
            found = part(advance)
            section = found[0] if isinstance(found, tuple) else found
            section.seconds = time.perf_counter() - start
            progress.update(task, description=name, completed=1, total=1)
            return found

        # Mostly compiling, so two at a time; the training is timed, and has the machine to itself.
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(run, "statements", _parts.statements)
            try:
                network = run("network", _parts.network)
                circuit = run("circuit", _parts.circuit)
                statements, good = checked.result()
            finally:
                stop.set()
        stop.clear()
        sections = [statements, network, circuit, run("training", _parts.training)]
    seconds = time.perf_counter() - began
    device = jax.devices()[0]
    footer = (
        f"Made by klprojax demo in {seconds:.0f} s on {device.platform}, jax {jax.__version__}, "
        f"Python {sys.version.split()[0]}."
    )
    lead = (
        "Belief propagation, backpropagation, sum-product networks and projection training as one "
        "thing: KL projections on tables of logarithms."
    )
    partial = output.with_name(output.name + ".partial")
    partial.write_text(render("klprojax", lead, sections, footer), encoding="utf-8")
    os.replace(partial, output)
    for section in sections:
        console.print(f"\n[bold]{section.title}[/bold] ({section.seconds:.1f} s)", highlight=False)
        for text in section.paragraphs:
            console.print(text, highlight=False, markup=False)
        for table in section.tables:
            shown = Table()
            for heading, right in zip(table.headings, table.numeric, strict=True):
                shown.add_column(heading, justify="right" if right else "left")
            for row in table.rows:
                shown.add_row(*(cell.replace("[", "\\[") for cell in row))
            console.print(shown)
    console.print(f"\nReport: {output} ({seconds:.0f} s).", highlight=False)
    if not good:
        raise typer.Exit(NOT_AS_EXPECTED)
