"""The command: run the parts behind progress bars, write the report."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..._store import write_file
from .._screen import NOT_AS_EXPECTED, Screen, check_outputs, visible, write_then_show


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
    screen = Screen()
    with screen.bad_input_exits():
        for module, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
            try:
                __import__(module)
            except ImportError:
                raise ImportError(
                    f"The demonstration needs {package}: pip install {package}."
                ) from None
        check_outputs(output)
    import jax

    jax.config.update("jax_enable_x64", True)
    from . import _parts
    from ._report import render

    began = time.perf_counter()
    columns = (TextColumn("{task.description:45}", markup=False), BarColumn(), TimeElapsedColumn())
    stop = threading.Event()
    with Progress(
        *columns, console=screen.errors, disable=not screen.errors.is_terminal
    ) as progress:

        def run(name: str, part: Callable[..., Any]) -> Any:
            task = progress.add_task(name, total=1)

            def advance(text: str, done: int, total: int) -> None:
                if stop.is_set():
                    raise InterruptedError(name)
                progress.update(task, description=visible(text), completed=done, total=total)

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
    page = render("klprojax", lead, sections, footer).encode("utf-8")

    def show() -> None:
        for section in sections:
            screen.show(f"\n{section.title} ({section.seconds:.1f} s)")
            for text in section.paragraphs:
                screen.show(text)
            for table in section.tables:
                left = [h for h, n in zip(table.headings, table.numeric, strict=True) if not n]
                screen.table(table.headings, table.rows, left=left)

    with screen.bad_input_exits():
        write_then_show(lambda: write_file(output, page), show)
    screen.show(f"\nReport: {output} ({seconds:.0f} s).")
    if not good:
        raise typer.Exit(NOT_AS_EXPECTED)
