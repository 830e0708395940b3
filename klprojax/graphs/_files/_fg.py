"""The factor-graph format of libDAI: sparse tables whose first variable runs fastest."""

import os

import numpy as np

from klprojax.graphs._files._text import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_SCOPE,
    SPARE_STATES,
    BadNumber,
    TokenStream,
    bounded_product,
    parse_integers,
    parse_numbers,
    read_tokens,
    stem,
)
from klprojax.graphs._model import DiscreteModel


def read_fg(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    encoding: str | None = None,
) -> DiscreteModel:
    """Read a factor graph in libDAI format (`.fg`, `.fg.gz`).

    A factor lists its variables, their cardinalities and its entries as (index, value); entries
    left out are 0 and the FIRST listed variable runs fastest in the index. Text after `#` is a
    comment.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.
        max_entries: limit on the entries of all tables, since a file need not list the zeros.
        encoding: of a file that is not UTF-8, `"utf-16"` for example.

    Returns:
        The model (kind "MARKOV"). Labels in the file need not be contiguous: variables are
        ordered by label and named by it.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
    """
    stream = read_tokens(path, max_bytes, encoding)
    factors = stream.integer("the number of factors")
    if 2 * factors > stream.left:
        # each factor has at least a scope size and a number of entries
        expected = f"a number of factors that fits the {stream.left} tokens after it"
        raise stream.error(-1, expected, "is the file cut off, or the header wrong?")
    cardinality_of: dict[int, int] = {}
    budget = max(max_entries, stream.total)
    scopes = []
    log_tables = []
    for index in range(factors):
        scope, shape = _read_scope(stream, index, cardinality_of)
        size = bounded_product(shape, budget)
        if size is None:
            expected = f"at most {budget} table entries left for factor {index}"
            raise stream.error(-1, expected, "pass a larger max_entries if the file is genuine")
        budget -= size
        scopes.append(scope)
        log_tables.append(_read_table(stream, index, shape, size))
    stream.expect_end("the first number promises fewer factors")
    labels = sorted(cardinality_of)
    position = {label: i for i, label in enumerate(labels)}
    return DiscreteModel(
        cardinalities=tuple(cardinality_of[label] for label in labels),
        scopes=tuple(tuple(position[label] for label in scope) for scope in scopes),
        log_tables=tuple(log_tables),
        variable_names=tuple(str(label) for label in labels),
        kind="MARKOV",
        name=stem(path),
    )


def _read_scope(
    stream: TokenStream, index: int, cardinality_of: dict[int, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = stream.integer(f"the number of variables of factor {index}")
    if size > MAX_SCOPE:
        raise stream.error(-1, f"at most {MAX_SCOPE} variables in factor {index}")
    labels = tuple(stream.integers(size, f"the variables of factor {index}"))
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise stream.error(i - size, f"distinct variables in factor {index}")
        if label >= 2**63:
            raise stream.error(i - size, "a variable label below 2^63")
    shape = tuple(stream.integers(size, f"the cardinalities of factor {index}"))
    for i, (label, cardinality) in enumerate(zip(labels, shape, strict=True)):
        if cardinality < 1:
            raise stream.error(i - size, "at least 1 state")
        if cardinality > stream.total + SPARE_STATES:
            expected = f"a cardinality that fits a file of {stream.total} tokens"
            raise stream.error(i - size, expected)
        if cardinality_of.setdefault(label, cardinality) != cardinality:
            expected = f"{cardinality_of[label]} states of variable {label}, as before"
            raise stream.error(i - size, expected, "all factors must agree on it")
    return labels, shape


def _read_table(stream: TokenStream, index: int, shape: tuple[int, ...], size: int) -> np.ndarray:
    count = stream.integer(f"the number of listed entries of factor {index}")
    if count > size:
        raise stream.error(-1, f"at most {size} listed entries of factor {index}")
    tokens = stream.take(2 * count, f"the {count} (index, value) entries of factor {index}")
    try:
        indices = parse_integers(tokens[0::2])
    except BadNumber as bad:
        expected = f"an entry index of factor {index}, {bad.expected}"
        raise stream.error(2 * (bad.index - count), expected) from None
    try:
        _, logs = parse_numbers(tokens[1::2])
    except BadNumber as bad:
        raise stream.error(2 * (bad.index - count) + 1, bad.expected) from None
    if indices and max(indices) >= size:
        where = 2 * (indices.index(max(indices)) - count)
        raise stream.error(where, f"an entry index from 0 to {size - 1} in factor {index}")
    if len(set(indices)) != count:
        seen: set[int] = set()
        where = next(i for i, entry in enumerate(indices) if entry in seen or seen.add(entry))
        raise stream.error(2 * (where - count), f"distinct entry indices in factor {index}")
    flat = np.full(size, -np.inf)
    flat[indices] = logs
    table = np.array(flat.reshape(shape, order="F"), order="C")
    table.flags.writeable = False
    return table
