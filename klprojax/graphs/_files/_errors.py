"""The one error that every reader of model files raises."""

import os


class ModelFileError(ValueError):
    """Report what is wrong in a file, where, and what to do about it.

    The message reads `PATH:LINE: expected X, got Y (fix)`.

    Args:
        path: the file.
        line: line number counted from 1, or None when no single line is to blame.
        expected: what the format asks for at this place.
        got: what the file has there.
        fix: what to do about it; may be empty.
    """

    path: str
    line: int | None

    def __init__(
        self,
        path: str | os.PathLike[str],
        line: int | None,
        expected: str,
        got: str,
        fix: str = "",
    ):
        self.path = os.fspath(path)
        self.line = line
        self._details = (expected, got, fix)
        place = self.path if line is None else f"{self.path}:{line}"
        advice = f" ({fix})" if fix else ""
        super().__init__(f"{place}: expected {expected}, got {got}{advice}")

    def __reduce__(self):
        return (type(self), (self.path, self.line, *self._details))
