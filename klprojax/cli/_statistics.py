"""Intervals and paired tests over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

LEVEL = 0.95


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's interval of the mean at the level 0.95; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    n, mean = len(values), statistics.fmean(values)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, Any] | None:
    """Paired t-test of the mean difference of two steps, seed by seed.

    Returns:
        The number of seeds, the mean difference, its interval and the two-sided p-value (None
        where all seeds have one difference); None for fewer than two seeds.
    """
    gaps = [a - b for a, b in zip(values, others, strict=True)]
    found = interval(gaps)
    if found is None:
        return None
    from scipy.special import stdtr

    n, mean, deviation = len(gaps), statistics.fmean(gaps), statistics.stdev(gaps)
    p = None
    # What rounding leaves of equal differences says nothing.
    if deviation > 1e-12 * max(map(abs, (*values, *others))):
        p = 2 * float(stdtr(n - 1, -abs(mean) * math.sqrt(n) / deviation))
    return {"seeds": n, "difference": mean, "interval": list(found), "p": p}
