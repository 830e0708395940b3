"""Theorem 3.3 on varied functions: downward jets against `jax.grad`, which is only the referee."""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from jax import lax

from klprojax.lifting import delta_lift, exp_output

FUNCTIONS = {}


def case(make):
    """Register `make(float dtype) -> (f, args)`."""
    FUNCTIONS[make.__name__] = make
    return make


def normal(seed, shape, dtype, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


@case
def fan_out_chain(dtype):
    def f(x):
        y = jnp.sin(x) * x
        return y * jnp.exp(y) + x / (y + 2)

    return f, (jnp.asarray(0.7, dtype),)


@case
def pytree_arguments(dtype):
    def f(tree, scale):
        return scale * jnp.sum(tree["a"] ** 3) + jnp.vdot(tree["b"][0], tree["b"][1]) / scale

    tree = {"a": normal(0, (3, 2), dtype), "b": [normal(1, (4,), dtype), normal(2, (4,), dtype)]}
    return f, (tree, jnp.asarray(1.3, dtype))


@case
def equinox_mlp(dtype):
    mlp = cast(eqx.nn.MLP(5, 3, 16, 3, activation=jax.nn.gelu, key=jr.key(0)), dtype)
    x, y = normal(0, (7, 5), dtype), normal(1, (7, 3), dtype)
    return lambda mlp, x: jnp.mean((jax.vmap(mlp)(x) - y) ** 2), (mlp, x)


class CNN(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.Linear

    def __init__(self, key):
        k1, k2 = jr.split(key)
        self.conv = eqx.nn.Conv2d(2, 4, 3, padding=1, key=k1)
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.head = eqx.nn.Linear(4 * 4 * 4, 3, key=k2)

    def __call__(self, x):
        return self.head(self.pool(jax.nn.relu(self.norm(self.conv(x)))).reshape(-1))


@case
def equinox_cnn(dtype):
    cnn = cast(CNN(jr.key(1)), dtype)
    labels = jnp.asarray([0, 2, 1])

    def f(cnn, x):
        logits = jax.vmap(cnn)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return f, (cnn, normal(3, (3, 2, 8, 8), dtype))


@case
def gru_over_scan(dtype):
    cell = cast(eqx.nn.GRUCell(3, 6, key=jr.key(2)), dtype)

    def f(cell, xs):
        def step(h, x):
            h = cell(x, h)
            return h, jnp.sum(h**2)

        h, norms = lax.scan(step, jnp.zeros(6, dtype), xs)
        return jnp.sum(jnp.sin(h)) + jnp.mean(norms)

    return f, (cell, normal(4, (9, 3), dtype))


class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        k1, k2 = jr.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=k1)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8)
        self.mlp = eqx.nn.MLP(8, 8, 16, 1, activation=jax.nn.silu, key=k2)

    def __call__(self, x):
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y, mask=jnp.tril(jnp.ones((6, 6), bool)))
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))


@case
def transformer_block(dtype):
    block = cast(Block(jr.key(3)), dtype)
    return lambda block, x: jnp.mean(jnp.cos(block(x))), (block, normal(5, (6, 8), dtype))


@case
def cholesky_log_determinant(dtype):
    def f(a):
        return jnp.sum(
            jnp.log(jnp.diag(jnp.linalg.cholesky(a @ a.T + 3 * jnp.eye(5, dtype=dtype))))
        )

    return f, (normal(6, (5, 5), dtype),)


@case
def fourier_power(dtype):
    def f(x):
        z = jnp.fft.rfft(x)
        z = z * jnp.exp(jnp.asarray(0.3j, z.dtype))
        return jnp.sum(jnp.log1p(jnp.abs(z) ** 2)) + jnp.sum(jnp.real(z) ** 3)

    return f, (normal(7, (16,), dtype),)


@case
def sort_and_gather(dtype):
    def f(x):
        order = jnp.argsort(x[::-1])
        weights = jnp.arange(10, dtype=dtype)
        return jnp.dot(weights, jnp.sort(x) ** 2) + jnp.sum(x[order[2:7]] ** 3) + jnp.median(x)

    return f, (normal(8, (10,), dtype),)


