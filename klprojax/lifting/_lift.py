"""`delta_lift`: any JAX function with a scalar output as a graph of delta factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Inexact

from .._tracing import LiftError, no_python_values
from ._arguments import Arguments
from ._curvature import as_matrix_shape, curvature_sweep
from ._outputs import log_output_curvature, log_output_slope
from ._results import Curvatures, Sensitivities, look_up
from ._rules import lift_jaxpr
from ._show import as_dot, as_networkx, as_table
from ._structure import DeltaFactor, Structure, Variable
from ._sweeps import downward, or_zeros, upward
from ._table_graph import TableGraph, table_graph

_upward = partial(jax.jit, static_argnums=0)(upward)
_downward = partial(jax.jit, static_argnums=0)(downward)
_curvature_sweep = partial(jax.jit, static_argnums=(0, 1, 2))(curvature_sweep)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


@jax.tree_util.register_pytree_node_class
class DeltaLift:
    """A function as a factor graph, with every upward message collapsed to its forward value.

    Made by `delta_lift`. A pytree: structure is static, forward values are leaves.

    Attributes:
        structure: variables and delta factors.
        values: forward value of every variable, by variable index.
    """

    structure: Structure
    values: tuple[Any, ...]

    def __init__(self, structure: Structure, arguments: Arguments, values: Any, saved: Any) -> None:
        self.structure = structure
        self.values = values
        self._arguments = arguments
        self._saved = saved

    def tree_flatten(self) -> tuple[Any, Any]:
        """Split into numbers and static structure."""
        return (self.values, self._saved), (self.structure, self._arguments)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> DeltaLift:
        """Undo `tree_flatten`."""
        return cls(*aux, *children)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The nodes of the graph."""
        return self.structure.variables

    @property
    def factors(self) -> tuple[DeltaFactor, ...]:
        """The delta factors, in topological order."""
        return self.structure.factors

    @property
    def output(self) -> Inexact[Array, ""]:
        """Forward value of the output node z."""
        return jnp.asarray(self.values[self.structure.outputs[0]])

    def __getitem__(self, key: int | str) -> Any:
        """Return the forward value at an equation's output, or of an input named by its path."""
        return look_up(self.structure, self.values, key)

    def at(self, *args: Any) -> DeltaLift:
        """Run the upward pass anew at other arguments of the same shapes, without tracing again.

        Args:
            *args: arguments of the shapes and dtypes that were lifted.

        Raises:
            ValueError: the arguments differ in structure, shape or type from those of the lift.
        """
        leaves = self._arguments.leaves(args)
        for index, leaf in zip(self.structure.inputs, leaves, strict=True):
            known = self.structure.variables[index]
            if leaf.shape != known.shape or str(leaf.dtype) != known.dtype:
                raise ValueError(
                    f"{known.name} has shape {leaf.shape} and type {leaf.dtype}, but the function"
                    f" was lifted at {known.shape}, {known.dtype}; lift it anew with delta_lift"
                )
        constants = tuple(self.values[index] for index in self.structure.constants)
        return _collapse(self.structure, self._arguments, constants, leaves)

    def sensitivities(self, phi: Callable[[Any], Any]) -> Sensitivities:
        """Send first-order jets of log-messages down the graph (Theorem 3.3).

        `m_{φ→z} = φ` seeds the pass with `s(z) = φ'(z)/φ(z)`; each delta factor substitutes its
        primitive, `s = s(y) ∂y/∂x_j` (Lemma 3.2); messages into a variable multiply, so their
        log-slopes add up. The result is `s(x) = s(z) ∇_x z`.

        Args:
            phi: positive C1 output factor, a function of a scalar: `exp_output(alpha)`, or any
                callable. If it has a method `log_phi`, that function is used in its place.

        Returns:
            Slopes of every variable, in nats per unit of the variable.

        Raises:
            ValueError: φ is not positive, or not finite, at the forward value (inside `jit`: an
                Equinox run-time error), or does not return a scalar.
            LiftError: an equation turns out to have no derivative rule.

        Differentiation: the slopes are differentiable functions of the arguments wherever the
            primitives' own rules are.

        Reference: Lemma 3.2 and Theorem 3.3.
        """
        seed = log_output_slope(phi, self.output)
        sweep = downward if _is_traced((self.values, seed)) else _downward
        beliefs, messages = sweep(self.structure, self.values, self._saved, (seed,))
        slopes = [
            or_zeros(beliefs[index], self.values[index]) if wanted else None
            for index, wanted in zip(
                self.structure.inputs, self._arguments.is_variable, strict=True
            )
        ]
        beliefs = list(beliefs)
        for index, slope in zip(self.structure.inputs, slopes, strict=True):
            beliefs[index] = slope
        return Sensitivities(
            self._arguments.slopes(slopes), seed, tuple(beliefs), messages, self.structure
        )

    def curvatures(
        self,
        phi: Callable[[Any], Any],
        *,
        kind: str = "diagonal",
        curved: Callable[[DeltaFactor], bool] | None = None,
    ) -> Curvatures:
        """Send second-order jets of log-messages (Gaussian messages) down the graph.

        A downward log-message is replaced by its quadratic jet at the forward value. Substitution
        of ψ gives `H_j = Jᵀ H J + Σ_i s_i ∂²ψ_i/∂x_j²`, and messages into a variable multiply, so
        their curvatures add up. `H(v)` is the curvature of `log b_↓(v)`, minus the precision of
        the Gaussian belief.

        `kind="full"` is exact, `H(x) = ∇² log φ(z(x))`, where every active variable downstream of x
        is read by one delta factor at one place (a chain or a tree, of scalars or whole arrays). It
        is exact at fan-out too where the branches meet in additions only and the message into the
        sum is log-linear (a sum of losses under `exp(α z)`). Elsewhere it leaves out the terms that
        couple two different messages, since each message clamps the factor's other arguments.
        `kind="diagonal"` also leaves out the off-diagonal entries of H(y) on the way: exact for
        scalars, for elementwise functions, and down to the first factor in which one entry of x
        reaches several entries of y between which H(y) is not diagonal.

        Args:
            phi: output factor, as in `sensitivities`.
            kind: `"diagonal"`, the curvature of every entry, or `"full"`, of every pair of entries
                of one variable.
            curved: says which delta factors enter with their second derivative; the others are
                linearised. With only the loss curved this is the Gauss-Newton curvature:
                `curved=lambda factor: "loss" in factor.path` after `jax.named_scope("loss")`.

        Returns:
            Curvature of every variable, `[*shape]` or `[*shape, *shape]`.

        Raises:
            ValueError: φ is not positive or not finite at the forward value; unknown `kind`.
            LiftError: an equation has no second derivative, or a full matrix would be too large.
        """
        if kind not in ("diagonal", "full"):
            raise ValueError(f"kind must be 'diagonal' or 'full', got {kind!r}")
        slopes = self.sensitivities(phi)
        seed = log_output_curvature(phi, self.output)
        flags = tuple(True if curved is None else bool(curved(f)) for f in self.factors)
        traced = _is_traced((self.values, slopes.variables, seed))
        sweep = curvature_sweep if traced else _curvature_sweep
        found = list(sweep(self.structure, kind, flags, self.values, slopes.variables, seed))
        inputs = self.structure.inputs
        for index, wanted in zip(inputs, self._arguments.is_variable, strict=True):
            if wanted and found[index] is None:
                found[index] = as_matrix_shape(None, self.values[index], kind)
        shaped = tuple(
            None if h is None else as_matrix_shape(h, value, kind)
            for h, value in zip(found, self.values, strict=True)
        )
        by_argument = self._arguments.slopes([shaped[index] for index in inputs])
        return Curvatures(by_argument, seed, shaped, slopes, self.structure)

    def table_graph(self, spacing: float = 1e-3, variables: Any | None = None) -> TableGraph:
        """Return the function near its forward point as a factor graph of tables.

        `t_proj` of it is the projection operator whose derivative, by `jax.jvp` or `jax.grad`, is
        backpropagation (see `TableGraph`). Exact inference on the graph costs the treewidth of
        the function's scalar graph: chains, trees and narrow networks, not wide ones.

        Args:
            spacing: h, the lattice spacing of the inputs.
            variables: which of the lift's variables get tables, where not all are meant: a function
                of a leaf, or a pytree of bools that is a prefix of the tuple of arguments. The
                others are clamped at their forward values.

        Returns:
            Graph, tables, evidence and readout.

        Raises:
            ValueError: the forward values are traced, the spacing is not positive, the function is
                not finite on a lattice, or does not depend on the variables.
            LiftError: a primitive has no elementary form on scalars.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from klprojax import t_proj
            >>> from klprojax.lifting import delta_lift, exp_output
            >>> x = jnp.asarray([0.3, 0.8])
            >>> tables = delta_lift(lambda x: jnp.sin(x[0] * x[1]) * x[1], x).table_graph(0.01)
            >>> def readout(x):
            ...     marginals = t_proj(tables.graph, tables.log_potentials, tables.evidence(x))
            ...     return tables.readout(marginals, exp_output(1.0))
            >>> [round(float(slope), 3) for slope in jax.grad(readout)(x)]
            [0.622, 0.471]

        Reference: section 3.2, Theorem 3.3.
        """
        return table_graph(self.structure, self._arguments, self.values, spacing, variables)

    def shape_like_arguments(self, leaves: Sequence[Any]) -> Any:
        """Arrange one entry for each array leaf like the tuple of arguments, None elsewhere."""
        return self._arguments.slopes(leaves)

    def table(self) -> str:
        """Return the graph as text, one line a delta factor."""
        return as_table(self.structure, self.values)

    def to_dot(self) -> str:
        """Return the graph as Graphviz text."""
        return as_dot(self.structure)

    def to_networkx(self) -> Any:
        """Return the graph as a bipartite `networkx.MultiGraph` (needs networkx)."""
        return as_networkx(self.structure)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"DeltaLift(variables={len(self.variables)}, factors={len(self.factors)})"


