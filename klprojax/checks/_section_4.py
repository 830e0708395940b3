"""Section 4: sums over all parses of a circuit, in plain numpy, against sweeps and projections."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..circuits import (
    Circuit,
    CircuitBuilder,
    CircuitError,
    activation_lift,
    scope_table_marginals,
    sweep,
    t_spn,
    unfold,
)
from ..operators import t_proj
from ._measure import (
    at_least,
    by_precision,
    in_window,
    largest_difference,
    normalized,
    relative_difference,
)
from ._registry import statement

CARDINALITIES = (2, 3, 2)
# Steps of central differences in float64: error h^2 = 1e-10 times third derivatives of size 1.
STEP = 1e-5


class Example(NamedTuple):
    """A circuit, its numbers, and what enumeration says of them.

    Attributes:
        circuit: the structure. log_weights, log_evidence: its numbers, as the package wants them.
        marginals: one table per variable. visits: by node. edges, gates: by edge out of a sum node.
        log_partition: nats.
    """

    circuit: Circuit
    log_weights: Any
    log_evidence: Any
    marginals: list[np.ndarray]
    visits: np.ndarray
    edges: np.ndarray
    gates: np.ndarray
    log_partition: float


def _circuit(width: int) -> Circuit:
    """Mixtures, of products of mixtures, that share their children."""
    b = CircuitBuilder(CARDINALITIES)

    def mixed(v: int) -> int:
        return b.sum([b.indicator(v, t) for t in range(CARDINALITIES[v])])

    products = [b.product([mixed(0), mixed(1)]) for _ in range(width)]
    pairs = [b.sum(products) for _ in range(width)]
    return b.build(b.sum([b.product([pair, mixed(2)]) for pair in pairs])).circuit


def enumerate_parses(
    circuit: Circuit, weights: np.ndarray, evidence: list[np.ndarray], node: int | None = None
) -> Iterator[tuple[float, dict[int, int], tuple[int, ...], tuple[int, ...]]]:
    """Every parse below a node, or the root: weight, states of leaves, nodes, chosen edges."""
    s = circuit.structure
    leaves = {
        n: (v, t)
        for group in circuit.groups
        for n, v, t in zip(
            group.nodes.tolist(), group.variables.tolist(), group.states.tolist(), strict=True
        )
    }

    def below(n: int) -> list[tuple[float, dict[int, int], tuple[int, ...], tuple[int, ...]]]:
        if n in leaves:
            v, t = leaves[n]
            return [(evidence[v][t], {v: t}, (n,), ())]
        edges = range(int(s.offsets[n]), int(s.offsets[n + 1]))
        if s.kinds[n] == 1:
            out = [(1.0, {}, (n,), ())]
            for e in edges:
                pairs = itertools.product(out, below(int(s.children[e])))
                out = [
                    (w * u, {**x, **y}, (*p, *q), (*c, *d)) for (w, x, p, c), (u, y, q, d) in pairs
                ]
            return out
        out = []
        for e in edges:
            k = int(s.weight_of_edge[e])
            for u, y, q, d in below(int(s.children[e])):
                out.append((weights[k] * u, y, (n, *q), (k, *d)))
        return out

    yield from below(circuit.root if node is None else node)


def mixture_example(seed: int, width: int, dtype: Any, *, tree: bool = False) -> Example:
    at_least(width, 2)
    circuit = unfold(_circuit(width)).tree if tree else _circuit(width)
    rng = np.random.default_rng(seed)
    log_weights = jnp.asarray(rng.normal(size=circuit.num_weights), dtype)
    tables = [jnp.asarray(rng.normal(size=card), dtype) for card in CARDINALITIES]
    # Enumeration starts from the numbers as rounded to the type.
    weights = np.exp(np.asarray(log_weights, np.float64))
    evidence = [np.exp(np.asarray(table, np.float64)) for table in tables]
    total = 0.0
    marginals = [np.zeros(card) for card in CARDINALITIES]
    visits, edges = np.zeros(circuit.num_nodes), np.zeros(circuit.num_weights)
    for weight, states, nodes, chosen in enumerate_parses(circuit, weights, evidence):
        total += weight
        for v, t in states.items():
            marginals[v][t] += weight
        visits[list(nodes)] += weight
        edges[list(chosen)] += weight
    return Example(
        circuit,
        log_weights,
        circuit.pack_variables(tables, dtype),
        [m / total for m in marginals],
        visits / total,
        edges / total,
        edges / visits[_owners(circuit)],
        float(np.log(total)),
    )


def _owners(circuit: Circuit) -> np.ndarray:
    """Return the sum node that each weight belongs to."""
    s = circuit.structure
    weighted = s.weight_of_edge < circuit.num_weights
    owners = np.empty(circuit.num_weights, int)
    owners[s.weight_of_edge[weighted]] = np.repeat(np.arange(s.num_nodes), np.diff(s.offsets))[
        weighted
    ]
    return owners


def _tolerance(dtype: Any) -> float:
    # Sums of a hundred positive terms in another order: rounding of 1e-16 or 6e-8, tens of times.
    return by_precision(dtype, 1e-13, 1e-5)


@statement("Theorem 4.1 (a)", "variable marginals of one sweep vs sums over all parses, in numpy")
def theorem_4_1_a(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check `b_i(t) = ∂ log S / ∂ log λ_{i,t}` equals the marginal probability.

    Source: Theorem 4.1 (a). `size` is the number of components of each mixture.
    """
    known = mixture_example(seed, size, dtype)
    found = sweep(known.circuit, known.log_weights, known.log_evidence).marginals
    return (
        largest_difference(known.circuit.unpack_variables(found), known.marginals),
        _tolerance(dtype),
    )


