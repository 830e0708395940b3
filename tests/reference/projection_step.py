"""A projection step on a multilayer perceptron: local projections from the loss to the inputs.

A point holds u = W h and z = σ(u + b) of every layer and sample, the parameters, their copies (one
per sample), and `above`, what the constraint visited last wants its inputs to be:
`[batch, readers, units]`, one copy per reader. A value that several constraints hold takes the mean
of what they want. A step is `for project in projections(...): point = project(point)`.

Reference: "Backpropagation from KL Projections", section 5 (divide and concur, cyclic projections).
Fast code: `klprojax.training.CyclicProjections`.
"""

from functools import partial

import numpy as np

from . import local_projections as local


def forward(x, weights, biases):
    """The point at which every constraint but the loss holds."""
    point, h, last = {}, x, len(weights) - 1
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        u = h @ w.T
        h = np.maximum(u + b, 0) if k < last else u + b
        point |= {("W", k): w, ("b", k): b, ("u", k): u, ("z", k): h}
    return point


def projections(x, labels, rows, layers, p, product=False):
    """One function of a point per constraint, and one for the parameters, in the order of visits.

    `p` holds the precisions of `klprojax.training.Precisions`; with `product` those of the copies
    of a value add up, else a value counts once. `rows` weighs the samples.
    """

    def rho(copies, precision):
        return p["node"] * (copies * precision if product else 1.0)

    def loss(point):
        return point | {"above": local.loss(point["z", layers - 1], labels, p["output"])[:, None]}

    def activation(point, k):
        above, top = point["above"], k == layers - 1
        weight = rho(above.shape[1], p["output"] if top else p["activation"][k + 1])
        held = point["u", k], point["b", k], above.mean(1), p["unit"], p["bias"], weight
        s, b, z = local.activation(*held, relu=not top)
        return point | {"above": s, ("copies of b", k): b, ("z", k): z}

    def dense(point, k):
        h, w = point["z", k - 1] if k else x, point["W", k]
        precisions = p["activation"][k], p["weight"][k], rho(1, p["unit"])
        a, w, u = local.dense(h[:, None], w[None], point["above"], *precisions)
        return point | {"above": a, ("copies of W", k): w, ("u", k): u}

    def agree(point):
        keys = [(name, k) for name in "Wb" for k in range(layers)]
        return point | {(n, k): np.average(point["copies of " + n, k], 0, rows) for n, k in keys}

    layered = [partial(f, k=k) for k in reversed(range(layers)) for f in (activation, dense)]
    return [loss, *layered, agree]
