"""Exact inference against pyAgrum and pgmpy, exact MAP against toulbar2, on the reference models.

Marginals: each Bayesian network, without and with evidence; all marginals and the log-probability
of the evidence, float64, each side a process of its own, fresh for every row, their calls in turn.
*First*: the first call on a network in memory, with search or triangulation (and compilation).
*Again*: the same call once more, all from the network. *Changed*: graph, or pyAgrum's engine with
its junction tree and what of its messages stays valid, is kept; the evidence variables get other
states, drawn from the network, and without evidence one variable gets other likelihoods. pgmpy
keeps nothing, so it has no such figure. Claims: all sides agree to 1e-8; *changed* takes no longer
than pyAgrum's, and a fifth of it where pyAgrum needs more than 0.5 s; processor seconds. All
sides compute in one thread: on two, pyAgrum's marginals take up to ten times as long, and
OpenBLAS's threads wait for each other where other load has a core.

MAP: each UAI-2014 model with its evidence; the most probable state from the model, tree search
included, against toulbar2 (default options, costs in units of 1e-8 nats, its own limit of
processor seconds). States of both sides are scored in float64 here. Claim: where both find the
optimum, the scores agree to 1e-6, relative where they exceed 1, and none is above a proven optimum.

Environments of the peers are made by ``--setup-peers`` under ``benchmarks/.env``;
KLPROJAX_PYAGRUM_PYTHON, KLPROJAX_PGMPY_PYTHON and KLPROJAX_TOULBAR2_PYTHON name other Pythons.
"""

import argparse
import json
import math
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _shared as shared
from benchmarks._exactness_report import SLOW_S, TIMES_FASTER, markdown
from benchmarks._peers._serve import Side


class Peer(NamedTuple):
    """Another package: the module of its side, and what its environment needs."""

    module: str
    requirements: tuple[str, ...]


MODULE = "benchmarks._peers.{}_run".format
PEERS = {
    "pyagrum": Peer(MODULE("pyagrum"), ("pyagrum==3.3.1",)),
    "pgmpy": Peer(MODULE("pgmpy"), ("pgmpy==1.1.2",)),
    "toulbar2": Peer(MODULE("toulbar2"), ("pytoulbar2==1.4.0.1", "numpy")),
}
TAKE_PART = {"marginals": ("pyagrum", "pgmpy"), "map": ("toulbar2",)}
OURS = "benchmarks._exactness_ours"
ENVIRONMENTS = Path(__file__).resolve().parent / ".env"
MEMORY_GIB = 8.0
# Float64 on all sides: a few thousand roundings of numbers up to 1.
MAX_DIFFERENCE = 1e-8
# Costs of 1e-8 nats, rounded once per factor.
MAX_SCORE_DIFFERENCE = 1e-6
# Where a first call takes longer than this, the later ones are timed once, pgmpy's not at all.
LONG_S = 2.0
# toulbar2 has a limit of its own, and reports its best state then; not while it preprocesses.
GRACE_S = 3.0

Evidence = list[list[Any]]


def pythons(with_peers: bool) -> dict[str, str]:
    """The Python of each peer that is there."""
    if not with_peers:
        return {}
    found = {
        name: shared.python_of(ENVIRONMENTS / name, f"KLPROJAX_{name.upper()}_PYTHON")
        for name in PEERS
    }
    return {name: python for name, python in found.items() if python is not None}


def setup_peers() -> None:
    """Make one environment per peer (about 1 GB in all)."""
    for name, peer in PEERS.items():
        print(f"Making {ENVIRONMENTS / name} with {' '.join(peer.requirements)} ...", flush=True)
        shared.make_environment(ENVIRONMENTS / name, peer.requirements)


# -- problems --------------------------------------------------------------------------------------


def write_tables(model: Any, folder: Path) -> Path:
    """What every side loads: numbers and numpy arrays only."""
    file = folder / "model.pickle"
    parts = ("cardinalities", "scopes", "log_tables")
    file.write_bytes(pickle.dumps({part: getattr(model, part) for part in parts}))
    return file


