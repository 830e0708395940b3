"""Tables in linear space as long as that loses nothing, and their products in numpy.

A table's scale is kept apart, and bounds on its positive entries say whether a product could leave
the float range. Where it could, the product is of logarithms: every entry keeps its digits, however
improbable it is, and `-inf` stays excluded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product
from typing import NamedTuple

import numpy as np

# Logarithms of entries that linear space holds with all digits; products of two of them are
# normal numbers above the lower one.
LEAST, PRODUCT_LEAST = -300.0, -690.0
# A bound is replaced by the least entry itself when it is looser than this.
LOOSE = -150.0
# Entries worked on together, so that they stay in the cache.
BLOCK = 2**15
# OpenBLAS starts no threads for fewer products than the first number; for fewer than the second
# they save a few ms, and where another process has a core they wait for each other 0.1 s.
ONE_THREAD, THREADS_PAY = 2**18, 2**24

Scope = tuple[int, ...]


class ScaledTable(NamedTuple):
    """A table up to the factor ``exp(scale)``.

    Attributes:
        array: entries, or their logarithms.
        scale: nats.
        low, high: bounds on the logarithms of the positive entries.
        is_log: whether the entries are logarithms.
    """

    array: np.ndarray
    scale: float
    low: float
    high: float
    is_log: bool

    def logs(self) -> np.ndarray:
        """Logarithms of the entries."""
        if self.is_log:
            return self.array
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.array))


class PairStep(NamedTuple):
    """How two tables are multiplied, and the product summed.

    Attributes:
        left, right: order of each table's axes, and the shape that the kernel takes.
        kernel: `OUTER` for a product without sum, `MATMUL`, or `SUM`: term by term with the axes
            that both keep last.
        scope: variable of each axis of the result. shape: its sizes.
        terms: logarithm of the number of summands.
    """

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]
    kernel: int
    scope: Scope
    shape: tuple[int, ...]
    terms: float


OUTER, MATMUL, SUM = range(3)
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def from_logs(logs: np.ndarray, scale: float = 0.0) -> ScaledTable:
    """A table from logarithms; its largest entry becomes 1."""
    top = float(np.max(logs, initial=-np.inf))
    if top == -np.inf:
        return ScaledTable(np.zeros_like(logs), scale, 0.0, 0.0, False)
    logs = np.asarray(logs - top)
    low = float(np.min(logs, where=logs > -np.inf, initial=0.0))
    if low < LEAST:
        return ScaledTable(logs, scale + top, low, 0.0, True)
    return ScaledTable(np.asarray(np.exp(logs)), scale + top, low, 0.0, False)


def _checked(array: np.ndarray, scale: float, low: float, high: float) -> ScaledTable:
    """A table from positive entries between these bounds, which are tightened where too loose."""
    if low >= LOOSE and high <= -LOOSE:
        return ScaledTable(array, scale, low, high, False)
    top = float(np.max(array, initial=0.0))
    if top == 0.0:
        return ScaledTable(array, scale, 0.0, 0.0, False)
    least = float(np.min(array, where=array > 0, initial=top))
    array, shift = np.asarray(array / top), math.log(top)
    low = math.log(least) - shift
    table = ScaledTable(array, scale + shift, low, 0.0, False)
    return table if low >= LEAST else table._replace(array=table.logs(), is_log=True)


def plan_step(
    one: Scope, two: Scope, kept: frozenset[int] | set[int], cards: Sequence[int]
) -> PairStep:
    """Plan a product of tables over two scopes, summed over what is not kept.

    A variable of one scope only is kept.
    """
    shared = set(one) & set(two)
    batch = [v for v in one if v in shared and v in kept]
    gone = [v for v in one if v in shared and v not in kept]
    rows = [v for v in one if v not in shared]
    columns = [v for v in two if v not in shared]
    many, m, n, k = (math.prod(cards[v] for v in part) for part in (batch, rows, columns, gone))

    if k == 1:
        kernel, scope = OUTER, (*batch, *rows, *columns)
        left = _axes(one, batch, rows, gone), (many, m, 1)
        right = _axes(two, batch, columns, gone), (many, 1, n)
    elif many <= 8 or m * n * k >= 2**11:
        kernel, scope = MATMUL, (*batch, *rows, *columns)
        left = _axes(one, batch, rows, gone), (many, m, k)
        right = _axes(two, batch, gone, columns), (many, k, n)
    else:
        kernel, scope = SUM, (*rows, *columns, *batch)
        left = _axes(one, gone, rows, batch), (k, m, 1, many)
        right = _axes(two, gone, columns, batch), (k, 1, n, many)
    return PairStep(left, right, kernel, scope, tuple(cards[v] for v in scope), math.log(k))


def _axes(scope: Scope, *parts: list[int]) -> tuple[int, ...]:
    """Where the variables of these parts are in a scope."""
    place = {v: axis for axis, v in enumerate(scope)}
    return tuple(place[v] for part in parts for v in part)


def multiply(step: PairStep, one: ScaledTable, two: ScaledTable) -> ScaledTable:
    """Run a step."""
    low, high = one.low + two.low, one.high + two.high
    scale = one.scale + two.scale
    if one.is_log or two.is_log or low < PRODUCT_LEAST:
        a, b = _arranged(step, one.logs(), two.logs())
        if step.kernel == OUTER:
            out = (a + b).reshape(step.shape)
        else:
            out = gathered(step, in_blocks(_sum_of_logs, *_term_by_term(step, a, b)))
        return from_logs(out, scale)
    a, b = _arranged(step, one.array, two.array)
    if step.kernel == OUTER:
        out = a * b
    else:
        out = in_blocks(_sum_of_products, a, b) if step.kernel == SUM else matrix_product(a, b)
    return _checked(out.reshape(step.shape), scale, low, high + step.terms)


def _arranged(step: PairStep, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two tables in the shapes that the kernel takes."""
    (axes, shape), (other_axes, other_shape) = step.left, step.right
    return a.transpose(axes).reshape(shape), b.transpose(other_axes).reshape(other_shape)


