"""Variable elimination: exact on every graph, padded programs, derivatives, limits."""

import contextlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import RESULTS, Elimination, FactorGraph, infer
from klprojax.operators import TooLargeError, _elimination_layout, _elimination_plan
from tests.reference.elimination import eliminate

from ._enumeration import build, enumerate_exact, random_tables

# Sums of at most a few thousand terms in another order: tens of roundings of 2e-16, on numbers of
# size 10.
EXACT = 1e-12


ROUTES = ("eager", "rows", "dense")


@contextlib.contextmanager
def dense_from(products, most=2):
    """Products of so many entries are dense steps, the largest of them."""
    usual = _elimination_layout.DENSE, _elimination_layout.MOST_DENSE
    _elimination_layout.DENSE, _elimination_layout.MOST_DENSE = products, most
    _elimination_plan.plan_elimination.cache_clear()
    try:
        yield
    finally:
        _elimination_layout.DENSE, _elimination_layout.MOST_DENSE = usual
        _elimination_plan.plan_elimination.cache_clear()


def solve(model, route="eager", **options):
    graph, log_potentials, log_evidence = build(model)

    def run(log_potentials, log_evidence):
        return infer(graph, log_potentials, Elimination(), log_evidence=log_evidence, **options)

    if route == "eager":
        return graph, run(log_potentials, log_evidence)
    with dense_from(2 if route == "dense" else 2**20):
        return graph, jax.jit(run)(log_potentials, log_evidence)


def assert_exact(model, tolerance=EXACT):
    known = enumerate_exact(
        model["cardinalities"], model["scopes"], model["log_tables"], model.get("log_evidence")
    )
    for route in ROUTES:
        graph, solution = solve(model, route, factor_beliefs=True)
        np.testing.assert_allclose(solution.log_partition, known.log_partition, atol=tolerance)
        for got, wanted in zip(
            graph.unpack_variables(solution.marginals), known.marginals, strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=tolerance)
        for got, wanted in zip(
            graph.unpack(solution.factor_beliefs), known.factor_marginals, strict=True
        ):
            np.testing.assert_allclose(np.squeeze(got), np.squeeze(wanted), atol=tolerance)
    return solution


def model_of(cards, scopes, seed=0, zeros=0.0):
    rng = np.random.default_rng(seed)
    tables, _ = random_tables(rng, cards, scopes, zeros)
    return {"cardinalities": list(cards), "scopes": list(scopes), "log_tables": tables}


# -- values ------------------------------------------------------------------------------------


def test_loopy_graph_with_zeros_and_every_kind_of_factor():
    cards = [2, 3, 1, 4, 2, 3]
    scopes = [(), (0, 1), (1, 0), (2, 3, 1), (3, 0), (4,), (4, 4 - 1), (), (0, 1, 3, 4)]
    model = model_of(cards, scopes, zeros=0.2)
    rng = np.random.default_rng(5)
    model["log_evidence"] = [np.asarray(rng.normal(size=c)) for c in cards]
    solution = assert_exact(model)
    assert bool(solution.converged)
    assert solution.exact
    assert int(solution.steps) == 0
    assert float(solution.residual) == 0.0
    assert bool(solution.result == RESULTS.successful)


def test_cardinalities_that_do_not_divide_into_rows():
    # A row sums at most 8 states, so 20, 13 and 9 are cut into pieces whose last one is short, and
    # cards from 1 up are padded to the common width.
    assert_exact(model_of([20, 13, 9, 1, 2], [(0, 1), (1, 2), (2, 3, 4), (0, 4)], zeros=0.1))


def test_all_cardinalities_from_1_to_20_on_one_path():
    # 20! states cannot be enumerated; the plain elimination sums the path from its first variable.
    cards = np.random.default_rng(1).permutation(np.arange(1, 21)).tolist()
    model = model_of(cards, [(v, v + 1) for v in range(19)])
    for route in ROUTES:
        _, solution = solve(model, route)
        np.testing.assert_allclose(solution.log_partition, eliminate(**model), rtol=EXACT)


def test_a_cluster_with_more_inputs_than_one_row_multiplies():
    scopes = [(0,)] * 5 + [(0, v) for v in range(1, 6)] + [(1, 2)] * 4
    assert_exact(model_of([3, 2, 2, 2, 2, 2], scopes))


