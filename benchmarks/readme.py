"""The README's tables, from the stored results: comparisons with others, and the statements.

Rewrites what stands between the markers in README.md; ``--check`` only compares, and ends with
status 1 where README.md and ``benchmarks/results/*.json`` differ. Nothing is measured here:
``python -m benchmarks bp`` and its kin, and ``klprojax verify --json``, write those files.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import density

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"

Report = dict[str, Any]


class Row(NamedTuple):
    """A measure of us and of another package, on one or more cases.

    `better` says how many times better klprojax is in each case, or None for a difference.
    """

    measure: str
    cases: tuple[str, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    unit: str
    more_is_better: bool = False
    difference: bool = False

    def better(self) -> list[tuple[str, bool]]:
        """In each case, by how much klprojax is better, and whether it is not."""
        out = []
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            if self.difference:
                gap = (ours - theirs) * (1 if self.more_is_better else -1)
                out.append((f"{gap:+.3f}", gap < 0))
            else:
                ratio = ours / theirs if self.more_is_better else theirs / ours
                out.append((_digits(ratio), ratio < 1))
        return out


class Peer(NamedTuple):
    """Another package and the rows measured against it."""

    name: str
    rows: list[Row]


def _digits(value: float) -> str:
    """Two significant digits, without an exponent where one can do without."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.2g}".rstrip(".")


def _select(rows: Iterable[Report], **wanted: Any) -> Report | None:
    """The first row with these entries."""
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def _row(
    measure: str,
    unit: str,
    entries: Iterable[tuple[str, float | None, float | None]],
    **kind: bool,
) -> list[Row]:
    """One row of the cases that both sides have; none without such a case."""
    both = [(case, a, b) for case, a, b in entries if a is not None and b is not None]
    if not both:
        return []
    cases, ours, theirs = (tuple(column) for column in zip(*both, strict=True))
    return [Row(measure, cases, ours, theirs, unit, **kind)]


def _at(found: Any, *path: str) -> float | None:
    """A number deep in a report, or None."""
    for key in path:
        found = None if found is None else found.get(key)
    return found


def pgmax(report: Report) -> Peer:
    """Belief propagation, `benchmarks bp`."""
    cases = report["inference"]
    rows = []
    for measure, theirs, path in (
        ("one run, compiled", ("run",), ("cpu_s", "median")),
        ("first call: build, compile, run", ("first",), ("cpu_s",)),
    ):
        rows += _row(
            measure,
            "s",
            [
                (r["case"], _at(r["ours"], *theirs, *path), _at(r.get("peer"), *theirs, *path))
                for r in cases
            ],
        )
    slope = _select(report["gradient"], iterations=200, adjoint="implicit")
    if slope is not None:
        case = f"{slope['case']}, 200 iterations"
        for measure, path in (
            ("value and gradient", ("run", "cpu_s", "median")),
            ("compiling the gradient", ("compile", "cpu_s")),
        ):
            entry = (case, _at(slope["ours"], *path), _at(slope.get("peer"), *path))
            rows += _row(measure, "s", [entry])
    rows += _row(
        "temporaries of the gradient",
        "MiB",
        [
            (f"{r['iterations']} iterations", _mib(r["implicit"]), _mib(r.get("peer")))
            for r in report["memory"]
            if r["iterations"] in (50, 800)
        ],
    )
    rows += _row(
        "a batch under `vmap`",
        "s",
        [
            (
                f"{r['count']} {r['batched']} of {r['case']}",
                _at(r["ours"], "run", "cpu_s", "median"),
                _at(r.get("peer"), "run", "cpu_s", "median"),
            )
            for r in report["batch"]
            if r["case"] == "ising100"
        ],
    )
    return Peer(f"PGMax {report['peer']['versions']['pgmax']}", rows)


def _mib(count: float | None) -> float | None:
    return None if count is None else count / 2**20


