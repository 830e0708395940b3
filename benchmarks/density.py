"""Density estimation: test log-likelihoods of learned circuits on the 16 binary sets.

Every run is one ``klprojax circuit fit`` with the options of a candidate. The candidates of a set
are compared by their validation log-likelihoods with seed 0; the best one is run with the other
seeds, and only its test log-likelihoods are reported. Test rows choose nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _shared as shared

COLUMNS = ("LearnSPN", "ID-SPN", "RAT-SPN", "EiNet", "HCLT last", "HCLT best-v")
REFERENCE = "HCLT best-v"
# Mean test log-likelihoods, nats per row. HCLT: logs of its authors' runs, 12 units, 4 trees, mean
# of 5 seeds, the last epoch or the best by validation. The others as their papers print them.
PUBLISHED = {
    "nltcs": (-6.11, -6.02, -6.01, -6.02, -5.999, -5.999),
    "msnbc": (-6.11, -6.04, -6.04, -6.12, -6.058, -6.058),
    "kdd": (-2.18, -2.13, -2.13, -2.18, -2.183, -2.141),
    "plants": (-12.98, -12.54, -13.44, -13.68, -14.263, -14.265),
    "baudio": (-40.50, -39.79, -39.96, -39.88, -39.774, -39.768),
    "bnetflix": (-57.33, -56.36, -56.85, -56.54, -56.278, -56.248),
    "accidents": (-30.04, -26.98, -35.49, -35.59, -26.744, -26.736),
    "pumsb_star": (-24.78, -22.40, -32.53, -31.95, -23.648, -23.650),
    "kosarek": (-10.99, -10.60, -10.89, -11.03, -10.665, -10.598),
    "msweb": (-10.25, -9.73, -10.12, -10.03, -9.988, -9.906),
    "book": (-35.89, -34.14, -34.68, -34.74, -33.833, -33.534),
    "tmovie": (-52.49, -51.51, -53.63, -51.71, -50.820, -50.538),
    "cwebkb": (-158.20, -151.84, -157.53, -157.28, -152.774, -150.838),
    "cr52": (-85.07, -83.35, -87.37, -87.37, -86.260, -85.949),
    "c20ng": (-155.93, -151.47, -152.06, -153.94, -153.402, -153.644),
    "ad": (-19.73, -19.00, -48.47, -26.27, -16.072, -16.064),
}
# Reached: not lower than the reference by more than this part of it.
SLACK = 0.002
SOFT = ("--softening", "0.002")
CANDIDATES = {
    "defaults": (),
    "softened": SOFT,
    "softened, 8 trees": (*SOFT, "--components", "8"),
    "softened, 8 trees of 8 units": (*SOFT, "--components", "8", "--units", "8"),
    "softened, pseudocount 1": (*SOFT, "--pseudocount", "1"),
    "softened, batches of 256": (*SOFT, "--batch-size", "256"),
    "softened, batches of 64": (*SOFT, "--batch-size", "64"),
    "batches of 64": ("--batch-size", "64"),
    "32 units": ("--units", "32"),
}


def command(path: Path, candidate: str, seed: int, out: Path) -> list[str]:
    """The command line of one run."""
    program = "from klprojax.cli import main; main()"
    run = [sys.executable, "-c", program, "circuit", "fit", str(path)]
    return [*run, *CANDIDATES[candidate], "--seed", str(seed), "--json", str(out)]


def fit(path: Path, candidate: str, seed: int) -> dict[str, Any]:
    """Run the command; its row of the report."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        began = time.perf_counter()
        done = subprocess.run(
            command(path, candidate, seed, out), capture_output=True, text=True, check=False
        )
        row = {"data": path.stem, "candidate": candidate, "seed": seed}
        if done.returncode:
            return {**row, "status": "failed", "detail": done.stderr[-2000:]}
        found = json.loads(out.read_text())
    kept = ("test_log_likelihood", "valid_log_likelihood", "train_log_likelihood")
    return {
        **row,
        "status": "done",
        **{key: found[key] for key in (*kept, "epochs", "best_epoch", "parameters")},
        "seconds": time.perf_counter() - began,
    }