def draw(model: Any, random: np.random.Generator) -> list[int]:
    """A joint state of a Bayesian network, parents before children."""
    states = [-1] * len(model.cardinalities)
    waiting = list(zip(model.scopes, model.log_tables, strict=True))
    while waiting:
        late = []
        for scope, table in waiting:
            parents = tuple(states[v] for v in scope[:-1])
            if -1 in parents:
                late.append((scope, table))
            else:
                row = np.exp(table[parents])
                states[scope[-1]] = int(random.choice(len(row), p=row / row.sum()))
        waiting = late
    return states


def changes(model: Any, observed: dict[int, int], soft: int, count: int) -> list[Evidence]:
    """Evidence to change to: possible states, each other than the last; or likelihoods."""
    random = np.random.default_rng(0)
    if not observed:
        card = model.cardinalities[soft]
        return [[[soft, random.uniform(0.1, 1.0, card).tolist()]] for _ in range(count)]
    found: list[Evidence] = []
    for _ in range(2000):
        states = draw(model, random)
        evidence = [[v, states[v]] for v in observed]
        if not found or evidence != found[-1]:
            found.append(evidence)
        if len(found) == count:
            break
    return found


# -- marginals -------------------------------------------------------------------------------------


def gap_of(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Largest difference of two answers: marginals, and log-probabilities relative beyond 1."""
    marginals, _ = shared.differences(one["marginals"], two["marginals"])
    return max(marginals, shared.relative(one["log_p"], two["log_p"]))


def failure(error: RuntimeError) -> dict[str, Any]:
    """Why a side gave no answer."""
    said = str(error)[-300:]
    memory = any(sign in said for sign in ("MemoryError", "bad_alloc", "unable to allocate"))
    return {"status": "out of memory" if memory else "error", "detail": said}


class Row:
    """One network on all sides: their processes, their times, the largest difference."""

    def __init__(self, file: Path, sides: dict[str, tuple[str, str]], folder: Path, limit: float):
        self.limit = limit
        self.stack = ExitStack()
        self.running: dict[str, Side] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.gaps: dict[str, float] = {}
        self.turn = 0
        for name, (python, module) in sides.items():
            side = Side(python, module, log=folder / f"{name}.log")
            self.running[name] = self.stack.enter_context(side)
            self.facts[name] = {"status": "done", **side.do("start", memory_gib=MEMORY_GIB)}
            self.facts[name]["load"] = side.do("load", file=str(file))

    def ask(self, order: str, evidence: Evidence, names: tuple[str, ...]) -> dict[str, Any]:
        """One call of each side; a side that fails or is late takes no further part."""
        answers: dict[str, Any] = {}
        here = [name for name in names if name in self.running]
        self.turn += 1
        for name in here if self.turn % 2 else here[::-1]:
            try:
                answers[name] = self.running[name].do(order, evidence=evidence, limit=self.limit)
            except TimeoutError:
                self.facts[name]["status"] = "time limit"
                del self.running[name]
            except RuntimeError as error:
                self.facts[name] |= failure(error)
                del self.running[name]
        for name, answer in answers.items():
            if name != "ours" and "ours" in answers:
                gap = gap_of(answer, answers["ours"])
                self.gaps[name] = max(gap, self.gaps.get(name, 0.0))
        return answers

    def keep(self, key: str, answers: dict[str, Any]) -> None:
        """Keep the least of each side's times: other load only adds."""
        for name, answer in answers.items():
            old = self.facts[name].get(key, {})
            self.facts[name][key] = {
                unit: min(answer[unit], old.get(unit, math.inf)) for unit in ("cpu_s", "wall_s")
            }


def compare(
    file: Path,
    evidence: Evidence,
    sets: list[Evidence],
    sides: dict[str, tuple[str, str]],
    folder: Path,
    limit: float,
) -> dict[str, Any]:
    """First calls, then calls with changed evidence and calls again, the sides in turn."""
    row = Row(file, sides, folder, limit)
    with row.stack:
        first = row.ask("again", evidence, tuple(sides))
        row.keep("first", first)
        quick = [name for name, answer in first.items() if answer["wall_s"] <= LONG_S]
        keepers = tuple(name for name in first if name != "pgmpy")
        long = not set(keepers) <= set(quick)
        row.ask("changed", sets[0], keepers)  # makes what is kept
        for other in sets[1:2] if long else sets[1:]:
            row.keep("changed", row.ask("changed", other, keepers))
            row.keep(
                "again", row.ask("again", evidence, (*keepers, *{"pgmpy"}.intersection(quick)))
            )
    ours = first.get("ours")
    kept = None if ours is None else {part: ours[part] for part in ("log_p", "marginals")}
    return {"sides": row.facts, "gaps": row.gaps, "answer": kept}


def marginal_rows(
    cases: list[shared.Case],
    data: Path,
    options: argparse.Namespace,
    found: dict[str, str],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """One row per Bayesian network and evidence."""
    given_up: set[tuple[str, str]] = set()
    for case in shared.tracked(cases, lambda c: c.name):
        model, observed = case.load(data)
        # Without evidence, likelihoods on the first variable that the data folder observes.
        soft = next(iter(replace(case, case=1).load(data)[1]), 0)
        sets = changes(model, observed, soft, options.repeats + 1)
        sides = {"ours": (sys.executable, OURS)}
        for name in TAKE_PART["marginals"]:
            if name in found and (name, case.source) not in given_up:
                sides[name] = (found[name], PEERS[name].module)
        evidence = [[v, state] for v, state in observed.items()]
        file = write_tables(model, folder)
        row = compare(file, evidence, sets, sides, folder, options.time_limit)
        row = {"case": case.name, "variables": len(model.cardinalities), **row}
        answer = row.pop("answer")
        if answer is not None:
            _, log_p, marginals = case.answer(data, model.variable_names)
            row["gaps"]["reference"] = gap_of(answer, {"log_p": log_p, "marginals": marginals})
        for name in TAKE_PART["marginals"]:
            if row["sides"].get(name, {}).get("status", "done") != "done":
                given_up.add((name, case.source))
            elif name in found and name not in row["sides"]:
                row["sides"][name] = {"status": "not tried, after the row above"}
        row["faults"] = marginal_faults(row)
        yield row


def marginal_faults(row: dict[str, Any]) -> list[str]:
    """What a row of marginals misses."""
    ours, theirs = row["sides"]["ours"], row["sides"].get("pyagrum", {})
    if ours["status"] != "done":
        return [f"{row['case']}: ours: {ours['status']}"]
    out = [
        f"{row['case']}: {name} differs by {gap:.1e}"
        for name, gap in row["gaps"].items()
        if not gap <= MAX_DIFFERENCE
    ]
    if "changed" in theirs:
        mine, other = ours["changed"]["cpu_s"], theirs["changed"]["cpu_s"]
        factor = TIMES_FASTER if other > SLOW_S else 1.0
        if mine * factor > other:
            said = f"{other / mine:.2f} times as fast as pyAgrum, wanted {factor:g}"
            out.append(f"{row['case']}: changed evidence {said}")
    return out


# -- MAP -------------------------------------------------------------------------------------------


def score(model: Any, evidence: dict[int, int], states: list[int]) -> float:
    """Log-weight of a joint state, summed exactly; -inf against the evidence."""
    if any(states[v] != state for v, state in evidence.items()):
        return -math.inf
    tables = zip(model.scopes, model.log_tables, strict=True)
    return math.fsum(float(table[tuple(states[v] for v in scope)]) for scope, table in tables)


def solve(side: Side, file: Path, evidence: Evidence, limit: float) -> dict[str, Any]:
    """One model on one side."""
    try:
        loaded = side.do("load", file=str(file), limit=limit)
        found = side.do("best", evidence=evidence, seconds=limit, limit=limit + GRACE_S)
    except TimeoutError:
        return {"status": "time limit"}
    except RuntimeError as error:
        return failure(error)
    return found | {"load": loaded}


def map_rows(
    cases: list[shared.Case],
    data: Path,
    options: argparse.Namespace,
    found: dict[str, str],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """One row per UAI-2014 model."""
    sides = {"ours": (sys.executable, OURS)}
    if "toulbar2" in found:
        sides["toulbar2"] = (found["toulbar2"], PEERS["toulbar2"].module)
    running: dict[str, Side] = {}
    with ExitStack() as stack:
        for number, case in enumerate(shared.tracked(cases, lambda c: c.name)):
            model, observed = case.load(data)
            file = write_tables(model, folder)
            evidence = [[v, state] for v, state in observed.items()]
            row: dict[str, Any] = {"case": case.name, "variables": len(model.cardinalities)}
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                if name not in running:
                    side = Side(*sides[name], log=folder / f"{name}.log")
                    running[name] = stack.enter_context(side)
                    side.do("start", memory_gib=MEMORY_GIB)
                row[name] = solve(running[name], file, evidence, options.time_limit)
                # Ours goes on to the next model; toulbar2 keeps too much of the last one.
                if name != "ours" or row[name]["status"] in ("time limit", "error"):
                    running.pop(name).close()
                states = row[name].pop("states", None)
                if states is not None:
                    row[name]["score"] = score(model, observed, states)
            row["faults"] = map_faults(row)
            yield row


def map_faults(row: dict[str, Any]) -> list[str]:
    """What a row of MAP misses: optima that differ, a proven one that is beaten."""
    ours, theirs = row["ours"], row.get("toulbar2", {})
    if ours["status"] in ("error", "out of memory"):
        return [f"{row['case']}: ours: {ours['detail']}"]
    sides = {ours["status"], theirs.get("status")}
    if sides == {"solved", "impossible"}:
        return [f"{row['case']}: possible for one side, impossible for the other"]
    if "score" not in ours or "score" not in theirs:
        return []
    scale = MAX_SCORE_DIFFERENCE * max(1.0, abs(ours["score"]))
    gap = theirs["score"] - ours["score"]
    if gap > scale or (theirs["status"] == "solved" and not -gap <= scale):
        return [f"{row['case']}: toulbar2's state scores {gap:+.2g} against ours"]
    return []


# -- the command line ------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = shared.base_parser("exactness_peers", __doc__)
    shared.add_data_dir(out, "the reference models")
    shared.add_peer(out, "the peers", 5)
    out.add_argument(
        "--time-limit", type=float, default=60.0, metavar="S", help="seconds per model and call"
    )
    said = "only this part; --json FILE keeps its other one"
    out.add_argument("--part", choices=tuple(TAKE_PART), help=said)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run, print, write; 1 if a target was missed."""
    options = parser().parse_args(argv)
    data = shared.data_dir(options)
    if options.setup_peers:
        setup_peers()
    found = pythons(not options.no_peer)
    for library in ("OPENBLAS", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # of every side
    cases = shared.reference_cases(data, options.only)
    report: dict[str, Any] = {
        "benchmark": "exactness_peers",
        "marginals": [],
        "map": [],
        "runs": {},
    }
    if options.part and options.json is not None and options.json.exists():
        report = json.loads(options.json.read_text())
    for part, kind, rows in (("marginals", "bn", marginal_rows), ("map", "uai2014", map_rows)):
        chosen = [case for case in cases if case.folder == kind]
        if options.part not in (None, part) or not chosen:
            continue
        report[part] = []
        report["runs"][part] = {
            **shared.environment(64),
            "load": list(os.getloadavg()),
            "time_limit": options.time_limit,
            "repeats": options.repeats,
            "memory_gib": MEMORY_GIB,
            "peers": [PEERS[name].requirements[0] for name in found if name in TAKE_PART[part]],
        }
        with tempfile.TemporaryDirectory() as scratch:
            for row in rows(chosen, data, options, found, Path(scratch)):
                report[part].append(row)
                if options.json is not None:
                    shared.write_json(options.json, report)
    shared.publish(options, markdown(report), report)
    return int(any(row["faults"] for part in ("marginals", "map") for row in report[part]))
