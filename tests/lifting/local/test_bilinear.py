"""The nearest point of `{u = a·w}`: global, feasible, stationary, and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from klprojax.lifting.local import bilinear_multiplier, project_bilinear

from ._brute import bilinear_cost, bilinear_minimum

N = 3
numbers = st.floats(-5, 5, width=32)
vectors = st.lists(numbers, min_size=N, max_size=N).map(np.array)
precisions = st.sampled_from([0.01, 0.3, 1.0, 20.0])


@jax.jit
def solve(a, w, z, omega_a, omega_w, rho):
    return project_bilinear(
        a, w, z, input_precision=omega_a, weight_precision=omega_w, output_precision=rho
    )


@jax.jit
def multiplier(product, squares, misfit, ratio):
    return bilinear_multiplier(product, squares, misfit, ratio)


def arrays(dtype, *values):
    return [jnp.asarray(value, dtype) for value in values]


@given(a=vectors, w=vectors, z=st.floats(-30, 30), oa=precisions, ow=precisions, rho=precisions)
@example(a=np.array([1.0, 2, 0]), w=np.array([1.0, 2, 0]), z=-9.0, oa=1.0, ow=1.0, rho=20.0)
def test_no_descent_from_anywhere_finds_a_nearer_point(a, w, z, oa, ow, rho):
    found = solve(*arrays(jnp.float64, a, w, z, oa, ow, rho))
    point_a, point_w = np.asarray(found.a), np.asarray(found.w)
    cost = bilinear_cost(a, w, z, oa, ow, rho, point_a, point_w)
    best = bilinear_minimum(a, w, z, oa, ow, rho)
    if found.residual < 1e-6:
        # BFGS stops at slopes of 1e-10 (or at rounding), where costs differ by far less than this.
        assert cost <= best + 1e-7 * (1 + abs(best))
        assert cost >= best - 1e-7 * (1 + abs(best))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@given(a=vectors, w=vectors, z=st.floats(-30, 30), oa=precisions, ow=precisions, rho=precisions)
def test_the_point_is_feasible_stationary_and_stays_under_a_second_projection(
    dtype, a, w, z, oa, ow, rho
):
    a, w, z, oa, ow, rho = arrays(dtype, a, w, z, oa, ow, rho)
    found = solve(a, w, z, oa, ow, rho)
    assert {x.dtype for x in found} == {jnp.dtype(dtype)}
    t = float(found.multiplier)
    assert -1 < t < 1
    # a and w are reproduced only as well as 1 - t² is known; so far from the ends rounding stays
    # within this multiple of eps.
    room = float(jnp.finfo(dtype).eps) * 300 / (1 - t * t) ** 2
    size = 1 + sum(float(jnp.sum(x**2)) for x in (found.a, found.w)) + abs(float(found.u))
    if room * size > 0.01:
        return  # too near a degenerate pair for this precision
    size *= 1 + 1 / float(rho)
    assert found.residual <= room * size
    # Lagrange's conditions: ω_a (a* - a) = λ w*, ω_w (w* - w) = λ a*, ρ (z - u*) = λ.
    force = t * float(jnp.sqrt(oa * ow))
    scale = float(1 + oa + ow + rho) * size
    np.testing.assert_allclose(oa * (found.a - a), force * found.w, atol=room * scale)
    np.testing.assert_allclose(ow * (found.w - w), force * found.a, atol=room * scale)
    np.testing.assert_allclose(rho * (z - found.u), force, atol=room * scale)
    again = solve(found.a, found.w, found.u, oa, ow, rho)
    stiff = room * size * float(1 + rho / oa + rho / ow + oa / ow + ow / oa)
    np.testing.assert_allclose(again.a, found.a, atol=stiff)
    np.testing.assert_allclose(again.w, found.w, atol=stiff)
    np.testing.assert_allclose(again.u, found.u, atol=stiff * (1 + 1 / float(rho)))


def exact_root(product, squares, misfit, ratio):
    """Bisection of the increasing function in the multiplier, in extended precision."""
    product, squares, misfit, ratio = map(np.longdouble, (product, squares, misfit, ratio))
    plus, minus = (squares + 2 * product) / 4, (squares - 2 * product) / 4
    low, high = np.longdouble(-1), np.longdouble(1)

    def value(t):
        with np.errstate(divide="ignore", invalid="ignore"):
            up = plus * t * (2 - t) / (1 - t) ** 2 if plus > 0 else np.longdouble(0)
            down = minus * t * (2 + t) / (1 + t) ** 2 if minus > 0 else np.longdouble(0)
        return up + down + t / ratio - misfit

    # Bisection towards 0 keeps relative precision.
    low, high = (np.longdouble(0), high) if misfit > 0 else (low, np.longdouble(0))
    for _ in range(3000):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if value(middle) < 0 else (low, middle)
    return float(middle)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@given(
    squares=st.sampled_from([1e-6, 0.1, 1.0, 37.0, 1e6]),
    share=st.floats(-1, 1),
    misfit=st.sampled_from([1e-12, -3e-7, 1e-3, -0.7, 2.0, -40.0, 1e3, 1e6, -1e6]),
    ratio=st.sampled_from([1e-4, 0.1, 1.0, 100.0]),
)
@example(squares=1e-6, share=1.0, misfit=-40.0, ratio=0.1)
def test_the_multiplier_has_full_relative_precision_at_every_misfit(
    dtype, squares, share, misfit, ratio
):
    product = share * squares / 2
    values = arrays(dtype, product, squares, misfit, ratio)
    t = float(multiplier(*values))
    truth = exact_root(*(float(v) for v in values))
    assert abs(t) < 1
    eps = float(jnp.finfo(dtype).eps)
    if abs(truth) == 1:
        # Where the term of the misfit's sign is 0 there may be no root: the end of the interval.
        assert 1 - abs(t) <= 4 * eps
        return
    # The two sums `squares ± 2 product` are rounded, which near the ends of `share` is all they
    # are: the error of the root they cause is that of the terms. Else a few units of rounding.
    rounding = eps * squares / 2
    up = abs(truth) * (2 - truth) / (1 - truth) ** 2 + abs(truth) * (2 + truth) / (1 + truth) ** 2
    first = squares * (1 - abs(share)) / 4 / (1 - abs(truth)) ** 3 + 1 / ratio
    allowed = (
        8 * eps * min(abs(truth), 1 - abs(truth)) + rounding * up / first + 2 * eps * abs(truth)
    )
    assert abs(t - truth) <= allowed
    np.testing.assert_equal(np.sign(t), np.sign(misfit))


def test_a_tiny_misfit_gives_a_multiplier_with_all_its_digits():
    # To first order t = misfit/(|a|²/2 + |w|²/2 ... ) = misfit / (squares + 1/ratio).
    t = multiplier(*arrays(jnp.float32, 0.7, 3.0, 1e-20, 2.0))
    np.testing.assert_allclose(t, 1e-20 / (3.0 + 0.5), rtol=4 * float(np.finfo(np.float32).eps))
    assert float(multiplier(*arrays(jnp.float64, 0.7, 3.0, 0.0, 2.0))) == 0.0


@pytest.mark.parametrize("z", [1e6, -1e6])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_large_residuals_stay_inside_and_lie_on_the_graph(dtype, z):
    a, w = [0.3, -1.0, 2.0], [0.5, 0.1, -0.4]
    found = solve(*arrays(dtype, a, w, z, 1.0, 1.0, 1.0))
    assert abs(float(found.multiplier)) < 1
    # |a*|² is about |z|, known to eps/(1 - |t|), and 1 - |t| is about 1/sqrt(z).
    relative = 20 * float(jnp.finfo(dtype).eps) * 1e3
    assert float(found.residual) <= relative * abs(z)
    np.testing.assert_allclose(found.a @ found.w, found.u, rtol=relative)


def test_where_no_stationary_point_of_the_form_exists_the_residual_says_so():
    # w = -a: with s = a + w = 0 the product can only grow, so a high target asks for t = 1.
    a = jnp.asarray([1.0, -2.0, 0.5])
    high = solve(a, -a, *arrays(jnp.float64, 40.0, 1, 1, 1))
    assert float(high.residual) > 1
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in high)
    # A low target is reached: -|a*|² with a* along a.
    low = solve(a, -a, *arrays(jnp.float64, -40.0, 1, 1, 1))
    assert float(low.residual) < 1e-12  # rounding of numbers near 40
    zero = jnp.zeros(3)
    origin = solve(zero, zero, *arrays(jnp.float64, 0.0, 1, 1, 1))
    assert all(float(jnp.max(jnp.abs(x))) == 0 for x in origin)
    # A target inside the reach of the output's own precision moves only the output.
    small = solve(zero, zero, *arrays(jnp.float64, 0.25, 1, 1, 1))
    np.testing.assert_array_equal(small.a, zero)
    assert float(small.multiplier) == 0.25


def test_nan_does_not_hang_and_stays_in_its_own_unit():
    misfit = jnp.asarray([1.0, jnp.nan, 1e6, -3.0])
    t = multiplier(jnp.full(4, 0.3), jnp.full(4, 2.0), misfit, jnp.asarray(1.0))
    assert bool(jnp.isnan(t[1]))
    alone = multiplier(
        jnp.full(4, 0.3),
        jnp.full(4, 2.0),
        jnp.where(jnp.isnan(misfit), 0, misfit),
        jnp.asarray(1.0),
    )
    # The others take the same steps, up to how often the loop runs: within rounding of the root.
    np.testing.assert_allclose(t[jnp.array([0, 2, 3])], alone[jnp.array([0, 2, 3])], rtol=1e-14)


def quantity(parts):
    a, w, z, oa, ow, rho = parts
    found = project_bilinear(a, w, z, input_precision=oa, weight_precision=ow, output_precision=rho)
    return jnp.sum(found.a * jnp.arange(1.0, 4)) + jnp.sum(jnp.sin(found.w)) + found.u**2


@pytest.mark.parametrize("z", [0.31, -7.0, 200.0])
def test_derivatives_in_every_argument_match_finite_differences(z):
    parts = arrays(jnp.float64, [0.3, -1.0, 2.0], [0.5, 0.1, -0.4], z, 0.7, 1.9, 0.4)
    tangents = arrays(jnp.float64, [1.0, 0.4, -0.3], [0.2, -1.0, 0.7], 0.5, 0.3, -0.2, 0.6)
    value, slope = jax.jit(lambda p, t: jax.jvp(quantity, (p,), (t,)))(parts, tangents)
    gradient = jax.jit(jax.grad(quantity))(parts)
    back = sum(float(jnp.sum(g * t)) for g, t in zip(gradient, tangents, strict=True))
    np.testing.assert_allclose(back, slope, rtol=1e-12)  # the same terms, summed in another order
    step = 1e-6

    def at(h):
        return float(jax.jit(quantity)([p + h * t for p, t in zip(parts, tangents, strict=True)]))

    # Central differences: error of order step² in relative terms, rounding eps/step.
    np.testing.assert_allclose((at(step) - at(-step)) / (2 * step), slope, rtol=1e-7)
    assert float(value) == pytest.approx(at(0.0), rel=1e-13)


def test_second_derivatives_exist():
    def of_z(z):
        a, w = jnp.asarray([0.3, -1.0]), jnp.asarray([0.5, 0.1])
        return project_bilinear(a, w, z).multiplier

    slope = jax.jit(jax.grad(of_z))
    bend = jax.jit(jax.hessian(of_z))(jnp.asarray(0.8))
    step = 1e-5
    finite = (slope(jnp.asarray(0.8 + step)) - slope(jnp.asarray(0.8 - step))) / (2 * step)
    np.testing.assert_allclose(bend, finite, rtol=1e-7)  # central difference, eps/step + step²


def test_many_units_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(0)
    a, w = rng.normal(size=(5, N)), rng.normal(size=(5, N))
    z = np.array([0.0, 1.0, -30.0, 1e4, 1e-9])
    many = jax.jit(jax.vmap(project_bilinear))(*arrays(jnp.float64, a, w, z))
    for k in range(5):
        one = solve(*arrays(jnp.float64, a[k], w[k], z[k], 1, 1, 1))
        # Each takes as many steps as the slowest: roots within rounding, times 1/(1 - |t|).
        np.testing.assert_allclose(many.a[k], one.a, rtol=1e-11)
        np.testing.assert_allclose(many.multiplier[k], one.multiplier, rtol=1e-13)


def test_the_differential_at_the_forward_point_is_the_layer_rule():
    # Corollary 3.4: pull the output by s, a displacement s/ρ of its target; the slope ω da of the
    # projected inputs tends to s w and that of the weights to s a as ρ/ω tends to 0.
    rng = np.random.default_rng(5)
    a, w = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
    s, ratios = 0.7, (1e-2, 1e-3, 1e-4)
    errors = []
    for ratio in ratios:
        stiff = 1 / ratio

        def project(z, stiff=stiff):
            point = project_bilinear(
                a, w, z, input_precision=stiff, weight_precision=stiff, output_precision=1.0
            )
            return point.a, point.w

        (here_a, here_w), (da, dw) = jax.jvp(project, (a @ w,), (jnp.asarray(s),))
        # At the forward point nothing moves.
        np.testing.assert_allclose(here_a, a, atol=1e-14)  # rounding of float64
        np.testing.assert_allclose(here_w, w, atol=1e-14)
        gap = jnp.concatenate([stiff * da - s * w, stiff * dw - s * a])
        errors.append(float(jnp.abs(gap).max()))
    order = np.polyfit(np.log(ratios), np.log(errors), 1)[0]
    # First order in the ratio; the next order bends the fit by less than a tenth.
    assert 0.9 < order < 1.1
    assert errors[-1] < 1e-3  # ratio times |a|² + |w|², which is below 10