def test_hub_with_hundreds_of_factors():
    # log Z = log sum_x0 prod_v sum_xv f_v(x0, xv): a closed form beside the program.
    rng = np.random.default_rng(3)
    n, card = 300, 3
    family = np.array([[0, v] for v in range(1, n + 1)])
    graph = FactorGraph([card] * (n + 1), [family])
    table = np.asarray(rng.normal(size=(n, card, card)))
    solution = jax.jit(lambda t: infer(graph, t, Elimination()))(graph.pack([table]))
    at_hub = np.logaddexp.reduce(table, axis=2).sum(axis=0)
    log_partition = np.logaddexp.reduce(at_hub)
    # log Z is about 500, a sum of 300 terms.
    np.testing.assert_allclose(solution.log_partition, log_partition, rtol=EXACT)
    marginals = graph.unpack_variables(solution.marginals)
    np.testing.assert_allclose(marginals[0], np.exp(at_hub - log_partition), atol=1e-11)
    conditional = np.exp(table[7] - np.logaddexp.reduce(table[7], axis=1, keepdims=True))
    np.testing.assert_allclose(marginals[8], marginals[0] @ conditional, atol=1e-11)


def test_shared_tables():
    rng = np.random.default_rng(4)
    rows = np.array([[0, 1], [1, 2], [2, 0], [2, 3]])
    graph = FactorGraph([2] * 4, [rows, (1,)])
    table, unary = rng.normal(size=(2, 2)), rng.normal(size=2)
    run = jax.jit(lambda t: infer(graph, t, Elimination(), factor_beliefs=True))
    shared = run(graph.pack([table, unary]))
    known = enumerate_exact([2] * 4, [*map(tuple, rows), (1,)], [table] * 4 + [unary])
    np.testing.assert_allclose(shared.log_partition, known.log_partition, atol=EXACT)
    # Each factor has beliefs of its own although they share a table.
    for got, wanted in zip(shared.factor_beliefs[0], known.factor_marginals[:4], strict=True):
        np.testing.assert_allclose(got, wanted, atol=EXACT)


@pytest.mark.parametrize(
    ("cards", "scopes", "tables", "log_partition"),
    [
        ([], [], [], 0.0),
        ([], [()], [np.array(-1.5)], -1.5),
        ([2, 3], [], [], np.log(6)),
        ([2], [(), (), (0,)], [np.array(2.0), np.array(3.0), np.zeros(2)], 5 + np.log(2)),
    ],
)
def test_log_partition_without_variables_or_factors(cards, scopes, tables, log_partition):
    graph = FactorGraph(cards, scopes)
    for run in (infer, jax.jit(infer, static_argnums=(0, 2))):
        solution = run(graph, graph.pack(tables), Elimination())
        np.testing.assert_allclose(solution.log_partition, log_partition, atol=1e-15)
        for marginal, card in zip(graph.unpack_variables(solution.marginals), cards, strict=True):
            np.testing.assert_allclose(marginal, np.full(card, 1 / card), atol=1e-15)


def test_single_precision_stays_single():
    model = model_of([2, 3, 4, 2], [(0, 1), (1, 2), (2, 3), (3, 0)], zeros=0.1)
    graph, log_potentials, _ = build(model)
    single = jax.tree.map(lambda t: t.astype(np.float32), log_potentials)
    solution = infer(graph, single, Elimination(), factor_beliefs=True)
    for leaf in jax.tree.leaves((solution.log_beliefs, solution.factor_log_beliefs)):
        assert leaf.dtype == np.float32
    assert solution.log_partition.dtype == solution.residual.dtype == np.float32
    known = enumerate_exact(model["cardinalities"], model["scopes"], model["log_tables"])
    # Ten additions of numbers of size 4 in float32 (6e-8 relative).
    np.testing.assert_allclose(solution.log_partition, known.log_partition, atol=1e-5)
    for got, wanted in zip(
        graph.unpack_variables(solution.marginals), known.marginals, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


# -- evidence that excludes states -------------------------------------------------------------


def path_with_evidence(dtype):
    """A path of five variables, the middle one observed; numbers a float32 can hold."""
    rng = np.random.default_rng(6)
    cards = [2, 3, 4, 3, 2]
    scopes = [(v, v + 1) for v in range(4)]
    tables = [
        rng.integers(-8, 8, size=[cards[v] for v in s]).astype(dtype) / dtype(4) for s in scopes
    ]
    graph = FactorGraph(cards, scopes)
    return (
        cards,
        scopes,
        tables,
        graph,
        graph.pack(tables, dtype),
        graph.log_evidence({2: 1}, dtype),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, EXACT), (np.float32, 1e-5)])
