"""Reading an Equinox model: its jaxpr becomes a graph of local constraints."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jaxtyping import Array, PyTree

from ...lifting import LiftError
from ...lifting._activity import inner_jaxpr
from ...lifting._primitive import Psi
from ...lifting._python_values import is_machinery, no_python_values
from ._constraints import Carrier, Dense, Mapped, Maximum, Spread, SumActivation, Total
from ._graph import NetworkGraph, Node, Value

# Linear maps of one argument whose output entries are entries of the input, or zero.
_CARRIERS = frozenset(
    {
        *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev"),
        *("neg", "copy", "dynamic_slice", "gather", "convert_element_type", "reduce_precision"),
    }
)
_ELEMENTWISE = frozenset(
    {
        *("abs", "neg", "sign", "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin"),
        *("cos", "sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "erf", "erfc", "atan"),
        *("sinh", "cosh", "asinh", "add", "sub", "mul", "div", "max", "min", "select_n", "clamp"),
        *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "floor", "ceil", "round"),
        *("quantise", "stop_gradient", "convert_element_type", "copy", "add_any", "is_finite"),
    }
)


class _Constant:
    """A value known at trace time."""

    def __init__(self, array: Any):
        self.array, self.shape = array, jnp.shape(array)


class _Given:
    """A value that depends on the data alone."""

    def __init__(self, key: int, shape: tuple[int, ...]):
        self.key, self.shape = key, shape


class _Sum:
    """A sum of values that no constraint has claimed yet."""

    def __init__(self, terms: tuple[int, ...]):
        self.terms = terms


class _Function:
    """An elementwise function of a value or sum that no constraint has claimed yet."""

    def __init__(self, root: Any, function: Callable[[Any], Any], kind: str, options: Any = None):
        self.root, self.function, self.kind, self.options = root, function, kind, options


def trace_network(model: Callable[..., Any], x: PyTree) -> tuple[NetworkGraph, tuple[Array, ...]]:
    """Open a model up into values, local constraints and maps that carry messages.

    Supported: matrix products and convolutions of activations with parameters, products of two
    activations, sums, elementwise functions, maxima, and every rearrangement (reshape, slice,
    concatenation, lookup in an embedding table). Whatever is computed from the data alone may use
    any operation. Loops must be unrolled.

    Args:
        model: a callable Equinox module on one sample.
        x: a batch of its argument; only shapes and dtypes are read.

    Returns:
        The graph, and the model's inexact arrays in the order of its leaves.

    Raises:
        LiftError: an operation that has no local projection, or Python code that asks for the
            value of a traced number; named with its place in the program.
    """
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arrays)]
    samples, x_tree = jax.tree.flatten(x)

    def run(leaves: Any, samples: Any) -> Any:
        whole = eqx.combine(jax.tree.unflatten(tree, leaves), static)
        return whole(jax.tree.unflatten(x_tree, samples))

    like = [jax.ShapeDtypeStruct(s.shape[1:], s.dtype) for s in samples]
    with no_python_values("the model"):
        closed = jax.make_jaxpr(run)(leaves, like)
    if len(closed.jaxpr.outvars) != 1:
        raise LiftError(
            f"the model returns {len(closed.jaxpr.outvars)} arrays; a network has one output. "
            "Return the array that the loss reads"
        )
    return _Builder(closed, paths).graph, tuple(leaves)


class _Operation(NamedTuple):
    """An equation with numbers for its variables: equal functions called twice stay apart."""

    equation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]
    calls: tuple[Any, ...]  # equations of the calls around it, the innermost first


class _Program:
    """A jaxpr with its calls opened up, except elementwise functions of one parameter-dependent
    array, which stay whole."""

    def __init__(self, closed: Any, parameters: int):
        self.operations: list[_Operation] = []
        self.constants: dict[int, Any] = {}
        self.count = 0
        self.live: set[int] = set()
        jaxpr = closed.jaxpr
        self.inputs = [self._new() for _ in jaxpr.invars]
        self.live.update(self.inputs[:parameters])
        self.outputs = self._run(jaxpr, closed.consts, self.inputs, ())
        self._drop_unread()
        self.uses = Counter(
            key for op in self.operations for key in op.inputs if isinstance(key, int)
        )
        self.uses.update(key for key in self.outputs if isinstance(key, int))

    def _new(self) -> int:
        self.count += 1
        return self.count

    def _drop_unread(self) -> None:
        """Leave out the operations that the output does not depend on."""
        read, kept = set(self.outputs), []
        for operation in reversed(self.operations):
            if not read.isdisjoint(operation.outputs):
                read.update(operation.inputs)
                kept.append(operation)
        self.operations = kept[::-1]

    def _run(self, jaxpr: Any, consts: Any, arguments: Any, calls: Any) -> list[Any]:
        env = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, array in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self._new()
            self.constants[env[var]] = array

        def read(atom: Any) -> Any:
            return (
                env[atom]
                if _is_variable(atom)
                else _Constant(np.asarray(atom.val, atom.aval.dtype))
            )

        for eqn in jaxpr.eqns:
            inputs = tuple(read(atom) for atom in eqn.invars)
            live = {key for key in inputs if isinstance(key, int) and key in self.live}
            inner = _opened(eqn)
            whole = len(live) == 1 and len(eqn.outvars) == 1 and _is_elementwise(eqn)
            if inner is not None and not whole:
                outputs = self._run(*inner, inputs, (eqn, *calls))
            else:
                outputs = [self._new() for _ in eqn.outvars]
                if live:
                    self.live.update(outputs)
                self.operations.append(_Operation(eqn, inputs, tuple(outputs), calls))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


class _Builder:
    calls: tuple[Any, ...] = ()  # around the operation that is being read

    def __init__(self, closed: Any, paths: list[str]):
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.env: dict[int, Any] = {}
        self.claimed_given: dict[Any, int] = {}
        self.data_operations: list[_Operation] = []
        self.program = _Program(closed, len(paths))
        invars = closed.jaxpr.invars
        for key, array in self.program.constants.items():
            self.env[key] = _Constant(array)
        keys = self.program.inputs
        for key, var, name in zip(keys, invars, paths, strict=False):
            self.env[key] = self._value(var.aval.shape, True, "parameter", name, True)
        parameters = tuple(self.env[key] for key in keys[: len(paths)])
        self.inputs = keys[len(paths) :]
        for key, var in zip(self.inputs, invars[len(paths) :], strict=True):
            self.env[key] = _Given(key, var.aval.shape)
        for operation in self.program.operations:
            self._operation(operation)
        output = self._claim(self.program.outputs[0])
        if self.values[output].shared:
            raise LiftError("the model's output does not depend on its input")
        self.graph = NetworkGraph(
            tuple(self.values),
            tuple(self.nodes),
            tuple(self.claimed_given.values()),
            self._evaluate_given,
            parameters,
            output,
        )

    # The graph under construction.

    def _value(self, shape: Any, shared: bool, kind: str, name: str, movable: bool) -> int:
        self.values.append(Value(len(self.values), tuple(shape), shared, kind, name, movable))
        return len(self.values) - 1

    def _node(self, rule: Any, inputs: tuple[int, ...], shape: Any, name: str) -> int:
        shared = all(self.values[i].shared for i in inputs) and not isinstance(rule, Spread)
        movable = any(self.values[i].movable for i in inputs)
        output = self._value(shape, shared, "result", name, movable)
        self.nodes.append(Node(len(self.nodes), rule, inputs, output))
        return output

    def _claim(self, key: Any) -> int:
        """The value of a variable, making the constraint that computes it if need be."""
        ref = self._read(key)
        if isinstance(ref, int):
            return ref
        if isinstance(ref, _Constant | _Given):
            name = ref.key if isinstance(ref, _Given) else ref
            if name not in self.claimed_given:
                self.claimed_given[name] = self._value(ref.shape, False, "given", "data", False)
            return self.claimed_given[name]
        if isinstance(ref, _Sum):
            index = self._sum(ref, lambda s: s, "identity", None)
        else:
            root = ref.root if isinstance(ref.root, _Sum) else _Sum((ref.root,))
            index = self._sum(root, ref.function, ref.kind, ref.options)
        self.env[key] = index
        return index

    def _sum(self, ref: _Sum, function: Any, kind: str, options: Any) -> int:
        terms = tuple(self._batched(i) for i in ref.terms)
        rule = SumActivation(function, kind, len(terms), options)
        return self._node(rule, terms, self.values[terms[0]].shape, kind)

    def _batched(self, index: int) -> int:
        value = self.values[index]
        if not value.shared:
            return index
        return self._node(Spread(value.shape), (index,), value.shape, "spread")

    def _evaluate_given(self, x: Any) -> tuple[Any, ...]:
        def one(*samples: Any) -> tuple[Any, ...]:
            env = dict(zip(self.inputs, samples, strict=True))
            for operation in self.data_operations:
                arguments = [
                    ref.array if isinstance(ref := self._read(key), _Constant) else env[key]
                    for key in operation.inputs
                ]
                env.update(
                    zip(operation.outputs, _bind(operation.equation, arguments), strict=True)
                )
            return tuple(
                name.array if isinstance(name, _Constant) else env[name]
                for name in self.claimed_given
            )

        return jax.vmap(one)(*jax.tree.leaves(x))

    # Reading the program.

    def _read(self, key: Any) -> Any:
        return key if isinstance(key, _Constant) else self.env[key]

    def _operation(self, operation: _Operation) -> None:
        eqn, keys, outputs, self.calls = operation
        refs = [self._read(key) for key in keys]
        if all(isinstance(ref, _Constant) for ref in refs):
            made: list[Any] = [_Constant(a) for a in _bind(eqn, [ref.array for ref in refs])]
        elif all(isinstance(ref, _Constant | _Given) for ref in refs):
            self.data_operations.append(operation)
            shapes = [var.aval.shape for var in eqn.outvars]
            made = [_Given(key, shape) for key, shape in zip(outputs, shapes, strict=True)]
        elif eqn.primitive.name == "split":
            made = [self._carry(eqn, keys, part) for part in range(len(outputs))]
        else:
            made = [self._constraint(eqn, keys, refs)]
        self.env.update(zip(outputs, made, strict=True))

    def _constraint(self, eqn: Any, keys: Any, refs: list[Any]) -> Any:
        name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
        found = self._elementwise(eqn, keys)
        if found is not None:
            return found
        if name in ("add", "add_any", "sub"):
            return self._add(eqn, keys, name == "sub")
        if name == "mul":
            return self._multiply(eqn, keys, jnp.multiply)
        if name in ("dot_general", "conv_general_dilated"):
            return self._multiply(eqn, keys, lambda *args: _bind(eqn, args)[0])
        if name in ("reduce_max", "reduce_sum"):
            index = self._batched(self._claim(keys[0]))
            axes = tuple(eqn.params["axes"])
            rule: Any = Total(axes)
            if name == "reduce_max":
                rule = Maximum(axes, len(self.values[index].shape))
            return self._node(rule, (index,), shape, name)
        if name in ("concatenate", "pad") or (
            name in _CARRIERS and not isinstance(refs[0], _Constant | _Given)
        ):
            return self._carry(eqn, keys)
        raise self._error(
            eqn,
            "has no local projection. Supported are products with parameters (linear layers, "
            "convolutions), elementwise functions, sums, products, maxima and rearrangements; "
            "loops must be unrolled",
        )

    def _elementwise(self, eqn: Any, keys: Any) -> _Function | None:
        """The equation as a function of one root, or None if it is not one."""
        if len(eqn.outvars) != 1 or not _is_elementwise(eqn):
            return None
        live = [k for k, key in enumerate(keys) if not isinstance(self._read(key), _Constant)]
        if any(isinstance(self._read(keys[k]), _Given) for k in live):
            return None
        parts = [self._as_function(keys[k]) for k in live]
        root = parts[0].root
        if any(part.root is not root and part.root != root for part in parts):
            return None
        if isinstance(root, int) and self.values[root].shared:
            if eqn.primitive.name in _CARRIERS:
                return None
            raise self._error(
                eqn,
                f"makes a parameter from the parameter {self.values[root].name} by a function; "
                "let the model store the result",
            )
        shape = self.values[root.terms[0] if isinstance(root, _Sum) else root].shape
        refs = [self._read(key) for key in keys]
        constants = [ref for ref in refs if isinstance(ref, _Constant)]
        out = eqn.outvars[0].aval.shape
        if out != shape or any(c.shape not in ((), shape) for c in constants):
            return None

        def function(value: Any) -> Any:
            arguments = [ref.array if isinstance(ref, _Constant) else None for ref in refs]
            for k, part in zip(live, parts, strict=True):
                arguments[k] = part.function(value)
            return _bind(eqn, arguments)[0]

        kind, options = "smooth", None
        if all(part.kind == "identity" for part in parts):
            kind, options = _kind(eqn, refs)
        return _Function(root, function, kind, options)

    def _as_function(self, key: int) -> _Function:
        # What several operations read becomes one value with several copies.
        ref = self._read(key)
        if isinstance(ref, _Sum | _Function) and self.program.uses[key] > 1:
            ref = self._claim(key)
        if isinstance(ref, _Function):
            return ref
        return _Function(ref, lambda value: value, "identity")

    def _add(self, eqn: Any, keys: Any, subtract: bool) -> _Sum:
        terms: list[int] = []
        shape = eqn.outvars[0].aval.shape
        for position, key in enumerate(keys):
            negative = subtract and position == 1
            ref = self._read(key)
            alone = isinstance(ref, _Sum) and self.program.uses[key] == 1
            if alone and not negative and self.values[ref.terms[0]].shape == shape:
                terms.extend(ref.terms)
                continue
            index = self._claim(key)
            value = self.values[index]
            if negative:
                rule = Carrier(jnp.negative, (value.shared,), (value.shape,), _same)
                index = self._node(rule, (index,), value.shape, "neg")
            if value.shape != shape:  # axes of length 1 broadcast
                rule = Carrier(
                    lambda x: jnp.broadcast_to(x, shape), (value.shared,), (value.shape,)
                )
                index = self._node(rule, (index,), shape, "broadcast")
            terms.append(index)
        if all(self.values[index].shared for index in terms):
            raise self._error(eqn, "adds parameters alone; let the model store their sum")
        return _Sum(tuple(terms))

    def _multiply(self, eqn: Any, keys: Any, function: Callable[..., Any]) -> int:
        fixed = [_is_given(self._read(key)) for key in keys]
        indices = [self._claim(key) for key in keys]
        values = [self.values[i] for i in indices]
        shape, name = eqn.outvars[0].aval.shape, eqn.primitive.name
        if name == "mul" and any(fixed):
            # A mask or a scale given with the data.
            k = fixed.index(False)
            rule = Carrier(
                jnp.multiply, (values[k].shared,), (values[k].shape,), lambda x, m: x * (m * m)
            )
            return self._node(rule, (indices[k], indices[1 - k]), shape, name)
        if values[0].shared and values[1].shared:
            raise self._error(eqn, "multiplies parameters alone; let the model store their product")
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
            raise self._error(eqn, "has its filter as the data; only a parameter can be the filter")
        ordered = (lambda a, w: function(w, a)) if swap else function
        rule = Mapped(ordered, a.shape, b.shape, b.shared)
        return self._node(rule, (ia, ib), shape, name)

    def _carry(self, eqn: Any, keys: Any, part: int = 0) -> int:
        refs = [self._read(key) for key in keys]
        if eqn.primitive.name in ("concatenate", "pad"):
            linear, data = list(range(len(keys))), []
        else:
            linear, data = [0], [k for k, ref in enumerate(refs) if isinstance(ref, _Given)]
            if any(not _is_given(ref) for ref in refs[1:]):
                raise self._error(eqn, "rearranges by indices that depend on parameters")
        constant = {
            k: ref.array
            for k, ref in enumerate(refs)
            if isinstance(ref, _Constant) and k not in linear
        }
        indices = tuple(self._claim(keys[k]) for k in linear + data)

        def function(*arguments: Any) -> Any:
            full = {**constant, **dict(zip(linear + data, arguments, strict=True))}
            return _bind(eqn, [full[k] for k in range(len(keys))])[part]

        values = [self.values[i] for i in indices[: len(linear)]]
        squared = _same if eqn.primitive.name == "neg" else None
        shared, shapes = tuple(v.shared for v in values), tuple(v.shape for v in values)
        rule = Carrier(function, shared, shapes, squared)
        return self._node(rule, indices, eqn.outvars[part].aval.shape, eqn.primitive.name)

    def _error(self, eqn: Any, reason: str) -> LiftError:
        place = f"operation {len(self.nodes)} ({eqn.primitive.name})"
        lines = map(_user_line, (eqn, *self.calls))
        line = next(filter(None, lines), "")
        return LiftError(reason, f"{place} at {line}" if line else place)


def _same(x: Any) -> Any:
    return x


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, jex.Literal)


def _is_given(ref: Any) -> bool:
    return isinstance(ref, _Constant | _Given)


def _opened(eqn: Any) -> tuple[Any, Any] | None:
    """The program inside a call; functions with derivative rules of their own included."""
    inner = inner_jaxpr(eqn)
    if inner is None and eqn.primitive.name.startswith(("custom_jvp", "custom_vjp")):
        closed = eqn.params.get("call_jaxpr") or eqn.params.get("fun_jaxpr")
        inner = closed.jaxpr, closed.consts
    return inner


def _bind(eqn: Any, arguments: Any) -> tuple[Any, ...]:
    inner = _opened(eqn)
    if inner is not None:
        jaxpr, consts = inner
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            given = [env[v] if _is_variable(v) else v.val for v in equation.invars]
            env.update(zip(equation.outvars, _bind(equation, given), strict=True))
        return tuple(env[v] if _is_variable(v) else v.val for v in jaxpr.outvars)
    return Psi(eqn)(*arguments)


def _is_elementwise(eqn: Any) -> bool:
    inner = _opened(eqn)
    if inner is None:
        return eqn.primitive.name in _ELEMENTWISE
    # Shape changes of constants inside (a literal broadcast) are no obstacle.
    return all(
        _is_elementwise(e)
        or (e.primitive.name == "broadcast_in_dim" and e.invars[0].aval.shape == ())
        for e in inner[0].eqns
    )


def _kind(eqn: Any, refs: list[Any]) -> tuple[str, Any]:
    """The closed-form projection of an equation applied to the root itself."""
    inner = _opened(eqn)
    if inner is not None:
        equations = inner[0].eqns
        if len(equations) != 1 or len(inner[0].outvars) != 1:
            return "smooth", None
        atoms = equations[0].invars
        outer = dict(zip(inner[0].invars, refs, strict=True))
        inside = [
            outer.get(v) if _is_variable(v) else _Constant(np.asarray(v.val, v.aval.dtype))
            for v in atoms
        ]
        return _kind(equations[0], inside)
    name = eqn.primitive.name
    constants = [r.array for r in refs if isinstance(r, _Constant)]
    if (
        name == "max"
        and len(constants) == 1
        and constants[0].shape == ()
        and _is_zero(constants[0])
    ):
        return "relu", None
    if name == "abs":
        return "abs", None
    if name == "quantise":
        return "quantise", dict(eqn.params)
    if name in ("copy", "convert_element_type", "stop_gradient"):
        return "identity", None
    return "smooth", None


def _is_zero(array: Any) -> bool:
    return not isinstance(array, Tracer) and float(array) == 0.0


def _user_line(eqn: Any) -> str:
    """File and line of the user's program where the equation was made, if known."""
    traceback = getattr(eqn.source_info, "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        file = frame.file_name
        if not is_machinery(file) and os.path.exists(file):
            return f"{os.path.basename(file)}:{frame.line_num}"
    return ""
