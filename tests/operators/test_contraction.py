"""Contraction in numpy: every entry keeps its digits, whatever the range; trees; routes."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klprojax import Elimination, FactorGraph, Parity, Structured, infer
from klprojax.operators import TooLargeError
from klprojax.operators.contraction import (
    _scaled_tables,
    _slices,
    _tree,
    contract,
    contract_in_slices,
)
from klprojax.operators.contraction._plan import planned
from klprojax.operators.contraction._scaled_tables import (
    ScaledTable,
    from_logs,
    multiply,
    plan_step,
)
from klprojax.operators.contraction._tree import find_tree
from tests.reference.elimination import eliminate

SEEDS = st.integers(0, 2**32 - 1)
RING = [(v, (v + 1) % 6) for v in range(6)]
GRIDS = {
    "ring": ([3] * 6, RING),
    "grid": ([2, 3, 2, 2, 3, 2], [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5), (4,)]),
    "triples": ([2, 2, 3, 2, 2], [(0, 1, 2), (2, 3, 4), (4, 0), (1, 3), (2,), (0, 1)]),
}


def draw(name, seed, size, zeros):
    (cards, scopes), rng = GRIDS[name], np.random.default_rng(seed)
    tables = []
    for scope in scopes:
        table = rng.uniform(-size, size, [cards[v] for v in scope])
        tables.append(np.where(rng.random(table.shape) < zeros, -np.inf, table))
    return cards, scopes, tables


@settings(max_examples=150)
@given(
    name=st.sampled_from(list(GRIDS)),
    seed=SEEDS,
    size=st.sampled_from([1.0, 30.0, 300.0, 1e3, 1e4]),
    zeros=st.sampled_from([0.0, 0.2, 0.5]),
)
def test_log_marginals_keep_their_digits_over_any_range(name, seed, size, zeros):
    cards, scopes, tables = draw(name, seed, size, zeros)
    found = contract(cards, scopes, tables, of_tables=True)
    log_z = eliminate(cards, scopes, tables)
    # Sums of a hundred logarithms of this size, each rounded.
    atol = 1e-13 * (1 + 20 * size)
    if log_z == -np.inf:
        assert found.log_partition == -np.inf
        assert all(np.isneginf(table).all() for table in found.variables)
        return
    np.testing.assert_allclose(found.log_partition, log_z, rtol=0, atol=atol)
    for v, got in enumerate(found.variables):
        want = eliminate(cards, scopes, tables, (v,)) - log_z
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    for scope, got in zip(scopes, found.tables, strict=True):
        want = eliminate(cards, scopes, tables, scope) - log_z
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_logarithms_are_taken_only_where_linear_space_would_lose(monkeypatch):
    calls = []
    own = _scaled_tables._sum_of_logs
    monkeypatch.setattr(_scaled_tables, "_sum_of_logs", lambda *t: calls.append(1) or own(*t))
    for size, expected in ((30.0, False), (1e4, True)):
        calls.clear()
        contract(*draw("grid", 0, size, 0.0))
        assert bool(calls) == expected


@pytest.mark.parametrize("kept", [{0}, {1}, {2}, {0, 1}, {0, 2}, {0, 1, 2}, set()])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (3, 200, 2), (40, 2, 40), (1, 7, 1)])
@pytest.mark.parametrize("depth", [0.0, 400.0])
def test_products_of_every_shape(kept, sizes, depth):
    rng = np.random.default_rng(0)
    logs = [rng.uniform(-1 - depth, 0, (sizes[a], sizes[b])) for a, b in ((1, 0), (1, 2))]
    one, two = map(from_logs, logs)
    assert one.is_log == two.is_log == (depth > 0)
    # A variable of one table only stays: it is summed before.
    step = plan_step((1, 0), (1, 2), kept | {0, 2}, sizes)
    got = multiply(step, one, two)
    want = eliminate(sizes, ((1, 0), (1, 2)), logs, step.scope)
    # Logarithms of size 800 at most.
    np.testing.assert_allclose(got.logs() + got.scale, want, atol=2e-12)
    assert got.low <= got.logs().min() + 1e-9
    assert got.high >= got.logs().max() - 1e-9


@pytest.mark.parametrize("sizes", [(3, 50, 4), (41, 5, 6), (2, 3, 60), (30, 30, 30)])
def test_matrix_products_start_no_threads_that_do_not_pay(sizes, monkeypatch):
    rows, k, columns = sizes
    rng = np.random.default_rng(0)
    a, b = rng.random((2, rows, k)), rng.random((2, k, columns))
    want = np.einsum("brk,bkc->brc", a, b)
    seen, product = [], np.matmul
    monkeypatch.setattr(_scaled_tables, "ONE_THREAD", 200)
    monkeypatch.setattr(_scaled_tables, "THREADS_PAY", 20_000)
    monkeypatch.setattr(np, "matmul", lambda x, y: (seen.append((x, y)), product(x, y))[1])
    # sums of 50 products at most, each rounded once
    np.testing.assert_allclose(_scaled_tables.matrix_product(a, b), want, rtol=1e-14)
    largest = max(x[0].size * y.shape[2] for x, y in seen)
    assert largest <= 200 if rows * k * columns <= 20_000 else len(seen) == 1


def peak(function, *given, **options):
    """Result, and most bytes that were allocated at once."""
    tracemalloc.start()
    try:
        return function(*given, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_memory_stays_near_what_is_predicted(size, monkeypatch):
    # Blocks and Python's own objects are small beside the tables, as they are for large models.
    monkeypatch.setattr(_scaled_tables, "BLOCK", 2**10)
    index, rng = np.arange(48).reshape(4, 12), np.random.default_rng(0)
    pairs = (index[:, :-1], index[:, 1:]), (index[:-1], index[1:])
    ends = np.hstack([[one.ravel(), two.ravel()] for one, two in pairs])
    scopes = [(a, b) for a, b in ends.T.tolist()]
    tables = [rng.uniform(-size, size, (6, 6)) for _ in scopes]
    program = planned([6] * 48, scopes)
    predicted = program.needed_bytes(2 * 36 * len(scopes))
    _, used = peak(contract, [6] * 48, scopes, tables, program=program)
    assert predicted / 2 < used < 1.5 * predicted


@pytest.mark.parametrize("sizes", [(2**14, 2, 2), (2, 2, 2**14), (2**7, 2, 2**7), (2, 2**14, 2)])
def test_products_of_logarithms_are_made_in_blocks(sizes, monkeypatch):
    monkeypatch.setattr(_scaled_tables, "BLOCK", 2**10)
    calls, exp, rng = [], np.exp, np.random.default_rng(0)
    monkeypatch.setattr(np, "exp", lambda *given, **to: calls.append(1) or exp(*given, **to))
    logs = [rng.uniform(-400, 0, (sizes[a], sizes[b])) for a, b in ((0, 1), (1, 2))]
    for table in logs:
        table.flat[:2] = 0, -400
    step = plan_step((0, 1), (1, 2), {0, 2}, sizes)
    one, two = map(from_logs, logs)
    assert one.is_log
    assert two.is_log
    got, used = peak(multiply, step, one, two)
    # The result, as much twice over while it is scaled, a mask of it, and some blocks.
    assert used < 8 * (3.5 * got.array.size + 8 * 2**10)
    assert len(calls) <= 2 * np.prod(sizes) / 2**10
    terms = logs[0][:, :, None] + logs[1][None]
    # Logarithms of size 800 at most.
    want = np.logaddexp.reduce(terms, axis=1)
    np.testing.assert_allclose(got.logs() + got.scale, want, atol=2e-12)


def test_bounds_are_tightened_before_logarithms_are_taken():
    # A long product of tables whose bounds add up to far below the float range, but not its
    # entries: they stay in linear space.
    table = from_logs(np.log([[1.0, 1e-30], [1e-30, 1.0]]))
    total = ScaledTable(np.ones(2), 0.0, 0.0, 0.0, False)
    step = plan_step((0,), (0, 1), {1}, (2, 2))
    for _ in range(50):
        total = multiply(step, total, table)
        assert not total.is_log
    np.testing.assert_allclose(total.array * np.exp(total.scale), 1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_eager_and_compiled_routes_agree(dtype):
    cards, scopes, tables = draw("triples", 3, 5.0, 0.0)
    tables[0][0, 0, 0] = tables[1][1, 0, 1] = -np.inf
    graph = FactorGraph([*cards, 4], [*scopes, np.array([[0, 1], [3, 4]])])
    log_potentials = graph.pack([*tables, np.log([[1.0, 0.5], [0.25, 2.0]])], dtype)
    evidence = graph.log_evidence({1: 0, 2: np.array([0.0, -1.0, -np.inf]), 5: 3}, dtype)

    def solve(log_potentials, evidence):
        return infer(
            graph, log_potentials, Elimination(), log_evidence=evidence, factor_beliefs=True
        )

    eager, traced = solve(log_potentials, evidence), jax.jit(solve)(log_potentials, evidence)
    assert jax.tree.structure(eager) == jax.tree.structure(traced)
    for one, two in zip(jax.tree.leaves(eager), jax.tree.leaves(traced), strict=True):
        assert one.dtype == two.dtype
        # Logarithms of size 30, rounded a few times.
        np.testing.assert_allclose(one, two, rtol=0, atol=300 * float(jnp.finfo(dtype).eps))


def test_rules_are_expanded():
    graph = FactorGraph([2] * 4, [Structured(np.array([[0, 1, 2], [1, 2, 3]]), Parity()), (0,)])
    log_potentials = graph.pack([np.array([0.0, -np.inf]), np.log([0.9, 0.1])])
    solution = infer(graph, log_potentials, Elimination())
    tables = [np.where(np.indices((2, 2, 2)).sum(0) % 2, -np.inf, 0.0)] * 2 + [np.log([0.9, 0.1])]
    log_z = eliminate([2] * 4, [(0, 1, 2), (1, 2, 3), (0,)], tables)
    np.testing.assert_allclose(solution.log_partition, log_z, atol=1e-14)


def test_trees_are_the_same_for_the_same_seed_and_better_than_one_order():
    index = np.arange(49).reshape(7, 7)
    scopes = tuple(
        (int(a), int(b))
        for one, two in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:]))
        for a, b in zip(one.ravel(), two.ravel(), strict=True)
    )
    tree = find_tree((6,) * 49, scopes)
    assert tree == find_tree.__wrapped__((6,) * 49, scopes)
    # Every given table and every product is used once, all but the roots.
    used = [k for pair in tree.pairs for k in pair]
    assert sorted([*used, *tree.roots]) == list(range(len(scopes) + len(tree.pairs)))
    assert [tree.scopes[k] for k in tree.roots] == [()]
    # Treewidth 7: no table has more than 8 of the variables.
    assert tree.largest <= 6**8


def test_no_tree_is_searched_for_longer_than_it_saves(monkeypatch):
    calls, own = [], _tree._improved
    monkeypatch.setattr(_tree, "_improved", lambda *given: calls.append(1) or own(*given))
    # A long chain takes more products than what counts as easy, but every order takes them.
    chain = tuple((v, v + 1) for v in range(5000))
    tree = find_tree.__wrapped__((2, *[16] * 4999, 2), chain)
    assert tree.products > _tree.EASY
    assert not calls
    index = np.arange(30).reshape(5, 6)
    pairs = (index[:, :-1], index[:, 1:]), (index[:-1], index[1:])
    grid = np.hstack([[one.ravel(), two.ravel()] for one, two in pairs]).T.tolist()
    find_tree.__wrapped__((8,) * 30, tuple((a, b) for a, b in grid))
    assert calls


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(GRIDS)),
    seed=SEEDS,
    size=st.sampled_from([1.0, 300.0]),
    zeros=st.sampled_from([0.0, 0.3]),
    memory=st.sampled_from([700, 1000]),
)
def test_slices_add_up(name, seed, size, zeros, memory):
    cards, scopes, tables = draw(name, seed, size, zeros)
    # A constant, and a variable without a table.
    cards, scopes = [*cards, 3], [*scopes, ()]
    tables = [*tables, np.array(0.5)]
    whole = contract(cards, scopes, tables, of_tables=True)
    calls = []

    def counted(*given, **options):
        calls.append(1)
        return contract(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_slices, "contract", counted)
        found = contract_in_slices(cards, scopes, tables, of_tables=True, memory_limit=memory)
    assert len(calls) > 1
    # Logarithms of this size, summed in another order.
    atol = 1e-12 * (1 + size)
    np.testing.assert_allclose(found.log_partition, whole.log_partition, rtol=0, atol=atol)
    for got, want in zip(found.variables, whole.variables, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)
    for got, want in zip(found.tables, whole.tables, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_a_time_limit_is_told_with_both_numbers():
    cards, scopes, tables = draw("grid", 0, 1.0, 0.0)
    graph = FactorGraph(cards, scopes)
    solver = Elimination(time_limit=1e-9)
    said = r"would take about 0\.\d+ s, with tables of at least [\d.]+ KiB.*time_limit = 1e-09 s"
    with pytest.raises(TooLargeError, match=said):
        infer(graph, graph.pack(tables), solver)
    sliced = infer(graph, graph.pack(tables), Elimination(memory_limit=1000))
    whole = infer(graph, graph.pack(tables), Elimination())
    np.testing.assert_allclose(sliced.log_partition, whole.log_partition, atol=1e-12)