def test_observing_the_middle_gives_finite_marginals_and_gradients(dtype, tolerance):
    # float32: ten roundings of 6e-8 on numbers of size 10.
    cards, scopes, tables, graph, log_potentials, log_evidence = path_with_evidence(dtype)
    known = enumerate_exact(
        cards, scopes, tables, [np.asarray(t) for t in graph.unpack_variables(log_evidence)]
    )

    def log_partition(log_potentials, log_evidence):
        solution = infer(graph, log_potentials, Elimination(), log_evidence=log_evidence)
        return solution.log_partition, solution.log_beliefs

    (value, beliefs), (by_table, by_evidence) = jax.value_and_grad(
        log_partition, argnums=(0, 1), has_aux=True
    )(log_potentials, log_evidence)
    np.testing.assert_allclose(value, known.log_partition, rtol=tolerance)
    marginals = graph.unpack_variables(tuple(jnp.exp(b) for b in beliefs))
    for got, slope, wanted in zip(
        marginals, graph.unpack_variables(by_evidence), known.marginals, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
        np.testing.assert_allclose(slope, wanted, atol=tolerance)
    for got, wanted in zip(graph.unpack(by_table), known.factor_marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=tolerance)
    assert np.flatnonzero(marginals[2]).tolist() == [1]

    def end(log_potentials, log_evidence):
        beliefs = infer(graph, log_potentials, Elimination(), log_evidence=log_evidence).log_beliefs
        return beliefs[0][0, 0]

    for leaf in jax.tree.leaves(jax.grad(end, argnums=(0, 1))(log_potentials, log_evidence)):
        assert np.isfinite(leaf).all()


def test_contradictory_evidence_is_an_error_that_says_so():
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack(
        [np.log([[1.0, 0.0], [0.0, 1.0]], where=np.eye(2) > 0, out=np.full((2, 2), -np.inf))]
    )
    evidence = graph.log_evidence({0: 0, 1: 1})
    with pytest.raises(RuntimeError, match="Every joint state has probability zero"):
        infer(graph, log_potentials, Elimination(), log_evidence=evidence)
    solution = infer(graph, log_potentials, Elimination(), log_evidence=evidence, throw=False)
    assert bool(solution.result == RESULTS.contradiction)
    assert float(solution.log_partition) == -np.inf
    for table in solution.beliefs:
        assert not np.isnan(table).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_positive_infinity_are_reported(bad):
    graph = FactorGraph([2, 2], [(0, 1)])
    log_potentials = graph.pack([np.array([[0.0, bad], [0.0, 0.0]])])
    with pytest.raises(RuntimeError, match="A NaN or an infinite positive value appeared"):
        infer(graph, log_potentials, Elimination())
    solution = infer(graph, log_potentials, Elimination(), throw=False)
    assert bool(solution.result == RESULTS.nonfinite)
    # Evidence too; a NaN is no excluded state.
    evidence = graph.log_evidence({1: np.array([bad, 0.0])})
    plain = graph.pack([np.zeros((2, 2))])
    solution = infer(graph, plain, Elimination(), log_evidence=evidence, throw=False)
    assert bool(solution.result == RESULTS.nonfinite)


# -- derivatives -------------------------------------------------------------------------------


def loop_functions():
    """A 3-cycle, and a smooth function of its marginals."""
    graph = FactorGraph([2, 3, 2], [(0, 1), (1, 2), (2, 0)])
    rng = np.random.default_rng(8)
    point = graph.pack([rng.normal(size=s) for s in ((2, 3), (3, 2), (2, 2))])
    direction, other = (
        jax.tree.map(lambda t: jnp.asarray(rng.normal(size=t.shape)), point) for _ in range(2)
    )

    def loss(log_potentials):
        solution = infer(graph, log_potentials, Elimination(), throw=False)
        return solution.log_partition**2 / 10 + sum(
            jnp.sum(jnp.sin(jnp.arange(t.size, dtype=t.dtype).reshape(t.shape)) * t**2)
            for t in solution.marginals
        )

    return loss, point, direction, other


def along(point, direction, size):
    return jax.tree.map(lambda p, d: p + size * d, point, direction)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("route", ["rows", "dense"])
def test_derivatives_to_third_order_match_finite_differences(route):
    loss, point, direction, other = loop_functions()
    with dense_from(2 if route == "dense" else 2**20):
        check_derivatives(loss, point, direction, other)


def check_derivatives(loss, point, direction, other):

    @jax.jit
    def program(point):
        """Value and gradient, their derivatives along ``direction``; all that along ``other``."""

        def second(point):
            return jax.jvp(jax.value_and_grad(loss), (point,), (direction,))

        return jax.jvp(second, (point,), (other,))

    def central(d, size=1e-4):
        high, low = (program(along(point, d, s))[0] for s in (size, -size))
        return jax.tree.map(lambda a, b: (a - b) / (2 * size), high, low)

    # Central differences with h = 1e-4 err by h^2 times a third derivative of size 1, 1e-8, plus
    # rounding 1e-16 / h = 1e-12.
    ((_, gradient), (_, curvature)), (_, (_, third)) = program(point)
    (slope, bend), _ = central(direction)
    first = dot(gradient, direction)
    np.testing.assert_allclose(first, slope, rtol=1e-6)
    forward = jax.jit(lambda p: jax.jvp(loss, (p,), (direction,))[1])(point)
    np.testing.assert_allclose(first, forward, rtol=1e-12)  # same formulas, other order
    for got, wanted in zip(curvature, bend, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    reverse = jax.jit(jax.grad(lambda p: dot(jax.grad(loss)(p), direction)))(point)
    for got, wanted in zip(reverse, curvature, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-11)  # a hundred roundings
    _, (_, wanted_third) = central(other)
    for got, wanted in zip(third, wanted_third, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_derivative_of_the_log_partition_is_the_marginals():
    model = model_of([2, 3, 2], [(0, 1), (1, 2), (2, 0)], zeros=0.2)
    graph, log_potentials, _ = build(model)
    known = enumerate_exact(model["cardinalities"], model["scopes"], model["log_tables"])
    gradient = jax.grad(lambda t: infer(graph, t, Elimination()).log_partition)(log_potentials)
    for got, wanted in zip(graph.unpack(gradient), known.factor_marginals, strict=True):
        np.testing.assert_allclose(got, wanted, atol=EXACT)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [10.0, 1e4])
def test_dense_steps_are_right_at_any_size(dtype, size):
    """A grid with large potentials and zeros: dense steps against numpy in float64."""
    rng = np.random.default_rng(11)
    rows = grid(3)
    # Whole numbers, which float32 holds: what differs is only the arithmetic.
    table = np.rint(rng.uniform(-size, size, (len(rows), 3, 3)))
    table = np.where(rng.uniform(size=table.shape) < 0.1, -np.inf, table).astype(dtype)
    graph = FactorGraph([3] * 9, [rows])
    exact = infer(graph, graph.pack([table.astype(np.float64)]), Elimination())
    with dense_from(9, most=3):
        run = jax.jit(jax.vmap(lambda t: infer(graph, t, Elimination(), throw=False)))
        one = graph.pack([table])
        found = run(jax.tree.map(lambda t: jnp.stack([t, t]), one))
        plan = Elimination().plan(graph, one)
    assert sum(isinstance(p, _elimination_plan.DenseStep) for p in plan.phases) >= 3
    # A score of sums over numbers of up to 20 times the size.
    close = 100 * float(jnp.finfo(dtype).eps) * size
    assert found.log_beliefs[0].dtype == dtype
    np.testing.assert_allclose(found.log_partition, [exact.log_partition] * 2, atol=20 * close)
    for got, wanted in zip(found.marginals, exact.marginals, strict=True):
        np.testing.assert_allclose(got[1], wanted, atol=min(close, 1e-2))
        np.testing.assert_allclose(jnp.sum(got, axis=-1), 1.0, rtol=1e-5)
    for got, wanted in zip(found.log_beliefs, exact.log_beliefs, strict=True):
        np.testing.assert_allclose(got[0], wanted, atol=20 * close)


def test_a_table_that_several_dense_steps_read():
    """Its gradient is the sum of the marginals of the factors that share it, in both sweeps."""
    rows = np.array([(u, v) for v in range(4) for u in range(v)])
    graph = FactorGraph([2] * 4, [rows])

    @jax.jit
    def run(table):
        def log_partition(table):
            solution = infer(graph, (table,), Elimination())
            return solution.log_partition, solution.log_beliefs

        return jax.value_and_grad(log_partition, has_aux=True)(table)

    with dense_from(2, most=5):
        # Potentials of 500 nats: some marginals are below the range of numbers.
        for size in (1.0, 500.0):
            table = size * np.array([[0.5, -0.7], [0.9, 0.2]])
            known = enumerate_exact([2] * 4, list(map(tuple, rows)), [table] * 6)
            (value, log_beliefs), slope = run(jnp.asarray(table))
            np.testing.assert_allclose(value, known.log_partition, rtol=EXACT)
            np.testing.assert_allclose(slope, sum(known.factor_marginals), atol=EXACT)
            log_odds = [score(table, rows, v) for v in range(4)]
            np.testing.assert_allclose(log_beliefs[0], log_odds, rtol=EXACT, atol=EXACT)
        plan = Elimination().plan(graph, (jnp.asarray(table),))
    reads = [v.start for p in plan.phases if hasattr(p, "views") for v in p.views]
    assert reads.count(2) > 1  # the table itself, at the first cell after the constants


def score(table, rows, v):
    """Logarithms of one variable's marginal, all sums on logarithms."""
    states = np.stack(np.meshgrid(*[np.arange(2)] * 4, indexing="ij"), -1).reshape(-1, 4)
    joint = sum(table[states[:, a], states[:, b]] for a, b in rows)
    total = np.logaddexp.reduce(joint)
    return [np.logaddexp.reduce(joint[states[:, v] == s]) - total for s in range(2)]


def test_vmap_over_evidence():
    model = model_of([2, 3, 2, 2], [(0, 1), (1, 2), (2, 3), (3, 0)])
    graph, log_potentials, _ = build(model)
    single = [graph.log_evidence({1: s}) for s in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)

    def posterior(evidence):
        solution = infer(graph, log_potentials, Elimination(), log_evidence=evidence, throw=False)
        return solution.log_partition, solution.marginals

    values, marginals = jax.jit(jax.vmap(posterior))(stacked)
    for s, evidence in enumerate(single):
        value, alone = posterior(evidence)
        np.testing.assert_allclose(values[s], value, rtol=1e-14)  # same sums, another fusion
        for got, wanted in zip(marginals, alone, strict=True):
            np.testing.assert_allclose(got[s], wanted, atol=1e-14)
    # p(x1) is what the three evidence probabilities say it is.
    plain = infer(graph, log_potentials, Elimination())
    np.testing.assert_allclose(
        jnp.exp(values - plain.log_partition),
        graph.unpack_variables(plain.marginals)[1],
        atol=EXACT,
    )


# -- limits ------------------------------------------------------------------------------------


def grid(n):
    index = np.arange(n * n).reshape(n, n)
    return np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1),
        ]
    )


