"""What ``python -m benchmarks device`` runs: problems with their least work and their check.

Sizes are ``full`` and ``tiny`` (for tests). Everything is drawn here; nothing is read or fetched.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import klprojax
from benchmarks import ldpc
from benchmarks._bp_problems import Problem, bytes_per_iteration, ising, random_pairs
from benchmarks._training_ours import network
from benchmarks.training import problem_arrays
from klprojax.circuits.learning import em_step
from klprojax.circuits.tensor import hclt
from klprojax.codes import BinarySymmetricChannel, ParityCheckCode, decode
from klprojax.training import (
    AbstractStep,
    CrossEntropy,
    GradientStep,
    Precisions,
    ProjectionStep,
    Relaxed,
)

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Task:
    """One compiled program, what it must do at the least, and what its answer should be.

    Attributes:
        function: of ``arguments``; compiled by the caller.
        arguments: trees of arrays, floats in single precision.
        amount, unit: what a call gets done, for a rate.
        flops, bytes: the least that a call must compute and move, or functions of the answer.
        counted: how they are counted, in words.
        tolerance: largest relative error allowed, and
        because: the reason for it.
        pairs: from the answer and a function that evaluates any arguments in double precision on
            the host, to what was found and what is right, by name; if None, the answer and its
            double-precision evaluation, leaf by leaf.
        error: of a pair; relative to the norm of what is right if None.
        products: whether the library leaves the precision of its products to JAX, which
            accelerators then lower.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    amount: float | Callable[[Any], float]
    unit: str
    flops: float | Callable[[Any], float]
    bytes: float
    counted: str
    tolerance: float
    because: str
    pairs: Callable[[Any, Callable[..., Any]], Pairs] | None = None
    products: bool = False


def copying(size: str, platform: str) -> Task:
    """A copy from device memory to device memory."""
    mebibytes = 1 if size == "tiny" else 256 if platform == "cpu" else 1024
    x = np.random.default_rng(0).random(mebibytes * 2**18, np.float32)
    return Task(
        jnp.copy,
        (x,),
        2.0 * x.nbytes,
        "byte",
        0.0,
        2.0 * x.nbytes,
        f"{mebibytes} MiB read and written",
        0.0,
        "a copy changes no bit",
        # Counted, not subtracted: a gigabyte in double precision would take the host a minute.
        lambda found, _: {"entries that differ": (np.sum(found != x), np.zeros(()))},
    )


def product(size: str, platform: str, kind: str) -> Task:
    """A square matrix product: ``highest``, ``default`` (both float32) or ``bfloat16``."""
    n = 64 if size == "tiny" else 2048 if platform == "cpu" else 8192
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    rows = np.linspace(0, n - 1, 8).astype(int)
    if kind == "bfloat16":
        a, b = (np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in (a, b))

    def run(a: Any, b: Any) -> Any:
        precision = "highest" if kind == "highest" else "default"
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

    def pairs(found: Any, _: Any) -> Pairs:
        return {"8 rows": (found[rows], a[rows].astype(np.float64) @ b.astype(np.float64))}

    exact = (2e-5, "sums of n products in float32: at most about sqrt(n) * 6e-8, and a margin")
    rounded = (2e-3, "float32 factors may be rounded to 10 bits, 5e-4 each, before the product")
    return Task(
        run,
        (a, b),
        2.0 * n**3,
        "flop",
        2.0 * n**3,
        2.0 * a.nbytes + 4.0 * n * n,
        f"2 n^3 for n = {n}; factors read, product written",
        *(rounded if kind == "default" else exact),
        pairs,
    )


def _graph(given: Problem) -> tuple[klprojax.FactorGraph, Any, Any]:
    graph = klprojax.FactorGraph(np.full(given.variables, given.states), [given.scopes])
    return graph, graph.pack([given.log_potentials], np.float32), (given.unaries,)


def _infer(graph: Any, log_potentials: Any, log_evidence: Any, steps: int) -> Any:
    # Under jit the numbers cannot be looked at; "fast" says that they suit the fast engine.
    return klprojax.infer(
        graph,
        log_potentials,
        klprojax.BeliefPropagation(tolerance=0.0, engine="fast"),
        log_evidence=log_evidence,
        max_steps=steps,
        throw=False,
    )


def _flops(given: Problem) -> tuple[float, str]:
    k, m = given.states, given.messages
    if k == 2:
        return 8.0 * m, "8 flops per message: 3 products, (a + b o) / (1 + d o)"
    return (2.0 * k * k + 6 * k) * m, "2 states^2 + 6 states flops per message"


