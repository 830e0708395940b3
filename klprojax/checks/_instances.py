"""One operator: learning, circuits, training and decoding as instances, against plain numpy.

Each row runs a program of the package and, where a table of the whole space is small enough, the
generic scheme on that table; both are compared with numpy that iterates nothing of ours.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..circuits import em_step, t_spn
from ..circuits.tensor import TensorCircuit, TensorParameters
from ..codes import ParityCheckCode, decode
from ..geometry import MarginalConstraints, ProductFamily
from ..graphs._replication import ReplicatedLift
from ..projections import (
    Cyclic,
    DouglasRachford,
    Dykstra,
    LogTables,
    compose,
    iterate,
    left,
    right,
)
from ..training import Precisions, Splitting, SquaredError
from ..training.network import LiftedNetwork, trace_network
from ._measure import as_given, at_least, by_precision, largest_difference, relative_difference
from ._registry import statement

_STEPS = 4


# -- EM -------------------------------------------------------------------------------------------


def _naive_bayes(log_table: Any) -> Any:
    """Right projection of ``p(z, x, y)`` onto the tables ``p(z) p(x | z) p(y | z)``."""
    by_x, by_y = (jax.nn.logsumexp(log_table, axis=axis) for axis in (2, 1))
    classes = jax.nn.logsumexp(by_x, axis=1)
    return by_x[:, :, None] + by_y[:, None, :] - classes[:, None, None]


@statement("One operator, EM", "iterate, and em_step of a circuit, vs EM by hand in numpy")
def one_operator_em(seed: int = 0, size: int = 3, dtype: Any = None) -> Any:
    """Check that EM alternates the projections onto the data and onto the circuit's distributions.

    Source: section 2, left and right projections. `size` is the number of classes of a mixture.
    """
    at_least(size, 2)
    rng = np.random.default_rng(seed)
    circuit = TensorCircuit((3, 4), size, [0, 1], [], [[0, 1]])
    rows = np.stack([rng.integers(card, size=30) for card in (3, 4)], axis=1)
    data = np.zeros((3, 4))
    np.add.at(data, tuple(rows.T), 1 / len(rows))
    parts = [rng.dirichlet(np.ones(n), k) for n, k in ((size, 1), (3, size), (4, size))]
    parts = [as_given(part, dtype) for part in parts]

    pad = np.zeros((size, 1))  # tables are as wide as the largest variable
    tables = np.zeros((0, size, size)), np.stack([np.hstack([parts[1], pad]), parts[2]]), parts[0]
    with np.errstate(divide="ignore"):
        own = TensorParameters(*(jnp.asarray(np.log(table), dtype) for table in tables))
        log_data = jnp.asarray(np.log(data), dtype)
    onto_data = left(MarginalConstraints([((1, 2), log_data)]))
    table = jnp.asarray(np.log(np.einsum("uz,zx,zy->zxy", *parts)), dtype)
    generic = iterate(Cyclic(), (onto_data, _naive_bayes), table, max_steps=_STEPS, tolerance=0)

    for _ in range(_STEPS):
        own, _ = em_step(circuit, own, rows)
        joint = np.einsum("uz,zx,zy->zxy", *parts)
        counts = data * joint / joint.sum(axis=0)
        classes = counts.sum(axis=(1, 2))
        parts = [classes[None], *(counts.sum(axis=a) / classes[:, None] for a in (2, 1))]
    found = [jnp.exp(own.log_root), jnp.exp(own.log_inputs[0, :, :3]), jnp.exp(own.log_inputs[1])]
    want = np.einsum("uz,zx,zy->zxy", *parts)
    gap = max(largest_difference(found, parts), largest_difference(jnp.exp(generic.value), want))
    # Probabilities, after four steps.
    return gap, by_precision(dtype, 1e-13, 1e-5)


# -- tensor circuits ------------------------------------------------------------------------------


@statement(
    "One operator, circuits", "tensor circuit, and T_SPN of its explicit form, vs einsum in numpy"
)
def one_operator_circuits(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that the sweep over dense layers gives T_SPN's marginals.

    Source: Theorems 4.1 and 4.6. `size` is the number of units of each vector.
    """
    at_least(size, 1)
    circuit = TensorCircuit((2, 3, 2), size, [0, 1, 2], [[[0, 1]]], [[3, 2]])
    parameters = circuit.init(seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    observed = {v: rng.normal(size=card) for v, card in enumerate(circuit.cardinalities)}
    evidence = circuit.log_evidence(observed, dtype)
    rows = [table[None] for table in evidence]
    matrix, leaves, root = (
        np.exp(np.asarray(table, np.float64)) for table in jax.tree.leaves(parameters)
    )
    tables = [
        leaf[:, :card] * np.exp(np.asarray(table, np.float64))
        for leaf, card, table in zip(
            leaves, circuit.cardinalities, circuit.unpack_variables(evidence), strict=True
        )
    ]
    joint = np.einsum("uj,jk,ka,kb,jc->abc", root, matrix[0], *tables)
    every = [joint.sum(axis=tuple({0, 1, 2} - {v})) / joint.sum() for v in range(3)]

    model = circuit.to_circuit(parameters)
    projected = t_spn(
        model.circuit,
        model.log_weights,
        evidence,
        leaf_parameters=model.leaf_parameters,
        method="elimination",
    )
    swept = [table[0] for table in circuit.marginals(parameters, log_evidence=rows)]
    log_value = circuit.log_values(parameters, log_evidence=rows)
    gap = max(
        largest_difference(circuit.unpack_variables(swept), every),
        largest_difference(circuit.unpack_variables(jax.tree.map(jnp.exp, projected)), every),
        largest_difference(log_value, np.log(joint.sum())[None]),
    )
    # Probabilities, and a logarithm of size one: sums over twelve states.
    return gap, by_precision(dtype, 1e-13, 1e-5)


# -- training -------------------------------------------------------------------------------------


class _Linear(eqx.Module):
    weight: Any

    def __call__(self, x: Any) -> Any:
        return self.weight @ x


def _onto_products(a: np.ndarray, w: np.ndarray, u: np.ndarray, rho: float) -> tuple:
    """Nearest ``u = a · w`` of every unit, by bisection for the multiplier of the constraint.

    The last axis of ``a`` and ``w`` is summed; their precision is 1, that of ``u`` is ``rho``.
    """

    def moved(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = t[..., None]
        return (a + t * w) / (1 - t * t), (w + t * a) / (1 - t * t)

    low, high = np.full(u.shape, -1.0), np.full(u.shape, 1.0)
    for _ in range(100):
        middle = (low + high) / 2
        new_a, new_w = moved(middle)
        below = u - middle / rho > np.sum(new_a * new_w, axis=-1)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return *moved(middle), u - middle / rho


@statement("One operator, training", "Splitting(DouglasRachford) vs its recursion in numpy")
def one_operator_training(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that training by a splitting scheme iterates reflections of the copies.

    The network is one linear map; the copies are, for every unit and sample, its inputs, its
    weights and its output.

    Source: section 3.2, local projections; Douglas-Rachford as in `klprojax.projections`. `size` is
    the number of units.
    """
    at_least(size, 1)
    rng = np.random.default_rng(seed)
    weight, x = rng.normal(size=(size, 2)), rng.normal(size=(3, 2))
    goal, rho = rng.normal(size=(3, size)), 0.7
    weight, x, goal = (as_given(v, dtype) for v in (weight, x, goal))

    def dense(point: tuple) -> tuple:
        a, w, u = point
        return _onto_products(a, w, u, rho)

    def agreed(point: tuple) -> tuple:
        _, w, u = point
        mean = np.broadcast_to(w.mean(axis=0), w.shape)
        return np.broadcast_to(x[:, None], w.shape), mean, (rho * u + goal) / (rho + 1)

    point = (
        np.repeat(x[:, None], size, axis=1),
        np.broadcast_to(weight, (3, size, 2)),
        x @ weight.T,
    )
    want = []
    for _ in range(_STEPS):
        # The parameters are the consensus of the weights' copies.
        want.append(point[1].mean(axis=0))
        on_agreed = agreed(point)
        reflected = tuple(2 * p - q for p, q in zip(on_agreed, point, strict=True))
        on_dense = dense(reflected)
        point = tuple(q + r - p for q, r, p in zip(point, on_dense, on_agreed, strict=True))

    scheme = Splitting(DouglasRachford())
    model = _Linear(jnp.asarray(weight, dtype))
    graph, parameters = trace_network(model, jnp.asarray(x, dtype))
    network = LiftedNetwork(
        graph,
        jnp.asarray(x, dtype),
        jnp.asarray(goal, dtype),
        jnp.ones(3, dtype),
        SquaredError(),
        Precisions(output=rho, node=rho),
        "average",
    )
    state, got = scheme.start(network, parameters), []
    advance = eqx.filter_jit(scheme.iterate)
    for _ in range(_STEPS):
        state = advance(network, state)
        got.append(scheme.parameters(network, state)[0])
    # Roots are found to rounding; reflections double what is left of it.
    return relative_difference(got, want), by_precision(dtype, 1e-12, 1e-4)


# -- codes ----------------------------------------------------------------------------------------


@statement("One operator, codes", "iterate, and decode, vs the tanh rule in numpy")
def one_operator_codes(seed: int = 0, size: int = 2, dtype: Any = None) -> Any:
    """Check that decoding a parity-check code is the hybrid of Proposition 3.1: four iterations.

    Source: Proposition 3.1. `size` is the number of checks, each of three bits.
    """
    at_least(size, 1)
    matrix = np.stack([np.roll([1, 1, 1] + [0] * (size - 1), k) for k in range(size)])
    code = ParityCheckCode(matrix)
    rng = np.random.default_rng(seed)
    received = jnp.asarray(rng.normal(size=size + 2), dtype)
    lift = ReplicatedLift(code.graph, evidence=True)
    table = lift.log_table(
        jax.tree.map(lambda t: t.astype(received.dtype), code.log_potentials),
        code.log_evidence(received),
    )
    product, space, scheme = right(ProductFamily()), LogTables(), Dykstra()
    both = product, compose(product, left(lift.consensus))

    @jax.jit
    def step(state: Any) -> Any:
        new = scheme.step(space, both, state)
        return new, lift.read_variables(ProductFamily().marginals(scheme.read(new)))

    # Evidence is a factor of the lift, so the checks hear of it one step later.
    state, _ = step(scheme.init(space, both, table))

    odds = np.asarray(received, np.float64)
    messages, want, gaps = np.zeros(matrix.shape), odds, []
    for _ in range(_STEPS):
        cavity = np.where(matrix, np.tanh((odds + messages.sum(axis=0) - messages) / 2), 1.0)
        others = cavity.prod(axis=1, keepdims=True) / cavity
        messages = np.where(matrix, 2 * np.arctanh(np.where(matrix, others, 0.0)), 0.0)
        want = 1 / (1 + np.exp(-(odds + messages.sum(axis=0))))
        state, (generic,) = step(state)
        gaps.append(largest_difference(jnp.exp(generic[:, 0]), want))
    decoded = decode(code, received, _STEPS, early_stop=False).log_odds
    gaps.append(largest_difference(jax.nn.sigmoid(decoded), want))
    # Probabilities; corrections add up a few logarithms of size ten.
    return float(np.max(gaps)), by_precision(dtype, 1e-12, 1e-4)