@statement("Theorem 4.1 (a)", "marginals of one sweep vs λ/S · ∂S/∂λ by differences, in numpy")
def theorem_4_1_a_derivative(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check `b_i(t) = (λ_{i,t} / S) ∂S/∂λ_{i,t}` as printed, in λ itself.

    S is a sum over parses in numpy, linear in each λ, so its difference quotient is exact.

    Source: Theorem 4.1 (a). `size` is the number of components of each mixture.
    """
    known = mixture_example(seed, size, dtype)
    found = known.circuit.unpack_variables(
        sweep(known.circuit, known.log_weights, known.log_evidence).marginals
    )
    weights = np.exp(np.asarray(known.log_weights, np.float64))
    tables = known.circuit.unpack_variables(known.log_evidence)
    evidence = [np.exp(np.asarray(table, np.float64)) for table in tables]

    def total(v: int, t: int, factor: float) -> float:
        moved = [table.copy() for table in evidence]
        moved[v][t] *= factor
        return sum(parse[0] for parse in enumerate_parses(known.circuit, weights, moved))

    partition = np.exp(known.log_partition)
    want = [
        np.array([(total(v, t, 1.5) - total(v, t, 0.5)) / partition for t in range(len(table))])
        for v, table in enumerate(evidence)
    ]
    return largest_difference(found, want), _tolerance(dtype)


@statement("Theorem 4.1 (b)", "gates and visits of one sweep vs sums over all parses, in numpy")
def theorem_4_1_b(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check `Pr(visit s, select c | e) = D(s) w_sc S(c) / S(e)` and the gates `w_sc S(c) / S(s)`.

    Source: Theorem 4.1 (b). `size` is the number of components of each mixture.
    """
    known = mixture_example(seed, size, dtype)
    found = sweep(known.circuit, known.log_weights, known.log_evidence)
    got = (found.gates, found.edge_probs, found.visits, found.log_partition)
    want = (known.gates, known.edges, known.visits, np.asarray(known.log_partition))
    return largest_difference(got, want), _tolerance(dtype)


@statement("Theorem 4.1", "downward values vs central differences of the parses' sum, in numpy")
def theorem_4_1_differences(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that log-derivatives of the network polynomial are what the sweep sends down.

    Source: Theorem 4.1. Differences are taken of a sum over parses, so nothing differentiates.
    """
    known = mixture_example(seed, size, dtype)
    found = sweep(known.circuit, known.log_weights, known.log_evidence)
    log_weights = np.asarray(known.log_weights, np.float64)
    tables = known.circuit.unpack_variables(known.log_evidence)
    evidence = [np.exp(np.asarray(table, np.float64)) for table in tables]

    def log_sum(log_weights: np.ndarray) -> float:
        parses = enumerate_parses(known.circuit, np.exp(log_weights), evidence)
        return float(np.log(sum(parse[0] for parse in parses)))

    slopes = [
        (log_sum(log_weights + STEP * unit) - log_sum(log_weights - STEP * unit)) / (2 * STEP)
        for unit in np.eye(len(log_weights))
    ]
    # float64: the differences' own error; float32: rounding of the sweep.
    tolerance = by_precision(dtype, 1e-9, 1e-5)
    return largest_difference(found.edge_probs, np.asarray(slopes)), tolerance


@statement("Lemma 4.2", "T_SPN by belief propagation on a tree vs sums over all parses, in numpy")
def lemma_4_2(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that one upward-downward pass over the activation lift of a tree is exact.

    Source: Lemma 4.2. `size` is the number of components of each mixture.
    """
    known = mixture_example(seed, size, dtype, tree=True)
    found = t_spn(known.circuit, known.log_weights, known.log_evidence, method="tree")
    tables = known.circuit.unpack_variables(tuple(jnp.exp(table) for table in found))
    return largest_difference(tables, known.marginals), _tolerance(dtype)


def _unfolded(seed: int, size: int, dtype: Any) -> tuple[Example, Any, Any, Any]:
    known = mixture_example(seed, size, dtype)
    unfolding = unfold(known.circuit)
    graph = sweep(known.circuit, known.log_weights, known.log_evidence)
    weights = unfolding.log_weights(known.log_weights)
    return known, unfolding, graph, sweep(unfolding.tree, weights, known.log_evidence)


def _upward_values(known: Example) -> np.ndarray:
    """Return `S(n)` of every node, a sum over the parses below it."""
    weights = np.exp(np.asarray(known.log_weights, np.float64))
    tables = known.circuit.unpack_variables(known.log_evidence)
    evidence = [np.exp(np.asarray(table, np.float64)) for table in tables]
    return np.array(
        [
            sum(parse[0] for parse in enumerate_parses(known.circuit, weights, evidence, node))
            for node in range(known.circuit.num_nodes)
        ]
    )


@statement(
    "Lemma 4.3", "upward values of the unfolding vs sums over the circuit's parses, in numpy"
)
def lemma_4_3(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check `S_tree(ñ) = S(ρ(ñ))`.

    Source: Lemma 4.3. `size` is the number of components of each mixture.
    """
    known, unfolding, _, tree = _unfolded(seed, size, dtype)
    want = np.log(_upward_values(known))[unfolding.copy_of]
    return relative_difference(tree.log_values, want), _tolerance(dtype)


@statement("Lemma 4.4", "downward values of circuit and unfolding vs sums over parses, in numpy")
def lemma_4_4(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check `D(n) = Σ D_tree(ñ)` over the copies of n, each side against enumeration.

    The parses through a node weigh `D(n) S(n)` together; both factors are sums over parses.

    Source: Lemma 4.4. `size` is the number of components of each mixture.
    """
    known, unfolding, graph, tree = _unfolded(seed, size, dtype)
    merged = np.zeros(len(graph.log_derivatives))
    np.add.at(merged, unfolding.copy_of, np.exp(np.asarray(tree.log_derivatives, np.float64)))
    through = known.visits * np.exp(known.log_partition)
    want = through / _upward_values(known)
    gaps = [
        relative_difference(got, want)
        for got in (merged, np.exp(np.asarray(graph.log_derivatives, np.float64)))
    ]
    return float(np.max(gaps)), _tolerance(dtype)


@statement("Lemma 4.5", "beliefs of the unfolding, merged, vs sums over the circuit's parses")
def lemma_4_5(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that variable and gate beliefs are those of the unfolding, merged over copies.

    And that each copy of a sum node has the gates of its original.

    Source: Lemma 4.5. `size` is the number of components of each mixture.
    """
    known, unfolding, _, tree = _unfolded(seed, size, dtype)
    marginals = known.circuit.unpack_variables(tree.marginals)
    merged = unfolding.merge_edges(tree.edge_probs), unfolding.merge(tree.visits)
    got = (marginals, *merged, tree.gates)
    want = (tuple(known.marginals), known.edges, known.visits, known.gates[unfolding.weight_of])
    return largest_difference(jax.tree.leaves(got), jax.tree.leaves(want)), _tolerance(dtype)


@statement(
    "Theorem 4.6",
    "T_Proj on the activation lift vs sums over all parses, in numpy",
    reading="T_SPN on activations",
)
def theorem_4_6(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that the two KL projections on the activation lift give the sweep's beliefs.

    Source: Theorem 4.6. The projections are computed by variable elimination, on a circuit that is
    no tree. `size` is the number of components of each mixture.
    """
    known = mixture_example(seed, size, dtype)
    found = t_spn(known.circuit, known.log_weights, known.log_evidence, method="elimination")
    tables = known.circuit.unpack_variables(tuple(jnp.exp(table) for table in found))
    # Nodes and edges are variables of the lift: visits, and gates as edges over visits.
    lift = activation_lift(known.circuit)
    leaves = [known.circuit.unpack_variables(known.log_evidence)[v][t] for v, t in _leaves(known)]
    log_potentials = lift.log_potentials(known.log_weights, jnp.stack(leaves))
    active = np.exp(np.asarray(t_proj(lift.graph, log_potentials)[0][:, 1], np.float64))
    visits, edges = active[lift.node_variables], active[lift.edge_variables]
    got = (*tables, visits, edges, edges / visits[_owners(known.circuit)])
    want = (*known.marginals, known.visits, known.edges, known.gates)
    return largest_difference(got, want), _tolerance(dtype)


def _leaves(known: Example) -> list[tuple[int, int]]:
    """Variable and state of each leaf, in the order of the lift."""
    places = {
        n: (v, t)
        for group in known.circuit.groups
        for n, v, t in zip(
            group.nodes.tolist(), group.variables.tolist(), group.states.tolist(), strict=True
        )
    }
    return [places[n] for n in activation_lift(known.circuit).leaf_order.tolist()]


@statement(
    "Theorem 4.6",
    "projections of the region tables S_n λ vs sums over all parses",
    reading="taken literally",
    expected=False,
)
def theorem_4_6_literal(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check the literal reading, one table a region, which is not exact.

    Source: section 4.3, "Two-step KL operator". A sum and its products share a scope, so consensus
    averages components that should be mixed. The largest residual of `size` random mixtures of two
    products of two binary variables, since nearly equal components hardly differ.
    """
    at_least(size, 1)
    gaps, known = [], []
    for k in range(size):
        rng = np.random.default_rng([seed, k])
        first, second = rng.dirichlet([0.7, 0.7], size=(2, 2))
        prior = rng.dirichlet([2.0, 2.0])
        b = CircuitBuilder([2, 2])

        def leaf(v: int, probs: np.ndarray, b: CircuitBuilder = b) -> int:
            return b.sum([b.indicator(v, t) for t in (0, 1)], np.log(probs))

        parts = [b.product([leaf(0, p), leaf(1, q)]) for p, q in zip(first, second, strict=True)]
        circuit, log_weights, _ = b.build(b.sum(parts, np.log(prior)), dtype=dtype)
        want = [prior @ first, prior @ second]
        gaps.append(largest_difference(scope_table_marginals(circuit, log_weights), want))
        known.append(largest_difference(_region_reading(prior, first, second), want))
    # A true identity would show rounding; a hundredth is far above it.
    return in_window(max(gaps), max(known), dtype), 1e-2


def _region_reading(prior: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Write the literal reading out for a mixture of two products of two variables."""
    parts = [np.outer(p, q) for p, q in zip(first, second, strict=True)]
    mixture = prior[0] * parts[0] + prior[1] * parts[1]
    # Three nodes share the scope of both variables, two share each single one.
    agreed = normalized((mixture * parts[0] * parts[1]) ** (1 / 3))
    out = []
    for axis, leaves in enumerate((first, second)):
        alone = normalized(np.sqrt(leaves[0] * leaves[1]))
        out.append((3 * agreed.sum(axis=1 - axis) + 2 * alone) / 5)
    return out


@statement(
    "Remark 4.7",
    "normalised log-derivatives vs marginals by enumeration",
    reading="a product that is not decomposable",
    expected=False,
)
def remark_4_7(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that without decomposability log-derivatives are no marginals.

    The circuit must first be refused, by the name of the node.

    Source: Remark 4.7. A product of `size` different distributions of one variable.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    tables = rng.dirichlet([0.5, 0.5, 0.5], size=size) + 1e-3
    b = CircuitBuilder([3])
    sums = [b.sum([b.indicator(0, t) for t in range(3)], np.log(row)) for row in tables]
    product = b.product(sums, name="overlapping")
    try:
        b.build(product, dtype=dtype)
    except CircuitError as refusal:
        if "overlapping" not in str(refusal):
            raise ValueError(f"the refusal does not name the node: {refusal}") from None
    else:
        raise ValueError("a product of overlapping scopes was not refused")
    model = b.build(product, validate=False, dtype=dtype)
    found = normalized(np.asarray(sweep(model.circuit, model.log_weights).marginals[0][0]))
    # What the polynomial says of each state, its other indicators at zero.
    marginal = normalized(tables.prod(axis=0))
    # The polynomial is the product of the sums, so its log-derivative adds their tables up.
    known = largest_difference(normalized(tables.mean(axis=0)), marginal)
    return in_window(largest_difference(found, marginal), known, dtype), 1e-2
