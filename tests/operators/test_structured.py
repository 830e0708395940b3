"""Structured factors against enumeration: messages, masses, beliefs, derivatives, range."""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax import BeliefPropagation, Elimination, FactorGraph, infer
from klprojax.geometry import log_normalize, safe_logsumexp
from klprojax.graphs import AbstractMessageRule, Structured
from klprojax.operators._messages import reduce
from klprojax.operators._structured import And, Automaton, Cardinality, Or, Parity, box_plus

from .._derivatives import check_derivatives

SEMIRINGS = ("sum", "max")


class AllEqual(AbstractMessageRule):
    """The user's side of the protocol: reward ``parameters[s]`` when all variables are in state s.

    ``f(x) = exp(parameters[s])`` if every variable is in state s, else 1.
    """

    def parameter_shape(self, shape):
        if not shape or len(set(shape)) != 1:
            raise ValueError(f"AllEqual needs equal cardinalities, got {shape}.")
        return (shape[0],)

    def messages(self, parameters, incoming, semiring):
        stacked = jnp.stack(incoming)
        mass = reduce(stacked, -1, semiring)
        out = []
        for a in range(len(incoming)):
            others = [b for b in range(len(incoming)) if b != a]
            everything = sum((mass[b] for b in others), jnp.zeros_like(mass[0]))
            agree = sum((stacked[b] for b in others), jnp.zeros_like(stacked[0]))
            rest = self._except(incoming, others, semiring, everything)
            out.append(reduce(jnp.stack([parameters + agree, rest]), 0, semiring))
        return tuple(out)

    def _except(self, incoming, others, semiring, everything):
        # Per state s: all others free, but not all of them in s, by the first that dissents.
        states = incoming[0].shape[1]
        columns = []
        for s in range(states):
            agreed = jnp.zeros_like(everything)
            ways = [jnp.full_like(everything, -jnp.inf)]
            for place, b in enumerate(others):
                rest = sum(
                    (reduce(incoming[c], -1, semiring) for c in others[place + 1 :]),
                    jnp.zeros_like(everything),
                )
                not_s = jnp.delete(incoming[b], s, axis=1)
                ways.append(agreed + reduce(not_s, -1, semiring) + rest)
                agreed = agreed + incoming[b][:, s]
            columns.append(reduce(jnp.stack(ways), 0, semiring))
        return jnp.stack(columns, axis=-1)

    def log_mass(self, parameters, incoming, semiring):
        out = self.messages(parameters, incoming, semiring)
        return reduce(out[0] + incoming[0], -1, semiring)

    def log_table(self, parameters, shape):
        grid = np.indices(shape)
        equal = np.all(grid == grid[:1], axis=0)
        return jnp.where(equal[None], parameters[:, grid[0]], 0.0)


# rule, states per variable, value of f from the parameters and an assignment, in plain Python
CASES = {
    "parity": (Parity(), 2, lambda p, x: p[sum(x) % 2]),
    "or": (Or(), 2, lambda p, x: p[int(any(x))]),
    "and": (And(), 2, lambda p, x: p[int(all(x))]),
    "cardinality": (Cardinality(), 2, lambda p, x: p[sum(x)]),
    "cardinality 2": (
        Cardinality(max_count=2),
        2,
        lambda p, x: p[sum(x)] if sum(x) <= 2 else -np.inf,
    ),
    "automaton": (
        # how many visits to state 2 up to two, none right after a state 1; odd summaries: in 1
        Automaton([[0, 1, 2], [0, 1, -1], [2, 3, 2], [2, 3, -1]]),
        3,
        lambda p, x: _automaton_by_hand(p, x),
    ),
    "all equal": (AllEqual(), 3, lambda p, x: p[x[0]] if len(set(x)) == 1 else 0.0),
}


def _automaton_by_hand(p, x):
    if any(a == 1 and b == 2 for a, b in itertools.pairwise(x)):
        return -np.inf
    return p[2 * int(2 in x) + int(x[-1] == 1)]


