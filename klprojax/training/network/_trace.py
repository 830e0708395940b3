"""Reading an Equinox model: its jaxpr becomes a graph of local constraints."""

from collections import Counter
from collections.abc import Callable
from itertools import compress
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..._tracing import (
    BILINEAR,
    EXTREMA,
    LAYOUT,
    RULES,
    SUMS,
    FlatEquation,
    FlatProgram,
    LiftError,
    evaluate,
    is_elementwise,
    no_python_values,
    user_line,
)
from ...fitting._network import AXIS, Rows, call, has_state, partition
from ._bilinear import Dense, Mapped
from ._carriers import Carrier, Cut, Spread
from ._constraints import EntrySums, Maximum, SumActivation
from ._generic import Generic
from ._graph import NetworkGraph, Node, Value
from ._joined import Outputs
from ._kinds import EXACT, Constant, is_real, kind_of
from ._row_means import RowMeans

# Elementwise maps that are linear, with coefficients of absolute value 1.
_SIGNED = frozenset({"convert_element_type", "copy", "copy_p", "neg", "reduce_precision"})


class _Given(NamedTuple):
    """A value that depends on the data alone."""


class _Sum(NamedTuple):
    """A sum of values that no constraint has claimed yet."""

    terms: tuple[int, ...]


class _Function(NamedTuple):
    """An elementwise function of a value or sum that no constraint has claimed yet."""

    root: Any
    like: Any  # type of the root
    function: Callable[[Any], Any]
    kind: str
    options: Any = None


def trace_network(model: PyTree, x: PyTree) -> tuple[NetworkGraph, tuple[Array, ...]]:
    """Open a model up into values, local constraints and maps that carry messages.

    Projections of their own have matrix products and convolutions of activations with parameters,
    products and quotients of two activations, sums, elementwise functions of one value, maxima and
    minima; every rearrangement (reshape, slice, concatenation, stack, lookup in an embedding table,
    choice by a mask) carries messages. Every other operation with derivatives forward and back is
    one constraint, projected onto by Gauss-Newton steps: loops of fixed length (`scan`), pooling by
    windows, sorting, products over an axis. Such a constraint keeps copies of the parameters it
    reads for every sample. Whatever is computed from the data alone may use any operation. A
    function with a rule of `custom_jvp` keeps it; one with a rule of
    `custom_vjp` is read as what it computes. Through `stop_gradient` values pass but no messages.
    Of a pair (network, state) the state and the random keys are data; sums over the rows of the
    batch (`psum`, `pmean` over the axis `"batch"`) are one constraint on all rows.

    Args:
        model: a callable Equinox module on one sample, or a pair (network, state).
        x: a batch of its argument, or `Rows`; only shapes and dtypes are read.

    Returns:
        The graph, and the model's inexact arrays in the order of its leaves.

    Raises:
        LiftError: an operation without derivatives (`while_loop`), or Python code that asks for the
            value of a traced number; named with its place in the program.
    """
    arrays, static = partition(model)
    leaves, tree = jax.tree.flatten(arrays)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]
    samples, x_tree = jax.tree.flatten(x if isinstance(x, Rows) else Rows(x))

    def run(leaves: Any, samples: Any) -> Any:
        whole = eqx.combine(jax.tree.unflatten(tree, leaves), static)
        outputs = call(whole, jax.tree.unflatten(x_tree, samples))[0]
        forms.append(Outputs(outputs))
        return outputs if forms[-1].alone else forms[-1].join(outputs)

    forms: list[Outputs] = []
    like = [jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for s in samples]
    rows = len(samples[0])
    axes = [(AXIS, rows)] if has_state(model) else None
    with no_python_values("the model"):
        closed = jax.make_jaxpr(run, axis_env=axes)(leaves, like)
    return _Builder(closed, paths, rows, forms[-1]).graph, tuple(leaves)


