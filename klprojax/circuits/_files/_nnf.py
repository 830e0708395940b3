"""NNF files: d-DNNF of c2d (``nnf v e n``) and of d4, d4v2 and ganak (``o id 0``), as circuits."""

import os
from array import array
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ...graphs._files._cnf import read_formula
from ...graphs._files._text import MAX_BYTES
from .._builder import CircuitModel
from .._properties import is_deterministic
from .._structure import LEAF, PRODUCT, SUM
from ._binary import binary_circuit
from ._lines import LineFile, write_lines
from ._smoothing import NegationNormalForm, smooth_circuit

# Variables that need not occur in the file: free ones cost three nodes each.
_SPARE_VARIABLES = 2**18
_FEW_LITERALS = 32
_MOST_NODES = 2**22
_D4_KINDS = {b"o": SUM, b"a": PRODUCT, b"t": PRODUCT, b"f": SUM}


def read_nnf(
    path: str | os.PathLike[str],
    *,
    cnf: str | os.PathLike[str] | None = None,
    num_variables: int | None = None,
    log_literal_weights: Float[np.ndarray, "variables 2"] | None = None,
    max_bytes: int = MAX_BYTES,
) -> CircuitModel:
    """Read a d-DNNF (`.nnf`, `.nnf.gz`) that c2d, dsharp, miniC2D, d4, d4v2 or ganak compiled.

    c2d's form is ``nnf nodes edges variables``, then one node per line, children first: ``L
    literal``, ``A count children``, ``O decision count children``; nodes are numbered from 0 and
    the last is the root. d4's form has nodes ``o id 0``, ``a id 0``, ``t id 0``, ``f id 0``, the
    root first, and edges ``parent child literals 0``. Lines that begin with c are comments.

    The circuit is smoothed: variables that a branch leaves free are multiplied in as sums of both
    literals. With weights 1 its log-partition is the logarithm of the model count. Variables are
    counted from 0; state 1 is true. To differentiate by literal weights, leave them out here and
    pass them as evidence: ``sweep(circuit, log_weights, circuit.pack_variables(weights))``.

    Args:
        path: the file.
        cnf: the formula's DIMACS file, which says how many variables there are and their weights.
        num_variables: how many variables there are. A d4 file does not say: without this, and
            without ``cnf``, the largest that occurs is the last, and free ones after it are lost.
        log_literal_weights: nats, per variable of the negative and of the positive literal; 0 if
            left out; ``-inf`` forbids a literal.
        max_bytes: limit on the unpacked size.

    Returns:
        Structure, weights and leaf parameters.

    Raises:
        ModelFileError: naming file and line: what breaks the format; children of an A that share
            variables; children of an O that the decision variable does not tell apart (d4: that no
            literal does; an O of c2d's form with decision 0 claims nothing and is not checked); a
            formula without models; more than 2^22 nodes, 2^28 bytes of scopes or 2^24 edges.
        ValueError: literal weights of a wrong shape, NaN or ``+inf``.
    """
    file = LineFile(path, max_bytes)
    if cnf is not None:
        formula = read_formula(cnf)
        num_variables = formula.variables if num_variables is None else num_variables
        if log_literal_weights is None:
            log_literal_weights = formula.log_weights
    first = next(((number, words) for number, words in file if words[0] != b"c"), None)
    if first is None:
        raise file.error(None, "the lines of an NNF", "none before the file ends")
    if first[1][0] == b"nnf":
        nnf = _read_c2d(file, *first, num_variables)
    elif first[1][0] in _D4_KINDS:
        nnf = _read_d4(file, num_variables)
    else:
        expected = "nnf nodes edges variables (c2d), or a node, o id 0 (d4)"
        raise file.error(first[0], expected, b" ".join(first[1]))
    return smooth_circuit(file, nnf, _checked_weights(log_literal_weights, nnf.variables))


