"""Theorem 3.3 on a function of one's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from klprojax.checks import check_function
from klprojax.lifting import LiftError, delta_lift, exp_output


def run(function, *args, **options):
    notes = []
    checks = list(check_function(function, *args, note=notes.append, **options))
    return {check.name.removeprefix("function: "): check for check in checks}, notes


def smooth(tree, x):
    return jnp.sum(jnp.tanh(tree["w"] @ x) ** 2) + jnp.sum(x) * tree["b"]


def example(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    tree = {"w": jnp.asarray(rng.normal(size=(3, 2)), dtype), "b": jnp.asarray(0.3, dtype)}
    return tree, jnp.asarray(rng.normal(size=2), dtype)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_smooth_function(dtype):
    checks, notes = run(smooth, *example(dtype))
    assert list(checks) == ["tables", "differences", "gradient"]
    assert not notes
    for check in checks.values():
        assert check.as_expected, check
        assert check.statement == "Theorem 3.3"
        # The tolerances that the comparisons estimate for themselves are of some use.
        assert check.tolerance < (1e-5 if dtype == jnp.float64 else 1e-2)


@jax.custom_jvp
def mistaken(x):
    return jnp.sin(x)


# Right but for one per cent.
mistaken.defjvp(lambda x, t: (jnp.sin(x[0]), 1.01 * jnp.cos(x[0]) * t[0]))


def test_a_wrong_rule_is_noticed_by_all_but_the_referee():
    checks, _ = run(mistaken, jnp.asarray(0.3))
    # jax.grad uses the same rule, which is why it is no more than a referee.
    assert checks["gradient"].holds
    for name in ("tables", "differences"):
        assert not checks[name].holds
        assert checks[name].residual == pytest.approx(0.01, rel=0.05)  # of 1 or of 1.01


def test_a_kink_at_the_point_is_noticed():
    checks, _ = run(lambda x: jax.nn.relu(x), jnp.zeros(()))
    assert not checks["tables"].holds
    assert not checks["differences"].holds


def test_arguments_that_are_no_variables():
    mlp = eqx.nn.MLP(2, 1, 4, 1, jnp.tanh, key=jax.random.key(0))
    f = lambda mlp, scale, x: scale * mlp(x)[0]  # noqa: E731
    checks, _ = run(f, mlp, 2.0, jnp.asarray([0.2, -0.4]), table_limit=0)
    assert len(checks) == 2
    assert all(check.holds for check in checks.values())


def test_arguments_are_those_of_delta_lift():
    w, x = jnp.asarray([[0.5, -1.0]]), jnp.asarray([0.3, 1.2])
    f = lambda w, x, n: jnp.sum(jnp.tanh(w @ x)) ** n  # noqa: E731
    lift = delta_lift(f, w, x, 2, variables=(True, False, False))
    slopes = lift.sensitivities(exp_output(1.0)).inputs
    assert slopes[1] is None
    checks = {
        check.name: check
        for check in check_function(f, w, x, 2, variables=(True, False, False), name="f")
    }
    assert list(checks) == ["f: tables", "f: differences", "f: gradient"]
    assert all(check.holds for check in checks.values())
    # One argument that is a tuple is one argument.
    pair = lambda wx: jnp.sum(jnp.tanh(wx[0] @ wx[1]))  # noqa: E731
    assert all(check.holds for check in check_function(pair, (w, x), table_limit=0))


def test_complex_arguments():
    def f(z):
        return jnp.sum(jnp.real(z * z) + jnp.imag(z))

    checks, _ = run(f, jnp.asarray([0.3 + 0.2j, -1.0 + 0.5j]))
    assert checks["differences"].holds
    assert checks["gradient"].holds


def test_functions_without_tables():
    checks, notes = run(lambda x: jnp.sort(x)[0] ** 2, jnp.asarray([0.5, 2.0]))
    assert list(checks) == ["differences", "gradient"]
    assert "sort" in notes[0]
    checks, notes = run(smooth, *example(), table_limit=10)
    assert list(checks) == ["differences", "gradient"]
    assert "more than 10" in notes[0]
    checks, notes = run(lambda x: jnp.log(x), jnp.asarray(1e-5))
    assert "not finite within the spacing" in notes[0]


def test_functions_without_a_gradient():
    def f(x):
        return jax.lax.while_loop(lambda y: y < 10, lambda y: y * x, x)

    with pytest.raises(LiftError, match=r"equation 0 \(while\)"):
        run(f, jnp.asarray(2.0))
    with pytest.raises(LiftError, match="must return one real scalar"):
        run(lambda x: x, jnp.ones(2))
    with pytest.raises(LiftError, match=r"^test_user_function\.py:\d+: the function asks in Pyt"):
        run(lambda x: x if x > 0 else -x, jnp.asarray(2.0))
    with pytest.raises(ValueError, match="g cannot be traced: TypeError"):
        run(lambda x, y: x * y, jnp.asarray(2.0), name="g")


def test_a_constant_function():
    checks, _ = run(lambda x: 0.0 * x + 2.0, jnp.asarray(1.5))
    assert len(checks) == 3
    assert all(check.holds for check in checks.values())
