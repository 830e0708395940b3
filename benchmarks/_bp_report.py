"""Tables, targets and the picture of ``python -m benchmarks bp``."""

from pathlib import Path
from typing import Any

from benchmarks import _shared as shared

RUN_TARGETS = {"ising100": 5.0, "ising300": 5.0, "states8": 5.0, "states64": 20.0}
FIRST_TARGET = 5.0
GRADIENT_TARGET = 10.0
FLATNESS = 0.10
# float32 rounding over tens of iterations of a map that contracts, or nearly so.
MAX_DIFFERENCE = 1e-4
MAX_GRADIENT_DIFFERENCE = 1e-3


def targets(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim with what was measured; speed is judged at full size only."""
    out: list[dict[str, Any]] = []

    def claim(name: str, found: float | None, wanted: float, *, least: bool) -> None:
        if found is not None:
            met = found >= wanted if least else found <= wanted
            kind = "at least" if least else "at most"
            out.append({"claim": name, "found": found, kind: wanted, "met": bool(met)})

    full = facts["size"] == "full"
    for row in facts.get("inference", []):
        case = row["case"]
        claim(f"{case}: difference from PGMax", row["max_difference"], MAX_DIFFERENCE, least=False)
        if full and "ratios" in row and case in RUN_TARGETS:
            claim(f"{case}: run, ratio", row["ratios"]["run"], RUN_TARGETS[case], least=True)
            claim(f"{case}: first call, ratio", row["ratios"]["first"], FIRST_TARGET, least=True)
    for row in facts.get("gradient", []):
        name = f"gradient T={row['iterations']} {row['adjoint']}"
        claim(
            f"{name}: relative difference from PGMax",
            row["relative_difference"],
            MAX_GRADIENT_DIFFERENCE,
            least=False,
        )
        if full and (row["iterations"], row["adjoint"]) == (200, "implicit"):
            claim(f"{name}: ratio", row["ratio"], GRADIENT_TARGET, least=True)
    flat = [row["implicit"] for row in facts.get("memory", []) if row["implicit"] is not None]
    if flat:
        claim(
            "ImplicitAdjoint: growth of temporaries with the iterations",
            max(flat) / min(flat) - 1.0,
            FLATNESS,
            least=False,
        )
    return out


def markdown(facts: dict[str, Any]) -> str:
    """The whole report."""
    peer = facts["peer"]
    versions = ", ".join(f"{k} {v}" for k, v in peer.get("versions", {}).items())
    source = {
        "live": "ran beside ours in the same invocation",
        "recorded": f"RECORDED on {peer.get('date')} on {peer.get('cpu')}, not run here",
        "none": "not run and not recorded",
    }[peer["source"]]
    missed = [t for t in facts["targets"] if not t["met"]]
    parts = [
        "# Belief propagation against PGMax\n",
        f"`python -m benchmarks bp`, float32, sum-product, no damping, exactly T iterations; "
        f"{facts['device']} ({facts['cpu']}, {facts['cpu_count']} cores), jax "
        f"{facts['versions']['jax']}, commit {str(facts['commit'])[:12]}"
        f"{' with changes' if facts['uncommitted_changes'] else ''}, {facts['date'][:10]}, load "
        f"{facts['load_before'][0]:.1f} to {facts.get('load_after', [0])[0]:.1f}. "
        f"PGMax ({versions or 'no versions'}): {source}.\n",
        "Times are CPU seconds of the whole process (wall seconds on an accelerator), medians of "
        "interleaved samples; a ratio is PGMax's time over ours. `infer` is called as a user "
        "would, and also returns the Bethe log-partition and the residual; PGMax returns "
        "marginals.\n",
    ]
    if missed:
        parts.append("**Missed:** " + "; ".join(_said(t) for t in missed) + ".\n")
    for key, build in (
        ("inference", _inference),
        ("gradient", _gradient),
        ("memory", _memory),
        ("batch", _batch),
        ("roofline", _roofline),
    ):
        if facts.get(key):
            parts.append(build(facts[key]))
    if facts["targets"]:
        parts.append(
            "## Claims\n\n"
            + "\n".join(
                f"- {'met' if t['met'] else 'MISSED'}: {_said(t)}" for t in facts["targets"]
            )
            + "\n"
        )
    return "\n".join(parts)


def _said(target: dict[str, Any]) -> str:
    kind = "at least" if "at least" in target else "at most"
    return f"{target['claim']} {target['found']:.3g} ({kind} {target[kind]:g})"


def _both(row: dict[str, Any], *path: str) -> tuple[str, str]:
    out = []
    for side in ("ours", "peer"):
        value: Any = row.get(side)
        for key in path:
            value = None if value is None else value.get(key)
        out.append(shared.figure(value, ".3g"))
    return out[0], out[1]


def _inference(rows: list[dict[str, Any]]) -> str:
    f = shared.figure
    heads = (
        "problem",
        "T",
        "run s",
        "least",
        "PGMax run s",
        "least",
        "ratio",
        "first call s",
        "PGMax jit",
        "ratio",
        "PGMax eager",
        "ratio",
        "build s",
        "PGMax",
        "peak MiB",
        "PGMax",
        "max difference",
        "messages/s",
    )
    lines = []
    for r in rows:
        c, q = r["clock"], r.get("ratios", {})
        run, least = _both(r, "run", c, "median"), _both(r, "run", c, "min")
        first, build = _both(r, "first", c), _both(r, "build", c)
        eager = _both(r, "eager_first", c)[1]
        rss = [f((r[s] or {}).get("peak_rss_mib"), ".0f") for s in ("ours", "peer")]
        lines.append(
            (
                r["case"],
                str(r["iterations"]),
                run[0],
                least[0],
                run[1],
                least[1],
                f(q.get("run"), ".1f"),
                first[0],
                first[1],
                f(q.get("first"), ".1f"),
                eager,
                f(q.get("first_eager"), ".1f"),
                *build,
                *rss,
                f(r["max_difference"], ".0e"),
                f(r["messages_per_s"], ".2g"),
            )
        )
    note = (
        "\n`first call`: graph built, compiled and run, in a fresh process after its imports. "
        "PGMax is timed under `jax.jit`, its faster form; `eager` is its first call without, "
        "after which its runs are slower:"
        + "".join(
            f" {r['case']} {r['peer']['eager_run'][r['clock']]['median']:.3g} s;"
            for r in rows
            if r["peer"] and "eager_run" in r["peer"]
        ).rstrip(";")
        + ".\n"
    )
    return "## Beliefs\n\n" + shared.markdown_table(heads, lines) + note


def _gradient(rows: list[dict[str, Any]]) -> str:
    f = shared.figure
    heads = (
        "problem",
        "T",
        "adjoint",
        "s",
        "PGMax s",
        "ratio",
        "compile s",
        "PGMax",
        "temporaries MiB",
        "PGMax",
        "relative difference",
    )
    lines = []
    for r in rows:
        c = r["clock"]
        temps = [
            f(None if not r[s] or r[s]["temp_bytes"] is None else r[s]["temp_bytes"] / 2**20, ".1f")
            for s in ("ours", "peer")
        ]
        lines.append(
            (
                r["case"],
                str(r["iterations"]),
                r["adjoint"],
                *_both(r, "run", c, "median"),
                f(r["ratio"], ".1f"),
                *_both(r, "compile", c),
                *temps,
                f(r["relative_difference"], ".0e"),
            )
        )
    note = (
        "\nValue and gradient, in all potentials and unaries, of the mean log-belief of one state "
        "of every variable. PGMax differentiates through its iterations (with its own "
        "rematerialisation).\n"
    )
    return "## Value and gradient\n\n" + shared.markdown_table(heads, lines) + note


def _memory(rows: list[dict[str, Any]]) -> str:
    mib = lambda v: shared.figure(None if v is None else v / 2**20, ".1f")  # noqa: E731
    lines = [
        (str(r["iterations"]), mib(r["implicit"]), mib(r["unrolled"]), mib(r["peer"])) for r in rows
    ]
    return (
        f"## Temporaries of the compiled gradient, MiB ({rows[0]['case']})\n\n"
        + shared.markdown_table(("T", "ImplicitAdjoint", "UnrolledAdjoint", "PGMax"), lines)
    )


def _batch(rows: list[dict[str, Any]]) -> str:
    f = shared.figure
    heads = (
        "problem",
        "batched",
        "count",
        "one call s",
        "single call s",
        "throughput over a loop, CPU",
        "wall",
        "PGMax one call s",
        "ratio",
        "peak MiB",
    )
    lines = [
        (
            r["case"],
            r["batched"],
            str(r["count"]),
            f(r["ours"]["run"][r["clock"]]["median"], ".3g"),
            f(r["ours"]["single"][r["clock"]]["median"], ".3g"),
            f(r["throughput"]["cpu_s"], ".2f"),
            f(r["throughput"]["wall_s"], ".2f"),
            f(None if not r["peer"] else r["peer"]["run"][r["clock"]]["median"], ".3g"),
            f(r["ratio"], ".1f"),
            f(r["ours"]["peak_rss_mib"], ".0f"),
        )
        for r in rows
    ]
    return "## Batches under `vmap`\n\n" + shared.markdown_table(heads, lines)


def _roofline(rows: list[dict[str, Any]]) -> str:
    f = shared.figure
    heads = (
        "problem",
        "MB per iteration",
        "ms per iteration",
        "GB/s",
        "triad GB/s",
        "share",
        "once per call ms",
    )
    scaled = lambda value, by, form: f(None if value is None else value * by, form)  # noqa: E731
    lines = [
        (
            r["case"],
            f(r["bytes"] / 1e6, ".2f"),
            scaled(r["seconds_per_iteration"], 1e3, ".3g"),
            scaled(r["achieved_bytes_per_s"], 1e-9, ".2f"),
            scaled(r["triad_bytes_per_s"], 1e-9, ".2f"),
            f(r["share"], ".2f"),
            scaled(r["once_per_call_s"], 1e3, ".1f"),
        )
        for r in rows
    ]
    note = (
        "\nLeast wall seconds; bytes each array must move once per iteration:\n"
        + "".join(f"- {r['case']}: {r['formula']}.\n" for r in rows)
        + (
            "\nThe triad runs on arrays far larger than the caches; a problem that fits in them "
            "can exceed it.\n"
        )
    )
    return "## Bandwidth\n\n" + shared.markdown_table(heads, lines) + note


def plot(facts: dict[str, Any], path: Path) -> None:
    """Bars of the ratios over PGMax, targets as marks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars: list[tuple[str, float, float | None]] = []
    for r in facts.get("inference", []):
        if "ratios" in r:
            bars.append((f"{r['case']}\nrun", r["ratios"]["run"], RUN_TARGETS.get(r["case"])))
            bars.append((f"{r['case']}\nfirst call", r["ratios"]["first"], FIRST_TARGET))
    for r in facts.get("gradient", []):
        if r["ratio"] is not None:
            judged = (r["iterations"], r["adjoint"]) == (200, "implicit")
            bars.append(
                (
                    f"gradient T={r['iterations']}\n{r['adjoint']}",
                    r["ratio"],
                    GRADIENT_TARGET if judged else None,
                )
            )
    figure, axes = plt.subplots(figsize=(max(4.0, 0.9 * len(bars)), 4.0), layout="constrained")
    axes.bar(range(len(bars)), [b[1] for b in bars], color="#4477aa")
    for at, (_, _, target) in enumerate(bars):
        if target is not None:
            axes.hlines(target, at - 0.45, at + 0.45, color="#cc3311", linewidth=2)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(bars)), [b[0] for b in bars], rotation=60, fontsize=8)
    axes.set_ylabel("PGMax time / our time")
    axes.set_title(f"red: target ({facts['peer']['source']} peer)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
