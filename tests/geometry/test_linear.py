"""Linear solves behind implicit derivatives."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.geometry._linear import conjugate_gradient, pseudo_solve, symmetric_solve

from .._derivatives import check_derivatives


def semidefinite(rank, size=6, seed=0):
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    return jnp.asarray(factor @ factor.T)


@pytest.mark.parametrize("rank", [6, 3])
def test_both_solvers_solve_consistent_systems(rank):
    matrix = semidefinite(rank)
    rhs = matrix @ jnp.asarray(np.random.default_rng(1).normal(size=6))

    def matvec(x):
        return matrix @ x

    preconditioner = 1 / jnp.diagonal(matrix)
    for solution in (
        pseudo_solve(matrix, rhs),
        conjugate_gradient(matvec, rhs, preconditioner),
    ):
        # Condition number of the non-null part below 1e4.
        np.testing.assert_allclose(matrix @ solution, rhs, atol=1e-10)


def test_pseudo_solve_does_not_depend_on_units():
    matrix, rhs = semidefinite(6), jnp.arange(6.0)
    units = jnp.asarray(10.0 ** np.arange(-6, 6, 2))
    scaled = pseudo_solve(matrix * jnp.outer(units, units), units * rhs)
    np.testing.assert_allclose(scaled * units, pseudo_solve(matrix, rhs), rtol=1e-9)  # condition


def test_unsolvable_systems_stay_finite():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    rhs = jnp.ones(3)
    np.testing.assert_allclose(pseudo_solve(matrix, rhs), [1.0, 0.5, 0.0], rtol=1e-15)  # exact
    found = conjugate_gradient(lambda x: matrix @ x, rhs, jnp.array([1.0, 0.5, 1.0]))
    assert bool(jnp.isfinite(found).all())


def test_zero_preconditioner_keeps_an_unknown_at_zero():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    found = conjugate_gradient(lambda x: matrix @ x, jnp.ones(3), jnp.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(found, [1.0, 0.5, 0.0], rtol=1e-15)  # exact in one step


def test_symmetric_solve_differentiates_in_matrix_and_right_hand_side():
    matrix, rhs = semidefinite(6), jnp.arange(6.0)

    def solve(matrix, rhs):
        matrix = (matrix + matrix.T) / 2
        solver = partial(conjugate_gradient, preconditioner=jnp.ones(6))
        return symmetric_solve(lambda x: matrix @ x, rhs, solver)

    # Central differences with step 1e-5 through an inverse of norm up to a few hundred.
    scale = float(jnp.linalg.norm(jnp.linalg.inv(matrix)))
    check_derivatives(solve, (matrix + jnp.eye(6), rhs), tolerance=1e-6)
    assert scale < 1e3
