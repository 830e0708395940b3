"""A conditional random field on pixels, trained end to end: clean digits out of noisy ones.

A small convolutional network looks at 3 x 3 noisy pixels and gives every pixel log-potentials;
learned tables on neighbouring pixels tie them together; belief propagation gives the beliefs.
Compared on held-out images: the network alone, trained by itself, and the field trained by a loss
on its beliefs (differentiated through the fixed point) and by its Bethe likelihood (whose gradient
needs no derivative of the iteration). Task: scikit-learn's 8 x 8 digits, binarised, pixels flipped.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from rich.console import Console

import klprojax
from benchmarks import _shared as shared

# The 8 x 8 digits have 17 grey levels; brighter than half is ink.
THRESHOLD = 8
SOLVER = klprojax.BeliefPropagation(damping=0.2, tolerance=1e-4, engine="fast")
MAX_STEPS = 200
METHODS = ("network", "crf_marginals", "crf_likelihood")


def grid_graph(side: int) -> klprojax.FactorGraph:
    """Binary pixels, one family of factors on vertical and one on horizontal neighbours."""
    pixels = np.arange(side * side).reshape(side, side)
    down = np.stack([pixels[:-1].ravel(), pixels[1:].ravel()], axis=1)
    across = np.stack([pixels[:, :-1].ravel(), pixels[:, 1:].ravel()], axis=1)
    return klprojax.FactorGraph([2] * side * side, [down, across])


class UnaryNetwork(eqx.Module):
    """Log-odds of ink from 3 x 3 noisy pixels, plus a learned bias at every place."""

    hidden: eqx.nn.Conv2d
    out: eqx.nn.Conv2d
    bias: Float[Array, "side side"]

    def __init__(self, side: int, width: int, *, key: Array):
        first, second = jax.random.split(key)
        self.hidden = eqx.nn.Conv2d(1, width, 3, padding=1, key=first)
        self.out = eqx.nn.Conv2d(width, 1, 1, key=second)
        self.bias = jnp.zeros((side, side), self.out.weight.dtype)

    def __call__(self, image: Float[Array, "side side"]) -> Float[Array, "pixels 2"]:
        """Unary log-potentials in nats; state 1 is ink."""
        odds = self.out(jax.nn.gelu(self.hidden(image[None])))[0] + self.bias
        return jnp.stack([jnp.zeros_like(odds), odds], axis=-1).reshape(-1, 2)


class CRF(eqx.Module):
    """``p(y | x) ∝ exp(sum_i u_i(y_i; x) + sum_ij w_ij(y_i, y_j))``, u from the network."""

    network: UnaryNetwork
    pairwise: tuple[Float[Array, "edges 2 2"], ...]

    def __init__(self, graph: klprojax.FactorGraph, side: int, width: int, *, key: Array):
        self.network = UnaryNetwork(side, width, key=key)
        dtype = self.network.bias.dtype
        self.pairwise = tuple(
            jnp.zeros((group.count, *group.shape), dtype) for group in graph.signature.groups
        )


def infer(
    graph: klprojax.FactorGraph,
    model: CRF,
    images: Float[Array, "batch side side"],
    *,
    adjoint: klprojax.AbstractAdjoint | None = None,
    factor_beliefs: bool = False,
) -> tuple[Float[Array, "batch pixels 2"], klprojax.Solution]:
    """Unary log-potentials of every image, and belief propagation on all of them at once.

    The graph and the tables on pairs are the same for all images, the unaries are the evidence.
    """
    unaries = jax.vmap(model.network)(images)
    solution = jax.vmap(
        lambda unary: klprojax.infer(
            graph,
            model.pairwise,
            SOLVER,
            log_evidence=(unary,),
            max_steps=MAX_STEPS,
            adjoint=adjoint,
            factor_beliefs=factor_beliefs,
            throw=False,
        )
    )(unaries)
    return unaries, solution


def network_loss(
    graph: klprojax.FactorGraph, model: CRF, images: Array, labels: Int[Array, "batch pixels"]
) -> Float[Array, ""]:
    """Cross-entropy of the network alone."""
    del graph
    log_probs = jax.nn.log_softmax(jax.vmap(model.network)(images))
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[..., None], axis=-1))


def marginal_loss(
    graph: klprojax.FactorGraph, model: CRF, images: Array, labels: Int[Array, "batch pixels"]
) -> Float[Array, ""]:
    """Cross-entropy of the beliefs; its gradient is that of the fixed point."""
    # A batch may hold an image that has not settled; its gradient is then only approximate.
    adjoint = klprojax.ImplicitAdjoint(throw=False)
    _, solution = infer(graph, model, images, adjoint=adjoint)
    log_probs = solution.log_beliefs[0]
    return -jnp.mean(jnp.take_along_axis(log_probs, labels[..., None], axis=-1))


def likelihood_loss(
    graph: klprojax.FactorGraph, model: CRF, images: Array, labels: Int[Array, "batch pixels"]
) -> Float[Array, ""]:
    """``-(score(y) - log Z_Bethe)`` a pixel; no derivative passes through the iteration.

    At a fixed point the derivative of the Bethe log-partition in a log-potential is the belief, so
    ``<beliefs, log-potentials>`` with the beliefs held fixed has the right gradient; the value is
    the Bethe likelihood's.
    """
    # Nothing is differentiated in here, so the default adjoint is never used.
    unaries, solution = infer(graph, jax.lax.stop_gradient(model), images, factor_beliefs=True)
    log_beliefs = jax.lax.stop_gradient((solution.log_beliefs[0], solution.factor_log_beliefs))
    beliefs = jax.tree.map(jnp.exp, log_beliefs)
    unaries = jax.vmap(model.network)(images)
    expected = jnp.sum(beliefs[0] * unaries, axis=(1, 2))
    for table, belief in zip(model.pairwise, beliefs[1], strict=True):
        expected = expected + jnp.sum(belief * table[None], axis=(1, 2, 3))
    log_partition = jax.lax.stop_gradient(solution.log_partition - expected) + expected
    return jnp.mean(log_partition - score(graph, model, unaries, labels)) / labels.shape[1]


def score(
    graph: klprojax.FactorGraph, model: CRF, unaries: Array, labels: Int[Array, "batch pixels"]
) -> Float[Array, " batch"]:
    """Unnormalised log-probability of a labelling."""
    total = jnp.sum(jnp.take_along_axis(unaries, labels[..., None], axis=-1), axis=(1, 2))
    for table, scopes in zip(model.pairwise, graph.group_scopes, strict=True):
        edges = np.arange(len(scopes))
        total = total + jnp.sum(
            table[edges, labels[:, scopes[:, 0]], labels[:, scopes[:, 1]]], axis=1
        )
    return total


LOSSES = {
    "network": network_loss,
    "crf_marginals": marginal_loss,
    "crf_likelihood": likelihood_loss,
}


def predict(
    graph: klprojax.FactorGraph, model: CRF, images: Array, method: str
) -> Float[Array, "batch pixels"]:
    """Probability of ink at every pixel."""
    if method == "network":
        return jax.nn.softmax(jax.vmap(model.network)(images))[..., 1]
    return jnp.exp(infer(graph, model, images)[1].log_beliefs[0])[..., 1]


def digits(flip: float, held_out: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Noisy images in {-1, 1} and clean labels, for training and held out."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    clean = load_digits().images > THRESHOLD
    clean = clean[rng.permutation(len(clean))]
    noisy = np.where(clean ^ (rng.random(clean.shape) < flip), 1.0, -1.0)
    labels = clean.reshape(len(clean), -1).astype(np.int32)
    split = len(clean) - held_out
    return {
        "train": (noisy[:split], labels[:split]),
        "test": (noisy[split:], labels[split:]),
    }


def train(
    graph: klprojax.FactorGraph,
    model: CRF,
    method: str,
    data: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    after_epoch: Any = lambda loss: None,
) -> tuple[CRF, list[float]]:
    """Adam with a cosine schedule; returns the model and the mean loss of every epoch."""
    images, labels = (jnp.asarray(part) for part in data)
    batch = min(batch, len(images))
    steps = len(images) // batch
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, epochs * steps))
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def epoch(model, state, order):
        dynamic, static = eqx.partition(model, eqx.is_inexact_array)

        def step(carry, rows):
            dynamic, state = carry
            loss, grads = jax.value_and_grad(
                lambda d: LOSSES[method](graph, eqx.combine(d, static), images[rows], labels[rows])
            )(dynamic)
            updates, state = optimiser.update(grads, state)
            return (optax.apply_updates(dynamic, updates), state), loss

        (dynamic, state), losses = jax.lax.scan(step, (dynamic, state), order)
        return eqx.combine(dynamic, static), state, jnp.mean(losses)

    rng = np.random.default_rng(seed)
    history = []
    for _ in range(epochs):
        order = jnp.asarray(rng.permutation(len(images))[: steps * batch].reshape(steps, batch))
        model, state, loss = epoch(model, state, order)
        history.append(float(loss))
        after_epoch(history[-1])
    return model, history


def evaluate(
    graph: klprojax.FactorGraph, model: CRF, method: str, data: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Pixel accuracy, share of images without a wrong pixel, and cross-entropy in nats."""
    images, labels = data
    ink = np.asarray(eqx.filter_jit(predict)(graph, model, jnp.asarray(images), method))
    right = (ink > 0.5) == labels
    n = right.size
    probability = np.where(labels == 1, ink, 1.0 - ink).astype(np.float64)
    out = {
        "pixel_accuracy": float(right.mean()),
        "standard_error": math.sqrt(right.mean() * (1.0 - right.mean()) / n),
        "images_without_error": float(right.all(axis=1).mean()),
        "cross_entropy": float(-np.log(probability).mean()),
    }
    if method != "network":
        _, solution = eqx.filter_jit(infer)(graph, model, jnp.asarray(images))
        out["converged"] = float(np.mean(np.asarray(solution.converged)))
        out["steps"] = float(np.mean(np.asarray(solution.steps)))
    return out


