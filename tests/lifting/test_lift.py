"""The lifted graph itself: structure, addressing, output factors, transformations, errors."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import klprojax.lifting._sweeps as sweeps
from klprojax.lifting import ExpOutput, LiftError, LogOutput, delta_lift, exp_output

# Both sides evaluate the same few local derivatives in another order (float64).
EXACT = 1e-12


def fan_out(tree, x):
    hidden = jnp.tanh(tree["w"] @ x)
    return jnp.sum(hidden**2 * jnp.exp(hidden)) + jnp.sum(hidden * tree["b"])


def example():
    rng = np.random.default_rng(0)
    tree = {"b": jnp.asarray(rng.normal(size=3)), "w": jnp.asarray(rng.normal(size=(3, 2)))}
    return tree, jnp.asarray(rng.normal(size=2))


def gradient(f, *args):
    return jax.grad(f, argnums=tuple(range(len(args))))(*args)


def assert_matches(slopes, expected):
    """The check that Theorem 3.3 holds: what the negative controls must make fail."""
    for got, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=EXACT, atol=EXACT)


# Output factors.


def test_any_positive_output_factor_scales_the_gradient():
    args = example()
    z, grads = fan_out(*args), gradient(fan_out, *args)
    factors = {
        "exp": (exp_output(0.4), 0.4),
        "loss": (exp_output(-1.0), -1.0),
        "plain": (lambda z: 2 + jnp.sin(z), jnp.cos(z) / (2 + jnp.sin(z))),
        "gauss": (lambda z: jnp.exp(-(z**2) / 2), -z),
        "log": (LogOutput(lambda z: -jnp.cosh(z)), -jnp.sinh(z)),
    }
    for phi, c in factors.values():
        sensitivities = delta_lift(fan_out, *args).sensitivities(phi)
        np.testing.assert_allclose(sensitivities.output, c, rtol=EXACT)
        assert_matches(sensitivities.inputs, jax.tree.map(lambda g, c=c: c * g, grads))


@given(
    # Subnormal slopes underflow to zero, as the processor is told to.
    alpha=st.floats(-1e3, 1e3, allow_subnormal=False),
    offset=st.floats(-3e3, 3e3),
)
def test_the_exponential_factor_has_slope_alpha_where_it_over_or_underflows(alpha, offset):
    lift = delta_lift(lambda x: x**2 + offset, jnp.asarray(1.5))
    slope = lift.sensitivities(exp_output(alpha)).inputs[0]
    np.testing.assert_allclose(slope, 3.0 * alpha, rtol=EXACT)


def test_a_factor_given_by_its_logarithm_may_underflow():
    phi = LogOutput(lambda z: -(z**2) / 2)
    lift = delta_lift(lambda x: 100 * x, jnp.asarray(3.0))
    assert phi(lift.output) == 0.0
    np.testing.assert_allclose(lift.sensitivities(phi).inputs[0], -3e4, rtol=EXACT)
    np.testing.assert_allclose(exp_output(2.0)(jnp.asarray(0.5)), np.exp(1.0), rtol=EXACT)


BAD = {
    "changes sign": lambda z: z - 100.0,
    "zero": lambda z: 0.0 * z,
    "overflows": lambda z: jnp.exp(1e4 * z**2),
    "underflows": lambda z: jnp.exp(-1e4 * z**2),
    "not a number": lambda z: jnp.log(-(z**2)),
    "infinite logarithm": LogOutput(lambda z: jnp.log(0.0 * z)),
}


@pytest.mark.parametrize("phi", BAD.values(), ids=BAD)
def test_a_factor_that_is_not_positive_and_finite_is_an_error(phi):
    lift = delta_lift(fan_out, *example())
    with pytest.raises(ValueError, match="must be positive and finite with a finite slope"):
        lift.sensitivities(phi)


def test_a_factor_that_changes_sign_is_an_error_under_jit():
    @jax.jit
    def run(x):
        return delta_lift(lambda x: x**3, x).sensitivities(lambda z: z).inputs[0]

    np.testing.assert_allclose(run(jnp.asarray(2.0)), 3 / 2.0, rtol=EXACT)
    with pytest.raises(Exception, match="must be positive and finite"):
        run(jnp.asarray(-2.0)).block_until_ready()


def test_a_factor_must_return_a_scalar():
    lift = delta_lift(fan_out, *example())
    with pytest.raises(ValueError, match="must map a scalar to a scalar"):
        lift.sensitivities(lambda z: jnp.stack([z, z]))


# Structure and addressing.


def test_one_delta_factor_an_equation():
    lift = delta_lift(lambda x, y: jnp.sum(jax.jit(jnp.sin)(x) * y) * 2, jnp.ones(3), jnp.ones(3))
    assert [f.primitive for f in lift.factors] == ["sin", "mul", "reduce_sum", "mul"]
    mul = lift.factors[1]
    assert [lift.variables[i].name for i in mul.inputs][1] == "args[1]"
    assert set(mul.scope) == {*mul.inputs, *mul.outputs}
    assert mul.active == (0, 1)
    assert lift.variables[mul.outputs[0]].producer == 1
    assert lift.variables[mul.outputs[0]].shape == (3,)
    assert lift.structure.children(lift.structure.inputs[1]) == ((1, 1),)
    assert "sin" in lift.factors[0].path
    np.testing.assert_allclose(lift[1], np.sin(1.0) * np.ones(3), rtol=EXACT)
    np.testing.assert_array_equal(lift["args[1]"], np.ones(3))
    np.testing.assert_allclose(lift.output, 6 * np.sin(1.0), rtol=EXACT)
    assert repr(lift) == "DeltaLift(variables=7, factors=4)"


def test_sensitivities_by_equation_and_path():
    args = example()
    s = delta_lift(fan_out, *args).sensitivities(exp_output(2.0))
    grads = jax.tree.map(lambda g: 2 * g, gradient(fan_out, *args))
    assert_matches(s["args[0]['w']"], grads[0]["w"])
    assert_matches(s["[0]['b']"], grads[0]["b"])
    assert_matches(s["args[1]"], grads[1])
    tanh = next(f.index for f in delta_lift(fan_out, *args).factors if f.primitive == "tanh")
    hidden = jnp.tanh(args[0]["w"] @ args[1])
    expected = 2 * ((2 * hidden + hidden**2) * jnp.exp(hidden) + args[0]["b"])
    np.testing.assert_allclose(s[tanh], expected, rtol=EXACT)
    assert jax.tree.structure(s.inputs) == jax.tree.structure(args)


def test_an_equation_with_several_outputs_gives_a_tuple():
    lift = delta_lift(lambda x: jnp.sum(lax.top_k(x, 2)[0] ** 2), jnp.asarray([3.0, 1.0, 2.0]))
    values, indices = lift[0]
    np.testing.assert_array_equal(values, [3.0, 2.0])
    slopes = lift.sensitivities(exp_output())[0]
    np.testing.assert_array_equal(slopes[0], [6.0, 4.0])
    assert slopes[1] is None
    assert indices.dtype == jnp.int32


def test_messages_at_fan_out_add_up_to_the_slope():
    args = example()
    lift = delta_lift(fan_out, *args)
    s = lift.sensitivities(exp_output(1.0))
    tanh = next(f for f in lift.factors if f.primitive == "tanh")
    messages = s.messages(tanh.outputs[0])
    assert len({m.factor for m in messages}) == 3
    np.testing.assert_allclose(sum(m.slope for m in messages), s[tanh.index], rtol=EXACT)
    for message in messages:
        assert lift.factors[message.factor].inputs[message.position] == tanh.outputs[0]
    assert [m.factor for m in s.messages(lift.structure.outputs[0])] == [-1]


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_dropping_a_message_at_a_fan_out_is_noticed(dropped):
    args = example()
    lift = delta_lift(fan_out, *args)
    s = lift.sensitivities(exp_output(1.0))
    tanh = next(f for f in lift.factors if f.primitive == "tanh")
    messages = [m.slope for m in s.messages(tanh.outputs[0])]
    assert_matches(sum(messages), s[tanh.index])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_matches(sum(m for k, m in enumerate(messages) if k != dropped), s[tanh.index])


def test_a_sweep_that_drops_messages_misses_the_gradient(monkeypatch):
    args = example()
    expected = gradient(fan_out, *args)
    run = jax.jit(lambda *a: delta_lift(fan_out, *a).sensitivities(exp_output(1.0)).inputs)
    assert_matches(run(*args), expected)
    monkeypatch.setattr(sweeps, "product_of_messages", lambda slopes: slopes[0] if slopes else None)
    broken = jax.jit(lambda *a: delta_lift(fan_out, *a).sensitivities(exp_output(1.0)).inputs)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_matches(broken(*args), expected)


def test_transposing_one_weight_misses_the_gradient():
    w, x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3))), jnp.asarray([0.3, -0.2, 0.9])
    f = lambda w, x: jnp.sum(jnp.tanh(w @ x) ** 2)  # noqa: E731
    g = lambda w, x: jnp.sum(jnp.tanh(w.T @ x) ** 2)  # noqa: E731
    assert_matches(delta_lift(f, w, x).sensitivities(exp_output()).inputs, gradient(f, w, x))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_matches(delta_lift(g, w, x).sensitivities(exp_output()).inputs, gradient(f, w, x))


def test_table_and_exports():
    lift = delta_lift(fan_out, *example())
    text = str(lift)
    assert text == lift.table()
    assert "tanh" in text
    assert "args[0]['w'][3,2]" in text
    assert len(text.splitlines()) == len(lift.factors) + 3
    dot = lift.to_dot()
    assert dot.startswith("graph delta_lift {")
    assert dot.endswith("}")
    assert dot.count("shape=box") == len(lift.factors)
    assert dot.count(" -- ") == sum(
        lift.variables[i].kind != "literal" for f in lift.factors for i in f.scope
    )
    traced = []
    jax.jit(lambda *a: traced.append(str(delta_lift(fan_out, *a))) or 0.0)(*example())
    assert "(traced)" in traced[0]


def test_table_of_unusual_values():
    def f(x, key):
        noise = jax.random.normal(jax.random.split(key)[0], x.shape, x.dtype)
        empty = jnp.sum(x[:0])
        return jnp.sum(jnp.where(x > 0, noise, x)) + empty

    text = delta_lift(f, jnp.ones(3), jax.random.key(0), variables=eqx.is_inexact_array).table()
    assert "(key)" in text or "key" in text
    assert "(empty)" in text


def test_networkx_graph():
    networkx = pytest.importorskip("networkx")
    lift = delta_lift(fan_out, *example())
    graph = lift.to_networkx()
    assert graph.number_of_nodes() == len(lift.variables) + len(lift.factors)
    assert graph.number_of_edges() == sum(len(f.inputs) + len(f.outputs) for f in lift.factors)
    assert networkx.is_bipartite(graph)
    assert networkx.is_connected(graph)


# Arguments.


def test_static_parts_and_clamped_arrays():
    mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    x = jnp.ones(2)
    s = delta_lift(lambda mlp, x: mlp(x)[0], mlp, x).sensitivities(exp_output())
    grads = eqx.filter_grad(lambda mlp: mlp(x)[0])(mlp)
    assert_matches(s.inputs[0].layers[0].weight, grads.layers[0].weight)

    def pick(table, index):
        return jnp.sum(table[index] ** 2)

    table, index = jnp.arange(4.0), jnp.asarray([1, 3])
    lift = delta_lift(pick, table, index, variables=eqx.is_inexact_array)
    s = lift.sensitivities(exp_output())
    np.testing.assert_array_equal(s.inputs[0], [0.0, 2.0, 0.0, 6.0])
    assert s.inputs[1] is None
    chosen = delta_lift(lambda a, b: jnp.sum(a * b), table, table + 1, variables=(False, True))
    s = chosen.sensitivities(exp_output())
    assert s.inputs[0] is None
    np.testing.assert_array_equal(s.inputs[1], table)


def test_a_python_float_is_a_variable_where_it_is_a_whole_argument():
    s = delta_lift(lambda x, y: x * jnp.sin(y), 2.0, jnp.asarray(0.5)).sensitivities(exp_output())
    np.testing.assert_allclose(s.inputs[0], np.sin(0.5), rtol=EXACT)


def test_inputs_that_do_not_reach_the_output_get_zeros():
    s = delta_lift(lambda x, y: x**2, jnp.asarray(2.0), jnp.ones(2)).sensitivities(exp_output())
    np.testing.assert_array_equal(s.inputs[1], np.zeros(2))
    s = delta_lift(lambda x: jnp.asarray(3.0), jnp.ones(2)).sensitivities(exp_output())
    np.testing.assert_array_equal(s.inputs[0], np.zeros(2))


def test_numpy_arguments():
    s = delta_lift(lambda x: jnp.sum(x**2), np.arange(3.0)).sensitivities(exp_output())
    np.testing.assert_array_equal(s.inputs[0], [0.0, 2.0, 4.0])


# Transformations.


def test_jit_of_the_bound_method_and_of_the_whole():
    args = example()
    expected = gradient(fan_out, *args)
    lift = delta_lift(fan_out, *args)
    assert_matches(jax.jit(lift.sensitivities)(exp_output(1.0)).inputs, expected)
    assert_matches(jax.jit(lift.sensitivities, static_argnums=0)(jnp.exp).inputs, expected)
    whole = jax.jit(lambda lift, phi: lift.sensitivities(phi))
    assert_matches(whole(lift, ExpOutput(jnp.asarray(1.0))).inputs, expected)
    assert_matches(
        eqx.filter_jit(delta_lift)(fan_out, *args).sensitivities(jnp.exp).inputs, expected
    )


def test_vmap():
    tree, _ = example()
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2)))
    expected = jax.vmap(lambda x: gradient(fan_out, tree, x))(xs)
    got = jax.vmap(lambda x: delta_lift(fan_out, tree, x).sensitivities(jnp.exp).inputs)(xs)
    assert_matches(got, expected)
    lift = delta_lift(fan_out, tree, xs[0])
    moved = jax.jit(jax.vmap(lambda x: lift.at(tree, x).sensitivities(exp_output()).inputs))(xs)
    assert_matches(moved, expected)


def test_slopes_can_be_differentiated():
    def slope(x):
        return (
            delta_lift(lambda x: jnp.sum(jnp.sin(x) ** 3), x).sensitivities(exp_output()).inputs[0]
        )

    x = jnp.asarray([0.3, 0.8])
    expected = jax.hessian(lambda x: jnp.sum(jnp.sin(x) ** 3))(x)
    assert_matches(jax.jacobian(slope)(x), expected)
    assert_matches(jax.jacfwd(slope)(x), expected)


def test_new_arguments_do_not_trace_the_function_again():
    calls = []

    def f(x):
        calls.append(None)
        return jnp.sum(x**3)

    lift = delta_lift(f, jnp.ones(2))
    moved = lift.at(jnp.asarray([2.0, 3.0]))
    assert len(calls) == 1
    np.testing.assert_allclose(moved.output, 35.0, rtol=EXACT)
    assert_matches(moved.sensitivities(exp_output()).inputs[0], jnp.asarray([12.0, 27.0]))


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_random_expressions(seed):
    """Random graphs of smooth unary and binary functions with much fan-out."""
    rng = np.random.default_rng(seed)
    unary = [jnp.sin, jnp.tanh, lambda x: x**2 / 4, lambda x: jnp.exp(-(x**2)), jnp.arctan]
    binary = [jnp.add, jnp.subtract, jnp.multiply, jnp.hypot]
    plan = [
        (int(rng.integers(0, 2)), int(rng.integers(0, 4)), *map(int, rng.integers(0, k + 2, 2)))
        for k in range(12)
    ]

    def f(x, y):
        nodes = [x, y]
        for arity, op, i, j in plan:
            nodes.append(unary[op](nodes[i]) if arity == 0 else binary[op](nodes[i], nodes[j]))
        return jnp.sum(jnp.tanh(sum(nodes)))

    x, y = jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=2))
    got = delta_lift(f, x, y).sensitivities(exp_output(-1.0)).inputs
    expected = jax.tree.map(jnp.negative, gradient(f, x, y))
    for a, b in zip(got, expected, strict=True):
        # 24 factors; entries up to 1e3, so rounding reaches 1e-12 of the largest entry.
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


# Functions without a lift.


def test_output_that_is_no_scalar():
    with pytest.raises(LiftError, match=r"equation 0 \(mul\): the function must return one real"):
        delta_lift(lambda x: x * 2, jnp.ones(3))
    with pytest.raises(LiftError, match="must return one real scalar"):
        delta_lift(lambda x: (jnp.sum(x), jnp.sum(x)), jnp.ones(3))
    with pytest.raises(LiftError, match="must return one real scalar"):
        delta_lift(lambda x: jnp.sum(x.astype(int)), jnp.ones(3))


def signed(x):
    if x > 0:
        return x
    return -x


ASKING = {  # what asks for the number, the advice
    "branch": (lambda x: signed(x), "TracerBoolConversionError.*jnp.where or lax.cond"),
    "maximum": (lambda x: max(x, 0.0), "jnp.maximum"),
    "float": (lambda x: x * float(x), r"ConcretizationTypeError.*in place of float\(\)"),
    "math": (lambda x: math.sqrt(x), "ConcretizationTypeError.*and math"),
    "numpy": (lambda x: np.sin(x), "TracerArrayConversionError.*jax.numpy in place of numpy's"),
    "numpy array": (lambda x: np.zeros(2).__setitem__(0, x), "ConcretizationTypeError"),
    "mask": (lambda x: jnp.sum(x[x > 0]), r"NonConcreteBoolean.*jnp.where\(mask, x, 0\)"),
    "list": (lambda x: [1.0, 2.0][x.astype(int)], "TracerIntegerConv.*jnp.asarray of a list"),
    "shape": (lambda x: jnp.sum(jnp.ones(4)[: x.astype(int)]), "IndexError.*known Python integ"),
    "format": (lambda x: x * len(f"{x:.3f}"), "TypeError"),
    "key": (lambda x: {1.0: x}[x], "TypeError"),
}


@pytest.mark.parametrize("name", ASKING)
def test_python_that_asks_for_a_number_is_named_with_its_line(name):
    f, advice = ASKING[name]
    place = r"^test_lift\.py:\d+: the function asks in Python for the value of a traced number"
    with pytest.raises(LiftError, match=f"{place}.*{advice}") as caught:
        delta_lift(f, jnp.asarray(1.0))
    line = (signed if name == "branch" else f).__code__.co_firstlineno + (name == "branch")
    assert caught.value.equation == f"test_lift.py:{line}"
    assert caught.value.__cause__ is not None
    if name == "branch":
        assert "`if x > 0:`" in str(caught.value)
        for inside in (jax.jit, jax.jacfwd):
            with pytest.raises(LiftError, match=place):
                inside(lambda x: delta_lift(f, x).sensitivities(exp_output(1.0)).inputs[0])(1.0)
        with pytest.raises(LiftError, match=r"test_lift\.py:\d+: the output factor phi asks"):
            delta_lift(jnp.sin, 1.0).sensitivities(lambda z: math.exp(z))


def test_errors_of_the_function_itself_stay_what_they_are():
    def wrong(x):
        raise TypeError("of my own")

    with pytest.raises(TypeError, match="of my own"):
        delta_lift(wrong, 1.0)
    with pytest.raises(TypeError, match="unsupported operand"):
        delta_lift(lambda x: x + None, 1.0)


def test_integer_inputs():
    with pytest.raises(LiftError, match=r"args\[1\]\['n'\] has the type int64"):
        delta_lift(lambda x, d: jnp.sum(x) * d["n"], jnp.ones(3), {"n": jnp.asarray(2)})
    with pytest.raises(LiftError, match=r"args\[0\] has the type int64"):
        delta_lift(lambda n: n * jnp.ones(()), 3)
    with pytest.raises(LiftError, match=r"args\[0\] has the type int64"):
        delta_lift(lambda n: n * 1.0, jnp.asarray(3), variables=True)
    with pytest.raises(LiftError, match="no argument is an array of floats"):
        delta_lift(lambda d: jnp.asarray(d["x"]), {"x": 2.0})
    with pytest.raises(LiftError, match=r"args\[0\] is a str, not an array of floats"):
        delta_lift(lambda s, x: x, "a", jnp.asarray(1.0), variables=lambda leaf: True)


def test_variables_must_be_a_prefix():
    with pytest.raises(ValueError, match="a pytree of bools that is a prefix"):
        delta_lift(lambda x, y: x * y, 1.0, 2.0, variables=(True, (True, False)))


def test_side_effects():
    def printing(x):
        y = jnp.sin(x)
        jax.debug.print("{}", y)
        return y

    with pytest.raises(LiftError, match=r"equation 1 \(debug_\w+\): it has side effects"):
        delta_lift(printing, jnp.asarray(1.0))

    def inside(x):
        def step(c, _):
            jax.debug.print("{}", c)
            return c * x, None

        return lax.scan(step, x, length=2)[0]

    with pytest.raises(LiftError, match=r"equation 0 \(scan\): it has side effects"):
        delta_lift(inside, jnp.asarray(1.0))


def test_callback_without_rule():
    def f(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), x.dtype), x**2)

    with pytest.raises(LiftError, match=r"equation 1 \(pure_callback\): a callback has no"):
        delta_lift(f, jnp.asarray(1.0))


def test_while_loop_without_rule():
    def f(x):
        return lax.while_loop(lambda y: y < 10, lambda y: y * 2, jnp.sin(x))

    with pytest.raises(LiftError, match=r"equation 1 \(while\): messages must pass down"):
        delta_lift(f, jnp.asarray(1.0))

    def inside(x):
        return lax.scan(lambda c, _: (f(c), None), x, length=2)[0]

    with pytest.raises(LiftError, match=r"equation 0 \(scan\) > equation 1 \(while\)") as caught:
        delta_lift(inside, jnp.asarray(1.0))
    assert caught.value.equation == "equation 0 (scan) > equation 1 (while)"
    assert "lax.custom_root" in caught.value.reason


def test_while_loop_off_the_messages_path_is_evaluated():
    def f(x):
        count = lax.while_loop(lambda k: k * x < 10, lambda k: k + 1, 0)
        return x**2 * count.astype(x.dtype)

    s = delta_lift(f, jnp.asarray(1.5)).sensitivities(exp_output())
    np.testing.assert_allclose(s.inputs[0], 2 * 1.5 * 7, rtol=EXACT)


def test_a_primitive_without_a_rule_is_named():
    @jax.custom_vjp
    def broken(x):
        return 2 * x

    def backward(_, slope):
        raise NotImplementedError("no slope")

    broken.defvjp(lambda x: (2 * x, None), backward)
    lift = delta_lift(lambda x: jnp.sin(broken(x)), jnp.asarray(1.0))
    with pytest.raises(LiftError, match=r"equation 0 \(custom_vjp_call\).*no slope"):
        lift.sensitivities(exp_output())


def test_wrong_keys():
    lift = delta_lift(fan_out, *example())
    with pytest.raises(ValueError, match=r"no input 'w'; the inputs are args\[0\]\['b'\]"):
        lift["w"]
    with pytest.raises(ValueError, match="there is no equation 99"):
        lift[99]
    with pytest.raises(ValueError, match="there is no variable 999"):
        lift.sensitivities(exp_output()).messages(999)


def test_other_arguments_must_look_alike():
    lift = delta_lift(lambda t, x: jnp.sum(t[0] * x), (jnp.ones(2), "a"), jnp.ones(2))
    with pytest.raises(ValueError, match="the function was lifted at"):
        lift.at((jnp.ones(2), "a"), (jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="static part 'b'"):
        lift.at((jnp.ones(2), "b"), jnp.ones(2))
    with pytest.raises(ValueError, match=r"args\[1\] has shape \(3,\)"):
        lift.at((jnp.ones(2), "a"), jnp.ones(3))
