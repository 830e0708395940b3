"""A conditional random field: both losses have the right gradient, and learning helps."""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klprojax
from benchmarks import crf

SIDE, WIDTH = 3, 2


@pytest.fixture
def problem(monkeypatch):
    """A 3 x 3 field in float64, weak ties, converged far below the tolerances here."""
    monkeypatch.setattr(
        crf, "SOLVER", klprojax.BeliefPropagation(damping=0.2, tolerance=1e-13, engine="fast")
    )
    monkeypatch.setattr(crf, "MAX_STEPS", 500)
    graph = crf.grid_graph(SIDE)
    model = crf.CRF(graph, SIDE, WIDTH, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    model = eqx.tree_at(
        lambda m: m.pairwise,
        model,
        tuple(jnp.asarray(0.3 * rng.normal(size=t.shape)) for t in model.pairwise),
    )
    images = jnp.asarray(rng.choice([-1.0, 1.0], size=(4, SIDE, SIDE)))
    labels = jnp.asarray(rng.integers(0, 2, size=(4, SIDE * SIDE)))
    return graph, model, images, labels


def direction_of(model, seed):
    keys = jax.random.key(seed)
    return jax.tree.map(
        lambda x: jax.random.normal(keys, x.shape, x.dtype), eqx.filter(model, eqx.is_array)
    )


def central_difference(loss, model, direction, step=1e-4):
    move = lambda by: eqx.apply_updates(model, jax.tree.map(lambda d: by * d, direction))  # noqa: E731
    return (loss(move(step)) - loss(move(-step))) / (2 * step)


@pytest.mark.parametrize("method", ["crf_marginals", "crf_likelihood"])
def test_gradient_is_the_derivative_of_the_loss(problem, method):
    graph, model, images, labels = problem
    both = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda m: crf.LOSSES[method](graph, m, images, labels))
    )
    _, grads = both(model)
    direction = direction_of(model, 1)
    along = sum(
        jnp.vdot(a, b)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert abs(along) > 1e-2  # a vanishing derivative would prove nothing
    # Central differences err by step^2, 1e-8, times third derivatives of order one.
    np.testing.assert_allclose(
        along, central_difference(lambda m: both(m)[0], model, direction), rtol=1e-6
    )


def test_likelihood_is_the_bethe_likelihood(problem):
    graph, model, images, labels = problem
    unaries, solution = eqx.filter_jit(crf.infer)(graph, model, images)
    wanted = 0.0
    for image in range(4):
        total = solution.log_partition[image]
        for pixel in range(SIDE * SIDE):
            total -= unaries[image, pixel, labels[image, pixel]]
        for table, scopes in zip(model.pairwise, graph.group_scopes, strict=True):
            for edge, (a, b) in enumerate(scopes):
                total -= table[edge, labels[image, a], labels[image, b]]
        wanted += total / (4 * SIDE * SIDE)
    # A few hundred float64 additions.
    loss = eqx.filter_jit(lambda m: crf.likelihood_loss(graph, m, images, labels))
    np.testing.assert_allclose(loss(model), wanted, rtol=1e-12)


def test_batched_beliefs_are_those_of_single_images(problem):
    graph, model, images, _ = problem
    unaries, together = eqx.filter_jit(crf.infer)(graph, model, images)
    for image in range(4):
        alone = klprojax.infer(
            graph, model.pairwise, crf.SOLVER, log_evidence=(unaries[image],), max_steps=500
        )
        # Both stop at the same tolerance, 1e-13, which rounding may meet a step apart.
        np.testing.assert_allclose(
            jnp.exp(together.log_beliefs[0][image]), alone.beliefs[0], atol=1e-12
        )


@pytest.mark.slow
def test_command_trains_and_the_field_beats_the_network(tmp_path, capsys):
    with warnings.catch_warnings():
        # scikit-learn's own deprecations are not ours to fix.
        warnings.simplefilter("ignore")
        pytest.importorskip("sklearn.datasets")
    # optax's schedules mix dtypes.
    with jax.numpy_dtype_promotion("standard"):
        status = crf.main(
            [
                *("--epochs", "4", "--limit", "300", "--held-out", "200", "--width", "4"),
                *("--json", str(tmp_path / "crf.json"), "--markdown", str(tmp_path / "crf.md")),
            ]
        )
    facts = json.loads((tmp_path / "crf.json").read_text())
    results = facts["results"]
    assert set(results) == set(crf.METHODS)
    alone = results["network"]["test"]["pixel_accuracy"]
    for method in ("crf_marginals", "crf_likelihood"):
        assert results[method]["loss"][-1] < results[method]["loss"][0]
        # 200 x 64 pixels: the standard error is 0.003; the field gains several of them.
        assert results[method]["test"]["pixel_accuracy"] > alone + 0.01
    assert status == 0
    assert "crf_likelihood" in capsys.readouterr().out
