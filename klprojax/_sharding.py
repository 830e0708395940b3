"""Arrays on meshes with explicit axes: entry verbs let the compiler partition what they do.

`jax.make_mesh` gives axes of type `Explicit`: shardings are then part of every array's type, and
each operation must have one. The algorithms here gather, scatter and loop, for which most have
none. Inside an entry verb the axes are therefore `Auto`, and its results are explicit again.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
    reshard,
    use_abstract_mesh,
)

P = ParamSpec("P")
R = TypeVar("R")


def on_any_mesh(
    *, batch: tuple[str, ...] = (), axis: int = 0, out: Any = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of arrays take explicitly sharded ones, under any transformation.

    Args:
        batch: names of the parameters that hold a batch.
        axis: the axis of the batch in them.
        out: a prefix of the tree of results. A number: the axis along which a result is
            partitioned like the batch. A name: partitioned like that parameter. None: whole on all
            devices.

    Returns:
        A decorator. Without explicit axes the function is called as it is.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            mesh = _explicit_mesh((args, kwargs))
            if mesh is None:
                return function(*args, **kwargs)
            named = signature.bind(*args, **kwargs).arguments
            entry = _partition([named.get(name) for name in batch], axis)
            arrays, rest = eqx.partition((args, kwargs), eqx.is_array)

            def run(arrays: Any) -> Any:
                args, kwargs = eqx.combine(arrays, rest)
                return cast(Any, function)(*args, **kwargs)

            traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(arrays))
            apply = _run_traced if traced else _run_concrete
            return apply(run, arrays, mesh, lambda found: _specs(found, entry, out, named))

        return call

    return decorate


def _explicit_mesh(tree: Any) -> Any:
    """The abstract mesh with explicit axes on which an array of the tree lives, or None."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                return mesh
    return None


def _partition(batch: Any, axis: int) -> Any:
    """Mesh axes over which the batch is split."""
    for leaf in jax.tree.leaves(batch):
        if isinstance(leaf, jax.Array) and leaf.ndim:
            entry = jax.typeof(leaf).sharding.spec[axis]
            if entry is not None:
                return entry
    return None


def _specs(found: Any, entry: Any, out: Any, named: dict[str, Any]) -> Any:
    """A partition for each array of the results."""

    def spec(how: int | str | None, part: Any) -> Any:
        def one(x: Any, like: Any = None) -> PartitionSpec:
            if _explicit_mesh(like) is not None:
                return jax.typeof(like).sharding.spec
            entries = [None] * x.ndim
            if isinstance(how, int) and x.ndim:
                entries[how] = entry
            return PartitionSpec(*entries)

        if isinstance(how, str):
            return jax.tree.map(one, part, eqx.filter(named[how], eqx.is_array))
        return jax.tree.map(one, part)

    return jax.tree.map(spec, out, found, is_leaf=lambda x: x is None)


def _with_auto(mesh: Any) -> dict[str, AxisType]:
    return {
        name: AxisType.Auto
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }


def _run_concrete(run: Callable[[Any], R], arrays: Any, mesh: Any, specs: Any) -> R:
    """The same devices under the same names: nothing moves."""
    here = next(x.sharding.mesh for x in jax.tree.leaves(arrays) if _explicit_mesh(x))
    types = dict(zip(here.axis_names, here.axis_types, strict=True)) | _with_auto(mesh)
    auto = Mesh(here.devices, here.axis_names, axis_types=tuple(types.values()))

    def loosen(x: Any) -> Any:
        if _explicit_mesh(x) is None:
            return x
        return jax.device_put(x, NamedSharding(auto, x.sharding.spec))

    # Operations must agree with the mesh that the caller has set, if any.
    inside = nullcontext() if get_abstract_mesh().empty else use_abstract_mesh(auto.abstract_mesh)
    arrays = jax.tree.map(loosen, arrays)
    with inside:
        found, rest = eqx.partition(run(arrays), eqx.is_array)
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(here, spec)), found, specs(found)
    )
    return eqx.combine(placed, rest)


def _run_traced(run: Callable[[Any], R], arrays: Any, mesh: Any, specs: Any) -> R:
    auto = mesh.update_axis_types(_with_auto(mesh))

    def tie(x: Any) -> Any:
        # A derivative by an array outside the mesh could not be mapped over it: the transpose of
        # a change of sharding would leave the mesh. That of a product does not.
        if not isinstance(x, Tracer) or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        if not jax.typeof(x).sharding.mesh.empty:
            return x
        try:
            with use_abstract_mesh(mesh):
                one = jnp.ones(x.shape, x.dtype)
        except ValueError:  # not under jit: nothing says which devices the mesh has
            return x
        return jax.lax.mul(x, one)

    arrays = jax.tree.map(tie, arrays)
    with use_abstract_mesh(auto):

        def loosen(x: Any) -> Any:
            return x if _explicit_mesh(x) is None else reshard(x, PartitionSpec(*[None] * x.ndim))

        found, rest = eqx.partition(run(jax.tree.map(loosen, arrays)), eqx.is_array)
    placed = jax.tree.map(
        lambda x, spec: reshard(x, NamedSharding(mesh, spec)), found, specs(found)
    )
    return eqx.combine(placed, rest)
