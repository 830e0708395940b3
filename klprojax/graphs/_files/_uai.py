"""The UAI format: header, scopes, then tables whose last variable runs fastest."""

import os

import numpy as np

from klprojax.graphs._files._text import (
    MAX_BYTES,
    MAX_SCOPE,
    SPARE_STATES,
    BadNumber,
    TokenStream,
    bounded_product,
    format_numbers,
    parse_numbers,
    read_tokens,
    stem,
    write_bytes,
)
from klprojax.graphs._model import DiscreteModel

_BATCH = 2**16  # tokens converted at once: many small tables share one call


def read_uai(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, encoding: str | None = None
) -> DiscreteModel:
    """Read a model in UAI format (`.uai`, `.uai.gz`).

    Tables list the values with the last variable of the scope running fastest; in a BAYES
    file that variable is the child. Values are taken as they stand (nothing is renormalised).
    Text after `#` is a remark.

    Not every program writes this order, and nothing in a file tells which order it has: pyAgrum
    3.3 lets the first parent run fastest, pgmpy 1.1 the child slowest. BIF, which names the
    parents' states in each row, is the safer exchange.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.
        encoding: of a file that is not UTF-8, `"utf-16"` for example.

    Returns:
        The model; variables are named by their index.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
    """
    stream = read_tokens(path, max_bytes, encoding)
    kind = stream.take(1, "the kind of model, BAYES or MARKOV")[0].upper()
    if kind not in (b"BAYES", b"MARKOV"):
        raise stream.error(-1, "BAYES or MARKOV")
    count = stream.integer("the number of variables")
    cardinalities = stream.integers(count, "the cardinalities of the variables")
    _check_cardinalities(stream, cardinalities)
    factors = stream.integer("the number of factors")
    if 2 * factors > stream.left:
        # each factor has at least a scope size and a table size
        expected = f"a number of factors that fits the {stream.left} tokens after it"
        raise stream.error(-1, expected, "is the file cut off, or the header wrong?")
    scopes = [_read_scope(stream, index, count) for index in range(factors)]
    log_tables = _read_tables(stream, cardinalities, scopes)
    stream.expect_end("the header promises fewer tables; is a factor missing in it?")
    return DiscreteModel(
        cardinalities=tuple(cardinalities),
        scopes=tuple(scopes),
        log_tables=tuple(log_tables),
        kind="BAYES" if kind == b"BAYES" else "MARKOV",
        name=stem(path),
    )


def _check_cardinalities(stream: TokenStream, cardinalities: list[int]) -> None:
    if cardinalities and min(cardinalities) < 1:
        index = cardinalities.index(min(cardinalities))
        raise stream.error(index - len(cardinalities), "at least 1 state")
    # variables of factors have no more states than there are table values to read
    if sum(cardinalities) > stream.total + SPARE_STATES:
        index = cardinalities.index(max(cardinalities))
        expected = f"cardinalities that fit a file of {stream.total} tokens"
        raise stream.error(index - len(cardinalities), expected, "is the header wrong?")


def _read_scope(stream: TokenStream, index: int, variables: int) -> tuple[int, ...]:
    what = f"the scope of factor {index}"
    size = stream.integer(f"the size of the scope of factor {index}")
    if size > min(variables, MAX_SCOPE):
        bound = f"at most {min(variables, MAX_SCOPE)} variables in {what}"
        raise stream.error(-1, bound, "is the line before complete?")
    scope = tuple(stream.integers(size, what))
    if scope and max(scope) >= variables:
        position = scope.index(max(scope)) - size
        raise stream.error(position, f"a variable from 0 to {variables - 1} in {what}")
    if len(set(scope)) != size:
        position = next(i for i, v in enumerate(scope) if v in scope[:i])
        raise stream.error(position - size, f"distinct variables in {what}")
    return scope


def _read_tables(
    stream: TokenStream, cardinalities: list[int], scopes: list[tuple[int, ...]]
) -> list[np.ndarray]:
    log_tables: list[np.ndarray] = []
    tokens: list[bytes] = []
    pending: list[tuple[int, tuple[int, ...]]] = []  # first token in the file, shape
    for index, scope in enumerate(scopes):
        shape = tuple(cardinalities[variable] for variable in scope)
        size = stream.integer(f"the number of entries of factor {index}")
        product = bounded_product(shape, stream.total)
        if size != product:
            wanted = "more than the file holds" if product is None else str(product)
            expected = f"the number of entries of factor {index}, {wanted} by the cardinalities"
            raise stream.error(-1, expected, "the table or the table before has a wrong length")
        pending.append((stream.used, shape))
        tokens += stream.take(size, f"the entries of factor {index}")
        if len(tokens) >= _BATCH:
            log_tables += _convert(stream, tokens, pending)
            tokens, pending = [], []
    return log_tables + _convert(stream, tokens, pending)


def _convert(
    stream: TokenStream, tokens: list[bytes], pending: list[tuple[int, tuple[int, ...]]]
) -> list[np.ndarray]:
    sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in pending]
    ends = np.cumsum(sizes, dtype=np.int64)
    try:
        _, logs = parse_numbers(tokens)
    except BadNumber as bad:
        which = int(np.searchsorted(ends, bad.index, side="right"))
        ordinal = pending[which][0] + bad.index - (int(ends[which]) - sizes[which])
        raise stream.error_about(ordinal, bad.expected) from None
    logs.flags.writeable = False
    return [
        logs[end - size : end].reshape(shape)
        for (_, shape), size, end in zip(pending, sizes, ends.tolist(), strict=True)
    ]


def write_uai(path: str | os.PathLike[str], model: DiscreteModel) -> None:
    """Write a model in UAI format (`.uai`, `.uai.gz`).

    Values are written with enough digits to read back the same logarithms to rounding; values
    outside the range of float64 keep their decimal exponent. Names, notes and the name of the
    model have no place in the format.

    Args:
        path: the file to write; replaced if it exists.
        model: the model.
    """
    lines = [model.kind, str(len(model.cardinalities))]
    lines.append(" ".join(map(str, model.cardinalities)))
    lines.append(str(len(model.scopes)))
    lines += [" ".join(map(str, (len(scope), *scope))) for scope in model.scopes]
    for table in model.log_tables:
        row = table.shape[-1] if table.ndim else 1
        texts = format_numbers(table)
        lines += ["", str(table.size)]
        lines += [" ".join(texts[start : start + row]) for start in range(0, table.size, row)]
    write_bytes(path, ("\n".join(lines) + "\n").encode("ascii"))
