"""Who notices a mutant? ``python -m tests.mutation.run RESULTS [--room ROOM] [--only KEY ..]``.

Each mutant of ``mutants.json`` is applied to a copy of the project. ``klprojax verify`` runs on it,
then the tests of its room, then, where these pass, those of the other rooms. RESULTS is a JSON file
of who noticed; mutants that are in it are not run again. The mutant whose key is ``none`` changes
nothing and must survive. ``--report`` only reads RESULTS.
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
import time
from pathlib import Path
from typing import Any

from .generate import LIST, ROOMS, ROOT, Mutant, applied

TESTS = {room: [f"tests/{room}"] for room in ROOMS}
OTHERS = [*(f"tests/{room}" for room in ROOMS), "tests/graphs", "tests/codes", "tests/checks"]
LIMITS_S = {"verify": 900, "room": 1800, "others": 3600}


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


def verdicts(mutant: Mutant, folder: Path, workers: str) -> dict[str, Any]:
    """Run `verify`, the room's tests and, if these pass, the others, on the changed copy."""
    pytest = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", workers]
    own = TESTS.get(mutant.room, [])
    main = "import sys; from klprojax.cli import main; sys.argv[1:] = ['verify']; sys.exit(main())"
    out = {"verify": run(["-c", main], folder, LIMITS_S["verify"])}
    if own:
        out["room"] = run([*pytest, *own], folder, LIMITS_S["room"])
    if not own or out["room"]["outcome"] == "passed":
        others = [path for path in OTHERS if path not in own]
        out["others"] = run([*pytest, *others], folder, LIMITS_S["others"])
    return out


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
        f"{sum(noticed(e, 'room', 'others') for e in ran.values())} noticed by the tests",
    ]
    for key, entry in ran.items():
        if not noticed(entry, "room", "others"):
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
    options.add_argument("--report", action="store_true")
    asked = options.parse_args()
    results = json.loads(asked.results.read_text()) if asked.results.exists() else {}
    rows = json.loads(LIST.read_text(encoding="utf-8"))
    mutants = {"none": Mutant("", "none", "klprojax/__init__.py", 0, "", "", 0)}
    mutants |= {row.pop("key"): Mutant(**row) for row in rows}
    todo = {
        key: mutant
        for key, mutant in mutants.items()
        if key not in results
        and (key in asked.only if asked.only is not None else key != "none")
        and asked.room in (None, mutant.room)
    }
    with tempfile.TemporaryDirectory(prefix="mutants_") as name:
        folder = Path(name)
        if todo and not asked.report:
            copy_of_project(folder)
        for key, mutant in {} if asked.report else todo.items():
            path = folder / mutant.file
            original = path.read_text(encoding="utf-8")
            changed = applied(mutant, original)
            entry: dict[str, Any] = {**mutant._asdict()}
            if changed is None:
                entry["gone"] = True
            else:
                path.write_text(changed, encoding="utf-8")
                try:
                    entry |= verdicts(mutant, folder, asked.workers)
                finally:
                    path.write_text(original, encoding="utf-8")
            results[key] = entry
            write(asked.results, results)
            outcomes = {part: entry[part]["outcome"] for part in LIMITS_S if part in entry}
            print(key, mutant.file, mutant.kind, outcomes or "the line is gone", flush=True)
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
