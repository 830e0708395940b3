"""Run one benchmark: ``python -m benchmarks NAME [options]``; ``--help`` lists the names."""

import ast
import importlib
import os
import sys
from pathlib import Path


def summaries() -> dict[str, str]:
    """First docstring line of every benchmark, read without importing any of them."""
    out = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        out[path.stem] = document.partition("\n")[0]
    return out


def main(argv: list[str] | None = None) -> int:
    """Dispatch to ``benchmarks.NAME.main``; the exit status is the benchmark's."""
    argv = sys.argv[1:] if argv is None else argv
    known = summaries()
    if argv and argv[0] in known:
        # A search for a contraction tree counts in the first call.
        os.environ.setdefault("KLPROJAX_TREES", "")
        return importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    asked = bool(argv) and argv[0] in ("-h", "--help")
    out = sys.stdout if asked else sys.stderr
    if argv and not asked:
        print(f"No benchmark is named {argv[0]!r}.", file=out)
    print("usage: python -m benchmarks NAME [options]   (NAME --help lists its options)", file=out)
    for name, line in known.items():
        print(f"  {name:14} {line}", file=out)
    return 0 if asked else 2


if __name__ == "__main__":
    raise SystemExit(main())