def chosen(rows: list[dict[str, Any]], name: str) -> str | None:
    """The candidate with the best validation log-likelihood at seed 0."""
    own = [r for r in rows if (r["data"], r["seed"], r["status"]) == (name, 0, "done")]
    best = max(own, key=lambda r: r["valid_log_likelihood"], default=None)
    return None if best is None else best["candidate"]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a data set: the chosen candidate over its seeds, beside the published figures."""
    out = []
    for name, published in PUBLISHED.items():
        candidate = chosen(rows, name)
        if candidate is None:
            continue
        runs = [
            r for r in rows if (r["data"], r["candidate"], r["status"]) == (name, candidate, "done")
        ]
        found = [r["test_log_likelihood"] for r in runs]
        mean = statistics.fmean(found)
        reference = published[COLUMNS.index(REFERENCE)]
        out.append(
            {
                "data": name,
                "candidate": candidate,
                "seeds": len(runs),
                "mean": mean,
                "sd": statistics.stdev(found) if len(found) > 1 else None,
                "seconds": statistics.fmean(r["seconds"] for r in runs),
                "reached": mean >= reference * (1 + SLACK),
                "best": max(published),
            }
        )
    return out


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    rows = summary(report["rows"])
    headings = ["data", "ours", "s.d.", "seeds", "chosen", "s per run", *COLUMNS, "reached"]
    body = [
        [
            row["data"],
            f"{row['mean']:.3f}",
            shared.figure(row["sd"], ".3f"),
            str(row["seeds"]),
            row["candidate"],
            f"{row['seconds']:.0f}",
            *(f"{value:.3f}" for value in PUBLISHED[row["data"]]),
            "yes" if row["reached"] else f"{row['mean'] / PUBLISHED[row['data']][-1] - 1:.1%}",
        ]
        for row in rows
    ]
    tried: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row["seed"] == 0:
            tried.setdefault(row["candidate"], []).append(row["data"])
    candidates = "".join(
        f"- {name}, `{' '.join(CANDIDATES[name]) or 'no options'}`: "
        + ("all sets" if len(sets) == len(rows) else ", ".join(sets))
        + "\n"
        for name, sets in tried.items()
    )
    failed = [r for r in report["rows"] if r["status"] != "done"]
    return (
        "# Density estimation\n\n"
        "`python -m benchmarks density`: mean test log-likelihood (nats per row) of mixtures of "
        "hidden Chow-Liu trees learned by EM. A run is `klprojax circuit fit DATA.npz` with the "
        "chosen options; the validation log-likelihood with seed 0 chose among the candidates "
        "below, test rows choose nothing. Seconds are those of one whole command, with other work "
        "on the machine. Published columns: HCLT from its authors' logs (12 units, 4 trees, mean "
        "of 5 seeds), the others from their papers.\n\n"
        f"Reached means at or above {REFERENCE}, within {SLACK:.1%}: "
        f"{sum(r['reached'] for r in rows)} of {len(rows)}. Above every column: "
        f"{sum(r['mean'] > r['best'] for r in rows)} of {len(rows)}. "
        f"jax {report['versions']['jax']}, {report['device']}, {report['cpu_count']} cores, commit "
        f"{str(report['commit'])[:12]}, {report['date'][:10]}.\n\n"
        + (f"Failed: {len(failed)} runs.\n\n" if failed else "")
        + shared.markdown_table(headings, body)
        + f"\nCandidates and the sets they were tried on:\n\n{candidates}"
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("density", __doc__)
    shared.add_data_dir(out, "density20/")
    out.add_argument("--resume", action="store_true", help="keep finished rows of --json FILE")
    out.add_argument("--seeds", type=int, default=3, help="seeds of the chosen candidate")
    out.add_argument(
        "--candidate", action="append", default=[], choices=CANDIDATES, help="repeatable"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a run failed."""
    options = parser().parse_args(argv)
    folder = shared.data_dir(options) / "density20"
    names = [name for name in PUBLISHED if not options.only or name in options.only]
    unknown = set(options.only) - set(PUBLISHED)
    if unknown:
        raise SystemExit(f"No data set is named {sorted(unknown)}; there are {list(PUBLISHED)}.")
    rows = shared.finished_rows(options, ("done",))
    report = {"benchmark": "density", **shared.environment(32), "rows": rows}

    def add(name: str, candidate: str, seed: int) -> None:
        if any((r["data"], r["candidate"], r["seed"]) == (name, candidate, seed) for r in rows):
            return
        rows.append(fit(folder / f"{name}.npz", candidate, seed))
        if options.json is not None:
            shared.write_json(options.json, report)

    cases: list[tuple[str, str | None, int]] = [
        (name, candidate, 0) for candidate in options.candidate or CANDIDATES for name in names
    ]
    cases += [(name, None, seed) for seed in range(1, options.seeds) for name in names]
    for name, candidate, seed in shared.tracked(cases, lambda c: f"{c[0]} {c[1] or ''} {c[2]}"):
        candidate = candidate or chosen(rows, name)
        if candidate is not None:
            add(name, candidate, seed)
    shared.publish(options, markdown(report), report)
    return int(any(row["status"] != "done" for row in rows))
