"""A side of a comparison as a process: one JSON order a line in, one JSON answer a line out.

The process stays alive between orders, so runs of two sides can alternate and other load on the
machine meets both. Standard library and numpy only: every side's environment has those.
"""

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def clock() -> tuple[float, float]:
    """CPU seconds of all threads of this process, and wall seconds."""
    return time.process_time(), time.perf_counter()


def elapsed(since: tuple[float, float]) -> dict[str, float]:
    """What passed since a `clock`."""
    cpu, wall = clock()
    return {"cpu_s": cpu - since[0], "wall_s": wall - since[1]}


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Tasks:
    """Base of a side: orders are method names; `timed` holds what can be timed."""

    def __init__(self):
        self.timed: dict[str, Callable[[], Any]] = {}

    def time(self, task: str, calls: int) -> dict[str, float]:
        """CPU and wall seconds of one call, averaged over ``calls``."""
        since = clock()
        for _ in range(calls):
            self.timed[task]()
        return {key: value / calls for key, value in elapsed(since).items()}

    def memory(self) -> dict[str, float]:
        """Peak memory so far."""
        return {"peak_rss_mib": peak_rss_mib()}


def limit_memory(gib: float) -> None:
    """Let this process fail where it asks for more than so much address space."""
    resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)


def serve(tasks: Tasks) -> None:
    """Answer orders until the input ends. Anything a library prints goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(tasks, order.pop("do"))(**order)
        except Exception as error:  # the other end raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


class Side:
    """The other end: a running side, which may import from the folder `sources` first."""

    def __init__(self, python: str, module: str, *, log: Path, sources: str | None = None):
        self.log = log
        environment = {
            **os.environ,
            # Every first call compiles, on both sides.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "JAX_ENABLE_X64": "false",
        }
        if sources is not None:
            known = os.environ.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (sources, known)))
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", "-m", module],
                cwd=Path(__file__).resolve().parents[2],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )

    def do(self, order: str, *, limit: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            RuntimeError: the order failed, or the process died.
            TimeoutError: no answer within ``limit`` seconds; the process was ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": order, **arguments}) + "\n")
            if not select.select([self.process.stdout], [], [], limit)[0]:
                self.process.kill()
                raise TimeoutError(f"no answer to {order!r} within {limit:g} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"a side ended with status {self.process.wait()}:\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