def _checked_weights(weights, variables: int) -> np.ndarray | None:
    if weights is None:
        return None
    weights = np.asarray(weights, np.float64)
    if weights.shape != (variables, 2):
        raise ValueError(
            f"log_literal_weights has shape {weights.shape}; expected ({variables}, 2), the "
            "negative and the positive literal of each variable."
        )
    if not (weights < np.inf).all():
        raise ValueError("log_literal_weights has NaN or +inf; entries are nats, finite or -inf.")
    return weights


# -- c2d -------------------------------------------------------------------------------------


def _read_c2d(
    file: LineFile, top: int, header: list[bytes], wanted: int | None
) -> NegationNormalForm:
    if len(header) != 4:
        raise file.error(top, "nnf nodes edges variables", b" ".join(header))
    nodes, edges, variables = file.integers(top, header[1:], "a size in the header")
    if wanted is not None and variables > wanted:
        raise file.error(top, f"at most {wanted} variables, as asked for", header[3])
    _check_count(file, top, max(variables, wanted or 0), header[3])
    kinds, counts, children = bytearray(), array("q"), array("q")
    literals, decisions, lines = array("q"), array("q"), array("q")
    fixed = {b"L": 1, b"A": 1, b"O": 2}
    odd = b"_" in file.data  # int() takes underscores
    for line, text in file.raw_lines():
        words = text.split()
        if line <= top or not words or words[0] == b"c":
            continue
        least = fixed.get(words[0])
        if least is None or len(words) <= least:
            expected = "L literal, A count children or O decision count children"
            raise file.error(line, expected, b" ".join(words))
        try:
            numbers = list(map(int, words[1:]))
            plain = not odd and max(map(len, words)) < 18
        except ValueError:
            plain = False
        if not plain:
            numbers = file.signed(line, words[1:], "a literal, count, decision or node")
        literal = decision = 0
        below = []
        if least == 1 and words[0] == b"L":
            literal = numbers[0]
            if len(numbers) != 1 or not 0 < abs(literal) <= variables:
                expected = f"one literal, 1 to {variables} or its negative"
                raise file.error(line, expected, b" ".join(words))
            kinds.append(LEAF)
        else:
            if least == 2:
                decision = numbers[0]
                if not 0 <= decision <= variables:
                    raise file.error(line, f"a decision variable, 0 to {variables}", words[1])
            below = numbers[least:]
            if len(below) != numbers[least - 1]:
                expected = f"{numbers[least - 1]} children"
                raise file.error(line, expected, f"{len(below)}", "is the line cut off?")
            if below and not 0 <= min(below) <= max(below) < len(kinds):
                bad = next(i for i in below if not 0 <= i < len(kinds))
                raise file.error(line, "the number of an earlier node", str(bad))
            kinds.append(PRODUCT if least == 1 else SUM)
        if len(kinds) > _MOST_NODES:
            raise file.error(line, f"at most {_MOST_NODES} nodes", "more")
        counts.append(len(below))
        children.extend(below)
        literals.append(literal)
        decisions.append(decision)
        lines.append(line)
    if not kinds:
        raise file.error(None, "nodes", "none before the file ends", "is it cut off?")
    # some programs write 0 for sizes that they do not know
    if (nodes, edges) != (0, 0) and (nodes, edges) != (len(kinds), len(children)):
        got = f"{len(kinds)} nodes and {len(children)} edges"
        expected = f"{nodes} nodes and {edges} edges, as the header says"
        raise file.error(top, expected, got, "is the file cut off, or the header wrong?")
    return NegationNormalForm(
        variables if wanted is None else wanted,
        np.frombuffer(kinds, np.uint8),
        *(np.asarray(part) for part in (counts, children, literals, decisions, lines)),
        root=len(kinds) - 1,
    )


def _check_count(file: LineFile, line: int | None, variables: int, got: bytes | str) -> None:
    most = _SPARE_VARIABLES + len(file.data)
    if variables > most:
        expected = f"at most {most} variables in a file of {len(file.data)} bytes"
        raise file.error(line, expected, got)