def draw(rng, rule, states, arity, factors, shared, zeros, scale=1.0):
    """Random parameters and messages with `-inf` entries."""

    def table(shape):
        values = rng.normal(scale=scale, size=shape)
        return np.where(rng.random(shape) < zeros, -np.inf, values)

    shape = rule.parameter_shape((states,) * arity)
    parameters = table((1 if shared else factors, *shape))
    return parameters, [table((factors, states)) for _ in range(arity)]


def enumerate_factor(value, parameters, incoming, semiring):
    """Messages and masses from the definition, one assignment at a time."""
    factors, states = incoming[0].shape
    arity = len(incoming)
    combine = np.logaddexp if semiring == "sum" else np.maximum
    out = [np.full((factors, states), -np.inf) for _ in range(arity)]
    mass = np.full(factors, -np.inf)
    for k in range(factors):
        p = parameters[k if len(parameters) > 1 else 0]
        for x in itertools.product(range(states), repeat=arity):
            terms = [incoming[b][k, x[b]] for b in range(arity)]
            mass[k] = combine(mass[k], value(p, x) + sum(terms))
            for a in range(arity):
                others = sum(terms[:a] + terms[a + 1 :])
                out[a][k, x[a]] = combine(out[a][k, x[a]], value(p, x) + others)
    return out, mass


@functools.partial(jax.jit, static_argnums=(0, 3))
def answers(rule, parameters, incoming, semiring):
    """Messages and masses of a rule, compiled once a shape."""
    return (
        rule.messages(parameters, incoming, semiring),
        rule.log_mass(parameters, incoming, semiring),
    )


def normalized(table):
    return np.asarray(log_normalize(jnp.asarray(table), axis=1))


