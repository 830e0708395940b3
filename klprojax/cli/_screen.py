"""What the commands print and write: data is shown as it is, never read as markup."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._store import check_writable, write_file

NOT_AS_EXPECTED, BAD_INPUT, NOT_CONVERGED = 1, 2, 3
# Columns where the output is no terminal: no cell need be broken there.
_UNBOUNDED = 2**16
# What would move the cursor, end the line, turn the direction of writing or cannot be encoded.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: object, *, lines: bool = False) -> str:
    r"""Text with control characters spelled out as in Python, ``\x1b`` for one.

    Args:
        text: anything; its `str` is shown.
        lines: keep line ends.
    """
    return _CONTROL.sub(
        lambda m: m[0] if lines and m[0] == "\n" else m[0].encode("unicode_escape").decode(),
        str(text),
    )


class Screen:
    """Standard output for results and standard error for the rest, neither of them with markup."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal without Unicode shows escapes; it does not end the program.
                stream.reconfigure(errors="backslashreplace")
        plain: Any = {"markup": False, "emoji": False, "highlight": False}
        self.out, self.errors = Console(**plain), Console(stderr=True, **plain)
        for console in (self.out, self.errors):
            if not console.is_terminal:
                console.width = _UNBOUNDED

    def show(self, text: object) -> None:
        """Print a line to standard output."""
        _print(self.out, Text(visible(text, lines=True)))

    def note(self, text: object, style: str = "dim") -> None:
        """Print a line to standard error."""
        _print(self.errors, Text(visible(text, lines=True), style))

    def table(
        self,
        headings: Iterable[str],
        rows: Iterable[Iterable[object]],
        *,
        title: str | None = None,
        left: Iterable[str] = (),
        heads: bool = True,
    ) -> None:
        """Print a table to standard output; long cells go on in the next line.

        Args:
            headings: of the columns.
            rows: cells, each a `Text`, something to show, or a list of lines.
            title: of the table.
            left: headings of the columns that stand to the left.
            heads: whether to show the headings.
        """
        shown = None if title is None else Text(visible(title))
        table = Table(title=shown, show_header=heads)
        left = set(left)
        for heading in headings:
            name = Text(visible(heading))
            if heading in left:
                table.add_column(name, overflow="fold")
            else:  # numbers, which are hard to read in pieces
                table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(_cell, row))
        self.out.print(table)

    def working(self, text: object) -> Any:
        """A sign on standard error, while a block runs, that something goes on."""
        return self.errors.status(Text(visible(text)))

    @contextmanager
    def bad_input_exits(self) -> Iterator[None]:
        """Turn what users can mend into one line and the exit status 2."""
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            _print(self.errors, Text.assemble(("error:", "red"), " ", visible(error, lines=True)))
            raise typer.Exit(BAD_INPUT) from None


def _print(console: Console, text: Text) -> None:
    # Between words in a terminal; elsewhere a line stays one line, for programs that search it.
    console.print(text, soft_wrap=not console.is_terminal)


def _cell(content: object) -> Text:
    if isinstance(content, Text):
        return content
    lines = content if isinstance(content, list) else [content]
    return Text("\n".join(map(visible, lines)))


def write_then_show(write: Callable[[], None], show: Callable[[], None]) -> None:
    """Write before anything shown can fail; show also where writing failed."""
    try:
        write()
    finally:
        show()


def check_outputs(*paths: Path | None) -> None:
    """Refuse outputs that cannot be written, before anything is computed."""
    for path in paths:
        if path is not None:
            check_writable(path)


def write_json(path: Path | None, content: Any) -> None:
    """Write a result, if a place is given."""
    if path is not None:
        write_file(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure; the extension names the format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().removeprefix("."), dpi=150)
    write_file(path, buffer.getvalue())