# -- d4 --------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    parents: np.ndarray
    children: np.ndarray
    counts: np.ndarray
    literals: np.ndarray
    lines: np.ndarray


def _read_d4(file: LineFile, wanted: int | None) -> NegationNormalForm:
    kinds, node_lines = bytearray(), array("q")
    odd = b"_" in file.data  # int() takes underscores
    number: dict[int, int] = {}
    leaves = set()
    sources, targets, counts = array("q"), array("q"), array("q")
    literals, edge_lines = array("q"), array("q")
    largest, largest_line = 0, None
    for line, text in file.raw_lines():
        words = text.split()
        if not words or words[0] == b"c":
            continue
        kind = _D4_KINDS.get(words[0])
        if words[-1] != b"0" or len(words) < 3:
            expected = "a node, o id 0, or an edge, parent child literals 0"
            raise file.error(line, expected, b" ".join(words), "is the line cut off?")
        if kind is not None:
            if len(words) != 3:
                raise file.error(line, "one id and 0 after the kind of a node", b" ".join(words))
            (name,) = file.integers(line, words[1:2], "the id of a node")
            if name in number:
                raise file.error(line, "a new id", words[1], "two lines have this id")
            if words[0] in (b"t", b"f"):
                leaves.add(len(kinds))
            number[name] = len(kinds)
            kinds.append(kind)
            if len(kinds) > _MOST_NODES:
                raise file.error(line, f"at most {_MOST_NODES} nodes", "more")
            node_lines.append(line)
            continue
        try:
            numbers = list(map(int, words[:-1]))
            plain = not odd and max(map(len, words)) < 18
        except ValueError:
            plain = False
        if not plain:
            numbers = file.signed(line, words[:-1], "the ids of parent and child, then literals")
        if len(numbers) < 2:
            raise file.error(line, "parent child literals 0", b" ".join(words))
        if 0 in numbers[2:]:
            raise file.error(line, "literals, none of them 0, before the last 0", b" ".join(words))
        for value in numbers[2:]:
            if abs(value) > largest:
                largest, largest_line = abs(value), line
        sources.append(numbers[0])
        targets.append(numbers[1])
        counts.append(len(numbers) - 2)
        literals.extend(numbers[2:])
        edge_lines.append(line)
    if wanted is not None and largest > wanted:
        raise file.error(largest_line, f"a variable from 1 to {wanted}", str(largest))
    variables = largest if wanted is None else wanted
    _check_count(file, largest_line, variables, str(variables))
    ends = []
    for names in (sources, targets):
        ends.append(np.fromiter((number.get(name, -1) for name in names), np.int64, len(names)))
        missing = np.flatnonzero(ends[-1] < 0)
        if len(missing):
            at = int(missing[0])
            raise file.error(edge_lines[at], "the id of a node of the file", str(names[at]))
    for at in np.flatnonzero(np.isin(ends[0], sorted(leaves)))[:1].tolist():
        raise file.error(edge_lines[at], "a parent that is an o or a", str(sources[at]))
    edges = _Edges(*ends, *(np.asarray(part) for part in (counts, literals, edge_lines)))
    return _from_edges(variables, np.frombuffer(kinds, np.uint8), np.asarray(node_lines), edges)


