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
# # Gradient steps and projection steps
#
# One lifted network, two uses (section 1 and **Corollary 3.4**). A gradient step evaluates the
# *differential* of the projection operator at the forward pass. A projection step *iterates* the
# operator: every operation of the network is a constraint (a point of the graph of a layer, of an
# activation), every value has a copy in each operation it takes part in, and the copies are moved
# onto the constraints in turn. Three trainers on scikit-learn's digits:
#
# - `GradientStep(optax.adam(...))`: backpropagation and Adam;
# - `ProjectionDirection(optax.adam(...))`: one sweep of projections, read out as slopes, and Adam;
# - `ProjectionStep()`: projections move the weights themselves, no optimiser at all.
#
# A few epochs only: the point is what each does, not the last digit of accuracy.

# %%
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from klprojax import plots
from klprojax.training import (
    GradientStep,
    ProjectionDirection,
    ProjectionStep,
    evaluate,
    fit,
    load_dataset,
)

digits = load_dataset("digits", seed=0)
print(len(digits.train[0]), "rows for training,", len(digits.test[0]), "for test")


def network():
    """Two hidden layers of 32 ReLUs; always the same start."""
    return eqx.nn.MLP(64, 10, 32, 2, key=jax.random.key(0), dtype=np.float32)


# %% [markdown]
# ## Train

# %%
steps = {
    "Adam on gradients": GradientStep(optax.adam(3e-3)),
    "Adam on projection slopes": ProjectionDirection(optax.adam(3e-3)),
    "projection step": ProjectionStep(),
}
results = {
    name: fit(network(), step, digits.train, digits.validation, epochs=8, batch_size=64, seed=0)
    for name, step in steps.items()
}
for name, result in results.items():
    accuracy = evaluate(result.model, digits.test).metric
    print(f"{name}: test accuracy {accuracy:.3f}, {result.updates} updates")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plots.learning_curves({name: result.history for name, result in results.items()}, ax=axes)

# %% [markdown]
# ## What happens inside
#
# At a small precision ratio the slopes of one sweep are the gradient, to first order in the ratio.
# The quantities by layer tell whether the signal reaches the first layer: a method whose copies are
# *averaged* loses a factor of the number of copies per layer, and its first layers hardly move.
# Messages multiply, so their slopes must add; klprojax reads out slopes.

# %%
plots.dynamics(results["Adam on projection slopes"].history)

# %% [markdown]
# One update from the same start, how far each weight matrix moves: the first layer must not be left
# behind.

# %%
model = network()
first = digits.train[0][:64], digits.train[1][:64]


def matrices(tree):
    return [a for a in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)) if a.ndim == 2]


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for place, (name, step) in enumerate(steps.items()):
    moved = fit(model, step, first, epochs=1, batch_size=64, seed=0).last_model
    norms = [
        float(np.linalg.norm(a - b)) for a, b in zip(matrices(moved), matrices(model), strict=True)
    ]
    axis.bar(np.arange(len(norms)) + 0.25 * (place - 1), norms, 0.25, label=name)
    assert min(norms) > 0.05 * max(norms), name
axis.set_xticks(range(3), ["layer 1", "layer 2", "layer 3"])
axis.set_ylabel("norm of the update")
axis.legend(fontsize="small")

# %%
for name, result in results.items():
    assert evaluate(result.model, digits.test).metric > 0.85, name
