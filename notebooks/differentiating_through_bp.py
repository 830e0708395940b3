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
# # Differentiating through belief propagation
#
# A conditional random field cleans up noisy binary images. A small network looks at the noisy
# pixels and gives each pixel log-potentials; two learned tables tie neighbours together; belief
# propagation (section 3.1 of the paper, on a graph with loops) turns both into beliefs $b_i$. The
# loss is the cross-entropy of the beliefs, and its derivative has to pass *through the iteration*.
#
# `ImplicitAdjoint` differentiates the fixed point the iteration ends in: with $m = B(m, \theta)$,
# $$\frac{dm}{d\theta} = \Bigl(I - \frac{\partial B}{\partial m}\Bigr)^{-1}
# \frac{\partial B}{\partial \theta},$$
# one linear solve, in memory that does not depend on the number of iterations. `UnrolledAdjoint`
# differentiates the iteration itself. Where it has converged both agree.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import klprojax

side = 10
rng = np.random.default_rng(0)

# %% [markdown]
# ## Data: random rectangles, a fifth of the pixels flipped


# %%
def images(count):
    """Clean images of 0 and 1, and noisy ones of -1 and 1."""
    clean = np.zeros((count, side, side), np.int32)
    for image in clean:
        top, left = rng.integers(0, 5, size=2)
        height, width = rng.integers(4, 7, size=2)
        image[top : top + height, left : left + width] = 1
    flipped = clean ^ (rng.random(clean.shape) < 0.2)
    return clean.reshape(count, -1), (2.0 * flipped - 1.0).astype(np.float32)


labels, noisy = images(64)
test_labels, test_noisy = images(64)

# %% [markdown]
# ## Model
#
# The graph has one *family* of factors for horizontal neighbours and one for vertical ones; each
# family shares a single table, which is never copied. The network's output enters as evidence.

# %%
pixels = np.arange(side * side).reshape(side, side)
across = np.stack([pixels[:, :-1].ravel(), pixels[:, 1:].ravel()], axis=1)
down = np.stack([pixels[:-1].ravel(), pixels[1:].ravel()], axis=1)
graph = klprojax.FactorGraph([2] * side * side, [across, down])
solver = klprojax.BeliefPropagation(damping=0.2, tolerance=1e-4)


class Field(eqx.Module):
    unary: eqx.nn.Conv2d
    tables: tuple[jax.Array, jax.Array]

    def __init__(self, key):
        self.unary = eqx.nn.Conv2d(1, 1, 3, padding=1, key=key)
        self.tables = (jnp.zeros((2, 2)), jnp.zeros((2, 2)))

    def evidence(self, image):
        odds = self.unary(image[None]).reshape(-1)
        return jnp.stack([jnp.zeros_like(odds), odds], axis=-1)


def one_image(model, image, adjoint):
    return klprojax.infer(
        graph,
        model.tables,
        solver,
        log_evidence=(model.evidence(image),),
        max_steps=100,
        adjoint=adjoint,
        throw=False,
    ).log_beliefs[0]


def log_beliefs(model, batch, adjoint):
    return jax.vmap(lambda image: one_image(model, image, adjoint))(batch)


def cross_entropy(log_probs, targets):
    return -jnp.mean(jnp.take_along_axis(log_probs, targets[..., None], axis=-1))


def field_loss(model, batch, targets, adjoint):
    return cross_entropy(log_beliefs(model, batch, adjoint), targets)


def network_loss(model, batch, targets, adjoint):
    del adjoint
    return cross_entropy(jax.nn.log_softmax(jax.vmap(model.evidence)(batch)), targets)


# %% [markdown]
# ## The two adjoints agree
#
# On the first image, with tables that tie neighbours moderately:

# %%
model = Field(jax.random.key(0))
model = eqx.tree_at(lambda m: m.tables, model, (0.4 * jnp.eye(2), 0.4 * jnp.eye(2)))


def loss_of_one(model, adjoint):
    log_probs = one_image(model, noisy[0], adjoint)
    return cross_entropy(log_probs, jnp.asarray(labels[0]))


gradients = [
    eqx.filter_jit(eqx.filter_grad(loss_of_one))(model, adjoint)
    for adjoint in (klprojax.ImplicitAdjoint(throw=False), klprojax.UnrolledAdjoint())
]
largest = max(float(jnp.max(jnp.abs(a))) for a in jax.tree.leaves(gradients[1]))
gap = max(
    float(jnp.max(jnp.abs(a - b)))
    for a, b in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(gradients[1]), strict=True)
)
print(f"implicit against unrolled: {gap:.1e}, where the largest entry is {largest:.2f}")
assert gap < 1e-2 * largest

# %% [markdown]
# ## Train the network alone, and the field end to end


# %%
def train(loss, updates=80):
    model = Field(jax.random.key(0))
    optimiser = optax.adam(0.05)
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    adjoint = klprojax.ImplicitAdjoint(throw=False)

    @eqx.filter_jit
    def update(model, state):
        value, grads = eqx.filter_value_and_grad(loss)(model, noisy, labels, adjoint)
        steps, state = optimiser.update(grads, state)
        return eqx.apply_updates(model, steps), state, value

    losses = []
    for _ in range(updates):
        model, state, value = update(model, state)
        losses.append(float(value))
    return model, losses


network, network_losses = train(network_loss)
field, field_losses = train(field_loss)

network_wrong = np.mean(
    np.asarray(jax.vmap(network.evidence)(test_noisy)).argmax(-1) != test_labels
)
beliefs = jnp.exp(log_beliefs(field, test_noisy, klprojax.UnrolledAdjoint()))
field_wrong = np.mean(np.asarray(beliefs).argmax(-1) != test_labels)
print(f"pixels wrong on held-out images: noisy 0.20, network {network_wrong:.3f},", end=" ")
print(f"field {field_wrong:.3f}")
assert field_wrong < network_wrong < 0.2

# %%
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
shown = 3
for axis, picture, title in zip(
    axes,
    (test_labels[shown], test_noisy[shown], beliefs[shown, :, 1]),
    ("clean", "noisy", "belief in ink"),
    strict=False,
):
    axis.imshow(np.asarray(picture).reshape(side, side), cmap="gray_r")
    axis.set_title(title)
    axis.set_axis_off()
axes[3].plot(network_losses, label="network alone")
axes[3].plot(field_losses, label="field")
axes[3].set(xlabel="update", title="training loss")
axes[3].legend(fontsize="small")

# %% [markdown]
# When the loss is a likelihood no derivative of the iteration is needed at all: at a fixed point,
# the gradient of the Bethe log-partition in a log-potential is the belief.
