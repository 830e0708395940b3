"""The networks of ``klprojax train``: what they take, and that projections train them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from klprojax.cli._architectures import make_architecture, row_shape
from klprojax.fitting import Dataset
from klprojax.training import CrossEntropy, GradientStep, ProjectionStep

ROWS = 6


def dataset(kind):
    rng = np.random.default_rng(0)
    shape = {"table": (5,), "grey": (6, 6), "last": (6, 5, 3), "first": (3, 6, 5), "text": (4,)}[
        kind
    ]
    if kind == "text":
        x, y = rng.integers(0, 5, (2, ROWS, 4)).astype(np.int32)
        return Dataset(*[(x, y)] * 3, 5, "text", shape)
    x = rng.normal(size=(ROWS, int(np.prod(shape))))
    return Dataset(*[(x, np.arange(ROWS, dtype=np.int32) % 3)] * 3, 3, shape=shape)


CASES = [
    ("mlp", "text", (8, 6)), ("cnn", "grey", (4, 5)), ("cnn", "last", (4,)), ("cnn", "first", (4,)),
    ("cnn", "text", (8, 8)), ("resnet", "last", (4, 8)), ("resnet", "text", (8, 8)),
    ("gru", "table", (6, 5)), ("gru", "grey", (6,)), ("gru", "text", (6,)),
    ("transformer", "table", (8,)), ("transformer", "grey", (8,)), ("transformer", "text", (8,)),
]  # fmt: skip


def build(name, kind, widths, dtype=np.float64):
    data = dataset(kind)
    model = make_architecture(name, data, widths, 0, skip=False, dtype=dtype)
    x, y = map(jnp.asarray, data.train)
    x = x.reshape(ROWS, *row_shape(name, data))
    return model, (x if kind == "text" else x.astype(dtype)), y


@pytest.mark.parametrize(("name", "kind", "widths"), CASES)
def test_networks_give_one_output_per_class_in_their_dtype(name, kind, widths):
    model, x, _ = build(name, kind, widths, np.float32)
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    outputs = jax.eval_shape(jax.vmap(model), x)
    assert outputs.dtype == np.float32
    assert outputs.shape == ((ROWS, 4, 5) if kind == "text" else (ROWS, 3))


@pytest.mark.parametrize(("name", "widths"), [(n, w) for n, k, w in CASES if k == "text"])
def test_predictions_of_text_see_the_past_only(name, widths):
    model, x, _ = build(name, "text", widths)
    one = x[0]
    other = one.at[2].set((one[2] + 1) % 5)
    before, after = np.asarray(jax.jit(jax.vmap(model))(jnp.stack([one, other])))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert (before[2] != after[2]).any()


def test_channels_may_come_first_or_last():
    data = dataset("last")
    model = make_architecture("cnn", data, (4,), 0, skip=False, dtype=np.float64)
    x = jnp.asarray(data.train[0][0]).reshape(6, 5, 3)
    # Roundings: the same sums.
    np.testing.assert_allclose(model(x), model(jnp.moveaxis(x, 2, 0)), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "kind", "widths"),
    [
        ("mlp", "text", (4,)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case[1] != "first"),
    ],
)
def test_steps_of_both_kinds_train_every_network(name, kind, widths):
    model, x, y = build(name, kind, widths)
    for step in (GradientStep(optax.adam(0.01)), ProjectionStep()):
        update = eqx.filter_jit(
            lambda model, state, step=step: step.update(
                model, state, x, y, jnp.ones(ROWS), CrossEntropy()
            )
        )
        now, state, losses = model, step.init(model), []
        for _ in range(60):
            now, state, info = update(now, state)
            losses.append(float(info.loss))
        assert losses[-1] < 0.9 * losses[0]
