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
# # One operator
#
# A left projection, a right projection, and a scheme that iterates them: belief propagation, EM,
# Sinkhorn's algorithm and a training step are that, on different spaces. Here all four go through
# the same `iterate`, each beside the fast form that the package has for it. Then a set and a
# scheme of our own, ten lines each, run on a joint table, on a factor graph and on a network.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import klprojax
from klprojax import Cyclic, Dykstra, compose, iterate, left, right
from klprojax.circuits import em_step, factorised_mixture
from klprojax.geometry import MarginalConstraints, ProductFamily
from klprojax.graphs import ReplicatedLift
from klprojax.projections import AbstractScheme
from klprojax.training import CrossEntropy, Precisions, ProjectionStep, Relaxed, Splitting

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## The differential of the operator is backpropagation
#
# `table_graph` makes a factor graph of tables of any function. Exact inference on it, `t_proj`, is
# one left and one right projection. Its derivative, by JAX's reverse mode of the *operator*, is
# the gradient of the function.


# %%
def function(x):
    return jnp.sin(x[0] * x[1]) * x[1] + x[0]


x = jnp.array([0.3, 0.8])
tables = klprojax.delta_lift(function, x).table_graph(spacing=1e-3)


def readout(x):
    """log E[exp(z)] under the marginal of z."""
    marginals = klprojax.t_proj(tables.graph, tables.log_potentials, tables.evidence(x))
    return tables.readout(marginals, jnp.exp)


print(jax.grad(readout)(x), jax.grad(function)(x))
assert np.allclose(jax.grad(readout)(x), jax.grad(function)(x), atol=1e-5)

# %% [markdown]
# ## Belief propagation
#
# Every factor gets its own copy of its variables. First onto the products of all copies, then onto
# agreement and back onto the products, with Dykstra's corrections: the iterates are those of
# flooding belief propagation.

# %%
graph = klprojax.FactorGraph([2, 3, 2], [(0, 1), (1, 2), (2, 0)])
log_potentials = graph.pack([rng.normal(size=s) for s in ((2, 3), (3, 2), (2, 2))])
lift = ReplicatedLift(graph)
factorise, agree = right(ProductFamily()), left(lift.consensus)
projections = factorise, compose(factorise, agree)

settled = iterate(Dykstra(), projections, lift.log_table(log_potentials), tolerance=1e-12)
beliefs = lift.read_variables(ProductFamily().marginals(settled.value))
solver = klprojax.BeliefPropagation(tolerance=1e-12)
fused = klprojax.infer(graph, log_potentials, solver)
print(int(settled.steps), "steps,", int(fused.steps), "steps of the engine")
assert all(np.allclose(a, b, atol=1e-11) for a, b in zip(beliefs, fused.log_beliefs, strict=True))

# %% [markdown]
# ## Sinkhorn's algorithm
#
# Two left projections in turn, each onto tables with one given marginal.

# %%
kernel = jnp.asarray(rng.normal(size=(6, 7)))
marginals = [jnp.log(jnp.asarray(rng.dirichlet(np.ones(n)))) for n in kernel.shape]
one_each = [left(MarginalConstraints([((k,), m)])) for k, m in enumerate(marginals)]
plan = iterate(Cyclic(), one_each, kernel, tolerance=1e-13).value
both = MarginalConstraints([((k,), m) for k, m in enumerate(marginals)])
assert np.allclose(np.exp(plan), np.exp(klprojax.geometry.i_projection(both, kernel).value))

# %% [markdown]
# ## EM
#
# Left onto the tables whose visible marginal is the data, right onto the family. The family here
# is a mixture of products, written by hand; its circuit's `em_step` is the fast form.


# %%
def family(log_table):
    """Right projection of a table [z, x_1, x_2] onto p(z) p(x_1 | z) p(x_2 | z)."""
    p = jnp.exp(log_table)
    first, second, prior = p.sum(axis=2), p.sum(axis=1), p.sum(axis=(1, 2))
    return jnp.log(first[:, :, None] * second[:, None] / prior[:, None, None])


rows = np.stack([rng.integers(2, size=50), rng.integers(3, size=50)], axis=1)
seen = np.zeros((2, 3))
np.add.at(seen, tuple(rows.T), 1 / len(rows))
data = left(MarginalConstraints([((1, 2), jnp.log(seen))]))

circuit = factorised_mixture([2, 3], units=2)
parameters = circuit.init(0, dtype=jnp.float64)
first, second = (
    jax.nn.log_softmax(parameters.log_inputs[block, :, :states], axis=1)
    for block, states in zip(circuit.structure.input_blocks, (2, 3), strict=True)
)
log_root = jax.nn.log_softmax(parameters.log_root.reshape(-1))
log_table = log_root[:, None, None] + first[:, :, None] + second[:, None]
states = np.argwhere(np.ones((2, 3)))
for _ in range(5):
    log_table = iterate(Cyclic(), (data, family), log_table, max_steps=1, tolerance=0).value
    parameters, log_likelihood = em_step(circuit, parameters, jnp.asarray(rows))