@case
def diffrax_ode(dtype):
    mlp = cast(eqx.nn.MLP(2, 2, 8, 1, activation=jnp.tanh, key=jr.key(4)), dtype)
    stamps = jnp.linspace(0, 1, 4, dtype=dtype)

    def f(mlp, y0):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: args(y)),
            diffrax.Heun(),
            t0=stamps[0],
            t1=stamps[-1],
            dt0=jnp.asarray(0.1, dtype),
            y0=y0,
            args=mlp,
            saveat=diffrax.SaveAt(ts=stamps),
        )
        return jnp.sum(solution.ys**2)

    return f, (mlp, jnp.asarray([0.5, -1.0], dtype))


@case
def masked_logsumexp(dtype):
    mask = jnp.asarray([[True, False, True], [False, True, True]])

    def f(x):
        masked = jnp.where(mask, x, -jnp.inf)
        return jnp.sum(jax.nn.logsumexp(masked, axis=1)) + jax.scipy.special.logsumexp(masked)

    return f, (normal(9, (2, 3), dtype),)


@case
def newton_solve_with_custom_rule(dtype):
    def newton(a):
        def step(state):
            y, _ = state
            new = y - (y**3 + y - a) / (3 * y**2 + 1)
            return new, jnp.abs(new - y)

        start = (jnp.zeros_like(a), jnp.full_like(a, jnp.inf))
        return lax.while_loop(lambda s: s[1] > 1e-6, step, start)[0]

    @jax.custom_vjp
    def root(a):
        return newton(a)

    def backward(y, slope):
        return (slope / (3 * y**2 + 1),)

    root.defvjp(lambda a: (root(a),) * 2, backward)
    return lambda a: jnp.sin(root(a)) * a, (jnp.asarray(1.7, dtype),)


@case
def user_custom_vjp(dtype):
    # The user's rule is deliberately not the true derivative: the lift must take it as it is.
    @partial(jax.custom_vjp, nondiff_argnums=(1,))
    def clip_gradient(x, limit):
        return x

    def backward(limit, _, slope):
        return (jnp.clip(slope, -limit, limit),)

    clip_gradient.defvjp(lambda x, limit: (x, None), backward)
    return lambda x: jnp.sum(clip_gradient(x**2, 0.9) ** 2), (normal(10, (5,), dtype),)


@case
def user_custom_jvp(dtype):
    @jax.custom_jvp
    def log1pexp(x):
        return jnp.log(1 + jnp.exp(x))

    @log1pexp.defjvp
    def _(primals, tangents):
        return log1pexp(*primals), jax.nn.sigmoid(primals[0]) * tangents[0]

    return lambda x: jnp.sum(log1pexp(x) * x), (normal(11, (4,), dtype, 3.0),)


@case
def remat_of_layers(dtype):
    def f(ws, x):
        for w in ws:
            x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(w, x)
        return jnp.sum(x**2)

    return f, ([normal(i, (4, 4), dtype) for i in range(3)], normal(12, (2, 4), dtype))


@case
def nested_scans(dtype):
    def f(a, xs):
        def outer(c, x):
            d, ys = lax.scan(lambda d, v: (d * jnp.cos(v * a), d + v), c, x, reverse=True)
            return jnp.sin(d) + c, ys

        c, ys = lax.scan(outer, jnp.asarray(0.5, dtype), xs)
        return c + jnp.sum(ys**2)

    return f, (jnp.asarray(0.8, dtype), normal(13, (4, 5), dtype))


@case
def fori_loop_with_integer_carry(dtype):
    def f(x):
        def body(i, carry):
            y, k = carry
            return y + x[k] * jnp.sin(y), (k + 2) % 5

        return lax.fori_loop(0, 7, body, (x[0], jnp.asarray(0)))[0]

    return f, (normal(14, (5,), dtype),)


@case
def scan_with_random_keys(dtype):
    def f(x):
        def step(carry, key):
            noise = jr.normal(key, (3,), dtype)
            return jnp.tanh(carry * noise) + carry, None

        return jnp.sum(lax.scan(step, x, jr.split(jr.key(0), 4))[0])

    return f, (normal(15, (3,), dtype),)


@case
def branches(dtype):
    def f(x):
        y = lax.cond(x[0] > 0, lambda x: jnp.sin(x) * x, lambda x: x**2, x)
        z = lax.switch(2, [lambda a, b: a, lambda a, b: b, lambda a, b: a * b], y[0], y[1])
        return z + lax.cond(x[1] > 100, lambda: y[2] ** 2, lambda: y[0] * x[3])

    return f, (jnp.asarray([0.3, -0.8, 1.1, 2.0], dtype),)


