"""What lifts elementwise trains elementwise: the whole table of primitives."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from klprojax._tracing import ELEMENTWISE, LiftError
from klprojax.lifting import delta_lift, exp_output
from klprojax.lifting.local import quantise
from klprojax.training import SquaredError, projection_slopes
from klprojax.training.network import trace_network
from klprojax.training.network._constraints import SumActivation

from .._networks import quick_jit

ONE = (
    "abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf erf_inv"
    " erfc exp exp2 expm1 floor lgamma log log1p logistic neg round rsqrt sign sin sinh sqrt square"
    " tan tanh"
)
TWO = "add atan2 div max min mul pow rem sub"
COMPARED = "eq ge gt le lt ne"


def choose(mask, x):
    return jnp.where(mask, x, 2 * x)


def product(x):
    return lax.complex(x, x) * lax.complex(x, jnp.full_like(x, 0.3))


# Functions of numbers between 0.2 and 0.8; constants come first and last.
FUNCTIONS: dict[str, Callable] = {
    **{name: getattr(lax, name) for name in ONE.split()},
    **{name: lambda x, f=name: getattr(lax, f)(x, jnp.full_like(x, 0.37)) for name in TWO.split()},
    **{f"{n} 2": lambda x, f=n: getattr(lax, f)(jnp.full_like(x, 0.37), x) for n in TWO.split()},
    **{n: lambda x, f=n: choose(getattr(lax, f)(x, 0.5), x) for n in COMPARED.split()},
    "acosh": lambda x: lax.acosh(x + 1.5),
    "and": lambda x: choose((x > 0.3) & (x < 0.6), x),
    "or": lambda x: choose((x < 0.3) | (x > 0.6), x),
    "xor": lambda x: choose((x < 0.3) ^ (x > 0.6), x),
    "not, two uses": lambda x: (lambda mask: choose(mask, x) * choose(~mask, x))(x < 0.5),
    "is_finite": lambda x: choose(jnp.isfinite(x), x),
    "clamp": lambda x: lax.clamp(0.3, x, 0.6),
    "integer_pow": lambda x: x**3,
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 10) * x,
    "integers": lambda x: x.astype(jnp.int32).astype(x.dtype),
    "real, complex": lambda x: jnp.real(product(x)),
    "imag, conj": lambda x: jnp.imag(jnp.conj(product(x))),
    "copy": lambda x: jnp.array(x, copy=True),
    "stop_gradient": lambda x: x * lax.stop_gradient(x),
    "straight through": lambda x: x + lax.stop_gradient(jnp.round(10 * x) - x),
    "quantise": lambda x: quantise(x, levels=4),
    "softplus": jax.nn.softplus,
    "sinc": jnp.sinc,
}
# Functions of incomplete integrals take long to compile: they are only traced.
SLOW: dict[str, Callable] = {
    "igamma": lambda x: lax.igamma(jnp.full_like(x, 2.0), x),
    "igammac": lambda x: lax.igammac(jnp.full_like(x, 2.0), x),
    "igamma in a": lambda x: lax.igamma(x, jnp.full_like(x, 2.0)),
    "polygamma": lambda x: lax.polygamma(jnp.full_like(x, 1.0), x),
    "betainc": lambda x: lax.betainc(jnp.full_like(x, 0.4), jnp.full_like(x, 1.4), x),
}
# No function of these has a derivative in JAX; a lift refuses them as training does.
WITHOUT = {
    "zeta": lambda x: lax.zeta(x + 2, jnp.full_like(x, 1.5)),
    "nextafter": lambda x: lax.nextafter(x, jnp.full_like(x, 9.0)),
    "igamma_grad_a": lambda x: lax.igamma_grad_a(x, jnp.full_like(x, 2.0)),
}
# What has no equation of its own in a program that JAX traces: made by derivatives, or old names.
UNSEEN = {"add_any", "copy_p"}


class Units(eqx.Module):
    """One function per unit, each of its own parameter times its own input."""

    scales: jax.Array
    functions: tuple = eqx.field(static=True)

    def __call__(self, x):
        units = jnp.unstack(self.scales * x)
        return jnp.stack([f(u) for f, u in zip(self.functions, units, strict=True)])


def units(functions):
    scales = jnp.linspace(0.25, 0.75, len(functions), dtype=jnp.float64)
    return Units(scales, tuple(functions.values())), jnp.outer(jnp.asarray([1.0, 0.9]), scales**0)


def names_in(jaxpr):
    """Primitives of a jaxpr and of those inside it."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            found |= names_in(inner) if hasattr(inner, "eqns") else set()
    return found


def test_every_elementwise_primitive_is_one_constraint():
    functions = FUNCTIONS | SLOW
    model, x = units(functions)
    seen = names_in(jax.make_jaxpr(model)(x[0]).jaxpr)
    seen |= names_in(jax.make_jaxpr(units(WITHOUT)[0])(jnp.ones(len(WITHOUT))).jaxpr)
    assert ELEMENTWISE - seen == UNSEEN
    graph, _ = trace_network(model, x)
    # Carriers (unstack, stack, multiples) apart, each function is one constraint on one value.
    multiples = {"mul", "mul 2", "div"}
    assert len(graph.constraints) == len(functions.keys() - multiples) == len(functions) - 3
    assert all(isinstance(node.rule, SumActivation) for node in graph.constraints)
    assert all(node.rule.arity == 1 for node in graph.constraints)