def ldpc(report: Report) -> Peer:
    """Decoding, `benchmarks ldpc`."""
    found = [r for r in report["rows"] if "ldpc" in r]
    rows = _row(
        "words decoded a second",
        "1/s",
        [
            (f"p={r['flip']}", r["klprojax"]["words_per_cpu_s"], r["ldpc"]["words_per_cpu_s"])
            for r in found
        ],
        more_is_better=True,
    )
    first = found[0]
    # The other side compiles nothing: its first call is a run.
    rows += _row(
        f"first call with {first['words']} words, compiling included",
        "s",
        [(f"p={first['flip']}", first["first_call_cpu_s"], min(first["ldpc"]["cpu_s"]))],
    )
    return Peer(f"ldpc {first['ldpc']['version']} (C++)", rows)


def pjax(report: Report) -> Peer:
    """Projection training, `benchmarks training`."""
    rows = []
    for network in dict.fromkeys(r["network"] for r in report["speed"]):
        some = [r for r in report["speed"] if r["network"] == network]
        for measure, path in (("an iteration", ("cpu_s",)), ("compiling", ("compile", "cpu_s"))):
            scale, unit = (1e3, "ms") if measure == "an iteration" else (1.0, "s")
            rows += _row(
                f"{measure}, {network}",
                unit,
                [
                    (r["scheme"], scale * _sure(r["ours"], path), scale * _sure(r["pjax"], path))
                    for r in some
                ],
            )
    rows += _row(
        "temporaries, layer 784-512",
        "MiB",
        [(r["scheme"], r["ours_mib"], r["pjax_mib"]) for r in report["memory"]],
    )
    return Peer("PJAX", rows)


def _sure(found: Any, path: Sequence[str]) -> float:
    value = _at(found, *path)
    assert value is not None
    return value


def adam(speed: Report, accuracy: Report, depths: Report) -> Peer:
    """Plain backpropagation with Adam, the benchmarks of training."""
    rows = _row(
        "an update",
        "ms",
        [(r["network"], 1e3 * r["sweep"], 1e3 * r["adam"]) for r in speed["sweep"]],
    )

    rows += _row(
        "test accuracy",
        "",
        [
            (
                data,
                _at(_select(accuracy[data], step="projection"), "accuracy_mean"),
                _at(_select(accuracy[data], step="adam"), "accuracy_mean"),
            )
            for data in ("digits", "mnist")
        ],
        more_is_better=True,
        difference=True,
    )
    ours, theirs = "projection, spectral (default)", "gradient, Adam"
    for skip, name in ((False, "plain"), (True, "with skips")):
        found = [r for r in depths["digits"] if r["skip"] == skip]
        rows += _row(
            f"test accuracy on digits by depth, {name}, Adam tuned for each",
            "",
            [
                (
                    str(depth),
                    _at(_select(found, depth=depth, row=ours), "accuracy"),
                    _at(_select(found, depth=depth, row=theirs), "accuracy"),
                )
                for depth in dict.fromkeys(r["depth"] for r in found)
            ],
            more_is_better=True,
            difference=True,
        )
    return Peer("Adam (optax), our projection step against it", rows)


def predictive_coding(report: Report) -> Peer:
    """jpc on MNIST, `benchmarks tasks`."""
    theirs, ours = report["jpc"], _select(report["mnist"], step="projection")
    case = "mnist 784-128-10, tuned alike"
    rows = _row(
        "test accuracy",
        "",
        [(case, _at(ours, "accuracy_mean"), theirs["accuracy_mean"])],
        more_is_better=True,
        difference=True,
    )
    rows += _row("a run of 5 epochs", "s", [(case, _at(ours, "seconds"), theirs["seconds"])])
    return Peer(f"jpc {theirs['versions']['jpc']} (predictive coding)", rows)


def cirkit(report: Report) -> Peer:
    """Circuits, `benchmarks circuits`; recorded figures of the other side are marked so."""
    live = report["peer"] == "live"
    rows = []
    for task, measure, scale, unit in (
        ("forward", "log-likelihood of a batch", 1e3, "ms"),
        ("gradient", "its gradient", 1e3, "ms"),
        ("epoch", "an epoch of Adam", 1.0, "s"),
        ("build", "build and compile", 1.0, "s"),
        ("peak_rss_mib", "peak memory", 1.0, "MiB"),
    ):
        entries = []
        for r in report["rows"]:
            ours = _at(r["ours"], task)
            theirs = _at(r.get("cirkit"), task)
            if theirs is None and ours is not None and task in r["ratios"]:
                theirs = r["ratios"][task] * ours
            case = f"{r['data']} {r['units']}"
            entries.append((case, _times(ours, scale), _times(theirs, scale)))
        rows += _row(measure, unit, entries)
    name = next(x for x in report["requirements"] if "cirkit" in x).partition("==")[2]
    return Peer(f"cirkit {name}" + ("" if live else " (recorded on another machine)"), rows)


