"""LDPC decoding beside `ldpc` (product-sum, parallel): words per CPU second, word errors.

Both sides decode exactly the same words over a binary symmetric channel, on one core, with early
stop, after a warm-up; repeats alternate and figures are medians of CPU seconds. `ldpc` runs in an
environment of its own: ``--setup-peers`` makes one under ``benchmarks/.env``, or
KLPROJAX_LDPC_PYTHON names its interpreter. Without it, figures of an earlier run are shown and
marked "recorded".
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _shared as shared

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".env" / "ldpc"
REQUIREMENTS = ("ldpc==2.4.1",)
RECORDED = HERE / "results" / "ldpc.json"
VARIABLES, VARIABLE_DEGREE, CHECK_DEGREE, STEPS = 1296, 3, 6, 30
FLIPS = (0.07, 0.05)
TARGET = 2.0

# Runs where only `ldpc` and what it needs is installed.
PEER = """
import importlib.metadata, json, sys, time
import numpy as np, scipy.sparse
from ldpc import BpDecoder
given = np.load(sys.argv[1])
scopes, received = given["scopes"], given["received"]
shape = len(scopes), received.shape[1]
ones = np.ones(scopes.size, np.uint8)
rows = np.repeat(np.arange(len(scopes)), scopes.shape[1])
matrix = scipy.sparse.csr_matrix((ones, (rows, scopes.reshape(-1))), shape=shape)
decoder = BpDecoder(
    matrix, error_rate=float(given["flip"]), max_iter=int(given["steps"]),
    bp_method="product_sum", schedule="parallel", omp_thread_count=1,
    input_vector_type="received_vector",
)
for word in received[:20]:
    decoder.decode(word)
errors, steps = [], []
start = time.process_time()
for word in received:
    errors.append(bool(decoder.decode(word).any()))
    steps.append(int(decoder.iter))