@case
def convolution_and_pooling(dtype):
    def f(x, w):
        y = lax.conv_general_dilated(x, w, (2, 1), "SAME", rhs_dilation=(1, 2))
        return jnp.sum(lax.reduce_window(y, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "VALID"))

    return f, (normal(16, (2, 3, 6, 6), dtype), normal(17, (4, 3, 3, 3), dtype))


@case
def linear_algebra(dtype):
    def f(a, b):
        s = a @ a.T + jnp.eye(4, dtype=dtype)
        u, d, _ = jnp.linalg.svd(a, full_matrices=False)
        return (
            jnp.linalg.slogdet(s)[1]
            + jnp.sum(jnp.linalg.solve(s, b) ** 2)
            + jnp.sum(jnp.linalg.eigh(s)[0] ** 2)
            + jnp.sum(d)
            + jnp.sum(u[:, 0] ** 2 * d[0])
        )

    return f, (normal(18, (4, 4), dtype), normal(19, (4,), dtype))


@case
def matrix_exponential(dtype):
    return lambda a: jnp.trace(jax.scipy.linalg.expm(a)), (normal(20, (3, 3), dtype, 0.5),)


@case
def scatter_and_segments(dtype):
    index = jnp.asarray([0, 2, 2, 1, 0])

    def f(x, y):
        z = jnp.zeros(4, dtype).at[index].add(x**2).at[1].mul(y[0]).at[3].set(y[1] ** 2)
        return jnp.sum(z**2) + jnp.max(jax.ops.segment_sum(x, index, 3)) + jnp.prod(y)

    return f, (normal(21, (5,), dtype), normal(22, (3,), dtype))


@case
def cumulative_and_windows(dtype):
    def f(x):
        y = jnp.cumsum(x) * jnp.cumprod(x) + lax.cummax(x) + lax.cumlogsumexp(x)
        return jnp.sum(lax.dynamic_slice(y, (jnp.argmax(x) % 3,), (4,)) ** 2) + jnp.sum(x[::2] ** 2)

    return f, (normal(23, (8,), dtype),)


@case
def associative_scan(dtype):
    def f(a, b):
        combine = lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1])  # noqa: E731
        return jnp.sum(lax.associative_scan(combine, (a, b))[1] ** 2)

    return f, (normal(24, (9,), dtype), normal(25, (9,), dtype))


@case
def einsum_and_vmap(dtype):
    def f(a, b, c):
        inner = jax.vmap(lambda x, y: jnp.outer(x, y), in_axes=(0, None))(a, c)
        return jnp.einsum("ij,jk,ki->", a, b, b.T @ a.T @ a @ a.T) + jnp.sum(inner**2)

    return f, (normal(26, (3, 4), dtype), normal(27, (4, 2), dtype), normal(28, (2,), dtype))


@case
def gaussian_log_density(dtype):
    def f(x, mean, root):
        covariance = root @ root.T + jnp.eye(3, dtype=dtype)
        return jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance)

    return f, (normal(29, (3,), dtype), normal(30, (3,), dtype), normal(31, (3, 3), dtype))


@case
def special_functions(dtype):
    def f(x):
        p = jax.nn.sigmoid(x)
        smooth = jax.scipy.special.gammaln(1 + p) + lax.erf(x) + jnp.arctan2(x, p)
        return jnp.sum(smooth + jnp.hypot(x, p) + jax.scipy.special.i0e(x))

    return f, (normal(32, (5,), dtype),)


@case
def gradient_penalty(dtype):
    # The function contains a gradient itself: the lift sees the equations of that gradient.
    def f(w, x):
        energy = lambda x: jnp.sum(jnp.tanh(x @ w) ** 2)  # noqa: E731
        return jnp.sum(jax.grad(energy)(x) ** 2) + energy(x)

    return f, (normal(33, (3, 4), dtype), normal(34, (3,), dtype))


@case
def stopped_messages(dtype):
    def f(x):
        return jnp.sum(lax.stop_gradient(x**2) * x + jnp.round(x) * x + jnp.sign(x) * x**3)

    return f, (normal(35, (4,), dtype),)


# Examples that third-party packages give in their own documentation.


@case
def optax_ctc_loss(dtype):
    labels = jnp.asarray([[1, 2, 2, 0], [3, 1, 0, 0]])
    padding = jnp.asarray([[0, 0, 0, 1], [0, 0, 1, 1]], dtype)

    def f(logits):
        # The package itself mixes float widths.
        with jax.numpy_dtype_promotion("standard"):
            loss = optax.ctc_loss(logits, jnp.zeros(logits.shape[:2], dtype), labels, padding)
        return loss.sum().astype(dtype)

    return f, (normal(36, (2, 7, 5), dtype),)


