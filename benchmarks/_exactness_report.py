"""Tables of ``python -m benchmarks exactness_peers``."""

import statistics
from collections import Counter
from typing import Any

from benchmarks import _shared as shared

# Where pyAgrum needs more than so many seconds, we are to be so many times faster.
SLOW_S, TIMES_FASTER = 0.5, 5.0


def cell(facts: dict[str, Any], key: str, scale: float = 1e3) -> str:
    """Wall and processor time, or why there is none."""
    if key in facts:
        return " / ".join(f"{scale * facts[key][unit]:.3g}" for unit in ("wall_s", "cpu_s"))
    return "-" if facts.get("status", "done") == "done" else facts["status"]


def marginal_table(rows: list[dict[str, Any]]) -> str:
    """Times in ms."""
    body = []
    for row in rows:
        ours, pyagrum, pgmpy = (row["sides"].get(n, {}) for n in ("ours", "pyagrum", "pgmpy"))
        ratio = None
        if "changed" in ours and "changed" in pyagrum:
            ratio = pyagrum["changed"]["cpu_s"] / ours["changed"]["cpu_s"]
        gap = max(row["gaps"].values(), default=None)
        body.append(
            [row["case"], str(row["variables"])]
            + [cell(side, "first") for side in (ours, pyagrum, pgmpy)]
            + [cell(side, "again") for side in (ours, pyagrum, pgmpy)]
            + [cell(side, "changed") for side in (ours, pyagrum)]
            + [shared.figure(ratio, ".3g"), shared.figure(gap, ".0e")]
        )
    names = ("ours", "pyAgrum", "pgmpy")
    headings = ["network", "variables", *(f"first, {n}" for n in names)]
    headings += [*(f"again, {n}" for n in names), *(f"changed, {n}" for n in names[:2])]
    return shared.markdown_table([*headings, "times faster, changed", "difference"], body)


def map_table(rows: list[dict[str, Any]]) -> str:
    """Times in seconds."""
    body = []
    for row in rows:
        ours, theirs = row["ours"], row.get("toulbar2", {})
        gap = None
        if "score" in ours and "score" in theirs:
            gap = ours["score"] - theirs["score"]
        cells = []
        for side in (ours, theirs):
            times = {"t": side} if "wall_s" in side else {}
            cells += [side.get("status", "-"), cell(times, "t", 1.0)]
        score = shared.figure(ours.get("score"), ".6f")
        body.append([row["case"], str(row["variables"]), *cells, score, shared.figure(gap, ".1e")])
    headings = (
        "model",
        "variables",
        "ours",
        "s",
        "toulbar2",
        "s",
        "log-weight",
        "above toulbar2's",
    )
    return shared.markdown_table(headings, body)


def summary(report: dict[str, Any]) -> str:
    """Counts and ratios."""
    lines = []
    pairs = [
        (row["sides"]["ours"]["changed"]["cpu_s"], row["sides"]["pyagrum"]["changed"]["cpu_s"])
        for row in report["marginals"]
        if "changed" in row["sides"].get("pyagrum", {}) and "changed" in row["sides"]["ours"]
    ]
    if pairs:
        slow = [theirs / ours for ours, theirs in pairs if theirs > SLOW_S]
        lines.append(
            f"Changed evidence, processor seconds: faster than pyAgrum on "
            f"{sum(ours <= theirs for ours, theirs in pairs)} of {len(pairs)} rows"
            + (
                f"; where it needs more than {SLOW_S:g} s ({len(slow)} rows) "
                f"{min(slow):.1f} to {max(slow):.0f} times, median {statistics.median(slow):.0f}"
                if slow
                else ""
            )
            + "."
        )
    if any("toulbar2" in row for row in report["map"]):
        counts = {
            side: Counter(row[side]["status"] for row in report["map"] if side in row)
            for side in ("ours", "toulbar2")
        }
        both = [
            (row["ours"]["cpu_s"], row["toulbar2"]["cpu_s"])
            for row in report["map"]
            if row["ours"]["status"] == row.get("toulbar2", {}).get("status") == "solved"
        ]
        said = "; ".join(
            f"{side}: " + ", ".join(f"{n} {status}" for status, n in count.most_common())
            for side, count in counts.items()
        )
        lines.append(
            f"MAP of {len(report['map'])} models: {said}. Both solved {len(both)}"
            + (
                ", medians of processor seconds {:.2g} (ours) and {:.2g}".format(
                    *map(statistics.median, zip(*both, strict=True))
                )
                if both
                else ""
            )
            + "."
        )
    return "\n\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The report in words and tables."""
    rows = [*report["marginals"], *report["map"]]
    missed = [fault for row in rows for fault in row["faults"]]
    text = (
        "# Exact inference against pyAgrum, pgmpy and toulbar2\n\n"
        + (f"**Missed:** {'; '.join(missed)}.\n\n" if missed else "All targets met.\n\n")
        + summary(report)
        + "\n"
    )
    if report["marginals"]:
        text += (
            "\n## All marginals and log-probability of evidence\n\n"
            f"{how(report, 'marginals')}, least of at most "
            f"{report['runs']['marginals']['repeats']} calls. Wall / processor "
            "milliseconds, from a network in memory. `first`: a fresh "
            "process, tree search, triangulation and compilation included. `again`: all from the "
            "network once more. `changed`: graph or engine kept, other evidence; compared are "
            "processor seconds. `difference`: the largest between two sides and to the stored "
            "answers, marginals absolute, log-probability relative beyond 1.\n\n"
            + marginal_table(report["marginals"])
        )
    if report["map"]:
        text += (
            "\n## Most probable states\n\n"
            f"{how(report, 'map')}. Wall / processor seconds of one call; `log-weight` and `above "
            "toulbar2's` are float64 scores of the states found.\n\n" + map_table(report["map"])
        )
    return text


def how(report: dict[str, Any], part: str) -> str:
    """How a part was run."""
    run = report["runs"][part]
    return (
        f"`python -m benchmarks exactness_peers --part {part} --time-limit "
        f"{run['time_limit']:g}`, ours beside {', '.join(run['peers']) or 'no peer'}, each with "
        f"{run['memory_gib']:g} GiB; {run['device']}, {run['cpu_count']} cores, jax "
        f"{run['versions']['jax']}, commit {str(run['commit'])[:12]}, {run['date'][:10]}, load "
        f"{run['load'][0]:.1f}"
    )
