"""Sweeps over trees: linear growth, exact answers, derivatives; chains by an associative scan."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax import RESULTS, BeliefPropagation, FactorGraph, TreeSweep, infer
from klprojax.graphs import Structured
from klprojax.operators import Parity, is_forest
from klprojax.operators._forest import tree_plan
from tests.reference import elimination

SWEEP, SCAN = (BeliefPropagation(schedule=TreeSweep(parallel=p)) for p in (False, True))


def path(n, states=2):
    return FactorGraph([states] * n, [np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)])


# -- growth ------------------------------------------------------------------------------------


def parents(shape, n):
    """The parent of each variable from 1 on, for trees of pairs."""
    rng, v = np.random.default_rng(0), np.arange(1, n)
    return {
        "path": v - 1,
        "star": 0 * v,
        "binary": (v - 1) // 2,
        "random": (rng.random(n - 1) * v).astype(int),
        "broom": np.where(v <= n // 2, v - 1, 0),
        "caterpillar": np.where(v % 2, v - 2, v - 1).clip(0),
        # A spine whose knots carry stars of 1, 2, 4, ... leaves, the larger the rarer.
        "stars on a spine": np.where(v <= n // 8, v - 1, (n // 8 * rng.random(n - 1) ** 4)).astype(
            int
        ),
    }[shape]


@pytest.mark.parametrize(
    "shape", ["path", "star", "binary", "random", "broom", "caterpillar", "stars on a spine"]
)
def test_a_plan_is_as_long_as_its_tree_whatever_the_shape(shape):
    n = 8_000
    graph = FactorGraph([2] * n, [np.stack([parents(shape, n), np.arange(1, n)], axis=1)])
    plan = tree_plan(graph)
    rows = sum(table.size for run in plan.runs for kind in run.rows for table in kind)
    # Runs pad at most twofold; fewer runs pad by what compiling another body costs.
    assert n - 1 <= rows <= 10 * n
    registers = sum(len(table) * table.shape[1] for r in plan.runs for table in r.parents.sources)
    assert registers <= rows


def work(jaxpr):
    """Numbers that a program computes, the bodies of scans times their lengths."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(math.prod(out.aval.shape) for out in equation.outvars)
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        for program in inner:
            times = equation.params.get("length", 1)
            total += times * work(getattr(program, "jaxpr", program))
    return total


