"""Messages through loops and branches, each kept as one delta factor with its own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._tracing import LiftError, Psi, Replay, scan_carry_activity, scan_counts
from ._primitive import PrimitiveRule
from ._structure import Structure
from ._sweeps import downward, or_zeros, upward

LiftJaxpr = Callable[..., tuple[Structure, tuple[Any, ...]]]


class WhileRule(PrimitiveRule):
    """A `while_loop` whose length is known only at run time: evaluated, never reversed."""

    def __init__(self, equation: Any, active: tuple[int, ...], sends: tuple[bool, ...], place: str):
        super().__init__(equation, active, sends, place)
        if active:
            raise LiftError(
                "messages must pass down through a while_loop, whose number of iterations is not"
                " known when it is traced; use lax.scan (or fori_loop with constant bounds), or"
                " give the loop a rule with jax.custom_vjp, jax.custom_jvp or lax.custom_root",
                place,
            )


class CondRule(PrimitiveRule):
    """A `cond` or `switch`: the downward pass of the branch that was taken."""

    def __init__(
        self,
        equation: Any,
        active: tuple[int, ...],
        sends: tuple[bool, ...],
        place: str,
        lift_jaxpr: LiftJaxpr,
    ):
        super().__init__(equation, active, sends, place)
        count = len(equation.invars) - 1
        mask = [position + 1 in active for position in range(count)]
        self.branches = tuple(
            lift_jaxpr(branch, mask, sends, where=f"{place} > ")
            for branch in (equation.params["branches"] if active else ())
        )

    def downward(
        self, inputs: Sequence[Any], outputs: Sequence[Any], saved: Any, slopes: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Run the upward and the downward pass of the branch that was taken."""
        del outputs, saved
        index, *operands = inputs

        def sweep(lifted: tuple[Structure, tuple[Any, ...]], given: Any, seeds: Any) -> Any:
            structure, constants = lifted
            values, inner = upward(structure, constants, given)
            beliefs, _ = downward(structure, values, inner, seeds)
            return tuple(
                or_zeros(beliefs[structure.inputs[p - 1]], given[p - 1]) for p in self.active
            )

        branches = [
            lambda given, seeds, lifted=lifted: sweep(lifted, given, seeds)
            for lifted in self.branches
        ]
        return lax.switch(index, branches, tuple(operands), tuple(slopes))


