"""A progress bar over updates or epochs, with the latest losses."""

from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(total: int, shown: bool, unit: int = 1):
    """Yield a function that shows the update and some losses (None: as before).

    Args:
        total: updates to come.
        shown: whether there is a bar at all.
        unit: updates that the bar counts as one.
    """
    if not shown:
        yield lambda update, **losses: None
        return
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
    )
    known: dict[str, Any] = {}
    with bar:
        task = bar.add_task("compiling", total=total // unit)

        def show(update: int, **losses: float | None) -> None:
            known.update({name: value for name, value in losses.items() if value is not None})
            text = ", ".join(f"{name} {value:.4f}" for name, value in known.items())
            bar.update(task, completed=update // unit, description=text or "compiling")

        yield show