@case
def optax_losses(dtype):
    targets = jnp.asarray([0.1, 0.9, 0.4], dtype)

    def f(x):
        return (
            optax.huber_loss(x, targets).sum()
            + optax.sigmoid_focal_loss(x, targets).sum()
            + optax.cosine_distance(x, targets)
            + optax.log_cosh(x, targets).mean()
            + optax.kl_divergence(jax.nn.log_softmax(x), targets / targets.sum())
        )

    return f, (normal(37, (3,), dtype),)


@case
def lineax_solve(dtype):
    def f(matrix, vector):
        operator = lx.MatrixLinearOperator(matrix)
        return jnp.sum(lx.linear_solve(operator, vector).value ** 2)

    return f, (normal(38, (3, 3), dtype) + 3 * jnp.eye(3, dtype=dtype), normal(39, (3,), dtype))


@case
def optimistix_root(dtype):
    solver = optx.Newton(rtol=1e-6, atol=1e-6)

    def f(args, start):
        def equation(y, args):
            a, b = args
            return (y[0] - jnp.tanh(y[1] + 1) * a, y[1] - jnp.sin(y[0] - b))

        y = optx.root_find(equation, solver, start, args).value
        return y[0] ** 2 + y[1] * args[0]

    zero = jnp.asarray(0.0, dtype)
    args = (jnp.asarray(0.5, dtype), jnp.asarray(0.2, dtype))
    return lambda args: f(args, (zero, zero)), (args,)


@case
def implicit_jax_solvers(dtype):
    def f(a, b):
        s = a @ a.T + 4 * jnp.eye(3, dtype=dtype)
        x = lax.custom_linear_solve(
            lambda v: s @ v, b, lambda mv, b: jnp.linalg.solve(s, b), symmetric=True
        )
        root = lax.custom_root(
            lambda y: y**3 + y - x[0],
            jnp.asarray(0.1, dtype),
            lambda g, y: lax.fori_loop(0, 40, lambda _, y: y - g(y) / (3 * y**2 + 1), y),
            lambda g, y: y / g(jnp.ones_like(y)),
        )
        return root + jnp.sum(x**2)

    return f, (normal(40, (3, 3), dtype), normal(41, (3,), dtype))


def relative_error(got, expected):
    """Largest difference over all leaves, relative to the largest entry."""
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    scale = max(float(jnp.max(jnp.abs(b))) for b in expected)
    worst = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(got, expected, strict=True))
    assert np.isfinite(worst)
    assert scale > 0
    return worst / scale


def referee(f, args, alpha):
    params, static = eqx.partition(args, eqx.is_inexact_array)
    scaled = lambda params: alpha * f(*eqx.combine(params, static))  # noqa: E731
    return jax.jit(jax.grad(scaled))(params)


def slopes_under_jit(f, args, phi):
    params, static = eqx.partition(args, eqx.is_inexact_array)

    @jax.jit
    def run(params):
        return delta_lift(f, *eqx.combine(params, static)).sensitivities(phi).inputs

    return run(params)


# Both sides evaluate the same local derivatives in another order, so they differ by a modest
# multiple of the rounding unit (2e-16 and 1e-7) times the depth of the graph.
TOLERANCE = {jnp.float64: 1e-12, jnp.float32: 1e-5}


# Of these, which compile longest, the default run leaves out float32.
LONG = {
    "equinox_mlp",
    "equinox_cnn",
    "gru_over_scan",
    "transformer_block",
    "diffrax_ode",
    "linear_algebra",
    "matrix_exponential",
    "cumulative_and_windows",
    "optax_ctc_loss",
    "optimistix_root",
    "implicit_jax_solvers",
    "lineax_solve",
    "gaussian_log_density",
    "special_functions",
    "nested_scans",
    "remat_of_layers",
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            marks=[pytest.mark.slow] * (name in LONG and dtype == jnp.float32),
            id=f"{name}-{dtype.__name__}",
        )
        for name in FUNCTIONS
        for dtype in TOLERANCE
    ],
)
def test_slopes_equal_gradients(name, dtype):
    f, args = FUNCTIONS[name](dtype)
    slopes = slopes_under_jit(f, args, exp_output(-0.7))
    assert relative_error(slopes, referee(f, args, -0.7)) < TOLERANCE[dtype]
