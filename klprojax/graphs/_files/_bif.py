"""The Bayesian Interchange Format (BIF 0.15): named variables and conditional tables."""

import os
import re
from dataclasses import dataclass
from itertools import islice

import numpy as np

from klprojax.graphs._files._bif_rows import (
    NoDistribution,
    advise,
    blank_nans,
    check_repair,
    is_nan,
    normalise,
)
from klprojax.graphs._files._bif_text import KEYWORD, BifText, Block
from klprojax.graphs._files._errors import ModelFileError
from klprojax.graphs._files._text import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_SCOPE,
    BadNumber,
    bounded_product,
    parse_numbers,
    read_bytes,
    recode,
    show,
    stem,
)
from klprojax.graphs._model import DiscreteModel, close_matches

_SPARE_STATEMENTS = 1000  # properties that a probability block may have besides its rows

_TYPE = re.compile(rb"type\s+([^\s\[]+)\s*\[\s*([0-9]+)\s*\]\s*\{([^{}]*)\}\s*", re.DOTALL)
_VALUE = re.compile(rb"[^\s,|;]+")
_SEPARATORS = bytes.maketrans(b",|", b"  ")


@dataclass
class _Variable:
    """A declared variable and, once its probability block is read, its table."""

    name: str
    states: tuple[str, ...]
    state_index: dict[bytes, int]
    position: int
    start: int


