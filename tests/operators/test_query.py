"""Queries against enumeration: best states with ties, marginal MAP, draws, joints, entropy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import klprojax
from klprojax import (
    Energy,
    Entropy,
    FactorGraph,
    Joint,
    MostProbable,
    Parity,
    Samples,
    Structured,
    query,
)
from klprojax.operators import TooLargeError
from klprojax.operators.contraction import best_states, draw_states
from tests.reference.elimination import eliminate


def joint_table(cards, scopes, tables):
    """The log-weight of every joint state, by a loop over all of them."""
    out = np.empty(cards)
    for state in itertools.product(*map(range, cards)):
        terms = [t[tuple(state[v] for v in scope)] for scope, t in zip(scopes, tables, strict=True)]
        out[state] = sum(terms)
    return out


def log_sums(table, over):
    """The log of its sums onto some axes, in ascending order."""
    top = table.max() if table.max() > -np.inf else 0.0
    rest = tuple(v for v in range(table.ndim) if v not in over)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(table - top).sum(axis=rest)) + top


@st.composite
def models(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = rng.integers(1, 6)
    cards = rng.integers(1, 4, count).tolist()
    scopes, tables = [], []
    for _ in range(rng.integers(0, 7)):
        arity = rng.integers(0, min(count, 3) + 1)
        scopes.append(tuple(rng.permutation(count)[:arity].tolist()))
        shape = [cards[v] for v in scopes[-1]]
        # Small whole numbers make ties.
        ties = draw(st.booleans())
        table = rng.integers(-2, 3, shape) * 1.0 if ties else rng.normal(0.0, 100.0, shape)
        tables.append(np.where(rng.random(shape) < 0.15, -np.inf, table))
    over = rng.permutation(count)[: rng.integers(0, count + 1)].tolist()
    return cards, scopes, tables, over


@settings(max_examples=60, deadline=None)
@given(models(), st.sampled_from([1, 2, 7]))
def test_best_states_are_distinct_in_order_and_attain_their_values(model, best):
    cards, scopes, tables, over = model
    joint = joint_table(cards, scopes, tables)
    for kept in (None, over):
        states, values = best_states(cards, scopes, tables, best=best, over=kept)
        weights = joint if kept is None else log_sums(joint, kept)
        wanted = np.full(best, -np.inf)
        wanted[: weights.size] = np.sort(weights.ravel())[::-1][:best]
        # Sums of seven terms of size 300, rounded in another order.
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-11)
        columns = sorted(range(len(cards)) if kept is None else kept)
        found = [tuple(row[columns].tolist()) for row in states[values > -np.inf]]
        assert len(set(found)) == len(found)
        attained = [weights[state] for state in found]
        np.testing.assert_allclose(attained, wanted[: len(found)], rtol=0, atol=1e-11)
        rest = [v for v in range(len(cards)) if v not in columns]
        assert (states[:, rest] == -1).all()


@settings(max_examples=40, deadline=None)
@given(models())
def test_draws_have_the_frequencies_of_the_joint_table(model):
    cards, scopes, tables, _ = model
    joint = joint_table(cards, scopes, tables)
    count = 2000
    drawn = draw_states(cards, scopes, tables, count, np.random.default_rng(7))
    if joint.max() == -np.inf:
        assert drawn is None
        return
    p = np.exp(joint - joint.max())
    p /= p.sum()
    frequency = np.zeros(cards)
    np.add.at(frequency, tuple(drawn.T), 1 / count)
    # Binomial error; among 40 x 240 states one at six sigma is a chance of 1e-5. A state of tiny
    # probability may come up once.
    bound = 6 * np.sqrt(p * (1 - p) / count) + 1 / count
    assert (np.abs(frequency - p) <= bound).all()
    assert (frequency[p == 0.0] == 0.0).all()


CARDS, SCOPES = [2, 3, 2, 4], [(0, 1), (1, 2), (2, 3), (3, 0), (1,)]


def problem(dtype=None, zeros=True):
    rng = np.random.default_rng(3)
    tables = [rng.normal(size=[CARDS[v] for v in scope]) for scope in SCOPES]
    if zeros:
        tables[0][0, 1] = tables[2][1, 3] = -np.inf
    graph = FactorGraph(CARDS, SCOPES)
    soft = np.array([0.0, -1.0, -np.inf, 0.5])
    observed = {3: soft}
    joint = joint_table(CARDS, [*SCOPES, (3,)], [*tables, soft])
    return graph, graph.pack(tables, dtype), graph.log_evidence(observed, dtype), joint


DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


@DTYPES
def test_answers_outside_and_inside_of_jit(dtype):
    graph, tables, evidence, joint = problem(dtype)
    # A few sums of logarithms of size 10.
    atol = 50 * float(jnp.finfo(dtype).eps)
    log_p = joint - np.log(np.exp(joint).sum())
    p = np.exp(log_p)
    states = np.argwhere(joint > -np.inf)[:5]
    questions = [MostProbable(3), MostProbable(2, over=[2, 0]), Joint([3, 0]), Entropy()]

    def answers(tables, evidence, states):
        out = [query(graph, tables, question, log_evidence=evidence) for question in questions]
        return [*out, query(graph, tables, Energy(states), log_evidence=evidence)]

    for run in (answers, jax.jit(answers)):
        best, over, pair, entropy, energy = run(tables, evidence, states)
        wanted = np.sort(joint.ravel())[::-1]
        np.testing.assert_allclose(best.log_weights, wanted[:3], atol=atol)
        assert [joint[tuple(s)] for s in best.states.tolist()] == wanted[:3].tolist()
        sums = log_sums(joint, [0, 2])
        np.testing.assert_allclose(over.log_weights, np.sort(sums.ravel())[::-1][:2], atol=atol)
        attained = [sums[b, a] for a, b in over.states.tolist()]
        np.testing.assert_allclose(over.log_weights, attained, atol=atol)
        np.testing.assert_allclose(pair, log_sums(log_p, [0, 3]).T, atol=atol)
        possible = p > 0
        np.testing.assert_allclose(entropy, -(p[possible] * log_p[possible]).sum(), atol=atol)
        np.testing.assert_allclose(energy, [-joint[tuple(s)] for s in states], atol=atol)
        assert best.states.dtype == jnp.int32
        assert {x.dtype for x in (best.log_weights, over.log_weights, pair, entropy, energy)} == {
            jnp.dtype(dtype)
        }


def test_samples_repeat_by_key_also_under_jit_and_vmap():
    graph, tables, evidence, joint = problem()

    def draw(key, tables=tables):
        return query(graph, tables, Samples(key, 400), log_evidence=evidence)

    keys = jax.random.split(jax.random.key(1), 3)
    one = draw(keys[0])
    assert one.shape == (400, 4)
    np.testing.assert_array_equal(one, jax.jit(draw)(keys[0], tables))
    many = jax.vmap(draw)(keys)
    np.testing.assert_array_equal(many[0], one)
    assert (many[1] != one).any()
    np.testing.assert_array_equal(draw(jax.random.PRNGKey(1)), draw(jax.random.PRNGKey(1)))
    assert all(joint[tuple(state)] > -np.inf for state in one.tolist())


def test_derivatives_are_indicators_and_marginals():
    graph, tables, evidence, joint = problem()

    def value(tables, question):
        return query(graph, tables, question, log_evidence=evidence).log_weights[0]

    best = np.unravel_index(joint.argmax(), joint.shape)
    for slope in (jax.grad(value)(tables, MostProbable()),):
        for got, scope in zip(graph.unpack(slope), SCOPES, strict=True):
            wanted = np.zeros([CARDS[v] for v in scope])
            wanted[tuple(best[v] for v in scope)] = 1.0
            np.testing.assert_array_equal(got, wanted)
    # Of marginal MAP: the marginals given the states found.
    slope = graph.unpack(jax.grad(value)(tables, MostProbable(over=[0])))
    sums = log_sums(joint, [0])
    given_best = np.full_like(joint, -np.inf)
    given_best[sums.argmax()] = joint[sums.argmax()]
    p = np.exp(given_best - sums.max())
    np.testing.assert_allclose(slope[1], p.sum(axis=(0, 3)), atol=1e-13)
    # Entropy's derivative, by differences of the enumeration.
    direction = [np.random.default_rng(5).normal(size=t.shape) for t in graph.unpack(tables)]

    def entropy(step):
        moved = [
            np.asarray(t) + step * d for t, d in zip(graph.unpack(tables), direction, strict=True)
        ]
        table = joint_table(
            CARDS, [*SCOPES, (3,)], [*moved, np.asarray(graph.unpack_variables(evidence)[3])]
        )
        log_p = table - np.log(np.exp(table).sum())
        kept = log_p > -np.inf
        return -(np.exp(log_p[kept]) * log_p[kept]).sum()

    _, got = jax.jvp(
        lambda t: query(graph, t, Entropy(), log_evidence=evidence),
        (tables,),
        (graph.pack(direction),),
    )
    # A central difference: h^2 and rounding / h, both about 1e-10 for h = 1e-5.
    np.testing.assert_allclose(got, (entropy(1e-5) - entropy(-1e-5)) / 2e-5, atol=1e-8)


def test_structured_factors_have_energies_and_best_states():
    graph = FactorGraph([2] * 4, [Structured(np.array([[0, 1, 2], [1, 2, 3]]), Parity()), (0,)])
    tables = graph.pack([np.array([0.0, -np.inf]), np.log([0.1, 0.9])])
    best = query(graph, tables, MostProbable(best=3))
    assert (best.states[:, :3].sum(axis=1) % 2 == 0).all()
    assert (best.states[:, 1:].sum(axis=1) % 2 == 0).all()
    np.testing.assert_allclose(best.log_weights, np.log([0.9, 0.9, 0.1]), atol=1e-15)
    np.testing.assert_array_equal(query(graph, tables, Energy(best.states)), -best.log_weights)
    odd = np.array([[1, 0, 0, 0]])
    assert query(graph, tables, Energy(odd)).tolist() == [np.inf]
    assert query(graph, tables, Joint([3, 0])).shape == (2, 2)


def test_a_long_chain_with_large_numbers():
    steps = 300
    rng = np.random.default_rng(0)
    pairs = rng.uniform(-1e4, 1e4, (steps - 1, 3, 3))
    graph = FactorGraph([3] * steps, [np.stack([np.arange(steps - 1), np.arange(1, steps)], 1)])
    tables = graph.pack([pairs])
    best = query(graph, tables, MostProbable())
    # Viterbi by hand.
    value, choice = np.zeros(3), []
    for pair in pairs:
        scores = value[:, None] + pair
        choice.append(scores.argmax(axis=0))
        value = scores.max(axis=0)
    path = [int(value.argmax())]
    for back in reversed(choice):
        path.append(int(back[path[-1]]))
    assert best.states[0].tolist() == path[::-1]
    np.testing.assert_allclose(best.log_weights[0], value.max(), rtol=1e-13)
    drawn = query(graph, tables, Samples(jax.random.key(0), 2))
    # At this range nearly all mass is on few paths; both draws are near the best in weight.
    energy = query(graph, tables, Energy(drawn))
    assert (energy + best.log_weights[0] < steps).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: MostProbable(0), "best is 0"),
        (lambda: Samples(jax.random.key(0), 0), "count is 0"),
        (lambda: MostProbable(over=[9]), "no variable 9"),
        (lambda: MostProbable(over=[1, 1]), "named twice"),
        (lambda: Joint([0, 0]), "named twice"),
        (lambda: Energy(np.zeros(3, int)), "last axis"),
        (lambda: Energy(np.array([0, 5, 0, 0])), r"states\[1\] is 5"),
    ],
)
def test_misuse_is_told(ask, message):
    graph, tables, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        query(graph, tables, ask())


def test_impossible_and_broken_numbers_raise_as_in_infer():
    graph, tables, _, _ = problem()
    none = tuple(jnp.full_like(t, -jnp.inf) for t in tables)
    broken = tuple(jnp.full_like(t, jnp.nan) for t in tables)
    questions = [MostProbable(), MostProbable(over=[0]), Samples(jax.random.key(0), 2), Entropy()]
    for question in questions:
        with pytest.raises(RuntimeError, match="probability zero"):
            query(graph, none, question)
        with pytest.raises(RuntimeError, match="NaN"):
            query(graph, broken, question)
    assert query(graph, none, Samples(jax.random.key(0), 2), throw=False).tolist() == [[-1] * 4] * 2
    assert query(graph, none, MostProbable(), throw=False).log_weights.tolist() == [-np.inf]


def test_too_large_is_said_before_it_is_tried():
    index = np.arange(900).reshape(30, 30)
    pairs = np.concatenate(
        [np.stack([a.ravel(), b.ravel()], 1) for a, b in
         ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:]))]
    )  # fmt: skip
    graph = FactorGraph([4] * 900, [pairs])
    tables = graph.pack([np.zeros((4, 4))])
    for question in (MostProbable(), Samples(jax.random.key(0)), Entropy()):
        with pytest.raises(TooLargeError, match="memory_limit"):
            query(graph, tables, question)
    with pytest.raises(ValueError, match="Ask for fewer"):
        query(graph, tables, Joint(range(30)))


def test_marginals_of_draws_agree_with_elimination():
    graph, tables, evidence, _ = problem()
    question = Samples(jax.random.key(2), 20000)
    drawn = np.asarray(query(graph, tables, question, log_evidence=evidence))
    everything = [*graph.unpack(tables), graph.unpack_variables(evidence)[3]]
    scopes = [*SCOPES, (3,)]
    log_z = eliminate(CARDS, scopes, everything)
    for v in range(4):
        p = np.exp(eliminate(CARDS, scopes, everything, (v,)) - log_z)
        frequency = np.bincount(drawn[:, v], minlength=CARDS[v]) / len(drawn)
        # Six sigma of a binomial.
        assert (np.abs(frequency - p) <= 6 * np.sqrt(p * (1 - p) / len(drawn))).all()
    assert klprojax.query is query
