"""Derivatives of any function against central differences, in few compilations."""

import jax
import jax.numpy as jnp
import numpy as np


def check_derivatives(function, args, *, tolerance, atol=None, step=1e-5, seed=0):
    """Forward and reverse mode and forward over reverse, along one random direction, in float64.

    The output is contracted with random numbers first. Central differences of a step h are off by
    h² times the third derivative and by rounding over h: the tolerance, relative and, without
    `atol`, absolute, is the caller's for functions of their size.
    """
    rng = np.random.default_rng(seed)
    draw = lambda tree: jax.tree.map(lambda x: jnp.asarray(rng.normal(size=jnp.shape(x))), tree)  # noqa: E731
    weights = draw(jax.eval_shape(function, *args))

    def score(args):
        out = jax.tree.leaves(function(*args))
        return sum(jnp.sum(w * x) for w, x in zip(jax.tree.leaves(weights), out, strict=True))

    along = draw(args)

    @jax.jit
    def program(args):
        values, (_, curvature) = jax.jvp(jax.value_and_grad(score), (args,), (along,))
        return values, jax.jvp(score, (args,), (along,))[1], curvature

    ends = [program(jax.tree.map(lambda x, d, h=h: x + h * d, args, along)) for h in (step, -step)]
    slope, bend = jax.tree.map(lambda a, b: (a - b) / (2 * step), ends[0][0], ends[1][0])
    (_, gradient), forward, curvature = program(args)
    close = {"rtol": tolerance, "atol": tolerance if atol is None else atol}
    np.testing.assert_allclose(forward, slope, **close)
    pairs = zip(*map(jax.tree.leaves, (gradient, along)), strict=True)
    np.testing.assert_allclose(sum(jnp.sum(g * d) for g, d in pairs), slope, **close)
    for got, want in zip(*map(jax.tree.leaves, (curvature, bend)), strict=True):
        np.testing.assert_allclose(got, want, **close)