def flooding(given: Problem) -> Task:
    """Flooding belief propagation, a set number of iterations."""
    steps, (flops, said) = given.iterations, _flops(given)
    moved = bytes_per_iteration(given)

    def run(*numbers: Any) -> Any:
        solution = _infer(*numbers, steps)
        return {"beliefs": solution.beliefs[0], "log_partition": solution.log_partition}

    return Task(
        run,
        _graph(given),
        float(steps * given.messages),
        "message",
        steps * flops,
        float(steps * moved["bytes"]),
        f"{steps} iterations of {given.messages} messages; {said}; per iteration "
        f"{moved['formula']}",
        2e-5,
        "messages in float32 carry some 1e-6, and iterations that contract do not add it up",
    )


def slope(given: Problem) -> Task:
    """Value and gradient of a loss on the beliefs, through all iterations."""
    steps, (flops, said) = given.iterations, _flops(given)
    # 32 bits: JAX remembers constants it has seen, across a change of the float width too.
    targets, rows = given.targets.astype(np.int32), np.arange(given.variables, dtype=np.int32)

    def run(graph: Any, *numbers: Any) -> Any:
        def loss(numbers: Any) -> Any:
            solution = _infer(graph, *numbers, steps)
            return -jnp.mean(solution.log_beliefs[0][rows, targets])

        return jax.value_and_grad(loss)(numbers)

    # Forward as `flooding`; in reverse also the cotangents of messages and of constants.
    moved = float(bytes_per_iteration(given)["bytes"])
    return Task(
        run,
        _graph(given),
        float(steps * given.messages),
        "message",
        3 * steps * flops,
        3 * steps * moved,
        f"unrolled through {steps} iterations; three times the forward pass ({said}): the reverse "
        "pass reads what the forward pass wrote and moves as many cotangents",
        1e-4,
        "the messages' error, 1e-6, enters each of the reverse products once more",
    )


def decoding(size: str) -> Task:
    """Words per second of a regular (3,6) code over a binary symmetric channel, early stop."""
    bits, words, checked = (24, 40, 40) if size == "tiny" else (ldpc.VARIABLES, 10000, 1000)
    code = ParityCheckCode.regular(bits, ldpc.VARIABLE_DEGREE, ldpc.CHECK_DEGREE, seed=0)
    channel = BinarySymmetricChannel(0.05)
    sent = np.zeros((bits, words), np.uint8)
    received = channel.transmit(np.random.default_rng(1), sent).astype(np.float32)
    log_odds = np.asarray(channel.log_odds(received), np.float32)
    edges = bits * ldpc.VARIABLE_DEGREE

    def run(graph: Any, table: Any) -> Any:
        own = copy.copy(code)
        own.graph = graph
        return decode(own, table, ldpc.STEPS)

    def pairs(found: Any, host: Callable[..., Any]) -> Pairs:
        right = host(code.graph, log_odds[:, :checked])
        first = jax.tree.map(lambda x: x[..., :checked], found)
        same = (first.steps == right.steps) & (first.words == right.words).all(axis=0)
        # One word in a hundred may stand so near a tie that rounding costs it another step.
        share = np.full(1, np.mean(same) if np.mean(same) < 0.99 else 1.0)
        return {
            "words decided alike": (share, np.ones(1)),
            "log-odds of these": (first.log_odds[:, same], right.log_odds[:, same]),
        }

    return Task(
        run,
        (code.graph, log_odds),
        float(words),
        "word",
        lambda found: 26.0 * edges * float(np.sum(found.steps)),
        4.0 * bits * words * 2 + bits * words,
        f"{words} words of {bits} bits; 26 flops per edge and step (three passes of 6 in a check, "
        "5 for its logarithm, 3 at the bit) over the steps done; log-odds read, log-odds and bits "
        "written once (messages fit the caches)",
        1e-4,
        "check messages near 0 are logarithms of ratios near 1, which lose two of seven digits",
        pairs,
    )


