"""The list of checks.

A check is a function `(seed, size, dtype) -> (residual, tolerance)` under the decorator
`statement`, which makes it a public function that returns a `Check` and puts it on the list. A new
group of checks is one more module, named in this package's `__init__`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ._check import Check

AS_PRINTED = "as printed"


@dataclass(frozen=True)
class Registered:
    """A check on the list: its `Check` fields that are known beforehand, and the function.

    Attributes:
        name, statement, compared, reading, expected: see `Check`.
        function: takes `seed`, `size` and `dtype`, and returns a `Check`.
    """

    name: str
    statement: str
    compared: str
    reading: str
    expected: bool
    function: Callable[..., Check]


_REGISTERED: dict[str, Registered] = {}


def statement(
    label: str, compared: str, *, reading: str = AS_PRINTED, expected: bool = True
) -> Callable[[Callable[..., tuple[float, float]]], Callable[..., Check]]:
    """Make a check of a function that measures a residual, and put it on the list.

    Args:
        label: what the paper calls the statement.
        compared: which two computations are compared.
        reading: how the statement is read.
        expected: whether it is expected to hold in this reading.

    Returns:
        A decorator of functions `(seed, size, dtype) -> (residual, tolerance)`.
    """

    def decorate(measure: Callable[..., tuple[float, float]]) -> Callable[..., Check]:
        signature = inspect.signature(measure)
        default_size = signature.parameters["size"].default
        name = measure.__name__

        @functools.wraps(measure)
        def check(seed: int = 0, size: int = default_size, dtype: Any = None) -> Check:
            residual, tolerance = measure(seed, size, floating_type(dtype))
            return Check(
                name, label, compared, reading, float(residual), float(tolerance), expected
            )

        del check.__wrapped__
        check.__signature__ = signature.replace(return_annotation=Check)  # pyright: ignore
        check.__annotations__ = {**measure.__annotations__, "return": Check}
        _REGISTERED[name] = Registered(name, label, compared, reading, expected, check)
        return check

    return decorate


def floating_type(dtype: Any = None) -> Any:
    """Return the floating type to compute in: the one given, or JAX's default.

    Raises:
        ValueError: another type than float32 and float64, or float64 where JAX has it disabled.
    """
    wanted = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if wanted not in (jnp.dtype("float32"), jnp.dtype("float64")):
        raise ValueError(f"got the type {wanted}; checks compute in float32 or float64")
    if wanted == jnp.dtype("float64") and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "float64 needs jax.config.update('jax_enable_x64', True) before the first computation;"
            " or pass dtype='float32'"
        )
    return wanted


def registered_checks(only: Sequence[str] | None = None) -> tuple[Registered, ...]:
    """Return the checks on the list, in the paper's order.

    Args:
        only: names of checks, or beginnings that several share (`"theorem_3_3"`); all if None.

    Raises:
        ValueError: no check has such a name; the message lists the names.
    """
    if only is None:
        return tuple(_REGISTERED.values())
    chosen: set[str] = set()
    for name in only:
        found = {name} if name in _REGISTERED else {k for k in _REGISTERED if k.startswith(name)}
        if not found or not name:
            raise ValueError(f"there is no check {name!r}; the checks are {', '.join(_REGISTERED)}")
        chosen |= found
    return tuple(entry for name, entry in _REGISTERED.items() if name in chosen)


def run_check(
    entry: Registered, *, seed: int = 0, size: int | None = None, dtype: Any = None
) -> Check:
    """Run one check; an error becomes a check without a residual.

    Args:
        entry: the check, from `registered_checks`.
        seed: seed of all random numbers.
        size: size of its example; the check's own default if None.
        dtype: float32 or float64; JAX's default if None.

    Returns:
        The result, with its error if it raised one.
    """
    dtype = floating_type(dtype)
    try:
        return entry.function(seed=seed, dtype=dtype, **({} if size is None else {"size": size}))
    except Exception as error:
        return Check(
            entry.name,
            entry.statement,
            entry.compared,
            entry.reading,
            float("nan"),
            float("nan"),
            entry.expected,
            f"{type(error).__name__}: {error}",
        )


def run_checks(
    only: Sequence[str] | None = None, *, seed: int = 0, dtype: Any = None
) -> Iterator[Check]:
    """Run checks at their default sizes, one after the other.

    Args:
        only: names or beginnings of names, as in `registered_checks`.
        seed: seed of all random numbers.
        dtype: float32 or float64; JAX's default if None.

    Yields:
        The result of each check; one that raised an error has no residual and says why.

    Raises:
        ValueError: an unknown name, or a type that JAX cannot compute in.

    Example:
        >>> from klprojax.checks import run_checks
        >>> [check.holds for check in run_checks(["proposition_3_1_ii"])]
        [False, True, True]
    """
    for entry in registered_checks(only):
        yield run_check(entry, seed=seed, dtype=dtype)
