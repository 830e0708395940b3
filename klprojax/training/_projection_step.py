"""The projection step: the lifted operator, iterated."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._sharding import on_any_mesh
from ..fitting._network import parameters, partition, state_after, with_state
from ..fitting._precision import follow, start, wide
from ..fitting._step import AbstractStep, StepInfo, with_named
from ._gradient_step import layer_norms
from .moves import AbstractMove, Direction, Spectral
from .network import Precisions, lift
from .schemes import AbstractNetworkScheme, CyclicProjections
from .schemes._splitting import as_network_scheme


class ProjectionStep(AbstractStep):
    """Move the parameters by iterating projections on the lifted network of a batch.

    A step has two halves. The *direction*: the copies start at the forward pass of the batch, and
    after the iterations their consensus says where the parameters should go. The *move*: in which
    norm, and how far, the parameters follow.

    The defaults train networks of any depth without a setting for it: one cyclic sweep whose
    messages are slopes, with stiff inputs, and the projection onto a half-space in a product of
    spectral norms. Of this sweep the direction is close to the gradient (`gradient_agreement` says
    how close); at larger precision ratios every local projection damps the messages that ask too
    much. Schemes that keep their copies (Douglas-Rachford and its kin) need `consensus="average"`
    or `"product"`, precisions near 1, `move=Relaxed()` and tens of iterations per batch.

    Args:
        scheme: in which order constraints are visited: `CyclicProjections`,
            `AlternatingProjections`, or a scheme of `klprojax.projections`, run as its `Splitting`.
        iterations: iterations per batch, at most.
        precisions: of the Gaussian copies.
        consensus: `"product"`, `"average"` or `"slope"`; see `LiftedNetwork`.
        move: how the parameters follow; `Relaxed()` makes them the consensus itself.
        tolerance: stop the iterations when the certificate, the largest relative change of the
            copies' values in one iteration, is at most this; None: never.

    Raises:
        ValueError: options out of range.
    """

    scheme: AbstractNetworkScheme = eqx.field(
        converter=as_network_scheme, default=CyclicProjections()
    )
    iterations: int = eqx.field(static=True, default=1)
    precisions: Precisions = Precisions.with_ratio(1e-5, relative=True)
    consensus: str = eqx.field(static=True, default="slope")
    move: AbstractMove = Spectral()
    tolerance: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; expected at least 1.")
        for name, value, kind, example in (
            ("scheme", self.scheme, AbstractNetworkScheme, "CyclicProjections()"),
            ("precisions", self.precisions, Precisions, "Precisions(output=0.2)"),
            ("move", self.move, AbstractMove, "Relaxed()"),
        ):
            if not isinstance(value, kind):
                raise ValueError(
                    f"{name} is {value!r}; expected an instance, {example} for example."
                )

    @classmethod
    def decaying(cls, updates: int) -> "ProjectionStep":
        """The default step, its moves growing at first and falling to 0 at last.

        Args:
            updates: number of updates after which nothing moves; see `Spectral.decaying`.
        """
        return cls(move=Spectral.decaying(updates))

    def init(self, model: PyTree) -> PyTree:
        """State of the move."""
        return start(parameters(model), self.move.init)

    @on_any_mesh(out=("model", "state", None))
    def update(
        self, model, state, x, y, weights, loss, key=None
    ) -> tuple[PyTree, PyTree, StepInfo]:
        """Iterate on one batch and move; see the class."""
        arrays, static = partition(model)
        direction, stats = self.direction(model, x, y, weights, loss, key)
        new, state, moves = follow(arrays, state, lambda _, inner: self.move.move(direction, inner))
        stats["displacement_norm"] = layer_norms(moves)
        model = with_state(eqx.combine(new, static), state_after(model, x, weights, key))
        return model, state, StepInfo(direction.loss, stats)

    def direction(
        self,
        model: PyTree,
        x: PyTree,
        y: Any,
        weights: Float[Array, " batch"],
        loss: Any,
        key: Any = None,
    ) -> tuple[Direction, dict[str, Array]]:
        """What the iterations on one batch say about the parameters.

        Args:
            model: the model before the batch.
            x: inputs, one sample per row.
            y: targets.
            weights: weight of every sample.
            loss: the output factor.
            key: of the random numbers that the network draws.

        Returns:
            A `Direction`; figures: `residual` (distance of the last projected points from their
            constraints), `certificate` (largest relative change in the last iteration),
            `iterations`, and the numbers that the loss names.
        """
        weights = wide(weights)
        network, values = lift(model, x, y, weights, loss, self.precisions, self.consensus, key)
        start = self.scheme.start(network, values)
        before, named = network.mean_loss(network.outputs(values), weights)

        def body(carry: Any) -> Any:
            state, _, count = carry
            new = self.scheme.iterate(network, state)
            return new, self.scheme.certificate(network, state, new), count + 1

        carry = (start, jnp.asarray(jnp.inf, before.dtype), jnp.zeros((), jnp.int32))
        if self.iterations == 1:
            carry = body(carry)
        elif self.tolerance is None:
            carry, _ = lax.scan(lambda c, _: (body(c), None), carry, length=self.iterations)
        else:
            tolerance = jnp.asarray(self.tolerance, before.dtype)
            carry = lax.while_loop(
                lambda c: (c[1] > tolerance) & (c[2] < self.iterations), body, carry
            )
        state, certificate, count = carry
        shifts = self.scheme.displacement(network, state, values)
        rows = jnp.sum(weights)
        slopes = [
            shift * jnp.asarray(network.totals.get(index, 0.0) / rows, shift.dtype)
            for index, shift in zip(network.graph.parameters, shifts, strict=True)
        ]
        structure = jax.tree.structure(parameters(model))
        direction = Direction(
            jax.tree.unflatten(structure, shifts), jax.tree.unflatten(structure, slopes), before
        )
        stats = {
            "residual": self.scheme.residual(state),
            "certificate": certificate,
            "iterations": count,
        }
        return direction, with_named(stats, named)