class _Reader(BifText):
    """Parse one file; positions are byte offsets into `data`."""

    def __init__(
        self, data: bytes, path: str | os.PathLike[str], max_entries: int, repair: str | None
    ):
        super().__init__(data, path)
        self.implied_left = max_entries  # entries that defaults may still fill
        self.max_entries = max_entries
        self.repair = repair
        self.variables: dict[bytes, _Variable] = {}
        self.notes: list[str] = []

    # -- blocks ------------------------------------------------------------------------------

    def read(self) -> DiscreteModel:
        data = self.data
        networks: list[Block] = []
        declarations: list[Block] = []
        tables: list[Block] = []
        position = self.skip(0)
        while position < len(data):
            match = KEYWORD.match(data, position)
            keyword = match.group() if match else b""
            if keyword == b"network":
                block, position = self.block(position, keyword)
                self._only_properties(block)
                networks.append(block)
            elif keyword == b"variable":
                block, position = self._variable_block(position)
                declarations.append(block)
            elif keyword == b"probability":
                block, position = self.block(position, keyword)
                tables.append(block)
            else:
                got = self.show(data[position : position + 40].split(None, 1)[0])
                raise self.fail(position, "network, variable or probability", got)
            position = self.skip(position)
        if len(networks) != 1:
            offset = networks[1].start if networks else 0
            raise self.fail(offset, "one network block", f"{len(networks)}")
        return self._model(networks[0], self._read_tables(tables))

    def _only_properties(self, block: Block) -> None:
        names = block.header.split(None, 2)
        if len(names) > 1:
            raise self.fail(block.start, "one name of the network", self.show(names[1]))
        for offset, text in self.statements(block):
            if not text.startswith(b"property"):
                raise self.fail(self.skip(offset), "a property", self.show(text))

    # -- variables ---------------------------------------------------------------------------

    def _variable_block(self, start: int) -> tuple[Block, int]:
        data = self.data
        opening = data.find(b"{", start)
        names = data[start + 8 : opening if opening >= 0 else start + 100].split(None, 2)
        if opening < 0 or len(names) != 1:
            got = self.show(b" ".join(names[:2]))
            raise self.fail(start, "variable NAME {", f"the header {got}")
        declared: _Variable | None = None
        position = self.skip(opening + 1)
        while data[position : position + 1] != b"}":
            end = data.find(b";", position)
            match = KEYWORD.match(data, position)
            keyword = match.group() if match else b""
            if end < 0:
                got = self.show(data[position : position + 40])
                raise self.fail(position, "a statement that ends in ; or the end }", got)
            if keyword == b"type" and declared is None:
                declared = self._type(names[0], start, position, end)
            elif keyword != b"property":
                got = self.show(data[position:end][:40])
                expected = "one type and only properties besides it"
                raise self.fail(position, f"{expected} in a variable block", got)
            position = self.skip(end + 1)
        if declared is None:
            got = "a block without a type"
            raise self.fail(start, "type discrete [ N ] { ... };", got)
        key = self.canonical(names[0])
        if key in self.variables:
            raise self.fail(start, "each variable once", f"{show(declared.name)} again")
        self.variables[key] = declared
        return Block(start, names[0], opening + 1, b""), position + 1

    def _type(self, token: bytes, start: int, position: int, end: int) -> _Variable:
        match = _TYPE.fullmatch(self.data, position, end)
        if match is None:
            got = self.show(self.data[position:end][:40])
            raise self.fail(position, "type discrete [ N ] { STATE, ... }", got)
        if match.group(1) != b"discrete":
            fix = "only discrete variables are supported"
            raise self.fail(position, "type discrete", self.show(match.group(1)), fix)
        tokens = match.group(3).translate(_SEPARATORS).split()
        digits = match.group(2)
        if len(digits) > 18 or int(digits) != len(tokens) or not tokens:
            name = show(self.decode(token))
            expected = f"as many state names as promised, {show(digits)}, for variable {name}"
            raise self.fail(match.start(3), expected, f"{len(tokens)}")
        keys = [self.canonical(state) for state in tokens]
        index = {key: i for i, key in enumerate(keys)}
        if len(index) != len(keys):
            twice = next(key for i, key in enumerate(keys) if index[key] != i)
            raise self.fail(match.start(3), "distinct state names", f"{self.show(twice)} twice")
        states = tuple(self.decode(state) for state in tokens)
        return _Variable(self.decode(token), states, index, len(self.variables), start)

    # -- tables ------------------------------------------------------------------------------

    def _read_tables(self, blocks: list[Block]) -> list[tuple[tuple[int, ...], np.ndarray, Block]]:
        tables: dict[int, tuple[tuple[int, ...], np.ndarray, Block]] = {}
        for block in blocks:
            *parents, child = self._header(block)
            if child.position in tables:
                got = f"another one for {show(child.name)}"
                raise self.fail(block.start, "one probability block per variable", got)
            log_probs = self._table(block, child, parents)
            scope = tuple(variable.position for variable in (*parents, child))
            tables[child.position] = scope, log_probs, block
        for variable in self.variables.values():
            if variable.position not in tables:
                expected = f"a probability block for variable {show(variable.name)}"
                raise self.fail(variable.start, expected, "none in the file")
        self._check_acyclic(tables)
        return [tables[position] for position in range(len(self.variables))]

    def _check_acyclic(self, tables: dict[int, tuple[tuple[int, ...], np.ndarray, Block]]) -> None:
        children: list[list[int]] = [[] for _ in tables]
        missing = [0] * len(tables)  # parents not yet placed before the variable
        for child, (scope, _, _) in tables.items():
            missing[child] = len(scope) - 1
            for parent in scope[:-1]:
                children[parent].append(child)
        ready = [variable for variable, count in enumerate(missing) if count == 0]
        for variable in ready:
            for child in children[variable]:
                missing[child] -= 1
                if missing[child] == 0:
                    ready.append(child)
        if len(ready) < len(tables):
            stuck = next(variable for variable, count in enumerate(missing) if count)
            got = "parents that depend on their own child"
            raise self.fail(tables[stuck][2].start, "a network without cycles", got)

    def _header(self, block: Block) -> list[_Variable]:
        """Return the parents and, last, the child."""
        header = block.header.strip()
        if header[:1] != b"(" or header[-1:] != b")":
            expected = "probability ( CHILD | PARENT, ... ) {"
            raise self.fail(block.start, expected, self.show(header))
        child, bar, parents = header[1:-1].partition(b"|")
        before = child.translate(_SEPARATORS).split(None, MAX_SCOPE + 1)
        after = parents.translate(_SEPARATORS).split(None, MAX_SCOPE + 1)
        # without a bar the first name is the child
        names = before + after
        if not names or (bar and len(before) != 1):
            got = f"{len(before)} names"
            raise self.fail(block.start, "one child before the bar |", got)
        if len(names) > MAX_SCOPE:
            raise self.fail(block.start, f"at most {MAX_SCOPE} variables in a table", "more")
        found = []
        for name in names:
            variable = self.variables.get(self.canonical(name))
            if variable is None:
                known = [v.name for v in self.variables.values()]
                fix = close_matches(self.decode(name)[:80], known)
                raise self.fail(block.start, "a declared variable", self.show(name), _ascii(fix))
            if variable in found:
                raise self.fail(block.start, "distinct variables", f"{self.show(name)} twice")
            found.append(variable)
        return [*found[1:], found[0]]

    def _table(self, block: Block, child: _Variable, parents: list[_Variable]) -> np.ndarray:
        states = len(child.states)
        shape = tuple(len(parent.states) for parent in parents)
        promised = bounded_product(shape, max(self.max_entries, len(block.body)))
        if promised is None:
            expected = f"at most {self.max_entries} entries in the table of {show(child.name)}"
            fix = "pass a larger max_entries if the file is genuine"
            raise self.fail(block.start, expected, "more by its parents' states", fix)
        if block.body.count(b";") > promised + _SPARE_STATEMENTS:
            expected = f"{promised} rows in the table of {show(child.name)}"
            raise self.fail(block.start, expected, f"{block.body.count(b';')} statements")
        strides = [1] * len(shape)
        for axis in range(len(shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        lookups = [
            {key: stride * i for key, i in parent.state_index.items()}
            for parent, stride in zip(parents, strides, strict=True)
        ]
        rows: list[int] = []
        tokens: list[bytes] = []
        spots: list[int] = []  # offset of each row
        whole: list[tuple[int, list[bytes]]] = []
        default: list[tuple[int, list[bytes]]] = []
        for offset, text in self.statements(block):
            if text[:1] == b"(":
                key, closing, numbers = text[1:].partition(b")")
                names = key.translate(_SEPARATORS).split()
                values = numbers.translate(_SEPARATORS).split(None, states + 1)
                row = 0
                known = len(names) == len(lookups) and bool(closing)
                for lookup, name in zip(lookups, names, strict=False):
                    step = lookup.get(name)
                    if step is None and (step := lookup.get(self.canonical(name))) is None:
                        known = False
                        break
                    row += step
                if not known or len(values) != states:
                    raise self._row_error(offset, text, child, parents)
                rows.append(row)
                tokens += values
                spots.append(offset)
                continue
            match = KEYWORD.match(text)
            keyword = match.group() if match else b""
            if keyword in (b"table", b"default"):
                count = states * promised if keyword == b"table" else states
                values = text[len(keyword) :].translate(_SEPARATORS).split(None, count + 1)
                if len(values) != count:
                    what = f"{count} values in the {keyword.decode()} of {show(child.name)}"
                    got = f"{len(values)}" if len(values) < count else "more"
                    raise self.fail(self.skip(offset), what, got)
                (whole if keyword == b"table" else default).append((offset, values))
            elif keyword != b"property":
                expected = "a row, table, default or property"
                raise self.fail(self.skip(offset), expected, self.show(text))
        if len(whole) + len(default) > 1 or (whole and rows):
            offset = (whole + default)[-1][0]
            expected = "one table, or rows with at most one default"
            raise self.fail(self.skip(offset), expected, "several of them")
        if whole:
            return self._from_whole(whole[0], child, shape)
        return self._from_rows(block, child, parents, rows, tokens, spots, default)

    def _from_whole(
        self, whole: tuple[int, list[bytes]], child: _Variable, shape: tuple[int, ...]
    ) -> np.ndarray:
        offset, tokens = whole
        states = len(child.states)
        if self.repair == "uniform":
            count = len(tokens) // states
            tokens = blank_nans(tokens, [slice(row, None, count) for row in range(count)])
        values, logs = self._numbers(tokens, [offset], len(tokens))
        # the child is the first variable of the header and the first one runs slowest
        values, logs = values.reshape(states, -1).T, logs.reshape(states, -1).T
        spots = [offset] * len(values)
        return self._normalise(values, np.array(logs), child, spots).reshape(*shape, states)

    def _from_rows(
        self,
        block: Block,
        child: _Variable,
        parents: list[_Variable],
        rows: list[int],
        tokens: list[bytes],
        spots: list[int],
        default: list[tuple[int, list[bytes]]],
    ) -> np.ndarray:
        states = len(child.states)
        shape = tuple(len(parent.states) for parent in parents)
        promised = int(np.prod(shape, dtype=np.int64))
        seen = set(rows)
        if len(seen) != len(rows):
            first: set[int] = set()
            i = next(i for i, row in enumerate(rows) if row in first or first.add(row))
            got = f"another row for {self._row_name(rows[i], parents)}"
            raise self.fail(self.skip(spots[i]), "each row once", got)
        left_out = promised - len(rows)
        if left_out and not default and self.repair != "uniform":
            missing = next(row for row in range(promised) if row not in seen)
            name = self._row_name(missing, parents)
            expected = f"a row for {name} in the table of {show(child.name)}"
            advice = advise("uniform", "fills rows left out with equal probabilities")
            fix = f"{len(rows)} of {promised} rows; {advice}"
            raise self.fail(block.start, expected, "none", fix)
        if self.repair == "uniform":
            starts = range(0, len(tokens), states)
            tokens = blank_nans(tokens, [slice(start, start + states) for start in starts])
        values, logs = self._numbers(tokens, spots, states)
        logs = self._normalise(values.reshape(-1, states), logs.reshape(-1, states), child, spots)
        self.implied_left -= promised * states - len(tokens)
        if self.implied_left < 0:
            expected = f"at most {self.max_entries} table entries filled by defaults"
            fix = "pass a larger max_entries if the file is genuine"
            raise self.fail(block.start, expected, "more", fix)
        table = np.full((promised, states), -np.log(states))
        if left_out and not default:
            self.notes.append(
                f"{child.name}: filled {left_out} row(s) left out with equal probabilities"
            )
        for offset, names in default:
            if self.repair == "uniform":
                names = blank_nans(names, [slice(None)])
            other, other_logs = self._numbers(names, [offset], states)
            table[:] = self._normalise(other[None], other_logs[None], child, [offset])
        table[rows] = logs
        return table.reshape(*shape, states)

    def _numbers(
        self, tokens: list[bytes], spots: list[int], width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        try:
            return parse_numbers(tokens)
        except BadNumber as bad:
            row, column = divmod(bad.index, width)
            offset = self._find_value(spots[row], column)
            got = self.show(tokens[bad.index])
            fix = ""
            if is_nan(tokens[bad.index]):
                fix = advise("uniform", "fills rows of NaN with equal probabilities")
            raise self.fail(offset, f"{bad.expected} as a probability", got, fix) from None

    def _find_value(self, offset: int, column: int) -> int:
        # a statement may span lines: find its value number `column` after the row or keyword
        begin = self.skip(offset)
        if self.data[begin : begin + 1] == b"(":
            begin = self.data.find(b")", begin) + 1
        elif match := KEYWORD.match(self.data, begin):
            begin = match.end()
        word = next(islice(_VALUE.finditer(self.data, begin), column, None), None)
        return begin if word is None else word.start()

    def _normalise(
        self, values: np.ndarray, logs: np.ndarray, child: _Variable, spots: list[int]
    ) -> np.ndarray:
        try:
            logs, notes = normalise(values, logs, self.repair)
        except NoDistribution as bad:
            expected = f"probabilities of {show(child.name)} that sum to 1"
            raise self.fail(self.skip(spots[bad.row]), expected, bad.got, bad.fix) from None
        self.notes += [f"{child.name}: {note}" for note in notes]
        return logs

    def _row_name(self, row: int, parents: list[_Variable]) -> str:
        names: list[str] = []
        for parent in reversed(parents):
            row, state = divmod(row, len(parent.states))
            names.insert(0, parent.states[state][:40])
        return _ascii(f"({', '.join(names)})")

    def _row_error(
        self, offset: int, text: bytes, child: _Variable, parents: list[_Variable]
    ) -> ModelFileError:
        offset = self.skip(offset)
        key, closing, numbers = text[1:].partition(b")")
        if not closing:
            return self.fail(offset, "a closing ) after the states of a row", self.show(text))
        names = key.translate(_SEPARATORS).split(None, MAX_SCOPE + 1)
        if len(names) != len(parents):
            expected = f"{len(parents)} parent states in a row of {show(child.name)}"
            return self.fail(offset, expected, f"{len(names)}")
        for name, parent in zip(names, parents, strict=True):
            if self.canonical(name) not in parent.state_index:
                expected = f"a state of variable {show(parent.name)}"
                fix = close_matches(self.decode(name)[:80], parent.states)
                return self.fail(offset, expected, self.show(name), _ascii(fix))
        states = len(child.states)
        found = len(numbers.translate(_SEPARATORS).split(None, states + 1))
        got = f"{found}" if found <= states else "more"
        return self.fail(offset, f"{states} values in a row of {show(child.name)}", got)

    def _model(
        self,
        network: Block,
        tables: list[tuple[tuple[int, ...], np.ndarray, Block]],
    ) -> DiscreteModel:
        for _, table, _ in tables:
            table.flags.writeable = False
        names = [self.decode(name) for name in network.header.split()]
        variables = list(self.variables.values())
        return DiscreteModel(
            cardinalities=tuple(len(variable.states) for variable in variables),
            scopes=tuple(scope for scope, _, _ in tables),
            log_tables=tuple(table for _, table, _ in tables),
            variable_names=tuple(variable.name for variable in variables),
            state_names=tuple(variable.states for variable in variables),
            kind="BAYES",
            notes=tuple(self.notes),
            name=stem(self.path) if names in ([], ["unknown"]) else names[0],
        )


def _ascii(text: str) -> str:
    return text.strip().rstrip(".")[:200].encode("ascii", "backslashreplace").decode("ascii")


def read_bif(
    path: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_entries: int = MAX_ENTRIES,
    repair: str | None = None,
    encoding: str | None = None,
) -> DiscreteModel:
    """Read a Bayesian network in BIF format (`.bif`, `.bif.gz`).

    Conditional tables may be given as rows, as one `table` (child slowest, last parent
    fastest) or as rows with a `default`. Commas and bars only separate; comments and
    properties are skipped. Rows that miss a sum of 1 by rounding (up to 1e-4) are divided by
    their sum, with an entry in `notes`.

    Args:
        path: the file.
        max_bytes: limit on the unpacked size.
        max_entries: limit on the entries of all tables that are filled, by `default` or `repair`.
        repair: what to do about other rows that are no distributions: None to refuse the file,
            `"normalise"` to divide each row by its sum, `"uniform"` to do so too and to fill rows
            of NaN, of zeros or left out with equal probabilities. What was done is in `notes`.
        encoding: of a file that is not UTF-8, `"latin-1"` for example.

    Returns:
        The model (kind "BAYES"): one factor per variable, in the order of the declarations; the
        axes of a table are the parents in the order of the file, then the child.

    Raises:
        ModelFileError: if the file breaks the format, with the line.
        ValueError: an unknown repair or encoding.
    """
    check_repair(repair)
    data = recode(path, read_bytes(path, max_bytes), encoding)
    return _Reader(data, path, max_entries, repair).read()
