"""The lifted operator of a network: visits that move messages between its local constraints.

Every operation of the network keeps its own Gaussian copies of the values it reads, one for each
sample and unit. A *visit* of a constraint projects its copies onto its graph; the copies' summed
slopes `ω (copy - base)` are its messages. A visit of a parameter moves it to the consensus of its
copies. Schemes are orders of visits. Copies themselves are never formed: after a consensus they
agree with the base, so a constraint needs only the bases of its inputs and the target of its
output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...fitting._step import mean_loss
from .._outputs import AbstractOutputFactor
from ._bilinear import Bilinear
from ._carriers import Spread
from ._graph import NetworkGraph, Node
from ._joined import Joined


class Precisions(eqx.Module):
    """Precisions of the Gaussian copies, by what is copied. All positive.

    Attributes:
        weight: copies of the parameters of linear maps; one number, or a tuple with one for each
            linear map in the order of the network.
        activation: copies of the activations that linear maps read; likewise.
        unit: copies of the summands that activations read.
        bias: copies of the parameters added to them.
        output: the output factor's copies of the network's outputs; `1/λ` of its proximal step.
        node: precision of a node's own output in its local projection, relative to what the
            consensus says; with `"slope"` the absolute one.
        relative: with `"slope"`, precisions are in units of each constraint's own sizes: the nats
            of its message (root mean squares of slope and value of its output, multiplied) over the
            mean square of what is copied, or over what it does to the output where the rule has a
            slope of its own. Layers of any scale are then damped alike.
        threshold: copies of the summands that step functions (`quantise`) read; None: as `unit`.
            A stiff sum never crosses a step, and then nothing below it learns.
    """

    weight: Any = 1.0
    activation: Any = 1.0
    unit: Any = 1.0
    bias: Any = 1.0
    output: Any = 1.0
    node: Any = 1.0
    relative: bool = eqx.field(static=True, default=False)
    threshold: Any = None

    @classmethod
    def with_ratio(cls, ratio: float, *, relative: bool = False) -> "Precisions":
        """All copies of inputs at `1/ratio`, outputs at 1.

        Relative ones let step functions jump: a sum crosses a step where the message is larger than
        most and the sum nearer to the step than most.

        Args:
            ratio: precision of the outputs over that of the inputs, positive.
            relative: see the class.
        """
        stiff, soft = 1 / ratio, 100.0 if relative else None
        return cls(stiff, stiff, stiff, stiff, stiff, 1.0, relative, soft)


class State(NamedTuple):
    """Bases and messages.

    Attributes:
        bases: agreed value of every constraint's output and of every parameter, by value.
        moved: how far every parameter has come since the start; of a small move the difference of
            bases keeps no digits.
        slopes: message of every constraint into each of its movable inputs, by
            `(node, input position)`.
        output_slope: message of the output factor.
        residual: the largest distance of a visited constraint's point from its graph.
    """

    bases: dict[int, Array]
    moved: dict[int, Array]
    slopes: dict[tuple[int, int], Array]
    output_slope: Array
    residual: Float[Array, ""]


CONSENSUS = ("average", "product", "slope")


class LiftedNetwork:
    """A network's local constraints with a batch, an output factor and precisions.

    Args:
        graph: the traced network.
        x: batch of the model's argument.
        y: targets.
        weights: of the samples, at least 0; 0 for padding. Sums over samples count them. Where rows
            read each other (`graph.coupled`) every row counts, and the weight is a power of its
            output factor: `exp(-w C)`, with w copies of its outputs.
        factor: output factor.
        precisions: of the copies.
        consensus: what a constraint is told about its output. `"average"`: the mean of the copies,
            at precision 1, as in divide and concur by primal averages, which shrinks the signal by
            the number of copies per layer. `"product"`: the mean at the copies' summed precision,
            the product of their tables; the orthogonal projection of the lifted space. `"slope"`:
            the summed slope alone, as a linear table at precision `precisions.node`; as that
            precision tends to 0 relative to the others the visits become backpropagation. These
            visits are a sweep of Gaussian messages, not a splitting: no copy has a value of
            its own.

    Raises:
        ValueError: an unknown consensus, or a factor that cannot be projected onto.
    """

    def __init__(
        self,
        graph: NetworkGraph,
        x: PyTree,
        y: Any,
        weights: Float[Array, " batch"],
        factor: Any,
        precisions: Precisions,
        consensus: str,
    ):
        if consensus not in CONSENSUS:
            raise ValueError(f"consensus is {consensus!r}; expected one of {CONSENSUS}.")
        if not isinstance(factor, AbstractOutputFactor):
            name = getattr(factor, "__name__", repr(factor))
            raise ValueError(
                f"The loss is {name}, which has no projection; a step of projections needs an "
                "output factor: CrossEntropy(), SquaredError(), Margin(), or one of your own that "
                "derives from AbstractOutputFactor. A GradientStep takes any function."
            )
        self.graph, self.y = graph, y
        self.factor = factor if graph.form.alone else Joined(factor, graph.form)
        self.weights = jnp.ones_like(weights) if graph.coupled else weights
        self.powers = weights if graph.coupled else None
        self.precisions, self.consensus = precisions, consensus
        self.given = dict(zip(graph.given, graph.evaluate_given(x), strict=True))
        self.rows = jnp.sum(self.weights)
        self._linear_maps = [n.index for n in graph.constraints if isinstance(n.rule, Bilinear)]
        self.totals = self._total_precisions()

    # Values.

    def start(self, parameters: Sequence[Array]) -> State:
        """Forward pass: every constraint holds, every message is silent."""
        bases: dict[int, Array] = dict(zip(self.graph.parameters, parameters, strict=True))
        for node in self.graph.constraints:
            inputs = [self.base(bases, index) for index in node.inputs]
            bases[node.output] = node.rule.apply(*inputs)
        slopes = {}
        for node in self.graph.constraints:
            for position, index in enumerate(node.inputs):
                if self.graph.values[index].movable:
                    value = self.base(bases, index)
                    shape = self.graph.values[index].shape
                    full = shape if self.graph.values[index].shared else (len(self.weights), *shape)
                    slopes[node.index, position] = jnp.zeros(full, value.dtype)
        output = self.base(bases, self.graph.output)
        moved = {index: jnp.zeros_like(bases[index]) for index in self.graph.parameters}
        return State(bases, moved, slopes, jnp.zeros_like(output), jnp.zeros((), output.dtype))

    def outputs(self, parameters: Sequence[Array]) -> Array:
        """The model's outputs for the batch."""
        return self.base(self.start(parameters).bases, self.graph.output)

    def mean_loss(self, outputs: Array, weights: Float[Array, " batch"]) -> tuple[Array, Any]:
        """Weighted mean of the loss, and of the numbers that it names."""
        return mean_loss(self.factor, outputs, self.y, weights)

    def base(self, bases: dict[int, Array], index: int) -> Array:
        """Agreed value, carried through the maps that only rearrange."""
        if index in bases:
            return bases[index]
        if index in self.given:
            return self.given[index]
        node = self.graph.producers[index]
        return node.rule.apply(*(self.base(bases, i) for i in node.inputs))

    def total_slope(self, state: State, index: int) -> Array | None:
        """Summed slopes of all copies of a value; None if nothing sends any."""
        parts = [state.output_slope] if index == self.graph.output else []
        for consumer, position in self.graph.consumers[index]:
            node = self.graph.nodes[consumer]
            if not node.rule.carries:
                if (consumer, position) in state.slopes:
                    parts.append(state.slopes[consumer, position])
                continue
            above = self.total_slope(state, node.output)
            if above is not None:
                data = tuple(self.given[i] for i in node.inputs[len(node.rule.shared) :])
                parts.append(node.rule.transpose(above, data, self.weights)[position])
        return sum(parts[1:], parts[0]) if parts else None

    # Visits.

    def visit_output(self, state: State) -> State:
        """Project the output factor's copies: its proximal step."""
        omega = self.precisions.output
        base = self.base(state.bases, self.graph.output)
        return state._replace(output_slope=self.power(self.factor.slope(base, self.y, omega)))

    def power(self, slope: Array) -> Array:
        """The output factor's message, times the powers of the rows if they have any."""
        if self.powers is None:
            return slope
        row = self.powers.reshape((-1,) + (1,) * (slope.ndim - 1))
        return jnp.where(row > 0, row * slope, 0)

    def visit(self, state: State, node: Node) -> State:
        """Project a constraint's copies onto its graph and pass its messages on."""
        base = state.bases[node.output]
        total_slope = self.total_slope(state, node.output)
        inputs = tuple(self.base(state.bases, i) for i in node.inputs)
        precision = self.output_precision(node)
        precisions = self.precision_of(node)
        target = base
        if total_slope is not None:
            if self.precisions.relative and self.consensus == "slope":
                precision, precisions = self._relative(
                    node, inputs, base, total_slope, precision, precisions
                )
            shift = precision if self.consensus == "slope" else self.totals[node.output]
            target = base + _mean(total_slope, shift)
        wanted = tuple((node.index, k) in state.slopes for k in range(len(node.inputs)))
        projected = node.rule.project(inputs, target, precisions, precision, self.weights, wanted)
        slopes = dict(state.slopes)
        for position, slope in enumerate(projected.slopes):
            if slope is not None:
                like = slopes[node.index, position]
                slopes[node.index, position] = jnp.broadcast_to(slope, like.shape)
        bases = {**state.bases, node.output: projected.output}
        residual = jnp.maximum(state.residual, projected.residual)
        return state._replace(bases=bases, slopes=slopes, residual=residual)

    def displacement(self, state: State, index: int) -> Array:
        """How far the consensus of a parameter's copies lies from its base."""
        total_slope = self.total_slope(state, index)
        if total_slope is None:
            return jnp.zeros_like(state.bases[index])
        return _mean(total_slope, self.totals[index])

    def visit_parameter(self, state: State, index: int, relaxation: Any = 1.0) -> State:
        """Move a parameter towards the consensus of its copies."""
        shift = jnp.asarray(relaxation, state.bases[index].dtype) * self.displacement(state, index)
        return state._replace(
            bases={**state.bases, index: state.bases[index] + shift},
            moved={**state.moved, index: state.moved[index] + shift},
        )

    def without_padding(self, value: Array) -> Array:
        """The value with zeros in the rows of weight 0."""
        row = self.weights.reshape((-1,) + (1,) * (value.ndim - 1)) > 0
        return jnp.where(row, value, 0)

    def sensitivity_norms(self, state: State) -> Float[Array, " maps"]:
        """Norm, over the weighted batch, of the slopes at the output of every linear map."""
        norms = []
        for index in self._linear_maps:
            total_slope = self.total_slope(state, self.graph.nodes[index].output)
            if total_slope is None:
                norms.append(jnp.zeros((), self.weights.dtype))
                continue
            row = self.weights.reshape((-1,) + (1,) * (total_slope.ndim - 1))
            norms.append(jnp.sqrt(jnp.sum(jnp.square(total_slope) * row)))
        return jnp.stack(norms) if norms else jnp.zeros(0, self.weights.dtype)

    # Precisions.

    def output_precision(self, node: Node) -> Array:
        """Precision of a constraint's target."""
        own = jnp.asarray(self.precisions.node, self.weights.dtype)
        if self.consensus != "product":
            return own
        total = self.totals[node.output]
        return own * jnp.where(total > 0, total, jnp.ones_like(total))

    def precision_of(self, node: Node) -> tuple[Any, ...]:
        """Precision of the copies of each input of a constraint."""
        p = self.precisions
        if isinstance(node.rule, Bilinear):
            order = self._linear_maps.index(node.index)
            a = _pick(p.activation, order, len(self._linear_maps), "activation")
            if node.rule.shared_weight:
                return a, _pick(p.weight, order, len(self._linear_maps), "weight")
            return a, a
        unit = p.unit
        if p.threshold is not None and getattr(node.rule, "kind", "") == "quantise":
            unit = p.threshold
        return tuple(p.bias if self._is_bias(index) else unit for index in node.inputs)

    def _relative(
        self, node: Node, inputs: Any, output: Array, slope: Array, precision: Any, precisions: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """Precisions of a constraint's output and inputs, given in units of their sizes."""
        value, message = _unit(self._mean_square(output)), _unit(self._mean_square(slope))
        steepness = node.rule.steepness(inputs)
        if steepness is not None:
            squares = [value / _unit(self._mean_square(steepness))] * len(inputs)
        else:
            squares = [
                _mean_square(x) if self.graph.values[i].shared else self._mean_square(x)
                for i, x in zip(node.inputs, inputs, strict=True)
            ]
            if not isinstance(node.rule, Bilinear):
                # Inputs have one unit.
                squares = [sum(squares[1:], squares[0])] * len(squares)
            squares = list(map(_unit, squares))
        nats = jnp.sqrt(value) * jnp.sqrt(message)
        scaled = tuple(
            jnp.asarray(p, nats.dtype) * nats / s for p, s in zip(precisions, squares, strict=True)
        )
        return precision * nats / value, scaled

    def _mean_square(self, value: Array) -> Array:
        """Over the samples, by weight; over one row, where it stands for all."""
        if len(value) != len(self.weights):
            return _mean_square(value)
        row = self.weights.reshape((-1,) + (1,) * (value.ndim - 1)).astype(value.dtype)
        total = _finite_sum(row * jnp.square(self.without_padding(value)))
        return total / (self.rows * (value.size // len(value)))

    def _is_bias(self, index: int) -> bool:
        produced = self.graph.values[index].kind == "result"
        return produced and isinstance(self.graph.producers[index].rule, Spread)

    def _total_precisions(self) -> dict[int, Array]:
        """Summed precision of all copies of a value, `[1 or batch, ...]`, or `[...]` if shared."""
        dtype = self.weights.dtype
        count = jnp.sum(self.weights)
        totals: dict[int, Array] = {}

        def add(index: int, amount: Any) -> None:
            amount = jnp.asarray(amount, dtype)
            totals[index] = totals[index] + amount if index in totals else amount

        values = self.graph.values
        output = values[self.graph.output]
        one = self.power(jnp.ones((1, *output.shape), dtype))
        add(self.graph.output, jnp.asarray(self.precisions.output, dtype) * one)
        for node in reversed(self.graph.nodes):
            if node.rule.carries:
                if node.output not in totals:
                    continue
                above = totals[node.output]
                data = tuple(self.given[i] for i in node.inputs[len(node.rule.shared) :])
                weights = count[None]
                if data or not (values[node.output].shared or len(above) == 1):
                    above = jnp.broadcast_to(above, (len(self.weights), *above.shape[1:]))
                    weights = self.weights
                parts = node.rule.transpose(above, data, weights, squared=True)
                for index, part in zip(node.inputs, parts, strict=False):
                    add(index, part)
                continue
            counts = node.rule.counts(tuple(values[i].shape for i in node.inputs))
            precisions = self.precision_of(node)
            for index, copies, precision in zip(node.inputs, counts, precisions, strict=True):
                amount = copies.astype(dtype) * jnp.asarray(precision, dtype)
                add(index, amount * count if values[index].shared else amount[None])
        return totals


def _mean(total_slope: Array, total: Array) -> Array:
    """`total_slope / total`; 0 where nothing reads the value, such as a row of an embedding."""
    read = total > 0
    return jnp.where(read, total_slope / jnp.where(read, total, jnp.ones_like(total)), 0)


def _finite_sum(squares: Array) -> Array:
    """Sum of the finite entries, where it stays finite: an impossible one, -inf, has no size."""
    return jnp.sum(jnp.where(jnp.isfinite(squares * squares.size), squares, 0))


def _mean_square(value: Array) -> Array:
    return _finite_sum(jnp.square(value)) / value.size


def _unit(square: Array) -> Array:
    """A mean square to measure by; what is 0 everywhere has none."""
    return jnp.where(square > 0, square, jnp.ones_like(square))


def _pick(value: Any, order: int, count: int, name: str) -> Any:
    if not isinstance(value, tuple | list):
        return value
    if len(value) != count:
        raise ValueError(
            f"Precisions.{name} has {len(value)} entries; the network has {count} linear maps."
        )
    return value[order]
