"""Python code that asks a traced value for its number: one error that names the line."""

import importlib.util
import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import jax

from ._error import LiftError

_ADVICE = {
    jax.errors.TracerBoolConversionError: (
        "for a branch use jnp.where or lax.cond, for max and min jnp.maximum and jnp.minimum, for"
        " a loop lax.scan"
    ),
    jax.errors.NonConcreteBooleanIndexError: (
        "keep the shape: jnp.where(mask, x, 0) in place of x[mask]"
    ),
    jax.errors.TracerArrayConversionError: "use the functions of jax.numpy in place of numpy's",
    jax.errors.TracerIntegerConversionError: (
        "index an array (jnp.asarray of a list), or close over the integer"
    ),
}
_OTHERWISE = (
    "use jax.numpy in place of float(), int(), .item() and math; shapes and sizes must be known"
    " Python integers"
)
# How Python and JAX put it where the error has no type of its own.
_PLAIN = ("unhashable type", "format string", "concrete values", "must be static")


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    return "" if spec is None or spec.origin is None else os.path.dirname(spec.origin) + os.sep


# Frames inside these, this package or what carries it, are not the user's.
_MACHINERY = (
    *filter(None, map(_folder, ("jax", "jaxlib", "equinox", "numpy", "jaxtyping", "beartype"))),
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
    os.path.dirname(os.__file__) + os.sep + "contextlib",
    "<frozen",
    "<@beartype",
)
_INSTALLED = sysconfig.get_paths()["purelib"] + os.sep


def _is_machinery(file: str) -> bool:
    return file.startswith(_MACHINERY)


def user_line(eqn: Any) -> str:
    """File and line of the user's program where an equation was made, if known."""
    made = getattr(eqn.source_info, "traceback", None)
    for frame in getattr(made, "frames", ()):
        if not _is_machinery(frame.file_name) and os.path.exists(frame.file_name):
            return f"{os.path.basename(frame.file_name)}:{frame.line_num}"
    return ""


@contextmanager
def no_python_values(what: str) -> Iterator[None]:
    """Turn JAX's errors about the value of a tracer into a `LiftError`; also a decorator.

    Args:
        what: the code that runs inside, `"the function"`.

    Raises:
        LiftError: the code asked a traced value for its value: `if x > 0`, `float(x)`,
            `np.sin(x)`, `x[x > 0]`.
    """
    try:
        yield
    except (TypeError, IndexError, ValueError) as error:
        kind = _kind(error)
        if kind is None:
            raise
        frame = _user_frame(error)
        place = None if frame is None else f"{os.path.basename(frame.filename)}:{frame.lineno}"
        line = "" if frame is None or not frame.line else f", `{shorten(frame.line, 80)}`"
        advice = next((_ADVICE[c] for c in _ADVICE if issubclass(kind, c)), _OTHERWISE)
        raise LiftError(
            f"{what} asks in Python for the value of a traced number{line} ({kind.__name__}), but"
            f" it is traced once for all values; {advice}. A number that is no variable can be"
            " closed over instead",
            place,
        ) from error


def _kind(error: BaseException) -> type[BaseException] | None:
    """JAX's error, also where numpy or Python hides it; None if it is about something else."""
    if isinstance(error, LiftError | jax.errors.UnexpectedTracerError):
        return None
    for one in (error, error.__cause__):
        if one and isinstance(one, (jax.errors.ConcretizationTypeError, *_ADVICE)):
            return type(one)
    text = str(error)
    return type(error) if "Tracer" in text and any(word in text for word in _PLAIN) else None


def _user_frame(error: BaseException) -> traceback.FrameSummary | None:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    return next(reversed(own or frames), None)
