"""What a stored figure depends on besides its seed: commit and versions."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Return the commit of the checkout the package runs from, if it does, and versions."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie inside another project's checkout.
    tracked = git("ls-files", "--error-unmatch", "__init__.py") is not None
    changed = git("status", "--porcelain", "--", ".") if tracked else None
    return {
        "commit": git("rev-parse", "HEAD") if tracked else None,
        "uncommitted_changes": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy", "equinox")},
    }