@pytest.mark.parametrize("semiring", SEMIRINGS)
@pytest.mark.parametrize("name", CASES)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([(1, 2, False), (2, 3, False), (4, 3, True)]),
    zeros=st.sampled_from([0, 0.2, 0.6]),
)
def test_messages_and_mass_are_those_of_the_enumeration(name, semiring, seed, size, zeros):
    rule, states, value = CASES[name]
    arity, factors, shared = size
    rng = np.random.default_rng(seed)
    parameters, incoming = draw(rng, rule, states, arity, factors, shared, zeros)
    args = jnp.asarray(parameters), tuple(map(jnp.asarray, incoming))
    messages, mass = answers(rule, *args, semiring)
    expected, expected_mass = enumerate_factor(value, parameters, incoming, semiring)
    assert len(messages) == arity
    for got, want in zip(messages, expected, strict=True):
        # both are sums of at most 243 rounded terms of size 1 to 10 in float64
        np.testing.assert_allclose(normalized(got), normalized(want), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.broadcast_to(mass, factors), expected_mass, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_log_table(name):
    rule, states, value = CASES[name]
    parameters, _ = draw(np.random.default_rng(0), rule, states, 4, 3, False, 0.2)
    table = rule.log_table(jnp.asarray(parameters), (states,) * 4)
    assert table.shape == (3, *(states,) * 4)
    for k in range(3):
        for x in itertools.product(range(states), repeat=4):
            assert table[(k, *x)] == value(parameters[k], x)


def loopy(rule, states, rng, dtype):
    """Two structured groups and pairwise tables on six variables, and the same with tables."""
    scopes = [np.array([[0, 1, 2, 3], [5, 3, 2, 4]]), np.array([[1, 4, 5]])]
    pairs = [(0, 5), (2, 4)]
    parameters = [
        rng.normal(size=(2, *rule.parameter_shape((states,) * 4))),
        rng.normal(size=rule.parameter_shape((states,) * 3)),
    ]
    parameters[0][1, 0] = -np.inf
    tables = [rng.normal(size=(states, states)) for _ in pairs]
    graph = FactorGraph([states] * 6, [*(Structured(s, rule) for s in scopes), *pairs])
    potentials = graph.pack([*parameters, *tables], dtype)
    plain = FactorGraph([states] * 6, [*scopes, *pairs])
    full = [
        np.asarray(rule.log_table(jnp.asarray(parameters[0]), (states,) * 4)),
        np.asarray(rule.log_table(jnp.asarray(parameters[1])[None], (states,) * 3))[0],
    ]
    evidence = {0: rng.normal(size=states), 3: np.append(-np.inf, rng.normal(size=states - 1))}
    return (
        (graph, potentials),
        (plain, plain.pack([*full, *tables], dtype)),
        graph.log_evidence(evidence, dtype),
    )


@pytest.mark.parametrize(
    ("name", "semiring", "dtype", "atol"),
    [
        *(
            (name, "sum", np.float64, 1e-12)
            for name in ("parity", "or", "cardinality", "automaton")
        ),
        ("cardinality", "max", np.float64, 1e-12),
        ("cardinality", "sum", np.float32, 1e-5),
        pytest.param("parity", "max", np.float64, 1e-12, marks=pytest.mark.slow),
        pytest.param("parity", "sum", np.float32, 1e-5, marks=pytest.mark.slow),
        pytest.param("and", "sum", np.float64, 1e-12, marks=pytest.mark.slow),
        pytest.param("all equal", "sum", np.float64, 1e-12, marks=pytest.mark.slow),
    ],
)
def test_belief_propagation_equals_that_with_tables_iterate_by_iterate(name, semiring, dtype, atol):
    rule, states, _ = CASES[name]
    structured, plain, evidence = loopy(rule, states, np.random.default_rng(3), dtype)
    solver = BeliefPropagation(semiring=semiring, tolerance=0.0, damping=0.1)

    def one_step(model, state):
        return infer(*model, solver, log_evidence=evidence, max_steps=1, init=state, throw=False)

    ours, theirs = (solver.init(*model) for model in (structured, plain))
    for _ in range(5):
        got, want = one_step(structured, ours), one_step(plain, theirs)
        ours, theirs = got.state, want.state
        # atol: about 50 rounded operations on numbers below 10
        for a, b in zip(got.log_beliefs, want.log_beliefs, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)
        np.testing.assert_allclose(got.log_partition, want.log_partition, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("name", ["parity", "cardinality", "all equal"])
def test_elimination_reads_the_table(name):
    rule, states, _ = CASES[name]
    structured, plain, evidence = loopy(rule, states, np.random.default_rng(4), np.float64)
    graph, potentials = plain
    joint = np.zeros((states,) * 6)
    for scopes, table in zip(graph.group_scopes, potentials, strict=True):
        rows = np.broadcast_to(table, (len(scopes), *table.shape[-scopes.shape[1] :]))
        for scope, row in zip(scopes, rows, strict=True):
            shape = [states if v in scope else 1 for v in range(6)]
            joint = joint + np.transpose(row, np.argsort(scope)).reshape(shape)
    for v, table in enumerate(evidence[0]):
        joint = joint + np.reshape(table, [states if u == v else 1 for u in range(6)])
    solution = infer(*structured, Elimination(), log_evidence=evidence)
    # 729 terms in float64
    np.testing.assert_allclose(
        solution.log_partition, safe_logsumexp(jnp.asarray(joint)), rtol=1e-12
    )
    probs = np.exp(joint - joint.max())
    for v, marginal in enumerate(solution.marginals[0]):
        want = probs.sum(axis=tuple(u for u in range(6) if u != v)) / probs.sum()
        np.testing.assert_allclose(marginal, want, rtol=0, atol=1e-12)


# -- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parity", "or", "cardinality 2"])
def test_derivatives_in_both_modes_and_to_second_order(name):
    rule, states, _ = CASES[name]
    parameters, incoming = draw(np.random.default_rng(5), rule, states, 3, 2, False, 0.0)

    def f(parameters, incoming):
        out = [log_normalize(m, axis=1) for m in rule.messages(parameters, incoming, "sum")]
        mass = rule.log_mass(parameters, incoming, "sum")
        return sum(jnp.sum(jnp.sin((a + 1) * m)) for a, m in enumerate(out)) + jnp.sum(mass**2)

    args = jnp.asarray(parameters), tuple(map(jnp.asarray, incoming))
    # central differences in float64: truncation and rounding leave about 1e-7 relative
    check_derivatives(f, args, tolerance=1e-6)


@pytest.mark.parametrize(
    ("name", "semiring"),
    [
        *((name, "sum") for name in ("parity", "or", "cardinality 2", "automaton")),
        *((name, "max") for name in ("parity", "cardinality")),
    ],
)
def test_derivatives_with_zeros_are_those_of_the_table(name, semiring):
    rule, states, _ = CASES[name]
    rng = np.random.default_rng(6)
    halves = [draw(rng, rule, states, 3, 5, False, zeros) for zeros in (0.0, 0.4)]
    parameters, incoming = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
    incoming[0][0] = -np.inf  # a message without any mass
    args = jnp.asarray(parameters), tuple(map(jnp.asarray, incoming))

    def through_rule(parameters, incoming):
        messages = rule.messages(parameters, incoming, semiring)
        return messages, rule.log_mass(parameters, incoming, semiring)

    def through_table(parameters, incoming):
        table = rule.log_table(parameters, (states,) * 3)
        axes = [
            m.reshape(10, *(states if b == a else 1 for b in range(3)))
            for a, m in enumerate(incoming)
        ]
        out = []
        for a in range(3):
            others = [b for b in range(3) if b != a]
            product = table + sum(axes[b] for b in others)
            out.append(reduce(product, tuple(b + 1 for b in others), semiring))
        return out, reduce(table + sum(axes), (1, 2, 3), semiring)

    def gradient(f):
        def loss(args):
            messages, mass = f(*args)
            total = jnp.sum(jnp.where(jnp.isneginf(mass), 0.0, mass))
            for a, m in enumerate(messages):  # the gauge of a message is free
                n = log_normalize(m, axis=1)
                total += jnp.sum((a + 1.5) * jnp.cos(jnp.where(jnp.isneginf(n), 0.0, n)))
            return total

        return jax.tree.leaves(jax.jit(jax.grad(loss))(args))

    for a, b in zip(gradient(through_rule), gradient(through_table), strict=True):
        assert np.isfinite(a).all()
        # a dozen float64 operations of size 10
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_gradient_of_the_bethe_log_partition_with_a_hard_check():
    graph = FactorGraph([2] * 4, [Structured([[0, 1, 2], [1, 2, 3]], Parity()), (0,)])
    potentials = graph.pack([np.array([0.0, -np.inf]), np.array([0.2, -0.3])])
    evidence = graph.log_evidence({1: [0.1, 0.7], 3: [0.4, -0.9]})
    solver = BeliefPropagation(tolerance=0.0)

    def log_partition(potentials, evidence):
        solution = infer(graph, potentials, solver, log_evidence=evidence, max_steps=50)
        return solution.log_partition

    both = jax.jit(jax.value_and_grad(log_partition, argnums=(0, 1)))
    _, (by_potentials, by_evidence) = both(potentials, evidence)
    assert all(np.isfinite(g).all() for g in by_potentials)
    assert by_potentials[0][1] == 0.0  # a weight of zero stays zero
    step = 1e-6
    for v in range(4):
        moved = [evidence[0].at[v, 1].add(sign * step) for sign in (1, -1)]
        ahead, behind = (both(potentials, (table,))[0] for table in moved)
        slope = (ahead - behind) / (2 * step)
        # central difference with step 1e-6 in float64
        np.testing.assert_allclose(by_evidence[0][v, 1], slope, rtol=0, atol=1e-8)


def test_box_plus_has_the_slope_of_the_function_at_its_kinks():
    # at a = 0 and at |a| = |b| the formula has kinks, the function none
    for a, b in [(0.0, 2.0), (2.0, 2.0), (-2.0, 2.0), (0.0, 0.0), (1.5, 0.0), (3.0, -1.0)]:
        t, u = np.tanh(a / 2), np.tanh(b / 2)
        want = u * (1 - t**2) / (1 - (t * u) ** 2)
        # a handful of float64 operations of size 1
        assert abs(jax.grad(box_plus)(a, b) - want) < 1e-14
        assert abs(jax.grad(box_plus, argnums=1)(b, a) - want) < 1e-14
    assert jax.grad(box_plus)(0.0, 2.0, "max") == 1.0
    assert jax.grad(box_plus)(0.0, -2.0, "max") == -1.0
    assert jax.grad(box_plus, argnums=1)(5.0, 2.0, "max") == 1.0
    assert jax.grad(box_plus)(5.0, 2.0, "max") == 0.0
    for a, b in [(np.inf, 1.0), (np.inf, np.inf), (-np.inf, np.inf), (-np.inf, -2.0)]:
        assert box_plus(a, b) == np.sign(a) * b
        assert np.isfinite(jax.grad(box_plus, argnums=(0, 1))(a, b)).all()


# -- range and size --------------------------------------------------------------------------


@pytest.mark.parametrize("semiring", SEMIRINGS)
@pytest.mark.parametrize("name", CASES)
def test_messages_of_size_ten_thousand_in_float32(name, semiring):
    rule, states, value = CASES[name]
    rng = np.random.default_rng(7)
    parameters, incoming = draw(rng, rule, states, 4, 8, False, 0.1, scale=1.0)
    # whole numbers, so that float32 holds the inputs exactly
    incoming = [
        np.where(np.isneginf(m), m, np.round(rng.choice([-1e4, 0, 1e4], m.shape) + m))
        for m in incoming
    ]
    cast = (
        jnp.asarray(parameters, jnp.float32),
        tuple(jnp.asarray(m, jnp.float32) for m in incoming),
    )
    messages, mass = answers(rule, *cast, semiring)
    expected, expected_mass = enumerate_factor(value, parameters, incoming, semiring)
    for got, want in zip(messages, expected, strict=True):
        assert got.dtype == jnp.float32
        got, want = np.asarray(got), normalized(want)
        assert not np.isnan(got).any()
        # sums of four numbers up to 1e4: spacing 2^-9 each, a few of them
        np.testing.assert_allclose(normalized(got), want, rtol=1e-6, atol=0.02)
    np.testing.assert_allclose(mass, expected_mass, rtol=1e-6, atol=0.02)


def test_parity_keeps_the_weakest_message_among_strong_ones():
    # tanh of 1e4 is 1 in any float: products of tanh would give inf or the wrong size here
    odds = np.array([1e4, -2e4, 3e4, 0.75], np.float32)
    incoming = tuple(jnp.asarray([[0.0, -x]], jnp.float32) for x in odds)
    even = jnp.asarray([[0.0, -jnp.inf]], jnp.float32)
    got = [float(m[0, 0] - m[0, 1]) for m in Parity().messages(even, incoming, "sum")]
    # the weakest of the others with the product of signs; to float32 rounding of 1e4
    np.testing.assert_allclose(got, [-0.75, 0.75, -0.75, -1e4], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "rule", [Parity(), Or(), And(), Cardinality(), Cardinality(max_count=3)], ids=repr
)
def test_two_hundred_variables(rule, dtype):
    rng = np.random.default_rng(8)
    arity = 200
    shape = rule.parameter_shape((2,) * arity)
    parameters = rng.normal(size=(1, *shape))
    incoming = rng.normal(size=(arity, 2, 2)) - np.array([0.0, 3.0])
    # by polynomials: the distribution of the count from all variables, in linear space
    probs = np.exp(incoming - incoming.max(axis=2, keepdims=True))
    for k in range(2):
        counts = np.ones(1)
        for p in probs[:, k]:
            counts = np.convolve(counts, p)
        counts = np.append(counts, np.zeros(arity + 1 - len(counts)))
        n = np.arange(arity + 1)
        summary = {Parity: n % 2, Or: (n > 0).astype(int), And: (n == arity).astype(int)}.get(
            type(rule), np.minimum(n, shape[0])
        )
        weights = np.append(np.exp(parameters[0]), 0.0)[summary]
        want = np.log(np.sum(counts * weights)) + incoming[:, k].max(axis=1).sum()
        if k == 0:
            totals = [want]
        else:
            totals.append(want)
    args = jnp.asarray(parameters, dtype), tuple(jnp.asarray(incoming, dtype))
    messages, mass = answers(rule, *args, "sum")
    # 200 rounded additions
    np.testing.assert_allclose(mass, totals, rtol=1e-12 if dtype == np.float64 else 2e-6)
    assert len(messages) == arity
    for m, message in zip(messages, args[1], strict=True):
        # any axis's message times what comes in along it is the same mass, up to the gauge
        belief = m + message
        assert np.isfinite(np.asarray(belief)).all()
    belief = np.asarray(log_normalize(messages[7] + args[1][7], axis=1))
    held = [m if a != 7 else m.at[:, 0].set(-jnp.inf) for a, m in enumerate(args[1])]
    on = rule.log_mass(args[0], tuple(held), "sum") - mass
    # the difference of two masses of about 1e2
    np.testing.assert_allclose(
        belief[:, 1], on, rtol=0, atol=1e-11 if dtype == np.float64 else 1e-3
    )


def test_a_table_too_large_is_refused_but_belief_propagation_runs():
    graph = FactorGraph([2] * 40, [Structured([range(40)], Parity())])
    potentials = graph.pack([np.array([0.0, -np.inf])])
    evidence = graph.log_evidence({v: [0.0, -0.1] for v in range(40)})
    with pytest.raises(ValueError, match="Parity on 40 variables has a table of"):
        infer(graph, potentials, Elimination(), log_evidence=evidence)
    solution = infer(graph, potentials, BeliefPropagation(), log_evidence=evidence)
    p = 1 / (1 + np.exp(0.1))  # log Z = log of the even part of (1 + e^-0.1)^40, a tree: exact
    want = 40 * np.log1p(np.exp(-0.1)) + np.log((1 + (1 - 2 * (1 - p)) ** 40) / 2)
    # float64 sums of 40 terms
    np.testing.assert_allclose(solution.log_partition, want, rtol=1e-12)


def test_vmap_over_parameters():
    rng = np.random.default_rng(9)
    rule = Cardinality()
    parameters = jnp.asarray(rng.normal(size=(5, 1, 4)))
    incoming = tuple(jnp.asarray(rng.normal(size=(2, 2))) for _ in range(3))
    mapped = jax.vmap(lambda p: rule.log_mass(p, incoming, "sum"))(parameters)
    one_by_one = jnp.stack([rule.log_mass(p, incoming, "sum") for p in parameters])
    # the same operations in another order of loops
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-14)


# -- helpers and messages of errors ----------------------------------------------------------


def test_cardinality_weights():
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(Cardinality().exactly(1, 3), np.log([0, 1, 0, 0]))
        np.testing.assert_array_equal(Cardinality().at_most(1, 3), np.log([1, 1, 0, 0]))
        np.testing.assert_array_equal(Cardinality(max_count=2).exactly(2, 9), np.log([0, 0, 1]))
    assert Cardinality(max_count=5).parameter_shape((2, 2)) == (3,)
    assert hash(Cardinality(max_count=2)) == hash(Cardinality(max_count=2))
    assert Automaton([[0, 1], [1, 1]]) == Automaton(((0, 1), (1, 1)))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FactorGraph([2, 3], [Structured([[0, 1]], Parity())]), r"Parity .* \(2, 3\)"),
        (lambda: FactorGraph([3, 3], [Structured([[0, 1]], Or())]), r"Or .* \(3, 3\)"),
        (lambda: And().parameter_shape((3,)), "And is a factor on one or more binary variables"),
        (lambda: Cardinality().parameter_shape(()), r"Cardinality .* cardinalities \(\)"),
        (lambda: Cardinality(max_count=-1), "max_count is -1; it must be at least 0"),
        (lambda: Cardinality(max_count=2).exactly(3, 9), r"count is 3; 9 variables .* 0\.\.2 bits"),
        (lambda: Cardinality().at_most(-1, 9), r"count is -1; 9 variables .* 0\.\.9 bits"),
        (lambda: Automaton([[0, 0], [1]]), r"rows of lengths \[2, 1\]"),
        (lambda: Automaton([[0, 2], [1, 1]]), r"names summary 2; it has summaries 0\.\.1"),
        (lambda: Automaton([[0, 1], [1, 1]], start=-1), r"names summary -1"),
        (lambda: Automaton([[0, 0]]).parameter_shape((2, 3)), "reads variables of 2 states"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_many_axes_compile_quickly():
    n = 150
    graph = FactorGraph([2] * n, [Structured([tuple(range(n))], Parity())])
    evidence = (jnp.asarray(np.random.default_rng(0).normal(size=(n, 2))),)
    start = time.process_time()
    infer(graph, graph.pack([np.zeros((1, 2))]), BeliefPropagation(), log_evidence=evidence)
    # About 1 s alone; one normalisation an axis takes half a minute.
    assert time.process_time() - start < 15
