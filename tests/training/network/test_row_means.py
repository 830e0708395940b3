"""Means over the rows of a batch: the projection is the least-squares solution."""

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.training.network._row_means import RowMeans


@pytest.mark.parametrize("one_for_all", [False, True])
def test_the_projection_is_the_nearest_point(one_for_all):
    rng, n, omega = np.random.default_rng(0), 4, 0.7
    a = rng.normal(size=(1 if one_for_all else n, 2))
    target, rho = rng.normal(size=(n, 2)), rng.uniform(0.2, 2.0, size=(n, 2))
    rule = RowMeans(n)
    ones = jnp.ones(n)
    inputs, aims = (jnp.asarray(a),), jnp.asarray(target)
    found = rule.project(inputs, aims, (omega,), jnp.asarray(rho), ones, (True,))
    copies = np.broadcast_to(a, (n, 2))
    for k in range(2):
        # ω/2 |a* - a|² + Σ ρ_i/2 (z_i - mean a*)²: one row of the design per term.
        design = np.r_[np.sqrt(omega) * np.eye(n), np.sqrt(rho[:, k, None]) * np.ones((n, n)) / n]
        aim = np.r_[np.sqrt(omega) * copies[:, k], np.sqrt(rho[:, k]) * target[:, k]]
        nearest = np.linalg.lstsq(design, aim, rcond=None)[0]
        # Rounding of a small dense solve.
        np.testing.assert_allclose(
            found.slopes[0][:, k], omega * (nearest - copies[:, k]), rtol=1e-10
        )
        np.testing.assert_allclose(found.output[:, k], nearest.mean(), rtol=1e-10)
    np.testing.assert_allclose(rule.apply(*inputs)[2], copies.mean(0), rtol=1e-14)
    silent = rule.project(inputs, aims, (omega,), 0.0, ones, (False,))
    assert silent.slopes == (None,)
    np.testing.assert_allclose(silent.output[1], copies.mean(0), rtol=1e-14)


def test_many_rows_are_not_damped_more_than_few():
    n, omega, rho = 1000, 1e4, 1.0
    inputs, target = (jnp.zeros((n, 1)),), jnp.full((n, 1), 0.3)
    found = RowMeans(n).project(inputs, target, (omega,), rho, jnp.ones(n), (True,))
    # One row's share of the message, less the ratio 1e-4 of the precisions; sums of 1000 numbers.
    np.testing.assert_allclose(found.slopes[0], rho * 0.3 * omega / (omega + rho), rtol=1e-12)
