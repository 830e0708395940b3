"""Condition a model on evidence and drop what cannot happen, before any inference.

Observed variables are sliced away; then states that no factor supports are removed until nothing
changes, and variables left with one state disappear. Marginals and partition function are those of
the conditioned model, its tables often far smaller.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._model import DiscreteModel, check_model


class ContradictionError(ValueError):
    """No joint state is possible, given the evidence or, without any, at all."""


@dataclass(frozen=True, eq=False)
class ConditionedModel:
    """A smaller model with the same answers, and the way back.

    Attributes:
        model: the reduced model; its partition function is that of the original with the evidence.
        kept: numbers, in the original, of the reduced model's variables.
        states: for every original variable, which of its states are possible (bool arrays).
    """

    model: DiscreteModel
    kept: tuple[int, ...]
    states: tuple[np.ndarray, ...]

    def expand(self, marginals: Sequence[Any]) -> list[np.ndarray]:
        """Marginals of all original variables from those of the reduced model (linear space).

        Args:
            marginals: of the variables that were left.
        """
        out = [possible.astype(np.float64) for possible in self.states]
        for v, marginal in zip(self.kept, marginals, strict=True):
            out[v][self.states[v]] = np.asarray(marginal, np.float64)
        return out

    def expand_states(self, states: Any) -> np.ndarray:
        """States of all original variables from those of the reduced model.

        Args:
            states: ``[..., variables that were left]``, state numbers; -1 stays.

        Returns:
            ``[..., variables]``, int32.
        """
        states = np.asarray(states)
        out = np.empty((*states.shape[:-1], len(self.states)), np.int32)
        for v, possible in enumerate(self.states):
            out[..., v] = np.flatnonzero(possible)[0]
        for k, v in enumerate(self.kept):
            numbers = np.flatnonzero(self.states[v])
            out[..., v] = np.where(states[..., k] < 0, -1, numbers[states[..., k]])
        return out


def condition(model: DiscreteModel, evidence: Mapping[Any, Any] | None = None) -> ConditionedModel:
    """Fix observed variables, then remove impossible states and variables with one state.

    Args:
        model: any discrete model.
        evidence: of each observed variable, numbers or names, its state or a log-table (soft
            evidence, nats), which becomes one more factor.

    Returns:
        The reduced model with its map back.

    Raises:
        ContradictionError: no state of some variable is possible; the message names it.
        ValueError: no `DiscreteModel`, or evidence on a variable or state that it does not have.

    Example:
        >>> import klprojax
        >>> asia = klprojax.load_model("asia")
        >>> reduced = klprojax.condition(asia, asia.evidence({"either": "no"}))
        >>> [asia.variable_names[v] for v in reduced.kept]
        ['asia', 'smoke', 'bronc', 'xray', 'dysp']
    """
    check_model(model)
    states = [np.ones(card, bool) for card in model.cardinalities]
    soft = {}
    for v, known in model.evidence(evidence or {}).items():
        if np.ndim(known):
            soft[v] = known
        else:
            states[v][:] = False
            states[v][known] = True
    if soft:
        model = dataclasses.replace(
            model,
            scopes=(*model.scopes, *((v,) for v in soft)),
            log_tables=(*model.log_tables, *soft.values()),
            kind="MARKOV",
        )
    _propagate(model, states, bool(evidence))

    kept = [v for v, possible in enumerate(states) if possible.sum() > 1]
    number = {v: k for k, v in enumerate(kept)}
    scopes, tables, constant = [], [], 0.0
    for scope, table in zip(model.scopes, model.log_tables, strict=True):
        part = _slice(table, scope, states)
        left = tuple(number[v] for v in scope if v in number)
        if left:
            scopes.append(left)
            tables.append(part.reshape([n for n in part.shape if n > 1]))
        else:
            constant += float(part.reshape(()))
    if constant:
        scopes.append(())
        tables.append(np.asarray(constant))
    names = model.state_names
    reduced = DiscreteModel(
        cardinalities=tuple(int(states[v].sum()) for v in kept),
        scopes=tuple(scopes),
        log_tables=tuple(tables),
        variable_names=tuple(model.variable_names[v] for v in kept),
        state_names=None
        if names is None
        else tuple(
            tuple(name for name, possible in zip(names[v], states[v], strict=True) if possible)
            for v in kept
        ),
        name=model.name,
    )
    return ConditionedModel(reduced, tuple(kept), tuple(states))


def _propagate(model: DiscreteModel, states: list[np.ndarray], observed: bool) -> None:
    """Remove states without support in some factor until every factor agrees."""
    at: list[list[int]] = [[] for _ in states]
    for f, scope in enumerate(model.scopes):
        for v in scope:
            at[v].append(f)
    waiting = dict.fromkeys(range(len(model.scopes)))
    while waiting:
        f = next(iter(waiting))
        del waiting[f]
        scope = model.scopes[f]
        support = ~np.isneginf(_slice(model.log_tables[f], scope, states))
        if not support.any():
            if not scope:
                raise ContradictionError(
                    f"Factor {f} is the constant zero, so the model gives every joint state "
                    "probability zero. Remove the factor or correct its value."
                )
            where = " and ".join(repr(model.variable_names[v]) for v in scope)
            what = "The evidence has" if observed else "The model gives every joint state"
            advice = "Remove or change an observation" if observed else "Correct its factors"
            raise ContradictionError(
                f"{what} probability zero: no joint state of {where} is possible in factor {f}. "
                f"{advice}."
            )
        for axis, v in enumerate(scope):
            alive = support.any(axis=tuple(a for a in range(len(scope)) if a != axis))
            if not alive.all():
                states[v][np.flatnonzero(states[v])[~alive]] = False
                waiting.update(dict.fromkeys(at[v]))


def _slice(table: np.ndarray, scope: Sequence[int], states: Sequence[np.ndarray]) -> np.ndarray:
    for axis, v in enumerate(scope):
        if not states[v].all():
            table = np.compress(states[v], table, axis=axis)
    return table
