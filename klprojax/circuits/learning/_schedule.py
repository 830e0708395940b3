"""Step sizes over a run."""

from typing import Any


def geometric(first: Any, last: Any, epoch: int, epochs: int) -> float:
    """Step size of an epoch: from ``first`` to ``last``, by equal ratios."""
    share = epoch / max(epochs - 1, 1)
    return float(first * (last / first) ** share)