def _collapse(
    structure: Structure, arguments: Arguments, constants: Sequence[Any], leaves: Sequence[Any]
) -> DeltaLift:
    constants, leaves = tuple(constants), tuple(leaves)
    sweep = upward if _is_traced((constants, leaves)) else _upward
    values, saved = sweep(structure, constants, leaves)
    return DeltaLift(structure, arguments, values, saved)


def delta_lift(f: Callable[..., Any], *args: Any, variables: Any | None = None) -> DeltaLift:
    """Lift a function with a scalar output to a factor graph with one delta factor an equation.

    The function is traced to its jaxpr, and each equation `y = ψ(x_1, ..., x_r)` becomes the factor
    `δ(y - ψ(x_1, ..., x_r))`. Calls (`jit`, `remat`, `closed_call`) are opened up. Kept as one
    factor with a rule of its own: `scan` (a reverse scan of the body's downward pass), `cond` (the
    downward pass of the branch taken), functions with `custom_jvp` or `custom_vjp`, and JAX's own
    implicit solves. Works under `jit` and `vmap`.

    Args:
        f: a function that `jax.make_jaxpr` can trace, from pytrees to a real scalar.
        args: its arguments. Arrays of floats (and Python floats given as a whole argument) are
            variables; functions, strings and other parts of a pytree are constants.
        variables: which leaves are variables, where that is not wanted: a function of a leaf, or a
            pytree of bools that is a prefix of the tuple of arguments. Other arrays, which may
            then be integers, are clamped.

    Returns:
        The lift; ask it for `sensitivities`.

    Raises:
        LiftError: the output is no real scalar, an argument holds integers, Python code asks for
            the value of a traced number (`if x > 0`, `float(x)`; the line is named), an equation
            has side effects, or messages must pass an equation that has no rule, e.g. a
            `while_loop`.

    Example:
        >>> import jax.numpy as jnp
        >>> from klprojax.lifting import delta_lift, exp_output
        >>> lift = delta_lift(lambda x: jnp.sum(jnp.sin(x) * x), jnp.asarray([0.0, 1.0]))
        >>> [factor.primitive for factor in lift.factors]
        ['sin', 'mul', 'reduce_sum']
        >>> s = lift.sensitivities(exp_output(-1.0))
        >>> len(s.messages("args[0]"))
        2

    Reference: sections 3.2-3.3, Lemma 3.2 and Theorem 3.3.
    """
    arguments = Arguments(args, variables)
    leaves = arguments.leaves(args)
    with no_python_values("the function"):
        closed, shape = jax.make_jaxpr(
            lambda *leaves: f(*arguments.rebuild(leaves)), return_shape=True
        )(*leaves)
    outputs = jax.tree.leaves(shape)
    real = len(outputs) == 1 and jnp.issubdtype(outputs[0].dtype, jnp.floating)
    if not real or outputs[0].shape != ():
        producer = None
        for number, eqn in enumerate(closed.jaxpr.eqns):
            if closed.jaxpr.outvars and closed.jaxpr.outvars[0] in eqn.outvars:
                producer = f"equation {number} ({eqn.primitive.name})"
        raise LiftError(
            "the function must return one real scalar for the output factor to act on, but returns"
            f" {shape}; sum it, or lift a scalar function of it",
            producer,
        )
    structure, constants = lift_jaxpr(closed, arguments.is_variable, [True], names=arguments.names)
    return _collapse(structure, arguments, constants, leaves)
