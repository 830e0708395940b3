"""Explicit circuits: probabilities below the range of single precision, and long chains."""

import jax
import jax.numpy as jnp
import numpy as np

from klprojax.circuits import CircuitBuilder, kl_divergence, log_likelihood, log_partition, sweep


def class_with_children(count):
    """A class bit (the last variable) and children nine times as likely to equal it."""
    b = CircuitBuilder([2] * (count + 1))
    parts = []
    for c in range(2):
        children = [
            b.sum([b.indicator(v, c), b.indicator(v, 1 - c)], np.log([0.9, 0.1]))
            for v in range(count)
        ]
        parts.append(b.product([*children, b.indicator(count, c)]))
    return b.build(b.sum(parts, np.log([0.5, 0.5])), dtype=jnp.float32)


def test_log_marginals_below_the_range():
    circuit, log_weights, _ = class_with_children(60)
    evidence = circuit.log_evidence(dict.fromkeys(range(60), 1), jnp.float32)

    @jax.jit
    def tables(w):
        return sweep(circuit, w, evidence).log_marginals[0]

    def log_marginals(w):
        return tables(w)[60]

    # Sums of 60 logarithms in single precision.
    rough = {"rtol": 0, "atol": 1e-4}
    np.testing.assert_allclose(log_marginals(log_weights), [-60 * np.log(9), 0], **rough)
    # The prior's two log-weights are the last; their odds are those of the posterior.
    slopes = jax.jit(jax.jacobian(log_marginals))(log_weights)[:, -2:]
    np.testing.assert_allclose(slopes, [[1, -1], [0, 0]], **rough)
    # Excluded states stay excluded, with slopes of 0.
    assert np.isneginf(tables(log_weights)[:60, 0]).all()
    everything = jax.jit(jax.grad(lambda w: jnp.sum(jnp.exp(tables(w)[0]))))(log_weights)
    np.testing.assert_allclose(everything, 0, **rough)


def test_divergence_to_a_tiny_weight():
    b = CircuitBuilder([2])
    circuit = b.build(b.sum([b.indicator(0, 0), b.indicator(0, 1)], np.zeros(2))).circuit
    p = jnp.log(jnp.asarray([0.5, 0.5], jnp.float32))
    q = jnp.asarray([0.0, -200.0], jnp.float32)
    # By hand: .5 (log .5 - 0) + .5 (log .5 + 200); one rounding of a number of 100.
    np.testing.assert_allclose(kl_divergence(circuit, p, q), 100 - np.log(2), rtol=1e-6)
    assert np.isposinf(kl_divergence(circuit, p, q.at[1].set(-jnp.inf)))


def test_long_chains_do_not_drift():
    rng = np.random.default_rng(0)
    steps, units, states = 600, 2, 4
    transition = rng.dirichlet(np.ones(units), units)
    emission = rng.dirichlet(np.ones(states), units)
    b = CircuitBuilder([states] * steps)
    below = None
    for t in range(steps - 1, -1, -1):
        own = [
            b.sum([b.indicator(t, s) for s in range(states)], np.log(emission[k]))
            for k in range(units)
        ]
        if below is not None:
            own = [b.product([own[k], below[k]]) for k in range(units)]
        below = [b.sum(own, np.log(transition[j])) for j in range(units)]
    circuit, log_weights, _ = b.build(below[0], dtype=jnp.float32)
    rows = np.stack([np.zeros(steps, int), rng.integers(0, states, steps)])
    message, wanted = np.ones((2, units)), np.zeros(2)
    for t in range(steps - 1, -1, -1):
        message = (message * emission[:, rows[:, t]].T) @ transition.T
        scale = message.max(axis=1)
        wanted += np.log(scale)
        message = message / scale[:, None]
    wanted += np.log(message[:, 0])
    # The result of size 1000 is rounded by half of 6e-5. A step rounds numbers of size 1 some
    # four times by 6e-8, all 600 steps perhaps alike: 1.4e-4.
    close = {"rtol": 0, "atol": 1.8e-4}
    values = log_likelihood(circuit, log_weights, rows) + log_partition(circuit, log_weights)
    np.testing.assert_allclose(values, wanted, **close)
    evidence = circuit.log_evidence(dict(enumerate(rows[0].tolist())), jnp.float32)
    swept = jax.jit(lambda w: sweep(circuit, w, evidence))(log_weights)
    np.testing.assert_allclose(swept.log_partition, wanted[0], **close)
