"""The bridge: the projection's displacement as the direction of any optax optimiser."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._sharding import on_any_mesh
from ..fitting._network import parameters, partition, state_after, with_state
from ..fitting._precision import follow, start, wide
from ..fitting._step import AbstractStep, StepInfo, apply_optimiser, with_named
from ._gradient_step import layer_norms
from .moves import Direction
from .network import Precisions, lift


@on_any_mesh()
def projection_slopes(
    model: PyTree,
    x: PyTree,
    y: Any,
    weights: Float[Array, " batch"],
    loss: Any,
    *,
    ratio: Any = 1e-4,
    precisions: Precisions | None = None,
    key: Any = None,
) -> tuple[PyTree, Float[Array, ""], dict[str, Array]]:
    """Read the parameters' slopes after one backward sweep of local projections.

    Going down, every constraint gets the summed slope of its output as a linear table at precision
    1, while its inputs keep their forward values at precision `1/ratio`; the projection onto its
    graph moves the inputs, and `ω (copy - base)`, the displacement in dual coordinates, is the
    slope that goes on. Slopes of the copies of a parameter add up: messages multiply.

    Args:
        model: a callable on one sample, or a pair (network, state).
        x: a batch.
        y: its targets.
        weights: of the rows, at least 0: a row of weight 2 counts as two.
        loss: an output factor.
        ratio: precision of the outputs over that of the inputs, positive. As it tends to 0 the
            slopes tend to minus the gradient of the mean loss, with relative error of its order; at
            finite ratio each constraint makes a damped Gauss-Newton step.
        precisions: multiples of `1/ratio` by what is copied (`node` and `threshold` multiply 1).
        key: of the random numbers that the network draws.

    Returns:
        The mean slopes, a tree like the model's inexact arrays (None in a state); the mean loss;
        figures by name, those of the loss too.

    Reference: Theorem 3.3 and Corollary 3.4.
    """
    weights = wide(weights)
    stiff = 1 / jnp.asarray(ratio, weights.dtype)
    base = Precisions() if precisions is None else precisions
    scaled = Precisions(
        weight=_times(base.weight, stiff),
        activation=_times(base.activation, stiff),
        unit=_times(base.unit, stiff),
        bias=_times(base.bias, stiff),
        output=_times(base.output, stiff),
        node=base.node,
        relative=base.relative,
        threshold=base.threshold,
    )
    network, values = lift(model, x, y, weights, loss, scaled, "slope", key)
    graph, state = network.graph, network.start(values)
    before, named = network.mean_loss(network.base(state.bases, graph.output), weights)
    state = network.visit_output(state)
    for node in reversed(graph.constraints):
        state = network.visit(state, node)
    count = jnp.sum(weights)
    slopes = []
    for index, parameter in zip(graph.parameters, values, strict=True):
        total_slope = network.total_slope(state, index)
        slopes.append(jnp.zeros_like(parameter) if total_slope is None else total_slope / count)
    structure = jax.tree.structure(parameters(model))
    stats = {"sensitivity_norm": network.sensitivity_norms(state)}
    return jax.tree.unflatten(structure, slopes), before, with_named(stats, named)


def projection_direction(
    static: PyTree, loss: Any, *, ratio: Any = 1e-4, precisions: Precisions | None = None
) -> optax.GradientTransformationExtraArgs:
    """Make an optax transformation whose updates are minus the projection's slopes.

    It stands where the gradient comes from: `optax.chain(projection_direction(...), optax.adam(r))`
    is Adam on the projection's direction. The updates passed in are not read.

    Args:
        static: what `eqx.partition(model, eqx.is_inexact_array)` leaves beside the parameters; of a
            pair (network, state) with `(eqx.is_inexact_array, False)`, and the state stays.
        loss: an output factor.
        ratio: see `projection_slopes`.
        precisions: see `projection_slopes`.

    Returns:
        A transformation; `update(updates, state, params, x=..., y=..., weights=..., key=...)` needs
        the batch (weights and key may be left out) and raises a ValueError without it.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        x: Any = None,
        y: Any = None,
        weights: Any = None,
        key: Any = None,
        **others: Any,
    ) -> tuple[PyTree, Any]:
        del updates, others
        if params is None or x is None:
            raise ValueError(
                "projection_direction needs the parameters and the batch: "
                "update(updates, state, params, x=x, y=y)."
            )
        rows = jax.tree.leaves(x)[0].shape[0]
        dtype = jax.tree.leaves(params)[0].dtype
        weights = jnp.ones(rows, dtype) if weights is None else weights
        model = eqx.combine(params, static)
        slopes, _, _ = projection_slopes(
            model, x, y, weights, loss, ratio=ratio, precisions=precisions, key=key
        )
        return jax.tree.map(jnp.negative, slopes), state

    return optax.GradientTransformationExtraArgs(init, update)


class ProjectionDirection(AbstractStep):
    """Hand the projection's slopes to an optax optimiser in the gradient's place.

    As `ratio` tends to 0 this is the optimiser itself; see `projection_slopes`. One backward sweep
    of local projections per batch.

    Reports `sensitivity_norm` (by linear map) and `displacement_norm` (by weight matrix).

    Attributes:
        optimiser: any optax optimiser that needs gradients only.
        ratio: precision of the outputs over that of the inputs.
        precisions: multiples by what is copied.

    Reference: Corollary 3.4.
    """

    optimiser: optax.GradientTransformation
    ratio: Any = 1e-4
    precisions: Precisions = Precisions()

    def init(self, model: PyTree) -> PyTree:
        """Return the optimiser's state."""
        return start(parameters(model), self.optimiser.init)

    @on_any_mesh(out=("model", "state", None))
    def update(
        self,
        model: PyTree,
        state: PyTree,
        x: PyTree,
        y: PyTree,
        weights: Float[Array, " batch"],
        loss: Callable[[Any, Any], Any],
        key: Any = None,
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """One sweep and one step of the optimiser; see `AbstractStep.update`."""
        (_, slopes, before), stats = self.direction(model, x, y, weights, loss, key)
        params, rest = partition(model)
        descent = jax.tree.map(jnp.negative, slopes)
        new, state, updates = follow(
            params,
            state,
            lambda full, inner: apply_optimiser(self.optimiser, descent, inner, full, value=before),
        )
        stats["displacement_norm"] = layer_norms(updates)
        after = state_after(model, x, weights, key)
        return with_state(eqx.combine(new, rest), after), state, StepInfo(before, stats)

    def direction(
        self,
        model: PyTree,
        x: PyTree,
        y: Any,
        weights: Float[Array, " batch"],
        loss: Any,
        key: Any = None,
    ) -> tuple[Direction, dict[str, Array]]:
        """What one sweep says about the parameters; the displacement is that of the slopes.

        Args:
            model: the model before the batch.
            x: inputs, one sample per row.
            y: targets.
            weights: weight of every sample.
            loss: the output factor.
            key: of the random numbers that the network draws.

        Returns:
            A `Direction`; figures by name.
        """
        slopes, before, stats = projection_slopes(
            model, x, y, weights, loss, ratio=self.ratio, precisions=self.precisions, key=key
        )
        return Direction(slopes, slopes, before), stats


def _times(value: Any, factor: Array) -> Any:
    if isinstance(value, tuple | list):
        return tuple(jnp.asarray(v, factor.dtype) * factor for v in value)
    return jnp.asarray(value, factor.dtype) * factor
