"""The ``klprojax`` program and its commands."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ._circuit import circuit_app
from ._demo import demo_command
from ._infer import infer_command
from ._train import train_command
from ._verify import verify_command

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


class _Commands(TyperGroup):
    """The commands; Ctrl-C ends each with a word on what is kept of a run."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo("\n".join(["Interrupted.", *getattr(stop, "__notes__", ())]), err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="klprojax",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Or square brackets in help texts, ranges and defaults, would be read as markup and dropped.
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(installed("klprojax"))
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    # Eager: answered before a missing command is complained of.
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Inference and learning by KL projections."""


app.command("demo")(demo_command)
app.command("infer")(infer_command)
app.command("train")(train_command)
app.command("verify")(verify_command)
app.add_typer(circuit_app, name="circuit")


def main() -> None:
    """Run the program: the target of the ``klprojax`` script."""
    app()
