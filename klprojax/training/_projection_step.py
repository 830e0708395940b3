"""The projection step: the lifted operator, iterated."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._sharding import on_any_mesh
from ..fitting._step import AbstractStep, StepInfo, weighted_mean, without_padding
from ._gradient_step import layer_norms
from .network import LiftedNetwork, Precisions, trace_network
from .schemes import AbstractNetworkScheme, CyclicProjections
from .schemes._splitting import as_network_scheme


class ProjectionStep(AbstractStep):
    """Move the parameters by iterating projections on the lifted network of a batch.

    The state of the copies starts at the forward pass of every batch; after the iterations the
    parameters move from where they were by `relaxation` times their displacement, plus `inertia`
    times their last move.

    The defaults are the settings that train best: one cyclic sweep whose messages are slopes, stiff
    inputs, over-relaxed with inertia. As the precisions grow with the relaxation this tends to
    gradient descent with momentum; at finite precisions every local projection damps the messages
    that ask too much. Schemes that keep their copies (Douglas-Rachford and its kin) need
    `consensus="average"` or `"product"`, precisions near 1, `relaxation=1`, `inertia=0` and tens of
    iterations a batch.

    Args:
        scheme: in which order constraints are visited: `CyclicProjections`,
            `AlternatingProjections`, or a scheme of `klprojax.projections`, run as its `Splitting`.
        iterations: iterations a batch, at most.
        precisions: of the Gaussian copies.
        consensus: `"product"`, `"average"` or `"slope"`; see `LiftedNetwork`.
        relaxation: multiple of the displacement, positive; above 1 over-relaxed. A number, or an
            optax schedule from the number of updates done to a number.
        inertia: share of the last move that is repeated, in [0, 1).
        tolerance: stop the iterations when the certificate, the largest relative change of the
            copies' values in one iteration, is at most this; None: never.

    Raises:
        ValueError: options out of range.
    """

    scheme: AbstractNetworkScheme = eqx.field(
        converter=as_network_scheme, default=CyclicProjections()
    )
    iterations: int = eqx.field(static=True, default=1)
    precisions: Precisions = Precisions.with_ratio(1 / 300)
    consensus: str = eqx.field(static=True, default="slope")
    relaxation: Any = 60.0
    inertia: Any = 0.9
    tolerance: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; expected at least 1.")
        for name, value, kind, example in (
            ("scheme", self.scheme, AbstractNetworkScheme, "CyclicProjections()"),
            ("precisions", self.precisions, Precisions, "Precisions(output=0.2)"),
        ):
            if not isinstance(value, kind):
                raise ValueError(
                    f"{name} is {value!r}; expected an instance, {example} for example."
                )

    @classmethod
    def decaying(cls, updates: int) -> "ProjectionStep":
        """The default step, its relaxation falling to 0 by a cosine.

        Args:
            updates: number of updates after which it is 0.
        """
        return cls(relaxation=optax.cosine_decay_schedule(cls().relaxation, updates))

    def init(self, model: PyTree) -> PyTree:
        """No last move, no updates done."""
        moves = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
        return moves, jnp.zeros((), jnp.int32)

    @on_any_mesh(out=("model", "state", None))
    def update(self, model, state, x, y, weights, loss) -> tuple[PyTree, PyTree, StepInfo]:
        """Iterate on one batch; see the class."""
        arrays, static = eqx.partition(model, eqx.is_inexact_array)
        last, count = state
        moved, before, stats = self.displacement(model, x, y, weights, loss)
        relaxation = self.relaxation
        if callable(relaxation):
            # Optax mixes dtypes inside; strict promotion, if set, is for the rest.
            with jax.numpy_dtype_promotion("standard"):
                relaxation = relaxation(count)

        def move(shift: Array, last: Array) -> Array:
            return jnp.asarray(self.inertia, shift.dtype) * last + (
                jnp.asarray(relaxation, shift.dtype) * shift
            )

        moves = jax.tree.map(move, moved, last)
        new = jax.tree.map(jnp.add, arrays, moves)
        stats["displacement_norm"] = layer_norms(moves)
        return eqx.combine(new, static), (moves, count + 1), StepInfo(before, stats)

    def displacement(
        self, model: PyTree, x: PyTree, y: Any, weights: Float[Array, " batch"], loss: Any
    ) -> tuple[PyTree, Float[Array, ""], dict[str, Array]]:
        """How far the iterations carry the parameters on one batch.

        Args:
            model: the model before the batch.
            x: inputs, one sample a row.
            y: targets.
            weights: weight of every sample.
            loss: the output factor.

        Returns:
            The displacement, a tree like the model's inexact arrays; the mean loss before; figures:
            `residual` (distance of the last projected points from their constraints), `certificate`
            (largest relative change in the last iteration) and `iterations`.
        """
        graph, parameters = trace_network(model, x)
        y = without_padding(y, weights)
        network = LiftedNetwork(graph, x, y, weights, loss, self.precisions, self.consensus)
        start = self.scheme.start(network, parameters)
        before = weighted_mean(loss(network.outputs(parameters), y), weights)

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
        after = self.scheme.parameters(network, state)
        shifts = [b - a for a, b in zip(parameters, after, strict=True)]
        structure = jax.tree.structure(eqx.filter(model, eqx.is_inexact_array))
        stats = {
            "residual": self.scheme.residual(state),
            "certificate": certificate,
            "iterations": count,
        }
        return jax.tree.unflatten(structure, shifts), before, stats