seconds = time.process_time() - start
print(json.dumps({
    "cpu_s": seconds, "errors": errors, "mean_steps": float(np.mean(steps)),
    "version": importlib.metadata.version("ldpc"),
}))
"""


def setup_peers() -> None:
    """Make the environment of `ldpc`."""
    shared.make_environment(ENVIRONMENT, REQUIREMENTS)


def peer_python() -> str | None:
    """The interpreter that has `ldpc`, if there is one."""
    return shared.python_of(ENVIRONMENT, "KLPROJAX_LDPC_PYTHON")


def run_peer(python: str, folder: Path, **arrays: Any) -> dict[str, Any]:
    """Decode once with `ldpc`, in a process that inherits this one's core."""
    path = folder / "words.npz"
    np.savez(path, **arrays)
    done = subprocess.run(
        [python, "-c", PEER, str(path)], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"ldpc failed in {python}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def summary(seconds: list[float], errors: list[bool], mean_steps: float) -> dict[str, Any]:
    """Figures of one side."""
    rate = float(np.mean(errors))
    return {
        "cpu_s": seconds,
        "words_per_cpu_s": len(errors) / statistics.median(seconds),
        "word_error": rate,
        # of an estimate that is never 0 or 1, so that no error seen still has an uncertainty
        "standard_error": _standard_error(int(np.sum(errors)), len(errors)),
        "mean_steps": mean_steps,
    }


def _standard_error(errors: int, words: int) -> float:
    rate = (errors + 1) / (words + 2)
    return math.sqrt(rate * (1 - rate) / words)


def measure(flip: float, words: int, repeats: int, python: str | None) -> dict[str, Any]:
    """One row: both sides, alternating, on the same words."""
    import jax

    from klprojax.codes import BinarySymmetricChannel, ParityCheckCode, decode

    code = ParityCheckCode.regular(VARIABLES, VARIABLE_DEGREE, CHECK_DEGREE, seed=0)
    channel = BinarySymmetricChannel(flip)
    zeros = np.zeros((VARIABLES, words), np.uint8)
    received = channel.transmit(np.random.default_rng(1), zeros).astype(np.float32)
    log_odds = np.asarray(channel.log_odds(received))

    def ours():
        start = time.process_time()
        found = jax.block_until_ready(decode(code, log_odds, STEPS))
        return found, time.process_time() - start

    first = ours()[1]
    mine: list[float] = []
    theirs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            found, seconds = ours()
            mine.append(seconds)
            if python is not None:
                theirs.append(
                    run_peer(
                        python,
                        Path(folder),
                        scopes=np.asarray(code.checks.scopes),
                        received=received.T.astype(np.uint8),
                        flip=flip,
                        steps=STEPS,
                    )
                )
    errors = np.asarray(found.words).any(axis=0).tolist()
    row: dict[str, Any] = {
        "flip": flip,
        "words": words,
        "first_call_cpu_s": first,
        "klprojax": summary(mine, errors, float(np.mean(found.steps))),
    }
    if theirs:
        last = theirs[-1]
        row["ldpc"] = summary([t["cpu_s"] for t in theirs], last["errors"], last["mean_steps"]) | {
            "version": last["version"],
            "source": "same run",
        }
        row["words_wrong_on_one_side_only"] = int(np.sum(np.not_equal(errors, last["errors"])))
    return row


def recorded_peer(path: Path, flip: float) -> dict[str, Any] | None:
    """The figures of `ldpc` in an earlier report."""
    if not path.exists():
        return None
    rows = json.loads(path.read_text())["rows"]
    found = [row["ldpc"] for row in rows if row["flip"] == flip and "ldpc" in row]
    return found[0] | {"source": "recorded"} if found else None


def finish(row: dict[str, Any]) -> dict[str, Any]:
    """Add the ratio of speeds and whether the word errors agree."""
    ours, theirs = row["klprojax"], row.get("ldpc")
    if theirs:
        row["ratio"] = ours["words_per_cpu_s"] / theirs["words_per_cpu_s"]
        gap = abs(ours["word_error"] - theirs["word_error"])
        row["within_standard_error"] = gap <= max(ours["standard_error"], theirs["standard_error"])
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    out = []
    for row in rows:
        sides = [("klprojax", row["klprojax"]), ("ldpc", row.get("ldpc"))]
        for name, side in sides:
            if side is None:
                continue
            source = f" ({side['source']})" if "source" in side else ""
            out.append(
                [
                    f"p={row['flip']}, {name}{source}",
                    f"{side['words_per_cpu_s']:.0f}",
                    f"{side['word_error']:.3f} ± {side['standard_error']:.3f}",
                    f"{side['mean_steps']:.1f}",
                    shared.figure(row.get("ratio"), ".1f") if name == "klprojax" else "",
                ]
            )
    headings = ("case", "words per CPU s", "word error", "steps per word", "times as fast")
    return shared.markdown_table(headings, out)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and fail where the target is missed against a peer of the same run."""
    options = shared.base_parser("ldpc", __doc__)
    options.add_argument("--words", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--p", type=float, action="append", help="flip probability; repeatable")
    options.add_argument("--recorded", type=Path, default=RECORDED, help="an earlier report")
    options.add_argument("--setup-peers", action="store_true", help="install `ldpc` apart first")
    asked = options.parse_args(argv)
    if asked.setup_peers:
        setup_peers()
    flips = asked.p or FLIPS
    if asked.only:
        flips = [flip for flip in flips if f"p={flip}" in asked.only]
        if not flips:
            raise SystemExit(f"No case is named {', '.join(asked.only)}.")
    # One core for both sides, and before JAX starts its threads.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    python = peer_python()
    rows = []
    for flip in flips:
        row = measure(flip, asked.words, asked.repeats, python)
        if "ldpc" not in row and (old := recorded_peer(asked.recorded, flip)):
            row["ldpc"] = old
        rows.append(finish(row))
    print(markdown(rows))
    if asked.json:
        shared.write_json(asked.json, {"environment": shared.environment(32), "rows": rows})
    if asked.markdown:
        asked.markdown.parent.mkdir(parents=True, exist_ok=True)
        asked.markdown.write_text(markdown(rows))
    live = [row for row in rows if row.get("ldpc", {}).get("source") == "same run"]
    missed = [r for r in live if r["ratio"] < TARGET or not r["within_standard_error"]]
    for row in missed:
        print(f"p={row['flip']}: misses the target ({TARGET}x, equal word error)", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
