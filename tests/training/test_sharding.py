"""Batches split over two devices give what one device gives."""

import os
import subprocess
import sys

SCRIPT = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
from klprojax.training import AbstractStep, GradientStep, StepInfo, evaluate, fit

assert len(jax.local_devices()) == 2
seen = []

class Watched(AbstractStep):
    inner: GradientStep

    def init(self, model):
        return self.inner.init(model)

    def update(self, model, state, x, y, weights, loss):
        jax.debug.inspect_array_sharding(x, callback=lambda s: seen.append(("x", s)))
        weight = model.layers[0].weight
        jax.debug.inspect_array_sharding(weight, callback=lambda s: seen.append(("weight", s)))
        return self.inner.update(model, state, x, y, weights, loss)

def cross_entropy(outputs, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1)[:, 0]

rng = np.random.default_rng(0)
x, y = rng.normal(size=(53, 4)), rng.integers(0, 3, 53).astype(np.int32)
held = rng.normal(size=(7, 4)), rng.integers(0, 3, 7).astype(np.int32)
model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))

def run(devices, size):
    step = Watched(GradientStep(optax.adam(0.01)))
    # 5 rows per batch do not divide by 2, nor do 53 by 5; the full batch of 53 is padded too.
    return fit(model, step, (x, y), held, loss=cross_entropy, epochs=4, batch_size=size,
               windows=(2,), devices=devices)

for size in (5, None):
    seen.clear()
    two = run(None, size)
    shapes = {name: s.shard_shape((6, 4) if size else (54, 4)) for name, s in seen if name == "x"}
    assert shapes == {"x": (3, 4) if size else (27, 4)}, shapes
    assert all(s.is_fully_replicated for name, s in seen if name == "weight")
    one = run(jax.devices()[1:], size)
    for tree in ("model", "last_model"):
        a, b = (jax.tree.leaves(eqx.filter(getattr(r, tree), eqx.is_array)) for r in (two, one))
        for u, v in zip(a, b):
            assert len(u.devices()) == 2 and v.devices() == {jax.devices()[1]}
            # float64: the halves of a sum are rounded apart, about 1e-16 of it an update; adam
            # divides by its root mean square and keeps the order of size. Far below 1e-6.
            np.testing.assert_allclose(u, v, rtol=1e-9, atol=1e-12)
    for a, b in zip(two.history, one.history, strict=True):
        np.testing.assert_allclose(a["validation_loss"], b["validation_loss"], rtol=1e-9)
        if a["train_loss"] is not None:
            np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-9)
    np.testing.assert_allclose(
        evaluate(one.model, held, loss=cross_entropy).loss,
        evaluate(one.model, held, loss=cross_entropy, devices=jax.devices()[:1]).loss, rtol=1e-12)
print("equal")
"""


def test_two_devices_equal_one():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"
