"""What the default device makes of this package: times, peak memory, share of the roofline.

Runs on any device of JAX, a CPU too, within ``--seconds`` in all. First the two ceilings: bandwidth
of a copy, and rates of matrix products. Then belief propagation, its gradient, circuits, decoding
and updates of a network, in float32, each checked against float64 on the host's CPU. The exit
status is 1 if an answer is wrong or a row failed; rows that the time did not suffice for are named.

On an accelerator each row has a process of its own, as the peak of its memory is that of a process.
"""

import argparse
import os
import platform as platforms
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _shared as shared

CEILINGS = ("copy", "product float32 highest")
WRONG = ("wrong", "error", "died")
# Seconds of repeats per row at most, and their number.
TIMED_S = {"full": 4.0, "tiny": 0.02}
LEAST, MOST = 3, 100


def device_facts() -> dict[str, Any]:
    """What runs, and what it depends on."""
    device, platform = _device()
    return {
        **shared.environment(32),
        "platform": platform,
        "device_kind": _cpu_name() if platform == "cpu" else device.device_kind,
        "host": _cpu_name(),
        "load": list(os.getloadavg()),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platforms.processor() or platforms.machine()


def _device() -> tuple[Any, str]:
    """The default device and its platform."""
    import jax

    return jax.devices()[0], jax.devices()[0].platform


def measure(name: str, size: str, seconds: float) -> dict[str, Any]:
    """One row: compile, run, time for about so many seconds, check against the host.

    With no name: what the device is.
    """
    if not name:
        return device_facts()
    import jax

    from benchmarks._device_rows import TASKS

    device, platform = _device()
    with jax.enable_x64(False):
        start = shared.now()
        task = TASKS[name](size, platform)
        arguments = placed(task.arguments, np.float32, device)
        build = shared.now() - start
        # Elsewhere the library asks for what it needs, and the check shows that it does.
        with jax.default_matmul_precision("highest" if task.products else "default"):
            first, compiled, found = first_call(task.function, arguments)
        samples = sample(lambda: compiled(*arguments), seconds, platform)
        memory = memory_of(compiled, device)
        row = {
            "status": "ok",
            "build_s": build,
            **first,
            "median_s": statistics.median(samples),
            "min_s": min(samples),
            "samples": len(samples),
            **memory,
            **counted(task, found, compiled),
        }
        lowered = None
        if task.products and platform != "cpu":
            _, compiled, lowered = first_call(task.function, arguments)
            quick = sample(lambda: compiled(*arguments), seconds / 2, platform)
            row["default_precision"] = {"median_s": statistics.median(quick)}
    start = shared.now()
    pairs = pairs_of(task, found)
    row |= judged(task, pairs)
    if lowered is not None:
        right = {key: wanted for key, (_, wanted) in pairs.items()}
        again = {key: (value, right[key]) for key, value in leaves(lowered).items()}
        row["default_precision"]["error"] = judged(task, again)["error"]
    row["host_s"] = shared.now() - start
    return row


def placed(tree: Any, dtype: Any, device: Any) -> Any:
    """All leaves on a device, floats of single precision in ``dtype``."""
    import jax

    def one(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return jax.device_put(leaf.astype(dtype) if leaf.dtype == np.float32 else leaf, device)

    return jax.tree.map(one, tree)


def first_call(function: Callable[..., Any], arguments: Any) -> tuple[dict[str, Any], Any, Any]:
    """Trace, compile and run once: seconds of each, the program, its answer in numpy."""
    import jax

    start = shared.now()
    lowered = jax.jit(function).lower(*arguments)
    traced = shared.now()
    compiled = lowered.compile()
    made = shared.now()
    found = jax.block_until_ready(compiled(*arguments))
    end = shared.now()
    seconds = {
        "first_s": end - start,
        "trace_s": traced - start,
        "compile_s": made - traced,
        "first_run_s": end - made,
    }
    return seconds, compiled, jax.tree.map(np.asarray, found)


def sample(run: Callable[[], Any], seconds: float, platform: str) -> list[float]:
    """Wall seconds per call: warmed up, each sample ended by waiting for its last call.

    On an accelerator short calls are put in a queue together, 10 ms of them per sample, so that
    the time to wait for an answer does not count.
    """
    import jax

    def timed(calls: int) -> float:
        start = shared.now()
        for _ in range(calls):
            out = run()
        jax.block_until_ready(out)
        return (shared.now() - start) / calls

    once = timed(1)
    calls = 1 if platform == "cpu" else max(1, min(1000, int(0.01 / once)))
    count = max(LEAST, min(MOST, int(seconds / (calls * once))))
    return [timed(calls) for _ in range(count)]


def memory_of(compiled: Any, device: Any) -> dict[str, Any]:
    """Peak of the device's memory: what its allocator saw, else what the program asks for."""
    found = compiled.memory_analysis()
    stats = device.memory_stats() or {}
    asked = None
    if found is not None:
        asked = int(
            found.argument_size_in_bytes
            + found.output_size_in_bytes
            + found.temp_size_in_bytes
            - found.alias_size_in_bytes
        )
    peak = stats.get("peak_bytes_in_use")
    return {
        "program_bytes": asked,
        "peak_bytes": asked if peak is None else int(peak),
        "peak_source": "compiled program" if peak is None else "allocator",
    }


def counted(task: Any, found: Any, compiled: Any) -> dict[str, Any]:
    """Least work by hand, and the compiler's own count of the program it made."""
    amount, flops = (x(found) if callable(x) else x for x in (task.amount, task.flops))
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return {
        "amount": amount,
        "unit": task.unit,
        "flops": flops,
        "bytes": task.bytes,
        "counted": task.counted,
        "compiler_flops": analysis.get("flops"),
        "compiler_bytes": analysis.get("bytes accessed"),
    }


def on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    """Evaluate in double precision on the host's CPU; the answer in numpy."""
    import jax

    with jax.enable_x64(True):
        given = placed(arguments, np.float64, jax.devices("cpu")[0])
        return jax.tree.map(np.asarray, jax.jit(function)(*given))


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by their place in the tree."""
    import jax

    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def pairs_of(task: Any, found: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What was found and what is right, by name."""
    if task.pairs is not None:
        return task.pairs(found, lambda *arguments: on_host(task.function, *arguments))
    right = leaves(on_host(task.function, *task.arguments))
    return {key: (value, right[key]) for key, value in leaves(found).items()}


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """``||found - wanted|| / ||wanted||`` in double precision; infinite where one is not finite."""
    found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
    scale = float(np.linalg.norm(wanted))
    gap = float(np.linalg.norm(found - wanted)) / (scale if scale > 0 else 1.0)
    return gap if np.isfinite(gap) and found.size else float("inf")


def judged(task: Any, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The worst error, where it is, and whether it is allowed."""
    errors = {key: error(*pair) for key, pair in pairs.items()}
    worst = max(errors, key=errors.__getitem__)
    return {
        "status": "ok" if errors[worst] <= task.tolerance else "wrong",
        "error": errors[worst],
        "error_at": worst,
        "tolerance": task.tolerance,
        "because": task.because,
    }


def ceilings(rows: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Bytes per second of the copy and flops per second of the float32 product, best samples."""
    best = {
        row["row"]: row["amount"] / row["min_s"]
        for row in rows
        if row["row"] in CEILINGS and row["status"] == "ok"
    }
    return best.get(CEILINGS[0]), best.get(CEILINGS[1])


def rate_shares(rows: list[dict[str, Any]]) -> None:
    """Add to each row its least seconds by both ceilings, and their larger over the median."""
    bandwidth, rate = ceilings(rows)
    for row in rows:
        if "median_s" not in row:
            continue
        row["per_s"] = row["amount"] / row["median_s"]
        if bandwidth is None or rate is None:
            continue
        moving, computing = row["bytes"] / bandwidth, row["flops"] / rate
        row["bound"] = "bandwidth" if moving >= computing else "products"
        row["share"] = max(moving, computing) / row["median_s"]


def markdown(report: dict[str, Any]) -> str:
    """The table and what it rests on."""
    f, mega = shared.figure, 1e-6
    body, notes = [], []
    for row in report["rows"]:
        if "median_s" not in row:
            body.append([row["row"], row["status"], *["-"] * 10])
            notes.append(f"- {row['row']}: **{row['status']}**: {row['detail']}.")
            continue
        wrong = row["status"] != "ok"
        body.append(
            [
                row["row"],
                f(row["first_s"], ".2f"),
                f(1e3 * row["median_s"], ".4g"),
                f(1e3 * row["min_s"], ".4g"),
                _rate(row["per_s"], row["unit"]),
                f(_scaled(row["peak_bytes"], 1 / 2**20), ".1f"),
                f"{row['bytes'] * mega:.4g} ({f(_scaled(row['compiler_bytes'], mega), '.4g')})",
                f"{row['flops'] * mega:.4g} ({f(_scaled(row['compiler_flops'], mega), '.4g')})",
                f(_scaled(row.get("share"), 100), ".0f") + (" %" if "share" in row else ""),
                row.get("bound", "-"),
                f"{'**WRONG** ' if wrong else ''}{f(row['error'], '.1e')}",
                f(row["tolerance"], ".0e"),
            ]
        )
        lowered = row.get("default_precision")
        more = ""
        if lowered:
            more = (
                f" With products at JAX's default precision: {1e3 * lowered['median_s']:.4g} ms, "
                f"error {f(lowered['error'], '.1e')}."
            )
        notes.append(
            f"- {row['row']}: {row['counted']}. Tolerance: {row['because']}; the largest error is "
            f"at `{row['error_at']}`.{more}"
        )
    bandwidth, rate = ceilings(report["rows"])
    known = "no accelerator, " if report["platform"] == "cpu" else ""
    headings = (
        "row", "first call s", "median ms", "min ms", "per second", "peak MiB", "MB (XLA)",
        "Mflop (XLA)", "of the roofline", "bound by", "error", "tolerance",
    )  # fmt: skip
    sources = {row["peak_source"] for row in report["rows"] if "peak_source" in row}
    return (
        f"# This package on {report['device_kind']}\n\n"
        f"`python -m benchmarks device`, size {report['size']}: {known}{report['device']} "
        f"({report['platform']}), host {report['host']} with {report['cpu_count']} cores; float32; "
        f"jax {report['versions']['jax']}, jaxlib {report['versions']['jaxlib']}, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}, load {report['load'][0]:.1f}; "
        f"{report['seconds']:.0f} of {report['budget_s']:.0f} s used.\n\n"
        f"Ceilings: copy {f(_scaled(bandwidth, 1e-9), '.4g')} GB/s (read and written), float32 "
        f"products {f(_scaled(rate, 1e-9), '.4g')} Gflop/s. The share of the roofline is the "
        "larger of least bytes and least flops over its ceiling, over the median; above 100 % "
        "where caches serve what is counted as memory. The first call traces, compiles and runs; "
        "times after it are wall time per call. XLA's own counts stand in brackets; it counts the "
        "body of a loop once. Peak memory as the "
        f"{' and the '.join(sorted(sources)) or 'device'} has it. "
        "The error is the norm of the difference from float64 on the host over the norm of that; "
        "the updates' products are at the highest precision where not said otherwise.\n\n"
        + shared.markdown_table(headings, body)
        + "\n"
        + "\n".join(notes)
        + "\n"
    )


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def _rate(value: float, unit: str) -> str:
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix} {unit}s"
    return f"{value:.3g} {unit}s"


def parser() -> argparse.ArgumentParser:
    """The options."""
    from benchmarks._device_rows import TASKS

    out = shared.base_parser("device", __doc__, tuple(TASKS))
    out.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: for tests")
    out.add_argument(
        "--seconds", type=float, default=440.0, metavar="S", help="for all of it (default: 440)"
    )
    out.add_argument("--commit", help="the commit to name where git is not there")
    return out


def main(argv: list[str] | None = None) -> int:
    """Run row by row, print, write; 1 if an answer is wrong or a row failed."""
    start = shared.now()
    options = parser().parse_args(argv)
    from benchmarks._device_rows import TASKS

    asked = os.environ.get("JAX_PLATFORMS")
    if asked and "cpu" not in asked.split(","):
        os.environ["JAX_PLATFORMS"] = f"{asked},cpu"  # the host checks
    # Only the worker touches devices: two processes would share an accelerator's memory.
    worker = shared.Worker(measure, {"float_bits": 32})
    facts = worker.run(options.seconds, "", options.size, 0.0)
    if "status" in facts:
        raise SystemExit(f"No device answers: {facts.get('detail', facts['status'])}.")
    rows: list[dict[str, Any]] = []
    report = {"benchmark": "device", "size": options.size, "budget_s": options.seconds, **facts}
    report |= {"commit": facts["commit"] or options.commit, "rows": rows}
    names = [name for name in TASKS if not options.only or name in options.only]
    for place, name in enumerate(shared.tracked(names, str)):
        left = options.seconds - (shared.now() - start)
        if left > 0:
            # A third of a row's share goes into repeats; the rest compiles and checks.
            repeats = min(TIMED_S[options.size], left / (len(names) - place) / 3)
            row = worker.run(left, name, options.size, repeats)
            if facts["platform"] != "cpu":
                worker.stop()
        else:
            row = {"status": "dropped", "detail": f"{options.seconds:g} s were used up before it"}
        if row["status"] == "time limit":
            row["detail"] = f"stopped when {options.seconds:g} s were used up"
        rows.append({"row": name, **row})
        rate_shares(rows)
        report["seconds"] = shared.now() - start
        if options.json is not None:
            shared.write_json(options.json, report)
    worker.stop()
    shared.publish(options, markdown(report), report)
    return int(any(row["status"] in WRONG for row in rows))
