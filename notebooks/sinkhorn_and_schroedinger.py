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
# # Sinkhorn and Schrödinger: transport as a KL projection
#
# Section 2's left projection, $\overleftarrow\pi_C(q) = \arg\min_{r \in C} \mathrm{KL}(r \| q)$,
# onto the tables with prescribed marginals is an old friend. With $q \propto e^{-c/\varepsilon}$
# for a cost $c$, the I-projection is **entropic optimal transport**,
# $$\min_{r:\, r_1 = a,\, r_2 = b}\; \langle c, r\rangle + \varepsilon\, \mathrm{KL}(r \| 1),$$
# and the algorithm that projects on one marginal after the other is Sinkhorn's. With $q$ the law of
# a random walk and its first and last positions prescribed, it is the **Schrödinger bridge**.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from klprojax.geometry import MarginalConstraints, i_projection, kl_divergence, log_marginal

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Entropic optimal transport
#
# Two histograms on a line, squared distance as cost.

# %%
grid = jnp.linspace(0.0, 1.0, 60)


def bump(centre, width):
    log_table = -0.5 * ((grid - centre) / width) ** 2
    return log_table - jax.nn.logsumexp(log_table)


log_a = bump(0.25, 0.08)
log_b = jnp.logaddexp(bump(0.55, 0.04), bump(0.85, 0.06)) - jnp.log(2.0)
cost = (grid[:, None] - grid[None, :]) ** 2
couplings = MarginalConstraints([(0, log_a), (1, log_b)])


def plan(epsilon):
    return i_projection(couplings, -cost / epsilon, tolerance=1e-8, max_steps=5000)


plans = {epsilon: plan(epsilon) for epsilon in (0.5, 0.05, 0.005)}
for epsilon, result in plans.items():
    print(f"epsilon {epsilon}: {int(result.steps)} sweeps, residual {float(result.residual):.1e}")
    assert bool(result.converged)

# %% [markdown]
# The certificate is the largest distance between a marginal of the plan and its target. What makes
# the plan *the projection* is Pythagoras: for any other coupling $r$,
# $\mathrm{KL}(r\|q) = \mathrm{KL}(r\|\pi) + \mathrm{KL}(\pi\|q)$. The independent coupling serves
# as $r$:

# %%
result = plans[0.05]
log_q = -cost / 0.05 - jax.nn.logsumexp(-cost / 0.05)
independent = log_a[:, None] + log_b[None, :]
left_side = kl_divergence(independent, log_q)
right_side = kl_divergence(independent, result.value) + kl_divergence(result.value, log_q)
print(f"Pythagoras: {float(left_side):.9f} = {float(right_side):.9f}")
assert abs(left_side - right_side) < 1e-5

# %% [markdown]
# ## Derivatives come for free
#
# The derivative of $\langle c, \pi\rangle$ in both histograms passes through the fixed point, not
# through the sweeps. Along a shift of the first histogram to the right and of the second to the
# left it is compared with a central difference.


# %%
@jax.jit
def transport_cost(log_a, log_b):
    moved = MarginalConstraints([(0, log_a), (1, log_b)])
    return jnp.sum(jnp.exp(i_projection(moved, -cost / 0.05, tolerance=1e-10).value) * cost)


def shifted(by):
    return bump(0.25 + by, 0.08), bump(0.7 - by, 0.1)


by_a, by_b = jax.jit(jax.grad(transport_cost, argnums=(0, 1)))(*shifted(0.0))
along_a, along_b = jax.jvp(shifted, (0.0,), (1.0,))[1]
slope = float(by_a @ along_a + by_b @ along_b)
difference = float(transport_cost(*shifted(1e-4)) - transport_cost(*shifted(-1e-4))) / 2e-4
print(f"implicit derivative {slope:.7f}, central difference {difference:.7f}")
assert abs(slope - difference) < 1e-5

# %% [markdown]
# ## A Schrödinger bridge
#
# Five positions of a random walk on a coarser line form a joint table with $12^5$ entries. Only the
# laws of the first and the last position are prescribed; the bridge is the walk closest in KL that
# obeys them. Its inner marginals interpolate between the ends.

# %%
line = jnp.linspace(0.0, 1.0, 12)
step = -((line[:, None] - line[None, :]) ** 2) / (2 * 0.15**2)
walk = jnp.zeros((12,) * 5)
for t in range(4):
    shape = [1] * 5
    shape[t], shape[t + 1] = 12, 12
    walk = walk + step.reshape(shape)
first = jax.nn.log_softmax(-0.5 * ((line - 0.15) / 0.07) ** 2)
last = jax.nn.log_softmax(
    jnp.logaddexp(-0.5 * ((line - 0.6) / 0.05) ** 2, -0.5 * ((line - 0.95) / 0.05) ** 2)
)
bridge = i_projection(MarginalConstraints([(0, first), (4, last)]), walk)
marginals = np.exp([log_marginal(bridge.value, t) for t in range(5)])
assert np.abs(marginals[0] - np.exp(first)).max() < 1e-8
assert np.abs(marginals[4] - np.exp(last)).max() < 1e-8

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for axis, (epsilon, result) in zip(axes, plans.items(), strict=False):
    axis.imshow(np.exp(result.value), origin="lower", extent=(0, 1, 0, 1), cmap="magma")
    axis.set(title=rf"$\varepsilon = {epsilon}$", xlabel="to", ylabel="from")
for t, table in enumerate(marginals):
    axes[3].plot(line, table + 0.5 * t, color=f"C{t}")
    axes[3].fill_between(line, 0.5 * t, table + 0.5 * t, color=f"C{t}", alpha=0.3)
axes[3].set(title="Schrödinger bridge, five times", xlabel="position")
axes[3].set_yticks([])
