"""Who notices a mutant? ``python -m tests.mutation.run RESULTS [--room ROOM] [--only KEY ..]``.

Each mutant of ``mutants.json`` is applied to a copy of the project. The rows of ``klprojax verify``
run on it, those about its room first, until one does not come out as it should; then the tests of
its room, then, where these pass, those of the other rooms, until one fails. RESULTS is a JSON file
of who noticed; what is in it is not run again. The mutant whose key is ``none`` changes nothing and
must survive. ``--jobs`` mutants run at a time; ``--stages`` leaves the rest for a later run;
``--report`` only reads RESULTS.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from .generate import LIST, ROOMS, ROOT, Mutant, applied

TESTS = {room: [f"tests/{room}"] for room in ROOMS}
OTHERS = [*(f"tests/{room}" for room in ROOMS), "tests/graphs", "tests/codes", "tests/checks"]
# Rows of verify about a room, which run first.
ROWS = {
    "geometry": "section_2",
    "projections": "proposition_3_1 t_proj one_operator",
    "operators": "section_3_1 t_proj proposition_3_1 one_operator_codes theorem_3_3_differential",
    "lifting": "section_3_2 lemma_3_2 theorem_3_3 corollary_3_4",
    "circuits": "section_4 theorem_4 lemma_4 one_operator_circuits one_operator_em remark_4_7",
    "training": "one_operator_training corollary_3_4_training corollary_3_4_modules",
}
VERIFY = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
from klprojax.checks import registered_checks, run_check
first = tuple(sys.argv[1].split())
for entry in sorted(registered_checks(), key=lambda e: not e.name.startswith(first)):
    check = run_check(entry)
    if not check.as_expected:
        print(f"FAILED {entry.name} {check.residual} {check.error}")
        sys.exit(1)
"""
LIMITS_S = {"verify": 900, "own": 1800, "others": 3600}


def copy_of_project(folder: Path) -> None:
    """Copy what the tests need; no caches, as a cache may hide a change of a line."""
    for name in ("klprojax", "tests", "benchmarks", "docs", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, folder / name)


def run(command: list[str], folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a command in the copy: whether it passed, how long it took, what it said last."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
        outcome = "passed" if process.returncode == 0 else "noticed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        outcome = "out of time"
    who = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    last = [line for line in said.splitlines() if line.strip()][-3:]
    seconds = round(time.monotonic() - begin, 1)
    return {"outcome": outcome, "seconds": seconds, "by": who[:3] or last}


def verdicts(
    mutant: Mutant, folder: Path, workers: str, stages: tuple[str, ...], known: dict[str, Any]
) -> dict[str, Any]:
    """Run what is not known yet: `verify`, the room's tests and, if these pass, the others."""
    pytest = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", workers]
    own = TESTS.get(mutant.room, [])
    others = [path for path in OTHERS if path not in own]
    commands = {
        "verify": ["-c", VERIFY, ROWS.get(mutant.room, "section")],
        "own": [*pytest, *own] if own else None,
        "others": [*pytest, *others],
    }
    out = {stage: known[stage] for stage in commands if stage in known}
    for stage, command in commands.items():
        if stage in out or stage not in stages or command is None:
            continue
        if stage == "others" and "own" in out and out["own"]["outcome"] != "passed":
            continue
        out[stage] = run(command, folder, LIMITS_S[stage])
    return out


def unfinished(entry: dict[str, Any] | None, stages: tuple[str, ...]) -> bool:
    """Whether some stage is wanted that has not been run and is not settled."""
    if entry is None:
        return True
    settled = entry.get("gone") or entry.get("own", {"outcome": "passed"})["outcome"] != "passed"
    return any(stage not in entry and not (stage == "others" and settled) for stage in stages)


def outcome(mutant: Mutant, folder: Path, *options: Any) -> dict[str, Any]:
    """Who notices a mutant, in a copy of the project that is as before afterwards."""
    path = folder / mutant.file
    original = path.read_text(encoding="utf-8") if path.exists() else ""
    changed = applied(mutant, original)
    if changed is None:
        return {**mutant._asdict(), "gone": True}
    path.write_text(changed, encoding="utf-8")
    try:
        return {**mutant._asdict(), **verdicts(mutant, folder, *options)}
    finally:
        path.write_text(original, encoding="utf-8")


def write(path: Path, content: Any) -> None:
    """Write as a whole or not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)


def report(results: dict[str, Any]) -> str:
    """How many were noticed by whom, and the survivors."""
    found = {key: entry for key, entry in results.items() if key != "none"}

    def noticed(entry: dict[str, Any], *names: str) -> bool:
        return any(entry.get(name, {"outcome": "passed"})["outcome"] != "passed" for name in names)

    ran = {key: entry for key, entry in found.items() if "verify" in entry}
    lines = [
        f"{len(ran)} mutants run, {len(found) - len(ran)} whose line is gone",
        f"{sum(noticed(e, 'verify') for e in ran.values())} noticed by klprojax verify",
        f"{sum(noticed(e, 'own', 'others') for e in ran.values())} noticed by the tests",
    ]
    for key, entry in ran.items():
        if not noticed(entry, "own", "others"):
            also = " (verify noticed)" if noticed(entry, "verify") else ""
            place = f"{entry['file']}:{entry['line']}"
            lines.append(f"survived the tests{also}: {key} {place} {entry['after'].strip()}")
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the results yet."""
    options = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__)
    options.add_argument("results", type=Path)
    options.add_argument("--room", choices=ROOMS)
    options.add_argument("--only", nargs="*", help="keys of mutants; 'none' changes nothing")
    options.add_argument("--workers", default="2", help="pytest's -n")
    options.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    options.add_argument("--stages", nargs="*", default=list(LIMITS_S), choices=LIMITS_S)
    options.add_argument("--report", action="store_true")
    asked = options.parse_args()
    results = json.loads(asked.results.read_text()) if asked.results.exists() else {}
    rows = json.loads(LIST.read_text(encoding="utf-8"))
    mutants = {"none": Mutant("", "none", "klprojax/__init__.py", 0, "", "", 0)}
    mutants |= {row.pop("key"): Mutant(**row) for row in rows}
    stages = tuple(asked.stages)
    todo = deque(
        (key, mutant)
        for key, mutant in mutants.items()
        if unfinished(results.get(key), stages)
        and (key in asked.only if asked.only is not None else key != "none")
        and asked.room in (None, mutant.room)
        and not asked.report
    )
    lock = threading.Lock()

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="mutants_") as name:
            folder = Path(name)
            copy_of_project(folder)
            while todo:
                key, mutant = todo.popleft()
                known = results.get(key, {})
                entry = outcome(mutant, folder, asked.workers, stages, known)
                with lock:
                    results[key] = entry
                    write(asked.results, results)
                    outcomes = {part: entry[part]["outcome"] for part in LIMITS_S if part in entry}
                    print(key, mutant.file, outcomes or "the line is gone", flush=True)

    jobs = [threading.Thread(target=work) for _ in range(min(asked.jobs, len(todo)))]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
