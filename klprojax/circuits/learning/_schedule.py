"""Step sizes over a run."""


def geometric(first: float, last: float, epoch: int, epochs: int) -> float:
    """Step size of an epoch: from ``first`` to ``last``, by equal ratios."""
    share = epoch / max(epochs - 1, 1)
    return float(first * (last / first) ** share)
