"""What a run that Ctrl-C stops says: what is kept of it, and how to go on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def says_what_is_kept(
    checkpoint: str | os.PathLike[str] | None, kept: Callable[[], str | None]
) -> Iterator[None]:
    """Add a note to a `KeyboardInterrupt`; Python prints it once, below the traceback.

    Args:
        checkpoint: file of the run's checkpoint, if it has one.
        kept: says how far the run is in that file, or None if nothing was read or written yet.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if checkpoint is None:
            word = (
                "Nothing is kept of the run: it has no checkpoint. Give one, and the same call or "
                "command goes on from it."
            )
        else:
            name, far = os.fspath(checkpoint), kept()
            if far is not None:
                word = f"Kept in {name}: {far}. The same call or command goes on from there."
            elif os.path.exists(checkpoint):
                word = f"{name} is as it was. The same call or command goes on from it."
            else:
                word = f"Nothing is kept of the run: {name} had not been written yet."
        stop.add_note(word)
        raise