def plot(path: Path, data: Any, predictions: dict[str, np.ndarray], histories: Any) -> None:
    """A few held-out digits as each method sees them, and the losses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images, labels = data
    shown = min(8, len(images))
    rows = {"noisy": images, "clean": labels.reshape(images.shape)}
    rows |= {name: ink.reshape(images.shape) for name, ink in predictions.items()}
    figure = plt.figure(figsize=(1.0 * shown + 4.5, 1.05 * len(rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[shown, 4.5])
    for row, (name, pictures) in zip(
        left.subplots(len(rows), shown, squeeze=False), rows.items(), strict=True
    ):
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture, cmap="gray_r", vmin=min(0.0, float(images.min())), vmax=1.0)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    axes = right.subplots()
    for name, history in histories.items():
        axes.plot(range(1, len(history) + 1), history, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss, nats a pixel")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("crf", __doc__, METHODS)
    out.add_argument("--plot", type=Path, metavar="OUT", help="draw digits and losses here")
    out.add_argument("--flip", type=float, default=0.15, help="probability that a pixel flips")
    out.add_argument("--epochs", type=int, default=40)
    out.add_argument("--batch", type=int, default=100)
    out.add_argument("--width", type=int, default=8, help="channels of the network")
    out.add_argument("--learning-rate", type=float, default=0.02)
    out.add_argument("--held-out", type=int, default=597, help="images to test on, of 1797")
    out.add_argument("--limit", type=int, help="use only this many training images")
    out.add_argument("--seed", type=int, default=0)
    return out


def table(results: dict[str, Any]) -> str:
    """One line a method."""
    f = shared.figure
    return shared.markdown_table(
        (
            "method",
            "pixel accuracy",
            "± s.e.",
            "images without error",
            "cross-entropy, nats",
            "train s",
            "BP converged",
            "mean steps",
        ),
        [
            (
                name,
                f(r["test"]["pixel_accuracy"], ".4f"),
                f(r["test"]["standard_error"], ".4f"),
                f(r["test"]["images_without_error"], ".3f"),
                f(r["test"]["cross_entropy"], ".4f"),
                f(r.get("seconds"), ".1f"),
                f(r["test"].get("converged"), ".3f"),
                f(r["test"].get("steps"), ".1f"),
            )
            for name, r in results.items()
        ],
    )


def main(argv: list[str] | None = None) -> int:
    """Train, test, print; 1 if a field is not better than the network alone."""
    options = parser().parse_args(argv)
    methods = [m for m in METHODS if not options.only or m in options.only]
    data = digits(options.flip, options.held_out, options.seed)
    if options.limit:
        data["train"] = tuple(part[: options.limit] for part in data["train"])
    side = data["train"][0].shape[1]
    graph = grid_graph(side)
    noisy, labels = data["test"]
    wrong = float(((noisy.reshape(labels.shape) > 0) != labels).mean())
    results: dict[str, Any] = {}
    histories, predictions = {}, {}
    with shared.progress(Console(stderr=True)) as bar:
        for method in methods:
            task = bar.add_task(method, total=options.epochs)

            def advance(loss, task=task, method=method):
                bar.update(task, advance=1, description=f"{method} {loss:.4f}")

            start = shared.now()
            model, history = train(
                graph,
                CRF(graph, side, options.width, key=jax.random.key(options.seed)),
                method,
                data["train"],
                epochs=options.epochs,
                batch=options.batch,
                learning_rate=options.learning_rate,
                seed=options.seed,
                after_epoch=advance,
            )
            results[method] = {
                "seconds": shared.now() - start,
                "loss": history,
                "test": evaluate(graph, model, method, data["test"]),
            }
            histories[method] = history
            predictions[method] = np.asarray(predict(graph, model, jnp.asarray(noisy[:8]), method))
    alone = results.get("network")
    worse = [
        name
        for name, r in results.items()
        if alone
        and name != "network"
        and r["test"]["pixel_accuracy"] <= alone["test"]["pixel_accuracy"]
    ]
    facts = {
        "benchmark": "crf",
        **shared.environment(64 if jax.config.jax_enable_x64 else 32),
        "settings": {k: v for k, v in vars(options).items() if isinstance(v, int | float | None)},
        "noisy_pixel_accuracy": 1.0 - wrong,
        "no_better_than_network": worse,
        "results": results,
    }
    text = (
        f"# Denoising digits with a conditional random field\n\n`python -m benchmarks crf`: "
        f"{len(data['train'][0])} training and {len(noisy)} held-out images, pixels flipped with "
        f"probability {options.flip:g} (pixel accuracy of the noisy images {1.0 - wrong:.4f}), "
        f"{options.epochs} epochs, seed {options.seed}, {facts['device']}, jax "
        f"{facts['versions']['jax']}, {facts['date'][:10]}.\n\n" + table(results)
    )
    shared.publish(options, text, facts)
    if options.plot:
        plot(options.plot, (noisy[:8], labels[:8]), predictions, histories)
    return 1 if worse else 0
