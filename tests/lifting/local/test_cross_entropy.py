"""The proximal step of the softmax cross-entropy: optimal, convergent, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klprojax.lifting.local import cross_entropy_proximal

ROWS, CLASSES = 4, 5
solve = jax.jit(cross_entropy_proximal)


def slope(x, logits, probs, omega):
    """Gradient of the objective in float64."""
    x, logits, probs = (np.asarray(v, np.float64) for v in (x, logits, probs))
    e = np.exp(x - x.max(-1, keepdims=True))
    return float(omega) * (x - logits) + e / e.sum(-1, keepdims=True) - probs


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([0.0, 0.1, 3.0, 30.0, 1000.0]),
    omega=st.sampled_from([1e-4, 1e-2, 0.2, 1.0, 10.0]),
    hard=st.booleans(),
)
def test_the_gradient_vanishes(dtype, seed, size, omega, hard):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(size * rng.uniform(-1, 1, size=(ROWS, CLASSES)), dtype)
    probs = rng.dirichlet(np.ones(CLASSES), ROWS)
    probs = np.eye(CLASSES)[rng.integers(0, CLASSES, ROWS)] if hard else probs
    probs = jnp.asarray(probs, dtype)
    x = solve(logits, probs, jnp.asarray(omega, dtype))
    assert x.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    # The point is stored with rounding eps |x|, which the Hessian (below ω + 1) passes on.
    size_x = 1 + float(jnp.max(jnp.abs(x))) + float(jnp.max(jnp.abs(logits)))
    room = 8 * eps * (1 + omega) * size_x
    omega = float(jnp.asarray(omega, dtype))
    np.testing.assert_allclose(slope(x, logits, probs, omega), 0, atol=room)


def test_it_converges_at_the_step_where_the_frozen_softmax_cycles():
    # λ = 5, precision 0.2: iterating x <- logits - λ (softmax(x) - y) does not converge here.
    logits, probs = jnp.asarray([[4.0, -1.0, 0.5]]), jnp.asarray([[0.0, 1.0, 0.0]])
    frozen = logits
    for _ in range(200):
        frozen = logits - 5 * (jax.nn.softmax(frozen) - probs)
    assert np.abs(slope(frozen, logits, probs, 0.2)).max() > 0.05
    x = solve(logits, probs, 0.2)
    np.testing.assert_allclose(slope(x, logits, probs, 0.2), 0, atol=1e-15)  # rounding near 1


def test_every_row_is_on_its_own_and_may_have_its_own_precision():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 4)) * np.array([[0.1], [5.0], [400.0]]))
    probs = jnp.asarray(np.eye(4)[[1, 2, 0]])
    omega = jnp.asarray([[1e-3], [0.2], [5.0]])
    whole = solve(logits, probs, omega)
    for k in range(3):
        one = solve(logits[k : k + 1], probs[k : k + 1], omega[k])
        # The slowest row decides the number of steps: within rounding over ω.
        np.testing.assert_allclose(whole[k], one[0], atol=1e-12 * (1 + np.abs(one).max()))
    many = jax.jit(jax.vmap(cross_entropy_proximal, (0, 0, 0)))(
        logits[:, None], probs[:, None], omega[:, 0]
    )
    np.testing.assert_allclose(many[:, 0], whole, atol=1e-10)


def test_derivatives_match_finite_differences():
    rng = np.random.default_rng(1)
    logits, probs = jnp.asarray(3 * rng.normal(size=(2, 3))), jnp.asarray(np.eye(3)[[0, 2]])
    d_logits, d_probs = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 3)))

    def move(h):
        return cross_entropy_proximal(logits + h * d_logits, probs + h * d_probs, 0.2 + 0.1 * h)

    forward = jax.jit(jax.jacfwd(move))(jnp.zeros(()))
    backward = jax.jit(jax.jacrev(move))(jnp.zeros(()))
    compiled, h = jax.jit(move), 1e-6
    finite = (compiled(jnp.asarray(h)) - compiled(jnp.asarray(-h))) / (2 * h)
    np.testing.assert_allclose(forward, finite, atol=1e-8)  # eps/(ω h)
    np.testing.assert_allclose(backward, forward, atol=1e-12)


def test_the_derivative_in_the_precision_is_that_of_the_minimiser():
    def of(omega):
        return cross_entropy_proximal(jnp.asarray([[1.0, 2.0]]), jnp.asarray([[1.0, 0.0]]), omega)

    got, h = jax.jacfwd(of)(jnp.asarray(0.2)), 1e-6
    finite = (of(jnp.asarray(0.2 + h)) - of(jnp.asarray(0.2 - h))) / (2 * h)
    np.testing.assert_allclose(got, finite, rtol=1e-7)  # eps/h, and h²


def test_nan_does_not_hang():
    x = solve(jnp.asarray([[jnp.nan, 1.0], [0.0, 1.0]]), jnp.asarray([[1.0, 0.0]] * 2), 0.2)
    assert bool(jnp.all(jnp.isnan(x[0])))
