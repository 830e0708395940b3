"""Splitting schemes on the copies themselves: the generic schemes on a network's two halves.

The constraints of a network fall into two halves that take turns (see `NetworkGraph.colours`). The
projection of one half moves its constraints onto their graphs and sets what the other half reads to
the consensus. A scheme of `klprojax.projections` combines the two with where the copies were; the
copies are never formed, only the coefficients of the scheme's linear combinations.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ... import projections as generic
from ...projections import AbstractSpace, Projection
from ..network import LiftedNetwork
from ..network._bilinear import Bilinear, Dense
from ..network._messages import State
from ._copies import Coefficients, Copies, ExplicitCopies, History, Ledger
from ._scheme import AbstractNetworkScheme
from ._visits import relative_change


class CopiesState(NamedTuple):
    """A splitting scheme at rest.

    Attributes:
        histories: past consensus values of every bilinear constraint.
        points: the scheme's points, each a pair: by bilinear constraint the coefficients of its
            copies (the copies themselves for layers of few units), and plain arrays for the rest.
        parameters: the parameters that the last iteration stands for.
        residual: largest distance of a projected point from its constraint.
        truncation: largest coefficient moved from a forgotten consensus value to a kept one.
    """

    histories: dict[int, History]
    points: tuple[tuple[dict[int, Any], dict[Any, Array]], ...]
    parameters: tuple[Array, ...]
    residual: Float[Array, ""]
    truncation: Float[Array, ""]


class Point:
    """A point of the lifted space during an iteration; linear combinations by `combine`."""

    def __init__(self, copies: dict[int, Any], plain: dict[Any, Array]):
        self.copies, self.plain = copies, plain


class CopiesSpace(AbstractSpace):
    """The lifted space of a network: Gaussian copies, each at its layer's precision.

    Args:
        network: the lifted network of a batch.
    """

    network: LiftedNetwork

    def combine(self, *terms: tuple[Any, Point]) -> Point:
        """See `AbstractSpace.combine`."""
        (scale, first), *rest = terms
        copies = {}
        for node, value in first.copies.items():
            total = value.combine(scale, value, 0)
            for factor, point in rest:
                total = total.combine(1, point.copies[node], factor)
            copies[node] = total
        plain: dict[Any, Any] = {
            key: sum((f * p.plain[key] for f, p in rest), scale * value)
            for key, value in first.plain.items()
        }
        return Point(copies, plain)

    def point(self, dual: Point) -> Point:
        """See `AbstractSpace.point`."""
        return dual

    def distance(self, old: CopiesState, new: CopiesState) -> Float[Array, ""]:
        """Largest relative change of a parameter or of a plain copy, of states at rest."""

        def kept(state: CopiesState) -> list[Array]:
            values = list(state.parameters)
            for _, plain in state.points:
                # A scheme may return points whose entries come in another order.
                for (kind, *_), value in sorted(plain.items(), key=lambda item: item[0]):
                    values.append(
                        value if kind == "parameter" else self.network.without_padding(value)
                    )
            return values

        return relative_change(kept(old), kept(new))


class Work:
    """One iteration's workspace: the ledgers and the two projections."""

    def __init__(self, network: LiftedNetwork, histories: dict[int, History], explicit_units: int):
        self.network, self.graph = network, network.graph
        self.colours = network.graph.halves()
        self.residual = jnp.zeros((), network.weights.dtype)
        self.ledgers: dict[int, Ledger] = {}
        self.explicit: set[int] = set()
        for node in self.graph.constraints:
            few = isinstance(node.rule, Dense) and (
                self.graph.values[node.output].shape[-1] <= explicit_units
            )
            if few:
                self.explicit.add(node.index)
            elif isinstance(node.rule, Bilinear):
                scales = tuple(
                    jnp.sqrt(jnp.asarray(p, network.weights.dtype))
                    for p in network.precision_of(node)
                )
                fixed = not self.graph.values[node.inputs[0]].movable
                history = histories.get(node.index, History((), (), {}, {}))
                self.ledgers[node.index] = Ledger(
                    node.rule, scales, fixed, network.weights, history
                )

    def forward(self, parameters: Any) -> Point:
        """The point at which every constraint holds."""
        state = self.network.start(parameters)
        point = Point({}, {})
        for key in self._holders(0) + self._holders(1):
            self._agree(point, key, state.bases)
        return point

    def project(self, point: Point, half: int) -> Point:
        """Project the constraints of one half; what the other half reads becomes the consensus."""
        network, graph = self.network, self.graph
        slopes: dict[tuple[int, int], Array] = {}
        # Only the other half's copies are targets here.
        for node in graph.constraints:
            if self.colours["node", node.index] == half:
                continue
            if node.index in point.copies:
                sums: Any = point.copies[node.index].sums()
            else:
                sums = [
                    jnp.asarray(p, network.weights.dtype) * point.plain["node", node.index, k]
                    for k, p in enumerate(network.precision_of(node))
                ]
            for position, index in enumerate(node.inputs):
                if graph.values[index].movable:
                    slopes[node.index, position] = sums[position]
        output_copy = point.plain["output", graph.output]
        omega = jnp.asarray(network.precisions.output, output_copy.dtype)
        output_slope = network.power(omega * output_copy)
        silent = State({}, {}, slopes, output_slope, self.residual)
        bases: dict[int, Array] = {}
        new = Point({}, {})
        for kind, index in self._holders(half):
            if kind == "parameter":
                total_slope = network.total_slope(silent, index)
                value = point.plain["parameter", index]
                if total_slope is not None:
                    total = jnp.broadcast_to(network.totals[index], total_slope.shape)
                    mean = total_slope / jnp.where(total > 0, total, 1)
                    value = jnp.where(total > 0, mean, value)
                bases[index] = new.plain["parameter", index] = value
            elif kind == "output":
                moved = network.factor.proximal(output_copy, network.y, network.precisions.output)
                new.plain["output", index] = moved
            else:
                self._project_node(point, new, silent, bases, index)
        for key in self._holders(1 - half):
            if key[0] == "parameter":
                new.plain[key] = point.plain[key]
            else:
                self._agree(new, key, bases)
        return new

    def projections(self) -> tuple[Projection, Projection]:
        """Onto the half that holds the output factor, and onto the other."""
        return partial(self.project, half=0), partial(self.project, half=1)

    def pack(self, kept: int, points: tuple[Point, ...], parameters: Any) -> CopiesState:
        """The state to keep between steps."""
        histories, columns = {}, [dict() for _ in points]
        truncation = jnp.zeros((), self.network.weights.dtype)
        for node in self.explicit:
            for column, point in zip(columns, points, strict=True):
                column[node] = (point.copies[node].a, point.copies[node].w)
        for node, ledger in self.ledgers.items():
            histories[node], parts, moved = ledger.truncate(kept, [p.copies[node] for p in points])
            truncation = jnp.maximum(truncation, moved)
            for column, part in zip(columns, parts, strict=True):
                column[node] = part
        pairs = tuple((c, p.plain) for c, p in zip(columns, points, strict=True))
        return CopiesState(histories, pairs, tuple(parameters), self.residual, truncation)

    def unpack(self, state: CopiesState) -> list[Point]:
        """Undo `pack`."""
        points = []
        for held, plain in state.points:
            copies: dict[int, Any] = {}
            for node, parts in held.items():
                if node in self.explicit:
                    copies[node] = ExplicitCopies(parts[0], parts[1], *self._explicit_options(node))
                else:
                    copies[node] = Copies(self.ledgers[node], *parts)
            points.append(Point(copies, dict(plain)))
        return points

    def _explicit_options(self, index: int) -> tuple[Any, Any, Array]:
        node, weights = self.graph.nodes[index], self.network.weights
        precisions = self.network.precision_of(node)
        return node.rule, tuple(jnp.asarray(p, weights.dtype) for p in precisions), weights

    def _holders(self, half: int) -> list[tuple[str, int]]:
        """Whatever holds copies in one half."""
        keys = [key for key, colour in self.colours.items() if colour == half]
        return sorted(keys, key=lambda key: (key[0], -key[1]))

    def _project_node(self, point: Point, new: Point, silent: Any, bases: Any, index: int) -> None:
        network, node = self.network, self.graph.nodes[index]
        total_slope: Any = network.total_slope(silent, node.output)
        total = network.totals[node.output]
        precision = network.output_precision(node)
        read = total > 0
        target = total_slope / jnp.where(read, total, jnp.ones_like(total))
        if index in point.copies:
            moved, output, residual = point.copies[index].project(target, precision, read)
            new.copies[index] = moved
        else:
            inputs = tuple(point.plain["node", index, k] for k in range(len(node.inputs)))
            precisions = network.precision_of(node)
            target = jnp.where(read, target, node.rule.apply(*inputs))
            wanted = (True,) * len(inputs)
            found = node.rule.project(
                inputs, target, precisions, precision, network.weights, wanted
            )
            output, residual = found.output, found.residual
            for k, (x, slope, p) in enumerate(zip(inputs, found.slopes, precisions, strict=True)):
                new.plain["node", index, k] = x + slope / jnp.asarray(p, x.dtype)
        bases[node.output] = output
        self.residual = jnp.maximum(self.residual, residual)

    def _agree(self, point: Point, key: tuple[str, int], bases: dict[int, Array]) -> None:
        """Set what a holder reads to the agreed values."""
        kind, index = key
        network = self.network
        if kind == "output":
            point.plain[key] = network.base(bases, index)
            return
        if kind == "parameter":
            point.plain[key] = bases[index]
            return
        node = self.graph.nodes[index]
        inputs = [network.base(bases, i) for i in node.inputs]
        if isinstance(node.rule, Bilinear):
            if index in self.explicit:
                options = self._explicit_options(index)
                point.copies[index] = ExplicitCopies.consensus(*options, *inputs)
            else:
                point.copies[index] = Copies.consensus(self.ledgers[index], *inputs)
            return
        rows = len(network.weights)
        for k, value in enumerate(inputs):
            point.plain["node", index, k] = jnp.broadcast_to(value, (rows, *value.shape[1:]))