def pyagrum(report: Report) -> Peer:
    """All marginals of Bayesian networks, `benchmarks exactness_peers`."""
    names = ("asia", "alarm", "andes", "mildew", "diabetes", "munin4")
    cases = {f"{name}+evidence": name for name in names}
    found = [(cases[r["case"]], r["sides"]) for r in report["marginals"] if r["case"] in cases]
    rows = []
    for key, measure in (("first", "first call"), ("changed", "with other evidence")):
        rows += _row(
            f"all marginals, {measure}",
            "ms",
            [
                (
                    name,
                    _times(_at(sides["ours"], key, "cpu_s"), 1e3),
                    _times(_at(sides.get("pyagrum"), key, "cpu_s"), 1e3),
                )
                for name, sides in found
            ],
        )
    version = next((v for _, s in found if (v := _at(s.get("pyagrum"), "version"))), "")
    return Peer(f"pyAgrum {version} (C++)", rows)


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value


# Files a group of rows needs; a group whose files are not all there is left out.
GROUPS: tuple[tuple[tuple[str, ...], Callable[..., Peer]], ...] = (
    (("bp",), pgmax),
    (("ldpc",), ldpc),
    (("circuits",), cirkit),
    (("exactness_peers",), pyagrum),
    (("training",), pjax),
    (("training", "training_accuracy", "depth"), adam),
    (("tasks",), predictive_coding),
)


