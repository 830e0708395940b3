"""Sums over the rows of a batch: the projection is the least-squares solution."""

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.training.network._row_sums import RowSums


@pytest.mark.parametrize("one_for_all", [False, True])
def test_the_projection_is_the_nearest_point(one_for_all):
    rng, n, omega = np.random.default_rng(0), 4, 0.7
    a = rng.normal(size=(1 if one_for_all else n, 2))
    target, rho = rng.normal(size=(n, 2)), rng.uniform(0.2, 2.0, size=(n, 2))
    rule = RowSums(n)
    ones = jnp.ones(n)
    inputs, aims = (jnp.asarray(a),), jnp.asarray(target)
    found = rule.project(inputs, aims, (omega,), jnp.asarray(rho), ones, (True,))
    copies = np.broadcast_to(a, (n, 2))
    for k in range(2):
        # ω/2 |a* - a|² + Σ ρ_i/2 (z_i - Σ a*)²: one row of the design per term.
        design = np.r_[np.sqrt(omega) * np.eye(n), np.sqrt(rho[:, k, None]) * np.ones((n, n))]
        aim = np.r_[np.sqrt(omega) * copies[:, k], np.sqrt(rho[:, k]) * target[:, k]]
        nearest = np.linalg.lstsq(design, aim, rcond=None)[0]
        # Rounding of a small dense solve.
        np.testing.assert_allclose(
            found.slopes[0][:, k], omega * (nearest - copies[:, k]), rtol=1e-10
        )
        np.testing.assert_allclose(found.output[:, k], nearest.sum(), rtol=1e-10)
    np.testing.assert_allclose(rule.apply(*inputs)[2], copies.sum(0), rtol=1e-14)
    silent = rule.project(inputs, aims, (omega,), 0.0, ones, (False,))
    assert silent.slopes == (None,)
    np.testing.assert_allclose(silent.output[1], copies.sum(0), rtol=1e-14)
