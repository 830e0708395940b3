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
# # Belief propagation is a Dykstra iteration
#
# Give every factor of a graph its own copy of each of its variables. Two sets live in the space of
# joint tables over all copies: $\mathcal Q$, where the copies of a variable agree, and
# $\mathcal P$, the products of tables of one copy each. One operator projects onto both in turn,
# $$\mathcal T_{\mathrm{Proj}} =
# \overrightarrow\pi_{\mathcal P} \circ \overleftarrow\pi_{\mathcal Q},$$
# an I-projection onto agreement and a right projection onto factorisation. Applied to the product
# of the factors it gives the product of the **exact marginals**, on every graph.
#
# Iterating the two projections with Dykstra's corrections $\sigma$, $\tau$ gives the hybrid of
# section 3.1. Its iterates are those of normalised belief propagation with the flooding schedule,
# one for one, loops or not.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import klprojax
from klprojax.operators import BeliefPropagation, DykstraHybrid

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(1)

# %% [markdown]
# ## A loopy graph
#
# A $3 \times 3$ grid of binary variables with random pair factors, and a factor on each variable.

# %%
cells = np.arange(9).reshape(3, 3)
pairs = [*zip(cells[:, :-1].ravel(), cells[:, 1:].ravel(), strict=True)]
pairs += [*zip(cells[:-1].ravel(), cells[1:].ravel(), strict=True)]
scopes = [(int(a), int(b)) for a, b in pairs] + [(int(c),) for c in cells.ravel()]
graph = klprojax.FactorGraph([2] * 9, scopes)
log_potentials = graph.pack([rng.normal(size=(2,) * len(scope)) for scope in scopes])

# %% [markdown]
# ## Iterate by iterate
#
# `DykstraHybrid` keeps the paper's variables: beliefs $q_n$, factor-side marginals $k_n$ and the
# corrections. `BeliefPropagation` keeps messages. Both are stepped by hand, and their beliefs are
# compared after each step.

# %%
hybrid, flooding = DykstraHybrid(), BeliefPropagation(engine="log")
exact = np.exp(klprojax.t_proj(graph, log_potentials)[0])

state = hybrid.init(graph, log_potentials)
step = jax.jit(lambda s: hybrid.step(graph, log_potentials, s))


@jax.jit
def flooded_beliefs(steps):
    """Beliefs after a number of flooding steps, from uniform messages."""
    start = flooding.init(graph, log_potentials)
    messages = jax.lax.fori_loop(
        0, steps, lambda _, s: flooding.step(graph, log_potentials, s), start
    )
    # A further step of `infer` would change the beliefs: read them off the messages.
    (incoming,) = messages.messages
    (edges,) = graph.wiring.edges
    totals = jnp.zeros((9, 2)).at[edges].add(incoming)
    return jax.nn.softmax(totals, axis=-1)


gaps, distances = [], []
for n in range(1, 31):
    state = step(state)
    q = np.exp(state.log_q[0])
    gaps.append(np.max(np.abs(q - np.asarray(flooded_beliefs(n)))))
    distances.append(np.max(np.abs(q - exact)))
print("largest difference of the two over 30 iterates:", max(gaps))
assert max(gaps) < 1e-13

# %%
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.semilogy(range(1, 31), np.maximum(gaps, 1e-17), "o", ms=3, label="hybrid from flooding BP")
axis.semilogy(range(1, 31), distances, "s-", ms=3, label="both from the exact marginals")
axis.set(xlabel="iteration", ylabel="largest difference of a probability")
axis.legend()

# %% [markdown]
# The two iterations agree to rounding. Both settle *near* the exact marginals and stay there: on a
# graph with loops belief propagation is an approximation of the operator, not the operator.
#
# ## Proposition 3.1 (ii), in two readings
#
# The proposition says that fixed points of belief propagation are fixed points of the operator.
# Copy the beliefs $b_i$ of a fixed point to all copies and apply $\mathcal T_{\mathrm{Proj}}$: the
# I-projection multiplies the copies of a variable, so what comes back is $b_i^{\deg(i)}$,
# normalised. Taken literally the statement fails. What does stay fixed is the triple $(q, \sigma,
# \tau)$ of the corrected iteration, because the corrections carry the messages.

# %%
solution = klprojax.infer(graph, log_potentials, BeliefPropagation(tolerance=1e-13), max_steps=1000)
b = np.asarray(solution.beliefs[0])
degree = np.bincount(np.concatenate([np.asarray(s) for s in scopes]), minlength=9)

# The operator on a product table: one factor a copy, each holding the belief.
copies = [(int(i),) for i in range(9) for _ in range(degree[i])]
product = klprojax.FactorGraph([2] * 9, copies)
once = np.exp(klprojax.t_proj(product, product.pack([np.log(b[i]) for (i,) in copies]))[0])
powers = b ** degree[:, None]
powers /= powers.sum(axis=1, keepdims=True)

for _ in range(400):
    state = step(state)
again = step(state)
moved = max(
    float(jnp.max(jnp.abs(old - new)))
    for old, new in zip(jax.tree.leaves(state)[:-1], jax.tree.leaves(again)[:-1], strict=True)
)
print(f"literal: the operator moves the beliefs by {np.abs(once - b).max():.3f}")
print(f"         and makes them their powers, up to {np.abs(once - powers).max():.1e}")
print(f"right:   one corrected iteration moves (k, σ, q, τ) by {moved:.1e}")
assert np.abs(once - b).max() > 0.01
assert np.abs(once - powers).max() < 1e-13
assert moved < 1e-10

# %%
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
place = np.arange(9)
axis.bar(place - 0.2, b[:, 1], 0.4, label="belief at a fixed point")
axis.bar(place + 0.2, once[:, 1], 0.4, label=r"$\mathcal{T}_{\mathrm{Proj}}$ of its copies")
axis.plot(place + 0.2, powers[:, 1], "k_", ms=12, label=r"$b_i^{\deg(i)}$, normalised")
axis.set(xlabel="variable", ylabel="probability of state 1")
axis.legend(fontsize="small")