def circuit(size: str, what: str) -> Task:
    """A hidden Chow-Liu tree: ``forward``, the rows' log-values, or ``em``, one step of EM."""
    variables, units, batch = (5, 3, 16) if size == "tiny" else (256, 64, 4096)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (batch, variables))
    for v in range(1, variables):  # a binary tree of variables that mostly equal their parent
        rows[:, v] = np.where(rng.random(batch) < 0.85, rows[:, (v - 1) // 2], rows[:, v])
    structure = hclt(rows, units)
    parameters = structure.init(0, rows=rows, dtype=np.float32)

    def forward(parameters: Any, rows: Any) -> Any:
        return {"log-values": structure.log_values(parameters, rows)}

    def em(parameters: Any, rows: Any) -> Any:
        new, mean = em_step(structure, parameters, rows, pseudocount=0.1)
        return {"mean log-value": mean, "probabilities": jax.tree.map(jnp.exp, new)}

    times = {"forward": 1, "em": 3}[what]
    table = 4.0 * (variables - 1) * units * units
    values = 4.0 * variables * units * batch
    return Task(
        {"forward": forward, "em": em}[what],
        (parameters, np.asarray(structure.states_from_data(rows))),
        float(batch),
        "row",
        times * (2.0 * (variables - 1) * units * units * batch + 6.0 * variables * units * batch),
        {"forward": 2 * values + table, "em": 6 * values + 3 * table}[what],
        f"{variables} variables, {units} units, batch {batch}; 2 units^2 flops per sum and row and "
        "6 per unit and row"
        + (
            "; every unit's value written and read once, weights read"
            if what == "forward"
            else ", three times (forward, two products in reverse); values written and read twice, "
            "their cotangents once, weights read twice, new ones written"
        ),
        1e-5 if what == "forward" else 1e-4,
        "logarithms of sums of positive numbers, no cancellation"
        if what == "forward"
        else "flows are sums of positive numbers with 1e-6 each, over all rows",
    )


def update(size: str, step: AbstractStep) -> Task:
    """One update of a ReLU network from one batch."""
    widths, batch = ([6, 5, 3], 8) if size == "tiny" else ([784, 1024, 1024, 10], 1024)
    arrays = problem_arrays(widths, batch)
    parts, static = eqx.partition(network(arrays), eqx.is_array)
    state = step.init(eqx.combine(parts, static))
    adam = isinstance(step, GradientStep)
    if adam:
        # Moments of a run under way: the first update would be the gradient's sign.
        state = optax.tree_utils.tree_set(
            state,
            count=np.int32(100),
            nu=jax.tree.map(lambda x: jnp.full(x.shape, 1e-6, x.dtype), parts),
        )
    ones, loss = np.ones(batch, np.float32), CrossEntropy()

    def run(parts: Any, state: Any, x: Any, y: Any, ones: Any) -> Any:
        new, state, info = step.update(eqx.combine(parts, static), state, x, y, ones, loss)
        out = {"loss": info.loss, "weights": eqx.filter(new, eqx.is_array)}
        return out | {"moments": state} if adam else out  # the moments show the gradient alone

    size_of = float(sum(x.size for x in jax.tree.leaves(parts)))
    activations = float(batch * sum(widths))
    return Task(
        run,
        (parts, state, arrays["x"], arrays["y"], ones),
        float(batch),
        "sample",
        2.0 * batch * (3 * size_of - widths[0] * widths[1]),
        4 * ((6 if adam else 4) * size_of + 4 * activations),
        f"widths {'-'.join(map(str, widths))}, batch {batch}; three products of 2 flops per weight "
        f"and sample, two for the inputs' weights; weights and "
        f"{'two moments' if adam else 'last moves'} read and written, values and "
        "cotangents of the layers written and read",
        2e-5,
        "sums of a thousand products with signs in float32"
        if adam
        else "a move is 60 times a difference of weights, so 60 * 6e-8 of them; it changes them by "
        "some 1e-3",
        products=True,
    )


def _flooded(tiny: Callable[[], Problem], full: Callable[[], Problem], make: Any) -> Any:
    return lambda size, platform: make(tiny() if size == "tiny" else full())


# By name, the most wanted first: from a size and a platform to a task.
TASKS: dict[str, Callable[[str, str], Task]] = {
    "copy": copying,
    "product float32 highest": lambda size, platform: product(size, platform, "highest"),
    "product float32 default": lambda size, platform: product(size, platform, "default"),
    "product bfloat16": lambda size, platform: product(size, platform, "bfloat16"),
    "BP ising1000": _flooded(
        lambda: ising("ising4", 4, 3), lambda: ising("ising1000", 1000, 50), flooding
    ),
    "BP states64": _flooded(
        lambda: random_pairs("states6", 5, 6, 8, 3),
        lambda: random_pairs("states64", 500, 64, 2000, 20),
        flooding,
    ),
    "circuit forward": lambda size, _: circuit(size, "forward"),
    "circuit EM step": lambda size, _: circuit(size, "em"),
    "BP gradient ising1000": _flooded(
        lambda: ising("ising4", 4, 2), lambda: ising("ising1000", 1000, 20), slope
    ),
    "LDPC decoding": lambda size, _: decoding(size),
    "Adam update": lambda size, _: update(size, GradientStep(optax.adam(1e-3))),
    "projection update": lambda size, _: update(
        size,
        ProjectionStep(precisions=Precisions.with_ratio(1 / 300), move=Relaxed(60.0, 0.9)),
    ),
}