MODES = {
    "grad": lambda f: jax.grad(f),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_chain_twice_as_long_is_twice_the_work(mode):
    def cost(steps):
        graph = path(steps + 1)

        def last(tables):
            solution = infer(graph, (tables,), SWEEP, throw=False)
            return solution.log_beliefs[0][-1, 0] + solution.log_partition

        return work(jax.make_jaxpr(MODES[mode](last))(jnp.zeros((steps, 2, 2))).jaxpr)

    # A scan that carries, or whose transpose adds into, an array of all messages has ratio 4.
    assert cost(800) < 2.1 * cost(400)


def test_a_chain_eight_times_as_long_takes_eight_times_the_time():
    def seconds(steps):
        graph = path(steps + 1)
        log_potentials = graph.pack([np.zeros((steps, 2, 2))])
        infer(graph, log_potentials, SWEEP)
        taken = []
        for _ in range(5):
            start = time.process_time()
            infer(graph, log_potentials, SWEEP).log_partition.block_until_ready()
            taken.append(time.process_time() - start)
        return min(taken)

    # 64 when every step copies all messages, as XLA may without the program saying so.
    assert seconds(32_000) < 24 * seconds(4_000)


# -- exact -------------------------------------------------------------------------------------


def tree(seed, n, scale, zeros, pairs=False):
    """A random tree of factors on up to three variables, some on one and one on none.

    Zeros leave one assignment possible. Variables are numbered from the leaves, so that the
    reference, which sums them out in order, forms no large table.
    """
    rng = np.random.default_rng(seed)
    cards = [3] * n if pairs and seed % 2 else rng.integers(2, 4, n).tolist()
    scopes = [(int(v),) for v in rng.integers(0, n, n // 4)] + [()]
    v = 1
    while v < n:
        above = v - 1 if pairs else int(rng.integers(max(0, v - 6), v))
        new = list(range(v, min(n, v + 1 if pairs else v + int(rng.integers(1, 3)))))
        scopes.append(tuple(n - 1 - int(u) for u in rng.permutation([above, *new])))
        v += len(new)
    state = [int(rng.integers(card)) for card in cards]
    tables = []
    for scope in scopes:
        table = scale * rng.normal(size=[cards[v] for v in scope])
        gone = np.asarray(rng.random(table.shape) < zeros)
        gone[tuple(state[v] for v in scope)] = False
        tables.append(np.where(gone, -np.inf, table))
    return cards, scopes, tables


def check(model, solver, dtype, tolerance):
    cards, scopes, tables = model
    graph = FactorGraph(cards, scopes)
    solution = infer(graph, graph.pack(tables, dtype), solver)
    tables = [np.asarray(t, np.float64) for t in graph.unpack(graph.pack(tables, dtype))]
    reduce = np.maximum if solver.semiring == "max" else np.logaddexp
    log_z = elimination.eliminate(cards, scopes, tables, reduce=reduce)
    assert solution.log_partition.dtype == dtype
    assert bool(solution.exact)
    np.testing.assert_allclose(solution.log_partition, log_z, rtol=tolerance, atol=tolerance)
    for v, belief in enumerate(graph.unpack_variables(solution.marginals)):
        wanted = elimination.eliminate(cards, scopes, tables, (v,), reduce)
        wanted = np.exp(wanted - wanted.max())
        np.testing.assert_allclose(belief, wanted / wanted.sum(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("semiring", ["sum", "max"])
@pytest.mark.parametrize(
    # Some 30 roundings of messages of size 5, or of 3e4 whose error passes into exp.
    ("scale", "zeros", "dtype", "tolerance"),
    [(1.0, 0.3, np.float64, 1e-12), (1e4, 0.1, np.float64, 1e-9), (1.0, 0.3, np.float32, 5e-5)],
)
def test_random_trees_against_elimination(semiring, scale, zeros, dtype, tolerance):
    solver = BeliefPropagation(semiring=semiring, schedule=TreeSweep())
    check(tree(3, 24, scale, zeros), solver, dtype, tolerance)


@pytest.mark.parametrize("semiring", ["sum", "max"])
@pytest.mark.parametrize(
    ("seed", "scale", "dtype", "tolerance"),
    [(0, 1.0, np.float64, 1e-12), (1, 1e4, np.float64, 1e-9), (2, 1.0, np.float32, 5e-5)],
)
def test_chains_by_an_associative_scan_against_elimination(semiring, seed, scale, dtype, tolerance):
    # Two paths and a variable alone; seed 1 has one cardinality, the others mix them.
    one, two = tree(seed, 9, scale, 0.2, pairs=True), tree(seed + 10, 6, scale, 0.2, pairs=True)
    scopes = [*one[1], *(tuple(v + 9 for v in scope) for scope in two[1])]
    solver = BeliefPropagation(semiring=semiring, schedule=TreeSweep(parallel=True))
    check((one[0] + two[0] + [3], scopes, one[2] + two[2]), solver, dtype, tolerance)


def test_runs_of_different_width_pass_messages_to_each_other(monkeypatch):
    # Small trees are one run each, because another body costs more than their padding.
    monkeypatch.setattr("klprojax.operators._forest.BODY_ROWS", 0)
    monkeypatch.setattr("klprojax.operators._forest.STEP_ROWS", 0)
    model = tree(5, 40, 1.0, 0.2)
    tree_plan.cache_clear()
    assert len(tree_plan(FactorGraph(*model[:2])).runs) > 2
    check(model, SWEEP, np.float64, 1e-12)  # as above
    tree_plan.cache_clear()


def test_structured_factors_in_a_tree():
    # Checks on four bits, each hung from any axis of the one before, and pairs at the leaves.
    rng = np.random.default_rng(0)
    checks, pairs, n = [[0, 1, 2, 3]], [], 4
    for _ in range(4):
        scope = rng.permutation([rng.choice(checks[-1]), n, n + 1, n + 2])
        checks.append(scope.tolist())
        pairs.append((n, n + 3))
        n += 4
    graph = FactorGraph([2] * n, [Structured(np.array(checks), Parity()), *pairs])
    tables = [rng.normal(size=(5, 2)), *rng.normal(size=(4, 2, 2))]
    solution = infer(graph, graph.pack(tables), SWEEP)
    parity = np.indices((2,) * 4).sum(axis=0) % 2
    scopes, dense = [*checks, *pairs], [*(t[parity] for t in tables[0]), *tables[1:]]
    for v, belief in enumerate(graph.unpack_variables(solution.marginals)):
        wanted = elimination.marginal([2] * n, scopes, dense, (v,))
        np.testing.assert_allclose(belief, wanted, atol=1e-12)  # tens of roundings


# -- derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [SWEEP, SCAN], ids=["sweep", "scan"])
def test_slopes_of_the_log_partition_are_marginals_and_theirs_covariances(solver):
    cards, scopes, tables = tree(2, 5, 1.0, 0.2, pairs=True)
    graph = FactorGraph(cards, scopes)
    log_potentials = graph.pack(tables)

    def log_z(*log_potentials):
        return infer(graph, log_potentials, solver, throw=False).log_partition

    def slopes(*log_potentials):
        return jax.grad(log_z, argnums=tuple(range(len(log_potentials))))(*log_potentials)

    direction = tuple(jnp.ones_like(t).at[0].set(2.0) for t in log_potentials)
    found, bend = jax.jit(lambda t: jax.jvp(slopes, t, direction))(log_potentials)
    joint = elimination.eliminate(cards, scopes, tables, range(5))
    joint = np.exp(joint - np.logaddexp.reduce(joint.ravel()))
    weight = np.zeros(joint.shape)
    for scope, change in zip(scopes, graph.unpack(direction), strict=True):
        shape = [cards[v] if v in scope else 1 for v in range(5)]
        weight += np.transpose(change, np.argsort(scope)).reshape(shape)
    covariance = joint * (weight - (joint * weight).sum())
    for found_of, table in ((found, joint), (bend, covariance)):
        for scope, slope in zip(scopes, graph.unpack(found_of), strict=True):
            others = tuple(v for v in range(5) if v not in scope)
            wanted = np.transpose(table.sum(axis=others), np.argsort(np.argsort(scope)))
            np.testing.assert_allclose(slope, wanted, atol=1e-12)  # tens of roundings


def test_sequences_of_unequal_length_in_one_batch():
    rng = np.random.default_rng(1)
    lengths, longest = (6, 3, 1), 6
    graph = FactorGraph([3] * longest, [path(longest).group_scopes[0], np.arange(longest)[:, None]])
    pairs, seen = rng.normal(size=(3, longest - 1, 3, 3)), rng.normal(size=(3, longest, 3))
    for row, length in enumerate(lengths):
        pairs[row, length - 1 :] = 0.0
        seen[row, length:] = 0.0
    for solver in (SWEEP, SCAN):
        log_z, marginals = jax.vmap(
            lambda p, s, solver=solver: (
                (out := infer(graph, (p, s), solver, throw=False)).log_partition,
                out.marginals[0],
            )
        )(jnp.asarray(pairs), jnp.asarray(seen))
        for row, length in enumerate(lengths):
            steps = range(length)
            scopes = [*((t, t + 1) for t in steps[:-1]), *((t,) for t in steps)]
            tables = [*pairs[row, : length - 1], *seen[row, :length]]
            alone = elimination.eliminate([3] * length, scopes, tables)
            padding = (longest - length) * math.log(3)
            np.testing.assert_allclose(log_z[row], alone + padding, atol=1e-12)
            for t in steps:
                wanted = elimination.marginal([3] * length, scopes, tables, (t,))
                np.testing.assert_allclose(marginals[row, t], wanted, atol=1e-12)


# -- options -----------------------------------------------------------------------------------


def test_a_damped_sweep_is_repeated_until_it_settles_and_claims_no_exactness():
    cards, scopes, tables = tree(4, 6, 1.0, 0.0, pairs=True)
    graph = FactorGraph(cards, scopes)
    log_potentials = graph.pack(tables)
    solver = BeliefPropagation(schedule=TreeSweep(), damping=0.5, tolerance=1e-12)
    solution = infer(graph, log_potentials, solver)
    assert int(solution.steps) > 5
    assert not bool(solution.exact)
    for v, belief in enumerate(graph.unpack_variables(solution.beliefs)):
        # What is left after a step that changed 1e-12 halves with every further one.
        wanted = elimination.marginal(cards, scopes, tables, (v,))
        np.testing.assert_allclose(belief, wanted, atol=1e-10)
    # An undamped sweep forgets where it began.
    start = infer(graph, graph.pack([2 * t for t in tables]), SWEEP).state
    for one, two in zip(
        infer(graph, log_potentials, SWEEP, init=start).log_beliefs,
        infer(graph, log_potentials, SWEEP).log_beliefs,
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_no_possible_state_in_one_of_two_chains():
    graph = FactorGraph([2] * 4, [(0, 1), (2, 3), (0,)])
    tables = [np.array([[0.0, 0.0], [-np.inf, -np.inf]]), np.zeros((2, 2)), np.array([-np.inf, 0])]
    for solver in (SWEEP, SCAN):
        solution = infer(graph, graph.pack(tables), solver, throw=False)
        assert bool(solution.result == RESULTS.contradiction)
        assert np.isneginf(solution.log_partition)
        np.testing.assert_allclose(solution.beliefs[0][2:], 0.5)


@pytest.mark.parametrize(
    ("scopes", "what"),
    [
        ([(0, 1), (1, 2), (1, 3)], "needs chains.*variable 1 is in 3 factors on two variables"),
        ([(0, 1, 2)], "needs chains.*a factor is on 3 variables"),
        ([(0, 1), (1, 2), (2, 0)], "needs a graph without cycles"),
    ],
)
def test_what_is_no_chain_is_refused(scopes, what):
    graph = FactorGraph([2] * 4, scopes)
    with pytest.raises(ValueError, match=what):
        infer(graph, graph.pack([np.zeros([2] * len(s)) for s in scopes]), SCAN)


def test_an_associative_scan_has_nothing_to_damp():
    with pytest.raises(ValueError, match=r"damping is 0.2 with TreeSweep\(parallel=True\)"):
        BeliefPropagation(schedule=TreeSweep(parallel=True), damping=0.2)


def test_the_variable_named_is_on_the_cycle_not_between_two():
    # Two triangles joined by a path.
    scopes = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 6), (6, 4)]
    graph = FactorGraph([2] * 7, scopes)
    assert not is_forest(graph)
    with pytest.raises(ValueError, match=r"variable [012456] is on one"):
        TreeSweep().batches(graph)
