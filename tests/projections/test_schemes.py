"""`iterate` on a Gaussian space: nearest points, any number of sets, mistakes."""

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.projections import (
    ADMM,
    Cyclic,
    DifferenceMap,
    DouglasRachford,
    Dykstra,
    Gaussians,
    compose,
    iterate,
)

# Two sets in the plane that meet in a curved corner: a disc, and a half-plane. Neither projection
# is linear, so a correction or a reflection of the wrong sign changes every iterate.
NORMAL, OFFSET, RADIUS = np.array([0.6, 0.8]), 0.3, 1.0
START = np.array([1.7, 1.4])


def disc(x):
    return x * (RADIUS / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), RADIUS))


def half_plane(x):
    return x - jnp.maximum(jnp.sum(x * NORMAL) - OFFSET, 0.0) * NORMAL


def nearest():
    """The nearest point of the intersection: on the line and the circle, by hand."""
    along = np.array([-NORMAL[1], NORMAL[0]])
    foot = OFFSET * NORMAL
    reach = np.sqrt(RADIUS**2 - OFFSET**2)
    return foot + np.clip((START - foot) @ along, -reach, reach) * along


def test_dykstra_finds_the_nearest_point_of_the_intersection():
    found = iterate(
        Dykstra(), (disc, half_plane), jnp.asarray(START), space=Gaussians(), tolerance=1e-13
    )
    # Linear convergence stops at the tolerance over one minus its rate.
    np.testing.assert_allclose(found.value, nearest(), atol=1e-10)
    # Without corrections another point of the intersection is found.
    plain = iterate(Cyclic(), (disc, half_plane), jnp.asarray(START), space=Gaussians())
    assert np.abs(plain.value - nearest()).max() > 1e-3


def test_dykstra_takes_any_number_of_sets():
    def box(x):
        return jnp.clip(x, -0.5, 0.5)

    three = iterate(
        Dykstra(),
        (disc, half_plane, box),
        jnp.asarray(START),
        space=Gaussians(),
        tolerance=1e-13,
    )
    # The half-plane's edge meets the box where its first coordinate is 0.5 or less; nearest to the
    # start of those points, by a fine scan of the edge.
    t = np.linspace(-2, 2, 400001)[:, None]
    edge = OFFSET * NORMAL + t * np.array([-NORMAL[1], NORMAL[0]])
    inside = edge[(np.abs(edge) <= 0.5).all(axis=1)]
    want = inside[np.argmin(((inside - START) ** 2).sum(axis=1))]
    # The scan's step is 1e-5.
    np.testing.assert_allclose(three.value, want, atol=2e-5)


def test_numbers_of_projections_that_a_scheme_does_not_take():
    for scheme in (DouglasRachford(), DifferenceMap(), ADMM()):
        with pytest.raises(ValueError, match="takes two projections, got 3; join some of them"):
            iterate(scheme, (disc, half_plane, disc), jnp.asarray(START), space=Gaussians())
    joined = iterate(
        ADMM(), (disc, compose(half_plane, disc)), jnp.asarray(START), space=Gaussians()
    )
    assert bool(joined.converged)


def test_mistakes_are_refused():
    start = jnp.asarray(START)
    with pytest.raises(ValueError, match="max_steps is 0"):
        iterate(Cyclic(), (disc,), start, space=Gaussians(), max_steps=0)
    with pytest.raises(ValueError, match="tolerance is -1"):
        iterate(Cyclic(), (disc,), start, space=Gaussians(), tolerance=-1.0)
    with pytest.raises(ValueError, match="no projections"):
        iterate(Cyclic(), (), start, space=Gaussians())
    with pytest.raises(ValueError, match="beta is 0"):
        DifferenceMap(0.0)
    with pytest.raises(RuntimeError, match="did not come to rest"):
        iterate(Dykstra(), (disc, half_plane), start, space=Gaussians(), max_steps=2)
    short = iterate(
        Dykstra(), (disc, half_plane), start, space=Gaussians(), max_steps=2, throw=False
    )
    assert not bool(short.converged)
    assert int(short.steps) == 2
    counted = iterate(
        Dykstra(), (disc, half_plane), start, space=Gaussians(), max_steps=2, tolerance=0
    )
    assert bool(counted.converged)