class ScanRule:
    """A `scan`: a reverse scan of the body's own downward pass, with the forward carries kept.

    The constants of the loop fan out to all iterations, so their slopes add up over the iterations.
    """

    def __init__(
        self,
        equation: Any,
        active: tuple[int, ...],
        sends: tuple[bool, ...],
        place: str,
        lift_jaxpr: LiftJaxpr,
    ):
        params = equation.params
        self.consts, self.carries = scan_counts(equation)
        self.length: int = params["length"]
        self.reverse: bool = params["reverse"]
        self.unroll = params.get("unroll", 1)
        self.psi = Psi(equation)
        self.active = active
        if not active:
            return
        mask = [position in active for position in range(len(equation.invars))]
        carry = scan_carry_activity(equation, mask)
        mask = [*mask[: self.consts], *carry, *mask[self.consts + self.carries :]]
        self.mask = mask
        self.sends = [*carry, *sends[self.carries :]]
        self.body, self.constants = lift_jaxpr(
            params["jaxpr"], mask, self.sends, where=f"{place} > "
        )
        self._body_avals = [var.aval for var in params["jaxpr"].jaxpr.invars]

    @cached_property
    def _invariant(self) -> frozenset[int]:
        """Body variables that are the same in every iteration, so need not be stacked."""
        body = self.body
        fixed = {*body.inputs[: self.consts], *body.constants, *body.literals}
        for factor in body.factors:
            if fixed.issuperset(factor.inputs):
                fixed.update(factor.outputs)
        return frozenset(fixed)

    @cached_property
    def _pullback(self) -> Replay:
        """The body's downward pass as a jaxpr that knows which of its arguments it reads."""

        def run(*arguments: Any) -> tuple[Any, ...]:
            return upward(self.body, self.constants, arguments)

        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self._body_avals]
        values, saved = jax.eval_shape(run, *avals)
        seeds = tuple(
            values[index] if flag else None
            for index, flag in zip(self.body.outputs, self.sends, strict=True)
        )

        def pullback(values: Any, saved: Any, seeds: Any) -> tuple[Any, ...]:
            beliefs, _ = downward(self.body, values, saved, seeds)
            return tuple(
                or_zeros(beliefs[index], values[index])
                for index, flag in zip(self.body.inputs, self.mask, strict=True)
                if flag
            )

        return Replay(jax.make_jaxpr(pullback)(values, saved, seeds))

    def _stacked(self, values: Any, saved: Any) -> list[Any]:
        """Select what the reverse scan reads and cannot have otherwise."""
        leaves = jax.tree.leaves((values, saved))
        return [
            leaf
            for position, leaf in enumerate(leaves)
            if self._pullback.reads[position] and position not in self._fixed_leaves
        ]

    @cached_property
    def _fixed_leaves(self) -> frozenset[int]:
        # `values` is a flat tuple of arrays, so its first leaves are the variables in order.
        xs = self.body.inputs[self.consts + self.carries :]
        return frozenset({*self._invariant, *xs})

    def upward(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Run the loop and keep what the downward pass reads."""
        if not self.active:
            return self.psi(*inputs), ()
        consts = tuple(inputs[: self.consts])
        init = tuple(inputs[self.consts : self.consts + self.carries])
        xs = tuple(inputs[self.consts + self.carries :])

        def step(carry: Any, x: Any) -> Any:
            values, saved = upward(self.body, self.constants, (*consts, *carry, *x))
            outputs = [values[index] for index in self.body.outputs]
            return tuple(outputs[: self.carries]), (
                tuple(outputs[self.carries :]),
                self._stacked(values, saved),
            )

        final, (ys, kept) = lax.scan(
            step, init, xs, length=self.length, reverse=self.reverse, unroll=self.unroll
        )
        return (*final, *ys), kept

    def downward(
        self, inputs: Sequence[Any], outputs: Sequence[Any], saved: Any, slopes: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Scan the body's downward pass in reverse."""
        pullback = self._pullback
        consts, xs = inputs[: self.consts], tuple(inputs[self.consts + self.carries :])
        fixed = self._invariant_values(consts)
        xs_index = self.body.inputs[self.consts + self.carries :]
        in_mask = self.mask
        carry_mask = in_mask[self.consts : self.consts + self.carries]
        count = len(pullback.reads) - sum(self.sends)

        seeds = tuple(
            or_zeros(slope, y)
            for slope, y, flag in zip(slopes, outputs, self.sends, strict=True)
            if flag
        )
        live = sum(carry_mask)
        shared = tuple(
            jnp.zeros_like(value)
            for value, flag in zip(consts, in_mask[: self.consts], strict=True)
            if flag
        )

        def step(carry: Any, row: Any) -> Any:
            below, total = carry
            x, kept, seeds = row
            rest = iter(kept)
            arguments = []
            for position in range(count):
                if not pullback.reads[position]:
                    arguments.append(None)
                elif position in fixed:
                    arguments.append(fixed[position])
                elif position in xs_index:
                    arguments.append(x[xs_index.index(position)])
                else:
                    arguments.append(next(rest))
            results = pullback(*arguments, *below, *seeds)
            to_consts = tuple(results[: len(total)])
            to_carry = tuple(results[len(total) : len(total) + live])
            # Product of the messages from all iterations.
            total = tuple(a + b for a, b in zip(total, to_consts, strict=True))
            return (to_carry, total), tuple(results[len(total) + live :])

        (to_init, to_consts), to_xs = lax.scan(
            step,
            (seeds[:live], shared),
            (xs, saved, seeds[live:]),
            length=self.length,
            reverse=not self.reverse,
            unroll=self.unroll,
        )
        results = dict(
            zip(
                [position for position, flag in enumerate(in_mask) if flag],
                (*to_consts, *to_init, *to_xs),
                strict=True,
            )
        )
        # A carry may be active inside the loop although its initial value is a constant.
        return tuple(results[position] for position in self.active)

    def _invariant_values(self, consts: Sequence[Any]) -> dict[int, Any]:
        body = self.body
        known: dict[int, Any] = dict(body.literals)
        known.update(zip(body.constants, self.constants, strict=True))
        known.update(zip(body.inputs[: self.consts], consts, strict=True))
        for factor in body.factors:
            if self._invariant.issuperset(factor.outputs) and factor.outputs:
                values, _ = factor.rule.upward([known[index] for index in factor.inputs])
                known.update(zip(factor.outputs, values, strict=True))
        return known
