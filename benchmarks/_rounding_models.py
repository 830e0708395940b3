"""Random rings and grids with potentials of up to 10,000 nats and `-inf`, and who is right.

The referee is a forward and a backward pass in extended precision, in logarithms, over layers of
variables: a grid's rows, or a ring folded in two. It shares no code and no order with the package.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

KINDS = ("ring", "grid")
SWEEPS = {"linear sweep": "linear", "log sweep": "log"}
ROUTES = ("eager", "jit", "vmap", *SWEEPS)
# Errors are in units of what rounding every given number once, by half a step, may change log Z by.
# Sums round again at each product on the way up and down, by chance in either direction; a
# log-marginal is the difference of two.
UNITS = 8.0
# Compiled routes take these many structures in turn: compiling takes longer than running.
STRUCTURES = 5
_WIDE = np.longdouble


class Model(NamedTuple):
    """A model of plain values, nats, and the layers that the referee goes through."""

    cards: list[int]
    layers: list[tuple[int, ...]]
    scopes: list[tuple[int, ...]]
    tables: list[np.ndarray]
    evidence: list[np.ndarray]


class Answer(NamedTuple):
    """Log-partition, then log-marginals by variable and by factor."""

    log_partition: Any
    variables: list[np.ndarray]
    factors: list[np.ndarray]


def draw(kind: str, structure: int, numbers: int, dtype: Any) -> Model:
    """A model whose structure depends on one seed, its numbers on another."""
    rng = np.random.default_rng([KINDS.index(kind), structure])
    if kind == "ring":
        count = int(rng.integers(3, 41))
        pairs = [(v, (v + 1) % count) for v in range(count)]
        layers = [tuple(sorted({v, -v % count})) for v in range(count // 2 + 1)]
    else:
        index = np.arange(rng.integers(2, 7) * (width := rng.integers(2, 5))).reshape(-1, width)
        count, layers = index.size, [tuple(row) for row in index.tolist()]
        pairs = [*zip(index[:, :-1].flat, index[:, 1:].flat, strict=True)]
        pairs += zip(index[:-1].flat, index[1:].flat, strict=True)
    cards = rng.integers(2, 6 if kind == "ring" else 4, count).tolist()
    scopes = [(int(a), int(b))[:: rng.choice([1, -1])] for a, b in pairs]
    scopes += [(v,) for v in range(count) if rng.random() < 0.3]

    rng = np.random.default_rng([2, structure, numbers])
    zeros, sizes = rng.choice([0.0, 0.1, 0.3, 0.5]), 10 ** rng.uniform(1, 4, len(scopes) + count)
    if rng.random() < 0.5:
        sizes[:] = sizes[0]
    planted = [int(rng.integers(card)) for card in cards] if rng.random() < 0.7 else None
    tables = []
    for scope, size in zip([*scopes, *((v,) for v in range(count))], sizes, strict=True):
        table = rng.uniform(-size, size, [cards[v] for v in scope])
        if len(tables) >= len(scopes) and rng.random() < 0.7:
            table[:] = 0.0  # no evidence
        excluded = rng.random(table.shape) < zeros
        if planted:
            excluded[tuple(planted[v] for v in scope)] = False
        tables.append(np.where(excluded, -np.inf, table).astype(dtype))
    return Model(cards, layers, scopes, tables[: len(scopes)], tables[len(scopes) :])


def magnitude(model: Model) -> float:
    """Largest sum of entries in size, nats: what relative rounding of each is multiplied by."""
    every = (*model.tables, *model.evidence)
    largest = [np.abs(t, where=np.isfinite(t), out=np.zeros(t.shape)).max() for t in every]
    return sum(largest) + float(np.log(model.cards).sum())


def referee(model: Model) -> Answer:
    """The right answer."""
    scopes = [*model.scopes, *((v,) for v in range(len(model.cards)))]
    where = {v: t for t, layer in enumerate(model.layers) for v in layer}
    sizes = [[model.cards[v] for v in layer] for layer in model.layers]
    inside = [np.zeros(size, _WIDE) for size in sizes]
    across = [np.zeros(a + b, _WIDE) for a, b in pairwise(sizes)]
    for scope, table in zip(scopes, (*model.tables, *model.evidence), strict=True):
        at = min(where[v] for v in scope)
        one_layer = all(where[v] == at for v in scope)
        axes = model.layers[at] if one_layer else model.layers[at] + model.layers[at + 1]
        order = np.argsort([axes.index(v) for v in scope])
        shape = [model.cards[v] if v in scope else 1 for v in axes]
        (inside if one_layer else across)[at] += table.transpose(order).reshape(shape)
    flat = [table.ravel() for table in inside]
    moves = [m.reshape(a.size, b.size) for m, (a, b) in zip(across, pairwise(flat), strict=True)]
    ahead, behind = [flat[0]], [np.zeros_like(flat[-1])]
    for move, own in zip(moves, flat[1:], strict=True):
        ahead.append(_log_sum(ahead[-1][:, None] + move, (0,)) + own)
    for move, own in zip(moves[::-1], flat[:0:-1], strict=True):
        behind.insert(0, _log_sum(move + own + behind[0], (1,)))
    log_partition = _log_sum(ahead[-1], (0,))
    if np.isneginf(log_partition):
        return Answer(log_partition, [], [])
    found = []
    for scope in scopes:
        at = min(min(where[v] for v in scope), len(moves) - 1)
        joint = ahead[at][:, None] + moves[at] + flat[at + 1] + behind[at + 1] - log_partition
        axes = model.layers[at] + model.layers[at + 1]
        gone = tuple(axis for axis, v in enumerate(axes) if v not in scope)
        kept = [v for v in axes if v in scope]
        summed = _log_sum(joint.reshape(sizes[at] + sizes[at + 1]), gone)
        found.append(summed.transpose([kept.index(v) for v in scope]))
    return Answer(log_partition, found[len(model.scopes) :], found[: len(model.scopes)])


def _log_sum(logs: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    top = logs.max(axis=axes, keepdims=True)
    top = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(logs - top).sum(axis=axes)) + top.squeeze(axes)


def worst(model: Model, right: Answer, solution: Any, graph: Any, inner: Any) -> float:
    """Largest error in units; infinite for a wrong `-inf`, a wrong verdict or no number.

    Args:
        model: the model.
        right: the referee's answer.
        solution: what was found.
        graph: the graph it was found on.
        inner: float type that the route computes in.
    """
    from klprojax import RESULTS

    if np.isneginf(right.log_partition):
        said = solution.result == RESULTS.contradiction and np.isneginf(solution.log_partition)
        return 0.0 if said else np.inf
    if solution.result != RESULTS.successful:
        return np.inf
    found = [
        solution.log_partition,
        *graph.unpack_variables(solution.log_beliefs),
        *graph.unpack(solution.factor_log_beliefs),
    ]
    wanted = [right.log_partition, *right.variables, *right.factors]
    unit, most = float(np.finfo(inner).eps) / 2 * magnitude(model), 0.0
    for got, want in zip(found, wanted, strict=True):
        got = np.asarray(got)
        possible = ~np.isneginf(want)
        if np.isnan(got).any() or not np.array_equal(possible, ~np.isneginf(got)):
            return np.inf
        # The answer's own rounding, if it is kept in fewer digits than it was computed in.
        kept = 0.0 if got.dtype == inner else float(np.finfo(got.dtype).eps) / 2
        error = np.abs(got[possible] - want[possible]) - kept * np.abs(want[possible])
        most = max(most, float(error.max(initial=0.0)) / unit)
    return most


def measure(kind: str, bits: int, route: str, count: int) -> dict[str, Any]:
    """Count wrong answers of one route over models of one kind."""
    import jax

    dtype = np.dtype(f"float{bits}")
    inner = np.float64 if route == "eager" else dtype
    errors, flags, impossible = [], [], 0
    with jax.enable_x64(bits == 64):
        for model, graph, solution, flag in _solved(kind, dtype, route, count):
            answer = referee(model)
            impossible += bool(np.isneginf(answer.log_partition))
            errors.append(worst(model, answer, solution, graph, inner))
            flags.append(flag)
    silent = [(n, e) for n, (e, flag) in enumerate(zip(errors, flags, strict=True)) if not flag]
    wrong = [n for n, error in silent if error > UNITS]
    return {
        "status": "ok",
        "models": len(errors),
        "impossible": impossible,
        "flagged": sum(flags),
        "wrong": len(wrong),
        "wrong_numbers": wrong[:10],
        "largest": float(max((error for _, error in silent), default=0.0)),
    }


def _solved(
    kind: str, dtype: Any, route: str, count: int
) -> Iterator[tuple[Model, Any, Any, bool]]:
    """Models, their graphs, what a route found, whether it said that digits were lost."""
    import jax

    import klprojax

    structures = count if route == "eager" else min(count, STRUCTURES)
    for structure in range(structures):
        models = [draw(kind, structure, n, dtype) for n in range(structure, count, structures)]
        graph = klprojax.FactorGraph(models[0].cards, models[0].scopes)
        given = [
            (graph.pack(m.tables, dtype), graph.pack_variables(m.evidence, dtype)) for m in models
        ]
        run = _run(graph, route, given[0][0])
        if route == "vmap":
            rows = run(*jax.tree.map(lambda *parts: np.stack(parts), *given))
            found = [jax.tree.map(lambda x, n=n: x[n], rows) for n in range(len(models))]
        else:
            found = [run(*numbers) for numbers in given]
        for model, (solution, lost) in zip(models, found, strict=True):
            yield model, graph, solution, bool(lost)


def _run(graph: Any, route: str, tables: Any) -> Callable[..., tuple[Any, Any]]:
    """A route: tables and evidence in, solution and whether digits were lost out."""
    import jax
    import jax.numpy as jnp

    from klprojax import Elimination, infer
    from klprojax.operators._elimination import _solve

    def answered(tables: Any, evidence: Any) -> tuple[Any, Any]:
        solution = infer(
            graph, tables, Elimination(), log_evidence=evidence, factor_beliefs=True, throw=False
        )
        return solution, jnp.zeros((), bool)

    def spread(tables: Any) -> Any:
        return tuple(
            jnp.broadcast_to(table, (group.count, *group.shape))
            for table, group in zip(tables, graph.signature.groups, strict=True)
        )

    if route == "eager":
        return answered
    if route == "jit":
        return jax.jit(answered)
    if route == "vmap":
        return jax.jit(jax.vmap(answered))
    # One of the two compiled sweeps, whatever the numbers.
    plan, sweep = Elimination().plan(graph, spread(tables)), SWEEPS[route]

    def one_sweep(tables: Any, evidence: Any) -> tuple[Any, Any]:
        solution, lost = _solve(plan, spread(tables), evidence, True, sweep)
        return solution, lost & (sweep == "linear")

    return one_sweep


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line per kind, precision and route."""
    from benchmarks import _shared as shared

    body = []
    for row in rows:
        name = [f"{row['kind']}, float{row['bits']}, {row['route']}"]
        if row["status"] == "ok":
            named = ("models", "impossible", "flagged", "wrong")
            body.append([*name, *(f"{row[key]:,}" for key in named), f"{row['largest']:.2g}"])
        else:
            body.append([*name, *["-"] * 4, row["status"]])
    return (
        "\n## Random rings and grids\n\n"
        "Exact inference on rings of 3 to 40 variables and grids of up to 6 by 4, 2 to 5 states, "
        "potentials of up to 10 to 10,000 nats, up to half of the entries `-inf`, evidence hard "
        "and soft; log Z and the log-marginals of all variables and factors against a forward and "
        "a backward pass in extended precision. Eagerly every model has a structure of its own.\n\n"
        "Wrong: further off than rounding allows, a wrong `-inf` or a wrong verdict, and not "
        "flagged. Impossible: log Z is `-inf`; right is the verdict of a contradiction. Flagged: "
        "the linear sweep says that digits were lost; `jit` and `vmap` then take the other. "
        "The largest error is in units of what rounding every given number by half a step may "
        f"change log Z by; up to {UNITS:g} is right. Eager results are computed in float64.\n\n"
        + shared.markdown_table(
            ("route", "models", "impossible", "flagged", "wrong", "largest error"), body
        )
    )