def test_the_constraints_compute_what_the_functions_compute():
    model, x = units(FUNCTIONS)
    graph, parameters = trace_network(model, x)

    @quick_jit
    def both(parameters):
        values = dict(zip(graph.parameters, parameters, strict=True))
        values.update(zip(graph.given, graph.evaluate_given(x), strict=True))
        for node in graph.nodes:
            values[node.output] = node.rule.apply(*(values[i] for i in node.inputs))
        whole = eqx.tree_at(lambda m: m.scales, model, parameters[0])
        return values[graph.output], jax.vmap(whole)(x)

    got, want = both(parameters)
    np.testing.assert_allclose(got, want, rtol=1e-14)  # the same operations


@pytest.mark.parametrize("name", WITHOUT)
def test_a_primitive_without_derivative_is_named(name):
    model, x = units({name: WITHOUT[name]})
    with pytest.raises(LiftError, match=rf"at test_primitives\.py.*derivative.*'{name}'"):
        trace_network(model, x)
    with pytest.raises(LiftError, match=rf"\({name}\).*'{name}'"):
        delta_lift(lambda m: jnp.sum(m(x[0])), model).sensitivities(exp_output(1.0))


def slopes_and_gradient(model, x, y):
    """Minus the slopes of the parameters at a small ratio, and what jax.grad says."""

    def loss(model):
        return jnp.mean(SquaredError()(jax.vmap(model)(x), y))

    def slopes(model):
        ones = jnp.ones(len(y), y.dtype)
        return projection_slopes(model, x, y, ones, SquaredError(), ratio=1e-7)[0]

    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    @quick_jit
    def both(arrays):
        gradient = jax.grad(lambda a: loss(eqx.combine(a, static)))
        return slopes(eqx.combine(arrays, static)), gradient(arrays)

    found, truth = both(arrays)
    return [-leaf for leaf in jax.tree.leaves(found)], jax.tree.leaves(truth)


class Layouts(eqx.Module):
    """Functions that only the lift knew, and operations on two values of the network."""

    inner: eqx.nn.Linear
    frozen: jax.Array

    def __call__(self, x):
        data, mask = x
        h = self.inner(data)
        a, b = h[:2], h[2:]
        u = jnp.unstack(h)
        functions = jnp.stack(
            [
                jnp.tan(u[0]),
                jnp.arctan2(u[1], 0.5),
                lax.erf_inv(u[2] / 4),
                lax.lgamma(u[3] ** 2 + 1),
            ]
        )
        pairs = [
            a / (2 + b**2),
            b / data[:2],
            jnp.maximum(a, b),
            jnp.minimum(a, b),
            jnp.where(mask, a, b),
        ]
        moved = [
            jnp.cumsum(h),
            h.at[jnp.asarray([2, 0])].set(a, unique_indices=True),
            lax.dynamic_update_slice(h, 3 * b, (1,)),
            jnp.min(h.reshape(2, 2), axis=1),
            lax.stop_gradient(self.frozen) * h + self.frozen,
            lax.stop_gradient(a) * b,
        ]
        return jnp.concatenate([functions, *pairs, *moved])


def test_what_only_the_lift_knew_has_minus_the_gradient_as_slope():
    model = Layouts(eqx.nn.Linear(3, 4, key=jax.random.key(3)), jnp.asarray([0.5, -0.3, 0.2, 1.0]))
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
    rng = np.random.default_rng(8)
    x = jnp.asarray(rng.normal(size=(3, 3))), jnp.asarray(rng.random((3, 2)) < 0.5)
    y = jnp.zeros(jax.eval_shape(jax.vmap(model), x).shape)
    got, want = slopes_and_gradient(model, x, y)
    for mine, truth in zip(got, want, strict=True):
        # O(ratio): 1e-7 times squares of slopes below 10, at two constraints in a row.
        np.testing.assert_allclose(mine, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_values_that_cannot_be_put_together_are_named():
    class Pair(eqx.Module):
        inner: eqx.nn.Linear
        use: Callable = eqx.field(static=True)

        def __call__(self, x):
            return self.use(self.inner(x), self.inner(2 * x))

    x = jnp.ones((2, 3))
    for use, message in [
        (lambda a, b: jnp.where(a > 0, a, b), r"\(select_n\).*conditions that depend on param"),
        (lambda a, b: lax.complex(a, b), r"\(complex\) at test_prim.*values of type complex"),
        (lambda a, b: a > 0, r"reads values of type bool; messages need real numbers"),
        (lambda a, b: a.at[jnp.asarray([0, 0])].set(b[:2]), r"\(scatter\).*unique_indices"),
    ]:
        model = Pair(eqx.nn.Linear(3, 3, key=jax.random.key(0)), use)
        with pytest.raises(LiftError, match=message):
            trace_network(model, x)
