"""The ``klprojax`` program and its commands."""

from typing import Annotated

import typer

from ._circuit import circuit_app
from ._demo import demo_command
from ._infer import infer_command
from ._train import train_command
from ._verify import verify_command

app = typer.Typer(
    name="klprojax",
    help="Inference and learning by KL projections.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("klprojax"))
        raise typer.Exit


app.command("demo")(demo_command)
app.command("infer")(infer_command)
app.command("train")(train_command)
app.command("verify")(verify_command)
app.add_typer(circuit_app, name="circuit")


def main() -> None:
    """Run the program: the target of the ``klprojax`` script."""
    app()
