"""Cost of the delta lift beside `jax.grad`: run time and trace time on an MLP and a transformer.

The claims: a jitted sweep takes at most 1.3 times the run time of the jitted gradient, and its
trace at most 5 times the trace time. Both sides alternate in one process; figures are medians.
"""

import argparse
import json
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from klprojax.lifting import delta_lift, exp_output

MAX_RUN_RATIO = 1.3
MAX_TRACE_RATIO = 5.0


def mlp_loss(dtype):
    """A 6-layer tanh network on a batch, squared error."""
    mlp = _cast(eqx.nn.MLP(128, 10, 256, 5, activation=jnp.tanh, key=jr.key(0)), dtype)
    x, y = jr.normal(jr.key(1), (256, 128), dtype), jr.normal(jr.key(2), (256, 10), dtype)
    params, static = eqx.partition(mlp, eqx.is_inexact_array)

    def loss(params, x):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    return loss, (params, x)


class _Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, width, key):
        k1, k2 = jr.split(key)
        self.attention = eqx.nn.MultiheadAttention(4, width, key=k1)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.mlp = eqx.nn.MLP(width, width, 4 * width, 1, activation=jax.nn.gelu, key=k2)

    def __call__(self, x):
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))


def transformer_loss(dtype):
    """A transformer block (softmax attention, layer norm, gelu) on a batch of sequences."""
    block = _cast(_Block(64, jr.key(0)), dtype)
    x = jr.normal(jr.key(1), (16, 64, 64), dtype)
    params, static = eqx.partition(block, eqx.is_inexact_array)

    def loss(params, x):
        return jnp.mean(jnp.square(jax.vmap(eqx.combine(params, static))(x)))

    return loss, (params, x)


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)


def _seconds(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(make, *, repeats, trace_repeats, dtype):
    """Return medians of run, trace and compile time of both sides, interleaved."""
    loss, args = make(dtype)
    phi = exp_output(1.0)
    sides = {
        "lift": lambda *args: delta_lift(loss, *args).sensitivities(phi).inputs,
        "grad": jax.grad(loss, argnums=tuple(range(len(args)))),
    }
    trace = {side: [] for side in sides}
    for _ in range(trace_repeats):
        for side, function in sides.items():
            jax.clear_caches()  # so that each trace starts cold, also of the shared local rules
            trace[side].append(_seconds(lambda f=function: jax.jit(lambda *a: f(*a)).trace(*args)))
    compiled, compile_s = {}, {}
    for side, function in sides.items():
        lowered = jax.jit(function).lower(*args)
        start = time.perf_counter()
        compiled[side] = lowered.compile()
        compile_s[side] = time.perf_counter() - start
    gap = max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(
            jax.tree.leaves(compiled["lift"](*args)),
            jax.tree.leaves(compiled["grad"](*args)),
            strict=True,
        )
    )
    run = {side: [] for side in sides}
    for _ in range(repeats):
        for side, function in compiled.items():
            run[side].append(_seconds(lambda f=function: f(*args)))
    run_s = {side: statistics.median(times) for side, times in run.items()}
    trace_s = {side: statistics.median(times) for side, times in trace.items()}
    return {
        "run_s": run_s,
        "run_ratio": run_s["lift"] / run_s["grad"],
        "trace_s": trace_s,
        "trace_ratio": trace_s["lift"] / trace_s["grad"],
        "compile_s": compile_s,
        "largest_difference": gap,
    }


def main(argv=None) -> int:
    """Measure, print, and fail when a claim does not hold."""
    parser = argparse.ArgumentParser(prog="lift", description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=41, help="timed runs of each side")
    parser.add_argument("--trace-repeats", type=int, default=7, help="timed traces of each side")
    parser.add_argument("--precision", type=int, choices=(32, 64), default=32)
    options = parser.parse_args(argv)
    if options.precision == 64:
        jax.config.update("jax_enable_x64", True)
    dtype = jnp.float64 if options.precision == 64 else jnp.float32
    results = {
        name: measure(
            make, repeats=options.repeats, trace_repeats=options.trace_repeats, dtype=dtype
        )
        for name, make in {"mlp": mlp_loss, "transformer_block": transformer_loss}.items()
    }
    report = {
        "benchmark": "lift",
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "precision": options.precision,
        "limits": {"run_ratio": MAX_RUN_RATIO, "trace_ratio": MAX_TRACE_RATIO},
        "results": results,
    }
    holds = True
    for name, row in results.items():
        good = row["run_ratio"] <= MAX_RUN_RATIO and row["trace_ratio"] <= MAX_TRACE_RATIO
        holds &= good
        print(
            f"{name:18} run {1e3 * row['run_s']['lift']:.2f} ms, grad"
            f" {1e3 * row['run_s']['grad']:.2f} ms, ratio {row['run_ratio']:.2f};"
            f" trace {1e3 * row['trace_s']['lift']:.0f} ms, grad"
            f" {1e3 * row['trace_s']['grad']:.0f} ms, ratio {row['trace_ratio']:.2f};"
            f" {'holds' if good else 'DOES NOT HOLD'}"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