class _Builder:
    def __init__(self, closed: Any, paths: list[str], rows: int, form: Outputs):
        self.rows = rows
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.claimed_given: dict[int, int] = {}
        self.data_operations: list[FlatEquation] = []
        self.program = FlatProgram(closed, [True] * len(closed.jaxpr.invars), RULES, _stays_whole)
        operations, outputs = self.program.needed(), self.program.outputs
        self.uses = Counter([*outputs, *(key for one in operations for key in one.inputs)])
        self.env: dict[int, Any] = {k: Constant(a) for k, a in self.program.constants.items()}
        for key, value in self.program.literals.items():
            self.env[key] = Constant(np.asarray(value, self.program.avals[key].dtype))
        keys = self.program.inputs[: len(paths)]
        for key, name in zip(keys, paths, strict=True):
            self.env[key] = self._value(self._shape(key), True, "parameter", name, True)
        parameters = tuple(self.env[key] for key in keys)
        self.inputs = self.program.inputs[len(paths) :]
        self.env.update(dict.fromkeys(self.inputs, _Given()))
        for self.operation in operations:
            self._read_operation()
        output = self._claim(outputs[0])
        if self.values[output].shared:
            raise LiftError("the model's output does not depend on its input")
        self.graph = NetworkGraph(
            tuple(self.values),
            tuple(self.nodes),
            tuple(self.claimed_given.values()),
            self._evaluate_given,
            parameters,
            output,
            form,
            any(isinstance(node.rule, RowMeans) for node in self.nodes),
        )

    # The graph under construction.

    def _shape(self, key: int) -> tuple[int, ...]:
        return self.program.avals[key].shape

    def _value(self, shape: Any, shared: bool, kind: str, name: str, movable: bool) -> int:
        self.values.append(Value(len(self.values), tuple(shape), shared, kind, name, movable))
        return len(self.values) - 1

    def _node(self, rule: Any, inputs: tuple[int, ...], shape: Any, name: str) -> int:
        shared = all(self.values[i].shared for i in inputs) and not isinstance(rule, Spread)
        movable = any(self.values[i].movable for i in inputs) and not isinstance(rule, Cut)
        output = self._value(shape, shared, "result", name, movable)
        self.nodes.append(Node(len(self.nodes), rule, inputs, output))
        return output

    def _claim(self, key: int) -> int:
        """The value of a variable, making the constraint that computes it if need be."""
        ref = self.env[key]
        if isinstance(ref, int):
            return ref
        if isinstance(ref, Constant | _Given):
            if key not in self.claimed_given:
                shape = self._shape(key)
                self.claimed_given[key] = self._value(shape, False, "given", "data", False)
            return self.claimed_given[key]
        if not is_real(self.program.avals[key]):
            kind = self.program.avals[key].dtype
            raise self._error(f"reads values of type {kind}; messages need real numbers")
        self.env[key] = self._sum(ref if isinstance(ref, _Function) else self._identity(key))
        return self.env[key]

    def _sum(self, ref: _Function) -> int:
        terms = ref.root.terms if isinstance(ref.root, _Sum) else (ref.root,)
        terms = tuple(map(self._batched, terms))
        if ref.kind == "scaled":
            root = (
                ref.root if isinstance(ref.root, int) else self._sum(ref._replace(kind="identity"))
            )
            twice = lambda x: ref.function(ref.function(x))  # noqa: E731
            return self._carrier(ref.function, (root,), ref.like.shape, twice)
        if ref.kind == "smooth":
            like = jax.ShapeDtypeStruct(ref.like.shape, ref.like.dtype)
            try:
                jax.eval_shape(lambda x: jax.jvp(ref.function, (x,), (x,)), like)
            except (NotImplementedError, ValueError, TypeError) as error:
                raise self._error(f"reads a function without a derivative ({error})") from error
        rule = SumActivation(ref.function, ref.kind, len(terms), ref.options)
        return self._node(rule, terms, ref.like.shape, ref.kind)

    def _identity(self, key: int) -> _Function:
        return _Function(self.env[key], self.program.avals[key], _same, "identity")

    def _batched(self, index: int) -> int:
        if not self._shared(index):
            return index
        shape = self.values[index].shape
        return self._node(Spread(shape), (index,), shape, "spread")

    def _shared(self, index: int) -> bool:
        return self.values[index].shared

    def _carrier(
        self, function: Any, linear: Any, shape: Any, squared: Any = None, data: Any = ()
    ) -> int:
        """A map that is linear in some of its inputs."""
        values = [self.values[i] for i in linear]
        shared, shapes = tuple(v.shared for v in values), tuple(v.shape for v in values)
        name = self.operation.equation.primitive.name
        return self._node(Carrier(function, shared, shapes, squared), (*linear, *data), shape, name)

    def _evaluate_given(self, x: Any) -> tuple[Any, ...]:
        def one(*samples: Any) -> tuple[Any, ...]:
            env = {k: ref.array for k, ref in self.env.items() if isinstance(ref, Constant)}
            env.update(zip(self.inputs, samples, strict=True))
            for operation in self.data_operations:
                found = evaluate(operation.equation, [env[key] for key in operation.inputs])
                env.update(zip(operation.outputs, found, strict=True))
            return tuple(env[key] for key in self.claimed_given)

        return jax.vmap(one, axis_name=AXIS)(*jax.tree.leaves(x))

    # Reading the program.

    def _read_operation(self) -> None:
        eqn, keys, outputs, _ = self.operation
        refs = [self.env[key] for key in keys]
        couples = AXIS in _axes(eqn)
        if all(isinstance(ref, Constant) for ref in refs) and not couples:
            made: Any = map(Constant, evaluate(eqn, [ref.array for ref in refs]))
        elif all(map(_is_given, refs)):
            self.data_operations.append(self.operation)
            made = [_Given()] * len(outputs)
        elif couples:
            made = self._sum_rows()
        elif len(outputs) > 1 and eqn.primitive.name in LAYOUT:
            made = [self._carry(k) if self.uses[key] else None for k, key in enumerate(outputs)]
        else:
            made = [self._constraint()] if len(outputs) == 1 else self._generic()
        self.env.update(zip(outputs, made, strict=True))

    def _constraint(self) -> Any:
        eqn, keys, outputs, _ = self.operation
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        refs = [self.env[key] for key in keys]
        if name == "stop_gradient" and isinstance(refs[0], int) and self._shared(refs[0]):
            return self._node(Cut(shape), (refs[0],), shape, name)
        found = self._elementwise()
        if found is not None:
            return found
        if name in ("add", "add_any", "sub"):
            return self._add(name == "sub")
        if name == "mul" or name in BILINEAR:
            return self._multiply(list(map(self._claim, keys)))
        if name == "div":
            return self._divide()
        if name in SUMS:
            index = self._batched(self._claim(keys[0]))
            rule: Any = EntrySums(lambda a: evaluate(eqn, [a])[0], self.values[index].shape)
            return self._node(rule, (index,), shape, name)
        pair = name in ("max", "min") and self._shape(keys[0]) == self._shape(keys[1])
        if name in EXTREMA or pair:
            indices = [self._batched(self._claim(key)) for key in keys]
            axes = tuple(map(int, eqn.params.get("axes", (0,))))
            if pair:
                indices = [self._carrier(lambda *x: jnp.stack(x), indices, (2, *shape))]
            rule = Maximum(axes, len(self.values[indices[0]].shape), 1 if "max" in name else -1)
            return self._node(rule, tuple(indices), shape, name)
        if len(outputs) == 1 and (name in LAYOUT or name in _SIGNED or name == "select_n"):
            return self._carry()
        return self._generic()[0]

    def _sum_rows(self) -> list[int | None]:
        """What a row reads of the others, by their sum."""
        eqn, keys, outputs, _ = self.operation
        name = eqn.primitive.name
        if name != "psum" or _axes(eqn) != (AXIS,) or eqn.params.get("axis_index_groups"):
            raise self._error(f"lets rows read each other by {name}; sums and means over {AXIS} do")
        return [
            self._row_sum(key) if self.uses[k] else None
            for key, k in zip(keys, outputs, strict=True)
        ]

    def _row_sum(self, key: int) -> int:
        index, shape = self._batched(self._claim(key)), self._shape(key)
        mean = self._node(RowMeans(self.rows), (index,), shape, "pmean")
        times = lambda x: x * jnp.asarray(self.rows, x.dtype)  # noqa: E731
        return self._carrier(times, (mean,), shape, lambda x: times(times(x)))

    def _generic(self) -> list[int | None]:
        """The equation whole, each output that is read by a constraint of its own."""
        eqn, keys, outputs, _ = self.operation
        refs = [self.env[key] for key in keys]
        if all(isinstance(r, Constant) or (isinstance(r, int) and self._shared(r)) for r in refs):
            raise self._error("makes a parameter from parameters; let the model store the result")
        constants = {k: ref.array for k, ref in enumerate(refs) if isinstance(ref, Constant)}
        inputs = [k for k in range(len(keys)) if k not in constants]
        indices = tuple(self._batched(self._claim(keys[k])) for k in inputs)
        movable = tuple(self.values[index].movable for index in indices)
        made: list[int | None] = []
        for part, key in enumerate(outputs):
            if not self.uses[key]:
                made.append(None)
                continue

            def function(*arguments: Any, part: int = part) -> Any:
                full = {**constants, **dict(zip(inputs, arguments, strict=True))}
                return evaluate(eqn, [full[k] for k in range(len(keys))])[part]

            rule = Generic(function, movable)
            self._check_derivatives(rule, [self.program.avals[keys[k]] for k in inputs], key)
            made.append(self._node(rule, indices, self._shape(key), eqn.primitive.name))
        return made

    def _check_derivatives(self, rule: Generic, avals: list[Any], key: int) -> None:
        if not is_real(self.program.avals[key]):
            kind = self.program.avals[key].dtype
            raise self._error(f"makes values of type {kind}; messages need real numbers")

        def slopes(*inputs: Any) -> Any:
            free = list(compress(inputs, rule.movable))

            def value(copies: Any) -> Any:
                return rule.of_copies(inputs, copies)

            output, pull = jax.vjp(value, free)
            return pull(output), jax.jvp(value, (free,), (free,))

        like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        try:
            jax.eval_shape(slopes, *like)
        except NameError as error:
            raise self._error(f"lets rows read each other inside of it ({error})") from error
        except (NotImplementedError, ValueError, TypeError) as error:
            raise self._error(f"is a function without derivatives ({error})") from error

    def _elementwise(self) -> _Function | None:
        """The equation as a function of one root, or None if it is not one."""
        eqn, keys, _, _ = self.operation
        refs = [self.env[key] for key in keys]
        live = [k for k, ref in enumerate(refs) if not isinstance(ref, Constant)]
        if not is_elementwise(eqn, RULES) or any(isinstance(refs[k], _Given) for k in live):
            return None
        parts = [self._as_function(keys[k]) for k in live]
        kind, options = kind_of(eqn, refs)
        if kind == "scaled" and parts[0].kind in EXACT:
            return None  # a projection in closed form, then a map that carries
        root = parts[0].root
        if any(part.root != root for part in parts):
            return None
        if isinstance(root, int) and self._shared(root):
            if eqn.primitive.name in _SIGNED:
                return None
            raise self._error(
                f"makes a parameter from the parameter {self.values[root].name} by a function; "
                "let the model store the result"
            )
        like = parts[0].like
        fits = all(np.shape(c.array) in ((), like.shape) for c in refs if isinstance(c, Constant))
        if not fits or eqn.outvars[0].aval.shape != like.shape:
            return None

        def function(value: Any) -> Any:
            arguments = [ref.array if isinstance(ref, Constant) else None for ref in refs]
            for k, part in zip(live, parts, strict=True):
                arguments[k] = part.function(value)
            return evaluate(eqn, arguments)[0]

        kinds = {part.kind for part in parts}
        if not kinds <= ({"identity", "scaled"} if kind == "scaled" else {"identity"}):
            kind, options = "smooth", None
        return _Function(root, like, function, kind, options)

    def _as_function(self, key: int) -> _Function:
        # What several operations read becomes one value with several copies; a truth value cannot.
        known = isinstance(self.env[key], _Sum | _Function)
        if known and self.uses[key] > 1 and is_real(self.program.avals[key]):
            self._claim(key)
        ref = self.env[key]
        return ref if isinstance(ref, _Function) else self._identity(key)

    def _add(self, subtract: bool) -> _Sum:
        eqn, keys, _, _ = self.operation
        terms: list[int] = []
        shape = eqn.outvars[0].aval.shape
        for position, key in enumerate(keys):
            negative = subtract and position == 1
            ref = self.env[key]
            alone = isinstance(ref, _Sum) and self.uses[key] == 1
            if alone and not negative and self.values[ref.terms[0]].shape == shape:
                terms.extend(ref.terms)
                continue
            index = self._claim(key)
            if negative:
                index = self._carrier(jnp.negative, (index,), self.values[index].shape, _same)
            if self.values[index].shape != shape:  # axes of length 1 broadcast
                index = self._carrier(lambda x: jnp.broadcast_to(x, shape), (index,), shape)
            terms.append(index)
        if all(map(self._shared, terms)):
            raise self._error("adds parameters alone; let the model store their sum")
        return _Sum(tuple(terms))

    def _divide(self) -> int:
        numerator, denominator = self.operation.inputs
        part = self._as_function(denominator) if not _is_given(self.env[denominator]) else None
        if part is None:
            return self._multiply([self._claim(numerator), self._claim(denominator)], jnp.divide)
        # A quotient is a product with the reciprocal.
        inverse = self._sum(part._replace(function=lambda x: 1 / part.function(x), kind="smooth"))
        return self._multiply([self._claim(numerator), inverse])

    def _multiply(self, indices: list[int], elementwise: Any = jnp.multiply) -> int:
        eqn = self.operation.equation
        values = [self.values[i] for i in indices]
        shape, name = eqn.outvars[0].aval.shape, eqn.primitive.name
        if name not in BILINEAR and any(value.kind == "given" for value in values):
            # A mask or a scale given with the data.
            k = [value.kind == "given" for value in values].index(False)
            linear, data = (indices[k],), (indices[1 - k],)
            twice = lambda x, m: elementwise(elementwise(x, m), m)  # noqa: E731
            return self._carrier(elementwise, linear, shape, twice, data)
        if values[0].shared and values[1].shared:
            raise self._error("multiplies parameters alone; let the model store their product")
        swap = values[0].shared  # the weight comes second
        (a, b), (ia, ib) = (values[::-1], indices[::-1]) if swap else (values, indices)
        if name == "dot_general" and b.shared and len(b.shape) == 2:
            (contract, batch) = eqn.params["dimension_numbers"]
            lhs, rhs = contract[::-1] if swap else contract
            last = tuple(lhs) == (len(a.shape) - 1,) and not batch[0]
            # With the weight first its units come first in the output: only right for vectors.
            if last and len(rhs) == 1 and (not swap or len(a.shape) == 1):
                rule = Dense(transposed=tuple(rhs) == (1,), rank=len(a.shape))
                return self._node(rule, (ia, ib), shape, name)
        if name == "conv_general_dilated" and swap:
            raise self._error("has its filter as the data; only a parameter can be the filter")
        function = jnp.multiply
        if name in BILINEAR:
            function = lambda *args: evaluate(eqn, args)[0]  # noqa: E731
        ordered = (lambda a, w: function(w, a)) if swap else function
        return self._node(Mapped(ordered, a.shape, b.shape, b.shared), (ia, ib), shape, name)

    def _carry(self, part: int = 0) -> int:
        eqn, keys, outputs, _ = self.operation
        refs = [self.env[key] for key in keys]
        linear = [k for k, v in enumerate(eqn.invars) if is_real(v.aval)]
        others = [k for k in range(len(keys)) if k not in linear]
        if not all(_is_given(refs[k]) for k in others):
            raise self._error("rearranges by indices or conditions that depend on parameters")
        if not eqn.params.get("unique_indices", True) and eqn.primitive.name == "scatter":
            raise self._error("may write to one place twice; say unique_indices=True in .at[].set")
        constant = {k: refs[k].array for k in others if isinstance(refs[k], Constant)}
        data = [k for k in others if k not in constant]

        def function(*arguments: Any) -> Any:
            full = {**constant, **dict(zip(linear + data, arguments, strict=True))}
            return evaluate(eqn, [full[k] for k in range(len(keys))])[part]

        squared = _same if eqn.primitive.name == "neg" else None
        first, second = ([self._claim(keys[k]) for k in which] for which in (linear, data))
        return self._carrier(function, first, self._shape(outputs[part]), squared, second)

    def _error(self, reason: str) -> LiftError:
        eqn, _, _, calls = self.operation
        place = f"operation {len(self.nodes)} ({eqn.primitive.name})"
        line = next(filter(None, map(user_line, (eqn, *reversed(calls)))), "")
        return LiftError(reason, f"{place} at {line}" if line else place)


def _same(x: Any) -> Any:
    return x


def _axes(eqn: Any) -> tuple[Any, ...]:
    """Named axes that an equation works along."""
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)


def _is_given(ref: Any) -> bool:
    return isinstance(ref, Constant | _Given)


def _stays_whole(eqn: Any, live: set[int]) -> bool:
    """An elementwise function of one value is one constraint, however it is written."""
    return len(live) == 1 and is_elementwise(eqn, RULES)
