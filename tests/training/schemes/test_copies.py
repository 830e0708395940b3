"""Copies as combinations of past values: what is put away, and units that nothing reads."""

import jax.numpy as jnp
import numpy as np

from klprojax.training.network._bilinear import Dense
from klprojax.training.schemes._copies import Copies, ExplicitCopies, History, Ledger

RULE = Dense(transposed=True, rank=1)
OMEGA_A, OMEGA_W = 2.0, 3.0  # unequal, and their product is not 1
RNG = np.random.default_rng(5)
ROWS, UNITS, INPUTS = 2, 3, 4


def ledger(values):
    scales = tuple(jnp.sqrt(jnp.asarray(omega)) for omega in (OMEGA_A, OMEGA_W))
    made = Ledger(RULE, scales, False, jnp.ones(ROWS), History((), (), {}, {}))
    for _ in range(values):
        made.enter(
            jnp.asarray(RNG.normal(size=(ROWS, INPUTS))),
            jnp.asarray(RNG.normal(size=(UNITS, INPUTS))),
        )
    return made


def coefficients(count):
    return [jnp.asarray(RNG.normal(size=(ROWS, UNITS))) for _ in range(count)]


def test_coefficients_of_dropped_values_move_to_the_oldest_kept():
    made = ledger(3)
    plus, minus = coefficients(3), coefficients(3)
    plus[0] = plus[0].at[1, 2].set(-9.0)  # the largest that moves, and negative
    history, (kept,), moved = made.truncate(2, [Copies(made, plus, minus)])
    for got, old in ((kept.plus, plus), (kept.minus, minus)):
        np.testing.assert_array_equal(got[0], old[0] + old[1])
        np.testing.assert_array_equal(got[1], old[2])
    assert float(moved) == 9.0
    np.testing.assert_array_equal(history.w[0], made.w[1])
    np.testing.assert_array_equal(history.crosses[0, 1], made.crosses[1, 2])


def test_units_that_nothing_reads_keep_their_copies():
    target = jnp.full((ROWS, UNITS), 50.0)
    read = jnp.zeros((ROWS, UNITS), bool)
    made = ledger(2)
    copies = Copies(made, coefficients(2), coefficients(2))
    moved, _, residual = copies.project(target, 1.0, read)
    # Rounding of the product, of some dozen terms of size 10.
    for got, old in zip(moved.plus + moved.minus, copies.plus + copies.minus, strict=True):
        np.testing.assert_allclose(got, old, rtol=1e-12)
    assert float(residual) < 1e-12
    a, w = (jnp.asarray(RNG.normal(size=(ROWS, UNITS, INPUTS))) for _ in range(2))
    precisions = jnp.asarray(OMEGA_A), jnp.asarray(OMEGA_W)
    explicit = ExplicitCopies(a, w, RULE, precisions, jnp.ones(ROWS))
    still, output, _ = explicit.project(target, 1.0, read)
    np.testing.assert_allclose(still.a, a, rtol=1e-12)
    np.testing.assert_allclose(still.w, w, rtol=1e-12)
    np.testing.assert_allclose(output, jnp.sum(a * w, -1), rtol=1e-12)