def test_inside_of_jit_a_memory_limit_is_an_error_with_the_predicted_size():
    rows = grid(6)
    graph = FactorGraph([2] * 36, [rows])
    log_potentials = graph.pack([np.zeros((len(rows), 2, 2))])
    solver = Elimination(memory_limit=5 * 2**10)
    size = r"takes [\d,]+ products, with tables of up to (64|128|256) entries over [678] "
    needed = r"variables \([\d.]+ KiB for program and buffers\), beyond memory_limit = 5 KiB"
    with pytest.raises(ValueError, match=size + needed):
        jax.eval_shape(lambda tables: infer(graph, tables, solver), log_potentials)
    plan = Elimination().plan(graph, log_potentials)
    # A 6 x 6 grid has treewidth 6, so that a result is over six binary variables at least; a tree
    # with fewer levels may take two more.
    assert 2**6 <= plan.largest <= 2**8
    assert 4 * plan.largest < plan.products <= 36 * 2 * plan.largest


def test_a_model_that_is_too_wide_says_so_quickly():
    rows = grid(40)
    graph = FactorGraph([2] * 1600, [rows])
    log_potentials = graph.pack([np.zeros((2, 2))])
    start = time.process_time()
    said = (
        r"about [\d.e+]+ h, with tables of at least [\d.]+ [TP]iB, the largest of 2\^\d+\.\d "
        r"entries\. The limits are time_limit = 20 min and memory_limit = 4 GiB\."
    )
    with pytest.raises(TooLargeError, match=said):
        infer(graph, log_potentials, Elimination())
    advice = r"beyond memory_limit = 4 GiB. Raise Elimination\(memory_limit="
    table = r"Elimination needs a table over \d+ variables with at least 2\^\d+\.\d entries .*"
    with pytest.raises(ValueError, match=table + advice):
        jax.eval_shape(lambda tables: infer(graph, tables, Elimination()), log_potentials)
    # About 5 s of processor time alone; the limit leaves room for a slow machine.
    assert time.process_time() - start < 40


def test_a_graph_through_jit_is_refused_with_advice():
    graph = FactorGraph([2], [(0,)])
    solve_inside = eqx.filter_jit(lambda g, t: infer(g, t, Elimination()))
    with pytest.raises(ValueError, match="Close over the graph instead"):
        solve_inside(graph, graph.pack([np.zeros(2)]))
