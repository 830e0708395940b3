"""The linear solver behind implicit derivatives, against dense solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax._linear_solve import bicgstab


def system(n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    matrix = np.eye(n) - 0.9 * rng.normal(size=(n, n)) / np.sqrt(n) / 2
    return jnp.asarray(matrix, dtype), jnp.asarray(rng.normal(size=n), dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_solves_an_unsymmetric_system(dtype, tolerance):
    matrix, right = system(40, dtype=dtype)
    x, error = bicgstab(lambda v: matrix @ v, right, tolerance=tolerance, max_steps=200)
    assert x.dtype == error.dtype == dtype
    # The true residual is what was asked for, and is what is reported.
    assert float(error) <= tolerance
    residual = np.linalg.norm(matrix @ x - right) / np.linalg.norm(right)
    np.testing.assert_allclose(residual, error, rtol=0.5, atol=tolerance / 10)
    # Condition number about 10.
    np.testing.assert_allclose(x, np.linalg.solve(matrix, right), atol=100 * tolerance)


def test_as_many_steps_as_unknowns_suffice():
    # The recurrence of directions is what makes it so; any descent would get there some day.
    matrix, right = system(6)
    _, error = bicgstab(lambda v: matrix @ v, right, tolerance=1e-12, max_steps=6, rounds=1)
    # Exact but for rounding, which the recurrence amplifies a few thousand times.
    assert float(error) < 1e-10


def test_a_restart_continues_from_the_true_residual():
    matrix, right = system(40)
    errors = [
        float(bicgstab(lambda v: matrix @ v, right, tolerance=1e-12, max_steps=6, rounds=rounds)[1])
        for rounds in (1, 3)
    ]
    assert errors[1] < 1e-2 * errors[0]


def test_a_singular_system_says_so():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    x, error = bicgstab(lambda v: matrix @ v, jnp.ones(3), tolerance=1e-12, max_steps=50)
    # No x does better than leaving the third equation alone: residual 1 of norm sqrt 3.
    assert float(error) > 0.5
    assert np.isfinite(x).all()


def test_nothing_to_solve():
    x, error = bicgstab(lambda v: 2.0 * v, jnp.zeros(3), tolerance=1e-12, max_steps=5)
    assert not x.any()
    assert float(error) == 0.0


def test_rows_of_a_batch_stop_on_their_own():
    matrices, rights = map(jnp.stack, zip(*(system(20, seed) for seed in range(3)), strict=True))
    rights = rights.at[1].set(0.0)

    def solve(matrix, right):
        return bicgstab(lambda v: matrix @ v, right, tolerance=1e-12, max_steps=100)[0]

    for got, matrix, right in zip(jax.vmap(solve)(matrices, rights), matrices, rights, strict=True):
        np.testing.assert_allclose(got, np.linalg.solve(matrix, right), atol=1e-10)