def load(name: str, folder: Path) -> Report | None:
    """A stored report, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def comparisons(folder: Path = RESULTS) -> str:
    """The table of comparisons."""
    lines = [
        "| against | measured | cases | klprojax | the other | klprojax better by |",
        "|---|---|---|--:|--:|--:|",
    ]
    for names, build in GROUPS:
        reports = [load(name, folder) for name in names]
        if any(report is None for report in reports):
            continue
        peer = build(*reports)
        for number, row in enumerate(peer.rows):
            sign = "" if row.difference else "×"
            better = [f"**{text}{sign}**" if lost else text + sign for text, lost in row.better()]
            unit = f", {row.unit}" if row.unit else ""
            digits = (lambda x: f"{x:.3f}") if row.difference else _digits
            cells = [
                peer.name if number == 0 else "",
                row.measure + unit,
                " / ".join(row.cases),
                " / ".join(map(digits, row.ours)),
                " / ".join(map(digits, row.theirs)),
                " / ".join(better),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    for sentence in (
        _exactness(folder),
        _best(folder),
        _reference_circuits(folder),
        _density(folder),
    ):
        if sentence:
            lines += ["", sentence]
    return "\n".join(lines)


def _exactness(folder: Path) -> str:
    report = load("exactness", folder)
    if report is None:
        return ""
    said = {
        "solved": "solved",
        "infeasible": "refused before anything was allocated, as too large for 8 GiB",
        "contradiction": "of probability zero as its file stands, and said so",
        "time limit": "not done in time",
    }
    count = Counter(said.get(row["status"], row["status"]) for row in report["rows"])
    parts = ", ".join(f"{number} {text}" for text, number in count.most_common())
    return f"Exact inference by `Elimination` on {len(report['rows'])} reference models: {parts}."


def _best(folder: Path) -> str:
    report = load("exactness_peers", folder)
    if report is None:
        return ""
    rows = [r for r in report["map"] if "toulbar2" in r]
    if not rows:
        return ""
    solved = [[r for r in rows if r[side]["status"] == "solved"] for side in ("ours", "toulbar2")]
    both = [r for r in solved[0] if r in solved[1]]
    equal = sum(not r["faults"] for r in both)
    return (
        f"Most probable states of {len(rows)} models, {report['runs']['map']['time_limit']:g} s "
        f"each: {len(solved[0])} found and proven here, {len(solved[1])} by toulbar2 1.4 (branch "
        f"and bound, C++); {len(both)} by both, {equal} of these with equal scores."
    )


def _reference_circuits(folder: Path) -> str:
    report = load("reference_circuits", folder)
    if report is None:
        return ""
    rows = report["rows"]
    largest = max(rows, key=lambda row: row["edges"])
    gaps = [row[key] for row in rows for key in row if key.endswith("difference")]
    return (
        f"{len(rows)} circuits from PSDD and SPN files: log-partitions and mean test "
        f"log-likelihoods agree with their references to {max(gaps):.0e}; a sweep of the largest, "
        f"{largest['edges']} edges, takes {1e3 * largest['sweep_cpu_s']:.0f} ms in float64."
    )


def _density(folder: Path) -> str:
    report = load("density", folder)
    if report is None:
        return ""
    rows = density.summary(report["rows"])
    reached = sum(row["reached"] for row in rows)
    above = [row["data"] for row in rows if row["mean"] > row["best"]]
    below = [row["data"] for row in rows if not row["reached"]]
    return (
        f"Density estimation with `klprojax circuit fit` on {len(rows)} binary data sets: test "
        f"log-likelihoods at or above those published for mixtures of hidden Chow-Liu trees "
        f"(within {density.SLACK:.1%}) on {reached}"
        + (f", not on {', '.join(below)}" if below else "")
        + f"; above all six published columns on {len(above)}: {', '.join(above) or 'none'}."
    )


def statements(folder: Path = RESULTS) -> str:
    """The table of the paper's statements, one row a statement, the worst of its checks."""
    reports = {bits: load(name, folder) for bits, name in ((64, "verify"), (32, "verify32"))}
    known = {bits: report for bits, report in reports.items() if report is not None}
    if not known:
        return ""
    widths = [f"worst residual, float{bits}" for bits in known]
    lines = [
        "| statement | checks | " + " | ".join(widths) + " | fails, as it should |",
        "|---|--:|" + "--:|" * (len(widths) + 1),
    ]
    first = next(iter(known.values()))["checks"]
    for label in dict.fromkeys(_statement(check) for check in first):
        cells = [label, str(sum(_statement(check) == label for check in first))]
        for report in known.values():
            some = [c for c in report["checks"] if _statement(c) == label and c["expected"]]
            cells.append(_worst(some))
        fails = [c for c in first if _statement(c) == label and not c["expected"]]
        cells.append("; ".join(f"{c['reading']}: {_compared(c)}" for c in fails))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _statement(check: Report) -> str:
    """The statement that a check belongs to: its label up to the details."""
    return check["statement"].partition(",")[0]


def _worst(checks: Sequence[Report]) -> str:
    if not checks:
        return "-"
    failed = [check for check in checks if not check["holds"]]
    if failed:
        return f"**{_compared(failed[0])}**"
    return _compared(max(checks, key=lambda check: check["residual"] / check["tolerance"]))


def _compared(check: Report) -> str:
    if check["residual"] is None:
        return "not computed"
    sign = "≤" if check["holds"] else ">"
    return f"{check['residual']:.0e} {sign} {check['tolerance']:.0e}"


BLOCKS: dict[str, Callable[[Path], str]] = {"comparisons": comparisons, "statements": statements}


def filled(text: str, folder: Path = RESULTS) -> str:
    """The README with its tables made anew.

    Raises:
        ValueError: a pair of markers is missing.
    """
    for name, build in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(rf"{begin}.*?{end}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md needs {begin} and {end} once, in this order.")
        block = f"{begin}\n\n{build(folder)}\n\n{end}"
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def main(argv: list[str] | None = None) -> int:
    """Write the README, or compare it; 1 where they differ."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--check", action="store_true", help="compare and write nothing")
    asked = options.parse_args(argv)
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if asked.check:
        if old != new:
            print(
                "README.md differs from benchmarks/results: run python -m benchmarks readme.",
                file=sys.stderr,
            )
        return int(old != new)
    partial = README.with_name(README.name + ".partial")
    partial.write_text(new, encoding="utf-8")
    os.replace(partial, README)
    return 0