def _term_by_term(step: PairStep, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as ``[k, rows, 1, batch]`` and ``[k, 1, columns, batch]``, k the summed axis."""
    if step.kernel == SUM:
        return a, b
    return a.transpose(2, 1, 0)[:, :, None], b.transpose(1, 2, 0)[:, None]


def terms(step: PairStep, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two tables as ``[k, rows, 1, batch]`` and ``[k, 1, columns, batch]``, k the summed axis."""
    return _term_by_term(step, *_arranged(step, a, b))


def gathered(step: PairStep, out: np.ndarray) -> np.ndarray:
    """The result's axes from ``[rows, columns, batch]``."""
    return (out if step.kernel == SUM else np.moveaxis(out, 2, 0)).reshape(step.shape)


def in_blocks(kernel: Kernel, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A kernel on arrays ``[k, rows, 1, batch]`` and ``[k, 1, columns, batch]``, block by block."""
    out = np.empty((a.shape[1], b.shape[2], a.shape[3]))
    for i, j, k in blocks(out.shape, BLOCK):
        out[i, j, k] = kernel(a[:, i, :, k], b[:, :, j, k])
    return out


def blocks(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of at most so many entries, or of one; their last axes are longest."""
    sizes: list[int] = []
    for size in reversed(shape):
        sizes.insert(0, max(min(size, most // math.prod(sizes)), 1))
    for at in product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True))):
        yield tuple(slice(n, n + size) for n, size in zip(at, sizes, strict=True))


def matrix_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``[batch, rows, k]`` by ``[batch, k, columns]``, cut along the longest of these axes."""
    rows, k, columns = sizes = (*a.shape[1:], b.shape[2])
    longest, products = max(sizes), rows * k * columns
    if not ONE_THREAD < products <= THREADS_PAY:
        return np.matmul(a, b)
    width = max(ONE_THREAD * longest // products, 1)
    parts = [slice(start, start + width) for start in range(0, longest, width)]
    if k == longest:
        return np.asarray(sum(np.matmul(a[:, :, part], b[:, part]) for part in parts))
    if rows == longest:
        return np.concatenate([np.matmul(a[:, part], b) for part in parts], axis=1)
    return np.concatenate([np.matmul(a, b[:, :, part]) for part in parts], axis=2)


def _sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``sum_k a[k] b[k]``, as large as one term."""
    total = a[0] * b[0]
    for one, two in zip(a[1:], b[1:], strict=True):
        total += one * two
    return total


def _sum_of_logs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of logarithms: ``log sum_k exp(a[k] + b[k])``."""
    top = largest_sum(a, b)
    shift = np.where(top == -np.inf, 0.0, top)
    total = np.zeros_like(top)
    for part in _terms_together(a, b):
        weights = a[part] + b[part]
        weights -= shift
        total += np.exp(weights, out=weights).sum(axis=0)
    with np.errstate(divide="ignore"):
        return np.log(total) + shift


def largest_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``max_k a[k] + b[k]``."""
    return reduce(np.maximum, ((a[k] + b[k]).max(axis=0) for k in _terms_together(a, b)))


def _terms_together(a: np.ndarray, b: np.ndarray) -> list[slice]:
    """Parts of the first axis, so many terms that they fill a block."""
    width = max(BLOCK // (a[0].size * b.shape[2]), 1)
    return [slice(start, start + width) for start in range(0, len(a), width)]


def sum_out(table: ScaledTable, axes: tuple[int, ...]) -> ScaledTable:
    """A table summed over some axes."""
    if not axes:
        return table
    if not table.is_log:
        terms = math.log(math.prod(table.array.shape[axis] for axis in axes))
        total = np.asarray(table.array.sum(axis=axes))
        return _checked(total, table.scale, table.low, table.high + terms)
    top = np.max(table.array, axis=axes, keepdims=True)
    shift = np.where(top == -np.inf, 0.0, top)
    with np.errstate(divide="ignore"):
        logs = np.log(np.exp(table.array - shift).sum(axis=axes)) + shift.squeeze(axes)
    return from_logs(np.asarray(logs), table.scale)
