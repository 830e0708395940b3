# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Backpropagation is a projection
#
# The paper lifts a computation $z = F(x)$ to a factor graph: every assignment
# $y = \psi(x_1, \dots)$ becomes a factor $\delta(y - \psi(\cdot))$, and a positive output factor
# $\varphi(z)$ is attached.
# Belief propagation sends messages from $\varphi$ down to the inputs. **Theorem 3.3** says that the
# logarithm of the product of downward messages has the slope
# $$\nabla_x \log b_\downarrow(x) = \frac{\varphi'(z)}{\varphi(z)}\, \nabla_x z ,$$
# which for $\varphi(z) = e^{\alpha z}$ is $\alpha$ times the reverse-mode derivative.
#
# Three computations of these slopes follow, none of which differentiates the function as a whole:
# first-order jets of the messages, messages as *tables* (nothing is differentiated at all), and
# Euclidean projections onto the graphs of the layers. The derivative of the whole function serves
# as referee only.

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import klprojax
from klprojax.lifting import (
    LayeredNetwork,
    exp_output,
    layer_messages,
    projection_messages,
    table_sensitivities,
)

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## A function becomes a graph of delta factors
#
# `delta_lift` traces any JAX function to its elementary equations. Each equation is one delta
# factor; the forward values are the places where the upward Dirac messages sit.


# %%
def loss(weights, bias):
    hidden = jnp.tanh(weights @ jnp.array([0.4, -0.7, 1.1]) + bias)
    return jnp.sum(hidden**2) + jnp.prod(hidden)


arguments = (jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=2)))
lift = klprojax.delta_lift(loss, *arguments)
print(lift)

# %% [markdown]
# ## Jets: Lemma 3.2, one factor at a time
#
# Downward, a message only matters through the slope of its logarithm at the forward value, and a
# delta factor multiplies that slope by $\partial y / \partial x_j$ (**Lemma 3.2**). Slopes from
# several factors add, because the messages multiply.

# %%
alpha = -1.0
slopes = lift.sensitivities(exp_output(alpha)).inputs
referee = jax.tree.map(lambda g: alpha * g, jax.grad(loss, argnums=(0, 1))(*arguments))
jet_error = max(
    float(jnp.max(jnp.abs(a - b)))
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(referee), strict=True)
)
print("largest difference from the derivative:", jet_error)
assert jet_error < 1e-14

# %% [markdown]
# ## Tables: ordinary sum-product, no derivative anywhere
#
# Each scalar gets a lattice of three points around its forward value, and each delta factor becomes
# a table of linear-interpolation weights. Sum-product on these tables leaves a table
# $b_\downarrow(x)$ on three points; its slope is a central difference. The error falls as $O(h^2)$
# in the spacing $h$.

# %%
spacings = np.logspace(-1, -4, 4)
table_errors = []
for spacing in spacings:
    tables = table_sensitivities(lift, exp_output(alpha), spacing=spacing)
    table_errors.append(
        max(
            float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
            for a, b in zip(jax.tree.leaves(tables.inputs), jax.tree.leaves(referee), strict=True)
        )
    )
table_order = np.polyfit(np.log(spacings), np.log(table_errors), 1)[0]
print("observed order in h:", round(table_order, 3))
assert abs(table_order - 2) < 0.1

# %% [markdown]
# ## Projections: Corollary 3.4
#
# A Gaussian table of fixed precision turns KL into a weighted squared distance, and projecting onto
# a delta factor means finding the nearest point of the graph of a layer. Let $\rho$ be the
# precision of a layer's output over that of its inputs and weights. The layer's output is pulled by
# the slope that arrives from above; the projection moves its inputs by a little, and precision
# times displacement is the slope that goes on. As $\rho \to 0$ this readout tends to
# $s_a = W^\top s_u$ and $s_u = \sigma'(u) \odot s_a$, with an error of $O(\rho)$: the backward pass
# is the *differential* of the local projections. At finite $\rho$ a layer makes a damped
# Gauss-Newton step instead.

# %%
sizes = [3, 5, 4, 2]
network = LayeredNetwork(
    tuple(jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(n)) for n, m in itertools.pairwise(sizes)),
    tuple(jnp.asarray(0.1 * rng.normal(size=m)) for m in sizes[1:]),
    (jnp.tanh, jnp.tanh, jnp.tanh),
)
x, y = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(6, 2)))


def cost(a, target):
    return 0.5 * jnp.sum((a - target) ** 2)


exact = layer_messages(network, x, cost, y, exp_output(-1.0))
project = jax.jit(
    lambda ratio: (
        projection_messages(network, x, cost, y, exp_output(-1.0), precision_ratio=ratio).weights
    )
)
ratios = np.logspace(-1, -5, 5)
projection_errors = []
for ratio in ratios:
    got = project(ratio)
    projection_errors.append(
        max(
            float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            for a, b in zip(got, exact.weights, strict=True)
        )
    )
projection_order = np.polyfit(np.log(ratios[1:]), np.log(projection_errors[1:]), 1)[0]
print("observed order in the precision ratio:", round(projection_order, 3))
assert abs(projection_order - 1) < 0.1

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.loglog(spacings, table_errors, "o-", label="messages as tables")
left.loglog(spacings, table_errors[0] * (spacings / spacings[0]) ** 2, "k:", label="$h^2$")
left.set(xlabel="lattice spacing $h$", ylabel="largest error of a slope")
left.legend()
right.loglog(ratios, projection_errors, "o-", color="C1", label="projection readout")
right.loglog(ratios, projection_errors[-1] * ratios / ratios[-1], "k:", label=r"$\rho$")
right.set(xlabel=r"precision ratio $\rho$", ylabel="relative error of a weight gradient")
right.legend()

# %% [markdown]
# The same comparisons, at several output factors and on a recurrence with attention and a residual
# block, are `klprojax verify --only theorem_3_3 --only corollary_3_4`.