class Splitting(AbstractNetworkScheme):
    """A generic scheme on the two halves of a network's constraints, half 0 with the output factor.

    Named fused implementation of the scheme on the Gaussian copies of a network's values, one per
    sample and unit, with two projections: each moves the constraints of one half onto their graphs
    and sets what the other half reads to the consensus. The iterates are those of
    ``klprojax.projections`` on arrays of copies, in memory that does not hold them.

    Args:
        scheme: `DouglasRachford`, `DifferenceMap`, `ADMM`, `Dykstra` or your own.
        history: past consensus values that the copies of a layer remember; more than the iterations
            is exact. The coefficients of older values fade geometrically where the multipliers are
            small; `truncation` in the state says how large those were that had to move.
        explicit_units: dense layers of at most so many units keep their copies as they are,
            `[batch, units, inputs]`: their multipliers are large in an output layer.

    Raises:
        ValueError: ``history`` below 1, or a network of consensus ``"slope"``.
    """

    scheme: generic.AbstractScheme = generic.DouglasRachford()
    history: int = eqx.field(static=True, default=4)
    explicit_units: int = eqx.field(static=True, default=16)

    def start(self, network: LiftedNetwork, parameters: Any) -> CopiesState:
        """Every copy at the forward pass."""
        self._check(network)
        work = Work(network, {}, self.explicit_units)
        space, forward = CopiesSpace(network), work.forward(parameters)
        points = self.scheme.init(space, work.projections(), forward)
        return self._pad(work, work.pack(self.history, points, parameters))

    def iterate(self, network: LiftedNetwork, state: CopiesState) -> CopiesState:
        """One iteration on the copies."""
        work = Work(network, state.histories, self.explicit_units)
        points = self.scheme.step(
            CopiesSpace(network), work.projections(), tuple(work.unpack(state))
        )
        read = self.scheme.read(points)
        parameters = [read.plain["parameter", index] for index in network.graph.parameters]
        new = work.pack(self.history, points, parameters)
        return new._replace(truncation=jnp.maximum(new.truncation, state.truncation))

    def parameters(self, network: LiftedNetwork, state: CopiesState) -> tuple[Array, ...]:
        """Parameters of the last projected point."""
        return state.parameters

    def certificate(self, network: LiftedNetwork, old: CopiesState, new: CopiesState) -> Any:
        """Largest relative change of a parameter or of a plain copy."""
        return CopiesSpace(network).distance(old, new)

    def residual(self, state: CopiesState) -> Float[Array, ""]:
        """Of the projections of the last iteration."""
        return state.residual

    def _check(self, network: LiftedNetwork) -> None:
        if self.history < 1:
            raise ValueError(f"history is {self.history}; expected at least 1.")
        if network.consensus == "slope":
            raise ValueError(
                "A splitting scheme has no use for consensus='slope', whose targets need copies "
                "that agree; use 'average' or 'product'."
            )

    def _pad(self, work: Work, state: CopiesState) -> CopiesState:
        """Room for `history` values from the start, so that the state keeps its shape."""
        histories, points = {}, [(dict(c), plain) for c, plain in state.points]
        for node, history in state.histories.items():
            extra = self.history - len(history.w)
            fixed = work.ledgers[node].fixed

            def zeros(x: Array, extra: int = extra) -> tuple[Array, ...]:
                return (jnp.zeros_like(x),) * extra

            squares, crosses = {}, {}
            for m in range(self.history):
                for k in range(m + 1):
                    there = history.squares[0, 0], history.crosses[0, 0]
                    if not k == m == self.history - 1:
                        there = jax.tree.map(jnp.zeros_like, there)
                    squares[k, m], crosses[k, m] = there
            histories[node] = History(
                history.a if fixed else zeros(history.a[0]) + history.a,
                zeros(history.w[0]) + history.w,
                squares,
                crosses,
            )
            for coefficients, _ in points:
                c = coefficients[node]
                coefficients[node] = Coefficients(
                    zeros(c.plus[0]) + c.plus, zeros(c.minus[0]) + c.minus
                )
        return state._replace(histories=histories, points=tuple(points))


def as_network_scheme(scheme: AbstractNetworkScheme | generic.AbstractScheme) -> Any:
    """A generic scheme becomes its `Splitting`."""
    return Splitting(scheme) if isinstance(scheme, generic.AbstractScheme) else scheme
