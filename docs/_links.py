"""Check the links of the README and of every page: ``python docs/_links.py [--external]``.

Relative links must lead to a file, and an anchor to a heading of it. With ``--external`` links to
other sites are asked for too, which needs a network; without, they are only counted.
"""

import argparse
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Pages that are made while the site is built, by the file they are made of.
NOTEBOOKS = {f"docs/notebooks/{p.stem}.md": p for p in (ROOT / "notebooks").glob("*.py")}
_TIMEOUT_S = 20.0


def pages(root: Path = ROOT) -> list[Path]:
    """The pages that are checked."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def targets(page: Path) -> list[str]:
    """What the links and pictures of a page point at."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", t).strip().lower()) for t in titles}


def is_external(target: str) -> bool:
    """Whether a link leads to another site."""
    return re.match(r"[a-z][a-z0-9+.-]*:", target) is not None


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead nowhere, or out of the project."""
    out = []
    for target in targets(page):
        if is_external(target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page.resolve()
        inside = found.is_relative_to(root.resolve())
        made = inside and found.relative_to(root.resolve()).as_posix() in NOTEBOOKS
        good = inside and (found.exists() or made)
        if good and anchor:
            good = found.suffix == ".md" and not made and anchor in anchors(found)
        if not good:
            out.append(target)
    return out


def external(files: Iterable[Path]) -> dict[str, Path]:
    """Addresses on other sites, linked or bare, each with a file that names it."""
    return {
        address.rstrip(".,"): path
        for path in files
        for address in re.findall(r"https?://[^\s)>\]\"'`]+", path.read_text(encoding="utf-8"))
    }


def answers(address: str) -> str | None:
    """Why an address is not there, or None."""
    request = urllib.request.Request(address, headers={"User-Agent": "klprojax link check"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return None if response.status < 400 else f"status {response.status}"
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        return str(error)


def main(
    argv: list[str] | None = None, ask: Callable[[str], str | None] = answers, root: Path = ROOT
) -> int:
    """Check; 1 if a link is broken."""
    options = argparse.ArgumentParser(prog="python docs/_links.py", description=__doc__)
    options.add_argument("--external", action="store_true", help="ask other sites as well")
    asked = options.parse_args(argv)
    found = [(page, target) for page in pages(root) for target in broken(page, root)]
    for page, target in found:
        print(f"{page.relative_to(root)}: {target} leads nowhere", file=sys.stderr)
    more = [root / name for name in ("mkdocs.yml", "klprojax/models/README.md")]
    elsewhere = external([*pages(root), *(path for path in more if path.exists())])
    bad = 0
    if asked.external:
        for address, page in elsewhere.items():
            why = ask(address)
            if why is not None:
                bad += 1
                print(f"{page.relative_to(root)}: {address}: {why}", file=sys.stderr)
    said = "asked" if asked.external else "not asked"
    print(f"{len(found)} relative links broken; {len(elsewhere)} external ones {said}, {bad} bad.")
    return int(bool(found or bad))


if __name__ == "__main__":
    raise SystemExit(main())