visible = jax.nn.logsumexp(log_table, axis=0).reshape(-1)
assert np.allclose(visible, circuit.log_values(parameters, states), atol=1e-12)

# %% [markdown]
# ## A training step
#
# The copies of a network's values live on a Gaussian space; the two halves of its layers are the
# two sets. `Splitting` runs a generic scheme there without forming a copy.

# %%
network = eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(0), dtype=jnp.float64)
inputs = jnp.asarray(rng.normal(size=(60, 2)))
labels = (inputs[:, 0] * inputs[:, 1] > 0).astype(jnp.int32)


def losses(scheme, updates=30):
    """Mean loss at each update of a projection step."""
    step = ProjectionStep(Splitting(scheme, history=8), 4, Precisions(), "average", Relaxed())

    @eqx.filter_jit
    def update(model, state):
        return step.update(model, state, inputs, labels, jnp.ones(60), CrossEntropy())

    model, state, out = network, step.init(network), []
    for _ in range(updates):
        model, state, info = update(model, state)
        out.append(float(info.loss))
    return out


# %% [markdown]
# ## A set and a scheme of our own
#
# The set: tables on which a statistic's mean is at most a bound. Its left projection tilts the
# table, by bisection. The scheme: go half of the way of one alternating projection.


# %%
def at_most(statistic, bound):
    """Left projection onto the tables under which the mean of a statistic is at most a bound."""

    def tilted(log_table, tilt):
        return jax.nn.log_softmax(log_table - tilt * statistic, axis=tuple(range(log_table.ndim)))

    def project(log_table):
        def halve(_, ends):
            middle = sum(ends) / 2
            above = jnp.sum(jnp.exp(tilted(log_table, middle)) * statistic) > bound
            return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

        within = jnp.sum(jnp.exp(tilted(log_table, 0.0)) * statistic) <= bound
        _, tilt = jax.lax.fori_loop(0, 60, halve, (jnp.array(0.0), jnp.array(50.0)))
        return tilted(log_table, jnp.where(within, 0.0, tilt))

    return project


class Halfway(AbstractScheme):
    """Half of the way of one alternating projection, in dual coordinates."""

    def init(self, space, projections, start):
        return (space.point(start),)

    def step(self, space, projections, state):
        (x,), moved = state, state[0]
        for projection in projections:
            moved = projection(moved)
        return (space.point(space.combine((0.5, x), (0.5, moved))),)


# %% [markdown]
# On a joint table: a transport plan whose mean cost is at most 1, with given marginals. Dykstra's
# corrections give the nearest such plan; half steps come to rest at some such plan.

# %%
cost = jnp.abs(jnp.arange(6.0)[:, None] - jnp.arange(7.0)[None])
cheap = at_most(cost, 1.0)
nearest = iterate(Dykstra(), [*one_each, cheap], kernel, tolerance=1e-10, max_steps=5000)
some = iterate(Halfway(), [*one_each, cheap], kernel, tolerance=1e-10, max_steps=5000)
for found in (nearest, some):
    print("mean cost", float(jnp.sum(jnp.exp(found.value) * cost)), "steps", int(found.steps))
    assert float(jnp.sum(jnp.exp(found.value) * cost)) < 1 + 1e-6


def divergence(log_r, log_q):
    """KL(r || q), q up to scale and the same for both plans."""
    return float(jnp.sum(jnp.exp(log_r) * (log_r - log_q)))


assert divergence(nearest.value, kernel) < divergence(some.value, kernel)

# %% [markdown]
# On a factor graph: exact inference under the constraint that the first variable has state 1 with
# probability 0.3 at most, on the replicated lift of the cycle above.

# %%
state = jnp.arange(2.0).reshape(2, *[1] * (len(lift.shape) - 1))
seldom = at_most(jnp.broadcast_to(state, lift.shape), 0.3)
found = iterate(Halfway(), (agree, seldom), lift.log_table(log_potentials), tolerance=1e-10)
free = klprojax.t_proj(graph, log_potentials)[0][0]
bounded = ProductFamily().marginals(found.value)[0]
print("probabilities of the first variable:", np.exp(free).round(3), np.exp(bounded).round(3))
assert np.isclose(np.exp(bounded[1]), min(0.3, np.exp(free[1])), atol=1e-8)

# %% [markdown]
# On a network, beside Dykstra's scheme:

# %%
curves = {"halfway": losses(Halfway()), "Dykstra": losses(Dykstra())}
for name, curve in curves.items():
    print(name, "loss", round(curve[0], 3), "to", round(curve[-1], 3))
    assert curve[-1] < curve[0]

figure, axis = plt.subplots(figsize=(6, 3))
for name, curve in curves.items():
    axis.plot(curve, label=name)
axis.set(xlabel="update", ylabel="mean loss (nats)")
axis.legend()
plt.show()
