"""The value of a small circuit in plain numpy: nothing is compiled for the first few calls."""

from typing import Any

import numpy as np

from .._variables import on_this_cpu
from ._layered_plan import spans
from ._leaves import Categorical, Indicator
from ._structure import SUM, CircuitStructure

_MOST_EDGES = 2**12
# A compilation takes about as long as so many calls.
_MOST_CALLS = 500


def small_log_partition(
    s: CircuitStructure, log_weights: Any, log_evidence: Any, parameters: Any
) -> float | None:
    """``log S(root)`` in float64; None where the compiled program is to be taken.

    That is for traced or placed arrays, other devices than a CPU, leaves other than indicators and
    tables, more than 2^12 edges, and a circuit whose value was asked for 500 times.
    """
    arrays = (log_weights, *log_evidence, *parameters)
    if (
        s.num_edges > _MOST_EDGES
        or s.small_calls >= _MOST_CALLS
        or not all(isinstance(group.family, Indicator | Categorical) for group in s.groups)
        or not all(map(on_this_cpu, arrays))
    ):
        return None
    s.small_calls += 1
    evidence = [np.asarray(table, np.float64) for table in log_evidence]
    values = np.empty(s.num_nodes)
    for group, group_class, numbers in zip(s.groups, s.group_class, parameters, strict=True):
        rows = evidence[group_class][s.variables.row_of[group.variables]]
        if isinstance(group.family, Indicator):
            values[group.nodes] = rows[np.arange(len(rows)), group.states]
        else:
            terms = np.asarray(numbers, np.float64) + rows
            starts = np.arange(len(terms)) * terms.shape[1]
            values[group.nodes] = _log_sums(terms.reshape(-1), starts)
    weights = np.zeros(s.num_edges)
    weights[s.sum_edges] = np.asarray(log_weights, np.float64)
    for nodes in s.ranks:
        is_sum = s.kinds[nodes] == SUM
        for part, total in ((nodes[is_sum], _log_sums), (nodes[~is_sum], np.add.reduceat)):
            if len(part):
                edges = spans(s.offsets[part], s.fan_in[part])
                starts = np.cumsum(s.fan_in[part]) - s.fan_in[part]
                values[part] = total(weights[edges] + values[s.children[edges]], starts)
    return float(values[s.root])


def _log_sums(terms: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Logarithms of sums of exponentials over runs that begin at ``starts``."""
    top = np.maximum.reduceat(terms, starts)
    shift = np.where(np.isfinite(top), top, 0.0)
    sizes = np.diff(np.append(starts, len(terms)))
    with np.errstate(divide="ignore"):
        return np.log(np.add.reduceat(np.exp(terms - np.repeat(shift, sizes)), starts)) + shift
