"""Expectation maximisation: the alternating KL projection on circuits."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._sharding import on_any_mesh
from ...fitting._step import AbstractStep, StepInfo, weighted_mean
from ..tensor import TensorCircuit, TensorModel, TensorParameters
from ..tensor._evaluate import assume_wide
from ..tensor._kinds import require_tensor
from ._schedule import geometric


class EMState(NamedTuple):
    """Running average of the flows (per whole data set), rows seen."""

    flows: TensorParameters
    seen: Array


class EMStep(AbstractStep):
    """Learn by stochastic expectation maximisation: a running average of flows over batches.

    Alternating projections are `em_step`, on all rows at once; this is their stochastic form. A
    batch's flows are its I-projection (E-step); the normalised running average of flows is the
    right projection onto the circuit's parameters (M-step):
    ``s <- (1 - γ) s + γ (N / B) flows``, ``w = (s + α / n) / (sum s + α)``.

    Args:
        step_size: γ of the first epoch; it decays to `final_step_size` geometrically. Until the
            average has seen ``1 / γ`` batches it is a plain mean. A batch that is not full has
            its share of γ.
        final_step_size: γ of the last epoch in batches.
        pseudocount: α, imaginary rows a distribution, spread evenly over its n entries.
        softening: data softening, see `TensorCircuit.log_values`.
        rows: N, of the whole data set; `fit` says how many. Those of the batch if None.

    Reference:
        Cappé and Moulines, On-line expectation-maximization for latent data models (2009); Liu
        and Van den Broeck, Tractable regularization of probabilistic circuits (2021).
    """

    step_size: float | Float[Array, ""] = 0.9
    final_step_size: float | Float[Array, ""] = 0.05
    pseudocount: float = 0.1
    softening: float = 0.0
    rows: int | Float[Array, ""] | None = None

    def __check_init__(self):
        for name in ("step_size", "final_step_size"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in (0, 1].")
        if self.pseudocount < 0:
            raise ValueError(f"pseudocount is {self.pseudocount}; it must not be negative.")

    def size(self, epoch: int, epochs: int) -> float:
        """The step size γ of an epoch.

        Args:
            epoch: number of the epoch.
            epochs: how many there will be.
        """
        return geometric(self.step_size, self.final_step_size, epoch, epochs)

    def at(self, epoch: int, epochs: int, rows: int) -> "EMStep":
        """The step of an epoch: its γ, an array, stays.

        Args:
            epoch: number of the epoch.
            epochs: how many there will be.
            rows: of the whole data set.
        """
        size, total = jnp.asarray(self.size(epoch, epochs)), jnp.asarray(float(rows))
        return replace(self, step_size=size, final_step_size=size, rows=total)

    def parameters(self, model: TensorModel) -> TensorParameters:
        """The normalised parameters.

        Args:
            model: a circuit with them.
        """
        return model.parameters

    def init(self, model: Any) -> EMState:
        """Start from normalised parameters; see `AbstractStep.init`."""
        require_tensor(getattr(model, "circuit", model), "EMStep")
        zeros = jax.tree.map(jnp.zeros_like, model.parameters)
        return EMState(zeros, jnp.zeros((), model.parameters.log_root.dtype))

    def update(self, model, state, x, y, weights, loss) -> tuple[TensorModel, EMState, StepInfo]:
        """One batch of states ``[rows, variables]``; see `AbstractStep.update`."""
        circuit, parameters = model
        values, flows = circuit.flows(parameters, x, weights, softening=self.softening)
        own = jnp.sum(weights)
        size = jnp.asarray(self.step_size, own.dtype) * own / weights.shape[0]
        size = jnp.maximum(size, own / (state.seen + own))
        scale = size * (own if self.rows is None else jnp.asarray(self.rows, own.dtype)) / own
        average = jax.tree.map(lambda s, f: (1 - size) * s + scale * f, state.flows, flows)
        parameters = maximize(circuit, average, parameters, self.pseudocount)
        info = StepInfo(-weighted_mean(values, weights), {})
        return TensorModel(circuit, parameters), EMState(average, state.seen + own), info


class FullEMStep(AbstractStep):
    """EM on all rows at once: `update` sums the flows of batches, `finish` maximises.

    Args:
        step: whose pseudocount and softening count.
        known: whether the weights are wide, see `assume_wide`.
    """

    step: EMStep
    known: bool = False

    def init(self, model: TensorModel) -> tuple[TensorParameters, Array]:
        """No flows of no batch."""
        zeros = jax.tree.map(jnp.zeros_like, model.parameters)
        return zeros, jnp.zeros((), jnp.int32)

    def update(self, model, state, x, y, weights, loss) -> tuple[TensorModel, Any, StepInfo]:
        """One batch, which leaves the parameters; see `AbstractStep.update`."""
        with assume_wide(self.known):
            values, flows = model.circuit.flows(
                model.parameters, x, weights, softening=self.step.softening
            )
        state = jax.tree.map(jnp.add, state[0], flows), state[1] + 1
        return model, state, StepInfo(-weighted_mean(values, weights), {})

    @eqx.filter_jit
    def finish(self, model: TensorModel, state: Any) -> tuple[TensorModel, Any]:
        """The model and the state after the last batch of an epoch."""
        new = maximize(model.circuit, state[0], model.parameters, self.step.pseudocount)
        return TensorModel(model.circuit, new), self.init(model)


def maximize(
    circuit: TensorCircuit,
    flows: TensorParameters,
    parameters: TensorParameters,
    pseudocount: float = 0.0,
) -> TensorParameters:
    """Turn flows into parameters: the M-step, a right projection in closed form.

    A weight whose expected uses are 0, or below the range of the format, is 0 from then on; a
    pseudocount keeps every weight positive.

    Args:
        circuit: the structure.
        flows: expected uses of every weight, summed over rows.
        parameters: kept for distributions that nothing reached.
        pseudocount: imaginary uses of a distribution, spread evenly over its entries.
    """
    s = circuit.structure
    cards = s.input_cardinalities[:, None, None]
    inside = np.arange(s.max_states) < cards
    dtype = flows.log_root.dtype
    extra = jnp.asarray(np.where(inside, pseudocount / cards, 0.0), dtype)
    mixing = flows.log_mixing
    if mixing is not None:
        assert parameters.log_mixing is not None  # flows are shaped like the parameters
        counts = s.partitions[:, None, None]
        inside = np.arange(s.max_partitions) < counts
        share = jnp.asarray(np.where(inside, pseudocount / counts, 0.0), dtype)
        mixing = _normalized(mixing + share, (2,), parameters.log_mixing)
    return TensorParameters(
        _normalized(flows.log_weights + pseudocount / s.units, (2,), parameters.log_weights),
        _normalized(flows.log_inputs + extra, (2,), parameters.log_inputs),
        _normalized(
            flows.log_root + pseudocount / flows.log_root.size, (0, 1), parameters.log_root
        ),
        mixing,
    )


def _normalized(counts: Array, axes: tuple[int, ...], old: Array) -> Array:
    total = jnp.sum(counts, axis=axes, keepdims=True)
    unseen = jnp.logical_not(total > 0)
    new = jnp.log(counts) - jnp.log(jnp.where(unseen, jnp.ones_like(total), total))
    return jnp.where(unseen, old, new)


@on_any_mesh(out=("parameters", None))
def em_step(
    circuit: TensorCircuit,
    parameters: TensorParameters,
    rows: Any,
    *,
    pseudocount: float = 0.0,
    softening: float = 0.0,
) -> tuple[TensorParameters, Float[Array, ""]]:
    """One step of EM on all rows given: an I-projection, then a right projection.

    Named fused implementation of a step of ``Cyclic`` with ``left(data)`` and the right projection
    onto the circuit's distributions, on the joint tables of states and parses: ``data`` are the
    tables whose marginal over states is that of the rows. This holds for complete rows without
    pseudocount and softening. Plain numpy version: tests/reference/em.py.

    Without pseudocount the mean log-likelihood never falls.

    Args:
        circuit: the structure.
        parameters: normalised.
        rows: states ``[rows, variables]``, -1 where missing.
        pseudocount: see `maximize`.
        softening: data softening.

    Returns:
        New parameters and the mean log-value of the rows before the step.
    """
    require_tensor(circuit, "em_step")
    values, flows = circuit.flows(parameters, rows, softening=softening)
    return maximize(circuit, flows, parameters, pseudocount), jnp.mean(values)
