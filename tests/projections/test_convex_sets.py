"""Schemes on two convex sets of the plane, where corrections and reflections decide.

On graphs of relu and on consensus, which are pieces of planes, a correction is normal to its piece
and mostly without effect; on curved sets every sign counts.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.projections import ADMM, DifferenceMap, DouglasRachford, Dykstra, Gaussians
from tests.reference import dykstra

LOW, HIGH = np.array([-0.5, 0.1]), np.array([0.3, 2.0])
NORMAL, OFFSET = np.array([0.6, 0.8]), 0.5


def disc(x):
    return x / max(1.0, np.hypot(*x))


def box(x):
    return np.clip(x, LOW, HIGH)


def half_plane(x):
    return x - max(0.0, NORMAL @ x - OFFSET) * NORMAL


def run(scheme, sets, start, count):
    """The points that the scheme reads out after each of its iterations."""
    projections = [
        lambda x, project=project: jnp.asarray(project(np.asarray(x))) for project in sets
    ]
    state, out = scheme.init(Gaussians(), projections, jnp.asarray(start)), []
    for _ in range(count):
        state = scheme.step(Gaussians(), projections, state)
        out.append(np.asarray(scheme.read(state)))
    return np.array(out)


# Nearest points of the intersections. Disc and half-plane: the corner (1, 0) turned by the angle of
# the normal less acos of the offset. Disc and box: where the circle meets the right edge.
ANGLE = np.arctan2(NORMAL[1], NORMAL[0]) - np.arccos(OFFSET)
CORNER = np.array([np.cos(ANGLE), np.sin(ANGLE)])
EDGE = np.array([0.3, np.sqrt(1 - 0.3**2)])
PAIRS = {
    "disc, half-plane": ((disc, half_plane), np.array([2.0, 0.4]), CORNER),
    "half-plane, disc": ((half_plane, disc), np.array([2.0, 0.4]), CORNER),
    "disc, box": ((disc, box), np.array([1.5, 2.0]), EDGE),
    "box, disc": ((box, disc), np.array([1.5, 2.0]), EDGE),
}
SCHEMES = {
    "Dykstra": (Dykstra(), dykstra.dykstra, ()),
    "Douglas-Rachford": (DouglasRachford(), dykstra.rrr, (1.0,)),
    "Douglas-Rachford, relaxed": (DouglasRachford(relaxation=0.8), dykstra.rrr, (1.6,)),
    "difference map": (DifferenceMap(), dykstra.difference_map, (1.0,)),
    "difference map, -0.7": (DifferenceMap(beta=-0.7), dykstra.difference_map, (-0.7,)),
    "ADMM": (ADMM(), dykstra.admm, ()),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", SCHEMES)
def test_iterates_are_those_of_the_published_recursion(name, pair):
    scheme, formula, options = SCHEMES[name]
    sets, start, _ = PAIRS[pair]
    got = run(scheme, sets, start, 12)
    # The same dozen operations in another order: roundings of 1e-16 each.
    want = list(itertools.islice(formula(sets, start, *options), 12))
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.parametrize("pair", PAIRS)
def test_dykstra_finds_the_nearest_point_of_the_intersection(pair):
    sets, start, nearest = PAIRS[pair]
    # What is left is a sum, with positive weights, of the outward normals of the two sets there.
    edge = NORMAL if half_plane in sets else np.array([1.0, 0.0])
    assert (np.linalg.solve(np.stack([nearest, edge], 1), start - nearest) > 0.1).all()
    got = run(Dykstra(), sets, start, 60)
    # Both constraints are active, where Dykstra's algorithm converges linearly.
    np.testing.assert_allclose(got[-1], nearest, atol=1e-10)
    # Alternating projections, without corrections, end elsewhere.
    x = start
    for _ in range(60):
        x = sets[1](sets[0](x))
    assert np.abs(x - nearest).max() > 1e-3


@pytest.mark.parametrize("pair", ["disc, half-plane", "box, disc"])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "Dykstra"])
def test_fixed_points_stand_for_a_point_of_both_sets(name, pair):
    scheme, _, _ = SCHEMES[name]
    sets, start, _ = PAIRS[pair]
    got = run(scheme, sets, start, 30)
    x = got[-1]
    if isinstance(scheme, DouglasRachford):
        x = sets[0](x)
    elif isinstance(scheme, DifferenceMap):
        x = sets[0](sets[1](x) + (sets[1](x) - x) / scheme.beta)
    for project in sets:
        np.testing.assert_allclose(project(x), x, atol=1e-8)