def _from_edges(
    variables: int, kinds: np.ndarray, lines: np.ndarray, edges: _Edges
) -> NegationNormalForm:
    """Nodes of the file, then one product per edge of an o with literals, then the literals."""
    nodes = len(kinds)
    split = (kinds[edges.parents] == SUM) & (edges.counts > 0)
    products = np.flatnonzero(split)
    # The node that an edge's literals, and its child, become children of.
    owner = edges.parents.copy()
    owner[split] = nodes + np.arange(len(products))
    distinct, which = np.unique(edges.literals, return_inverse=True)
    total = nodes + len(products)
    parents = np.concatenate([owner, edges.parents[split], np.repeat(owner, edges.counts)])
    children = np.concatenate([edges.children, owner[split], total + which])
    order = np.argsort(parents, kind="stable")
    everything = total + len(distinct)
    literals = np.zeros(everything, np.int64)
    literals[total:] = distinct
    all_kinds = np.full(everything, LEAF, np.uint8)
    all_kinds[:nodes] = kinds
    all_kinds[nodes:total] = PRODUCT
    decisions = np.zeros(everything, np.int64)
    decisions[:nodes] = np.where(kinds == SUM, -1, 0)
    all_lines = np.concatenate([lines, edges.lines[split], np.zeros(len(distinct), np.int64)])
    counts = np.bincount(parents, minlength=everything)
    return NegationNormalForm(
        variables, all_kinds, counts, children[order], literals, decisions, all_lines, root=0
    )


# -- writing ---------------------------------------------------------------------------------


def write_nnf(path: str | os.PathLike[str], model: CircuitModel) -> None:
    """Write a circuit that is a formula, all weights 1, as d-DNNF in c2d's form.

    Args:
        path: the file (`.nnf`), compressed if it ends in `.gz`.
        model: circuit, log-weights and leaf parameters.

    Raises:
        ValueError: what the form cannot hold: variables that are not binary; a weight or an entry
            of a leaf's table other than 1 (tables also: 0); sums whose children are not told apart
            (see `is_deterministic`).
    """
    c = binary_circuit(model, "NNF")
    heavy = np.flatnonzero(c.log_weights)
    weighted = [int(node) for node in c.s.parents[heavy[:1]]]
    weighted += [node for node, row in c.table.items() if not {*row} <= {0.0, -np.inf}]
    if weighted:
        raise ValueError(
            f"An NNF file has no weights, but {c.s.label(weighted[0])} has some other than 1. Keep "
            "literal weights apart (see read_nnf), or use write_psdd, write_spn or save_circuit."
        )
    if not is_deterministic(model.circuit):
        raise ValueError(
            "The children of a d-DNNF's or-node exclude one another, but those of a sum node here "
            "may be positive together (is_deterministic is False): read as a formula, models would "
            "count twice. write_spn and save_circuit take such circuits."
        )
    lines: list[str] = []
    known: dict[str, int] = {}
    # Per line the literals that it implies, not all where they are many.
    implied: list[set[int]] = []
    edges = 0

    def put(line: str, children: list[int], literals: set[int]) -> int:
        nonlocal edges
        line = " ".join([line, *map(str, children)])
        if line not in known:
            known[line] = len(lines)
            lines.append(line)
            implied.append(literals)
            edges += len(children)
        return known[line]

    def put_or(children: list[int]) -> int:
        decision = 0
        if len(children) == 2:
            one, two = (implied[child] for child in children)
            decision = min((abs(lit) for lit in one if -lit in two), default=0)
        return put(f"O {decision} {len(children)}", children, set())

    number: dict[int, int] = {}
    for node in c.order:
        below = [number[child] for child in c.children(node)]
        if c.s.kinds[node] == LEAF:
            v = c.variable[node] + 1
            signs = [sign for sign, log in zip((-v, v), c.table[node], strict=True) if log == 0.0]
            below = [put(f"L {literal}", [], {literal}) for literal in signs]
        if len(below) == 1:
            number[node] = below[0]
        elif c.s.kinds[node] == PRODUCT:
            few = (implied[child] for child in below if len(implied[child]) <= _FEW_LITERALS)
            number[node] = put(f"A {len(below)}", below, set().union(*few))
        else:
            number[node] = put_or(below)
    if number[c.s.root] != len(lines) - 1:
        put("A 1", [number[c.s.root]], set())
    write_lines(path, [f"nnf {len(lines)} {edges} {len(c.s.cardinalities)}", *lines])
